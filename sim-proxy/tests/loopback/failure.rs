//! What users notice of failing instances: as little as can be.

use crate::process::{EJECT_MS, READ_TIMEOUT_MS, SLOW_START_MS};
use crate::raw::ask;
use crate::secure::{Way, each_way};
use crate::upstream::Upstream;
use crate::world::{Load, Metrics, World, table};
use hyper::{Method, StatusCode};
use std::time::{Duration, Instant};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

each_way! {
    a_killed_instance_costs_no_get_and_is_ejected
    a_warm_shadow_without_weight_takes_over_at_once
    an_instance_that_is_back_gets_its_share_again_after_one_probe
    a_post_whose_body_may_have_been_acted_on_is_never_sent_twice
    an_idempotent_request_is_sent_to_the_other_instance_once_and_no_further
    a_request_goes_to_an_ejected_instance_before_it_fails
    a_post_that_was_never_sent_goes_to_the_other_instance
    an_instance_that_hangs_is_given_up_and_the_other_asked
    answers_of_500_eject_after_five_in_a_row_and_are_passed_on
    a_stop_closes_who_is_idle_and_lets_requests_in_flight_end
}

async fn a_killed_instance_costs_no_get_and_is_ejected(way: Way) {
    let (world, _control, [first, second]) = World::with_two_by(way, 9_500, &[]).await;
    let load = Load::start(&world, 16, &Method::GET);
    load.run(1_000).await;
    first.kill().await;
    load.run(1_000).await;
    let (sent, failed) = load.end().await;
    assert_eq!(failed, 0, "of {sent}");
    let metrics = world.metrics().await;
    assert!(metrics.sum("sim_proxy_retries_total", &[]) >= 1.0);
    assert!(metrics.sum("sim_proxy_ejections_total", &["i1"]) >= 1.0);
    assert_eq!(metrics.sum("sim_proxy_ejected", &["i1"]), 1.0);
    assert_eq!(metrics.sum("sim_proxy_ejections_total", &["i2"]), 0.0);
    assert!(second.counts.requests() >= 1_000);
}

async fn a_warm_shadow_without_weight_takes_over_at_once(way: Way) {
    let (world, _control, [first, second]) = World::with_two_by(way, 10_000, &[]).await;
    let load = Load::start(&world, 8, &Method::GET);
    load.run(200).await;
    assert_eq!(second.counts.requests(), 0);
    first.kill().await;
    load.run(500).await;
    assert_eq!(load.end().await.1, 0);
    // Of each user one may have been answered by the first, and heard of it later.
    assert!(second.counts.requests() >= 500 - 8);
}

