//! The largest of what followed the analogs.

use super::super::lanes::dot;
use super::{ANALOGS, Found, LagSearch};

impl Found {
    /// Mean over the largest of the `lead` samples after each analog, as a distance from the newest sample; each one
    /// goes to `add`, with its weight.
    fn peak(&self, lead: usize, recent: &[f32], mut add: impl FnMut(f32, f32)) -> f32 {
        let newest = recent.len() - 1;
        let mut values = [0.0; ANALOGS];
        for ((value, &lag), &weight) in values.iter_mut().zip(self.lags()).zip(&self.weights) {
            let first = newest + 1 - usize::from(lag);
            *value = largest(&recent[first..first + lead]) - recent[newest];
            add(*value, weight);
        }
        let squares = self.weights.map(|w| w * w);
        let total = dot(&squares, &[1.0; ANALOGS]);
        if total > 0.0 {
            dot(&squares, &values) / total
        } else {
            0.0
        }
    }
}

impl LagSearch {
    /// Means over the largest of the `lead` samples that followed the analogs of the knot of that lead: by the short
    /// and by the long memory. Each goes to `add`, with its weight.
    pub(in super::super) fn peaks(
        &self,
        knot: usize,
        lead: usize,
        recent: &[f32],
        mut add: impl FnMut(f32, f32),
    ) -> [f32; 2] {
        [&self.shape, &self.long].map(|m| m.found[knot].peak(lead, recent, &mut add))
    }
}

/// The largest of several, by eight lanes.
pub(in super::super) fn largest(values: &[f32]) -> f32 {
    let more = |a: f32, b: f32| if b > a { b } else { a };
    let mut lanes = [f32::MIN; 8];
    let parts = values.chunks_exact(8);
    for (lane, &v) in lanes.iter_mut().zip(parts.remainder()) {
        *lane = v;
    }
    for part in parts {
        for (lane, &v) in lanes.iter_mut().zip(part) {
            *lane = more(*lane, v);
        }
    }
    lanes.into_iter().fold(f32::MIN, more)
}
