//! HTTP/2 from users, in clear text by prior knowledge.

use crate::http2_failure::Streams;
use crate::process::PROTOCOL;
use crate::upstream::{Upstream, own_address, pattern};
use crate::world::{Load, World, table};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

/// One connection, over which requests go at a time.
#[derive(Clone)]
pub(crate) struct User {
    pub(crate) requests: SendRequest<Full<Bytes>>,
    to: SocketAddr,
}

impl User {
    /// And the task of its connection, which ends with it.
    pub(crate) async fn connect(world: &World) -> (Self, JoinHandle<Result<(), hyper::Error>>) {
        let stream = TcpStream::connect(world.proxy).await.expect("connected");
        let (requests, connection) = handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .expect("HTTP/2");
        let to = world.proxy;
        (Self { requests, to }, tokio::spawn(connection))
    }

    pub(crate) fn request(&self, method: Method, path: &str) -> http::request::Builder {
        Request::builder()
            .method(method)
            .uri(format!("http://{}{path}", self.to))
    }

    pub(crate) async fn send(
        &mut self,
        request: http::request::Builder,
        body: impl Into<Bytes>,
    ) -> Result<(StatusCode, Bytes), hyper::Error> {
        let request = request.body(Full::new(body.into())).expect("valid");
        let response = self.requests.send_request(request).await?;
        let status = response.status();
        Ok((status, response.into_body().collect().await?.to_bytes()))
    }

