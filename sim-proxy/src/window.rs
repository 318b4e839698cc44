//! Latencies of one instance over the last seconds.
//!
//! The histogram that requests count into only ever rises ([`crate::live`]): to turn a window there would lose what
//! comes in between, or take a lock. So one reader looks at it every second and keeps the differences, a minute of them;
//! a window is a sum of some. What comes out, the quantiles, is left where any thread can read it.

use crate::live::InstanceLive;
use crate::quantiles::{LOOKS_MAX, WINDOWS};
use sim_core::histogram::LatencyHistogram;
use std::collections::VecDeque;

/// The reader's side of one instance.
#[derive(Debug, Default)]
pub(crate) struct Window {
    /// Counts at the last look.
    before: Box<[u64]>,
    /// What came between two looks; the newest comes last.
    looks: VecDeque<LatencyHistogram>,
}

impl Window {
    /// To be called every second.
    pub(crate) fn look(&mut self, live: &InstanceLive) {
        let now = live.latencies();
        let came = now.iter().enumerate().map(|(bucket, &count)| {
            let before = self.before.get(bucket).copied().unwrap_or(0);
            (bucket as u32, count.saturating_sub(before))
        });
        self.looks.push_back(LatencyHistogram::from_pairs(came));
        self.before = now;
        if self.looks.len() > LOOKS_MAX {
            self.looks.pop_front();
        }
        let (mut sum, mut taken) = (LatencyHistogram::default(), 0);
        for (at, (looks, _)) in WINDOWS.into_iter().enumerate() {
            while taken < looks {
                if let Some(one) = self.ago(taken) {
                    sum.merge(one);
                }
                taken += 1;
            }
            live.quantiles().set(at, &sum);
        }
    }

    /// What came in the look that was `ago` looks ago.
    pub(crate) fn ago(&self, ago: usize) -> Option<&LatencyHistogram> {
        self.looks.iter().rev().nth(ago)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sim_core::name::InstanceId;

    #[test]
    fn a_window_holds_what_came_in_it_and_nothing_else() {
        let (live, mut window) = (
            InstanceLive::new(InstanceId(1), ([127, 0, 0, 1], 80).into()),
            Window::default(),
        );
        let read = |window, quantile| live.quantiles().micros(window, quantile);
        window.look(&live);
        assert_eq!(read(0, 0), None);
        (0..1_000).for_each(|n| live.record_latency(if n < 980 { 500 } else { 30_000 }));
        window.look(&live);
        let of = |window, quantile| read(window, quantile).expect("answers");
        assert!((500..520).contains(&of(0, 0)), "{}", of(0, 0));
        assert!((500..520).contains(&of(0, 1)));
        assert!((30_000..31_000).contains(&of(0, 2)));
        assert_eq!(of(0, 2), of(1, 3));
        // Nine seconds later it is still in both, then in the longer one alone.
        (0..9).for_each(|_| window.look(&live));
        assert!((30_000..31_000).contains(&of(0, 2)));
        live.record_latency(700);
        window.look(&live);
        assert!((700..720).contains(&of(0, 3)));
        assert!((500..520).contains(&of(1, 0)));
        (0..LOOKS_MAX).for_each(|_| window.look(&live));
        assert_eq!((read(0, 0), read(1, 0)), (None, None));
    }
}
