//! Instances that take requests and answer none, of which no kernel and no socket tells.

use crate::control::Control;
use crate::process::{HEDGE_QUANTILE, LATE_FACTOR, STICKY};
use crate::raw::ask;
use crate::secure::{Way, each_way};
use crate::upstream::{Upstream, own_address};
use crate::world::{Load, Metrics, PATIENCE, World, table};
use hyper::{Method, StatusCode};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
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
    let settings = [&[(HEDGE_QUANTILE, "0.99")], settings].concat();
    let (world, control, ups) = World::with_two_by(way, 10_000, &settings).await;
    let load = Load::start(&world, 2, &Method::GET);
    load.run(500).await;
    assert_eq!(load.end().await.1, 0);
    world
        .wait_for(|metrics| metrics.has("sim_proxy_overdue_after_seconds"))
        .await;
    // Some of these may have been overdue already: a good answer that none overtakes, and that is forgotten.
    let answer = world.client().send(Method::POST, "/", "").await;
    assert_eq!(answer.expect("an answer"), (StatusCode::OK, "i1".into()));
    (world, control, ups)
}

/// What has been counted since `before`.
struct Since(Metrics);

impl Since {
    async fn now(world: &World) -> Self {
        Self(world.settled().await)
    }

    fn retries(&self, now: &Metrics, reason: &str) -> f64 {
        self.sum(now, "sim_proxy_retries_total", &[reason])
    }

    fn attempts(&self, now: &Metrics, labels: &[&str]) -> f64 {
        self.sum(now, "sim_proxy_attempts_total", labels)
    }

    fn sum(&self, now: &Metrics, family: &str, labels: &[&str]) -> f64 {
        now.sum(family, labels) - self.0.sum(family, labels)
    }
}

/// Waits until an instance has had `count` requests.
async fn asked(up: &Upstream, count: u64) {
    while up.counts.requests() < count {
        sleep(Duration::from_millis(1)).await;
    }
}

