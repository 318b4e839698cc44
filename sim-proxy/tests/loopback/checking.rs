//! Instances that are asked whether they are well.

use crate::process::CHECK;
use crate::upstream::Upstream;
use crate::world::{PATIENCE, World};
use hyper::StatusCode;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_fails_its_checks_is_left_alone_without_a_request_and_comes_back() {
    let settings = [(CHECK, "http:/:20")];
    let (world, _control, ups) = World::with_two_and(10_000, &settings).await;
    world
        .wait_for(|m| m.sum("sim_proxy_checks_total", &["i1", "passed"]) >= 3.0)
        .await;
    ups[0].counts.stall(true);
    let metrics = world
        .wait_for(|m| {
            let is_out = |family| m.sum(family, &["i1"]) == 1.0;
            is_out("sim_proxy_check_out") && is_out("sim_proxy_ejected")
        })
        .await;
    assert!(metrics.sum("sim_proxy_checks_total", &["i1", "failed"]) >= 2.0);
    assert_eq!(metrics.sum("sim_proxy_requests_total", &[]), 0.0);
    // The warm shadow has everything.
    let user = world.client();
    for _ in 0..10 {
        assert_eq!(user.get("/").await, (StatusCode::OK, "i2".into()));
    }
    ups[0].counts.stall(false);
    world
        .wait_for(|m| m.sum("sim_proxy_check_out", &["i1"]) == 0.0)
        .await;
    let back = async { while user.get("/").await.1 != "i1" {} };
    tokio::time::timeout(PATIENCE, back)
        .await
        .expect("it gets requests again");
    let metrics = world.metrics().await;
    assert!(metrics.sum("sim_proxy_check_falls_total", &["i1"]) >= 1.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_one_that_is_in_stays_whatever_its_checks_say() {
    // Nothing here answers this path with what is asked for.
    let settings = [(CHECK, "http:/status/500:20")];
    let (world, _control, ups) = World::with_two_and(5_000, &settings).await;
    let metrics = world
        .wait_for(|m| {
            let failed = |id| m.sum("sim_proxy_checks_total", &[id, "failed"]);
            failed("i1") >= 10.0 && failed("i2") >= 10.0
        })
        .await;
    let out = |id| metrics.sum("sim_proxy_check_out", &[id]);
    assert_eq!(out("i1") + out("i2"), 1.0);
    let user = world.client();
    for _ in 0..10 {
        assert_eq!(user.get("/").await.0, StatusCode::OK);
    }
    // The checks came, and the requests.
    assert!(ups[0].counts.requests() + ups[1].counts.requests() >= 20);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_passed_check_ends_an_ejection_that_no_request_could() {
    let settings = [(CHECK, "http:/:1000")];
    let (world, _control, [mut first, _second]) = World::with_two_and(10_000, &settings).await;
    let user = world.client();
    let address = first.address;
    loop {
        first.kill().await;
        assert_eq!(user.get("/").await, (StatusCode::OK, "i2".into()));
        let metrics = world.settled().await;
        if metrics.sum("sim_proxy_ejections_total", &["i1"]) >= 1.0 {
            break;
        }
        // Its checks were quicker than the request, where the machine paused.
        first = Upstream::start_on("i1", address).await;
        world
            .wait_for(|m| m.sum("sim_proxy_check_out", &["i1"]) == 0.0)
            .await;
    }
    let metrics = world
        .wait_for(|m| m.sum("sim_proxy_check_out", &["i1"]) == 1.0)
        .await;
    let asked = metrics.sum("sim_proxy_requests_total", &[]);
    let _back = Upstream::start_on("i1", address).await;
    let metrics = world
        .wait_for(|m| m.sum("sim_proxy_ejected", &["i1"]) == 0.0)
        .await;
    assert_eq!(metrics.sum("sim_proxy_requests_total", &[]), asked);
    assert_eq!(metrics.sum("sim_proxy_check_out", &["i1"]), 0.0);
}
