//! Instances that take requests and answer none, of which no kernel and no socket tells.

use crate::control::Control;
use crate::process::{LATE_FACTOR, STICKY};
use crate::raw::{Scripted, ask};
use crate::secure::{Way, each_way};
use crate::upstream::Upstream;
use crate::world::{Load, World, table};
use hyper::{Method, StatusCode};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

each_way! {
    who_waits_too_long_is_answered_elsewhere_and_a_hung_instance_is_left_alone
    what_may_not_be_sent_twice_waits
    the_first_may_still_answer_first_and_an_error_of_the_second_is_no_answer
    a_user_who_leaves_during_the_race_is_noticed
}

/// Long after an answer has become overdue here.
const LONG: Duration = Duration::from_millis(400);

/// Two instances, of which the first has all the requests, and has had enough of them for a quantile.
async fn known_pace() -> (World, Control, [Upstream; 2]) {
    known_pace_and(&[]).await
}

async fn known_pace_and(settings: &[(&str, &str)]) -> (World, Control, [Upstream; 2]) {
    known_pace_by(Way::Clear, settings).await
}

async fn known_pace_by(way: Way, settings: &[(&str, &str)]) -> (World, Control, [Upstream; 2]) {
    let (world, control, ups) = World::with_two_by(way, 10_000, settings).await;
    let load = Load::start(&world, 2, &Method::GET);
    load.run(500).await;
    assert_eq!(load.end().await.1, 0);
    world
        .wait_for(|metrics| metrics.has("sim_proxy_overdue_after_seconds"))
        .await;
    (world, control, ups)
}

async fn who_waits_too_long_is_answered_elsewhere_and_a_hung_instance_is_left_alone(way: Way) {
    let (world, _control, ups) = known_pace_by(way, &[]).await;
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

async fn what_may_not_be_sent_twice_waits(way: Way) {
    let (world, _control, ups) = known_pace_by(way, &[]).await;
    // A PUT that is still under way somewhere might undo the next one.
    for method in [Method::POST, Method::PUT, Method::DELETE] {
        let user = world.client();
        ups[0].counts.stall(true);
        let before = ups[0].counts.requests();
        let sending = tokio::spawn(async move { user.send(method, "/", "x").await });
        while ups[0].counts.requests() == before {
            sleep(Duration::from_millis(1)).await;
        }
        sleep(LONG).await;
        assert!(!sending.is_finished());
        ups[0].counts.stall(false);
        let answer = sending.await.expect("no panic").expect("an answer");
        assert_eq!(answer, (StatusCode::OK, "i1".into()));
    }
    assert_eq!(ups[1].counts.requests(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_is_given_up_later_and_never_at_two_instances_at_once() {
    let (world, _control, ups) = known_pace_and(&[(STICKY, "header:x-user")]).await;
    ups[0].counts.stall(true);
    let mut user = TcpStream::connect(world.proxy).await.expect("connected");
    let request = "GET / HTTP/1.1\r\nHost: a\r\nX-User: 1\r\n\r\n";
    let answer = ask(&mut user, request, "i2").await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    let metrics = world.metrics().await;
    assert_eq!(metrics.sum("sim_proxy_retries_total", &["late"]), 1.0);
    assert_eq!(metrics.sum("sim_proxy_retries_total", &["hedge"]), 0.0);
    assert_eq!(metrics.sum("sim_proxy_in_flight", &["i1"]), 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_the_general_path_a_hung_instance_costs_some_of_the_usual_times_too() {
    let (world, _control, ups) = known_pace().await;
    ups[0].counts.stall(true);
    for round in 1..=3 {
        let mut user = TcpStream::connect(world.proxy).await.expect("connected");
        // It would be a minute by the time-out.
        let answer = ask(&mut user, "GET / HTTP/1.0\r\nHost: a\r\n\r\n", "").await;
        assert!(answer.ends_with("\r\n\r\ni2"), "{answer}");
        let metrics = world.metrics().await;
        assert_eq!(
            metrics.sum("sim_proxy_retries_total", &["late"]),
            f64::from(round)
        );
    }
    ups[0].counts.stall(false);
    // What may not be sent twice, or takes its time over the body, stays where it is.
    let mut user = TcpStream::connect(world.proxy).await.expect("connected");
    let slow = ask(
        &mut user,
        "POST /slow HTTP/1.0\r\nHost: a\r\nContent-Length: 0\r\n\r\n",
        "",
    );
    assert!(slow.await.ends_with("\r\n\r\ni1"));
    let metrics = world.metrics().await;
    assert_eq!(metrics.sum("sim_proxy_in_flight", &[]), 0.0);
    assert_eq!(
        metrics.sum("sim_proxy_attempts_total", &["i1", "first", "overtaken"]),
        3.0
    );
    assert_eq!(
        metrics.sum("sim_proxy_requests_ended_total", &["failed"]),
        0.0
    );
}

/// 60 ms of nothing, an interim answer, and the final one 640 ms later.
static BEGINS_LATE: [&[u8]; 36] = {
    let mut pieces: [&[u8]; 36] = [b""; 36];
    pieces[3] = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n";
    pieces[35] = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nown";
    pieces
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_begun_to_answer_has_won() {
    let (world, mut control, ups) = known_pace().await;
    let script = Scripted::start(&BEGINS_LATE, false).await;
    let lines = [
        (3, script.address, 10_000, true),
        (2, ups[1].address, 0, true),
    ];
    control.publish(&table(1, 2, &lines)).await;
    let mut user = TcpStream::connect(world.proxy).await.expect("connected");
    // The other one takes half a second, and is there before the end.
    let answer = ask(&mut user, "GET /slow HTTP/1.1\r\nHost: a\r\n\r\n", "own").await;
    assert_eq!(
        answer,
        "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nown"
    );
    let metrics = world.metrics().await;
    assert_eq!(metrics.sum("sim_proxy_retries_total", &["hedge"]), 1.0);
    assert_eq!(
        metrics.sum("sim_proxy_attempts_total", &["i2", "overtaken"]),
        1.0
    );
    assert_eq!(metrics.sum("sim_proxy_in_flight", &[]), 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_error_of_the_second_is_better_than_no_answer_at_all() {
    let (world, _control, ups) = known_pace().await;
    ups[0].counts.stall(true);
    let answer = world.client().get("/status/500").await;
    assert_eq!(answer, (StatusCode::INTERNAL_SERVER_ERROR, "i2".into()));
    let metrics = world.metrics().await;
    assert_eq!(metrics.sum("sim_proxy_in_flight", &[]), 0.0);
    assert_eq!(
        metrics.sum("sim_proxy_attempts_total", &["i1", "overtaken"]),
        1.0
    );
    assert_eq!(
        metrics.sum("sim_proxy_attempts_total", &["i2", "failed"]),
        1.0
    );
}

async fn the_first_may_still_answer_first_and_an_error_of_the_second_is_no_answer(way: Way) {
    let (world, _control, ups) = known_pace_by(way, &[(LATE_FACTOR, "1000")]).await;
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

async fn a_user_who_leaves_during_the_race_is_noticed(way: Way) {
    let (world, _control, ups) = known_pace_by(way, &[]).await;
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
