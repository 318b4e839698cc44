//! Passive ejection: an instance that fails real requests is left alone for a while.
//!
//! It must work with one primary and one shadow, where statistics over peers (Envoy's outlier
//! detection) have nothing to compare: so it counts failures in a row. One word holds the state:
//! 0 = in, otherwise the moment until which nobody picks the instance. After that moment one
//! request, the probe, wins the right to try it by moving the word on; all others still see it
//! out. A good answer to the probe sets the word to 0, a bad one sets it further ahead.
//!
//! Failure mode: failures that requests share rather than the instance (a query of death, a bug
//! on one route) eject healthy instances. The damage is bounded: the last one is never ejected,
//! and a good answer ends an ejection.

use crate::checked::Checked;
use crate::clock::nanos;
use crate::config::EjectSettings;
use crate::ramp::Ramp;
use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// An ejection that ended this long ago and that no request has probed says nothing any more.
const UNPROBED_NS: u64 = 5_000_000_000;

/// Ejections in a row that a check may end early: more, and it says well what requests say isn't.
const EARLY_LEVEL_MAX: u32 = 2;

/// How an attempt failed, by what it says about the instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// No connection, or a new one closed before any byte of an answer.
    Connect,
    /// A connection that had served before was closed.
    StaleReset,
    /// An answer of 500 or above, one that is no HTTP, or none in time.
    BadAnswer,
    /// Another instance that was asked later answered first, or was asked since there was no end to the waiting.
    Overtaken,
}

/// Whether requests may go to an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Yes.
    In,
    /// No.
    Out,
    /// One may, to find out.
    ProbeDue,
}

/// One instance's ejection state. All its writes are rare, so that the line stays shared in every
/// core's cache and the read at each pick costs a load.
#[derive(Debug, Default)]
pub struct Health {
    /// 0 = in; otherwise `CLOCK_MONOTONIC` ns until which the instance is out.
    out_until_ns: AtomicU64,
    /// Failures in a row, weighted: see [`Health::failed`].
    strain: AtomicU32,
    /// When the first of them was overtaken; 0 = none was.
    silent_since_ns: AtomicU64,
    /// Doublings of the base ejection.
    level: AtomicU32,
    restored_at_ns: AtomicU64,
    ejections: AtomicU64,
    ramp: Ramp,
    checked: Checked,
}

// Orderings: every access but those of an ejection is Relaxed. Each word is a fact of its own; no other
// memory is published through it, and acting on a value that is a few nanoseconds old means one pick
// more or less, which the retry covers. Read-modify-writes are atomic whatever their ordering, and
// that alone decides who wins a probe. An ejection looks at other words after it wrote its own: see
// `eject_unless_last`.
impl Health {
    /// In, without a look at the clock: the common case of a pick.
    #[must_use]
    #[inline]
    pub fn is_in(&self) -> bool {
        self.out_until_ns.load(Ordering::Relaxed) == 0
    }

    /// What active checks say of it.
    #[inline]
    pub(crate) fn checked(&self) -> &Checked {
        &self.checked
    }

    /// It is ejected, and was not so often of late that nothing but its time should end that.
    pub(crate) fn may_return_early(&self) -> bool {
        !self.is_in() && self.level.load(Ordering::Relaxed) <= EARLY_LEVEL_MAX
    }

    /// Its slow start.
    #[inline]
    pub(crate) fn ramp(&self) -> &Ramp {
        &self.ramp
    }

    /// Standing at `now_ns`.
    #[must_use]
    pub fn standing(&self, now_ns: u64) -> Standing {
        match self.out_until_ns.load(Ordering::Relaxed) {
            0 => Standing::In,
            until if now_ns < until => Standing::Out,
            _ => Standing::ProbeDue,
        }
    }

    /// Until when it is out, in `CLOCK_MONOTONIC` ns; 0 = in.
    #[must_use]
    pub fn out_until_ns(&self) -> u64 {
        self.out_until_ns.load(Ordering::Relaxed)
    }

    /// As shown to people and to the control plane: out, or out until a moment ago and not
    /// tried since.
    #[must_use]
    pub fn is_ejected(&self, now_ns: u64) -> bool {
        let until = self.out_until_ns();
        until != 0 && now_ns < until.saturating_add(UNPROBED_NS)
    }

    /// Any request may probe it, also one that can't be repeated: none that can has come for so long. Where all are
    /// calls of gRPC, say, it would be out for ever.
    pub(crate) fn may_any_probe(&self, now_ns: u64) -> bool {
        let until = self.out_until_ns();
        until != 0 && now_ns >= until.saturating_add(UNPROBED_NS)
    }

