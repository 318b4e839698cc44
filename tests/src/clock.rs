//! One moment seen by the clocks that the records of a run are stamped with.
//!
//! The journal counts microseconds since the Unix epoch, advanced by a monotonic clock; the
//! proxy and the kernel count `CLOCK_MONOTONIC`. Reading both once and going on by the monotonic
//! one keeps them comparable through a step of the wall clock.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::time::{ClockId, clock_gettime};
use sim_core::time::Time;

/// Origin of a run.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    instant: Instant,
    unix_micros: u64,
}

impl Clock {
    /// Starts at this moment.
    #[must_use]
    pub fn start() -> Self {
        let since_epoch = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Self {
            instant: Instant::now(),
            unix_micros: micros(since_epoch),
        }
    }

    /// Seconds since the origin.
    #[must_use]
    pub fn elapsed_seconds(&self) -> f64 {
        self.instant.elapsed().as_secs_f64()
    }

    /// Now, as the journal counts.
    #[must_use]
    pub fn now(&self) -> Time {
        self.time_of(Instant::now())
    }

    /// A moment, as the journal counts.
    #[must_use]
    pub fn time_of(&self, moment: Instant) -> Time {
        Time(self.unix_micros + micros(moment.saturating_duration_since(self.instant)))
    }

    /// A moment of the journal in seconds since the origin; negative before it.
    #[must_use]
    pub fn seconds_of(&self, time: Time) -> f64 {
        (time.0 as f64 - self.unix_micros as f64) / 1e6
    }
}

/// `CLOCK_MONOTONIC` in nanoseconds: comparable with the kernel's and the proxy's stamps.
#[must_use]
pub fn monotonic_ns() -> u64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC)
        .map(|time| u64::try_from(Duration::from(time).as_nanos()).unwrap_or(u64::MAX))
        .unwrap_or(0)
}

fn micros(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_keeps_its_distance_on_every_scale() {
        let clock = Clock::start();
        let later = clock.instant + Duration::from_millis(1_500);
        assert!((clock.seconds_of(clock.time_of(later)) - 1.5).abs() < 1e-6);
    }
}
