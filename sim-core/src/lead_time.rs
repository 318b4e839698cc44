//! Lead time: how long a move takes from the decision until the primary is relieved.
//!
//! Each part is measured (create, warm, shift); until it has been, a prior stands in. The
//! estimate is an upper quantile of the last measurements: being late costs an outage, being
//! early only rent.

use alloc::collections::VecDeque;
use core::time::Duration;
use serde::{Deserialize, Serialize};

/// Measurements kept of each part.
const KEPT: usize = 16;
/// Head room over the largest of few measurements, as a factor.
const HEADROOM: f64 = 1.25;

/// Last measurements of one part of a move.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Part {
    seconds: VecDeque<f64>,
}

impl Part {
    /// Takes a measurement.
    pub fn observe(&mut self, took: Duration) {
        if self.seconds.len() == KEPT {
            self.seconds.pop_front();
        }
        self.seconds.push_back(took.as_secs_f64());
    }

    /// Upper estimate in seconds: the largest kept measurement with head room, or `prior`.
    #[must_use]
    pub fn upper_seconds(&self, prior: f64) -> f64 {
        self.seconds
            .iter()
            .copied()
            .reduce(f64::max)
            .map_or(prior, |max| max * HEADROOM)
    }
}

/// Lead time of one workload.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LeadTime {
    /// From the start command to the readiness proof.
    pub create: Part,
    /// From the first share to parity.
    pub warm: Part,
    /// From parity to all of the traffic.
    pub shift: Part,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measurements_replace_the_prior_and_old_ones_fade() {
        let mut part = Part::default();
        assert!((part.upper_seconds(7.0) - 7.0).abs() < 1e-9);
        part.observe(Duration::from_secs(10));
        assert!((part.upper_seconds(7.0) - 12.5).abs() < 1e-9);
        (0..KEPT).for_each(|_| part.observe(Duration::from_secs(2)));
        assert!((part.upper_seconds(7.0) - 2.5).abs() < 1e-9);
    }
}
