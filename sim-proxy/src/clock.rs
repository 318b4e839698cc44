//! The proxy's one clock.

use nix::time::{ClockId, clock_gettime};
use std::time::Duration;

/// `CLOCK_MONOTONIC` in nanoseconds: the clock of the kernel's `bpf_ktime_get_ns`, so that a
/// pick can be compared with the kernel's stamp of a death. Read in user space (vDSO), about 20 ns.
#[must_use]
#[inline]
pub fn monotonic_ns() -> u64 {
    // The call fails for an unknown clock or a bad pointer alone; neither is possible here.
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |t| {
        t.tv_sec() as u64 * 1_000_000_000 + t.tv_nsec() as u64
    })
}

/// Time since 1970, ns, as the system has it. Read in user space as well.
#[must_use]
pub(crate) fn wall_ns() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, nanos)
}

/// `span` in nanoseconds, at most `u64::MAX`.
#[must_use]
pub(crate) fn nanos(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_kernels_monotonic_clock() {
        let uptime = std::fs::read_to_string("/proc/uptime").expect("procfs");
        let boot: f64 = uptime
            .split(' ')
            .next()
            .and_then(|s| s.parse().ok())
            .expect("a number");
        // CLOCK_BOOTTIME runs ahead of CLOCK_MONOTONIC by the time spent suspended.
        assert!(monotonic_ns() as f64 / 1e9 <= boot + 1.0);
        assert!(monotonic_ns() <= monotonic_ns());
    }
}
