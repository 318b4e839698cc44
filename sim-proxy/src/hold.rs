//! Requests that wait while no instance is ready.
//!
//! A workload of which no two instances may run at once is moved by stopping one and starting the next. In between the
//! table has nobody ready; who comes then waits, in bounded number and time, and goes on as soon as a table says that
//! somebody is. Nothing of this is touched while an instance is ready.

use crate::config::HoldSettings;
use crate::exposition::{Kind, Page};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

/// How the waiting of a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Released,
    /// There were too many already.
    Full,
    /// It took too long.
    Expired,
    /// The user left.
    Left,
}

const ENDS: [(End, &str); 4] = [
    (End::Released, "released"),
    (End::Full, "full"),
    (End::Expired, "expired"),
    (End::Left, "left"),
];

/// The waiting room of a workload.
#[derive(Debug)]
pub(crate) struct Hold {
    /// `None`: nobody waits.
    settings: Option<HoldSettings>,
    held: AtomicUsize,
    come: Notify,
    ends: [AtomicU64; ENDS.len()],
}

/// A place in it.
struct Place<'a> {
    hold: &'a Hold,
    end: End,
}

// Relaxed: the count of those who wait is a limit and a figure; it publishes nothing. That nobody misses a table is
// `Notify`'s: it hands its wake-up to whoever has asked for it before, and who asks after sees the table.
impl Hold {
    pub(crate) fn new(settings: Option<HoldSettings>) -> Self {
        Self {
            settings,
            held: AtomicUsize::new(0),
            come: Notify::new(),
            ends: Default::default(),
        }
    }

    /// A table by which an instance is ready is in force: those who wait go on, the first to come first.
    pub(crate) fn release(&self) {
        if self.settings.is_some() {
            self.come.notify_waiters();
        }
    }

    /// Waits until `again` has something, if it may.
    pub(crate) async fn wait<T>(&self, mut again: impl FnMut() -> Option<T>) -> Option<T> {
        let settings = self.settings?;
        let mut place = self.take_place(settings.requests_max)?;
        let deadline = Instant::now() + settings.wait_max;
        loop {
            // Before the look: a table that comes after it is heard of.
            let come = self.come.notified();
            if let Some(found) = again() {
                place.end = End::Released;
                return Some(found);
            }
            if timeout_at(deadline, come).await.is_err() {
                place.end = End::Expired;
                return None;
            }
        }
    }

    fn take_place(&self, requests_max: usize) -> Option<Place<'_>> {
        let one_more = |held| (held < requests_max).then_some(held + 1);
        let taken = self
            .held
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more);
        if taken.is_err() {
            self.count(End::Full);
            return None;
        }
        Some(Place {
            hold: self,
            end: End::Left,
        })
    }

    fn count(&self, end: End) {
        self.ends[end as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Its metrics.
    pub(crate) fn export(&self, page: &mut Page) {
        page.family(
            "sim_proxy_held",
            Kind::Gauge,
            "Requests that wait since no instance is ready, see proxy.hold.",
        )
        .sample(&[], self.held.load(Ordering::Relaxed));
        page.family(
            "sim_proxy_held_total",
            Kind::Counter,
            "Requests that came while no instance was ready and may wait for one, by how that ended: released (one became ready), full (proxy.hold.requests_max waited already; 503), expired (after proxy.hold.wait_ms; 503), left (the user did).",
        );
        for (end, name) in ENDS {
            let count = self.ends[end as usize].load(Ordering::Relaxed);
            page.sample(&[("outcome", &name)], count);
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.hold.held.fetch_sub(1, Ordering::Relaxed);
        self.hold.count(self.end);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicBool;
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    fn hold(requests_max: usize, wait_max: Duration) -> Hold {
        Hold::new(Some(HoldSettings {
            requests_max,
            wait_max,
        }))
    }

    fn counts(hold: &Hold) -> [u64; 4] {
        ENDS.map(|(end, _)| hold.ends[end as usize].load(Ordering::Relaxed))
    }

    #[tokio::test]
    async fn those_who_wait_go_on_in_the_order_in_which_they_came() {
        let hold = Arc::new(hold(10, Duration::from_secs(3_600)));
        let is_ready = Arc::<AtomicBool>::default();
        let order = Arc::<Mutex<Vec<u64>>>::default();
        let mut waiting = tokio::task::JoinSet::new();
        for n in 1..=5 {
            let (hold, is_ready, order) = (hold.clone(), is_ready.clone(), order.clone());
            waiting.spawn(async move {
                let again = || is_ready.load(Ordering::Relaxed).then_some(n);
                let found = hold.wait(again).await.expect("released");
                order.lock().expect("whole").push(found);
            });
        }
        while hold.held.load(Ordering::Relaxed) < 5 {
            tokio::task::yield_now().await;
        }
        // A table by which nobody is ready changes nothing.
        hold.release();
        tokio::task::yield_now().await;
        is_ready.store(true, Ordering::Relaxed);
        hold.release();
        waiting.join_all().await;
        assert_eq!(*order.lock().expect("whole"), [1, 2, 3, 4, 5]);
        assert_eq!(hold.held.load(Ordering::Relaxed), 0);
        assert_eq!(counts(&hold), [5, 0, 0, 0]);
    }

    #[tokio::test]
    async fn no_more_wait_than_may_and_no_longer_than_they_may() {
        let hold = hold(1, Duration::from_millis(1));
        let wait = || hold.wait(|| None::<()>);
        let ended = tokio::join!(wait(), wait());
        assert_eq!(ended, (None, None));
        assert_eq!(counts(&hold), [0, 1, 1, 0]);
        // Who leaves gives its place back.
        let mut left = Box::pin(wait());
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(left.as_mut().poll(&mut context).is_pending());
        assert_eq!(hold.held.load(Ordering::Relaxed), 1);
        drop(left);
        assert_eq!(hold.held.load(Ordering::Relaxed), 0);
        assert_eq!(counts(&hold), [0, 1, 1, 1]);
    }

    #[tokio::test]
    async fn nobody_waits_unless_that_is_asked_for() {
        let hold = Hold::new(None);
        assert_eq!(hold.wait(|| None::<()>).await, None);
        assert_eq!(counts(&hold), [0; 4]);
    }
}
