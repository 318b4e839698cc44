//! What a forecaster hands out: a mean and quantiles for each step ahead.
//!
//! Between the stored levels a quantile is linear in the Laplace quantile function
//! `g(p) = ln 2p` (p < ½), `−ln 2(1−p)` (p ≥ ½), and beyond the outermost levels it goes on with
//! the slope of the last segment. So both tails are exponential, which is the lightest tail that
//! does not promise more than a few hundred residuals can show.

use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

/// Probability levels of the quantiles in [`ForecastStep::quantiles`], ascending.
pub const LEVELS: [f64; 7] = [0.05, 0.10, 0.50, 0.90, 0.95, 0.99, 0.999];

/// Closest a level may come to 0 or 1; tails past it are pure extrapolation.
const LEVEL_MARGIN: f64 = 1e-6;

/// The distribution forecast for one step ahead, in the unit of the series.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ForecastStep {
    /// Point forecast, combined over all models.
    pub mean: f64,
    /// Quantiles at [`LEVELS`], finite and non-decreasing.
    pub quantiles: [f64; LEVELS.len()],
}

impl ForecastStep {
    /// The quantile at `level` (0..1, exclusive; values outside are clamped, NaN reads as 0.5).
    pub fn quantile(&self, level: f64) -> f64 {
        let x = laplace(level);
        let i = segment(|i| laplace(LEVELS[i]) < x);
        let (x0, x1) = (laplace(LEVELS[i]), laplace(LEVELS[i + 1]));
        let (q0, q1) = (self.quantiles[i], self.quantiles[i + 1]);
        q0 + (q1 - q0) * ((x - x0) / (x1 - x0))
    }

    /// Probability that the value exceeds `threshold`: the inverse of [`Self::quantile`],
    /// within `1e-6..=1 - 1e-6`.
    pub fn probability_above(&self, threshold: f64) -> f64 {
        if threshold.is_nan() {
            return 0.5;
        }
        let q = &self.quantiles;
        let i = segment(|i| q[i] < threshold);
        let (q0, q1) = (q[i], q[i + 1]);
        let (x0, x1) = (laplace(LEVELS[i]), laplace(LEVELS[i + 1]));
        let width = q1 - q0;
        let below = if width > 0.0 {
            laplace_inverse(x0 + (x1 - x0) * ((threshold - q0) / width))
        } else if threshold < q0 {
            // A distribution squeezed to a point has no tail to extrapolate.
            LEVEL_MARGIN
        } else if threshold > q1 {
            1.0 - LEVEL_MARGIN
        } else {
            LEVELS[i + 1]
        };
        1.0 - below.clamp(LEVEL_MARGIN, 1.0 - LEVEL_MARGIN)
    }
}

/// The left end of the segment between neighbouring levels that holds a point, where `left_of(i)`
/// says that level `i` lies left of it. Points outside fall into the outermost segments.
fn segment(left_of: impl Fn(usize) -> bool) -> usize {
    (1..LEVELS.len() - 1)
        .rev()
        .find(|&i| left_of(i))
        .unwrap_or(0)
}

/// Quantile function of the standard Laplace distribution, clamped away from 0 and 1.
fn laplace(level: f64) -> f64 {
    if level.is_nan() {
        return 0.0;
    }
    let p = level.clamp(LEVEL_MARGIN, 1.0 - LEVEL_MARGIN);
    if p < 0.5 {
        libm::log(2.0 * p)
    } else {
        -libm::log(2.0 * (1.0 - p))
    }
}

/// Distribution function of the standard Laplace distribution.
fn laplace_inverse(x: f64) -> f64 {
    if x < 0.0 {
        0.5 * libm::exp(x)
    } else {
        1.0 - 0.5 * libm::exp(-x)
    }
}

/// Forecasts for steps `1..=steps.len()` after the last observed sample.
///
/// Quantiles are marginal: they hold for each step alone. The chance of *any* crossing within
/// several steps is at least the largest of their single chances and at most their sum.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Forecast {
    /// Step `k` ahead is `steps[k - 1]`.
    pub steps: Vec<ForecastStep>,
    /// Samples (present or missing) the forecaster had been given when it made this forecast.
    pub made_at: u64,
    /// Whether the intervals had been checked against enough samples to be relied on.
    pub calibrated: bool,
}