async fn an_instance_that_is_back_gets_its_share_again_after_one_probe(way: Way) {
    let settings = [(SLOW_START_MS, "0")];
    let (world, _control, [first, _second]) = World::with_two_by(way, 9_500, &settings).await;
    let address = first.address;
    let load = Load::start(&world, 4, &Method::GET);
    load.run(100).await;
    first.kill().await;
    world
        .wait_for(|m| m.sum("sim_proxy_ejected", &["i1"]) == 1.0)
        .await;
    let back = Upstream::start_on("i1", address).await;
    world
        .wait_for(|m| m.sum("sim_proxy_ejected", &["i1"]) == 0.0)
        .await;
    load.run(200).await;
    assert_eq!(load.end().await.1, 0);
    assert!(back.counts.requests() >= 160);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_that_is_back_begins_with_a_part_of_its_share() {
    let settings = [(SLOW_START_MS, "600000")];
    let (world, _control, [first, second]) = World::with_two_and(9_500, &settings).await;
    let address = first.address;
    let load = Load::start(&world, 4, &Method::GET);
    load.run(100).await;
    first.kill().await;
    world
        .wait_for(|m| m.sum("sim_proxy_ejected", &["i1"]) == 1.0)
        .await;
    let back = Upstream::start_on("i1", address).await;
    let metrics = world
        .wait_for(|m| m.sum("sim_proxy_ejected", &["i1"]) == 0.0)
        .await;
    let part = metrics.sum("sim_proxy_slow_start_ratio", &["i1"]);
    assert!((0.1..0.11).contains(&part), "{part}");
    let before = (back.counts.requests(), second.counts.requests());
    load.run(1_000).await;
    assert_eq!(load.end().await.1, 0);
    let own = back.counts.requests() - before.0;
    let others = second.counts.requests() - before.1;
    let share = own as f64 / (own + others) as f64;
    assert!((0.08..0.12).contains(&share), "{share}");
}

async fn a_post_whose_body_may_have_been_acted_on_is_never_sent_twice(way: Way) {
    let (world, _control, ups) = World::with_two_by(way, 10_000, &[]).await;
    let user = world.client();
    let swallowed = || ups.iter().map(|up| up.counts.swallowed()).sum::<u64>();
    for round in 1..=10 {
        // Every other round over a connection that served before.
        if round % 2 == 0 {
            assert_eq!(user.get("/").await.0, StatusCode::OK);
        }
        let answer = user
            .send(Method::POST, "/swallow", "a payment")
            .await
            .expect("an answer");
        assert_eq!(answer.0, StatusCode::BAD_GATEWAY);
        assert_eq!(swallowed(), round);
    }
    assert_eq!(
        world.metrics().await.sum("sim_proxy_retries_total", &[]),
        0.0
    );
}

async fn an_idempotent_request_is_sent_to_the_other_instance_once_and_no_further(way: Way) {
    let (world, _control, ups) = World::with_two_by(way, 10_000, &[]).await;
    let answer = world
        .client()
        .send(Method::PUT, "/swallow", "a")
        .await
        .expect("an answer");
    assert_eq!(answer.0, StatusCode::BAD_GATEWAY);
    assert_eq!(
        (ups[0].counts.swallowed(), ups[1].counts.swallowed()),
        (1, 1)
    );
}

async fn a_request_goes_to_an_ejected_instance_before_it_fails(way: Way) {
    let (world, _control, [first, second]) = World::with_two_by(way, 5_000, &[]).await;
    let client = world.client();
    let address = second.address;
    // Connections to both wait for their next request.
    for _ in 0..20 {
        assert_eq!(client.get("/").await.0, StatusCode::OK);
    }
    second.kill().await;
    loop {
        assert_eq!(client.get("/").await.0, StatusCode::OK);
        let ejected = world.metrics().await;
        if ejected.sum("sim_proxy_ejections_total", &["i2"]) > 0.0 {
            break;
        }
    }
    // It is back, and its ejection isn't over.
    let _second = Upstream::start_on("i2", address).await;
    first.kill().await;
    for _ in 0..5 {
        let (status, by) = client.get("/").await;
        assert_eq!((status, &*by), (StatusCode::OK, &b"i2"[..]));
    }
}

async fn a_post_that_was_never_sent_goes_to_the_other_instance(way: Way) {
    let (world, _control, [first, second]) = World::with_two_by(way, 10_000, &[]).await;
    first.kill().await;
    let body = "x".repeat(200_000);
    let answer = world
        .client()
        .send(Method::POST, "/echo", body.clone())
        .await
        .expect("an answer");
    assert_eq!(answer.0, StatusCode::OK, "{:#?}", world.metrics().await);
    assert_eq!(answer.1, body);
    assert_eq!(second.counts.requests(), 1);
}

async fn an_instance_that_hangs_is_given_up_and_the_other_asked(way: Way) {
    let settings = [(READ_TIMEOUT_MS, "300")];
    let (world, _control, _ups) = World::with_two_by(way, 10_000, &settings).await;
    let begun = Instant::now();
    assert_eq!(
        world.client().get("/hang").await.0,
        StatusCode::GATEWAY_TIMEOUT
    );
    assert!(
        begun.elapsed() >= Duration::from_millis(550),
        "both were asked"
    );
    let metrics = world.settled().await;
    // By the proxy's count: the instances may have had no time to look at what they were sent.
    for asked in [["i1", "first"], ["i2", "retry"]] {
        let failed = [&asked[..], &["failed"]].concat();
        assert_eq!(metrics.sum("sim_proxy_attempts_total", &asked), 1.0);
        assert_eq!(metrics.sum("sim_proxy_attempts_total", &failed), 1.0);
    }
    assert_eq!(metrics.sum("sim_proxy_retries_total", &["timeout"]), 1.0);
    assert_eq!(metrics.sum("sim_proxy_errors_total", &["upstream"]), 1.0);
}

async fn answers_of_500_eject_after_five_in_a_row_and_are_passed_on(way: Way) {
    // Or the next request would be the one that finds out whether it is back, if it comes later than in half a second.
    let settings = [(EJECT_MS, "600000")];
    let (world, _control, ups) = World::with_two_by(way, 10_000, &settings).await;
    let user = world.client();
    for _ in 0..5 {
        assert_eq!(
            user.get("/status/503").await,
            (StatusCode::SERVICE_UNAVAILABLE, "i1".into())
        );
    }
    assert_eq!(user.get("/").await.1, "i2");
    assert_eq!(ups[0].counts.requests(), 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_kind_of_error_is_counted_at_its_instance() {
    let (world, _control, [first, second]) = World::with_two(10_000).await;
    let user = world.client();
    user.get("/status/404").await;
    user.get("/status/500").await;
    user.send(Method::POST, "/swallow", "x")
        .await
        .expect("an answer");
    let general = [("/status/410", "410"), ("/status/501", "501")];
    for (path, status) in general {
        let mut user = TcpStream::connect(world.proxy).await.expect("connected");
        let request = format!("GET {path} HTTP/1.0\r\nHost: a\r\n\r\n");
        let answer = ask(&mut user, &request, "").await;
        assert_eq!(answer.split(' ').nth(1), Some(status), "{answer}");
    }
    first.kill().await;
    assert_eq!(user.get("/").await, (StatusCode::OK, "i2".into()));
    let count_on = |metrics: &Metrics, id: &str, class: &str| {
        let class = format!("class=\"{class}\"");
        metrics.sum("sim_proxy_instance_errors_total", &[id, &class])
    };
    // A page may be of a moment before the last of them.
    let metrics = world.wait_for(|m| {
        let answered = ["4xx", "5xx"].map(|class| count_on(m, "i1", class));
        m.has("sim_proxy_latency_seconds") && answered == [2.0, 2.0]
    });
    let metrics = metrics.await;
    let count = |id: &str, class: &str| count_on(&metrics, id, class);
    // The one that swallowed, and the idle connections of those that were there before.
    assert!(count("i1", "reset") >= 1.0, "{metrics:?}");
    let broken = count("i1", "connect") + count("i1", "reset");
    let retried = metrics.sum("sim_proxy_retries_total", &[]);
    assert_eq!(broken, retried + 1.0, "{metrics:?}");
    assert_eq!(metrics.sum("sim_proxy_instance_errors_total", &["i2"]), 0.0);
    assert_eq!(second.counts.requests(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_one_instance_a_stale_connection_costs_no_get() {
    let (world, mut control) = World::start();
    let up = Upstream::start("i1").await;
    control
        .publish(&table(1, 1, &[(1, up.address, 10_000, true)]))
        .await;
    let user = world.client();
    for _ in 0..20 {
        assert_eq!(user.get("/").await.0, StatusCode::OK);
        // Kept by the proxy, then reset by the instance in the middle of an answer.
        assert_eq!(
            user.send(Method::PUT, "/swallow", "")
                .await
                .expect("an answer")
                .0,
            502
        );
    }
    assert_eq!(
        world.metrics().await.sum("sim_proxy_ejections_total", &[]),
        0.0
    );
}

async fn a_stop_closes_who_is_idle_and_lets_requests_in_flight_end(way: Way) {
    let (world, _control, ups) = World::with_two_by(way, 10_000, &[]).await;
    let user = world.client();
    assert_eq!(user.get("/").await.0, StatusCode::OK);
    let mut idle = world.wire().await;
    ups[0].counts.stall(true);
    let slow = tokio::spawn({
        let user = user.clone();
        async move { user.get("/").await }
    });
    while ups[0].counts.requests() < 2 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let stopped = tokio::spawn(world.terminate());
    // While the other one has no answer yet.
    assert_eq!(idle.read(&mut [0]).await.unwrap_or_default(), 0);
    assert!(!slow.is_finished() && !stopped.is_finished());
    ups[0].counts.stall(false);
    assert_eq!(slow.await.expect("no panic"), (StatusCode::OK, "i1".into()));
    assert!(stopped.await.expect("no panic").success());
    for leftover in ["/tmp/pingora.pid", "/tmp/pingora_upgrade.sock"] {
        assert!(!std::path::Path::new(leftover).exists());
    }
}