async fn who_waits_too_long_is_answered_elsewhere_and_a_hung_instance_is_left_alone(way: Way) {
    let (world, _control, ups) = known_pace_by(way, &[]).await;
    let (user, since) = (world.client(), Since::now(&world).await);
    ups[0].counts.stall(true);
    // It would be an hour without hedging: nothing is closed, and nothing says that it hangs.
    for _ in 0..10 {
        assert_eq!(user.get("/").await, (StatusCode::OK, "i2".into()));
    }
    let mut asked = 10;
    let metrics = loop {
        assert_eq!(user.get("/").await, (StatusCode::OK, "i2".into()));
        asked += 1;
        let metrics = world.settled().await;
        if metrics.sum("sim_proxy_ejections_total", &["i1"]) > 0.0 {
            break metrics;
        }
        assert!(asked < 500, "{metrics:?}");
        sleep(Duration::from_millis(5)).await;
    };
    let overtaken = since.attempts(&metrics, &["i1", "overtaken"]);
    assert_eq!(overtaken, since.retries(&metrics, "hedge"));
    assert!(overtaken >= 5.0, "{metrics:?}");
    // What an overtaken one had by then counts as its latency: the tail isn't cut off.
    let counted = since.sum(
        &metrics,
        "sim_proxy_request_duration_seconds_count",
        &["i1"],
    );
    let answered = since.attempts(&metrics, &["i1", "first", "ok"]);
    assert_eq!(counted, answered + overtaken);

    ups[0].counts.stall(false);
    let before = ups[0].counts.requests();
    let back = async {
        while ups[0].counts.requests() < before + 20 {
            assert_eq!(user.get("/").await.0, StatusCode::OK);
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, back).await.expect("it comes back");
    let metrics = world.settled().await;
    assert_eq!(
        metrics.sum("sim_proxy_requests_ended_total", &["failed"]),
        0.0
    );
}

async fn what_may_not_be_sent_twice_waits(way: Way) {
    let (world, _control, ups) = known_pace_by(way, &[]).await;
    let others = ups[1].counts.requests();
    // A PUT that is still under way somewhere might undo the next one.
    for method in [Method::POST, Method::PUT, Method::DELETE] {
        let user = world.client();
        ups[0].counts.stall(true);
        let before = ups[0].counts.requests();
        let sending = tokio::spawn(async move { user.send(method, "/", "x").await });
        asked(&ups[0], before + 1).await;
        sleep(LONG).await;
        assert!(!sending.is_finished());
        ups[0].counts.stall(false);
        let answer = sending.await.expect("no panic").expect("an answer");
        assert_eq!(answer, (StatusCode::OK, "i1".into()));
    }
    assert_eq!(ups[1].counts.requests(), others);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_is_given_up_later_and_never_at_two_instances_at_once() {
    let (world, _control, ups) = known_pace_and(&[(STICKY, "header:x-user")]).await;
    let since = Since::now(&world).await;
    ups[0].counts.stall(true);
    let mut user = TcpStream::connect(world.proxy).await.expect("connected");
    let request = "GET / HTTP/1.1\r\nHost: a\r\nX-User: 1\r\n\r\n";
    let answer = ask(&mut user, request, "i2").await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    let metrics = world.settled().await;
    assert_eq!(since.retries(&metrics, "late"), 1.0);
    assert_eq!(since.retries(&metrics, "hedge"), 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_the_general_path_a_hung_instance_costs_some_of_the_usual_times_too() {
    let (world, _control, ups) = known_pace().await;
    let since = Since::now(&world).await;
    ups[0].counts.stall(true);
    for round in 1..=3 {
        let mut user = TcpStream::connect(world.proxy).await.expect("connected");
        // It would be a minute by the time-out.
        let answer = ask(&mut user, "GET / HTTP/1.0\r\nHost: a\r\n\r\n", "").await;
        assert!(answer.ends_with("\r\n\r\ni2"), "{answer}");
        let metrics = world.metrics().await;
        assert_eq!(since.retries(&metrics, "late"), f64::from(round));
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
    let metrics = world.settled().await;
    let overtaken = since.attempts(&metrics, &["i1", "first", "overtaken"]);
    assert_eq!(overtaken, 3.0);
    assert_eq!(
        metrics.sum("sim_proxy_requests_ended_total", &["failed"]),
        0.0
    );
}

/// Sends an interim answer to the one request that comes, and the final one, each when it is told to.
async fn begins_and_ends(listener: TcpListener, begin: Arc<Notify>, end: Arc<Notify>) {
    let (mut stream, _) = listener.accept().await.expect("accept");
    let mut asked = Vec::new();
    while !asked.ends_with(b"\r\n\r\n") {
        assert!(stream.read_buf(&mut asked).await.expect("a request") > 0);
    }
    begin.notified().await;
    let hints = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n";
    stream.write_all(hints).await.expect("sent");
    end.notified().await;
    let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nown";
    stream.write_all(answer).await.expect("sent");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_begun_to_answer_has_won() {
    let (world, mut control, ups) = known_pace().await;
    let listener = TcpListener::bind(own_address()).await.expect("a port");
    let address = listener.local_addr().expect("bound");
    let (begin, end) = (Arc::<Notify>::default(), Arc::<Notify>::default());
    let instance = tokio::spawn(begins_and_ends(listener, begin.clone(), end.clone()));
    let lines = [(3, address, 10_000, true), (2, ups[1].address, 0, true)];
    control.publish(&table(1, 2, &lines)).await;
    let (since, others) = (Since::now(&world).await, ups[1].counts.requests());
    ups[1].counts.stall(true);
    let mut user = TcpStream::connect(world.proxy).await.expect("connected");
    let question = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    user.write_all(question.as_bytes()).await.expect("sent");
    // It is the other one's too before the first has said anything.
    asked(&ups[1], others + 1).await;
    begin.notify_one();
    let hints = ask(&mut user, "", "</a>\r\n\r\n").await;
    assert_eq!(hints, "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n");
    // Now the other one answers, before the end.
    ups[1].counts.stall(false);
    sleep(LONG).await;
    end.notify_one();
    let answer = ask(&mut user, "", "own").await;
    assert_eq!(answer, "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nown");
    instance.await.expect("no panic");
    let metrics = world.settled().await;
    assert_eq!(since.retries(&metrics, "hedge"), 1.0);
    assert_eq!(since.attempts(&metrics, &["i2", "overtaken"]), 1.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_error_of_the_second_is_better_than_no_answer_at_all() {
    let (world, _control, ups) = known_pace().await;
    let since = Since::now(&world).await;
    ups[0].counts.stall(true);
    let answer = world.client().get("/status/500").await;
    assert_eq!(answer, (StatusCode::INTERNAL_SERVER_ERROR, "i2".into()));
    let metrics = world.settled().await;
    assert_eq!(since.attempts(&metrics, &["i1", "overtaken"]), 1.0);
    assert_eq!(since.attempts(&metrics, &["i2", "failed"]), 1.0);
}

async fn the_first_may_still_answer_first_and_an_error_of_the_second_is_no_answer(way: Way) {
    let (world, _control, ups) = known_pace_by(way, &[(LATE_FACTOR, "1000")]).await;
    let (user, since) = (world.client(), Since::now(&world).await);
    let others = ups[1].counts.requests();
    // Neither answers before both are asked, and the second not before the first has.
    for up in &ups {
        up.counts.stall(true);
    }
    let asking = tokio::spawn({
        let user = user.clone();
        async move { user.get("/").await }
    });
    asked(&ups[1], others + 1).await;
    ups[0].counts.stall(false);
    let answer = asking.await.expect("no panic");
    assert_eq!(answer, (StatusCode::OK, "i1".into()));
    ups[1].counts.stall(false);
    let metrics = world.settled().await;
    assert_eq!(since.retries(&metrics, "hedge"), 1.0);
    assert_eq!(since.attempts(&metrics, &["i2", "overtaken"]), 1.0);
    // The second one fails at once. That can't be seen until the first has answered, which it may do sooner all the same.
    for _ in 0..100 {
        let before = [&ups[0], &ups[1]].map(|up| up.counts.requests());
        ups[0].counts.stall(true);
        let asking = tokio::spawn({
            let user = user.clone();
            async move { user.get("/slow-on/i1").await }
        });
        asked(&ups[1], before[1] + 1).await;
        ups[0].counts.stall(false);
        let failing = asking.await.expect("no panic");
        assert_eq!(failing, (StatusCode::OK, "i1".into()));
        assert_eq!(ups[0].counts.requests(), before[0] + 1);
        let metrics = world.settled().await;
        assert_eq!(
            metrics.sum("sim_proxy_requests_ended_total", &["failed"]),
            0.0
        );
        if since.attempts(&metrics, &["i2", "failed"]) > 0.0 {
            return;
        }
    }
    panic!("it never failed");
}

async fn a_user_who_leaves_during_the_race_is_noticed(way: Way) {
    let (world, _control, ups) = known_pace_by(way, &[]).await;
    let (user, since) = (world.client(), Since::now(&world).await);
    ups[0].counts.stall(true);
    ups[1].counts.stall(true);
    let asking = tokio::spawn(async move { user.get("/").await });
    world
        .wait_for(|metrics| since.retries(metrics, "hedge") == 1.0)
        .await;
    asking.abort();
    let metrics = world.settled().await;
    assert_eq!(
        metrics.sum("sim_proxy_requests_ended_total", &["aborted"]),
        1.0
    );
}