    /// Ejections so far, failed probes included.
    #[must_use]
    pub fn ejections(&self) -> u64 {
        self.ejections.load(Ordering::Relaxed)
    }

    /// Takes the right to send the probe. One caller gets it per ejection and probe window.
    #[must_use]
    pub fn claim_probe(&self, now_ns: u64, settings: &EjectSettings) -> bool {
        let until = self.out_until_ns.load(Ordering::Relaxed);
        until != 0 && now_ns >= until && self.move_on(until, now_ns + nanos(settings.probe_window))
    }

    /// An attempt failed at `now_ns`. True: this was enough for an ejection, see [`Health::eject`].
    #[must_use]
    pub fn failed(&self, failure: Failure, now_ns: u64, settings: &EjectSettings) -> bool {
        let bad_answers = settings.consecutive_bad_answers.max(1);
        let stale_resets = settings.consecutive_stale_resets.max(1);
        // The least common scale on which n bad answers, or m stale resets, are full.
        let full = bad_answers.saturating_mul(stale_resets);
        let weight = match failure {
            Failure::Connect => full,
            Failure::StaleReset => bad_answers,
            Failure::BadAnswer | Failure::Overtaken => stale_resets,
        };
        let before = self.strain.fetch_add(weight, Ordering::Relaxed);
        let enough = before.saturating_add(weight) >= full;
        if failure != Failure::Overtaken {
            return enough;
        }
        // To be overtaken is to be late. Only who has answered nothing for a while is taken for hung: all that it has
        // in flight is late at once after a pause, too.
        let since = &self.silent_since_ns;
        let begun = since.compare_exchange(0, now_ns, Ordering::Relaxed, Ordering::Relaxed);
        let silent_ns = now_ns.saturating_sub(begun.err().unwrap_or(now_ns));
        enough && silent_ns >= nanos(settings.hang_after)
    }

    /// In, for certain: what another thread has written is seen. Not for the request path.
    pub(crate) fn is_in_now(&self) -> bool {
        // A read that writes the same again; AcqRel: see `eject_unless_last`.
        self.out_until_ns.fetch_add(0, Ordering::AcqRel) == 0
    }

    /// Takes the instance out. False: it is out already (many requests fail at one death, and
    /// only the first may count).
    pub fn eject(&self, now_ns: u64, settings: &EjectSettings) -> bool {
        self.eject_unless_last(now_ns, settings, || true)
    }

    /// The same, and takes it back at once unless `has_other` then says that another is in, by
    /// [`Health::is_in_now`]: false then too.
    ///
    /// Two threads may eject one instance each. Each writes its own word, then looks at the other's, and both are
    /// read-modify-writes: of those on one word one is first. If the look was, the write reads what it left, by
    /// Acquire of a Release, and so this thread's own look comes after the other's write. So one of the two sees the
    /// other's at least, and takes its own back.
    pub(crate) fn eject_unless_last(
        &self,
        now_ns: u64,
        settings: &EjectSettings,
        has_other: impl FnOnce() -> bool,
    ) -> bool {
        let until = self.out_until_ns.load(Ordering::Relaxed);
        if until != 0 && now_ns < until {
            return false;
        }
        let healthy_for = now_ns.saturating_sub(self.restored_at_ns.load(Ordering::Relaxed));
        let forgotten = until == 0 && healthy_for > nanos(settings.forget_after);
        let level = if forgotten || self.ejections() == 0 {
            0
        } else {
            self.level.load(Ordering::Relaxed).saturating_add(1)
        };
        self.take_out(until, level, now_ns, settings, has_other)
    }

    /// The probe failed: out again, for twice as long.
    pub fn probe_failed(&self, now_ns: u64, settings: &EjectSettings) -> bool {
        let until = self.out_until_ns.load(Ordering::Relaxed);
        let level = self.level.load(Ordering::Relaxed).saturating_add(1);
        self.take_out(until, level, now_ns, settings, || true)
    }

    fn take_out(
        &self,
        until: u64,
        level: u32,
        now_ns: u64,
        settings: &EjectSettings,
        has_other: impl FnOnce() -> bool,
    ) -> bool {
        let factor = 1_u32.checked_shl(level).unwrap_or(u32::MAX);
        let span = settings.base.saturating_mul(factor).min(settings.max);
        let out_until = now_ns.saturating_add(nanos(span)).max(1);
        if !self.move_on(until, out_until) {
            return false;
        }
        if !has_other() {
            // Unless a good answer did so already.
            self.move_on(out_until, until);
            return false;
        }
        self.level.store(level.min(31), Ordering::Relaxed);
        self.ejections.fetch_add(1, Ordering::Relaxed);
        true
    }

