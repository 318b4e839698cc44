//! Damped-trend Holt–Winters with an additive season.
//!
//! Sources: Holt (1957), Winters (1960); damping after Gardner & McKenzie, Management Science 31
//! (1985); the error form is ETS(A,Ad,A) of Hyndman et al., *Forecasting with Exponential
//! Smoothing* (2008), §2.5; innovations are clipped after Gelper, Fried & Croux, J. Forecasting 29
//! (2010). It stands beside the structural model because its season has one free value a slot:
//! sharp profiles that four harmonics smooth away are its strength, noise in each slot its price.

use alloc::{vec, vec::Vec};

use serde::{Deserialize, Serialize};

use super::shift::ShiftDetector;

const LEVEL_RATE: f64 = 0.12;
const SLOPE_RATE: f64 = 0.008;
const SEASON_RATE: f64 = 0.15;
const DAMPING: f64 = 0.98;
/// Innovations count in full up to this many times their mean absolute size (about 3σ).
const CLIP: f64 = 3.75;
const SCALE_RATE: f64 = 1.0 / 60.0;
const SETTLED: u64 = 5;
/// Samples before a run of errors may be called a shift.
const SHIFT_SETTLED: u64 = 16;
/// Mean absolute deviation of a Gaussian, in standard deviations.
const GAUSS_MEAN_ABS: f64 = 0.797_884_560_802_865_4;

/// Exponential smoothing state.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct HoltWinters {
    level: f64,
    slope: f64,
    /// One value a slot; empty without a season.
    season: Vec<f64>,
    /// How often each slot was seen, saturating: the first visits learn at 1/(n+1).
    visits: Vec<u8>,
    /// Slot of the next sample.
    slot: usize,
    mean_abs: f64,
    observed: u64,
    shift: ShiftDetector,
    slope_sum: Vec<f64>,
}

impl HoltWinters {
    /// A model with a season of `period` steps (0: none).
    pub(super) fn new(period: usize, horizon: usize) -> Self {
        let mut slope_sum = Vec::with_capacity(horizon);
        let (mut power, mut sum) = (1.0, 0.0);
        for _ in 0..horizon {
            power *= DAMPING;
            sum += power;
            slope_sum.push(sum);
        }
        Self {
            level: 0.0,
            slope: 0.0,
            season: vec![0.0; period],
            visits: vec![0; period],
            slot: 0,
            mean_abs: 0.0,
            observed: 0,
            shift: ShiftDetector::default(),
            slope_sum,
        }
    }

    /// Moves on by one step and takes the sample, if there is one.
    pub(super) fn observe(&mut self, sample: Option<f64>) {
        let slot = self.slot;
        if !self.season.is_empty() {
            self.slot = (slot + 1) % self.season.len();
        }
        if self.observed > 0 {
            self.slope *= DAMPING;
            self.level += self.slope;
        }
        let Some(y) = sample else { return };
        if self.observed == 0 {
            self.level = y;
            self.mean_abs = 0.1 * y.abs();
        }
        self.learn(y, slot);
        if self.slot == 0 {
            self.centre_season();
        }
    }

    fn learn(&mut self, y: f64, slot: usize) {
        let season = self.season.get(slot).copied().unwrap_or(0.0);
        let error = y - self.level - season;
        let scale = self.mean_abs.max(1e-6 * y.abs()).max(1e-15);
        let settled = self.observed >= SETTLED;
        let clipped = if settled {
            error.max(-CLIP * scale).min(CLIP * scale)
        } else {
            error
        };
        self.level += LEVEL_RATE * clipped;
        self.slope += SLOPE_RATE * clipped;
        if let (Some(value), Some(visits)) = (self.season.get_mut(slot), self.visits.get_mut(slot))
        {
            let rate = SEASON_RATE.max(1.0 / (f64::from(*visits) + 2.0));
            *value += rate * (1.0 - LEVEL_RATE) * clipped;
            *visits = visits.saturating_add(1);
        }
        self.mean_abs =
            scale + SCALE_RATE.max(1.0 / (self.observed as f64 + 2.0)) * (clipped.abs() - scale);
        self.observed = self.observed.saturating_add(1);
        if self.observed > SHIFT_SETTLED
            && self.shift.observe(GAUSS_MEAN_ABS * error / scale).is_some()
        {
            self.level += 0.75 * error;
        }
    }

    /// Level and season share a constant; once a period it is moved back into the level.
    fn centre_season(&mut self) {
        if self.season.is_empty() {
            return;
        }
        let mean = self.season.iter().sum::<f64>() / self.season.len() as f64;
        for value in &mut self.season {
            *value -= mean;
        }
        self.level += mean;
    }

    /// Mean of the sample `lead` steps (1-based) after the last one.
    pub(super) fn mean(&self, lead: usize) -> f64 {
        let sum = self.slope_sum.get(lead - 1).copied().unwrap_or(0.0);
        let season = match self.season.len() {
            0 => 0.0,
            n => self.season[(self.slot + lead - 1) % n],
        };
        self.level + self.slope * sum + season
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sharp_season_is_learned_slot_by_slot() {
        let mut m = HoltWinters::new(10, 20);
        for t in 0..400_u64 {
            m.observe(Some(if t % 10 == 3 { 100.0 } else { 50.0 }));
        }
        assert!((m.mean(4) - 100.0).abs() < 5.0, "{}", m.mean(4));
        assert!((m.mean(5) - 50.0).abs() < 5.0);
        assert!((m.mean(14) - 100.0).abs() < 5.0);
    }

    #[test]
    fn a_level_shift_is_caught_up_with() {
        let mut m = HoltWinters::new(0, 20);
        for t in 0..120_u64 {
            let level = if t < 100 { 50.0 } else { 90.0 };
            m.observe(Some(level + (t % 5) as f64));
        }
        assert!((m.mean(1) - 92.0).abs() < 6.0, "{}", m.mean(1));
    }
}
