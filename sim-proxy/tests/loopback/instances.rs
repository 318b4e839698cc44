//! Instances that are spoken to over TLS: who they have to be, what they are shown, and what happens when they aren't.

use crate::http2;
use crate::process::{CHECK, HEDGE_QUANTILE, INSTANCE_TLS, MIRROR, PROTOCOL};
use crate::secure::{Authority, NAME, Way};
use crate::upstream::{Upstream, pattern};
use crate::world::{Load, Metrics, World, pair, table};
use hyper::{Method, StatusCode};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

const ANY: &[&[u8]] = &[b"http/1.1", b"h2"];

/// How instances of `authority` are spoken to.
fn setting(authority: &Authority) -> String {
    format!("{},{NAME}", authority.file().display())
}

/// One that shows a good certificate of `authority`.
async fn good(name: &'static str, authority: &Authority) -> Upstream {
    let files = authority.sign(name, &[NAME]);
    Upstream::start_secured(name, Authority::server(&files, None, ANY)).await
}

/// Asks by the fast path, and by the general one.
async fn both_ways(world: &World) -> [StatusCode; 2] {
    let fast = world.client().get("/").await.0;
    let (mut user, _connection) = http2::User::connect(world).await;
    [fast, user.get("/").await.expect("an answer").0]
}

