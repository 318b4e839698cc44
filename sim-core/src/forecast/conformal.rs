//! Intervals of the combined forecast, calibrated online at one knot lead.
//!
//! Two layers. A scale multiplier follows the mean absolute residual, both plain and in units of
//! the model's own deviation, and takes the geometric mean of what the two call for: it is quick
//! and puts the width right. (In units of the deviation alone, misses made while the models were
//! sure of themselves would multiply the wide intervals that they hand out once the misses have
//! made them unsure: the same surprise counted twice.) Quantile trackers correct the shape, one a
//! level, by the update q ← q + η(1[z > q] − (1 − level)): online gradient descent on the pinball
//! loss, which keeps long-run coverage at the level for *any* sequence. Sources: Gibbs & Candès,
//! "Adaptive conformal inference under distribution shift" (NeurIPS 2021) and "Conformal inference
//! for online prediction with arbitrary distribution shifts" (2022); Angelopoulos, Candès &
//! Tibshirani, "Conformal PID control for time series prediction" (2023), §2 "quantile tracking".
//!
//! The trackers start at heavy-tailed values, so levels whose misses are too rare to have been
//! seen (0.99, 0.999) rest on the residual scale, as they must.
//! Failure mode: long leads feed back late; a new regime is covered only after a lead's worth of
//! samples, until then by the model's own variance.

use serde::{Deserialize, Serialize};

use super::ensemble::{effective_samples, overlap, warm_rate};
use super::output::LEVELS;

/// One number a level.
pub(super) type PerLevel = [f64; LEVELS.len()];

/// Where the trackers start: quantiles of a standard normal, the outer ones somewhat further out.
const START: PerLevel = [-1.66, -1.27, 0.0, 1.27, 1.66, 2.42, 3.40];
/// Step sizes, in deviations. The outer levels step further: their misses are rare. Divided by
/// [`overlap`]: one turn of the series is missed by every forecast made within a lead before it,
/// and would otherwise widen the intervals as often.
const STEP: PerLevel = [0.05, 0.05, 0.03, 0.05, 0.05, 0.10, 0.20];
/// Share of a step that is made for forecasts from before a level shift: their misses come in a
/// row, one shift for all of them, and say little about the intervals of the new regime.
const SHIFTED_PACE: f64 = 0.2;
/// Bound of the trackers: beyond it the scale is wrong, not the shape.
const TRACKER_MAX: f64 = 12.0;
/// Mean absolute value of a standard normal.
const GAUSS_MEAN_ABS: f64 = 0.797_884_560_802_865_4;
/// Samples the scale remembers, plus one for each step of lead.
const MEMORY: f64 = 96.0;
/// Weight of the next shorter lead's scale, in independent samples.
const PRIOR_SAMPLES: f64 = 16.0;
/// A residual counts at most this many times the present scale.
const CLIP: f64 = 6.0;
/// Discount of the empirical coverage.
const COVERAGE_MEMORY: f64 = 500.0;

/// Calibration state at one lead.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Conformal {
    steps: usize,
    /// Mean of |residual| over the model's deviation.
    mean_abs: f64,
    /// Mean of |residual|, in the unit of the series.
    mean_abs_plain: f64,
    scored: u64,
    trackers: PerLevel,
    coverage: f64,
    issued: u64,
}

/// What was issued for a sample, kept until the sample arrives.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Issued {
    /// Combined mean.
    pub(super) mean: f64,
    /// The model's deviation, before calibration.
    pub(super) deviation: f64,
    /// Calibrated multiplier at the time.
    pub(super) multiplier: f64,
    /// The 5 % and 95 % quantiles.
    pub(super) band: [f64; 2],
}

impl Conformal {
    pub(super) fn new(steps: usize) -> Self {
        Self {
            steps,
            mean_abs: 0.0,
            mean_abs_plain: 0.0,
            scored: 0,
            trackers: START,
            coverage: 0.0,
            issued: 0,
        }
    }

