//! HTTP/1.1 as it goes through.

use crate::upstream::pattern;
use crate::world::World;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use hyper::{Method, Request, StatusCode};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

/// Sends bytes as they are and reads until the proxy closes.
pub(crate) async fn raw(world: &World, request: &str) -> String {
    let mut stream = TcpStream::connect(world.proxy).await.expect("connected");
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut answer = String::new();
    stream
        .read_to_string(&mut answer)
        .await
        .expect("an answer and the end");
    answer
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_pass_unchanged_with_a_length_and_in_chunks() {
    let (world, _control, _ups) = World::with_two(5_000).await;
    let user = world.client();
    for length in [0, 1, 4_095, 65_536, 300_000] {
        let body = pattern(length);
        let answer = user
            .send(Method::POST, "/echo", body.clone())
            .await
            .expect("an answer");
        assert_eq!(answer, (StatusCode::OK, body));
    }
    let client = Client::builder(TokioExecutor::new()).build_http();
    for chunks in [1, 7, 100] {
        let frames = (0..chunks).map(|_| Ok::<_, std::io::Error>(Frame::data(pattern(3_000))));
        let request = Request::post(format!("http://{}/echo", world.proxy))
            .body(StreamBody::new(tokio_stream::iter(frames)))
            .expect("valid");
        let response = client.request(request).await.expect("an answer");
        let body = response
            .into_body()
            .collect()
            .await
            .expect("whole")
            .to_bytes();
        assert_eq!(body, pattern(3_000).repeat(chunks));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_with_two_lengths_is_refused_and_not_passed_on() {
    let (world, _control, ups) = World::with_two(5_000).await;
    let answer = raw(
        &world,
        "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n\
         1\r\nx\r\n0\r\n\r\n",
    )
    .await;
    assert!(
        answer.starts_with("HTTP/1.1 400 Bad Request\r\n"),
        "{answer}"
    );
    assert!(
        answer.ends_with("400 Bad Request: the request is malformed\n"),
        "{answer}"
    );
    assert!(
        !answer.to_ascii_lowercase().contains("\r\nserver:"),
        "{answer}"
    );
    assert_eq!(ups[0].counts.requests() + ups[1].counts.requests(), 0);
    world
        .wait_for(|m| m.sum("sim_proxy_requests_ended_total", &["refused"]) == 1.0)
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heads_that_two_parsers_read_in_two_ways_are_refused() {
    let (world, _control, ups) = World::with_two(5_000).await;
    let heads = [
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 1\r\n\r\nx",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length : 1\r\n\r\nx",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\n 2\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\nX: 1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        "GET / HTTP/1.1\r\nX: 1\r\n\r\n",
    ];
    for head in heads {
        let answer = raw(&world, head).await;
        assert!(
            answer.starts_with("HTTP/1.1 400 Bad Request\r\n"),
            "{head:?}: {answer}"
        );
    }
    world
        .wait_for(|m| m.sum("sim_proxy_requests_ended_total", &["refused"]) == 9.0)
        .await;
    assert_eq!(ups[0].counts.requests() + ups[1].counts.requests(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heads_pass_with_the_user_named_and_hop_by_hop_fields_gone() {
    let (world, _control, _ups) = World::with_two(5_000).await;
    let answer = raw(
        &world,
        "GET /head HTTP/1.1\r\nHost: shop.example\r\nX-Forwarded-For: 10.9.8.7\r\n\
         Connection: close, X-Secret\r\nX-Secret: 1\r\nX-Kept: 2\r\n\r\n",
    )
    .await;
    for part in [
        "\"host\": \"shop.example\"",
        "\"x-forwarded-for\": \"127.0.0.1\"",
        "\"x-kept\": \"2\"",
    ] {
        assert!(answer.contains(part), "{part} in {answer}");
    }
    assert!(!answer.contains("x-secret"), "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_connection_serves_many_requests_and_head_has_no_body() {
    let (world, _control, _ups) = World::with_two(5_000).await;
    let mut stream = BufReader::new(TcpStream::connect(world.proxy).await.expect("connected"));
    for _ in 0..3 {
        stream
            .write_all(b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n")
            .await
            .expect("sent");
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert!(
                stream.read_line(&mut head).await.expect("a line") > 0,
                "closed: {head}"
            );
        }
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        assert!(head.contains("content-length: 2\r\n"), "{head}");
    }
    stream
        .write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        .await
        .expect("sent");
    let mut answer = String::new();
    stream
        .read_to_string(&mut answer)
        .await
        .expect("an answer and the end");
    assert!(
        answer.starts_with("HTTP/1.1 200 OK\r\n"),
        "a body after HEAD? {answer}"
    );
    assert!(
        answer.ends_with("\r\n\r\ni1") || answer.ends_with("\r\n\r\ni2"),
        "{answer}"
    );
}
