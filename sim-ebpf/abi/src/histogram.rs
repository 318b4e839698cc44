//! Log2 latency buckets: the cheapest histogram that a BPF program can keep without a loop.
//!
//! One unit for all three users (run-queue delay, block latency, smoothed round trip): nanoseconds.
//! Below 1 µs nothing is told apart, above 18 minutes nothing either. A quantile read from it is off
//! by at most the width of its bucket, a factor of two; means come from the exact sums beside it.

/// Number of buckets of a [`Histogram`]; a power of two, so that a mask proves the bound to the verifier.
pub const HISTOGRAM_BUCKETS: usize = 32;

/// Bucket 0 holds everything below `1 << FIRST_BITS` ns.
const FIRST_BITS: u32 = 10;

/// Counts by log2 of the duration; see [`bucket_of`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Histogram {
    /// Number of values that fell in each bucket.
    pub buckets: [u64; HISTOGRAM_BUCKETS],
}

/// Bucket of a duration: 0 below 1 024 ns, `i` for `[2^(9+i), 2^(10+i))` ns, the last one open-ended.
#[inline(always)]
pub const fn bucket_of(ns: u64) -> usize {
    // Branch-free binary search for the top bit: BPF has no count-leading-zeros instruction, and what
    // LLVM expands it to costs more than this.
    let mut rest = ns >> FIRST_BITS;
    let mut bits = 0;
    let mut step = ((rest > 0xffff_ffff) as u32) << 5;
    rest >>= step;
    bits |= step;
    step = ((rest > 0xffff) as u32) << 4;
    rest >>= step;
    bits |= step;
    step = ((rest > 0xff) as u32) << 3;
    rest >>= step;
    bits |= step;
    step = ((rest > 0xf) as u32) << 2;
    rest >>= step;
    bits |= step;
    step = ((rest > 0x3) as u32) << 1;
    rest >>= step;
    bits |= step;
    bits |= (rest >> 1) as u32;
    let bucket = bits as usize + (ns >> FIRST_BITS != 0) as usize;
    if bucket < HISTOGRAM_BUCKETS {
        bucket
    } else {
        HISTOGRAM_BUCKETS - 1
    }
}

/// Smallest duration that falls in `bucket`, in nanoseconds.
pub const fn bucket_lower_ns(bucket: usize) -> u64 {
    if bucket == 0 {
        0
    } else {
        1 << (FIRST_BITS as usize + bucket - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_starts_at_its_lower_bound_and_ends_below_the_next() {
        for bucket in 0..HISTOGRAM_BUCKETS {
            let lower = bucket_lower_ns(bucket);
            assert_eq!(bucket_of(lower), bucket, "lower bound of {bucket}");
            if bucket + 1 < HISTOGRAM_BUCKETS {
                assert_eq!(
                    bucket_of(bucket_lower_ns(bucket + 1) - 1),
                    bucket,
                    "upper end of {bucket}"
                );
            }
        }
    }

    #[test]
    fn the_last_bucket_is_open_ended() {
        assert_eq!(bucket_of(u64::MAX), HISTOGRAM_BUCKETS - 1);
        assert_eq!(bucket_of(1 << 41), HISTOGRAM_BUCKETS - 1);
    }
}
