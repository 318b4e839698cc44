//! What passes byte by byte: answers that a library would not send, and users that send more than one request.

use crate::process::CLIENT_WRITE_MS;
use crate::upstream::{Upstream, pattern};
use crate::world::{PATIENCE, World, table};
use hyper::StatusCode;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};

/// An instance that sends these bytes, piece by piece, for each request.
pub(crate) struct Scripted {
    pub(crate) address: SocketAddr,
    connections: Arc<AtomicU64>,
}

impl Scripted {
    pub(crate) async fn start(pieces: &'static [&'static [u8]], close: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let connections = Arc::<AtomicU64>::default();
        let count = connections.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.expect("accept");
                count.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(play(stream, pieces, close));
            }
        });
        Self {
            address,
            connections,
        }
    }
}

async fn play(mut stream: TcpStream, pieces: &[&[u8]], close: bool) {
    let mut request = Vec::new();
    while stream.read_buf(&mut request).await.is_ok_and(|n| n > 0) {
        if !request.ends_with(b"\r\n\r\n") {
            continue;
        }
        request.clear();
        for piece in pieces {
            stream.write_all(piece).await.expect("sent");
            sleep(Duration::from_millis(20)).await;
        }
        if close {
            return;
        }
    }
}

async fn with_script(
    pieces: &'static [&'static [u8]],
    close: bool,
) -> (World, crate::control::Control, Scripted) {
    let (world, mut control) = World::start();
    let script = Scripted::start(pieces, close).await;
    control
        .publish(&table(1, 1, &[(1, script.address, 10_000, true)]))
        .await;
    (world, control, script)
}

/// Sends `request` and reads until `end` or the end.
pub(crate) async fn ask(stream: &mut TcpStream, request: &str, end: &str) -> String {
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut answer = Vec::new();
    while !answer.ends_with(end.as_bytes()) || end.is_empty() {
        let read = timeout(PATIENCE, stream.read_buf(&mut answer));
        if read.await.expect("in time").expect("readable") == 0 {
            break;
        }
    }
    String::from_utf8(answer).expect("text")
}

