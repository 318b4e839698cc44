//! What a user may take of the proxy, on both paths, and that each refusal is counted by its reason.

use crate::process::{LIMITS, READ_TIMEOUT_MS};
use crate::upstream::pattern;
use crate::world::{Metrics, World};
use sim_proxy::ProxyConfig;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

/// Sets limits of `config` as they are told to the proxy's process.
pub(crate) fn set(config: &mut ProxyConfig, told: &str) {
    for pair in told.split(',') {
        let (key, value) = pair.split_once('=').expect("KEY=NUMBER");
        let number: u64 = value.parse().expect("a number");
        let time = Duration::from_millis(number);
        let limits = &mut config.limits;
        match key {
            "header_bytes" => limits.header_bytes = number as usize,
            "headers" => limits.headers = number as usize,
            "header_timeout" => limits.header_timeout = time,
            "body_timeout" => limits.body_timeout = time,
            "body_bytes_per_second" => limits.body_bytes_per_second = number as u32,
            "body_replay_bytes" => limits.body_replay_bytes = number as usize,
            "connections" => limits.connections = Some(number),
            "connections_per_source" => limits.connections_per_source = Some(number),
            "requests_per_second" => limits.requests_per_second = number as u32,
            "requests_burst" => limits.requests_burst = Some(number as u32),
            "upstream_concurrency" => limits.upstream_concurrency = number,
            "request_timeout" => limits.request_timeout = time,
            "idle_timeout" => config.client_idle_timeout = time,
            other => panic!("no limit is named {other}"),
        }
    }
}

async fn connect(world: &World) -> TcpStream {
    TcpStream::connect(world.proxy).await.expect("connected")
}

/// What comes until the proxy closes; a reset ends it as well.
async fn rest(user: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    while user
        .read_buf(&mut answer)
        .await
        .is_ok_and(|count| count > 0)
    {}
    String::from_utf8(answer).expect("text")
}

async fn ask(world: &World, request: &str) -> String {
    let mut user = connect(world).await;
    user.write_all(request.as_bytes()).await.expect("sent");
    rest(&mut user).await
}

/// Sends `piece` again and again until the proxy answers; what it answers.
async fn drip(mut user: TcpStream, piece: &str) -> String {
    let mut answer = Vec::new();
    let mut tick = tokio::time::interval(Duration::from_millis(20));
    loop {
        tokio::select! {
            read = user.read_buf(&mut answer) => if !read.is_ok_and(|count| count > 0) {
                return String::from_utf8(answer).expect("text");
            },
            _ = tick.tick() => {
                // The connection may be closed by then; reading tells.
                user.write_all(piece.as_bytes()).await.unwrap_or_default();
            }
        }
    }
}

