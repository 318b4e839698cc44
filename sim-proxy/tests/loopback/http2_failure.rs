//! What users of HTTP/2 notice of failing instances, several requests at a time on one connection: what those of HTTP/1.1
//! do (`failure`, `hedging`).

use crate::http2::User;
use crate::process::{HEDGE_QUANTILE, SLOW_START_MS};
use crate::upstream::Upstream;
use crate::world::{Load, World};
use hyper::{Method, StatusCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use tokio::task::JoinSet;

/// Streams that ask for `/` one request after another, all on one connection, until they are told to stop.
pub(crate) struct Streams {
    tasks: JoinSet<()>,
    answered: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
}

impl Streams {
    pub(crate) fn start(user: &User, count: usize) -> Self {
        let (stop, answered) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let mut tasks = JoinSet::new();
        for _ in 0..count {
            let (mut user, stop, answered) = (user.clone(), stop.clone(), answered.clone());
            tasks.spawn(async move {
                while !stop.load(Ordering::SeqCst) {
                    let answer = user.get("/").await.expect("the connection stays");
                    assert_eq!(answer.0, StatusCode::OK);
                    answered.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        Self {
            tasks,
            answered,
            stop,
        }
    }

    /// Waits until `more` have been answered.
    pub(crate) async fn wait_for_more(&self, more: u64) {
        let until = self.answered.load(Ordering::SeqCst) + more;
        while self.answered.load(Ordering::SeqCst) < until {
            tokio::task::yield_now().await;
        }
    }

    /// How many were answered; none failed.
    pub(crate) async fn end(self) -> u64 {
        self.stop.store(true, Ordering::SeqCst);
        self.tasks.join_all().await;
        self.answered.load(Ordering::SeqCst)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_instance_costs_no_stream_and_gets_its_share_again_when_it_is_back() {
    let settings = [(SLOW_START_MS, "0")];
    let (world, _control, [first, _second]) = World::with_two_and(9_500, &settings).await;
    let (user, _connection) = User::connect(&world).await;
    let streams = Streams::start(&user, 16);
    while first.counts.requests() < 400 {
        tokio::task::yield_now().await;
    }
    let address = first.address;
    first.kill().await;
    world
        .wait_for(|m| m.sum("sim_proxy_ejected", &["i1"]) == 1.0)
        .await;
    let back = Upstream::start_on("i1", address).await;
    while back.counts.requests() < 400 {
        tokio::task::yield_now().await;
    }
    assert!(streams.end().await >= 800);
    let metrics = world.settled().await;
    assert_eq!(metrics.sum("sim_proxy_http2_connections_total", &[]), 1.0);
    assert_eq!(
        metrics.sum("sim_proxy_requests_ended_total", &["failed"]),
        0.0
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hung_instance_costs_streams_some_of_the_usual_times_and_is_left_alone() {
    let settings = [(HEDGE_QUANTILE, "0.99")];
    let (world, _control, ups) = World::with_two_and(10_000, &settings).await;
    let load = Load::start(&world, 2, &Method::GET);
    load.run(500).await;
    assert_eq!(load.end().await.1, 0);
    world
        .wait_for(|metrics| metrics.has("sim_proxy_overdue_after_seconds"))
        .await;
    ups[0].counts.stall(true);
    let (user, _connection) = User::connect(&world).await;
    let streams = Streams::start(&user, 8);
    // It would be a minute by the time-out: nothing is closed, and nothing says that it hangs.
    world
        .wait_for(|m| m.sum("sim_proxy_ejected", &["i1"]) == 1.0)
        .await;
    assert!(streams.end().await >= 8);
    let metrics = world.settled().await;
    assert!(metrics.sum("sim_proxy_retries_total", &["late"]) >= 5.0);
    assert_eq!(
        metrics.sum("sim_proxy_requests_ended_total", &["failed"]),
        0.0
    );
    ups[0].counts.stall(false);
}
