//! Retry budget: retries may add at most a share to the load, or they turn a brown-out into an
//! outage. Counted over this window and the one before it (weighted by overlap it would be
//! smoother, and no safer); a floor lets the burst of a dying instance through.

use crate::clock::nanos;
use crate::config::RetrySettings;
use std::sync::atomic::{AtomicU64, Ordering};

/// Counts requests per window from the proxy's own arrival counter, so that a request that is not
/// retried pays nothing.
#[derive(Debug)]
pub(crate) struct RetryBudget {
    settings: RetrySettings,
    /// Start of the present window, ns; 0 = none yet.
    started_ns: AtomicU64,
    arrivals_at_start: AtomicU64,
    arrivals_before: AtomicU64,
    retries: AtomicU64,
    retries_before: AtomicU64,
}

impl RetryBudget {
    pub(crate) fn new(settings: RetrySettings) -> Self {
        Self {
            settings,
            started_ns: AtomicU64::default(),
            arrivals_at_start: AtomicU64::default(),
            arrivals_before: AtomicU64::default(),
            retries: AtomicU64::default(),
            retries_before: AtomicU64::default(),
        }
    }

    /// Takes one retry out of the budget; `arrivals` counts all requests so far. One that `is_spare` leaves half of it
    /// to the others. False: none left.
    pub(crate) fn take(&self, arrivals: u64, now_ns: u64, is_spare: bool) -> bool {
        self.turn(arrivals, now_ns);
        // Relaxed throughout: the words are read and written by retries alone, and a thread that
        // meets them while another turns the window over- or underspends by as many retries as
        // run at that instant.
        let read = |word: &AtomicU64| word.load(Ordering::Relaxed);
        let seen = arrivals
            .saturating_sub(read(&self.arrivals_at_start))
            .saturating_add(read(&self.arrivals_before));
        let floor = u64::from(self.settings.floor_per_second)
            .saturating_mul(self.settings.window.as_secs().max(1));
        let allowed = floor.max(seen.saturating_mul(u64::from(self.settings.budget_percent)) / 100);
        let allowed = if is_spare { allowed / 2 } else { allowed };
        let spent = self.retries.fetch_add(1, Ordering::Relaxed) + read(&self.retries_before);
        if spent < allowed {
            return true;
        }
        self.retries.fetch_sub(1, Ordering::Relaxed);
        false
    }

    fn turn(&self, arrivals: u64, now_ns: u64) {
        let started = self.started_ns.load(Ordering::Relaxed);
        let window = nanos(self.settings.window).max(1);
        let age = now_ns.saturating_sub(started);
        if age < window {
            return;
        }
        // One thread wins the turn.
        let turned =
            self.started_ns
                .compare_exchange(started, now_ns, Ordering::Relaxed, Ordering::Relaxed);
        if turned.is_err() {
            return;
        }
        let start = self.arrivals_at_start.swap(arrivals, Ordering::Relaxed);
        let retries = self.retries.swap(0, Ordering::Relaxed);
        // Windows are turned by retries alone, so the last one may be long past; and what came in
        // over many windows is no credit for one.
        let windows = age / window;
        let before = arrivals.saturating_sub(start) / windows;
        self.arrivals_before.store(before, Ordering::Relaxed);
        let retries_before = if windows == 1 { retries } else { 0 };
        self.retries_before.store(retries_before, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn spend(budget: &RetryBudget, arrivals: u64, now_ns: u64) -> usize {
        std::iter::repeat_with(|| budget.take(arrivals, now_ns, false))
            .take_while(|&ok| ok)
            .count()
    }

    #[test]
    fn a_burst_is_let_through_at_any_rate_and_no_more() {
        let budget = RetryBudget::new(RetrySettings::default());
        assert_eq!(spend(&budget, 3, 100 * SECOND), 100);
        assert_eq!(spend(&budget, 3, 105 * SECOND), 0);
    }

    #[test]
    fn under_load_it_is_a_share_of_the_requests() {
        let budget = RetryBudget::new(RetrySettings::default());
        assert!(budget.take(0, 100 * SECOND, false));
        assert_eq!(spend(&budget, 10_000, 109 * SECOND), 1_999);
        // The window before still counts, with its requests and its retries.
        assert_eq!(spend(&budget, 10_000, 110 * SECOND), 0);
        assert_eq!(spend(&budget, 20_000, 119 * SECOND), 2_000);
    }

    #[test]
    fn who_could_as_well_wait_leaves_half_to_those_who_failed() {
        let budget = RetryBudget::new(RetrySettings::default());
        let hedges = std::iter::repeat_with(|| budget.take(3, 100 * SECOND, true));
        assert_eq!(hedges.take_while(|&ok| ok).count(), 50);
        assert_eq!(spend(&budget, 3, 100 * SECOND), 50);
        assert!(!budget.take(3, 100 * SECOND, true));
    }

    #[test]
    fn a_quiet_hour_is_no_credit() {
        let budget = RetryBudget::new(RetrySettings::default());
        assert!(budget.take(0, 100 * SECOND, false));
        assert_eq!(spend(&budget, 360_000, 3_700 * SECOND), 200);
    }
}
