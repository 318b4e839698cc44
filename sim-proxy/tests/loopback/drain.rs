//! Streams at an instance that loses its weight: they have a grace, and then no more.

use crate::grpc;
use crate::http2::User;
use crate::process::{CLIENT_WRITE_MS, PROTOCOL, STREAM_GRACE_MS};
use crate::secure::{Way, Wire, each_way};
use crate::upstream::own_address;
use crate::websocket::{Begins, Echo, echoes, open};
use crate::world::{PATIENCE, World, pair, table};
use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::{Method, Response};
use sim_api::v1;
use std::cell::Cell;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};
use tokio_stream::StreamExt as _;
use tokio_tungstenite::tungstenite::protocol::Message;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tonic::Code;

/// A grace that no test outlasts, and one that each does.
const LONG: &str = "600000";
const SHORT: &str = "300";

/// Between two bytes of a slow answer.
const STEP: Duration = Duration::from_millis(10);

/// An instance that takes its time. By path:
/// * `/whole` is an answer of 30 bytes, of which one comes after the other;
/// * `/length` is one of which a byte comes after the other for as long as anybody reads;
/// * `/chunks` and `/close` the same, of no length that is told;
/// * `/silent` is one of which nothing comes but the first byte.
struct Slow {
    address: SocketAddr,
    requests: Arc<AtomicU64>,
}

impl Slow {
    async fn start() -> Self {
        let listener = TcpListener::bind(own_address()).await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let requests = Arc::<AtomicU64>::default();
        let count = requests.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.expect("accept");
                stream.set_nodelay(true).expect("nodelay");
                tokio::spawn(dribble(stream, count.clone()));
            }
        });
        Self { address, requests }
    }

    fn requests(&self) -> u64 {
        self.requests.load(Ordering::SeqCst)
    }
}

async fn dribble(mut stream: TcpStream, requests: Arc<AtomicU64>) {
    let mut asked = Vec::new();
    loop {
        asked.clear();
        while !asked.ends_with(b"\r\n\r\n") {
            if stream.read_buf(&mut asked).await.unwrap_or_default() == 0 {
                return;
            }
        }
        requests.fetch_add(1, Ordering::SeqCst);
        let asked = String::from_utf8(asked.clone()).expect("text");
        let path = asked.split(' ').nth(1).expect("a path");
        let (framing, piece, pieces) = match path {
            "/whole" => ("Content-Length: 30\r\n", "x", 30),
            "/silent" => ("Transfer-Encoding: chunked\r\n", "1\r\nx\r\n", 1),
            "/chunks" => ("Transfer-Encoding: chunked\r\n", "1\r\nx\r\n", usize::MAX),
            "/close" => ("", "x", usize::MAX),
            _ => ("Content-Length: 1000000\r\n", "x", usize::MAX),
        };
        let head = format!("HTTP/1.1 200 OK\r\n{framing}\r\n");
        let mut next = head + piece;
        for _ in 0..pieces {
            if stream.write_all(next.as_bytes()).await.is_err() {
                return;
            }
            piece.clone_into(&mut next);
            sleep(STEP).await;
        }
    }
}

/// A stream of a user of HTTP/1, of which the first byte has come.
struct Reading {
    wire: Wire,
    read: Vec<u8>,
}

impl Reading {
    /// HTTP/1.1 takes the fast path, HTTP/1.0 the general one.
    async fn begin(world: &World, path: &str, version: &str) -> Self {
        let mut wire = world.wire().await;
        let request = format!("GET {path} {version}\r\nHost: a\r\n\r\n");
        wire.write_all(request.as_bytes()).await.expect("sent");
        let mut reading = Self {
            wire,
            read: Vec::new(),
        };
        while !reading.read.ends_with(b"x") && !reading.read.ends_with(b"x\r\n") {
            assert!(reading.more().await, "{:?}", reading.text());
        }
        reading
    }

    /// Reads a piece; whether it was one and not the end.
    async fn more(&mut self) -> bool {
        let read = self.wire.read_buf(&mut self.read);
        read.await.is_ok_and(|read| read > 0)
    }

    async fn rest(mut self) -> String {
        while self.more().await {}
        self.text()
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.read).into_owned()
    }
}

