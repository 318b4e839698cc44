//! One timer for all the deadlines of a connection.
//!
//! To set a timer takes the lock of the timer wheel, and each request has several deadlines that are hardly ever
//! met. So it is set once, to the earliest of them; when it goes off and the deadline of the moment is later, it is
//! set to that one. At one request after the other that is once in as long as the shortest time-out.

use crate::clock::monotonic_ns;
use std::pin::Pin;
use std::task::Context;
use std::time::Duration;
use tokio::time::{Instant, Sleep, sleep};

/// See the module.
#[derive(Debug)]
pub(super) struct Watchdog {
    sleep: Pin<Box<Sleep>>,
    /// When it goes off.
    set_ns: u64,
}

impl Watchdog {
    pub(super) fn new() -> Self {
        Self {
            sleep: Box::pin(sleep(Duration::ZERO)),
            set_ns: u64::MAX,
        }
    }

    /// Whether `deadline_ns` of [`monotonic_ns`] is over. If not, the task is woken then or before.
    pub(super) fn is_over(&mut self, deadline_ns: u64, context: &mut Context<'_>) -> bool {
        if deadline_ns < self.set_ns {
            let now_ns = monotonic_ns();
            // Not left to the timer, which needs a moment: who asks for two deadlines in turn would set it anew each time.
            if now_ns >= deadline_ns {
                return true;
            }
            self.set(deadline_ns, now_ns);
        }
        while self.sleep.as_mut().poll(context).is_ready() {
            let now_ns = monotonic_ns();
            if now_ns >= deadline_ns {
                return true;
            }
            self.set(deadline_ns, now_ns);
        }
        false
    }

    fn set(&mut self, at_ns: u64, now_ns: u64) {
        let left = Duration::from_nanos(at_ns.saturating_sub(now_ns));
        self.sleep.as_mut().reset(Instant::now() + left);
        self.set_ns = at_ns;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use std::task::Poll;

    async fn over(watchdog: &mut Watchdog, deadline_ns: u64) {
        poll_fn(|context| {
            if watchdog.is_over(deadline_ns, context) {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
    }

    #[tokio::test]
    async fn deadlines_are_met_in_any_order() {
        let mut watchdog = Watchdog::new();
        let start = monotonic_ns();
        let ms = |ms: u64| start + ms * 1_000_000;
        let mut context = Context::from_waker(std::task::Waker::noop());
        assert!(!watchdog.is_over(ms(60_000), &mut context));
        // An earlier one than it is set to, a later one, and one that is over.
        for deadline in [ms(20), ms(60), ms(10)] {
            over(&mut watchdog, deadline).await;
            assert!(monotonic_ns() >= deadline);
        }
    }
}
