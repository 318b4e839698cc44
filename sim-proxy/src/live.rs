//! What the proxy knows of one instance beyond the table: counters, latency, health. It outlives
//! tables and is carried from one to the next by instance id.
//!
//! Layout: the counters that one request writes stand together on one line, since they are
//! written together; health, which every pick reads and hardly anything writes, stands on
//! another, so that counting never takes it out of the other cores' caches.

use crate::checked::Checked;
use crate::errors::Errors;
use crate::health::{Health, Standing};
use crate::pace::Pace;
use crate::quantiles::Quantiles;
use crate::sync::LATENCY_BUCKETS;
use crate::sync::atomic::{AtomicU64, Ordering};
use crossbeam_utils::CachePadded;
use sim_core::address::Address;
use sim_core::histogram::{LatencyHistogram, bucket_of};
use sim_core::name::InstanceId;
use sim_life::LifeFlags;
use std::sync::{Arc, OnceLock};

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Whole answer below 500.
    Ok,
    /// Answer of 500 or above, none, or a broken one.
    Failed,
    /// The user left first; says nothing of the instance.
    Aborted,
    /// Another instance, asked later, answered first, or was asked in its place since it took too long.
    Overtaken,
}

/// First attempts and retries are counted apart: retries go where the trouble isn't, and one
/// number for both would hide it.
#[derive(Debug, Default)]
struct Ends {
    ok: AtomicU64,
    failed: AtomicU64,
    aborted: AtomicU64,
    overtaken: AtomicU64,
}

#[derive(Debug, Default)]
#[repr(C)]
struct Traffic {
    in_flight: AtomicU64,
    last_pick_ns: AtomicU64,
    pace: Pace,
    first: Ends,
    // From here on what a usual request doesn't write.
    retry: Ends,
}

/// Live state of one instance.
#[derive(Debug)]
pub struct InstanceLive {
    id: InstanceId,
    /// Here, and not in each table's line: a request holds this anyway, and a path can't be copied as a number can.
    address: Address,
    traffic: CachePadded<Traffic>,
    health: CachePadded<Health>,
    /// The flags of the node that watches it, once found. Never taken back: a node that is gone
    /// leaves them as they are, and takes its instances with it.
    life: OnceLock<Arc<LifeFlags>>,
    /// Since when it gets no new requests, `CLOCK_MONOTONIC` ns; 0 = it gets them.
    draining_since_ns: AtomicU64,
    /// When it lost its line in the table, `CLOCK_MONOTONIC` ns; 0 = it never has, or has had weight since.
    gone_since_ns: AtomicU64,
    errors: Errors,
    quantiles: Quantiles,
    /// By bucket of [`sim_core::histogram`]; microseconds.
    latency: Box<[AtomicU64]>,
}

impl InstanceLive {
    /// Of an instance never seen before, which listens at `address`.
    #[must_use]
    pub fn new(id: InstanceId, address: Address) -> Self {
        Self {
            id,
            address,
            traffic: CachePadded::default(),
            health: CachePadded::default(),
            life: OnceLock::new(),
            draining_since_ns: AtomicU64::default(),
            gone_since_ns: AtomicU64::default(),
            errors: Errors::default(),
            quantiles: Quantiles::default(),
            latency: std::iter::repeat_with(AtomicU64::default)
                .take(LATENCY_BUCKETS)
                .collect(),
        }
    }

    /// Whose state.
    #[must_use]
    pub fn id(&self) -> InstanceId {
        self.id
    }

    /// Where it listens.
    #[must_use]
    #[inline]
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Its ejection state.
    #[must_use]
    #[inline]
    pub fn health(&self) -> &Health {
        &self.health
    }

    /// What active checks say of it.
    pub(crate) fn checked(&self) -> &Checked {
        self.health.checked()
    }

    /// Since when it gets no new requests; 0 = it gets them.
    pub(crate) fn draining_since_ns(&self) -> u64 {
        // Relaxed, here and below: a fact of its own, and who sees it a little later drains a little later.
        self.draining_since_ns.load(Ordering::Relaxed)
    }