/// A stream of a user of HTTP/2, of which the first byte has come.
async fn begin(user: &mut User, path: &str) -> Incoming {
    let request = user.request(Method::GET, path);
    let request = request.body(http_body_util::Full::new(Bytes::new()));
    let answer = user.requests.send_request(request.expect("valid")).await;
    let mut body = answer.map(Response::into_body).expect("an answer");
    body.frame().await.expect("open").expect("a byte");
    body
}

/// Reads to the end; whether it came in order.
async fn ends_well(mut body: Incoming) -> bool {
    loop {
        match body.frame().await {
            None => return true,
            Some(Err(_)) => return false,
            Some(Ok(_)) => {}
        }
    }
}

/// The first has all weight, and what is published then gives it to the second.
async fn slow_world(way: Way, grace: &str) -> (World, crate::control::Control, [Slow; 2]) {
    let (world, mut control) = World::start_by(way, &[(STREAM_GRACE_MS, grace)]);
    let slow = [Slow::start().await, Slow::start().await];
    control.publish(&weights(&slow, 1, 10_000)).await;
    (world, control, slow)
}

fn weights(slow: &[Slow; 2], generation: u64, first_bp: u16) -> sim_core::table::WeightTable {
    let lines = [
        (1, slow[0].address, first_bp, true),
        (2, slow[1].address, 10_000 - first_bp, true),
    ];
    table(1, generation, &lines)
}

async fn ended(world: &World, how: &str) -> f64 {
    let metrics = world.settled().await;
    metrics.sum("sim_proxy_requests_ended_total", &[how])
}

each_way! {
    streams_that_end_in_their_grace_end_whole
    streams_end_after_their_grace_and_are_counted_so
    a_websocket_ends_after_its_grace_however_quiet_it_is
    a_stream_that_began_after_the_change_stays
    a_user_s_connection_goes_to_the_new_instance_with_its_next_request
}

async fn streams_that_end_in_their_grace_end_whole(way: Way) {
    let (world, mut control, slow) = slow_world(way, LONG).await;
    let mut streams = vec![];
    for version in ["HTTP/1.1", "HTTP/1.0"] {
        streams.push(Reading::begin(&world, "/whole", version).await);
    }
    let (mut user, _connection) = User::connect(&world).await;
    let over_http2 = begin(&mut user, "/whole").await;
    control.publish(&weights(&slow, 2, 0)).await;
    assert!(ends_well(over_http2).await);
    for mut stream in streams {
        while !stream.text().ends_with(&"x".repeat(30)) {
            assert!(stream.more().await, "{}", stream.text());
        }
    }
    assert_eq!((slow[0].requests(), slow[1].requests()), (3, 0));
    assert_eq!(ended(&world, "ok").await, 3.0);
    assert_eq!(ended(&world, "drained").await, 0.0);
}

async fn streams_end_after_their_grace_and_are_counted_so(way: Way) {
    let (world, mut control, slow) = slow_world(way, SHORT).await;
    let mut streams = vec![];
    for path in ["/length", "/chunks", "/close", "/silent"] {
        for version in ["HTTP/1.1", "HTTP/1.0"] {
            streams.push(Reading::begin(&world, path, version).await);
        }
    }
    let (mut user, _connection) = User::connect(&world).await;
    let mut over_http2 = vec![];
    for path in ["/length", "/chunks", "/close", "/silent"] {
        over_http2.push(begin(&mut user, path).await);
    }
    control.publish(&weights(&slow, 2, 0)).await;
    // On the same connection as those that end.
    let other = begin(&mut user, "/whole").await;
    for stream in streams {
        let text = stream.rest().await;
        assert!(!text.ends_with("0\r\n\r\n"), "it looks whole: {text}");
    }
    for stream in over_http2 {
        assert!(!ends_well(stream).await, "it looks whole");
    }
    assert!(ends_well(other).await, "only its own stream is reset");
    assert_eq!(ended(&world, "drained").await, 12.0);
    let metrics = world.settled().await;
    let sum = |family: &str, labels: &[&str]| metrics.sum(family, labels);
    assert_eq!(sum("sim_proxy_in_flight", &["i1"]), 0.0);
    assert_eq!(sum("sim_proxy_requests_ended_total", &["failed"]), 0.0);
    // It is no fault of the instance's.
    assert_eq!(sum("sim_proxy_instance_errors_total", &[]), 0.0);
    assert_eq!(sum("sim_proxy_ejections_total", &[]), 0.0);
    assert_eq!(sum("sim_proxy_retries_total", &[]), 0.0);
}

