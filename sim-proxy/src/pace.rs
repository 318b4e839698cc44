//! How fast an instance answers of late: a latency that jumps to a peak at once and forgets it slowly.

use crate::sync::atomic::{AtomicU64, Ordering};

/// How long a latency is remembered: after this time without another it weighs 1/e.
const MEMORY_NS: f64 = 10e9;
/// Unit of the time in a word, as a shift of nanoseconds: 131 µs, so that 32 bits turn over after 6.5 days.
const TICK_SHIFT: u32 = 17;
/// Ticks, 8 ms, within which nothing is forgotten: the difference would be lost in rounding.
const REST_TICKS: u32 = 64;

/// Peak EWMA of latencies (after Finagle's), in one word: microseconds above, as an `f32`; since when below. So ever reads the latency of one moment with the time of another.
#[derive(Debug, Default)]
pub(crate) struct Pace(AtomicU64);

// Relaxed throughout: the word is whole by itself and publishes nothing. Of two latencies at the same instant one may
// be lost; it would have moved the mean by next to nothing, unless it was a peak, and then the next one like it counts.
impl Pace {
    /// Notes a latency of `micros` at `now_ns`.
    pub(crate) fn note(&self, micros: u64, now_ns: u64) {
        let word = self.0.load(Ordering::Relaxed);
        let now = tick(now_ns);
        let (before, at) = parts(word);
        let micros = micros.max(1) as f32;
        let next = if word == 0 || micros >= before {
            micros
        } else if now.wrapping_sub(at) < REST_TICKS {
            return;
        } else {
            let keep = memory(at, now) as f32;
            before * keep + micros * (1.0 - keep)
        };
        let word = u64::from(next.to_bits()) << 32 | u64::from(now);
        self.0.store(word, Ordering::Relaxed);
    }

    /// Expected latency at `now_ns`, µs; 0 = none is known. Without news it sinks, so that an instance that was slow
    /// is tried again.
    pub(crate) fn expected_micros(&self, now_ns: u64) -> f64 {
        let (micros, at) = parts(self.0.load(Ordering::Relaxed));
        f64::from(micros) * memory(at, tick(now_ns))
    }
}

fn tick(now_ns: u64) -> u32 {
    (now_ns >> TICK_SHIFT) as u32
}

fn parts(word: u64) -> (f32, u32) {
    (f32::from_bits((word >> 32) as u32), word as u32)
}

fn memory(at: u32, now: u32) -> f64 {
    // Another worker may have looked at the clock a little later.
    let ticks = now.wrapping_sub(at) as i32;
    (-f64::from(ticks.max(0)) * f64::from(1_u32 << TICK_SHIFT) / MEMORY_NS).exp()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn a_peak_counts_at_once_and_is_forgotten_slowly() {
        let pace = Pace::default();
        assert_eq!(pace.expected_micros(SECOND), 0.0);
        pace.note(1_000, SECOND);
        assert_eq!(pace.expected_micros(SECOND), 1_000.0);
        pace.note(50_000, SECOND);
        assert_eq!(pace.expected_micros(SECOND), 50_000.0);
        pace.note(1_000, 2 * SECOND);
        let expected = pace.expected_micros(2 * SECOND);
        assert!((45_000.0..46_500.0).contains(&expected), "{expected}");
        for second in 3..60 {
            pace.note(1_000, second * SECOND);
        }
        let expected = pace.expected_micros(59 * SECOND);
        assert!((1_000.0..1_400.0).contains(&expected), "{expected}");
    }

    #[test]
    fn many_latencies_in_no_time_don_t_wash_a_peak_away() {
        let pace = Pace::default();
        pace.note(50_000, SECOND);
        for nanos in 0..10_000 {
            pace.note(100, SECOND + nanos * 10);
        }
        assert!(pace.expected_micros(SECOND) > 49_000.0);
    }

    #[test]
    fn without_news_a_slow_one_is_tried_again() {
        let pace = Pace::default();
        pace.note(50_000, SECOND);
        assert!(pace.expected_micros(61 * SECOND) < 200.0);
        // A clock that is a little behind changes nothing.
        assert_eq!(pace.expected_micros(0), 50_000.0);
    }

    #[test]
    fn the_turn_of_the_clock_is_met() {
        let pace = Pace::default();
        let turn = (u64::from(u32::MAX) << TICK_SHIFT) + 5;
        pace.note(1_000, turn);
        let later = turn + SECOND;
        let expected = pace.expected_micros(later);
        assert!((900.0..910.0).contains(&expected), "{expected}");
    }
}
