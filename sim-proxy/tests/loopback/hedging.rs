//! Instances that take requests and answer none, of which no kernel and no socket tells.

use crate::control::Control;
use crate::upstream::Upstream;
use crate::world::{Load, World};
use hyper::{Method, StatusCode};
use std::time::Duration;
use tokio::time::{sleep, timeout};

/// Long after an answer has become overdue here.
const LONG: Duration = Duration::from_millis(400);

/// Two instances, of which the first has all the requests, and has had enough of them for a quantile.
async fn known_pace() -> (World, Control, [Upstream; 2]) {
    let (world, control, ups) = World::with_two(10_000).await;
    let load = Load::start(&world, 2, &Method::GET);
    load.run(500).await;
    assert_eq!(load.end().await.1, 0);
    world
        .wait_for(|metrics| metrics.has("sim_proxy_overdue_after_seconds"))
        .await;
    (world, control, ups)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_too_long_is_answered_elsewhere_and_a_hung_instance_is_left_alone() {
    let (world, _control, ups) = known_pace().await;
    let user = world.client();
    ups[0].counts.stall(true);
    // It would be an hour without hedging: nothing is closed, and nothing says that it hangs.
    for _ in 0..10 {
        assert_eq!(user.get("/").await, (StatusCode::OK, "i2".into()));
    }
    let mut asked = 10;
    let metrics = loop {
        assert_eq!(user.get("/").await, (StatusCode::OK, "i2".into()));
        asked += 1;
        let metrics = world.metrics().await;
        if metrics.sum("sim_proxy_ejections_total", &["i1"]) > 0.0 {
            break metrics;
        }
        assert!(asked < 500, "{metrics:?}");
        sleep(Duration::from_millis(5)).await;
    };
    let overtaken = metrics.sum("sim_proxy_attempts_total", &["i1", "overtaken"]);
    assert_eq!(
        overtaken,
        metrics.sum("sim_proxy_retries_total", &["hedge"])
    );
    assert!(overtaken >= 5.0, "{metrics:?}");
    // What an overtaken one had by then counts as its latency: the tail isn't cut off.
    let counted = metrics.sum("sim_proxy_request_duration_seconds_count", &["i1"]);
    let answered = metrics.sum("sim_proxy_attempts_total", &["i1", "first", "ok"]);
    assert_eq!(counted, answered + overtaken);

    ups[0].counts.stall(false);
    let before = ups[0].counts.requests();
    let back = async {
        while ups[0].counts.requests() < before + 20 {
            assert_eq!(user.get("/").await.0, StatusCode::OK);
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(20), back)
        .await
        .expect("it comes back");
    let metrics = world.metrics().await;
    assert_eq!(
        metrics.sum("sim_proxy_requests_ended_total", &["failed"]),
        0.0
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_may_not_be_sent_twice_waits() {
    let (world, _control, ups) = known_pace().await;
    let user = world.client();
    ups[0].counts.stall(true);
    let before = ups[0].counts.requests();
    let posting = tokio::spawn(async move { user.send(Method::POST, "/", "x").await });
    while ups[0].counts.requests() == before {
        sleep(Duration::from_millis(1)).await;
    }
    sleep(LONG).await;
    assert!(!posting.is_finished());
    ups[0].counts.stall(false);
    let answer = posting.await.expect("no panic").expect("an answer");
    assert_eq!(answer, (StatusCode::OK, "i1".into()));
    assert_eq!(ups[1].counts.requests(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_may_still_answer_first_and_an_error_of_the_second_is_no_answer() {
    let (world, _control, ups) = known_pace().await;
    let user = world.client();
    // Both take half a second.
    let answer = user.get("/slow").await;
    assert_eq!(answer.0, StatusCode::OK);
    let metrics = world.metrics().await;
    assert_eq!(metrics.sum("sim_proxy_retries_total", &["hedge"]), 1.0);
    assert_eq!(
        metrics.sum("sim_proxy_attempts_total", &["i2", "overtaken"]),
        1.0
    );
    // The second one fails at once.
    let before = ups[0].counts.requests();
    let failing = user.get("/slow-on/i1").await;
    assert_eq!(failing, (StatusCode::OK, "i1".into()));
    assert_eq!(ups[0].counts.requests(), before + 1);
    let metrics = world.metrics().await;
    assert_eq!(
        metrics.sum("sim_proxy_attempts_total", &["i2", "failed"]),
        1.0
    );
    assert_eq!(
        metrics.sum("sim_proxy_requests_ended_total", &["failed"]),
        0.0
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_who_leaves_during_the_race_is_noticed() {
    let (world, _control, ups) = known_pace().await;
    let user = world.client();
    ups[0].counts.stall(true);
    ups[1].counts.stall(true);
    let asking = tokio::spawn(async move { user.get("/").await });
    world
        .wait_for(|metrics| metrics.sum("sim_proxy_retries_total", &["hedge"]) == 1.0)
        .await;
    asking.abort();
    let metrics = world
        .wait_for(|metrics| metrics.sum("sim_proxy_requests_in_flight", &[]) == 0.0)
        .await;
    assert_eq!(
        metrics.sum("sim_proxy_requests_ended_total", &["aborted"]),
        1.0
    );
    assert_eq!(metrics.sum("sim_proxy_in_flight", &[]), 0.0);
}
