//! User side of the kernel's log2 histogram.

use sim_ebpf_abi::{HISTOGRAM_BUCKETS, Histogram, bucket_lower_ns};

/// Durations counted by powers of two of a nanosecond; cumulative or a difference of two readings.
///
/// The lowest bucket holds everything below 1 024 ns, the highest everything above 18 minutes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Log2Histogram {
    counts: [u64; HISTOGRAM_BUCKETS],
}

impl Log2Histogram {
    /// Number of values.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.counts
            .iter()
            .fold(0, |sum, &count| sum.saturating_add(count))
    }

    /// Estimate of the `q`-quantile in nanoseconds; `None` if there are no values.
    ///
    /// Interpolates inside the bucket that holds it, so it is off by less than a factor of two, and
    /// monotone in `q`. `q` is clamped to `0..=1`. In the open-ended last bucket it is that bucket's
    /// lower bound.
    #[must_use]
    pub fn quantile_ns(&self, q: f64) -> Option<f64> {
        let total = self.total();
        if total == 0 {
            return None;
        }
        let rank = q.clamp(0.0, 1.0) * total as f64;
        let mut below = 0.0;
        let mut last = 0.0;
        for (bucket, &count) in self
            .counts
            .iter()
            .enumerate()
            .filter(|&(_, &count)| count > 0)
        {
            let lower = bucket_lower_ns(bucket) as f64;
            let width = if bucket + 1 < HISTOGRAM_BUCKETS {
                bucket_lower_ns(bucket + 1) as f64 - lower
            } else {
                0.0
            };
            let within = ((rank - below) / count as f64).clamp(0.0, 1.0);
            last = lower + width * within;
            below += count as f64;
            if below >= rank {
                break;
            }
        }
        Some(last)
    }

    /// Each bucket's exclusive upper bound in nanoseconds (`None`: open-ended) and its own count, lowest first.
    pub fn buckets(&self) -> impl Iterator<Item = (Option<u64>, u64)> + '_ {
        self.counts.iter().enumerate().map(|(bucket, &count)| {
            let upper = (bucket + 1 < HISTOGRAM_BUCKETS).then(|| bucket_lower_ns(bucket + 1));
            (upper, count)
        })
    }

    /// What was added since `earlier`, a previous reading of the same histogram.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            counts: std::array::from_fn(|bucket| {
                self.counts[bucket].saturating_sub(earlier.counts[bucket])
            }),
        }
    }

    /// Both together, as for the nested cgroups of one instance.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        Self {
            counts: std::array::from_fn(|bucket| {
                self.counts[bucket].saturating_add(other.counts[bucket])
            }),
        }
    }
}

impl From<Histogram> for Log2Histogram {
    fn from(kernel: Histogram) -> Self {
        Self {
            counts: kernel.buckets,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sim_ebpf_abi::bucket_of;

    fn of(values: impl IntoIterator<Item = u64>) -> Log2Histogram {
        let mut histogram = Log2Histogram::default();
        for value in values {
            histogram.counts[bucket_of(value)] += 1;
        }
        histogram
    }

    #[test]
    fn a_quantile_is_within_a_factor_of_two_and_monotone() {
        let histogram = of((1..=10_000_u64).map(|i| i * 1_000));
        let mut previous = 0.0;
        for percent in 1..=100_u32 {
            let q = f64::from(percent) / 100.0;
            let (estimate, truth) = (histogram.quantile_ns(q).unwrap(), q * 1e7);
            assert!(
                estimate / truth < 2.0 && truth / estimate < 2.0,
                "q {q}: {estimate} for {truth}"
            );
            assert!(estimate >= previous, "q {q}: {estimate} after {previous}");
            previous = estimate;
        }
    }

    #[test]
    fn without_values_there_is_no_quantile() {
        assert_eq!(Log2Histogram::default().quantile_ns(0.5), None);
    }

    #[test]
    fn any_counts_and_any_q_give_a_finite_estimate() {
        let full = Log2Histogram {
            counts: [u64::MAX; HISTOGRAM_BUCKETS],
        };
        for q in [f64::NEG_INFINITY, -1.0, 0.0, 0.5, 1.0, 2.0, f64::INFINITY] {
            assert!(full.quantile_ns(q).unwrap().is_finite(), "q {q}");
            assert!(of([u64::MAX]).quantile_ns(q).unwrap().is_finite(), "q {q}");
        }
    }

    #[test]
    fn since_never_wraps() {
        let (small, large) = (of([5_000]), of([5_000, 5_000, 9_000_000]));
        assert_eq!(large.since(&small).total(), 2);
        assert_eq!(small.since(&large).total(), 0);
        assert_eq!(small.plus(&large.since(&small)), large);
    }
}