    fn move_on(&self, from: u64, to: u64) -> bool {
        self.out_until_ns
            .compare_exchange(from, to, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
    }

    /// A good answer. It ends an ejection only if the attempt was `sent_while_out`: the late
    /// answer to a request from before proves nothing. True: the instance is in again.
    pub fn succeeded(&self, sent_while_out: bool, now_ns: u64) -> bool {
        // Looked at first, so that the common case writes nothing.
        if self.strain.load(Ordering::Relaxed) != 0 {
            self.strain.store(0, Ordering::Relaxed);
            self.silent_since_ns.store(0, Ordering::Relaxed);
        }
        if !sent_while_out || self.out_until_ns.swap(0, Ordering::Relaxed) == 0 {
            return false;
        }
        self.restored_at_ns.store(now_ns, Ordering::Relaxed);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;
    const START: u64 = 1_000_000 * MS;

    #[test]
    fn one_refused_connection_is_enough_and_only_the_first_of_a_burst_counts() {
        let (health, settings) = (Health::default(), EjectSettings::default());
        for _ in 0..20 {
            assert!(health.failed(Failure::Connect, START, &settings));
            health.eject(START, &settings);
        }
        assert_eq!(health.ejections(), 1);
        assert_eq!(health.standing(START + 499 * MS), Standing::Out);
        assert_eq!(health.standing(START + 500 * MS), Standing::ProbeDue);
    }

    #[test]
    fn bad_answers_and_stale_resets_must_come_in_a_row() {
        let (health, settings) = (Health::default(), EjectSettings::default());
        for _ in 0..4 {
            assert!(!health.failed(Failure::BadAnswer, START, &settings));
        }
        assert!(!health.succeeded(false, START));
        for _ in 0..4 {
            assert!(!health.failed(Failure::BadAnswer, START, &settings));
        }
        assert!(health.failed(Failure::BadAnswer, START, &settings));

        health.succeeded(false, START);
        assert!(
            !health.failed(Failure::StaleReset, START, &settings),
            "may be a keep-alive race"
        );
        assert!(health.failed(Failure::StaleReset, START, &settings));
    }

    #[test]
    fn one_probe_at_a_time_and_a_silent_probe_gives_way_to_another() {
        let (health, settings) = (Health::default(), EjectSettings::default());
        health.eject(START, &settings);
        let due = START + 500 * MS;
        assert!(!health.claim_probe(due - 1, &settings));
        assert!(health.claim_probe(due, &settings));
        assert!(!health.claim_probe(due, &settings));
        assert_eq!(health.standing(due), Standing::Out);
        assert!(health.claim_probe(due + 2_000 * MS, &settings));
    }

    #[test]
    fn failed_probes_back_off_to_the_limit_and_a_good_one_restores() {
        let (health, settings) = (Health::default(), EjectSettings::default());
        health.eject(START, &settings);
        let mut now = START;
        let mut spans = vec![];
        for _ in 0..9 {
            let due = health.out_until_ns();
            spans.push((due - now) / MS);
            now = due;
            assert!(health.claim_probe(now, &settings));
            assert!(health.probe_failed(now, &settings));
        }
        assert_eq!(
            spans,
            [
                500, 1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000, 30_000
            ]
        );
        assert!(
            !health.succeeded(false, now),
            "a late answer from before proves nothing"
        );
        assert!(health.is_ejected(now));
        assert!(health.succeeded(true, now));
        assert_eq!(health.standing(now), Standing::In);
    }

    #[test]
    fn a_relapse_is_no_first_offence_until_it_is_forgotten() {
        let (health, settings) = (Health::default(), EjectSettings::default());
        health.eject(START, &settings);
        health.succeeded(true, START + 600 * MS);
        let relapse = START + 1_000 * MS;
        health.eject(relapse, &settings);
        assert_eq!(health.out_until_ns() - relapse, 1_000 * MS);
        health.succeeded(true, relapse);
        let much_later = relapse + 61_000 * MS;
        health.eject(much_later, &settings);
        assert_eq!(health.out_until_ns() - much_later, 500 * MS);
    }

    #[test]
    fn an_ejection_that_nobody_probes_is_not_shown_for_ever() {
        let (health, settings) = (Health::default(), EjectSettings::default());
        health.eject(START, &settings);
        assert!(health.is_ejected(START + 1_000 * MS));
        assert!(!health.is_ejected(START + 6_000 * MS));
    }
}
