//! Structural model of a series on the clock's grid: level, damped slope, day and week.
//!
//! In words: a sample is the level plus the day's and the week's harmonics plus noise. From step to
//! step the level moves by the slope and by noise of its own, the slope shrinks towards zero by a
//! fixed factor, and each harmonic's coefficients wander. The Kalman filter is run in units of the
//! observation noise, whose size follows the standardised innovations. Sources: A. C. Harvey,
//! *Forecasting, Structural Time Series Models and the Kalman Filter* (1989), §2.3 and §3.4;
//! P. Young et al., "Dynamic harmonic regression", J. Forecasting 18 (1999); innovations are
//! clipped (Masreliez & Martin 1977).
//!
//! How it fails: four harmonics smooth a sharp daily profile away; on a bursty series the level
//! chases each burst. It is one voice among many, and weighted by its losses at each lead.

use alloc::{vec, vec::Vec};

use serde::{Deserialize, Serialize};

const DAY_HARMONICS: usize = 4;
const WEEK_HARMONICS: usize = 2;
/// Level and slope come before the harmonics.
const TREND: usize = 2;
const DIM: usize = TREND + 2 * (DAY_HARMONICS + WEEK_HARMONICS);
/// Share of the slope that survives a step.
const DAMPING: f64 = 0.97;
/// Step noise of level, slope and harmonics, relative to the noise of a sample.
const LEVEL_NOISE: f64 = 0.05;
const SLOPE_NOISE: f64 = 1e-6;
const SEASON_NOISE: f64 = 1e-5;
/// Variances at the start.
const LEVEL_PRIOR: f64 = 10.0;
const SLOPE_PRIOR: f64 = 1e-3;
const SEASON_PRIOR: f64 = 1.0;
const VARIANCE_MAX: f64 = 1e4;
/// Innovations count in full up to this many standard deviations, after the first few.
const HUBER: f64 = 3.0;
const SETTLED: u32 = 5;
/// Memory of the noise variance, in samples.
const NOISE_MEMORY: f64 = 200.0;

/// State, covariance and the tables of one turn of a day and of a week.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Structural {
    state: [f64; DIM],
    covariance: Vec<f64>,
    noise: f64,
    observed: u32,
    /// Cosine and sine over one day, and over one week; empty: no such season.
    day: Vec<(f64, f64)>,
    week: Vec<(f64, f64)>,
}

impl Structural {
    /// With days of `day` steps (below 12: no harmonics).
    pub(super) fn new(day: usize) -> Self {
        let turn = |steps: usize| -> Vec<(f64, f64)> {
            (0..steps)
                .map(|i| {
                    let (sin, cos) = libm::sincos(core::f64::consts::TAU * i as f64 / steps as f64);
                    (cos, sin)
                })
                .collect()
        };
        let day = if day >= 12 { day } else { 0 };
        let mut new = Self {
            state: [0.0; DIM],
            covariance: vec![0.0; DIM * DIM],
            noise: 0.0,
            observed: 0,
            day: turn(day),
            week: turn(7 * day),
        };
        new.reset();
        new
    }

    pub(super) fn reset(&mut self) {
        self.state = [0.0; DIM];
        self.covariance.fill(0.0);
        for i in 0..DIM {
            self.covariance[i * DIM + i] = match i {
                0 => LEVEL_PRIOR,
                1 => SLOPE_PRIOR,
                _ => SEASON_PRIOR,
            };
        }
        self.noise = 0.0;
        self.observed = 0;
    }

    /// Weights of the state in the sample at step `step`, `lead` of which lie in the future.
    fn design(&self, step: u64, slope: f64) -> [f64; DIM] {
        let mut row = [0.0; DIM];
        row[0] = 1.0;
        row[1] = slope;
        let (day, week) = row[TREND..].split_at_mut(2 * DAY_HARMONICS);
        for (table, row) in [(&self.day, day), (&self.week, week)] {
            let steps = table.len() as u64;
            if steps == 0 {
                continue;
            }
            let phase = step % steps;
            for (j, pair) in (1..).zip(row.chunks_exact_mut(2)) {
                let (cos, sin) = table[(phase * j % steps) as usize];
                pair[0] = cos;
                pair[1] = sin;
            }
        }
        row
    }

