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
const HARMONICS: usize = DAY_HARMONICS + WEEK_HARMONICS;
const DIM: usize = TREND + 2 * HARMONICS;
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

/// A point of the unit circle: cosine and sine.
type Turn = (f64, f64);

/// One angle after the other.
fn turn_by((cos, sin): Turn, (c, s): Turn) -> Turn {
    (cos * c - sin * s, cos * s + sin * c)
}

/// State, covariance and where the harmonics stand.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Structural {
    tuning: Tuning,
    state: [f64; DIM],
    covariance: Vec<f64>,
    noise: f64,
    observed: u32,
    /// Steps of a day; 0: no harmonics.
    day: usize,
    /// Each harmonic's turn of one step, and where it stands. It is turned step by step and set right at the
    /// start of each day or week, so rounding does not add up.
    turns: [Turn; HARMONICS],
    stand: [Turn; HARMONICS],
}

/// What is the same for every forecast at one lead.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Ahead {
    slope: f64,
    turns: [Turn; HARMONICS],
}

impl Structural {
    /// With days of `day` steps (below 12: no harmonics).
    pub(super) fn new(day: usize, tuning: Tuning) -> Self {
        let day = if day >= 12 { day } else { 0 };
        let mut new = Self {
            tuning,
            state: [0.0; DIM],
            covariance: vec![0.0; DIM * DIM],
            noise: 0.0,
            observed: 0,
            day,
            turns: [(0.0, 0.0); HARMONICS],
            stand: [(0.0, 0.0); HARMONICS],
        };
        new.turns = new.turns_of(1);
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

    /// How far each harmonic turns in so many steps.
    fn turns_of(&self, steps: usize) -> [Turn; HARMONICS] {
        let mut turns = [(0.0, 0.0); HARMONICS];
        if self.day == 0 {
            return turns;
        }
        for (i, turn) in turns.iter_mut().enumerate() {
            let (season, times) = if i < DAY_HARMONICS {
                (self.day, i + 1)
            } else {
                (7 * self.day, i + 1 - DAY_HARMONICS)
            };
            let phase = steps * times % season;
            let (sin, cos) = libm::sincos(core::f64::consts::TAU * phase as f64 / season as f64);
            *turn = (cos, sin);
        }
        turns
    }

    /// What forecasts `lead` steps on have in common.
    pub(super) fn ahead(&self, lead: usize) -> Ahead {
        Ahead {
            slope: damped_sum(self.tuning.damping, lead),
            turns: self.turns_of(lead),
        }
    }

    /// Turns the harmonics on to step `step`, the one after the last.
    fn turn(&mut self, step: u64) {
        let seasons = [(DAY_HARMONICS, self.day), (WEEK_HARMONICS, 7 * self.day)];
        let mut i = 0;
        for (count, season) in seasons {
            let is_start = season > 0 && step.is_multiple_of(season as u64);
            for _ in 0..count {
                self.stand[i] = if is_start {
                    (1.0, 0.0)
                } else {
                    turn_by(self.stand[i], self.turns[i])
                };
                i += 1;
            }
        }
    }

    /// Weights of the state in a sample.
    fn design(slope: f64, stand: &[Turn; HARMONICS]) -> [f64; DIM] {
        let mut row = [0.0; DIM];
        row[0] = 1.0;
        row[1] = slope;
        for (pair, &(cos, sin)) in row[TREND..].chunks_exact_mut(2).zip(stand) {
            pair[0] = cos;
            pair[1] = sin;
        }
        row
    }

    /// Moves on to step `step`, the one after the last, and takes its sample, if there is one.
    pub(super) fn observe(&mut self, step: u64, sample: Option<f64>) {
        self.turn(step);
        self.predict();
        if let Some(y) = sample {
            self.update(y, &Self::design(0.0, &self.stand));
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
        let innovation = y - dot(&self.state, row);
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

    /// Mean of the sample as many steps after the last one as `ahead` was made for.
    pub(super) fn mean(&self, ahead: &Ahead) -> f64 {
        let mut stand = self.stand;
        for (stand, &turn) in stand.iter_mut().zip(&ahead.turns) {
            *stand = turn_by(*stand, turn);
        }
        dot(&self.state, &Self::design(ahead.slope, &stand))
    }
}

/// Scalar product; two sums side by side, so that the order of additions is fixed.
fn dot(a: &[f64; DIM], b: &[f64; DIM]) -> f64 {
    let mut sums = [0.0; 2];
    for (a, b) in a.chunks_exact(2).zip(b.chunks_exact(2)) {
        for l in 0..2 {
            sums[l] += a[l] * b[l];
        }
    }
    sums[0] + sums[1]
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
            let error = m.mean(&m.ahead(lead)) - value(48 * 14 - 1 + lead as u64);
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
        let row = |m: &Structural, t: usize| Structural::design(0.0, &m.turns_of(t));
        for t in 0..40 {
            m.update(1.0, &row(&m, t / 20));
        }
        let p = nalgebra::DMatrix::from_column_slice(DIM, DIM, &m.covariance);
        let trace = p.trace();
        let least = p.symmetric_eigenvalues().min();
        assert!(least > -1e-15 * trace, "{least} of {trace}");
        for t in 0..2 {
            let row = row(&m, t);
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
            m.turn(t);
            m.predict();
            let row = Structural::design(0.0, &m.stand);
            let Some(y) = table.find("y", t) else {
                continue;
            };
            if seen == 0 {
                m.state[0] = y;
            }
            let (_, variance) = m.project(&row);
            let mean = dot(&m.state, &row);
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
        for lead in 1..=table.len("ahead") {
            table.agrees("ahead", lead as u64, m.mean(&m.ahead(lead)));
        }
    }

    #[test]
    fn damped_sums_are_geometric_sums() {
        let by_hand = 0.5 + 0.25 + 0.125;
        assert!((damped_sum(0.5, 3) - by_hand).abs() < 1e-15);
        assert_eq!(power(3.0, 5), 243.0);
    }
}
