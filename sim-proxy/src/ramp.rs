//! Slow start: an instance that comes back gets a part of its weight first, and the rest within a while.
//!
//! Its caches are cold and its pools empty, or what had made it fail is still there: the whole share at once would be the
//! next failure. The weight stays the law: what a ramp holds back goes to the others by theirs.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The first part, of 2^64.
const FIRST: u64 = u64::MAX / 10;

/// One instance's way back.
#[derive(Debug, Default)]
pub(crate) struct Ramp {
    /// `CLOCK_MONOTONIC` ns until which it lasts; 0 = there is none.
    until_ns: AtomicU64,
    span_ns: AtomicU64,
}

// Relaxed: who reads the end of one ramp with the span of another gets a part that is neither's, for a pick or two.
impl Ramp {
    /// None is under way: the common case of a pick.
    #[inline]
    pub(crate) fn is_over(&self) -> bool {
        self.until_ns.load(Ordering::Relaxed) == 0
    }

    /// Begins one.
    pub(crate) fn begin(&self, now_ns: u64, span: Duration) {
        let span_ns = u64::try_from(span.as_nanos()).unwrap_or(u64::MAX);
        if span_ns > 0 {
            self.span_ns.store(span_ns, Ordering::Relaxed);
            self.until_ns
                .store(now_ns.saturating_add(span_ns), Ordering::Relaxed);
        }
    }

    /// The part of its weight that the instance gets at `now_ns`, of 2^64.
    pub(crate) fn part(&self, now_ns: u64) -> u64 {
        let until_ns = self.until_ns.load(Ordering::Relaxed);
        if until_ns == 0 {
            return u64::MAX;
        }
        let left_ns = until_ns.saturating_sub(now_ns);
        if left_ns == 0 {
            // So that picks needn't look at the clock for it; unless another has begun.
            let over = Ordering::Relaxed;
            self.until_ns.compare_exchange(until_ns, 0, over, over).ok();
            return u64::MAX;
        }
        let span_ns = self.span_ns.load(Ordering::Relaxed).max(1);
        let held = u128::from(u64::MAX - FIRST) * u128::from(left_ns.min(span_ns));
        u64::MAX - (held / u128::from(span_ns)) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_rises_from_a_tenth_to_the_whole_and_is_over() {
        let (ramp, start) = (Ramp::default(), 1_000_000);
        let part = |now_ns| ramp.part(now_ns) as f64 / u64::MAX as f64;
        assert_eq!(part(start), 1.0);
        ramp.begin(start, Duration::ZERO);
        assert!(ramp.is_over());
        ramp.begin(start, Duration::from_nanos(1_000));
        for (after, expected) in [(0, 0.1), (500, 0.55), (999, 0.9991)] {
            let found = part(start + after);
            assert!((found - expected).abs() < 1e-3, "{found} after {after}");
        }
        assert!(!ramp.is_over());
        assert_eq!(part(start + 1_000), 1.0);
        assert!(ramp.is_over());
    }
}
