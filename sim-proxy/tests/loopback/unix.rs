//! Instances at Unix sockets: what passes, and what happens when a socket is nobody's any more.

use crate::control::Control;
use crate::http2;
use crate::process::{CHECK, HEDGE_QUANTILE, INSTANCE_TLS, MIRROR, PROTOCOL};
use crate::secure::{Authority, NAME};
use crate::upstream::{Upstream, pattern};
use crate::websocket::{self, Begins, Echo};
use crate::world::{Load, Metrics, World, table};
use hyper::{Method, StatusCode};
use sim_core::address::Address;
use std::net::SocketAddr;
use std::path::PathBuf;
use tempfile::TempDir;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpStream, UnixListener};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_stream::StreamExt as _;
use tokio_tungstenite::tungstenite::protocol::Message;

/// Sockets of instances.
struct Sockets(TempDir);

impl Sockets {
    fn new() -> Self {
        Self(TempDir::new().expect("a directory"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(format!("{name}.sock"))
    }

    fn address(&self, name: &str) -> Address {
        Address::unix(self.path(name).to_str().expect("text")).expect("valid")
    }

    fn start(&self, name: &'static str) -> Upstream {
        Upstream::start_unix(name, &self.path(name), None)
    }
}

/// Two of them, of which the first has `first_bp`.
async fn with_two(
    first_bp: u16,
    settings: &[(&str, &str)],
) -> (World, Control, Sockets, [Upstream; 2]) {
    let (world, mut control) = World::start_with(settings);
    let sockets = Sockets::new();
    let ups = ["i1", "i2"].map(|name| sockets.start(name));
    let lines = [
        (1, sockets.address("i1"), first_bp, true),
        (2, sockets.address("i2"), 10_000 - first_bp, true),
    ];
    control.publish(&table(1, 1, &lines)).await;
    (world, control, sockets, ups)
}

fn errors(metrics: &Metrics, instance: &str, class: &str) -> f64 {
    let class = format!("class=\"{class}\"");
    metrics.sum("sim_proxy_instance_errors_total", &[instance, &class])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_pass_either_way_over_connections_that_are_kept() {
    let (world, _control, _sockets, ups) = with_two(10_000, &[]).await;
    let fast = world.client();
    let (mut general, _connection) = http2::User::connect(&world).await;
    for length in [0, 1, 4_095, 16_385, 65_536, 1_000_000] {
        let body = pattern(length);
        let answer = fast.send(Method::POST, "/echo", body.clone()).await;
        assert_eq!(answer.expect("an answer"), (StatusCode::OK, body.clone()));
        let echo = general.request(Method::POST, "/echo");
        let answer = general.send(echo, body).await;
        assert_eq!(
            answer.expect("an answer"),
            (StatusCode::OK, pattern(length))
        );
        let path = format!("/bytes/{length}");
        assert_eq!(fast.get(&path).await, (StatusCode::OK, pattern(length)));
        let answer = general.get(&path).await.expect("an answer");
        assert_eq!(answer, (StatusCode::OK, pattern(length)));
    }
    // The general path gives a connection back when the user already has the answer: the next request may come before.
    let connections = ups[0].counts.connections();
    assert!(connections < 12, "{connections} for 24 requests");
    let metrics = world.metrics().await;
    assert_eq!(metrics.sum("sim_proxy_retries_total", &[]), 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_2_is_spoken_there_and_over_tls_too() {
    let authority = Authority::new();
    let files = authority.sign("web", &[NAME]);
    let tls = Authority::server(&files, None, &[b"http/1.1", b"h2"]);
    let setting = format!("{},{NAME}", authority.file().display());
    for (settings, tls) in [
        (vec![(PROTOCOL, "h2")], None),
        (vec![(INSTANCE_TLS, &*setting)], Some(tls.clone())),
        (vec![(INSTANCE_TLS, &*setting), (PROTOCOL, "h2")], Some(tls)),
    ] {
        let (world, mut control) = World::start_with(&settings);
        let sockets = Sockets::new();
        let secured = tls.is_some();
        let up = Upstream::start_unix("i1", &sockets.path("i1"), tls);
        let lines = [(1, sockets.address("i1"), 10_000, true)];
        control.publish(&table(1, 1, &lines)).await;
        let (mut general, _connection) = http2::User::connect(&world).await;
        for _ in 0..10 {
            assert_eq!(world.client().get("/").await, (StatusCode::OK, "i1".into()));
            let answer = general.get("/").await.expect("an answer");
            assert_eq!(answer, (StatusCode::OK, "i1".into()));
        }
        assert_eq!(up.counts.requests(), 20, "{settings:?}");
        assert_eq!(up.counts.handshakes() > 0, secured, "{settings:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_one_costs_no_get_and_whoever_takes_its_socket_serves_again() {
    let (world, _control, sockets, [first, second]) = with_two(9_000, &[]).await;
    let load = Load::start(&world, 8, &Method::GET);
    load.run(500).await;
    first.kill().await;
    load.run(500).await;
    let metrics = world.metrics().await;
    assert!(metrics.sum("sim_proxy_ejections_total", &["i1"]) >= 1.0);
    assert!(second.counts.requests() >= 400);
    let back = sockets.start("i1");
    world
        .wait_for(|m| m.sum("sim_proxy_ejected", &["i1"]) == 0.0)
        .await;
    load.run(200).await;
    let (sent, failed) = load.end().await;
    assert_eq!(failed, 0, "of {sent}");
    assert!(back.counts.requests() >= 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_socket_that_is_gone_or_no_socket_sends_even_posts_elsewhere() {
    for protocol in ["http1", "h2"] {
        posts_go_elsewhere(protocol).await;
    }
}

async fn posts_go_elsewhere(protocol: &str) {
    let settings = [(PROTOCOL, protocol)];
    let (world, mut control, sockets, [first, second]) = with_two(10_000, &settings).await;
    let (user, (mut general, _connection)) = (world.client(), http2::User::connect(&world).await);
    let path = sockets.path("i1");
    first.kill().await;
    for round in 0..2_u64 {
        std::fs::remove_file(&path).expect("there");
        if round == 1 {
            // No one to be connected to either.
            std::fs::create_dir(&path).expect("a directory");
        }
        for _ in 0..10 {
            let answer = user.send(Method::POST, "/echo", "a").await;
            assert_eq!(answer.expect("an answer").0, StatusCode::OK);
            let echo = general.request(Method::POST, "/echo");
            let answer = general.send(echo, "a").await;
            assert_eq!(answer.expect("an answer").0, StatusCode::OK);
        }
        let metrics = world.metrics().await;
        assert!(errors(&metrics, "i1", "connect") >= 1.0, "{metrics:?}");
        assert!(metrics.sum("sim_proxy_ejections_total", &["i1"]) >= 1.0);
        if round == 0 {
            std::fs::write(&path, "").expect("a file");
        }
    }
    assert_eq!(second.counts.requests(), 40);
    // With nobody else there is no answer but this.
    let lines = [(1, sockets.address("i1"), 10_000, true)];
    control.publish(&table(1, 2, &lines)).await;
    assert_eq!(user.get("/").await.0, StatusCode::BAD_GATEWAY);
    let answer = general.get("/").await.expect("an answer");
    assert_eq!(answer.0, StatusCode::BAD_GATEWAY);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_hangs_is_left_for_another_on_either_path() {
    let settings = [(HEDGE_QUANTILE, "0.99")];
    let (world, _control, _sockets, ups) = with_two(10_000, &settings).await;
    let load = Load::start(&world, 2, &Method::GET);
    load.run(500).await;
    assert_eq!(load.end().await.1, 0);
    world
        .wait_for(|metrics| metrics.has("sim_proxy_overdue_after_seconds"))
        .await;
    let (mut general, _connection) = http2::User::connect(&world).await;
    ups[0].counts.stall(true);
    let answer = world.client().get("/").await;
    assert_eq!(answer, (StatusCode::OK, "i2".into()));
    // Its connection is cut, so that Pingora asks anew.
    let answer = general.get("/").await.expect("an answer");
    assert_eq!(answer, (StatusCode::OK, "i2".into()));
    let metrics = world.metrics().await;
    assert!(metrics.sum("sim_proxy_retries_total", &["hedge"]) >= 1.0);
    assert!(metrics.sum("sim_proxy_retries_total", &["late"]) >= 1.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn checks_and_copies_reach_sockets_as_well() {
    let sockets = Sockets::new();
    let mirror = sockets.start("mirror");
    let to = format!("{}@10000", sockets.address("mirror"));
    let settings = [(CHECK, "http:/:20"), (MIRROR, &to)];
    let (world, _control, own, [first, second]) = with_two(5_000, &settings).await;
    world
        .wait_for(|m| {
            let passed = |id| m.sum("sim_proxy_checks_total", &[id, "passed"]);
            passed("i1") >= 2.0 && passed("i2") >= 2.0
        })
        .await;
    second.kill().await;
    std::fs::remove_file(own.path("i2")).expect("there");
    world
        .wait_for(|m| m.sum("sim_proxy_check_out", &["i2"]) == 1.0)
        .await;
    for _ in 0..20 {
        let answer = world.client().get("/").await;
        assert_eq!(answer, (StatusCode::OK, "i1".into()));
    }
    world
        .wait_for(|m| m.sum("sim_proxy_mirror_answers_total", &["2xx"]) == 20.0)
        .await;
    assert_eq!(mirror.counts.copies(), 20);
    assert_eq!(first.counts.copies(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_moves_requests_from_an_address_to_a_socket_and_back() {
    let (world, mut control) = World::start();
    let sockets = Sockets::new();
    let (old, new) = (Upstream::start("old").await, sockets.start("new"));
    let there = [Address::from(old.address), sockets.address("new")];
    let user = world.client();
    for generation in 1..=6 {
        let at = generation as usize % 2;
        // The same instance elsewhere: what is kept of it leads to where it was.
        let lines = [(1, there[at].clone(), 10_000, true)];
        control.publish(&table(1, generation, &lines)).await;
        let expected = ["old", "new"][at];
        for _ in 0..3 {
            assert_eq!(user.get("/").await, (StatusCode::OK, expected.into()));
        }
    }
    assert_eq!([&old, &new].map(|up| up.counts.requests()), [9, 9]);
}

/// What comes to `listener` over TLS goes on to `to` in the clear, and back.
async fn relay(listener: UnixListener, tls: TlsAcceptor, to: SocketAddr) {
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.expect("accept");
        let tls = tls.clone();
        connections.spawn(async move {
            let mut stream = tls.accept(stream).await.expect("a handshake");
            let mut onwards = TcpStream::connect(to).await.expect("connected");
            // Either may break it off.
            copy_bidirectional(&mut stream, &mut onwards).await.ok();
        });
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_websocket_passes_over_tls_to_a_socket() {
    let authority = Authority::new();
    let files = authority.sign("web", &[NAME]);
    let setting = format!("{},{NAME}", authority.file().display());
    let (world, mut control) = World::start_with(&[(INSTANCE_TLS, &setting)]);
    let (sockets, echo) = (Sockets::new(), Echo::start(Begins::WithMessage).await);
    let listener = UnixListener::bind(sockets.path("i1")).expect("a socket");
    let tls = Authority::server(&files, None, &[b"http/1.1"]);
    let relay = tokio::spawn(relay(listener, tls.into(), echo.address));
    let lines = [(1, sockets.address("i1"), 10_000, true)];
    control.publish(&table(1, 1, &lines)).await;
    let mut socket = websocket::open(&world).await;
    let first = socket.next().await.expect("open").expect("a message");
    assert_eq!(first, Message::text("hello"));
    for length in [0, 125, 65_536, 1_000_000] {
        websocket::echoes(&mut socket, Message::binary(vec![7; length])).await;
    }
    socket.close(None).await.expect("sent");
    while socket.next().await.is_some() {}
    world
        .wait_for(|m| m.sum("sim_proxy_requests_ended_total", &["\"ok\""]) == 1.0)
        .await;
    relay.abort();
}
