//! Structural time-series model filtered by a Kalman filter.
//!
//! State: level, damped slope, and the coefficients of the seasons' harmonics, which wander as
//! random walks (dynamic harmonic regression). Sources: A. C. Harvey, *Forecasting, Structural
//! Time Series Models and the Kalman Filter* (1989), §2.3 (local linear trend, trigonometric
//! season); P. Young et al., "Dynamic harmonic regression", J. Forecasting 18 (1999); damped
//! slope after Gardner & McKenzie, Management Science 31 (1985). The slope is damped in forecasts
//! only: damped in the filter too, a steady ramp would be pulled back at each step and lag by
//! about one deviation of the noise for good.
//!
//! The filter runs in units of the observation noise, so its gains depend only on the
//! signal-to-noise ratios in [`Tuning`] (Harvey §3.4, concentrated likelihood), and the noise
//! itself is tracked from the standardised innovations. That makes the model free of scale.
//! Innovations are Huber-clipped (Masreliez & Martin 1977); a CUSUM decides when a clipped run is
//! a level shift, see [`super::shift`].
//!
//! The slope enters forecasts shrunk by the positive-part James–Stein factor 1 − c/t², with t its
//! own t-ratio: far ahead, an insignificant slope is the largest source of false alarms.
//!
//! Failure mode: with a season that nobody knows of, an upswing looks like a trend. The ensemble
//! sees that in the losses at longer leads.

use alloc::{vec, vec::Vec};

use nalgebra::{DMatrixViewMut, DVectorView};
use serde::{Deserialize, Serialize};

use super::harmonics::{Harmonics, REGRESSORS_MAX, Row};
use super::shift::ShiftDetector;

/// Level and slope come before the harmonics.
const TREND: usize = 2;
const DIM_MAX: usize = TREND + REGRESSORS_MAX;

/// Innovations count in full up to this many standard deviations.
const HUBER: f64 = 3.0;
/// Samples over which the observation noise is averaged.
const NOISE_MEMORY: f64 = 60.0;
/// Noise assumed at the first sample, as a share of its size.
const NOISE_PRIOR: f64 = 0.1;
/// c in the slope's shrinkage 1 − c/t².
const SHRINK: f64 = 4.0;
/// Level variance after a shift: the next sample alone nearly sets the level.
const SHIFT_LEVEL: f64 = 3.0;
/// Slope variance added at a shift, since a new regime may well be a new trend.
const SHIFT_SLOPE: f64 = 0.0004;

/// Signal-to-noise ratios of one variant, all relative to the observation noise variance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Tuning {
    /// Variance of the level's own step.
    pub(super) level: f64,
    /// Variance of the slope's own step; 0 with `slope_prior` 0 means no slope at all.
    pub(super) slope: f64,
    /// Variance of the slope at the start.
    pub(super) slope_prior: f64,
    /// Share of the slope that survives each step ahead.
    pub(super) damping: f64,
}

/// One filtered structural model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Structural {
    tuning: Tuning,
    state: Vec<f64>,
    /// Row-major and symmetric, in units of the observation noise variance.
    covariance: Vec<f64>,
    /// Step noise of each state.
    drift: Vec<f64>,
    noise_variance: f64,
    observed: u64,
    shift: ShiftDetector,
    /// Σ damping^j for j = 1..=h: what a slope of 1 adds in h steps.
    slope_sum: Vec<f64>,
    /// Variance that step noise adds in h steps.
    drift_sum: Vec<f64>,
}

impl Structural {
    pub(super) fn new(tuning: Tuning, harmonics: &Harmonics, horizon: usize) -> Self {
        let dim = TREND + harmonics.len();
        let mut covariance = vec![0.0; dim * dim];
        let mut drift = vec![0.0; dim];
        drift[0] = tuning.level;
        drift[1] = tuning.slope;
        covariance[0] = 1.0;
        covariance[dim + 1] = tuning.slope_prior;
        let mut season_drift = 0.0;
        for (j, (period, k)) in harmonics.components().enumerate() {
            let i = TREND + j;
            let k2 = (k * k) as f64;
            covariance[i * dim + i] = 10.0 / k2;
            // The pattern is given about ten periods of memory, whatever its length.
            drift[i] = 0.02 / (period * period * k2);
            season_drift += 0.5 * drift[i];
        }
        let mut slope_sum = Vec::with_capacity(horizon);
        let mut drift_sum = Vec::with_capacity(horizon);
        let (mut power, mut sum, mut variance) = (1.0, 0.0, 0.0);
        for _ in 0..horizon {
            // Slope noise that entered j steps before the target has moved it by `sum` so far.
            variance += tuning.level + season_drift + tuning.slope * sum * sum;
            power *= tuning.damping;
            sum += power;
            slope_sum.push(sum);
            drift_sum.push(variance);
        }
        Self {
            tuning,
            state: vec![0.0; dim],
            covariance,
            drift,
            noise_variance: 0.0,
            observed: 0,
            shift: ShiftDetector::default(),
            slope_sum,
            drift_sum,
        }
    }