    /// It has got no new requests since then, unless nothing better was left.
    pub(crate) fn drains_since(&self, since_ns: u64) {
        self.draining_since_ns.store(since_ns, Ordering::Relaxed);
    }

    /// When it lost its line in the table; 0 = it never has, or has had weight since.
    pub(crate) fn gone_since_ns(&self) -> u64 {
        self.gone_since_ns.load(Ordering::Relaxed)
    }

    /// It has got none at all since then.
    pub(crate) fn is_gone_since(&self, since_ns: u64) {
        self.gone_since_ns.store(since_ns, Ordering::Relaxed);
    }

    /// It gets requests.
    pub(crate) fn drains_no_more(&self) {
        self.drains_since(0);
        self.is_gone_since(0);
    }

    /// What went wrong there so far.
    pub(crate) fn errors(&self) -> &Errors {
        &self.errors
    }

    /// How fast it has been of late.
    pub(crate) fn quantiles(&self) -> &Quantiles {
        &self.quantiles
    }

    /// Reads the kernel's word on it in `flags` from now on.
    pub fn watch(&self, flags: Arc<LifeFlags>) {
        // Whoever was first is as good.
        self.life.set(flags).ok();
    }

    /// Whether the kernel's word is read.
    #[must_use]
    pub fn is_watched(&self) -> bool {
        self.life.get().is_some()
    }

    /// The kernel says that it is dead or stopped. `false` where nothing is known.
    #[must_use]
    #[inline]
    pub fn is_down(&self) -> bool {
        self.life
            .get()
            .is_some_and(|flags| flags.is_down(self.id.0))
    }

    /// It is in, and gets all of its weight: the common case of a pick.
    #[inline]
    pub(crate) fn is_whole(&self) -> bool {
        self.health.ramp().is_over() && self.is_in()
    }

    /// It is not ejected, and not down.
    #[must_use]
    #[inline]
    pub fn is_in(&self) -> bool {
        self.health.is_in() && !self.health.checked().is_out() && !self.is_down()
    }

    /// The same for certain, see [`Health::is_in_now`].
    pub(crate) fn is_in_now(&self) -> bool {
        self.health.is_in_now() && !self.health.checked().is_out_now() && !self.is_down()
    }

    /// Standing at `now_ns`.
    #[must_use]
    pub fn standing(&self, now_ns: u64) -> Standing {
        if self.is_down() || self.health.checked().is_out() {
            return Standing::Out;
        }
        self.health.standing(now_ns)
    }

    /// Enters an attempt; how many were there. To be followed by one [`InstanceLive::leave`].
    pub(crate) fn enter(&self) -> u64 {
        // Acquire: step A of the hand-over protocol of `routes`, see there.
        self.traffic.in_flight.fetch_add(1, Ordering::Acquire)
    }

    /// Ends an attempt, after its outcome is counted.
    pub(crate) fn leave(&self) {
        // Release: who reads 0 in `totals` (Acquire) also sees what was counted
        // before; the last report about a drained instance is complete.
        self.traffic.in_flight.fetch_sub(1, Ordering::Release);
    }

    /// The attempt is certain: stamps it.
    pub(crate) fn picked(&self, now_ns: u64) {
        // Relaxed: a fact of its own. A maximum, since two workers may come here in any order.
        self.traffic
            .last_pick_ns
            .fetch_max(now_ns, Ordering::Relaxed);
    }

