//! Latency histogram with log-linear buckets (the layout of HdrHistogram with 32 sub-buckets):
//! 1 µs resolution at the bottom, at most 3.1 % relative error above 32 µs, up to 134 s.
//!
//! The bucket layout is shared by the proxy, which counts into an array of atomics, and by the
//! core, which needs quantiles and tail counts without `std`.

use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

const SUB_BITS: u32 = 5;
const SUB: u64 = 1 << SUB_BITS;
/// Values from here up are counted in the last bucket, in microseconds.
const MICROS_MAX: u64 = (1 << 27) - 1;
/// Number of buckets of the layout.
pub const BUCKETS: usize = ((27 - SUB_BITS as usize) + 1) * SUB as usize;

/// Bucket that counts a latency of `micros`.
#[must_use]
#[inline]
pub fn bucket_of(micros: u64) -> usize {
    let value = if micros > MICROS_MAX {
        MICROS_MAX
    } else {
        micros
    };
    if value < SUB {
        return value as usize;
    }
    let exponent = 63 - value.leading_zeros() - SUB_BITS;
    ((u64::from(exponent) + 1) * SUB + ((value >> exponent) - SUB)) as usize
}

/// Smallest latency counted by `bucket`, in microseconds.
#[must_use]
pub fn bucket_low_micros(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    if bucket < SUB {
        return bucket;
    }
    (SUB + bucket % SUB) << (bucket / SUB - 1)
}

/// Midpoint of `bucket`, in microseconds.
#[must_use]
pub fn bucket_mid_micros(bucket: usize) -> f64 {
    let low = bucket_low_micros(bucket) as f64;
    let high = bucket_low_micros(bucket + 1) as f64;
    if (bucket as u64) < SUB {
        low
    } else {
        (low + high) / 2.0
    }
}

/// Counts of latencies.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LatencyHistogram {
    /// `(bucket, count)`, ascending by bucket, no zero counts.
    counts: Vec<(u16, u64)>,
}

impl LatencyHistogram {
    /// From `(bucket, count)` pairs in any order; buckets out of the layout are clamped to its end.
    #[must_use]
    pub fn from_pairs(pairs: impl IntoIterator<Item = (u32, u64)>) -> Self {
        let mut histogram = Self::default();
        for (bucket, count) in pairs {
            histogram.add((bucket as usize).min(BUCKETS - 1), count);
        }
        histogram
    }

    /// `(bucket, count)` pairs, ascending, without zeros.
    pub fn pairs(&self) -> impl Iterator<Item = (u32, u64)> + '_ {
        self.counts
            .iter()
            .map(|&(bucket, count)| (u32::from(bucket), count))
    }

    /// Counts one latency.
    pub fn record_micros(&mut self, micros: u64) {
        self.add(bucket_of(micros), 1);
    }

    fn add(&mut self, bucket: usize, count: u64) {
        if count == 0 {
            return;
        }
        let key = bucket as u16;
        match self.counts.binary_search_by_key(&key, |&(b, _)| b) {
            Ok(at) => self.counts[at].1 = self.counts[at].1.saturating_add(count),
            Err(at) => self.counts.insert(at, (key, count)),
        }
    }

    /// Adds all of `other`.
    pub fn merge(&mut self, other: &Self) {
        for &(bucket, count) in &other.counts {
            self.add(usize::from(bucket), count);
        }
    }

    /// Number of latencies counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().map(|&(_, count)| count).sum()
    }

    /// Mean in microseconds; 0 when empty.
    #[must_use]
    pub fn mean_micros(&self) -> f64 {
        self.moments().0
    }

    /// Mean and variance, in microseconds and their square; zeros when empty.
    #[must_use]
    pub fn moments(&self) -> (f64, f64) {
        let total = self.count() as f64;
        if total == 0.0 {
            return (0.0, 0.0);
        }
        let sum = |f: &dyn Fn(f64) -> f64| -> f64 {
            self.counts
                .iter()
                .map(|&(b, c)| c as f64 * f(bucket_mid_micros(usize::from(b))))
                .sum::<f64>()
                / total
        };
        let mean = sum(&|x| x);
        (mean, sum(&|x| (x - mean) * (x - mean)))
    }

    /// Quantile `q` in 0..=1, in microseconds (upper edge of its bucket); `None` when empty.
    #[must_use]
    pub fn quantile_micros(&self, q: f64) -> Option<u64> {
        let total = self.count();
        if total == 0 {
            return None;
        }
        let rank = libm::ceil(q.clamp(0.0, 1.0) * total as f64).max(1.0) as u64;
        let mut seen = 0;
        for &(bucket, count) in &self.counts {
            seen += count;
            if seen >= rank {
                return Some(bucket_low_micros(usize::from(bucket) + 1).saturating_sub(1));
            }
        }
        None
    }

    /// How many latencies lie above `micros` (whole buckets above the one that holds it).
    #[must_use]
    pub fn count_above(&self, micros: u64) -> u64 {
        let limit = bucket_of(micros) as u16;
        self.counts
            .iter()
            .filter(|&&(b, _)| b > limit)
            .map(|&(_, c)| c)
            .sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn quantiles_of_a_known_sample() {
        let mut histogram = LatencyHistogram::default();
        (1..=1000).for_each(|ms| histogram.record_micros(ms * 1000));
        let p99 = histogram.quantile_micros(0.99).unwrap_or(0);
        assert!((985_000..=1_025_000).contains(&p99), "{p99}");
        assert_eq!(histogram.count(), 1000);
        assert!((histogram.mean_micros() - 500_500.0).abs() < 10_000.0);
    }

    proptest! {
        #[test]
        fn a_bucket_holds_its_value_within_the_stated_error(micros in 0..MICROS_MAX) {
            let bucket = bucket_of(micros);
            prop_assert!(bucket < BUCKETS);
            prop_assert!(bucket_low_micros(bucket) <= micros);
            prop_assert!(bucket_low_micros(bucket + 1) > micros);
            let width = bucket_low_micros(bucket + 1) - bucket_low_micros(bucket);
            prop_assert!(width == 1 || (width as f64) <= 0.032 * micros as f64);
        }

        #[test]
        fn merging_is_counting_together(a in prop::collection::vec(0u64..1 << 40, 0..50),
                                        b in prop::collection::vec(0u64..1 << 40, 0..50)) {
            let of = |xs: &[u64]| {
                let mut h = LatencyHistogram::default();
                xs.iter().for_each(|&x| h.record_micros(x));
                h
            };
            let mut merged = of(&a);
            merged.merge(&of(&b));
            let all: Vec<u64> = a.iter().chain(&b).copied().collect();
            prop_assert_eq!(merged, of(&all));
        }
    }
}
