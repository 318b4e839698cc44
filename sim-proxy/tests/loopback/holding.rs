//! A workload of which no two instances may run at once, as it is moved.

use crate::process::HOLD;
use crate::upstream::Upstream;
use crate::world::{Load, PATIENCE, World, table};
use hyper::{Method, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_switch_by_way_of_nobody_loses_nothing_and_no_two_are_asked_at_once() {
    let (world, mut control) = World::start_with(&[(HOLD, "1000:60000")]);
    let (first, second) = (Upstream::start("i1").await, Upstream::start("i2").await);
    control
        .publish(&table(1, 1, &[(1, first.address, 10_000, true)]))
        .await;
    let load = Load::start(&world, 16, &Method::POST);
    load.run(500).await;
    let none = [(1, first.address, 0, false)];
    control.publish(&table(1, 2, &none)).await;
    // As the control plane waits for it before it stops the first one.
    let drained = |report: &sim_api::v1::ProxyReport| {
        let generation = report.applied.as_ref().map_or(0, |v| v.generation);
        generation == 2 && report.instances.iter().all(|i| i.in_flight == 0)
    };
    control.report(drained).await;
    // And one on the general path.
    let mut general = TcpStream::connect(world.proxy).await.expect("connected");
    let request = b"GET / HTTP/1.0\r\nHost: a\r\n\r\n";
    general.write_all(request).await.expect("sent");
    let metrics = world
        .wait_for(|m| m.sum("sim_proxy_held", &[]) == 17.0)
        .await;
    assert_eq!(metrics.sum("sim_proxy_in_flight", &[]), 0.0);
    let (by_first, by_second) = (first.counts.requests(), second.counts.requests());
    assert_eq!(by_second, 0);

    control
        .publish(&table(1, 3, &[(2, second.address, 10_000, true)]))
        .await;
    load.run(500).await;
    let (sent, failed) = load.end().await;
    assert_eq!(failed, 0, "of {sent}");
    let mut answer = String::new();
    let read = timeout(PATIENCE, general.read_to_string(&mut answer));
    read.await.expect("in time").expect("readable");
    assert!(answer.ends_with("\r\n\r\ni2"), "{answer}");
    assert_eq!(first.counts.requests(), by_first);
    assert_eq!(first.counts.requests() + second.counts.requests(), sent + 1);
    let metrics = world.settled().await;
    assert_eq!(metrics.sum("sim_proxy_held_total", &["released"]), 17.0);
    assert_eq!(metrics.sum("sim_proxy_held", &[]), 0.0);
    assert_eq!(metrics.sum("sim_proxy_no_instance_total", &[]), 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beyond_what_may_wait_and_for_how_long_there_is_a_503_that_says_when_to_come_again() {
    // One waits for ever and is in the way of the next, and one for as long as it may.
    for (setting, outcome) in [("1:600000", "full"), ("1:200", "expired")] {
        let (world, mut control) = World::start_with(&[(HOLD, setting)]);
        let up = Upstream::start("i1").await;
        control
            .publish(&table(1, 1, &[(1, up.address, 0, false)]))
            .await;
        let waiting = async {
            let mut waiting = TcpStream::connect(world.proxy).await.expect("connected");
            let request = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
            waiting.write_all(request).await.expect("sent");
            world
                .wait_for(|m| m.sum("sim_proxy_held", &[]) == 1.0)
                .await;
            waiting
        };
        let waiting = match outcome {
            "full" => Some(waiting.await),
            _ => None,
        };
        for version in ["1.1", "1.0"] {
            let mut user = TcpStream::connect(world.proxy).await.expect("connected");
            let request = format!("GET / HTTP/{version}\r\nHost: a\r\n\r\n");
            user.write_all(request.as_bytes()).await.expect("sent");
            let mut answer = String::new();
            user.read_to_string(&mut answer).await.expect("an answer");
            assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
            assert!(answer.contains("\r\nRetry-After: 1\r\n"), "{answer}");
        }
        drop(waiting);
        let metrics = world.settled().await;
        assert_eq!(metrics.sum("sim_proxy_held_total", &[outcome]), 2.0);
        assert_eq!(metrics.sum("sim_proxy_no_instance_total", &[]), 2.0);
        assert_eq!(metrics.sum("sim_proxy_held", &[]), 0.0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_leaves_gives_the_place_to_the_next() {
    let (world, mut control) = World::start_with(&[(HOLD, "1:60000")]);
    let up = Upstream::start("i1").await;
    control
        .publish(&table(1, 1, &[(1, up.address, 0, false)]))
        .await;
    let mut leaving = TcpStream::connect(world.proxy).await.expect("connected");
    let request = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    leaving.write_all(request).await.expect("sent");
    world
        .wait_for(|m| m.sum("sim_proxy_held", &[]) == 1.0)
        .await;
    drop(leaving);
    world
        .wait_for(|m| m.sum("sim_proxy_held_total", &["left"]) == 1.0)
        .await;
    let user = world.client();
    let staying = tokio::spawn(async move { user.get("/").await });
    world
        .wait_for(|m| m.sum("sim_proxy_held", &[]) == 1.0)
        .await;
    control
        .publish(&table(1, 2, &[(1, up.address, 10_000, true)]))
        .await;
    let answer = staying.await.expect("no panic");
    assert_eq!(answer, (StatusCode::OK, "i1".into()));
    let metrics = world.settled().await;
    assert_eq!(
        metrics.sum("sim_proxy_requests_ended_total", &["aborted"]),
        1.0
    );
}