impl Forecast {
    /// The step `step` ahead (1-based; clamped to the horizon). `None` only if there are no steps.
    pub fn step(&self, step: usize) -> Option<&ForecastStep> {
        let last = self.steps.len().checked_sub(1)?;
        self.steps.get(step.saturating_sub(1).min(last))
    }

    /// The quantile at `level` (0..1) `step` steps ahead (1-based, clamped to the horizon).
    /// 0 if the forecast is empty.
    pub fn quantile(&self, step: usize, level: f64) -> f64 {
        self.step(step).map_or(0.0, |s| s.quantile(level))
    }

    /// The largest quantile at `level` over steps `from_step..=to_step` (1-based, clamped to the
    /// horizon; swapped if reversed). 0 if the forecast is empty.
    pub fn upper_max(&self, from_step: usize, to_step: usize, level: f64) -> f64 {
        let (from, to) = (from_step.min(to_step).max(1), from_step.max(to_step).max(1));
        let last = self.steps.len();
        (from.min(last)..=to.min(last))
            .map(|k| self.quantile(k, level))
            .reduce(f64::max)
            .unwrap_or(0.0)
    }

    /// The first step (1-based, at most `within_steps`) whose quantile at `level` exceeds
    /// `threshold`.
    pub fn first_crossing(&self, threshold: f64, level: f64, within_steps: usize) -> Option<usize> {
        self.steps
            .iter()
            .take(within_steps)
            .position(|s| s.quantile(level) > threshold)
            .map(|i| i + 1)
    }

    /// Probability that the value `step` steps ahead (1-based, clamped to the horizon) exceeds
    /// `threshold`. 0 if the forecast is empty.
    pub fn probability_above(&self, step: usize, threshold: f64) -> f64 {
        self.step(step)
            .map_or(0.0, |s| s.probability_above(threshold))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    fn step() -> ForecastStep {
        ForecastStep {
            mean: 10.0,
            quantiles: [5.0, 6.0, 10.0, 14.0, 15.0, 17.0, 20.0],
        }
    }

    #[test]
    fn stored_levels_are_met_exactly_and_tails_go_on_outside() {
        let s = step();
        for (level, q) in LEVELS.iter().zip(s.quantiles) {
            assert!((s.quantile(*level) - q).abs() < 1e-9, "{level}");
        }
        assert!(s.quantile(0.9999) > 20.0 && s.quantile(0.01) < 5.0);
        assert!(s.quantile(f64::NAN) == 10.0);
    }

    #[test]
    fn probability_above_inverts_the_quantile() {
        let s = step();
        for p in [0.02, 0.07, 0.3, 0.5, 0.8, 0.93, 0.97, 0.995, 0.9995] {
            assert!(
                (s.probability_above(s.quantile(p)) - (1.0 - p)).abs() < 1e-9,
                "{p}"
            );
        }
        let flat = ForecastStep {
            mean: 1.0,
            quantiles: [1.0; 7],
        };
        assert!(flat.probability_above(1.1) < 1e-5);
        assert!(flat.probability_above(0.9) > 0.9999);
    }

    #[test]
    fn crossing_and_maximum_agree() {
        let mut steps = vec![step(); 5];
        steps[3].quantiles[4] = 16.5;
        let f = Forecast {
            steps,
            made_at: 9,
            calibrated: true,
        };
        assert_eq!(f.first_crossing(16.0, 0.95, 5), Some(4));
        assert_eq!(f.first_crossing(16.0, 0.95, 3), None);
        assert_eq!(f.upper_max(1, 99, 0.95), 16.5);
        assert_eq!(f.upper_max(3, 1, 0.95), 15.0);
        let none = Forecast {
            steps: vec![],
            made_at: 0,
            calibrated: false,
        };
        assert_eq!(none.upper_max(1, 9, 0.9), 0.0);
        assert_eq!(none.quantile(0, 0.9), 0.0);
    }
}