/// Waits until `count` requests were refused for `reason`, and checks that these are all that were refused.
async fn refused(world: &World, reason: &str, count: f64) -> Metrics {
    let label = format!("reason=\"{reason}\"");
    world
        .wait_for(|m| m.sum("sim_proxy_refused_total", &[&label]) == count)
        .await;
    let metrics = world.settled().await;
    assert_eq!(metrics.sum("sim_proxy_refused_total", &[]), count);
    let ended = metrics.sum("sim_proxy_requests_ended_total", &["refused"]);
    assert_eq!(ended, count, "{metrics:?}");
    metrics
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heads_that_are_too_long_or_too_many_fields_are_refused_on_both_paths() {
    let limits = [(LIMITS, "header_bytes=2048,headers=20")];
    for (reason, field) in [
        ("header_bytes", "A: ".to_owned() + &"x".repeat(2_100)),
        ("headers", "A: 1\r\n".repeat(20) + "B: 1"),
    ] {
        let (world, _control, ups) = World::with_two_and(5_000, &limits).await;
        // The second is for the general path.
        for (at, version) in ["1.1", "1.0"].into_iter().enumerate() {
            let request = format!("GET / HTTP/{version}\r\nHost: a\r\n{field}\r\n\r\n");
            let answer = ask(&world, &request).await;
            assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
            refused(&world, reason, (at + 1) as f64).await;
        }
        let answer = ask(&world, "GET / HTTP/1.0\r\nHost: a\r\n\r\n").await;
        assert!(answer.contains(" 200 "), "{answer}");
        assert_eq!(ups[0].counts.requests() + ups[1].counts.requests(), 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_fields_than_the_fast_path_has_places_for_pass_by_the_other() {
    let (world, _control, _ups) = World::with_two(5_000).await;
    let request = |fields: usize| {
        let fields = "A: 1\r\n".repeat(fields);
        format!("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{fields}\r\n")
    };
    let answer = ask(&world, &request(98)).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    for (at, fields) in [99, 300].into_iter().enumerate() {
        let answer = ask(&world, &request(fields)).await;
        assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
        refused(&world, "headers", (at + 1) as f64).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_head_that_drips_in_is_refused_whichever_path_it_would_take() {
    let limits = [(LIMITS, "header_timeout=300")];
    let (world, _control, ups) = World::with_two_and(5_000, &limits).await;
    let starts = [
        "GET / HTTP/1.1\r\nA: ",
        "GET / HTTP/1.0\r\nA: ",
        "GET /a b HTTP/1.1\r\nA: ",
    ];
    for (at, start) in starts.into_iter().enumerate() {
        let mut user = connect(&world).await;
        user.write_all(start.as_bytes()).await.expect("sent");
        let answer = drip(user, "x").await;
        assert!(answer.starts_with("HTTP/1.1 408 "), "{start:?}: {answer}");
        refused(&world, "header_timeout", (at + 1) as f64).await;
    }
    assert_eq!(ups[0].counts.requests() + ups[1].counts.requests(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_stops_or_drips_in_is_refused_on_both_paths() {
    let limits = [(LIMITS, "body_timeout=300,body_bytes_per_second=1000")];
    let (world, _control, _ups) = World::with_two_and(5_000, &limits).await;
    let mut count = 0.0;
    for field in [
        "Content-Length: 60000",
        "Content-Length: 600000",
        "Transfer-Encoding: chunked",
    ] {
        for piece in ["", "1\r\nx\r\n"] {
            let mut user = connect(&world).await;
            let head = format!("POST /echo HTTP/1.1\r\nHost: a\r\n{field}\r\n\r\n");
            user.write_all(head.as_bytes()).await.expect("sent");
            let answer = drip(user, piece).await;
            assert!(
                answer.starts_with("HTTP/1.1 408 "),
                "{field} {piece:?}: {answer}"
            );
            count += 1.0;
            refused(&world, "body_timeout", count).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_body_that_keeps_its_rate_passes() {
    let limits = [(LIMITS, "body_timeout=600,body_bytes_per_second=1000")];
    let (world, _control, _ups) = World::with_two_and(5_000, &limits).await;
    for length in [6_000, 120_000] {
        // It has to keep its rate: where the machine pauses between two pieces it doesn't, and is sent anew.
        while !is_sent_slowly(&world, length).await {}
    }
}

/// Sends a body in pieces, for twice as long as may be between two of them. Whether none was later than that, in which
/// case it was taken.
async fn is_sent_slowly(world: &World, length: usize) -> bool {
    let mut user = connect(world).await;
    let mut longest = Duration::ZERO;
    let head = format!(
        "POST /echo HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n"
    );
    let mut last = Instant::now();
    user.write_all(head.as_bytes()).await.unwrap_or_default();
    for _ in 0..6 {
        let piece = vec![b'x'; length / 6];
        // Who was too late is not listened to any more.
        user.write_all(&piece).await.unwrap_or_default();
        longest = longest.max(last.elapsed());
        last = Instant::now();
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let answer = rest(&mut user).await;
    if longest > Duration::from_millis(500) {
        return false;
    }
    assert!(answer.starts_with("HTTP/1.1 200 "), "{longest:?}: {answer}");
    assert!(answer.ends_with('x'), "{answer}");
    true
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_no_parser_takes_is_counted_as_malformed() {
    let (world, _control, _ups) = World::with_two(5_000).await;
    let requests = [
        "\u{16}\u{3}\u{1}\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX : 1\r\n\r\n",
        "GET http://a/ HTTP/1.1\r\nHost: b\r\n\r\n",
        "GET / HTTP/7.1\r\nHost: a\r\n\r\n",
        "GET http://b/ HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999999\r\n\r\n",
        "CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n",
    ];
    for (at, request) in requests.into_iter().enumerate() {
        let answer = ask(&world, request).await;
        assert!(answer.starts_with("HTTP/1.1 40"), "{request:?}: {answer}");
        refused(&world, "malformed", (at + 1) as f64).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_connection_is_closed_without_a_word() {
    let limits = [(LIMITS, "idle_timeout=3000")];
    let (world, _control, _ups) = World::with_two_and(5_000, &limits).await;
    let mut users = vec![connect(&world).await];
    for version in ["1.1", "1.0"] {
        let mut user = connect(&world).await;
        let head = format!("GET / HTTP/{version}\r\nHost: a\r\nConnection: keep-alive\r\n\r\n");
        user.write_all(head.as_bytes()).await.expect("sent");
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\ni1") && !answer.ends_with(b"\r\n\r\ni2") {
            assert!(user.read_buf(&mut answer).await.expect("an answer") > 0);
        }
        users.push(user);
    }
    for user in &mut users {
        assert_eq!(rest(user).await, "");
    }
    let metrics = refused(&world, "header_timeout", 0.0).await;
    assert_eq!(metrics.sum("sim_proxy_requests_ended_total", &["ok"]), 2.0);
}

/// From another address of this machine.
async fn connect_from(world: &World, last: u8) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket
        .bind(([127, 0, 7, last], 0).into())
        .expect("an address of this machine");
    socket.connect(world.proxy).await.expect("connected")
}

/// Asks on an open connection; whether there was an answer of 200.
async fn is_served(user: &mut TcpStream) -> bool {
    let request = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    user.write_all(request).await.unwrap_or_default();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\ni1") && !answer.ends_with(b"\r\n\r\ni2") {
        if !user
            .read_buf(&mut answer)
            .await
            .is_ok_and(|count| count > 0)
        {
            return false;
        }
    }
    answer.starts_with(b"HTTP/1.1 200 ")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_beyond_the_limits_are_closed_and_counted() {
    let limits = [(LIMITS, "connections=6,connections_per_source=3")];
    let (world, _control, _ups) = World::with_two_and(5_000, &limits).await;
    let refused = |metrics: &Metrics, reason: &str| {
        let label = format!("reason=\"{reason}\"");
        metrics.sum("sim_proxy_connections_refused_total", &[&label])
    };
    let mut open = Vec::new();
    for source in [1, 1, 1, 2, 2, 2] {
        let mut user = connect_from(&world, source).await;
        assert!(is_served(&mut user).await, "{source}");
        open.push(user);
    }
    // All are taken.
    assert!(!is_served(&mut connect_from(&world, 3).await).await);
    let metrics = world
        .wait_for(|m| m.sum("sim_proxy_connections", &[]) == 6.0)
        .await;
    assert_eq!(refused(&metrics, "connections"), 1.0);
    assert_eq!(refused(&metrics, "connections_per_source"), 0.0);
    drop(open.split_off(4));
    world
        .wait_for(|m| m.sum("sim_proxy_connections", &[]) == 4.0)
        .await;
    // One source has all that it may, others don't suffer.
    assert!(!is_served(&mut connect_from(&world, 1).await).await);
    assert!(is_served(&mut connect_from(&world, 3).await).await);
    let metrics = world.metrics().await;
    assert_eq!(refused(&metrics, "connections"), 1.0);
    assert_eq!(refused(&metrics, "connections_per_source"), 1.0);
    assert_eq!(metrics.sum("sim_proxy_sources_untracked_total", &[]), 0.0);
    for user in &mut open {
        assert!(is_served(user).await);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_requests_is_refused_and_other_sources_are_served() {
    let limits = [(LIMITS, "requests_per_second=1,requests_burst=20")];
    let (world, _control, ups) = World::with_two_and(5_000, &limits).await;
    let flood = |source: u8, version: &'static str| {
        let world = &world;
        async move {
            let (mut served, mut late) = (0, 0);
            for _ in 0..60 {
                let mut user = connect_from(world, source).await;
                let request =
                    format!("GET / HTTP/{version}\r\nHost: a\r\nConnection: close\r\n\r\n");
                user.write_all(request.as_bytes()).await.expect("sent");
                let answer = rest(&mut user).await;
                if answer.contains(" 200 ") {
                    served += 1;
                } else {
                    assert!(answer.starts_with("HTTP/1.1 429 "), "{answer}");
                    assert!(answer.contains("\r\nRetry-After: 1\r\n"), "{answer}");
                    late += 1;
                }
            }
            (served, late)
        }
    };
    let mut all = (0, 0);
    for (source, version) in [(1, "1.1"), (2, "1.0")] {
        let (served, late) = flood(source, version).await;
        // Some of it takes more than a second where the machine is slow.
        assert!(served >= 20 && late > 0, "{version}: {served} {late}");
        all = (all.0 + served, all.1 + late);
    }
    refused(&world, "requests_per_second", f64::from(all.1)).await;
    assert_eq!(ups[0].counts.requests() + ups[1].counts.requests(), all.0);
    assert!(is_served(&mut connect_from(&world, 3).await).await);
}

async fn send(world: &World, request: &str) -> TcpStream {
    let mut user = connect(world).await;
    user.write_all(request.as_bytes()).await.expect("sent");
    user
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_instance_may_not_take_goes_to_the_other_and_then_nowhere() {
    let limits = [(LIMITS, "upstream_concurrency=2")];
    // All of it is the first one's by weight.
    let (world, _control, ups) = World::with_two_and(10_000, &limits).await;
    let request = |version: &str, path: &str| {
        format!("POST {path} HTTP/{version}\r\nHost: a\r\nContent-Length: 0\r\n\r\n")
    };
    let mut waiting = Vec::new();
    for version in ["1.1", "1.0", "1.1", "1.0"] {
        waiting.push(send(&world, &request(version, "/hang")).await);
    }
    world
        .wait_for(|m| ["i1", "i2"].map(|one| m.sum("sim_proxy_in_flight", &[one])) == [2.0; 2])
        .await;
    while ups[0].counts.requests() + ups[1].counts.requests() < 4 {
        tokio::task::yield_now().await;
    }
    for version in ["1.1", "1.0"] {
        let answer = ask(&world, &request(version, "/")).await;
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
        assert!(answer.contains("\r\nRetry-After: 1\r\n"), "{answer}");
    }
    assert_eq!(ups[0].counts.requests() + ups[1].counts.requests(), 4);
    drop(waiting);
    world
        .wait_for(|m| m.sum("sim_proxy_in_flight", &[]) == 0.0)
        .await;
    refused(&world, "upstream_concurrency", 2.0).await;
    assert!(is_served(&mut connect(&world).await).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_time_of_a_request_counts_all_its_tries_and_ends_with_the_head_of_its_answer() {
    let settings = [(LIMITS, "request_timeout=900"), (READ_TIMEOUT_MS, "600")];
    let (world, _control, _ups) = World::with_two_and(5_000, &settings).await;
    let over = |metrics: &Metrics| metrics.sum("sim_proxy_request_timeouts_total", &[]);
    for (at, version) in ["1.1", "1.0"].into_iter().enumerate() {
        let answer = ask(
            &world,
            &format!("GET /hang HTTP/{version}\r\nHost: a\r\n\r\n"),
        )
        .await;
        assert!(answer.starts_with("HTTP/1.1 504 "), "{version}: {answer}");
        // Not the second try's own time-out, which is longer than what was left.
        assert_eq!(over(&world.metrics().await), (at + 1) as f64, "{version}");
    }
    let length = 8_000_000;
    let request = format!("GET /bytes/{length} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    let mut too_late = 0.0;
    let (mut user, mut answer) = loop {
        let mut user = send(&world, &request).await;
        let mut answer = Vec::new();
        while answer.len() < STATUS.len() {
            assert!(user.read_buf(&mut answer).await.expect("an answer") > 0);
        }
        if answer.starts_with(STATUS) {
            break (user, answer);
        }
        // Where the machine pauses even this has no head in time.
        too_late += 1.0;
    };
    tokio::time::sleep(Duration::from_millis(1_200)).await;
    user.read_to_end(&mut answer).await.expect("all of it");
    assert!(answer.ends_with(&pattern(length)));
    assert_eq!(over(&world.metrics().await), 2.0 + too_late);
}

/// How the answer begins to a request that is well.
const STATUS: &[u8] = b"HTTP/1.1 200 ";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_is_not_kept_is_not_sent_again() {
    let limits = [(LIMITS, "body_replay_bytes=1000")];
    let (world, _control, ups) = World::with_two_and(5_000, &limits).await;
    let swallowed = || ups[0].counts.swallowed() + ups[1].counts.swallowed();
    for (length, tries) in [(1_000, 2), (1_001, 1)] {
        let before = swallowed();
        let body = "x".repeat(length);
        let request =
            format!("PUT /swallow HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n{body}");
        let answer = ask(&world, &request).await;
        assert!(answer.starts_with("HTTP/1.1 502 "), "{length}: {answer}");
        assert_eq!(swallowed() - before, tries, "{length}");
    }
}