    pub(crate) async fn get(&mut self, path: &str) -> Result<(StatusCode, Bytes), hyper::Error> {
        self.send(self.request(Method::GET, path), "").await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_of_one_connection_are_split_by_weight_and_bodies_pass_unchanged() {
    let (world, _control, ups) = World::with_two(7_500).await;
    let (mut user, _connection) = User::connect(&world).await;
    for _ in 0..200 {
        assert_eq!(user.get("/").await.expect("an answer").0, StatusCode::OK);
    }
    let first = ups[0].counts.requests();
    assert!((148..=152).contains(&first), "{first} of 200");
    let mut bodies = JoinSet::new();
    for length in [0, 1, 65_536, 1_000_000] {
        let mut user = user.clone();
        bodies.spawn(async move {
            let echo = user.request(Method::POST, "/echo");
            let answer = user.send(echo, pattern(length)).await.expect("an answer");
            assert_eq!(answer, (StatusCode::OK, pattern(length)));
        });
    }
    bodies.join_all().await;
    let metrics = world.settled().await;
    let ok = metrics.sum("sim_proxy_requests_ended_total", &["ok"]);
    assert_eq!(ok, 204.0);
    assert_eq!(metrics.sum("sim_proxy_http2_connections_total", &[]), 1.0);
    assert_eq!(metrics.sum("sim_proxy_attempts_total", &["first"]), 204.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_user_is_named_and_a_cookie_in_pieces_arrives_whole() {
    let (world, _control, _ups) = World::with_two(5_000).await;
    let (mut user, _connection) = User::connect(&world).await;
    let request = user
        .request(Method::GET, "/head")
        .header("cookie", "a=1")
        .header("cookie", "b=2")
        .header("cookie", "c=3");
    let (_, head) = user.send(request, "").await.expect("an answer");
    let head = String::from_utf8(head.to_vec()).expect("text");
    let host = format!("\"host\": \"{}\"", world.proxy);
    for part in [
        "\"a=1; b=2; c=3\"",
        "\"x-forwarded-for\": \"127.0.0.1\"",
        &host,
    ] {
        assert!(head.contains(part), "{part} in {head}");
    }
}

/// HTTP/1.1 has no way to say such a value, so the instance would see another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_value_that_begins_or_ends_with_white_space_is_refused() {
    let (world, _control, ups) = World::with_two(10_000).await;
    let (mut user, _connection) = User::connect(&world).await;
    for value in [" a", "a ", "a\t", " "] {
        let request = user.request(Method::GET, "/").header("x-padded", value);
        let (status, _) = user.send(request, "").await.expect("an answer");
        assert_eq!(status, StatusCode::BAD_REQUEST, "{value:?}");
    }
    let inside = user.request(Method::GET, "/").header("x-inside", "a \tb");
    let (status, _) = user.send(inside, "").await.expect("an answer");
    assert_eq!(status, StatusCode::OK);
    assert_eq!(ups[0].counts.requests(), 1);
    let metrics = world.settled().await;
    let refused = metrics.sum("sim_proxy_refused_total", &["malformed"]);
    assert!((refused - 4.0).abs() < 0.1, "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_instance_costs_no_get_over_http2() {
    let (world, _control, [first, _second]) = World::with_two(9_500).await;
    let (user, _connection) = User::connect(&world).await;
    let streams = Streams::start(&user, 16);
    streams.wait_for_more(400).await;
    first.kill().await;
    streams.wait_for_more(1_000).await;
    assert!(streams.end().await >= 1_400);
    let metrics = world.settled().await;
    assert!(metrics.sum("sim_proxy_retries_total", &[]) >= 1.0);
    assert!(metrics.sum("sim_proxy_ejections_total", &["i1"]) >= 1.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_lets_streams_end_and_then_closes_the_connection() {
    let (world, _control, ups) = World::with_two(10_000).await;
    let (user, connection) = User::connect(&world).await;
    let mut slow = user.clone();
    let slow = tokio::spawn(async move { slow.get("/slow").await });
    while ups[0].counts.requests() < 1 {
        tokio::task::yield_now().await;
    }
    assert!(world.terminate().await.success());
    let (status, name) = slow.await.expect("no panic").expect("an answer");
    assert_eq!((status, name), (StatusCode::OK, "i1".into()));
    connection
        .await
        .expect("no panic")
        .expect("closed in order");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reset_stream_is_given_up_alone() {
    let (world, _control, ups) = World::with_two(10_000).await;
    let (mut user, _connection) = User::connect(&world).await;
    let mut hanging = user.clone();
    let hanging = tokio::spawn(async move { hanging.get("/hang").await });
    while ups[0].counts.requests() < 1 {
        tokio::task::yield_now().await;
    }
    hanging.abort();
    world
        .wait_for(|m| m.sum("sim_proxy_requests_ended_total", &["aborted"]) == 1.0)
        .await;
    assert_eq!(user.get("/").await.expect("an answer").1, "i1");
    let metrics = world.settled().await;
    assert_eq!(metrics.sum("sim_proxy_in_flight", &["i1"]), 0.0);
    assert_eq!(metrics.sum("sim_proxy_ejections_total", &[]), 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_opens_streams_to_reset_them_is_shut_out_and_others_are_not() {
    let (world, _control, ups) = World::with_two(10_000).await;
    let (user, connection) = User::connect(&world).await;
    let (mut other, _connection) = User::connect(&world).await;
    for _ in 0..10_000 {
        let before = ups[0].counts.requests();
        let mut one = user.clone();
        let request = tokio::spawn(async move { one.get("/hang").await });
        while ups[0].counts.requests() == before && !connection.is_finished() {
            tokio::task::yield_now().await;
        }
        request.abort();
        if connection.is_finished() {
            break;
        }
    }
    let error = connection.await.expect("no panic").expect_err("shut out");
    assert!(
        format!("{error:?}").contains("ENHANCE_YOUR_CALM"),
        "{error:?}"
    );
    assert!(ups[0].counts.requests() < 400);
    world
        .wait_for(|m| m.sum("sim_proxy_http2_connections_ended_total", &["flood"]) == 1.0)
        .await;
    assert_eq!(other.get("/").await.expect("an answer").1, "i1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_preface_in_pieces_is_one_and_one_behind_a_request_is_not() {
    let (world, _control, _ups) = World::with_two(10_000).await;
    let mut stream = TcpStream::connect(world.proxy).await.expect("connected");
    stream.set_nodelay(true).expect("nodelay");
    for piece in [
        "PRI * HT",
        "TP/2.0\r\n\r\nSM\r",
        "\n\r\n\0\0\0\x04\0\0\0\0\0",
    ] {
        stream.write_all(piece.as_bytes()).await.expect("sent");
        tokio::task::yield_now().await;
    }
    let mut head = [0; 9];
    stream.read_exact(&mut head).await.expect("a frame");
    assert_eq!(head[3], 4, "SETTINGS");

    let mut stream = TcpStream::connect(world.proxy).await.expect("connected");
    let request = "GET / HTTP/1.1\r\nHost: a\r\n\r\nPRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut answers = String::new();
    stream
        .read_to_string(&mut answers)
        .await
        .expect("an answer and the end");
    assert!(answers.starts_with("HTTP/1.1 200 OK\r\n"), "{answers}");
    assert!(
        answers.contains("HTTP/1.1 400 Bad Request\r\n"),
        "{answers}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn instances_that_speak_http2_serve_users_of_either_version() {
    let (world, _control, ups) = World::with_two_and(5_000, &[(PROTOCOL, "h2")]).await;
    let (mut user, _connection) = User::connect(&world).await;
    let old = world.client();
    for length in [0, 1, 65_536, 300_000] {
        let echo = user.request(Method::POST, "/echo");
        let answer = user.send(echo, pattern(length)).await.expect("an answer");
        assert_eq!(answer, (StatusCode::OK, pattern(length)));
        let answer = old.send(Method::POST, "/echo", pattern(length)).await;
        assert_eq!(
            answer.expect("an answer"),
            (StatusCode::OK, pattern(length))
        );
    }
    for _ in 0..50 {
        assert_eq!(user.get("/").await.expect("an answer").0, StatusCode::OK);
        assert_eq!(old.get("/").await.0, StatusCode::OK);
    }
    let [first, second] = [&ups[0], &ups[1]].map(|up| up.counts.requests());
    assert_eq!(first + second, 108);
    assert!(
        first.abs_diff(second) <= 4,
        "{first} and {second}: {:#?}",
        world.metrics().await
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_instance_that_speaks_http2_costs_no_get_of_either_version() {
    let (world, _control, [first, _second]) = World::with_two_and(9_500, &[(PROTOCOL, "h2")]).await;
    let (user, _connection) = User::connect(&world).await;
    let (streams, load) = (
        Streams::start(&user, 8),
        Load::start(&world, 8, &Method::GET),
    );
    streams.wait_for_more(200).await;
    load.run(200).await;
    first.kill().await;
    streams.wait_for_more(400).await;
    load.run(400).await;
    assert!(streams.end().await >= 600);
    let (sent, failed) = load.end().await;
    assert_eq!(failed, 0, "of {sent}");
    let metrics = world.settled().await;
    assert!(metrics.sum("sim_proxy_ejections_total", &["i1"]) >= 1.0);
}

/// Refuses each stream, as a server does that is about to leave.
async fn refuser() -> SocketAddr {
    let listener = TcpListener::bind(own_address()).await.expect("a port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.expect("accept");
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(stream).await.expect("HTTP/2");
                while let Some(Ok((_, mut answer))) = connection.accept().await {
                    answer.send_reset(h2::Reason::REFUSED_STREAM);
                }
            });
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_post_that_an_instance_refused_untouched_goes_to_the_other() {
    let (world, mut control) = World::start_with(&[(PROTOCOL, "h2")]);
    let (refuser, up) = (refuser().await, Upstream::start("i2").await);
    let lines = [(1, refuser, 10_000, true), (2, up.address, 0, true)];
    control.publish(&table(1, 1, &lines)).await;
    let (mut user, _connection) = User::connect(&world).await;
    for _ in 0..10 {
        let post = user.request(Method::POST, "/echo");
        let answer = user.send(post, "a payment").await.expect("an answer");
        assert_eq!(answer, (StatusCode::OK, "a payment".into()));
    }
    assert_eq!(up.counts.requests(), 10);
    let metrics = world.settled().await;
    assert_eq!(metrics.sum("sim_proxy_retries_total", &["refused"]), 10.0);
    assert_eq!(metrics.sum("sim_proxy_ejections_total", &[]), 0.0);
}