    /// Moves on to step `step` and takes its sample, if there is one.
    pub(super) fn observe(&mut self, step: u64, sample: Option<f64>) {
        self.predict();
        let Some(y) = sample else { return };
        if self.observed == 0 {
            self.state[0] = y;
        }
        let row = self.design(step, 0.0);
        let mut ph = [0.0; DIM];
        for (ph, column) in ph.iter_mut().zip(self.covariance.chunks_exact(DIM)) {
            *ph = super::regression::dot(column, &row);
        }
        let variance = (1.0 + super::regression::dot(&ph, &row)).max(1.0);
        let innovation = y - super::regression::dot(&self.state, &row);
        let limit = HUBER * libm::sqrt(self.noise * variance);
        let clipped = if self.observed > SETTLED {
            innovation.clamp(-limit, limit)
        } else {
            innovation
        };
        for (x, ph) in self.state.iter_mut().zip(&ph) {
            *x += ph / variance * clipped;
        }
        // For one observation Joseph's form comes down to P − K(Ph)ᵀ where K = Ph/s; as an outer
        // product of a vector with itself it is symmetric to the bit.
        for (column, g) in self.covariance.chunks_exact_mut(DIM).zip(&ph) {
            let g = g / variance;
            for (v, ph) in column.iter_mut().zip(&ph) {
                *v -= g * ph;
            }
        }
        for i in 0..DIM {
            let v = &mut self.covariance[i * DIM + i];
            *v = v.max(0.0);
        }
        self.observed = self.observed.saturating_add(1);
        let rate = (1.0 / (f64::from(self.observed) + 1.0)).max(1.0 / NOISE_MEMORY);
        self.noise = (self.noise + rate * (clipped * clipped / variance - self.noise)).max(1e-12);
    }

    /// x ← F x and P ← F P Fᵀ + Q, F being the identity but for the damped slope.
    fn predict(&mut self) {
        self.state[1] *= DAMPING;
        self.state[0] += self.state[1];
        let p = &mut self.covariance;
        for j in 0..DIM {
            let v = DAMPING * p[DIM + j];
            p[DIM + j] = v;
            p[j] += v;
        }
        for j in 0..DIM {
            let v = DAMPING * p[j * DIM + 1];
            p[j * DIM + 1] = v;
            p[j * DIM] += v;
        }
        for i in 0..DIM {
            let noise = match i {
                0 => LEVEL_NOISE,
                1 => SLOPE_NOISE,
                _ => SEASON_NOISE,
            };
            let v = &mut p[i * DIM + i];
            *v = (*v + noise).min(VARIANCE_MAX);
        }
    }

    /// Mean of the sample `lead` steps after step `step`, whose sample was the last one.
    pub(super) fn mean(&self, step: u64, lead: usize) -> f64 {
        super::regression::dot(
            &self.state,
            &self.design(step + lead as u64, damped_sum(DAMPING, lead)),
        )
    }
}

/// Σ dʲ for j = 1..=lead, by multiplication alone: bits agree everywhere.
pub(super) fn damped_sum(damping: f64, lead: usize) -> f64 {
    damping * (1.0 - power(damping, lead)) / (1.0 - damping)
}

/// Integer power by squaring.
pub(super) fn power(base: f64, exponent: usize) -> f64 {
    let (mut result, mut base, mut rest) = (1.0, base, exponent);
    while rest > 0 {
        if rest & 1 == 1 {
            result *= base;
        }
        base *= base;
        rest >>= 1;
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_daily_wave_is_continued_through_the_night() {
        let value = |t: u64| 10.0 + 3.0 * libm::cos(core::f64::consts::TAU * t as f64 / 48.0);
        let mut m = Structural::new(48);
        for t in 0..48 * 14 {
            m.observe(t, Some(value(t)));
        }
        for lead in [1, 12, 24] {
            let error = m.mean(48 * 14 - 1, lead) - value(48 * 14 - 1 + lead as u64);
            assert!(error.abs() < 0.2, "{lead}: {error}");
        }
    }

    #[test]
    fn the_covariance_stays_symmetric_and_bounded_through_long_gaps() {
        let mut m = Structural::new(24);
        for t in 0..20_000_u64 {
            m.observe(t, (t % 400 < 50).then_some((t * 7919 % 101) as f64));
        }
        for i in 0..DIM {
            for j in 0..DIM {
                let (a, b) = (m.covariance[i * DIM + j], m.covariance[j * DIM + i]);
                assert!((a - b).abs() <= 1e-9 * (1.0 + a.abs()), "{i} {j}: {a} {b}");
                assert!(a.abs() <= VARIANCE_MAX);
            }
        }
    }

    #[test]
    fn damped_sums_are_geometric_sums() {
        let by_hand = 0.5 + 0.25 + 0.125;
        assert!((damped_sum(0.5, 3) - by_hand).abs() < 1e-15);
        assert_eq!(power(3.0, 5), 243.0);
    }
}