async fn a_websocket_ends_after_its_grace_however_quiet_it_is(way: Way) {
    let (world, mut control) = World::start_by(way, &[(STREAM_GRACE_MS, SHORT)]);
    let first = Echo::start(Begins::Quietly).await;
    let second = Echo::start(Begins::Quietly).await;
    let lines = |first_bp| {
        [
            (1, first.address, first_bp, true),
            (2, second.address, 10_000 - first_bp, true),
        ]
    };
    control.publish(&table(1, 1, &lines(10_000))).await;
    let (mut quiet, mut busy) = (open(&world).await, open(&world).await);
    echoes(&mut quiet, Message::text("x")).await;
    control.publish(&table(1, 2, &lines(0))).await;
    let mut later = open(&world).await;
    assert_eq!((first.begun(), second.begun()), (2, 1));
    let busy = tokio::spawn(async move {
        while futures_util::SinkExt::send(&mut busy, Message::text("x"))
            .await
            .is_ok()
        {
            if !matches!(busy.next().await, Some(Ok(_))) {
                return;
            }
        }
    });
    let end = quiet.next().await.expect("a word").expect("a message");
    let code = match &end {
        Message::Close(Some(close)) => close.code,
        _ => panic!("{end:?}"),
    };
    assert_eq!(code, CloseCode::Away);
    busy.await.expect("no panic");
    echoes(&mut later, Message::text("x")).await;
    let metrics = world
        .wait_for(|m| m.sum("sim_proxy_in_flight", &["i1"]) == 0.0)
        .await;
    let drained = metrics.sum("sim_proxy_requests_ended_total", &["drained"]);
    assert_eq!(drained, 2.0);
}

async fn a_stream_that_began_after_the_change_stays(way: Way) {
    let (world, mut control) = World::start_by(way, &[(STREAM_GRACE_MS, SHORT)]);
    let slow = Slow::start().await;
    // Nobody listens there.
    let gone = own_address();
    let lines = |first_bp| {
        [
            (1, slow.address, first_bp, true),
            (2, gone, 10_000 - first_bp, true),
        ]
    };
    control.publish(&table(1, 1, &lines(10_000))).await;
    let before = Reading::begin(&world, "/length", "HTTP/1.1").await;
    control.publish(&table(1, 2, &lines(0))).await;
    let mut after = vec![];
    for version in ["HTTP/1.1", "HTTP/1.0"] {
        after.push(Reading::begin(&world, "/length", version).await);
    }
    let (mut user, _connection) = User::connect(&world).await;
    let mut over_http2 = begin(&mut user, "/length").await;
    before.rest().await;
    // As long as the one before had, and more.
    sleep(Duration::from_millis(600)).await;
    for stream in &mut after {
        // What has come by now, and what comes after that.
        let come = stream.read.len();
        while stream.read.len() < come + 100 {
            assert!(stream.more().await, "{}", stream.text());
        }
    }
    for _ in 0..100 {
        over_http2.frame().await.expect("open").expect("a byte");
    }
    let metrics = world
        .wait_for(|m| m.sum("sim_proxy_requests_in_flight", &[]) == 3.0)
        .await;
    let drained = metrics.sum("sim_proxy_requests_ended_total", &["drained"]);
    assert_eq!(drained, 1.0);
}