    /// Moves on by one step and takes the sample, if there is one. `row` holds the harmonics at
    /// the sample's step. Returns how many samples ago a level shift began, on detecting one.
    pub(super) fn observe(&mut self, sample: Option<f64>, row: &Row) -> Option<u32> {
        self.predict();
        let y = sample?;
        if self.observed == 0 {
            self.state[0] = y;
            self.noise_variance = square(NOISE_PRIOR * y);
        }
        self.update(y, row)
    }

    /// x ← F x, P ← F P Fᵀ + Q, F being the identity but for level += slope.
    fn predict(&mut self) {
        let dim = self.state.len();
        if self.tuning.slope_prior > 0.0 {
            self.state[0] += self.state[1];
            let p = &mut self.covariance;
            p[0] += 2.0 * p[1] + p[dim + 1];
            p[1] += p[dim + 1];
            p[dim] = p[1];
            for j in TREND..dim {
                p[j] += p[dim + j];
                p[j * dim] = p[j];
            }
        }
        for (i, q) in self.drift.iter().enumerate() {
            // Bounded, so that a long gap doesn't let the variance grow without end.
            let v = &mut self.covariance[i * dim + i];
            *v = (*v + q).min(VARIANCE_MAX);
        }
    }

    fn update(&mut self, y: f64, row: &Row) -> Option<u32> {
        let dim = self.state.len();
        let design = design(1.0, 0.0, row);
        let h = DVectorView::from_slice(&design[..dim], dim);
        let mut p = DMatrixViewMut::from_slice(&mut self.covariance, dim, dim);
        let mut ph = [0.0; DIM_MAX];
        let mut gain = [0.0; DIM_MAX];
        let mut predicted = 0.0;
        let mut s = 1.0;
        for i in 0..dim {
            ph[i] = p.column(i).dot(&h);
            predicted += design[i] * self.state[i];
            s += design[i] * ph[i];
        }
        let s = s.max(1.0);
        let innovation = y - predicted;
        let floor = square(1e-6 * y.abs().max(self.state[0].abs())) + 1e-30;
        let noise = self.noise_variance.max(floor);
        let deviation = libm::sqrt(noise * s);
        let settled = self.observed >= SETTLED;
        let clipped = if settled {
            innovation.max(-HUBER * deviation).min(HUBER * deviation)
        } else {
            innovation
        };
        for i in 0..dim {
            gain[i] = ph[i] / s;
            self.state[i] += gain[i] * clipped;
        }
        // Joseph's form for one observation, P − K(Ph)ᵀ − (Ph)Kᵀ + s·KKᵀ with s = hᵀPh + 1. It
        // stays positive semidefinite under rounding; copying one triangle keeps it symmetric.
        for j in 0..dim {
            for i in j..dim {
                let v = p[(i, j)] - gain[i] * ph[j] - ph[i] * gain[j] + s * gain[i] * gain[j];
                p[(i, j)] = v;
                p[(j, i)] = v;
            }
            p[(j, j)] = p[(j, j)].max(0.0);
        }
        let rate = (1.0 / (self.observed as f64 + 2.0)).max(1.0 / NOISE_MEMORY);
        self.noise_variance = noise + rate * (clipped * clipped / s - noise);
        self.observed = self.observed.saturating_add(1);
        let age = if self.observed > SHIFT_SETTLED {
            self.shift.observe(innovation / deviation)
        } else {
            None
        };
        if age.is_some() {
            self.reopen(innovation);
        }
        age
    }

    /// After a level shift: jump most of the way and forget how level and the rest hang together,
    /// so that the jump isn't read as slope or season.
    fn reopen(&mut self, innovation: f64) {
        let dim = self.state.len();
        self.state[0] += 0.5 * innovation;
        for j in 0..dim {
            self.covariance[j] = 0.0;
            self.covariance[j * dim] = 0.0;
        }
        self.covariance[0] = SHIFT_LEVEL;
        if self.tuning.slope_prior > 0.0 {
            self.covariance[dim + 1] += SHIFT_SLOPE;
        }
    }

    /// The part of the slope that is believed, 0..=1.
    fn slope_trust(&self) -> f64 {
        let dim = self.state.len();
        let variance = self.covariance[dim + 1] * self.noise_variance;
        let slope = square(self.state[1]);
        // The first test keeps 0/0 out: a slope of zero needs no shrinking.
        if slope > 0.0 {
            (1.0 - SHRINK * variance / slope).max(0.0)
        } else {
            0.0
        }
    }

