//! Tables, shares, reports, metrics.

use crate::control::{Control, applied};
use crate::secure::{Way, each_way};
use crate::world::{Load, PATIENCE, World, pair, table};
use hyper::{Method, StatusCode};
use sim_api::v1::ProxyReport;
use sim_core::table::Version;
use std::time::Duration;

each_way! {
    a_new_table_rules_from_its_acknowledgement_on_and_fails_nothing
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shares_of_the_table_are_met_over_2000_requests() {
    let (world, _control, ups) = World::with_two(9_500).await;
    let load = Load::start(&world, 8, &Method::GET);
    load.run(2_000).await;
    let (sent, failed) = load.end().await;
    assert_eq!(failed, 0);
    let (second, due) = (ups[1].counts.requests() as f64, sent as f64 * 0.05);
    assert_eq!(ups[0].counts.requests() + ups[1].counts.requests(), sent);
    // Two workers, each even to within 6.
    assert!((second - due).abs() <= 12.0, "{second} of {sent}");
}

async fn a_new_table_rules_from_its_acknowledgement_on_and_fails_nothing(way: Way) {
    let (world, mut control, ups) = World::with_two_by(way, 9_500, &[]).await;
    let load = Load::start(&world, 8, &Method::POST);
    load.run(200).await;
    for generation in 2..=30 {
        let first_bp = if generation % 2 == 0 { 0 } else { 10_000 };
        control.publish(&pair(generation, &ups, first_bp)).await;
        load.run(20).await;
    }
    control.publish(&pair(31, &ups, 0)).await;
    load.run(50).await;
    let (sent, failed) = load.end().await;
    assert_eq!(failed, 0, "of {sent}");
    let before = ups[0].counts.requests();
    for _ in 0..200 {
        assert_eq!(world.client().get("/").await.1, "i2");
    }
    assert_eq!(ups[0].counts.requests(), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_that_is_not_ready_gets_nothing_even_when_all_else_fails() {
    let (world, mut control, [first, second]) = World::with_two(10_000).await;
    let lines = [
        (1, first.address, 10_000, true),
        (2, second.address, 0, false),
    ];
    control.publish(&table(1, 2, &lines)).await;
    let user = world.client();
    assert_eq!(user.get("/").await, (StatusCode::OK, "i1".into()));
    first.kill().await;
    for _ in 0..20 {
        assert_eq!(user.get("/").await.0, StatusCode::BAD_GATEWAY);
    }
    assert_eq!(second.counts.requests(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_table_it_says_503_and_is_not_ready() {
    let (world, mut control) = World::start();
    control.report(|_| true).await;
    let (status, body) = world.client().get("/").await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(
        body,
        "503 Service Unavailable: no instance of the service can take the request\n"
    );
    assert_eq!(world.ready().await, StatusCode::SERVICE_UNAVAILABLE);
    let upstream = crate::upstream::Upstream::start("i1").await;
    control
        .publish(&table(1, 1, &[(1, upstream.address, 10_000, true)]))
        .await;
    assert_eq!(world.ready().await, StatusCode::OK);
    assert_eq!(world.client().get("/").await.0, StatusCode::OK);
    assert_eq!(
        world
            .metrics()
            .await
            .sum("sim_proxy_no_instance_total", &[]),
        1.0
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_serves_by_the_last_table_while_control_is_away_and_refuses_an_older_one_after() {
    let (world, mut control, ups) = World::with_two(0).await;
    control.publish(&pair(5, &ups, 0)).await;
    drop(control);
    let lost = world
        .wait_for(|m| m.sum("sim_proxy_control_connected", &[]) == 0.0)
        .await;
    assert_eq!(lost.sum("sim_proxy_table_generation", &[]), 5.0);
    for _ in 0..100 {
        assert_eq!(world.client().get("/").await, (StatusCode::OK, "i2".into()));
    }
    let mut control = Control::start(&world.socket);
    // What happened meanwhile is not lost.
    let caught_up = control.report(|r| r.arrivals >= 100).await;
    assert_eq!(
        applied(&caught_up),
        Version {
            epoch: 1,
            generation: 5
        }
    );
    control.send_raw((&pair(4, &ups, 10_000)).into());
    world
        .wait_for(|m| m.sum("sim_proxy_tables_refused_total", &["older"]) == 1.0)
        .await;
    assert_eq!(world.client().get("/").await.1, "i2");
    control.send_raw(sim_api::v1::RoutingTable::default());
    world
        .wait_for(|m| m.sum("sim_proxy_tables_refused_total", &["malformed"]) == 1.0)
        .await;
    control.publish(&pair(6, &ups, 10_000)).await;
    assert_eq!(world.client().get("/").await.1, "i1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_request_is_accounted_for_in_metrics_and_reports() {
    let (world, mut control, ups) = World::with_two(5_000).await;
    let load = Load::start(&world, 4, &Method::GET);
    load.run(500).await;
    control.publish(&pair(2, &ups, 0)).await;
    load.run(100).await;
    let (sent, failed) = load.end().await;
    assert_eq!(failed, 0);
    for _ in 0..3 {
        assert_eq!(
            world.client().get("/status/500").await.0,
            StatusCode::INTERNAL_SERVER_ERROR
        );
    }
    let total = (sent + 3) as f64;
    let metrics = world.settled().await;
    let ended = |outcome: &str| metrics.sum("sim_proxy_requests_ended_total", &[outcome]);
    assert_eq!(metrics.sum("sim_proxy_requests_total", &[]), total);
    assert_eq!((ended("ok"), ended("failed")), (sent as f64, 3.0));
    assert_eq!(metrics.sum("sim_proxy_requests_ended_total", &[]), total);
    assert_eq!(metrics.sum("sim_proxy_attempts_total", &["first"]), total);
    assert_eq!(
        metrics.sum("sim_proxy_request_duration_seconds_count", &[]),
        total
    );
    assert_eq!(metrics.sum("sim_proxy_in_flight", &[]), 0.0);
    assert_eq!(metrics.sum("sim_proxy_weight_ratio", &["i2"]), 1.0);
    assert!(metrics.sum("sim_proxy_last_pick_monotonic_seconds", &["i2"]) > 0.0);

    let due = sent + 3;
    let told = async {
        loop {
            let told = sums(&control.reports());
            if told.contains(&due) && told.iter().min() == Some(&due) {
                return told;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let told = tokio::time::timeout(PATIENCE, told).await;
    assert_eq!(told, Ok([due; 3]), "{:?}", sums(&control.reports()));
}

/// Arrivals, ends and latencies told in all.
fn sums(reports: &[ProxyReport]) -> [u64; 3] {
    let lines = || reports.iter().flat_map(|report| &report.instances);
    [
        reports.iter().map(|report| report.arrivals).sum(),
        lines().map(|line| line.ok + line.failed).sum(),
        lines().flat_map(|line| &line.latency_counts).sum(),
    ]
}
