//! Structural model of a series on the clock's grid: level, damped slope, day and week.
//!
//! In words: a sample is the level plus the day's and the week's harmonics plus noise. From step to
//! step the level moves by the slope and by noise of its own, the slope shrinks towards zero by a
//! fixed factor, and each harmonic's coefficients wander. The Kalman filter is run in units of the
//! observation noise, whose size follows the standardised innovations. Sources: A. C. Harvey,
//! *Forecasting, Structural Time Series Models and the Kalman Filter* (1989), §2.3 and §3.4; the
//! covariance is updated in the form of Bucy & Joseph (1968), which stays positive under rounding;
//! P. Young et al., "Dynamic harmonic regression", J. Forecasting 18 (1999); innovations are
//! clipped (Masreliez & Martin 1977).
//!
//! How it fails: four harmonics smooth a sharp daily profile away; on a bursty series the level
//! chases each burst. It is one voice among many, and weighted by its losses at each lead.

use alloc::{vec, vec::Vec};

use nalgebra::{SMatrixView, SMatrixViewMut, SVector};
use serde::{Deserialize, Serialize};

const DAY_HARMONICS: usize = 4;
const WEEK_HARMONICS: usize = 2;
/// Level and slope come before the harmonics.
const TREND: usize = 2;
const DIM: usize = TREND + 2 * (DAY_HARMONICS + WEEK_HARMONICS);
/// Level, slope, harmonics.
type PerPart = [f64; 3];

/// What makes one model different from another. Variances are relative to the noise of a sample.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Tuning {
    /// Share of the slope that survives a step.
    damping: f64,
    /// Step noise.
    noise: PerPart,
    /// Variances at the start.
    prior: PerPart,
}

pub(super) const TUNING: Tuning = Tuning {
    damping: 0.97,
    noise: [0.05, 1e-6, 1e-5],
    prior: [10.0, 1e-3, 1.0],
};
const VARIANCE_MAX: f64 = 1e4;
/// Innovations count in full up to this many standard deviations, after the first few.
const HUBER: f64 = 3.0;
const SETTLED: u32 = 5;
/// Memory of the noise variance, in samples.
const NOISE_MEMORY: f64 = 200.0;

