//! When the process stops, and how: listeners and idle connections close at once, requests in
//! flight may end, a second signal or the drain limit ends what is left.
//!
//! Where a successor serves there is time: a request may be on its way on any idle connection, so they stay until
//! their user has asked once more, has left, or has been idle for too long anyway.

use crate::workloads::Workloads;
use async_trait::async_trait;
use pingora_core::server::{ShutdownSignal, ShutdownSignalWatch};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Mutex, watch};
use tokio::time::{interval, sleep, timeout};

/// Between two looks at what is still in flight.
const DRAIN_STEP: Duration = Duration::from_millis(5);

/// How long a relieved process stays at least (what it accepted last may not have had a turn yet on a busy machine), and
/// how often it looks for what is left.
const RELIEVED_MIN: Duration = Duration::from_secs(5);
const RELIEVED_STEP: Duration = Duration::from_millis(50);

type StopRequest = Pin<Box<dyn Future<Output = ()> + Send>>;

pub(crate) struct Stop {
    /// The caller's own way to ask for the stop.
    pub(crate) requested: Mutex<StopRequest>,
    pub(crate) services: watch::Sender<bool>,
    pub(crate) workloads: Arc<Workloads>,
    pub(crate) drain_timeout: Duration,
    /// A successor serves.
    pub(crate) relieved: watch::Receiver<bool>,
    pub(crate) upgrade_drain_timeout: Duration,
    /// Idle connections are to be closed.
    pub(crate) idle: watch::Sender<bool>,
}

#[async_trait]
impl ShutdownSignalWatch for Stop {
    async fn recv(&self) -> ShutdownSignal {
        let mut signals = Signals::new();
        let mut requested = self.requested.lock().await;
        let mut asked = async || {
            tokio::select! {
                () = signals.next() => {}
                () = requested.as_mut() => {}
            }
        };
        let mut relieved = self.relieved.clone();
        let is_relieved = tokio::select! {
            () = asked() => false,
            // An error is the end of who would say so.
            relieved = relieved.wait_for(|&relieved| relieved) => relieved.is_ok(),
        };
        self.services.send_replace(true);
        if is_relieved {
            tokio::select! {
                () = self.emptied() => {}
                () = sleep(self.upgrade_drain_timeout) => {
                    let open = self.workloads.limits.connections();
                    tracing::warn!(open, "the time to drain is over");
                }
                () = asked() => {}
            }
        }
        self.idle.send_replace(true);
        let drained = async {
            let mut step = interval(DRAIN_STEP);
            loop {
                // The first tick is immediate, the services have seen `stop` by the second.
                step.tick().await;
                if self.workloads.in_flight() == 0 {
                    step.tick().await;
                    return;
                }
            }
        };
        tokio::select! {
            drained = timeout(self.drain_timeout, drained) => if drained.is_err() {
                tracing::warn!(cut = self.workloads.in_flight(), "requests cut at the drain limit");
            },
            () = signals.next() => {
                tracing::warn!(cut = self.workloads.in_flight(), "second signal: requests cut");
            }
        }
        // The services are done; nothing is left to be graceful about.
        ShutdownSignal::FastShutdown
    }
}

impl Stop {
    /// Until no connection is left.
    async fn emptied(&self) {
        // One that was accepted at the last moment is counted when its task first runs.
        sleep(RELIEVED_MIN).await;
        while self.workloads.limits.connections() > 0 {
            sleep(RELIEVED_STEP).await;
        }
        tracing::info!("the last connection has ended");
    }
}

struct Signals([Option<Signal>; 2]);

impl Signals {
    fn new() -> Self {
        Self(
            [SignalKind::terminate(), SignalKind::interrupt()].map(|kind| {
                signal(kind)
                    .inspect_err(|error| tracing::error!(%error, ?kind, "signal can't be handled"))
                    .ok()
            }),
        )
    }

    async fn next(&mut self) {
        async fn one(signal: &mut Option<Signal>) {
            let came = match signal {
                Some(signal) => signal.recv().await.is_some(),
                None => false,
            };
            if !came {
                std::future::pending::<()>().await;
            }
        }
        let [terminate, interrupt] = &mut self.0;
        tokio::select! {
            () = one(terminate) => {}
            () = one(interrupt) => {}
        }
    }
}