    /// Mean of the sample `lead` steps (1-based) after the last one, `row` being the harmonics
    /// there.
    pub(super) fn mean(&self, lead: usize, row: &Row) -> f64 {
        let sum = self.slope_sum.get(lead - 1).copied().unwrap_or(0.0);
        let design = design(1.0, sum * self.slope_trust(), row);
        self.state.iter().zip(design).map(|(x, w)| x * w).sum()
    }

    /// Variance of that sample about the mean, from the filter, in squared units of the series.
    pub(super) fn variance(&self, lead: usize, row: &Row) -> f64 {
        let dim = self.state.len();
        let sum = self.slope_sum.get(lead - 1).copied().unwrap_or(0.0);
        // A shrunk slope errs less than a free one, but not by as much as it was shrunk.
        let design = design(1.0, sum * self.slope_trust().max(0.3), row);
        let mut variance = 1.0 + self.drift_sum.get(lead - 1).copied().unwrap_or(0.0);
        for (i, column) in self.covariance.chunks_exact(dim).enumerate() {
            let inner: f64 = column.iter().zip(design).map(|(p, w)| p * w).sum();
            variance += design[i] * inner;
        }
        variance.max(1.0) * self.noise_variance
    }

    /// Means at all steps `1..=out.len()`.
    pub(super) fn fill(&self, rows: &[Row], out: &mut [f64]) {
        let trust = self.slope_trust();
        for ((out, row), sum) in out.iter_mut().zip(rows).zip(&self.slope_sum) {
            let season: f64 = self.state[TREND..]
                .iter()
                .zip(row)
                .map(|(x, w)| x * w)
                .sum();
            *out = self.state[0] + self.state[1] * trust * sum + season;
        }
    }
}

/// Samples before innovations are clipped.
const SETTLED: u64 = 5;
/// Samples before a run of innovations may be called a shift: until then the noise is not known
/// and the first upswing of an unknown season looks like one.
const SHIFT_SETTLED: u64 = 16;
/// Cap of each state's variance, in units of the observation noise.
const VARIANCE_MAX: f64 = 1e4;

fn design(level: f64, slope: f64, row: &Row) -> [f64; DIM_MAX] {
    let mut design = [0.0; DIM_MAX];
    design[0] = level;
    design[1] = slope;
    design[TREND..].copy_from_slice(row);
    design
}

fn square(x: f64) -> f64 {
    x * x
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tuning() -> Tuning {
        Tuning {
            level: 1e-3,
            slope: 1e-6,
            slope_prior: 1e-3,
            damping: 0.99,
        }
    }

    #[test]
    fn a_noiseless_line_with_season_is_followed() {
        let h = Harmonics::new(&[20.0]);
        let mut m = Structural::new(tuning(), &h, 40);
        let truth = |t: u64| {
            100.0 + 0.5 * t as f64 + 10.0 * libm::cos(core::f64::consts::TAU / 20.0 * t as f64)
        };
        for t in 0..200 {
            m.observe(Some(truth(t)), &h.row(t));
        }
        let error =
            |lead: usize| m.mean(lead, &h.row(199 + lead as u64)) - truth(199 + lead as u64);
        assert!(error(1).abs() < 1.0, "{}", error(1));
        assert!(error(10).abs() < 3.0, "{}", error(10));
    }

    #[test]
    fn covariance_stays_symmetric_and_positive_through_gaps() {
        let h = Harmonics::new(&[7.3, 30.0]);
        let mut m = Structural::new(tuning(), &h, 40);
        for t in 0..5000_u64 {
            let y = (t % 11 < 8).then_some((t * 7919 % 101) as f64);
            m.observe(y, &h.row(t));
            let dim = m.state.len();
            for i in 0..dim {
                assert!(m.covariance[i * dim + i] >= 0.0);
                for j in 0..i {
                    assert_eq!(m.covariance[i * dim + j], m.covariance[j * dim + i]);
                }
            }
            assert!(m.variance(40, &h.row(t + 40)).is_finite());
        }
    }

    #[test]
    fn an_insignificant_slope_is_not_extrapolated() {
        let h = Harmonics::default();
        let mut m = Structural::new(tuning(), &h, 90);
        for t in 0..300_u64 {
            m.observe(Some(100.0 + (t * 7919 % 101) as f64 / 10.0), &h.row(t));
        }
        assert!((m.mean(90, &h.row(0)) - m.mean(1, &h.row(0))).abs() < 4.0);
    }
}