/// State, covariance and the tables of one turn of a day and of a week.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Structural {
    tuning: Tuning,
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
    pub(super) fn new(day: usize, tuning: Tuning) -> Self {
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
            tuning,
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
            self.covariance[i * DIM + i] = self.tuning.prior[i.min(TREND)];
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
        if let Some(y) = sample {
            self.update(y, &self.design(step, 0.0));
        }
    }

    /// `P h` and the variance `hᵀ P h + 1` of the sample that `h` weighs the state for.
    fn project(&self, row: &[f64; DIM]) -> (SVector<f64, DIM>, f64) {
        let h = SVector::from(*row);
        let ph = SMatrixView::<f64, DIM, DIM>::from_slice(&self.covariance) * h;
        (ph, (1.0 + ph.dot(&h)).max(1.0))
    }

    fn update(&mut self, y: f64, row: &[f64; DIM]) {
        if self.observed == 0 {
            self.state[0] = y;
        }
        let (ph, variance) = self.project(row);
        let gain = ph / variance;
        let innovation = y - super::regression::dot(&self.state, row);
        let limit = HUBER * libm::sqrt(self.noise * variance);
        let clipped = if self.observed > SETTLED {
            innovation.clamp(-limit, limit)
        } else {
            innovation
        };
        for (x, gain) in self.state.iter_mut().zip(&gain) {
            *x += gain * clipped;
        }
        // Joseph's form (I − K hᵀ) P (I − K hᵀ)ᵀ + K Kᵀ, one side after the other: A = P − K (P h)ᵀ, then
        // A − (A h − K) Kᵀ. The second side takes off what rounding left of the first.
        let mut p = SMatrixViewMut::<f64, DIM, DIM>::from_slice(&mut self.covariance);
        p.ger(-1.0, &gain, &ph, 1.0);
        let left = &p * SVector::from(*row) - gain;
        p.ger(-1.0, &left, &gain, 1.0);
        p.fill_upper_triangle_with_lower_triangle();
        self.observed = self.observed.saturating_add(1);
        let rate = (1.0 / (f64::from(self.observed) + 1.0)).max(1.0 / NOISE_MEMORY);
        self.noise = (self.noise + rate * (clipped * clipped / variance - self.noise)).max(1e-12);
    }

    /// x ← F x and P ← F P Fᵀ + Q, F being the identity but for the damped slope.
    fn predict(&mut self) {
        let damping = self.tuning.damping;
        self.state[1] *= damping;
        self.state[0] += self.state[1];
        let p = &mut self.covariance;
        for j in 0..DIM {
            let v = damping * p[DIM + j];
            p[DIM + j] = v;
            p[j] += v;
        }
        for j in 0..DIM {
            let v = damping * p[j * DIM + 1];
            p[j * DIM + 1] = v;
            p[j * DIM] += v;
        }
        for i in 0..DIM {
            let v = &mut p[i * DIM + i];
            *v = (*v + self.tuning.noise[i.min(TREND)]).min(VARIANCE_MAX);
        }
    }

    /// Mean of the sample `lead` steps after step `step`, whose sample was the last one.
    pub(super) fn mean(&self, step: u64, lead: usize) -> f64 {
        super::regression::dot(
            &self.state,
            &self.design(step + lead as u64, damped_sum(self.tuning.damping, lead)),
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
    use super::super::oracle::Oracle;
    use super::*;

    #[test]
    fn a_daily_wave_is_continued_through_the_night() {
        let value = |t: u64| 10.0 + 3.0 * libm::cos(core::f64::consts::TAU * t as f64 / 48.0);
        let mut m = Structural::new(48, TUNING);
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
        let mut m = Structural::new(24, TUNING);
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
    fn one_hour_of_a_day_seen_again_and_again_leaves_the_covariance_positive() {
        // Nothing is known at first, and then one combination of the states very well: the short form P − K (P h)ᵀ
        // loses all digits of what is left.
        let mut m = Structural::new(24, TUNING);
        for i in 0..DIM {
            m.covariance[i * DIM + i] = 1e12;
        }
        for t in 0..40 {
            m.update(1.0, &m.design(t / 20, 0.0));
        }
        let p = nalgebra::DMatrix::from_column_slice(DIM, DIM, &m.covariance);
        let trace = p.trace();
        let least = p.symmetric_eigenvalues().min();
        assert!(least > -1e-15 * trace, "{least} of {trace}");
        for t in 0..2 {
            let row = m.design(t, 0.0);
            let left = m.project(&row).0.dot(&SVector::from(row));
            assert!((0.0..0.2).contains(&left), "{t}: {left}");
        }
    }

    #[test]
    fn innovations_and_forecasts_are_those_of_statsmodels() {
        let table = Oracle::read(include_str!("../../../tests/oracle/structural.csv"));
        let parts = |name: &str| [0, 1, 2].map(|i| table.get(name, i));
        let tuning = Tuning {
            damping: table.get("damping", 0),
            noise: parts("noise"),
            prior: parts("prior"),
        };
        let mut m = Structural::new(24, tuning);
        // No innovation is clipped.
        m.noise = 1e15;
        let (mut log_likelihood, mut seen) = (0.0, 0);
        let steps = table.len("mean") as u64;
        for t in 0..steps {
            m.predict();
            let row = m.design(t, 0.0);
            let Some(y) = table.find("y", t) else {
                continue;
            };
            if seen == 0 {
                m.state[0] = y;
            }
            let (_, variance) = m.project(&row);
            let mean = super::super::regression::dot(&m.state, &row);
            table.agrees("mean", t, mean);
            table.agrees("variance", t, variance);
            let error = y - mean;
            log_likelihood -=
                0.5 * (libm::log(core::f64::consts::TAU * variance) + error * error / variance);
            m.update(y, &row);
            seen += 1;
        }
        assert!(seen > 150 && seen < steps);
        table.agrees("log_likelihood", 0, log_likelihood);
        for lead in 1..=table.len("ahead") as u64 {
            table.agrees("ahead", lead, m.mean(steps - 1, lead as usize));
        }
    }

    #[test]
    fn damped_sums_are_geometric_sums() {
        let by_hand = 0.5 + 0.25 + 0.125;
        assert!((damped_sum(0.5, 3) - by_hand).abs() < 1e-15);
        assert_eq!(power(3.0, 5), 243.0);
    }
}
