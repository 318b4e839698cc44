//! Damped Holt-Winters with an additive day.
//!
//! In words: level, slope and one value a slot of the day, each corrected by its own share of the
//! one-step error; the slope shrinks by a fixed factor a step, also in forecasts. Sources: Holt
//! (1957), Winters (1960); damping after Gardner & McKenzie, Management Science 31 (1985); error
//! form ETS(A,Ad,A) of Hyndman et al., *Forecasting with Exponential Smoothing* (2008), §2.5; errors
//! are clipped after Gelper, Fried & Croux, J. Forecasting 29 (2010).
//!
//! How it fails: each slot is learned alone, so a day's profile carries the noise of its few visits;
//! bursts bend the level. Sharp, regular profiles are its strength.

use alloc::{vec, vec::Vec};

use serde::{Deserialize, Serialize};

use super::lanes::Real;
use super::structural::damped_sum;

/// What makes one model different from another.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Tuning {
    /// Shares of an error that level and slope take, and the season of what the level left.
    level: f64,
    slope: f64,
    season: f64,
    /// Share of the slope that survives a step.
    damping: f64,
}

pub(super) const TUNING: Tuning = Tuning {
    level: 0.2,
    slope: 0.005,
    season: 0.15,
    damping: 0.98,
};
/// A slot's first visit moves it this far.
const SEASON_FIRST: f64 = 0.5;
/// Errors count in full up to this many times their mean absolute size, after the first few.
const CLIP: f64 = 4.0;
const SETTLED: u32 = 10;
const SPREAD_MEMORY: f64 = 100.0;

/// Smoothing state; the season in single precision, but for tests.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct HoltWinters<R = f32> {
    tuning: Tuning,
    level: f64,
    slope: f64,
    season: Vec<R>,
    mean_abs: f64,
    observed: u32,
}

impl<R: Real> HoltWinters<R> {
    pub(super) fn new(day: usize, tuning: Tuning) -> Self {
        Self {
            tuning,
            level: 0.0,
            slope: 0.0,
            season: vec![R::of(0.0); day],
            mean_abs: 0.0,
            observed: 0,
        }
    }

    pub(super) fn reset(&mut self) {
        self.season.fill(R::of(0.0));
        (self.level, self.slope, self.mean_abs, self.observed) = (0.0, 0.0, 0.0, 0);
    }

    /// Moves on by one step, to `slot` of the day, and takes its sample if there is one; `first`
    /// says that the slot was never seen before.
    pub(super) fn observe(&mut self, slot: usize, first: bool, sample: Option<f64>) {
        self.slope *= self.tuning.damping;
        self.level += self.slope;
        let Some(y) = sample else { return };
        if self.observed == 0 {
            self.level = y;
        }
        let error = y - self.level - self.season[slot].wide();
        self.observed = self.observed.saturating_add(1);
        let limit = CLIP * self.mean_abs.max(1e-9);
        let clipped = if self.observed > SETTLED {
            error.clamp(-limit, limit)
        } else {
            error
        };
        let warm = 1.0 / f64::from(self.observed);
        self.mean_abs += warm.max(1.0 / SPREAD_MEMORY) * (clipped.abs() - self.mean_abs);
        let level_rate = warm.max(self.tuning.level);
        self.level += level_rate * clipped;
        self.slope += self.tuning.slope * clipped;
        let season_rate = if first {
            SEASON_FIRST
        } else {
            self.tuning.season
        };
        let season = self.season[slot].wide() + season_rate * (1.0 - level_rate) * clipped;
        self.season[slot] = R::of(season);
    }

    /// How many slopes forecasts `lead` steps on have in common.
    pub(super) fn slopes(&self, lead: usize) -> f64 {
        damped_sum(self.tuning.damping, lead)
    }

    /// Mean of the sample as many steps on as `slopes` was made for, which falls into `slot`.
    pub(super) fn mean(&self, slopes: f64, slot: usize) -> f64 {
        self.level + self.slope * slopes + self.season[slot].wide()
    }
}

#[cfg(test)]
mod tests {
    use super::super::oracle::Oracle;
    use super::*;

    #[test]
    fn a_sharp_slot_is_learned_by_itself() {
        let mut m = HoltWinters::<f32>::new(10, TUNING);
        for t in 0..600_usize {
            m.observe(t % 10, t < 10, Some(if t % 10 == 3 { 100.0 } else { 50.0 }));
        }
        assert!(
            (m.mean(m.slopes(4), 3) - 100.0).abs() < 5.0,
            "{}",
            m.mean(m.slopes(4), 3)
        );
        assert!(
            (m.mean(m.slopes(5), 4) - 50.0).abs() < 5.0,
            "{}",
            m.mean(m.slopes(5), 4)
        );
    }

    #[test]
    fn one_step_errors_and_forecasts_are_those_of_statsmodels() {
        let table = Oracle::read(include_str!("../../../tests/oracle/holt_winters.csv"));
        let day = table.len("season");
        let tuning = Tuning {
            level: table.get("rates", 0),
            slope: table.get("rates", 1),
            season: table.get("rates", 2),
            damping: table.get("damping", 0),
        };
        let mut m = HoltWinters {
            tuning,
            level: table.get("level", 0),
            slope: table.get("slope", 0),
            season: (0..day as u64).map(|i| table.get("season", i)).collect(),
            // Settled, and no error is clipped.
            mean_abs: 1e15,
            observed: 1_000_000,
        };
        let steps = table.len("y");
        let mut squares = 0.0;
        for t in 0..steps {
            let (slot, y) = (t % day, table.get("y", t as u64));
            let mean = m.mean(m.slopes(1), slot);
            table.agrees("mean", t as u64, mean);
            squares += (y - mean) * (y - mean);
            m.observe(slot, false, Some(y));
        }
        let n = steps as f64;
        let log_likelihood = -0.5 * n * (libm::log(core::f64::consts::TAU * squares / n) + 1.0);
        table.agrees("log_likelihood", 0, log_likelihood);
        for lead in 1..=table.len("ahead") {
            let mean = m.mean(m.slopes(lead), (steps - 1 + lead) % day);
            table.agrees("ahead", lead as u64, mean);
        }
    }
}
