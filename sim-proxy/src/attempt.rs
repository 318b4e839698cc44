//! One attempt at one instance, from its pick to its end.

use crate::live::{InstanceLive, Outcome};
use crate::pick::How;
use crate::snapshot::Upstream;
use std::net::SocketAddr;
use std::sync::Arc;

/// An attempt in flight. Dropping it takes it out of flight, whichever way the request ends.
#[derive(Debug)]
pub struct Attempt {
    live: Arc<InstanceLive>,
    address: SocketAddr,
    how: How,
    entered_ns: u64,
    first: bool,
    ended: bool,
}

impl Attempt {
    pub(crate) fn enter(upstream: &Upstream, how: How, now_ns: u64, first: bool) -> Self {
        upstream.live.enter();
        let live = upstream.live.clone();
        Self {
            live,
            address: upstream.address,
            how,
            entered_ns: now_ns,
            first,
            ended: false,
        }
    }

    /// State of the instance.
    #[must_use]
    pub fn live(&self) -> &Arc<InstanceLive> {
        &self.live
    }

    /// Where the instance listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Why it was picked.
    #[must_use]
    pub fn how(&self) -> How {
        self.how
    }

    /// When it was picked, by [`crate::clock::monotonic_ns`].
    #[must_use]
    pub fn entered_ns(&self) -> u64 {
        self.entered_ns
    }

    /// Counts its end; later calls count nothing. `latency_micros`, of attempts with an answer,
    /// is kept of first attempts alone.
    pub(crate) fn end(&mut self, outcome: Outcome, latency_micros: Option<u64>) {
        if self.ended {
            return;
        }
        self.ended = true;
        if let (true, Some(micros)) = (self.first, latency_micros) {
            self.live.record_latency(micros);
        }
        self.live.ended(self.first, outcome);
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        self.live.leave();
    }
}
