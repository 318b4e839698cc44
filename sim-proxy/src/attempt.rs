//! One attempt at one instance, from its pick to its end.

use crate::live::{InstanceLive, Outcome};
use crate::pick::How;
use crate::snapshot::Upstream;
use sim_core::address::Address;
use sim_core::name::InstanceId;
use std::sync::Arc;

/// An attempt in flight. Dropping it takes it out of flight, whichever way the request ends, unless that is lent.
#[derive(Debug)]
pub struct Attempt {
    live: Arc<InstanceLive>,
    how: How,
    entered_ns: u64,
    /// Attempts that were in flight there when it entered.
    ahead: u64,
    first: bool,
    /// How long it takes is noted for those that choose by it.
    paced: bool,
    ended: bool,
    /// Somebody else takes it out of flight.
    lent: bool,
}

/// What takes an attempt out of flight when it is dropped.
#[derive(Debug)]
pub(crate) struct InFlight(Arc<InstanceLive>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.leave();
    }
}

/// Whom an attempt asks.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// Which instance.
    pub instance: InstanceId,
    /// Where it listens.
    pub address: &'a Address,
    /// When it was picked, by [`crate::clock::monotonic_ns`].
    pub entered_ns: u64,
}

impl Attempt {
    pub(crate) fn enter(
        upstream: &Upstream,
        how: How,
        now_ns: u64,
        first: bool,
        paced: bool,
    ) -> Self {
        let ahead = upstream.live.enter();
        let live = upstream.live.clone();
        Self {
            live,
            how,
            entered_ns: now_ns,
            ahead,
            first,
            paced,
            ended: false,
            lent: false,
        }
    }

    /// Whom it asks, and since when.
    #[must_use]
    pub fn target(&self) -> Target<'_> {
        Target {
            instance: self.live.id(),
            address: self.live.address(),
            entered_ns: self.entered_ns,
        }
    }

    /// State of the instance.
    #[must_use]
    pub fn live(&self) -> &Arc<InstanceLive> {
        &self.live
    }

    /// Where the instance listens.
    #[must_use]
    pub fn address(&self) -> &Address {
        self.live.address()
    }

    /// Why it was picked.
    #[must_use]
    pub fn how(&self) -> How {
        self.how
    }

    /// Attempts that were in flight there when it entered.
    #[must_use]
    pub fn ahead(&self) -> u64 {
        self.ahead
    }

    /// When it was picked, by [`crate::clock::monotonic_ns`].
    #[must_use]
    pub fn entered_ns(&self) -> u64 {
        self.entered_ns
    }

    /// Counts its end; later calls count nothing. `answered_ns`: when its answer was over, by
    /// [`crate::clock::monotonic_ns`], if it had one.
    pub(crate) fn end(&mut self, outcome: Outcome, answered_ns: Option<u64>) {
        if self.ended {
            return;
        }
        self.ended = true;
        if let Some(now_ns) = answered_ns {
            let micros = self.micros_until(now_ns);
            if self.first {
                self.live.record_latency(micros);
            }
            if self.paced {
                self.live.note_pace(micros, now_ns);
            }
        }
        self.live.ended(self.first, outcome);
    }

    /// Counts its end at `now_ns` as overtaken. What it took is kept if it `is_late`: at least as much as it would
    /// have taken.
    pub(crate) fn end_overtaken(&mut self, now_ns: u64, is_late: bool) {
        if is_late && self.first {
            self.live.record_latency(self.micros_until(now_ns));
        }
        self.end(Outcome::Overtaken, None);
    }

    /// Notes that it has taken long, up to `now_ns`, and has no answer yet: who waits for a hung instance must not
    /// look fast.
    pub(crate) fn outlasted(&self, now_ns: u64) {
        if !self.paced {
            return;
        }
        let micros = self.micros_until(now_ns);
        if micros as f64 > self.live.expected_micros(now_ns) {
            self.live.note_pace(micros, now_ns);
        }
    }

    /// Leaves it to another to take it out of flight. Once: a second one would do so twice.
    pub(crate) fn lend(&mut self) -> Option<InFlight> {
        let first = !std::mem::replace(&mut self.lent, true);
        first.then(|| InFlight(self.live.clone()))
    }

    fn micros_until(&self, now_ns: u64) -> u64 {
        now_ns.saturating_sub(self.entered_ns) / 1_000
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if !self.lent {
            self.live.leave();
        }
    }
}