    /// Compares sample `y` with what was issued for it. `same_regime` says that no level shift
    /// came in between: then the residual also counts for the scale.
    pub(super) fn score(&mut self, issued: &Issued, y: f64, same_regime: bool) {
        let residual = y - issued.mean;
        let deviation = issued.deviation.max(f64::MIN_POSITIVE);
        let z = residual / (deviation * issued.multiplier);
        let pace = if same_regime { 1.0 } else { SHIFTED_PACE } / overlap(self.steps);
        for ((q, level), step) in self.trackers.iter_mut().zip(LEVELS).zip(STEP) {
            let miss = if z > *q { 1.0 } else { 0.0 };
            *q = (*q + pace * step * (miss - (1.0 - level))).clamp(-TRACKER_MAX, TRACKER_MAX);
        }
        self.issued = self.issued.saturating_add(1);
        let covered = if issued.band[0] <= y && y <= issued.band[1] {
            1.0
        } else {
            0.0
        };
        let rate = (1.0 / self.issued as f64).max(1.0 / COVERAGE_MEMORY);
        self.coverage += rate * (covered - self.coverage);
        if !same_regime {
            return;
        }
        let ratio = (residual / deviation).abs();
        let cap = if self.scored >= 5 {
            CLIP * self.mean_abs.max(1e-3)
        } else {
            1e3
        };
        let rate = warm_rate(self.scored, MEMORY + self.steps as f64);
        let ratio = ratio.min(cap);
        self.mean_abs += rate * (ratio - self.mean_abs);
        self.mean_abs_plain += rate * (ratio * deviation - self.mean_abs_plain);
        self.scored = self.scored.saturating_add(1);
    }

    /// Factor from `deviation`, the model's own, to the calibrated one, shrunk halfway between 1
    /// and `shorter`, the factor of the next shorter lead (1 for the shortest): part of what is
    /// wrong there is wrong here, part is the start, which fades.
    pub(super) fn multiplier(&self, shorter: f64, deviation: f64) -> f64 {
        let n = self.samples();
        let plain = self.mean_abs_plain / deviation.max(f64::MIN_POSITIVE);
        let own = libm::sqrt(self.mean_abs * plain) / GAUSS_MEAN_ABS;
        ((n * own + PRIOR_SAMPLES * libm::sqrt(shorter)) / (n + PRIOR_SAMPLES)).clamp(1e-3, 1e3)
    }

    /// Factor ≥ 1 that widens intervals resting on few residuals.
    pub(super) fn widening(&self) -> f64 {
        1.0 + 0.25 / (2.0 + self.samples())
    }

    /// Offsets of the quantiles from the mean, in calibrated deviations.
    pub(super) fn offsets(&self) -> &PerLevel {
        &self.trackers
    }

    /// Share of samples inside the issued 90 % band, and how many were compared.
    pub(super) fn coverage(&self) -> (f64, u64) {
        (self.coverage, self.issued)
    }

    fn samples(&self) -> f64 {
        effective_samples(self.scored, MEMORY + self.steps as f64, self.steps)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn coverage_is_reached_even_when_the_models_deviation_is_wrong() {
        let mut c = Conformal::new(1);
        let mut seed = 1_u64;
        let mut inside = 0;
        for t in 0..4000 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let y = (seed >> 33) as f64 / 2_147_483_648.0 * 20.0 - 10.0;
            let multiplier = c.multiplier(1.0, 1.0);
            let at = |i: usize| c.offsets()[i] * multiplier;
            let issued = Issued {
                mean: 0.0,
                deviation: 1.0,
                multiplier,
                band: [at(0), at(4)],
            };
            if t >= 1000 && issued.band[0] <= y && y <= issued.band[1] {
                inside += 1;
            }
            c.score(&issued, y, true);
        }
        let share = f64::from(inside) / 3000.0;
        assert!((share - 0.9).abs() < 0.02, "{share}");
    }
}
