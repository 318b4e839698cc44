//! Level-shift detection: a two-sided CUSUM of standardised innovations.
//!
//! Source: E. S. Page, "Continuous inspection schemes", Biometrika 41 (1954).
//! Filters here clip innovations so that a spike doesn't drag them along; the price is that they
//! would also crawl after a real step. The CUSUM tells the two apart: a spike adds at most
//! [`CLIP`] − [`SLACK`] to the sum, a step adds it sample after sample.
//! Failure mode: shifts below [`SLACK`] standard deviations are left to the filter's own gain.

use serde::{Deserialize, Serialize};

/// Drift allowed per sample, in standard deviations.
const SLACK: f64 = 1.5;
/// Largest single contribution: three clipped samples on one side are needed for an alarm.
const CLIP: f64 = 4.0;
/// Alarm level. False alarms on Gaussian noise: about one in exp(2·1.5·6) ≈ 6·10⁷ samples.
const LIMIT: f64 = 6.0;

/// Two-sided CUSUM over standardised innovations.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct ShiftDetector {
    up: f64,
    down: f64,
    /// Samples since the larger sum last left zero: the estimated age of the shift.
    run: u32,
}

impl ShiftDetector {
    /// Takes one innovation in units of its standard deviation. On an alarm returns how many
    /// samples ago the shift began (1 = with this one) and starts again from zero.
    pub(super) fn observe(&mut self, z: f64) -> Option<u32> {
        let z = z.clamp(-CLIP, CLIP);
        self.up = (self.up + z - SLACK).max(0.0);
        self.down = (self.down - z - SLACK).max(0.0);
        self.run = if self.up > 0.0 || self.down > 0.0 {
            self.run.saturating_add(1)
        } else {
            0
        };
        if self.up < LIMIT && self.down < LIMIT {
            return None;
        }
        let age = self.run;
        *self = Self::default();
        Some(age)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spike_is_no_shift_and_a_step_is() {
        let mut d = ShiftDetector::default();
        for z in [0.3, -0.5, 50.0, 50.0, -0.2, 0.1, 0.0, 0.4] {
            assert_eq!(d.observe(z), None);
        }
        let mut d = ShiftDetector::default();
        assert_eq!(d.observe(-7.0), None);
        assert_eq!(d.observe(-7.0), None);
        assert_eq!(d.observe(-7.0), Some(3));
        assert_eq!(d, ShiftDetector::default());
    }
}
