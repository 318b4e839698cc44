//! Copies of requests: who gets them, what they say, and that nobody waits for them.

use crate::control::Control;
use crate::process::MIRROR;
use crate::raw::{GET, ask};
use crate::upstream::{Upstream, pattern};
use crate::world::{World, pair};
use hyper::{Method, StatusCode};
use sim_core::name::InstanceId;
use sim_core::table::Mirror;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// The first instance serves all, and the second gets copies by the table.
async fn mirrored(share_bp: u16, settings: &str) -> (World, Control, [Upstream; 2]) {
    let (world, mut control) = World::start_with(&[(MIRROR, settings)]);
    let ups = [Upstream::start("i1").await, Upstream::start("i2").await];
    let instance = InstanceId(2);
    let table = pair(1, &ups, 10_000).with_mirror(Mirror { instance, share_bp });
    control.publish(&table.expect("a mirror")).await;
    (world, control, ups)
}

const ANSWERS: &str = "sim_proxy_mirror_answers_total";
const COMPARED: &str = "sim_proxy_mirror_compared_total";
const DROPPED: &str = "sim_proxy_mirror_dropped_total";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_mirror_gets_marked_copies_and_users_get_the_primarys_answers() {
    let (world, _control, ups) = mirrored(10_000, "").await;
    let user = world.client();
    for _ in 0..40 {
        assert_eq!(user.get("/").await, (StatusCode::OK, "i1".into()));
    }
    let posted = user.send(Method::POST, "/echo", "a").await;
    assert_eq!(posted.expect("an answer").0, StatusCode::OK);
    world.wait_for(|m| m.sum(ANSWERS, &["2xx"]) == 40.0).await;
    let metrics = world.settled().await;
    assert_eq!((ups[0].counts.requests(), ups[0].counts.copies()), (41, 0));
    assert_eq!((ups[1].counts.requests(), ups[1].counts.copies()), (40, 40));
    assert_eq!(
        metrics.sum("sim_proxy_mirror_duration_seconds_count", &[]),
        40.0
    );
    // Nothing of it is taken for what users saw.
    let of_mirror = ["instance=\"i2\""];
    assert_eq!(metrics.sum("sim_proxy_attempts_total", &of_mirror), 0.0);
    let seen = metrics.sum("sim_proxy_request_duration_seconds_count", &of_mirror);
    assert_eq!(seen, 0.0);
    let last = metrics.sum("sim_proxy_last_pick_monotonic_seconds", &of_mirror);
    assert_eq!(last, 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_share_is_copied_and_a_new_table_without_a_mirror_ends_it() {
    let (world, mut control, ups) = mirrored(2_500, "").await;
    // On one connection: a copy is made when its request has its answer, and before the next one is read.
    let mut user = TcpStream::connect(world.proxy).await.expect("connected");
    for _ in 0..400 {
        ask(&mut user, GET, "i1").await;
    }
    control.publish(&pair(2, &ups, 10_000)).await;
    ask(&mut user, GET, "i1").await;
    let answered = |m: &crate::world::Metrics| {
        m.sum(ANSWERS, &[]) == m.sum("sim_proxy_mirror_queued_total", &[])
    };
    world.wait_for(answered).await;
    let copies = ups[1].counts.copies();
    assert!(copies.abs_diff(100) <= 16, "{copies} of 400");
    for _ in 0..40 {
        ask(&mut user, GET, "i1").await;
    }
    let metrics = world.settled().await;
    assert_eq!(
        metrics.sum("sim_proxy_mirror_queued_total", &[]),
        copies as f64
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_waits_for_a_mirror_that_hangs_and_what_it_does_not_get_is_counted() {
    let hung = Upstream::start("mirror").await;
    hung.counts.stall(true);
    let to = format!("{}@10000", hung.address);
    let (world, _control, ups) = World::with_two_and(5_000, &[(MIRROR, &to)]).await;
    let user = world.client();
    // More than all queues hold and all connections carry.
    let sent = 2 * (256 + 32) + 200;
    for _ in 0..sent {
        assert_eq!(user.get("/").await.0, StatusCode::OK);
    }
    let dropped = |m: &crate::world::Metrics| m.sum(DROPPED, &["queue_full"]);
    // Each is one or the other, some time after its request has its answer.
    let metrics = world
        .wait_for(|m| m.sum("sim_proxy_mirror_queued_total", &[]) + dropped(m) == f64::from(sent))
        .await;
    assert_eq!(metrics.sum(ANSWERS, &[]), 0.0);
    assert!(dropped(&metrics) >= 200.0, "{metrics:?}");
    assert_eq!(
        ups[0].counts.requests() + ups[1].counts.requests(),
        sent as u64
    );
    hung.counts.stall(false);
    world.wait_for(|m| m.sum(ANSWERS, &["2xx"]) > 0.0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_are_compared_by_status_size_and_content() {
    let (world, _control, _ups) = mirrored(10_000, ",compare").await;
    let user = world.client();
    // The instances' names are as long as one another; these bytes are the same, and come in more than one piece.
    for path in ["/", "/bytes/200000", "/status/404"] {
        user.get(path).await;
    }
    let metrics = world
        .wait_for(|m| m.sum(COMPARED, &["what=\"hash\""]) == 3.0)
        .await;
    for (what, same) in [("status", 3.0), ("size", 3.0), ("hash", 1.0)] {
        let what = format!("what=\"{what}\"");
        assert_eq!(metrics.sum(COMPARED, &[&what, "same"]), same, "{what}");
        let different = metrics.sum(COMPARED, &[&what, "different"]);
        assert_eq!(different, 3.0 - same, "{what}");
    }
    assert_eq!(metrics.sum(ANSWERS, &["4xx"]), 1.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_are_copied_on_both_paths_up_to_a_limit() {
    let (world, _control, ups) = mirrored(10_000, ",compare,unsafe").await;
    let user = world.client();
    let [short, long, too_long] = [1_000, 64 * 1_024, 64 * 1_024 + 1].map(pattern);
    for body in [&short, &long, &too_long] {
        let echoed = user.send(Method::POST, "/echo", body.clone()).await;
        assert_eq!(echoed.expect("an answer"), (StatusCode::OK, body.clone()));
    }
    // A body that comes later than its head: the general path.
    let mut late = TcpStream::connect(world.proxy).await.expect("connected");
    let head =
        "POST /echo HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n";
    late.write_all(head.as_bytes()).await.expect("sent");
    world
        .wait_for(|m| m.sum("sim_proxy_requests_in_flight", &[]) == 1.0)
        .await;
    late.write_all(b"3\r\nabc\r\n3\r\ndef\r\n0\r\n\r\n")
        .await
        .expect("sent");
    let mut answer = String::new();
    late.read_to_string(&mut answer).await.expect("text");
    assert!(answer.contains("abcdef"), "{answer}");
    let metrics = world
        .wait_for(|m| m.sum(COMPARED, &["what=\"hash\"", "same"]) == 3.0)
        .await;
    assert_eq!(metrics.sum(COMPARED, &["different"]), 0.0);
    assert_eq!(metrics.sum(DROPPED, &["too_large"]), 1.0);
    let mut bodies = ups[1].counts.copied_bodies();
    bodies.sort_by_key(bytes::Bytes::len);
    assert_eq!(bodies, ["abcdef".into(), short, long]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mirror_that_is_gone_is_counted_and_changes_nothing() {
    let (world, _control, ups) = mirrored(10_000, "").await;
    let [first, second] = ups;
    second.kill().await;
    let user = world.client();
    for _ in 0..20 {
        assert_eq!(user.get("/").await, (StatusCode::OK, "i1".into()));
    }
    let metrics = world
        .wait_for(|m| m.sum("sim_proxy_mirror_failed_total", &["connect"]) == 20.0)
        .await;
    assert_eq!(metrics.sum("sim_proxy_ejections_total", &[]), 0.0);
    assert_eq!(metrics.sum("sim_proxy_retries_total", &[]), 0.0);
    assert_eq!(first.counts.requests(), 20);
}
