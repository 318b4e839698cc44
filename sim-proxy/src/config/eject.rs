//! Settings of passive ejection, see [`crate::health`].

use std::time::Duration;

/// When an instance is left alone, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct EjectSettings {
    /// Answers of 500 and above, or timeouts, in a row.
    pub consecutive_bad_answers: u32,
    /// Resets in a row on connections that had served before. One alone may be the race of a
    /// request with the instance's keep-alive timer and says nothing about its health.
    pub consecutive_stale_resets: u32,
    /// How long an instance answers nothing, while others answer requests that it had first, until it is taken for
    /// hung.
    pub hang_after: Duration,
    /// First ejection.
    pub base: Duration,
    /// Longest ejection; each failed probe doubles the last one up to here.
    pub max: Duration,
    /// After this time without ejection the next one is a first one again.
    pub forget_after: Duration,
    /// How long the probe after an ejection may stay unanswered before another is sent.
    pub probe_window: Duration,
    /// How long an instance that comes back takes to get all of its weight again; 0 = it gets it at once.
    pub slow_start: Duration,
    /// The same for one that has become ready. The control plane warms its shadows itself.
    pub slow_start_new: Duration,
}

impl Default for EjectSettings {
    fn default() -> Self {
        Self {
            consecutive_bad_answers: 5,
            consecutive_stale_resets: 2,
            hang_after: Duration::from_millis(300),
            base: Duration::from_millis(500),
            max: Duration::from_secs(30),
            forget_after: Duration::from_secs(60),
            probe_window: Duration::from_secs(2),
            slow_start: Duration::from_secs(5),
            slow_start_new: Duration::ZERO,
        }
    }
}