    /// Counts the end of an attempt.
    pub(crate) fn ended(&self, first: bool, outcome: Outcome) {
        let ends = if first {
            &self.traffic.first
        } else {
            &self.traffic.retry
        };
        let counter = match outcome {
            Outcome::Ok => &ends.ok,
            Outcome::Failed => &ends.failed,
            Outcome::Aborted => &ends.aborted,
            Outcome::Overtaken => &ends.overtaken,
        };
        // Relaxed: counters only rise and are published by `leave`.
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Attempts in flight, as they are at some moment of late.
    pub(crate) fn in_flight(&self) -> u64 {
        // Relaxed: to choose by, not to wait for.
        self.traffic.in_flight.load(Ordering::Relaxed)
    }

    /// Latency that an attempt may expect at `now_ns`, µs; 0 = not known.
    pub(crate) fn expected_micros(&self, now_ns: u64) -> f64 {
        self.traffic.pace.expected_micros(now_ns)
    }

    /// Notes how long an attempt took that ended at `now_ns`, whatever its end.
    pub(crate) fn note_pace(&self, micros: u64, now_ns: u64) {
        self.traffic.pace.note(micros, now_ns);
    }

    /// Latencies counted so far, by bucket of [`sim_core::histogram`].
    pub(crate) fn latencies(&self) -> Box<[u64]> {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        self.latency.iter().map(read).collect()
    }

    /// Counts the latency of an answered first attempt.
    pub(crate) fn record_latency(&self, micros: u64) {
        if let Some(bucket) = self.latency.get(bucket_of(micros)) {
            // Relaxed: as in `ended`.
            bucket.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// All counters since the start. Never reset: readers take differences of two reads, so
    /// that no count falls between a read and a reset.
    #[must_use]
    pub fn totals(&self) -> Totals {
        // A read that writes the same again: step D of the protocol of `routes`, see there. Acquire, and first:
        // what ended before this count is in the counts below.
        let in_flight = self.traffic.in_flight.fetch_add(0, Ordering::AcqRel);
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let ends = |ends: &Ends| EndTotals {
            ok: read(&ends.ok),
            failed: read(&ends.failed),
            aborted: read(&ends.aborted),
            overtaken: read(&ends.overtaken),
        };
        Totals {
            in_flight,
            last_pick_ns: read(&self.traffic.last_pick_ns),
            first: ends(&self.traffic.first),
            retry: ends(&self.traffic.retry),
            latency: self.latencies(),
        }
    }
}

/// Ends of attempts so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EndTotals {
    /// Answered below 500.
    pub ok: u64,
    /// Answered with 500 or above, or not.
    pub failed: u64,
    /// Left by the user.
    pub aborted: u64,
    /// Slower than another instance that was asked later.
    pub overtaken: u64,
}

/// One reading of an instance's counters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Attempts in flight now.
    pub in_flight: u64,
    /// Last pick, `CLOCK_MONOTONIC` ns; 0 = never.
    pub last_pick_ns: u64,
    /// Ends of first attempts.
    pub first: EndTotals,
    /// Ends of retries.
    pub retry: EndTotals,
    /// Counts by bucket of [`sim_core::histogram`]; empty = none.
    pub latency: Box<[u64]>,
}

impl Totals {
    /// Latencies counted since `earlier`.
    #[must_use]
    pub fn latency_since(&self, earlier: &Self) -> LatencyHistogram {
        let counted = |(bucket, &count): (usize, &u64)| {
            let before = earlier.latency.get(bucket).copied().unwrap_or(0);
            (bucket as u32, count.saturating_sub(before))
        };
        LatencyHistogram::from_pairs(self.latency.iter().enumerate().map(counted))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_of_two_readings_hold_each_count_once() {
        let live = InstanceLive::new(InstanceId(1), ([127, 0, 0, 1], 80).into());
        live.record_latency(1_000);
        let first = live.totals();
        live.record_latency(1_000);
        live.record_latency(9_000);
        live.ended(true, Outcome::Ok);
        live.ended(false, Outcome::Ok);
        let second = live.totals();
        assert_eq!(second.latency_since(&first).count(), 2);
        assert_eq!(second.latency_since(&Totals::default()).count(), 3);
        assert_eq!((second.first.ok, second.retry.ok), (1, 1));
    }

    #[test]
    fn counters_and_health_do_not_share_a_line() {
        let live = InstanceLive::new(InstanceId(1), ([127, 0, 0, 1], 80).into());
        let traffic = std::ptr::from_ref(&*live.traffic) as usize;
        let health = std::ptr::from_ref(&*live.health) as usize;
        assert!(traffic.abs_diff(health) >= 64);
        assert!(std::mem::offset_of!(Traffic, retry) <= 64);
    }
}