async fn a_user_s_connection_goes_to_the_new_instance_with_its_next_request(way: Way) {
    let (world, mut control, ups) = World::with_two_by(way, 10_000, &[]).await;
    let mut wire = world.wire().await;
    let (mut user, _connection) = User::connect(&world).await;
    for (generation, first_bp, by) in [(2, 10_000, "i1"), (3, 0, "i2"), (4, 10_000, "i1")] {
        control.publish(&pair(generation, &ups, first_bp)).await;
        for _ in 0..2 {
            let question = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
            wire.write_all(question).await.expect("sent");
            let mut answer = Vec::new();
            while !answer.ends_with(by.as_bytes()) {
                assert!(wire.read_buf(&mut answer).await.expect("open") > 0);
            }
            let request = user.request(Method::GET, "/");
            let request = request.body(http_body_util::Full::new(Bytes::new()));
            let answer = user.requests.send_request(request.expect("valid")).await;
            let body = answer.expect("an answer").into_body().collect().await;
            assert_eq!(body.expect("whole").to_bytes(), by);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_stays_where_its_instance_has_weight_again_in_time() {
    let (world, mut control, slow) = slow_world(Way::Clear, "1000").await;
    let mut generation = 2;
    let (mut stream, mut general, before) = loop {
        let stream = Reading::begin(&world, "/length", "HTTP/1.1").await;
        let general = Reading::begin(&world, "/length", "HTTP/1.0").await;
        let begun = Instant::now();
        control.publish(&weights(&slow, generation, 0)).await;
        control
            .publish(&weights(&slow, generation + 1, 10_000))
            .await;
        if begun.elapsed() < Duration::from_millis(900) {
            let metrics = world.metrics().await;
            let drained = metrics.sum("sim_proxy_requests_ended_total", &["drained"]);
            break (stream, general, drained);
        }
        // The machine has paused, so that it was too late for these.
        drop((stream, general));
        world.settled().await;
        generation += 2;
    };
    sleep(Duration::from_millis(1_500)).await;
    for stream in [&mut stream, &mut general] {
        let come = stream.read.len();
        while stream.read.len() < come + 150 {
            assert!(stream.more().await, "{}", stream.text());
        }
    }
    let metrics = world.metrics().await;
    let drained = metrics.sum("sim_proxy_requests_ended_total", &["drained"]);
    assert_eq!(drained, before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_without_an_answer_has_its_own_deadline_and_no_grace() {
    let settings = [(STREAM_GRACE_MS, "1")];
    let (world, mut control, ups) = World::with_two_and(10_000, &settings).await;
    let user = world.client();
    let fast = tokio::spawn(async move { user.get("/slow").await.1 });
    let mut general = world.wire().await;
    general
        .write_all(b"GET /slow HTTP/1.0\r\nHost: a\r\n\r\n")
        .await
        .expect("sent");
    // It is no change of protocol: it goes on as a plain request.
    let mut upgrading = world.wire().await;
    let question = b"GET /slow HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n";
    upgrading.write_all(question).await.expect("sent");
    while ups[0].counts.requests() < 3 {
        tokio::task::yield_now().await;
    }
    control.publish(&pair(2, &ups, 0)).await;
    assert_eq!(fast.await.expect("no panic"), "i1");
    let mut answer = Vec::new();
    while !answer.ends_with(b"i1") {
        let read = upgrading.read_buf(&mut answer).await.expect("open");
        assert!(read > 0, "{}", String::from_utf8_lossy(&answer));
    }
    let mut answer = String::new();
    general.read_to_string(&mut answer).await.expect("the end");
    assert!(answer.ends_with("i1"), "{answer}");
}

/// A call whose records come as they are made.
async fn follow(
    client: &mut v1::control_plane_client::ControlPlaneClient<tonic::transport::Channel>,
) -> tonic::Streaming<v1::JournalRecord> {
    let wanted = v1::JournalRequest {
        from: 1,
        follow: true,
    };
    let mut records = client.journal(wanted).await.expect("a stream").into_inner();
    records.message().await.expect("a record").expect("more");
    records
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_call_ends_after_its_grace_as_unavailable_and_none_that_began_later_does() {
    let settings = [(PROTOCOL, "h2"), (STREAM_GRACE_MS, SHORT)];
    let (world, mut control) = World::start_with(&settings);
    let service = grpc::Service::start("i1").await;
    let gone = own_address();
    let lines = |first_bp| {
        [
            (1, service.address, first_bp, true),
            (2, gone, 10_000 - first_bp, true),
        ]
    };
    control.publish(&table(1, 1, &lines(10_000))).await;
    let mut client = grpc::connect(&world).await;
    let mut before = vec![follow(&mut client).await, follow(&mut client).await];
    // Both workers have some, and all share one connection to the instance, which one of the workers ends.
    for _ in 0..6 {
        let mut another = grpc::connect(&world).await;
        before.push(follow(&mut another).await);
    }
    // Neither has this one an answer yet, nor a deadline.
    let mut waiting = client.clone();
    let waiting = tokio::spawn(async move { waiting.close(v1::CloseRequest {}).await });
    while service.counts.calls.load(Ordering::SeqCst) < 9 {
        tokio::task::yield_now().await;
    }
    control.publish(&table(1, 2, &lines(0))).await;
    // Nothing better is left, and both ends have a connection already.
    let mut after = follow(&mut client).await;
    for stream in &mut before {
        let status = stream.message().await.expect_err("its time is over");
        assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    }
    let status = waiting.await.expect("no panic").expect_err("as those");
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    sleep(Duration::from_millis(600)).await;
    let silent = tokio::time::timeout(Duration::ZERO, after.message()).await;
    silent.expect_err("open, and silent");
    let metrics = world
        .wait_for(|m| m.sum("sim_proxy_requests_in_flight", &[]) == 1.0)
        .await;
    let drained = metrics.sum("sim_proxy_requests_ended_total", &["drained"]);
    assert_eq!(drained, 9.0);
    assert_eq!(metrics.sum("sim_proxy_in_flight", &["i1"]), 1.0);
    assert_eq!(metrics.sum("sim_proxy_ejections_total", &["i1"]), 0.0);
    let errors = metrics.sum("sim_proxy_instance_errors_total", &["i1"]);
    assert_eq!(errors, 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_began_where_no_weight_was_left_has_its_grace_when_the_line_goes() {
    let (world, mut control) = World::start_with(&[(STREAM_GRACE_MS, SHORT)]);
    let slow = Slow::start().await;
    // Nobody listens there.
    let gone = own_address();
    let lines = |first_bp| {
        [
            (1, slow.address, first_bp, true),
            (2, gone, 10_000 - first_bp, true),
        ]
    };
    control.publish(&table(1, 1, &lines(10_000))).await;
    control.publish(&table(1, 2, &lines(0))).await;
    let mut streams = vec![];
    for version in ["HTTP/1.1", "HTTP/1.0"] {
        streams.push(Reading::begin(&world, "/length", version).await);
    }
    let (mut user, _connection) = User::connect(&world).await;
    let over_http2 = begin(&mut user, "/length").await;
    control
        .publish(&table(1, 3, &[(2, gone, 10_000, true)]))
        .await;
    for stream in streams {
        let rest = timeout(PATIENCE, stream.rest()).await;
        rest.expect("its grace is over");
    }
    let well = timeout(PATIENCE, ends_well(over_http2)).await;
    assert!(!well.expect("its grace is over"));
    assert_eq!(ended(&world, "drained").await, 3.0);
    let metrics = world.settled().await;
    let errors = metrics.sum("sim_proxy_instance_errors_total", &["i1"]);
    assert_eq!(errors, 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_takes_nothing_of_an_answer_keeps_no_instance_beyond_its_grace() {
    let settings = [(STREAM_GRACE_MS, SHORT), (CLIENT_WRITE_MS, "600000")];
    let (world, mut control, ups) = World::with_two_and(10_000, &settings).await;
    // Many that each are whole before the user takes anything, and one that is not: more than both ways to the user hold.
    let many = "GET /bytes/60000 HTTP/1.1\r\nHost: a\r\n\r\n".repeat(400);
    let one = "GET /bytes/30000000 HTTP/1.0\r\nHost: a\r\n\r\n".to_owned();
    let mut users = vec![];
    for questions in [many, one] {
        let mut user = world.wire().await;
        user.write_all(questions.as_bytes()).await.expect("sent");
        users.push(user);
    }
    // Nothing moves any more.
    let (last, pages) = (Cell::new(0.0), Cell::new(0));
    world
        .wait_for(|m| {
            let total = m.sum("sim_proxy_requests_total", &[]);
            let same = last.replace(total) == total && m.sum("sim_proxy_in_flight", &["i1"]) == 2.0;
            pages.set(if same { pages.get() + 1 } else { 0 });
            pages.get() > 20
        })
        .await;
    control.publish(&pair(2, &ups, 0)).await;
    world
        .wait_for(|m| m.sum("sim_proxy_in_flight", &["i1"]) == 0.0)
        .await;
    for mut user in users {
        let mut answers = Vec::new();
        while user.read_buf(&mut answers).await.is_ok_and(|read| read > 0) {}
    }
    assert_eq!(ended(&world, "drained").await, 2.0);
}
