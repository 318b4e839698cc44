//! Settings of the waiting room, see [`crate::hold`].

use std::time::Duration;

/// How many requests may wait while no instance is ready, and how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HoldSettings {
    /// At most so many of a workload.
    pub requests_max: usize,
    /// Each no longer than this.
    pub wait_max: Duration,
}

impl Default for HoldSettings {
    fn default() -> Self {
        Self {
            requests_max: 1_000,
            wait_max: Duration::from_secs(10),
        }
    }
}