fn errors(metrics: &Metrics, instance: &str, class: &str) -> f64 {
    let class = format!("class=\"{class}\"");
    metrics.sum("sim_proxy_instance_errors_total", &[instance, &class])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_pass_either_way_over_connections_that_are_kept() {
    let authority = Authority::new();
    let (world, mut control) = World::start_with(&[(INSTANCE_TLS, &setting(&authority))]);
    let up = good("i1", &authority).await;
    control
        .publish(&table(1, 1, &[(1, up.address, 10_000, true)]))
        .await;
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
    let connections = up.counts.connections();
    assert!(connections < 12, "{connections} for 24 requests");
    assert_eq!(up.counts.handshakes(), connections);
    let metrics = world.metrics().await;
    assert_eq!(metrics.sum("sim_proxy_retries_total", &[]), 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_2_is_agreed_on_with_instances_and_who_knows_none_is_not_asked() {
    let authority = Authority::new();
    let settings = [(INSTANCE_TLS, &*setting(&authority)), (PROTOCOL, "h2")];
    let (world, mut control) = World::start_with(&settings);
    let files = authority.sign("web", &[NAME]);
    // Without a word of ALPN, and with another.
    let old = [
        Upstream::start_secured("i1", Authority::server(&files, None, &[])).await,
        Upstream::start_secured("i2", Authority::server(&files, None, &[b"http/1.1"])).await,
    ];
    control.publish(&pair(1, &old, 5_000)).await;
    for _ in 0..4 {
        assert_eq!(both_ways(&world).await, [StatusCode::BAD_GATEWAY; 2]);
    }
    assert_eq!(old[0].counts.requests() + old[1].counts.requests(), 0);
    let metrics = world.metrics().await;
    assert!(errors(&metrics, "i1", "tls") >= 1.0, "{metrics:?}");
    assert!(errors(&metrics, "i2", "tls") >= 1.0, "{metrics:?}");
    let up = good("i3", &authority).await;
    control
        .publish(&table(1, 2, &[(3, up.address, 10_000, true)]))
        .await;
    for _ in 0..4 {
        assert_eq!(both_ways(&world).await, [StatusCode::OK; 2]);
    }
    assert_eq!(up.counts.requests(), 8);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_is_not_who_it_has_to_be_gets_nothing_and_is_ejected() {
    let (authority, other) = (Authority::new(), Authority::new());
    let wrong_name = authority.sign("name", &["other.example"]);
    let unknown = other.sign("unknown", &[NAME]);
    let expired = authority.sign_expired("expired", &[NAME]);
    for (files, why) in [
        (wrong_name, "another name"),
        (unknown, "another authority"),
        (expired, "over"),
    ] {
        let (world, mut control) = World::start_with(&[(INSTANCE_TLS, &setting(&authority))]);
        let bad = Upstream::start_secured("i1", Authority::server(&files, None, ANY)).await;
        let ups = [bad, good("i2", &authority).await];
        control.publish(&pair(1, &ups, 9_000)).await;
        let (user, (mut general, _connection)) =
            (world.client(), http2::User::connect(&world).await);
        for _ in 0..20 {
            // Nothing was sent to the first, so even this may go on to the second.
            let answer = user.send(Method::POST, "/echo", "a").await;
            assert_eq!(answer.expect("an answer").0, StatusCode::OK, "{why}");
            let echo = general.request(Method::POST, "/echo");
            let answer = general.send(echo, "a").await;
            assert_eq!(answer.expect("an answer").0, StatusCode::OK, "{why}");
        }
        assert_eq!(ups[0].counts.requests(), 0, "{why}");
        let metrics = world.metrics().await;
        assert!(errors(&metrics, "i1", "tls") >= 1.0, "{why}: {metrics:?}");
        assert_eq!(errors(&metrics, "i1", "connect"), 0.0, "{why}");
        assert!(metrics.sum("sim_proxy_ejections_total", &["i1"]) >= 1.0);
        assert_eq!(errors(&metrics, "i2", "tls"), 0.0, "{why}");
        assert!(metrics.sum("sim_proxy_retries_total", &["\"tls\""]) >= 1.0);
        // With nobody else there is no answer but this.
        control
            .publish(&table(1, 2, &[(1, ups[0].address, 10_000, true)]))
            .await;
        assert_eq!(
            both_ways(&world).await,
            [StatusCode::BAD_GATEWAY; 2],
            "{why}"
        );
        assert_eq!(ups[0].counts.requests(), 0, "{why}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_in_the_clear_gets_nothing_where_it_has_to_be_tls() {
    let authority = Authority::new();
    let (world, mut control) = World::start_with(&[(INSTANCE_TLS, &setting(&authority))]);
    let up = Upstream::start("i1").await;
    control
        .publish(&table(1, 1, &[(1, up.address, 10_000, true)]))
        .await;
    assert_eq!(both_ways(&world).await, [StatusCode::BAD_GATEWAY; 2]);
    assert_eq!(up.counts.requests(), 0);
    assert!(errors(&world.metrics().await, "i1", "tls") >= 2.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn instances_that_ask_for_a_certificate_are_shown_ours() {
    let (authority, clients) = (Authority::new(), Authority::new());
    let files = authority.sign("web", &[NAME]);
    let own = clients.sign("proxy", &["proxy.example"]);
    let shown = format!(
        "{},{},{}",
        setting(&authority),
        own.chain.display(),
        own.key.display()
    );
    // With 1.3 a refusal comes after the handshake.
    for version in rustls::ALL_VERSIONS {
        let tls = Authority::server_of(&[version], &files, Some(&clients), ANY);
        let up = Upstream::start_secured("i1", tls).await;
        let lines = [(1, up.address, 10_000, true)];
        for (setting, protocol, expected) in [
            (shown.clone(), "http1", StatusCode::OK),
            (shown.clone(), "h2", StatusCode::OK),
            (setting(&authority), "http1", StatusCode::BAD_GATEWAY),
            (setting(&authority), "h2", StatusCode::BAD_GATEWAY),
        ] {
            let settings = [(INSTANCE_TLS, &*setting), (PROTOCOL, protocol)];
            let (world, mut control) = World::start_with(&settings);
            control.publish(&table(1, 1, &lines)).await;
            assert_eq!(both_ways(&world).await, [expected; 2]);
            let metrics = world.metrics().await;
            let refused = expected != StatusCode::OK;
            // Who closes with something unread may overtake its own word why.
            let classes: &[&str] = match protocol {
                "h2" => &["tls", "connect", "reset"],
                _ => &["tls"],
            };
            let found: f64 = classes
                .iter()
                .map(|class| errors(&metrics, "i1", class))
                .sum();
            assert_eq!(found > 0.0, refused, "{metrics:?}");
            let expiry = "sim_proxy_tls_client_certificate_expiry_timestamp_seconds";
            assert_eq!(metrics.has(expiry), !refused);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_that_change_are_in_force_and_connections_of_before_serve_no_more() {
    let (old, new) = (Authority::new(), Authority::new());
    let (ca, setting) = (old.file(), setting(&old));
    let (world, mut control) = World::start_with(&[(INSTANCE_TLS, &setting)]);
    let ups = [good("i1", &old).await, good("i2", &new).await];
    control.publish(&pair(1, &ups, 10_000)).await;
    assert_eq!(both_ways(&world).await, [StatusCode::OK; 2]);
    let reloads = |m: &Metrics, result: &str| {
        let result = format!("\"{result}\"");
        m.sum("sim_proxy_tls_reloads_total", &["upstream", "web", &result])
    };
    std::fs::write(&ca, "no certificate").expect("written");
    world.wait_for(|m| reloads(m, "failed") >= 1.0).await;
    assert_eq!(world.client().get("/").await, (StatusCode::OK, "i1".into()));
    std::fs::copy(new.file(), &ca).expect("written");
    let user = world.client();
    let (mut general, _connection) = http2::User::connect(&world).await;
    // Connections stay busy all the time, so that none is given up for being idle.
    while user.get("/").await.1 != "i2" || general.get("/").await.expect("an answer").1 != "i2" {}
    let before = ups[0].counts.requests();
    for _ in 0..20 {
        assert_eq!(user.get("/").await, (StatusCode::OK, "i2".into()));
        let answer = general.get("/").await.expect("an answer");
        assert_eq!(answer, (StatusCode::OK, "i2".into()));
    }
    assert_eq!(ups[0].counts.requests(), before);
    world.wait_for(|m| reloads(m, "ok") >= 1.0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn checks_and_copies_go_over_tls_as_well() {
    let authority = Authority::new();
    let mirror = good("mirror", &authority).await;
    let to = format!("{}@10000", mirror.address);
    let settings = [
        (INSTANCE_TLS, &*setting(&authority)),
        (CHECK, "http:/:20"),
        (MIRROR, &to),
    ];
    let (world, mut control) = World::start_with(&settings);
    let files = authority.sign("bad", &["other.example"]);
    let bad = Upstream::start_secured("i2", Authority::server(&files, None, ANY)).await;
    let ups = [good("i1", &authority).await, bad];
    control.publish(&pair(1, &ups, 5_000)).await;
    // Found by its checks, without a request.
    let metrics = world
        .wait_for(|m| {
            let passed = m.sum("sim_proxy_checks_total", &["i1", "passed"]);
            m.sum("sim_proxy_check_out", &["i2"]) == 1.0 && passed >= 1.0
        })
        .await;
    // Nor can it be, since it is the last one.
    assert_eq!(metrics.sum("sim_proxy_check_out", &["i1"]), 0.0);
    assert_eq!(metrics.sum("sim_proxy_requests_total", &[]), 0.0);
    let user = world.client();
    for _ in 0..20 {
        assert_eq!(user.get("/").await, (StatusCode::OK, "i1".into()));
    }
    world
        .wait_for(|m| m.sum("sim_proxy_mirror_answers_total", &["2xx"]) == 20.0)
        .await;
    assert_eq!(mirror.counts.copies(), 20);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_for_who_it_may_not_go_to_is_lost_and_counted() {
    let (authority, other) = (Authority::new(), Authority::new());
    let mirror = good("mirror", &other).await;
    let to = format!("{}@10000", mirror.address);
    let settings = [(INSTANCE_TLS, &*setting(&authority)), (MIRROR, &to)];
    let (world, mut control) = World::start_with(&settings);
    let up = good("i1", &authority).await;
    control
        .publish(&table(1, 1, &[(1, up.address, 10_000, true)]))
        .await;
    assert_eq!(world.client().get("/").await.0, StatusCode::OK);
    world
        .wait_for(|m| m.sum("sim_proxy_mirror_failed_total", &["\"tls\""]) == 1.0)
        .await;
    assert_eq!(mirror.counts.copies(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_one_costs_no_get_over_tls() {
    let authority = Authority::new();
    let (world, mut control) = World::start_with(&[(INSTANCE_TLS, &setting(&authority))]);
    let [first, second] = [good("i1", &authority).await, good("i2", &authority).await];
    let lines = [
        (1, first.address, 9_000, true),
        (2, second.address, 1_000, true),
    ];
    control.publish(&table(1, 1, &lines)).await;
    let load = Load::start(&world, 8, &Method::GET);
    load.run(500).await;
    first.kill().await;
    load.run(500).await;
    let (sent, failed) = load.end().await;
    assert_eq!(failed, 0, "of {sent}");
    let metrics = world.metrics().await;
    assert!(metrics.sum("sim_proxy_ejections_total", &["i1"]) >= 1.0);
    assert!(second.counts.requests() >= 500);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_hangs_is_overtaken_over_tls() {
    let authority = Authority::new();
    let settings = [
        (INSTANCE_TLS, &*setting(&authority)),
        (HEDGE_QUANTILE, "0.99"),
    ];
    let (world, mut control) = World::start_with(&settings);
    let ups = [good("i1", &authority).await, good("i2", &authority).await];
    control.publish(&pair(1, &ups, 10_000)).await;
    let load = Load::start(&world, 2, &Method::GET);
    load.run(500).await;
    assert_eq!(load.end().await.1, 0);
    world
        .wait_for(|metrics| metrics.has("sim_proxy_overdue_after_seconds"))
        .await;
    ups[0].counts.stall(true);
    for _ in 0..10 {
        let answer = world.client().get("/").await;
        assert_eq!(answer, (StatusCode::OK, "i2".into()));
    }
    let metrics = world.metrics().await;
    assert!(metrics.sum("sim_proxy_retries_total", &["hedge"]) >= 1.0);
}

/// An instance whose answer ends with its connection; it says goodbye for `/whole`, and not for others.
async fn closing(listener: TcpListener, tls: TlsAcceptor) {
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.expect("accept");
        let tls = tls.clone();
        connections.spawn(async move {
            let mut stream = tls.accept(stream).await.expect("a handshake");
            let mut asked = Vec::new();
            while !asked.ends_with(b"\r\n\r\n") {
                stream.read_buf(&mut asked).await.expect("a request");
            }
            let answer = b"HTTP/1.1 200 OK\r\n\r\nsome";
            stream.write_all(answer).await.expect("sent");
            stream.flush().await.expect("sent");
            if asked.starts_with(b"GET /whole ") {
                stream.shutdown().await.expect("sent");
            }
        });
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_ends_without_a_goodbye_of_tls_does_not_look_whole() {
    let authority = Authority::new();
    // A user in the clear has no way to tell.
    let settings = [(INSTANCE_TLS, &*setting(&authority))];
    let (world, mut control) = World::start_by(Way::tls(), &settings);
    let files = authority.sign("web", &[NAME]);
    let tls = Authority::server(&files, None, &[b"http/1.1"]);
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    let serving = tokio::spawn(closing(listener, tls.into()));
    let lines = [(1, address, 10_000, true)];
    control.publish(&table(1, 1, &lines)).await;
    let user = world.client();
    let (mut general, _connection) = http2::User::connect(&world).await;
    assert_eq!(user.get("/whole").await, (StatusCode::OK, "some".into()));
    let answer = general.get("/whole").await.expect("an answer");
    assert_eq!(answer, (StatusCode::OK, "some".into()));
    let cut = |m: &Metrics| m.sum("sim_proxy_requests_ended_total", &["failed"]);
    assert_eq!(cut(&world.settled().await), 0.0);
    user.send(Method::GET, "/cut", "")
        .await
        .expect_err("not whole");
    general.get("/cut").await.expect_err("not whole");
    world.wait_for(|m| cut(m) == 2.0).await;
    serving.abort();
}
