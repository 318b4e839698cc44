//! Users over TLS: what they are shown, what passes, and what happens when certificates change.

use crate::process::{STRICT_SNI, TLS, TLS_ALONE};
use crate::secure::{Authority, NAME, Way, over_tls};
use crate::upstream::{Upstream, pattern};
use crate::world::{User, World, table};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, HandshakeKind};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

async fn connect(
    world: &World,
    config: &Arc<ClientConfig>,
    name: &'static str,
) -> io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(world.secure.expect("a listener for TLS")).await?;
    let name = ServerName::try_from(name).expect("a name");
    TlsConnector::from(config.clone())
        .connect(name, stream)
        .await
}

/// Asks on a connection of its own; the answer up to its end, which must be said.
async fn ask(
    world: &World,
    config: &Arc<ClientConfig>,
    request: &str,
) -> (HandshakeKind, io::Result<String>) {
    let mut stream = connect(world, config, NAME).await.expect("a handshake");
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut answer = String::new();
    let read = stream.read_to_string(&mut answer).await;
    let kind = stream.get_ref().1.handshake_kind().expect("known");
    (kind, read.map(|_| answer))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_pass_and_instances_are_told_that_it_was_over_tls() {
    let (world, _control, _ups) = World::with_two_by(Way::tls(), 5_000, &[]).await;
    let user = world.client();
    for length in [0, 1, 4_095, 16_385, 65_536, 1_000_000] {
        let body = pattern(length);
        let answer = user.send(Method::POST, "/echo", body.clone()).await;
        assert_eq!(answer.expect("an answer"), (StatusCode::OK, body));
        let got = user.get(&format!("/bytes/{length}")).await;
        assert_eq!(got, (StatusCode::OK, pattern(length)));
    }
    let Way::Tls(authority) = world.way() else {
        panic!("over TLS");
    };
    let config = Arc::new(authority.trusted());
    // By the fast path and by the general one.
    for other in ["", "Connection: close, X-Other\r\n"] {
        let request = format!(
            "GET /head HTTP/1.1\r\nHost: a\r\nX-Forwarded-Proto: gopher\r\nForwarded: for=10.9.8.7\r\n\
             Connection: close\r\n{other}\r\n"
        );
        let (_, answer) = ask(&world, &config, &request).await;
        let answer = answer.expect("whole, with its end said");
        for part in [
            "\"x-forwarded-proto\": \"https\"",
            "\"x-forwarded-for\": \"127.0.0.1\"",
        ] {
            assert!(answer.contains(part), "{part} in {answer}");
        }
        assert!(
            !answer.contains("gopher") && !answer.contains("10.9.8.7"),
            "{answer}"
        );
    }
    let metrics = world.metrics().await;
    assert!(metrics.sum("sim_proxy_tls_handshakes_total", &["\"ok\""]) >= 3.0);
    assert_eq!(
        metrics.sum("sim_proxy_tls_handshakes_total", &["failed"]),
        0.0
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_comes_back_by_ticket_costs_no_signature_and_old_versions_are_refused() {
    let (world, _control, _ups) = World::with_two_by(Way::tls(), 5_000, &[]).await;
    let Way::Tls(authority) = world.way() else {
        panic!("over TLS");
    };
    let request = "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    for version in [&rustls::version::TLS13, &rustls::version::TLS12] {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider);
        let config = config.with_protocol_versions(&[version]).expect("known");
        let config = config.with_root_certificates(authority.roots());
        let config = Arc::new(config.with_no_client_auth());
        let (first, answer) = ask(&world, &config, request).await;
        assert!(answer.expect("whole").starts_with("HTTP/1.1 200"));
        let (second, _) = ask(&world, &config, request).await;
        assert_eq!(
            (first, second),
            (HandshakeKind::Full, HandshakeKind::Resumed),
            "{version:?}"
        );
    }
    // A hello of TLS 1.1 (RFC 4346): the version is in its head.
    let mut stream = TcpStream::connect(world.secure.expect("there"))
        .await
        .expect("connected");
    let mut hello = vec![22, 3, 1, 0, 55, 1, 0, 0, 51, 3, 2];
    hello.extend([7; 32]);
    hello.extend([0, 0, 2, 0, 0x2f, 1, 0]);
    hello.extend([0, 8, 0, 13, 0, 4, 0, 2, 4, 1]);
    stream.write_all(&hello).await.expect("sent");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.expect("the end");
    // A fatal alert: protocol_version.
    assert_eq!((answer[0], &answer[5..]), (21, &[2, 70][..]));
    world
        .wait_for(|m| m.sum("sim_proxy_tls_handshakes_total", &["failed"]) == 1.0)
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_2_is_agreed_on_by_alpn() {
    let (world, _control, ups) = World::with_two_by(Way::tls(), 10_000, &[]).await;
    let Way::Tls(authority) = world.way() else {
        panic!("over TLS");
    };
    let mut config = authority.trusted();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let stream = connect(&world, &Arc::new(config), NAME)
        .await
        .expect("a handshake");
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let handshake = http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (mut send, connection) = handshake.await.expect("HTTP/2");
    let driving = tokio::spawn(connection);
    for _ in 0..3 {
        let request = Request::get(format!("https://{NAME}/head")).body(Full::<Bytes>::default());
        let answer = send
            .send_request(request.expect("valid"))
            .await
            .expect("an answer");
        assert_eq!(answer.status(), StatusCode::OK);
        let body = answer
            .into_body()
            .collect()
            .await
            .expect("whole")
            .to_bytes();
        let head = String::from_utf8_lossy(&body);
        assert!(head.contains("\"x-forwarded-proto\": \"https\""), "{head}");
    }
    assert_eq!(ups[0].counts.requests(), 3);
    driving.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_name_gets_its_certificate_and_a_strict_proxy_refuses_others() {
    let authority = Authority::new();
    let files = [
        authority.sign("first", &[NAME]),
        authority.sign("second", &["*.shop.example"]),
    ];
    let setting = files.map(|files| files.setting()).join(",");
    let config = Arc::new(authority.trusted());
    for strict in [false, true] {
        let mut settings = vec![(TLS, setting.as_str()), (TLS_ALONE, "1")];
        if strict {
            settings.push((STRICT_SNI, "1"));
        }
        let (world, _control) = World::start_with(&settings);
        connect(&world, &config, NAME).await.expect("its own");
        connect(&world, &config, "a.shop.example")
            .await
            .expect("its own");
        let error = connect(&world, &config, "other.example")
            .await
            .expect_err("none is for it");
        let error = error.to_string();
        // Shown the first one, which the user refuses; or shown none.
        assert_eq!(error.contains("not valid for name"), !strict, "{error}");
        let metrics = world
            .wait_for(|m| m.sum("sim_proxy_tls_handshakes_total", &["failed"]) == 1.0)
            .await;
        assert_eq!(metrics.sum("sim_proxy_tls_unknown_names_total", &[]), 1.0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_was_cut_off_does_not_look_whole() {
    let authority = Authority::new();
    let files = authority.sign("web", &[NAME]).setting();
    let (world, mut control) = World::start_with(&[(TLS, &files)]);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a port");
    let address = listener.local_addr().expect("bound");
    control
        .publish(&table(1, 1, &[(1, address, 10_000, true)]))
        .await;
    // Without a length: the end of the connection is the end of the answer. The first ends, the second breaks.
    let serving = tokio::spawn(async move {
        for whole in [true, false] {
            let (mut stream, _) = listener.accept().await.expect("accepted");
            let mut request = [0; 1_024];
            while !request.ends_with(b"\r\n\r\n") {
                let read = stream.read(&mut request).await.expect("a request");
                if request[..read].ends_with(b"\r\n\r\n") {
                    break;
                }
            }
            stream
                .write_all(b"HTTP/1.1 200 OK\r\n\r\nsome")
                .await
                .expect("sent");
            stream.flush().await.expect("sent");
            if !whole {
                // Let it be on its way before the reset overtakes it.
                tokio::time::sleep(Duration::from_millis(100)).await;
                stream.set_zero_linger().expect("set");
            }
        }
    });
    let config = Arc::new(authority.trusted());
    let request = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    let (_, answer) = ask(&world, &config, request).await;
    assert!(answer.expect("whole, with its end said").ends_with("some"));
    let (_, answer) = ask(&world, &config, request).await;
    let error = answer.expect_err("cut off");
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    serving.await.expect("no panic");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_that_change_are_in_force_without_a_lost_connection_and_bad_ones_are_not() {
    let (old, new) = (Authority::new(), Authority::new());
    let files = old.sign("web", &[NAME]);
    let (world, mut control) = World::start_with(&[(TLS, &files.setting())]);
    let up = Upstream::start("i1").await;
    control
        .publish(&table(1, 1, &[(1, up.address, 10_000, true)]))
        .await;
    let secure = world.secure.expect("there");
    let staying = User::by(over_tls(old.trusted(), NAME), secure);
    assert_eq!(staying.get("/").await.0, StatusCode::OK);
    let expiry = |m: &crate::world::Metrics| {
        m.sum(
            "sim_proxy_tls_certificate_expiry_timestamp_seconds",
            &[NAME],
        )
    };
    assert!(expiry(&world.metrics().await) > 1.7e9);

    // A key that isn't the certificate's: nothing changes.
    let key = std::fs::read(&files.key).expect("there");
    std::fs::copy(old.sign("other", &[NAME]).key, &files.key).expect("written");
    let failed =
        |m: &crate::world::Metrics| m.sum("sim_proxy_tls_reloads_total", &["downstream", "failed"]);
    world.wait_for(|m| failed(m) >= 1.0).await;
    let again = User::by(over_tls(old.trusted(), NAME), secure);
    assert_eq!(again.get("/").await.0, StatusCode::OK);
    std::fs::write(&files.key, key).expect("written");

    // Those of another authority.
    let fresh = new.sign("web", &[NAME]);
    std::fs::copy(fresh.key, &files.key).expect("written");
    std::fs::copy(fresh.chain, &files.chain).expect("written");
    let trusting = User::by(over_tls(new.trusted(), NAME), secure);
    let mut tries = 0;
    while trusting.send(Method::GET, "/", "").await.is_err() {
        tries += 1;
        assert!(tries < 6_000, "{:?}", world.metrics().await);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(staying.get("/").await.0, StatusCode::OK);
    let late = User::by(over_tls(old.trusted(), NAME), secure);
    late.send(Method::GET, "/", "")
        .await
        .expect_err("the old one is gone");
    let metrics = world.metrics().await;
    assert!(metrics.sum("sim_proxy_tls_reloads_total", &["downstream", "\"ok\""]) >= 1.0);
}
