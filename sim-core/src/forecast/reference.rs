//! The yardsticks: last value, value one season ago, and a plain exponential average.
//!
//! A model earns its place only by beating the first two; they also take part in the ensemble, so
//! that a random walk is forecast as one. The average is the right answer for level plus noise.

use alloc::{vec, vec::Vec};

use serde::{Deserialize, Serialize};

/// Last value, seasonal last value and exponential average in one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct References {
    last: f64,
    average: f64,
    mean_abs: f64,
    observed: u64,
    /// The last season, as a ring; `None` where no sample was ever seen.
    season: Vec<Option<f64>>,
    slot: usize,
}

/// Rate of the average: a long memory, since shorter ones are the structural models' business.
const AVERAGE_RATE: f64 = 0.01;
/// Rate of the spread that errors are clipped by.
const SPREAD_RATE: f64 = 0.05;
const CLIP: f64 = 3.75;

impl References {
    /// References with a season of `period` steps (0: none).
    pub(super) fn new(period: usize) -> Self {
        Self {
            last: 0.0,
            average: 0.0,
            mean_abs: 0.0,
            observed: 0,
            season: vec![None; period],
            slot: 0,
        }
    }

    /// Moves on by one step and takes the sample, if there is one.
    pub(super) fn observe(&mut self, sample: Option<f64>) {
        let slot = self.slot;
        if !self.season.is_empty() {
            self.slot = (slot + 1) % self.season.len();
        }
        // A missing sample leaves the slot as it was a season ago: still the best guess.
        let Some(y) = sample else { return };
        if let Some(place) = self.season.get_mut(slot) {
            *place = Some(y);
        }
        let warm = 1.0 / (self.observed as f64 + 1.0);
        let error = y - self.average;
        let clipped = if self.observed >= 5 {
            error.max(-CLIP * self.mean_abs).min(CLIP * self.mean_abs)
        } else {
            error
        };
        self.average += AVERAGE_RATE.max(warm) * clipped;
        // Spread grows by the clipped error but never from exactly zero.
        let seen = clipped.abs().max(0.01 * error.abs());
        self.mean_abs += SPREAD_RATE.max(warm) * (seen - self.mean_abs);
        self.last = y;
        self.observed = self.observed.saturating_add(1);
    }

    pub(super) fn naive(&self) -> f64 {
        self.last
    }

    pub(super) fn average(&self) -> f64 {
        self.average
    }

    /// The last value seen in the slot `lead` steps (1-based) ahead; the last value of all without
    /// a season.
    pub(super) fn seasonal_naive(&self, lead: usize) -> f64 {
        match self.season.len() {
            0 => self.last,
            n => self.season[(self.slot + lead - 1) % n].unwrap_or(self.last),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seasonal_naive_repeats_the_last_season_and_survives_gaps() {
        let mut r = References::new(4);
        for y in [1.0, 2.0, 3.0, 4.0] {
            r.observe(Some(y));
        }
        r.observe(None);
        assert_eq!(r.seasonal_naive(1), 2.0);
        assert_eq!(r.seasonal_naive(4), 1.0);
        assert_eq!(r.seasonal_naive(8), 1.0);
        assert_eq!(r.naive(), 4.0);
    }
}