pub(crate) const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_in_chunks_passes_as_it_comes() {
    let (world, _control, script) = with_script(
        &[
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chun",
            b"ked\r\n\r\n3\r\nab",
            b"c\r\n",
            b"2;x=1\r\nde\r\n0\r\nX-Sum: 1\r\n",
            b"\r\n",
        ],
        false,
    )
    .await;
    let mut user = TcpStream::connect(world.proxy).await.expect("connected");
    for _ in 0..3 {
        let answer = ask(&mut user, GET, "X-Sum: 1\r\n\r\n").await;
        assert_eq!(
            answer,
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\
             3\r\nabc\r\n2;x=1\r\nde\r\n0\r\nX-Sum: 1\r\n\r\n"
        );
    }
    assert_eq!(script.connections.load(Ordering::SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_without_a_length_ends_with_the_connection() {
    let (world, _control, _script) =
        with_script(&[b"HTTP/1.0 200 OK\r\nX: 1\r\n\r\nabc", b"def"], true).await;
    let mut user = TcpStream::connect(world.proxy).await.expect("connected");
    let answer = ask(&mut user, GET, "").await;
    assert_eq!(
        answer,
        "HTTP/1.1 200 OK\r\nX: 1\r\nConnection: close\r\n\r\nabcdef"
    );
    world
        .wait_for(|m| m.sum("sim_proxy_requests_ended_total", &["ok"]) == 1.0)
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn early_hints_pass_before_the_answer() {
    let (world, _control, _script) = with_script(
        &[b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n"],
        false,
    )
    .await;
    let mut user = TcpStream::connect(world.proxy).await.expect("connected");
    let answer = ask(&mut user, GET, "204 No Content\r\n\r\n").await;
    assert_eq!(
        answer,
        "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_with_two_readings_is_a_bad_gateway() {
    const ANSWERS: &[&[&[u8]]] = &[
        &[b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n"],
        &[b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab"],
        &[b"HTTP/1.1 200 OK\nContent-Length: 1\n\na"],
        &[b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\nab"],
        &[b"HTTP/1.1 101 Switching Protocols\r\n\r\n"],
        &[b"SMTP ready\r\n"],
    ];
    for pieces in ANSWERS {
        let (world, _control, _script) = with_script(pieces, false).await;
        let mut user = TcpStream::connect(world.proxy).await.expect("connected");
        let answer = ask(&mut user, GET, "").await;
        assert!(
            answer.starts_with("HTTP/1.1 502 Bad Gateway\r\n"),
            "{pieces:?}: {answer}"
        );
        world
            .wait_for(|m| m.sum("sim_proxy_requests_ended_total", &["failed"]) == 1.0)
            .await;
    }
}

const CUT: &[&[u8]] = &[b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", b"abc"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_breaks_off_is_not_passed_off_as_whole() {
    let (world, _control, _script) = with_script(CUT, true).await;
    let mut user = TcpStream::connect(world.proxy).await.expect("connected");
    // Who may not be asked twice gets what there is.
    let post = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n";
    let answer = ask(&mut user, post, "").await;
    assert!(answer.ends_with("Content-Length: 9\r\n\r\nabc"), "{answer}");
    world
        .wait_for(|m| m.sum("sim_proxy_requests_ended_total", &["failed"]) == 1.0)
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_short_answer_that_breaks_off_costs_no_get() {
    let (world, mut control) = World::start();
    let script = Scripted::start(CUT, true).await;
    let up = Upstream::start("i2").await;
    let lines = [(1, script.address, 10_000, true), (2, up.address, 0, true)];
    control.publish(&table(1, 1, &lines)).await;
    assert_eq!(world.client().get("/").await, (StatusCode::OK, "i2".into()));
    let metrics = world.metrics().await;
    let retries = metrics.sum("sim_proxy_retries_total", &["reset"]);
    assert!(retries >= 1.0, "{retries}");
    assert!(script.connections.load(Ordering::SeqCst) >= 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_instance_sends_unasked_is_no_answer_to_the_next() {
    let (world, _control, script) = with_script(
        &[b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\naHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nb"],
        false,
    )
    .await;
    let mut user = TcpStream::connect(world.proxy).await.expect("connected");
    for _ in 0..3 {
        let answer = ask(&mut user, GET, "\r\n\r\na").await;
        assert_eq!(answer, "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na");
    }
    assert_eq!(script.connections.load(Ordering::SeqCst), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_sent_ahead_are_answered_in_order() {
    let (world, _control, _ups) = World::with_two(5_000).await;
    let mut user = TcpStream::connect(world.proxy).await.expect("connected");
    let post = |body: &str| {
        let length = body.len();
        format!("POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n{body}")
    };
    let requests = format!(
        "{}{}{}POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n\
         4\r\nlast\r\n0\r\n\r\n",
        post("one"),
        post(""),
        post("three"),
    );
    let answers = ask(&mut user, &requests, "last").await;
    let bodies: Vec<_> = answers
        .split("HTTP/1.1 200 OK\r\n")
        .skip(1)
        .map(|answer| answer.split("\r\n\r\n").nth(1).expect("a body"))
        .collect();
    assert_eq!(bodies, ["one", "", "three", "last"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_takes_both_paths_in_turn() {
    let (world, _control, _ups) = World::with_two(5_000).await;
    let mut user = TcpStream::connect(world.proxy).await.expect("connected");
    for _ in 0..3 {
        let answer = ask(
            &mut user,
            "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nab",
            "ab",
        )
        .await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        // A body that comes later than its head.
        let head = "POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
        user.write_all(head.as_bytes()).await.expect("sent");
        sleep(Duration::from_millis(50)).await;
        let answer = ask(&mut user, "3\r\nabc\r\n0\r\n\r\n", "abc").await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        // And one with a method that the fast path doesn't know.
        let answer = ask(
            &mut user,
            "PURGE /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx",
            "x",
        )
        .await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    }
    world
        .wait_for(|m| m.sum("sim_proxy_requests_ended_total", &["ok"]) == 9.0)
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_chunk_and_an_endless_head_are_refused() {
    let (world, _control, ups) = World::with_two(5_000).await;
    let bad =
        "POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\nx\r\n0\r\n\r\n";
    let mut user = TcpStream::connect(world.proxy).await.expect("connected");
    let answer = ask(&mut user, bad, "").await;
    assert!(
        answer.starts_with("HTTP/1.1 400 Bad Request\r\n"),
        "{answer}"
    );
    // Too long already, or just when its end comes.
    for (length, end) in [(70_000, ""), (65_536, "\r\n\r\n")] {
        let long = format!(
            "GET / HTTP/1.1\r\nHost: a\r\nX: {}{end}",
            "x".repeat(length)
        );
        let mut user = TcpStream::connect(world.proxy).await.expect("connected");
        let answer = ask(&mut user, &long, "").await;
        assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
    }
    assert_eq!(ups[0].counts.requests() + ups[1].counts.requests(), 0);
    world
        .wait_for(|m| m.sum("sim_proxy_requests_ended_total", &["refused"]) == 3.0)
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_leaves_before_the_answer_is_not_the_instances_failure() {
    let (world, _control, _ups) = World::with_two(5_000).await;
    let mut user = TcpStream::connect(world.proxy).await.expect("connected");
    user.write_all(b"GET /hang HTTP/1.1\r\nHost: a\r\n\r\n")
        .await
        .expect("sent");
    world
        .wait_for(|m| m.sum("sim_proxy_in_flight", &[]) == 1.0)
        .await;
    drop(user);
    let metrics = world.settled().await;
    let aborted = metrics.sum("sim_proxy_requests_ended_total", &["aborted"]);
    assert_eq!(aborted, 1.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_answer_reaches_a_slow_user_whole() {
    let (world, mut control) = World::start();
    let up = Upstream::start("i1").await;
    control
        .publish(&table(1, 1, &[(1, up.address, 10_000, true)]))
        .await;
    let length = 8_000_000;
    let mut user = TcpStream::connect(world.proxy).await.expect("connected");
    let request = format!("GET /bytes/{length} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    user.write_all(request.as_bytes()).await.expect("sent");
    // Both ways to the user are full by then.
    sleep(Duration::from_millis(300)).await;
    let mut answer = Vec::new();
    user.read_to_end(&mut answer).await.expect("all of it");
    assert!(answer.ends_with(&pattern(length)));
    world
        .wait_for(|m| m.sum("sim_proxy_requests_ended_total", &["ok"]) == 1.0)
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_takes_nothing_of_an_answer_is_let_go_by_either_path() {
    let settings = [(CLIENT_WRITE_MS, "300")];
    let (world, _control, _ups) = World::with_two_and(10_000, &settings).await;
    let mut users = vec![];
    for version in ["HTTP/1.1", "HTTP/1.0"] {
        let mut user = TcpStream::connect(world.proxy).await.expect("connected");
        // More than both ways to the user hold.
        let request = format!("GET /bytes/30000000 {version}\r\nHost: a\r\n\r\n");
        user.write_all(request.as_bytes()).await.expect("sent");
        users.push(user);
    }
    world
        .wait_for(|m| m.sum("sim_proxy_requests_ended_total", &["aborted"]) == 2.0)
        .await;
    let metrics = world.settled().await;
    assert_eq!(metrics.sum("sim_proxy_in_flight", &["i1"]), 0.0);
    drop(users);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_line_behind_a_body_is_no_request() {
    let (world, _control, _ups) = World::with_two(5_000).await;
    let mut user = TcpStream::connect(world.proxy).await.expect("connected");
    for _ in 0..3 {
        let request = "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nab\r\n";
        let answer = ask(&mut user, request, "ab").await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    }
    drop(user);
    let metrics = world
        .wait_for(|m| m.sum("sim_proxy_requests_ended_total", &["ok"]) == 3.0)
        .await;
    assert_eq!(
        metrics.sum("sim_proxy_requests_ended_total", &["refused"]),
        0.0
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_closes_who_is_idle_and_waits_for_who_is_sending() {
    let (world, _control, _ups) = World::with_two(5_000).await;
    let mut idle = TcpStream::connect(world.proxy).await.expect("connected");
    ask(&mut idle, "GET /bytes/1 HTTP/1.1\r\nHost: a\r\n\r\n", "\0").await;
    let mut sending = TcpStream::connect(world.proxy).await.expect("connected");
    let head = "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nab";
    sending.write_all(head.as_bytes()).await.expect("sent");
    world
        .wait_for(|m| m.sum("sim_proxy_requests_in_flight", &[]) == 1.0)
        .await;
    let stopped = tokio::spawn(world.terminate());
    assert_eq!(ask(&mut idle, "", "").await, "");
    let answer = ask(&mut sending, "cd", "").await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.contains("Connection: close\r\n"), "{answer}");
    assert!(answer.ends_with("abcd"), "{answer}");
    assert!(stopped.await.expect("no panic").success());
}
