//! Records that the kernel programs log (rare events only, and only where somebody listens), handed on to
//! `tracing`.

use log::{Level, Log, Metadata, Record};
use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Target of all events that come from the kernel side.
pub(crate) const TARGET: &str = "sim_ebpf::kernel";

/// Records handed on in each [`WINDOW`]; the others are counted.
const RECORDS_MAX: u64 = 100;
const WINDOW: Duration = Duration::from_secs(1);

/// A [`Log`] of our own rather than the global one, so that no bridge need be installed.
#[derive(Default)]
pub(crate) struct ToTracing {
    limit: Mutex<Limit>,
}

/// How many records came in the present window.
#[derive(Debug, Default)]
struct Limit {
    since: Option<Instant>,
    records: u64,
}

impl Limit {
    /// Whether one more may pass, and how many an earlier window kept back, once.
    fn pass(&mut self, now: Instant) -> (bool, u64) {
        let mut kept_back = 0;
        if self
            .since
            .is_none_or(|since| now.duration_since(since) >= WINDOW)
        {
            kept_back = self.records.saturating_sub(RECORDS_MAX);
            *self = Self {
                since: Some(now),
                records: 0,
            };
        }
        self.records += 1;
        (self.records <= RECORDS_MAX, kept_back)
    }
}

impl Log for ToTracing {
    fn enabled(&self, _metadata: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let limit = self.limit.lock();
        let (passes, kept_back) = limit
            .unwrap_or_else(PoisonError::into_inner)
            .pass(Instant::now());
        if kept_back > 0 {
            tracing::debug!(target: TARGET, "{kept_back} records were too many and are left out");
        }
        if !passes {
            return;
        }
        let message = record.args();
        match record.level() {
            Level::Error => tracing::error!(target: TARGET, "{message}"),
            Level::Warn => tracing::warn!(target: TARGET, "{message}"),
            Level::Info => tracing::info!(target: TARGET, "{message}"),
            Level::Debug => tracing::debug!(target: TARGET, "{message}"),
            Level::Trace => tracing::trace!(target: TARGET, "{message}"),
        }
    }

    fn flush(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_pass_in_a_window_and_the_next_one_tells_of_the_others() {
        let mut limit = Limit::default();
        let start = Instant::now();
        let passed = (0..RECORDS_MAX + 7).filter(|_| limit.pass(start).0).count();
        assert_eq!(passed as u64, RECORDS_MAX);
        assert_eq!(limit.pass(start + WINDOW), (true, 7));
        assert_eq!(limit.pass(start + WINDOW), (true, 0));
    }
}
