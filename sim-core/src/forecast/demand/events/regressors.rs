//! The Kalman regression of a series on a day's harmonics, the weekend and the phases of events.
//!
//! Coefficients walk at random from a prior of zero; a coefficient that nothing is told of goes back to its prior's
//! uncertainty and no further. Residuals of neighbouring samples have much in common: as many as lie in an hour count
//! as one, by noise that is as many times larger. Innovations are clipped at four deviations.

use alloc::{vec, vec::Vec};

use serde::{Deserialize, Serialize};

use super::{AFTER_AT, WITHIN_AT};

/// Harmonics of the day; level, sine and cosine of each, weekend.
const HARMONICS: usize = 3;
pub(super) const DAILY: usize = 2 + 2 * HARMONICS;
/// Phases of one kind of event: all knots but the first and the last.
pub(super) const PHASES: usize = WITHIN_AT.len() + AFTER_AT.len() - 2;
/// Prior variances.
const LEVEL_PRIOR: f64 = 1.0;
const DAILY_PRIOR: f64 = 0.5;
const PHASE_PRIOR: f64 = 0.5;
/// Share of its prior variance that a coefficient walks a day.
const WALK: f64 = 0.05;
/// Noise at first, and least.
const NOISE: f64 = 0.05;
const NOISE_MIN: f64 = 1e-6;
const CLIP: f64 = 4.0;
const DAY_S: i64 = 86_400;
/// The first of January 1970 was a Thursday.
const FIRST_WEEKDAY: i64 = 4;

/// Coefficients, their covariance (row by row) and noise.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Regression {
    /// Samples that count as one, and samples a day.
    alike: f64,
    day: f64,
    prior: Vec<f64>,
    coefficients: Vec<f64>,
    covariance: Vec<f64>,
    noise: f64,
    seen: u64,
    /// Covariance times features.
    gain: Vec<f64>,
}

/// Level, harmonics and weekend at a moment.
pub(super) fn daily(at_s: i64) -> [f64; DAILY] {
    let mut features = [0.0; DAILY];
    features[0] = 1.0;
    let angle = 2.0 * core::f64::consts::PI * at_s.rem_euclid(DAY_S) as f64 / DAY_S as f64;
    for k in 0..HARMONICS {
        let (sin, cos) = libm::sincos((k + 1) as f64 * angle);
        (features[1 + 2 * k], features[2 + 2 * k]) = (sin, cos);
    }
    let weekday = (at_s.div_euclid(DAY_S) + FIRST_WEEKDAY).rem_euclid(7);
    features[DAILY - 1] = f64::from(u8::from(weekday == 0 || weekday == 6));
    features
}

impl Regression {
    pub(super) fn new(interval_s: i64) -> Self {
        let mut prior = vec![DAILY_PRIOR; DAILY];
        prior[0] = LEVEL_PRIOR;
        let mut new = Self {
            alike: (3_600 / interval_s).max(1) as f64,
            day: (DAY_S / interval_s).max(1) as f64,
            prior,
            coefficients: vec![0.0; DAILY],
            covariance: vec![0.0; DAILY * DAILY],
            noise: NOISE,
            seen: 0,
            gain: vec![0.0; DAILY],
        };
        new.reset();
        new
    }

    pub(super) fn reset(&mut self) {
        let n = self.prior.len();
        self.coefficients.fill(0.0);
        self.covariance.fill(0.0);
        for i in 0..n {
            self.covariance[i * n + i] = self.prior[i];
        }
        (self.noise, self.seen) = (NOISE, 0);
    }

    /// One kind of event more.
    pub(super) fn grow(&mut self) {
        let before = self.prior.len();
        let n = before + PHASES;
        self.prior.resize(n, PHASE_PRIOR);
        self.coefficients.resize(n, 0.0);
        self.gain.resize(n, 0.0);
        let mut covariance = vec![0.0; n * n];
        for i in 0..n {
            covariance[i * n + i] = self.prior[i];
        }
        for i in 0..before {
            let row = &self.covariance[i * before..(i + 1) * before];
            covariance[i * n..i * n + before].copy_from_slice(row);
        }
        self.covariance = covariance;
    }

    pub(super) fn predict(&self, features: &[f64]) -> f64 {
        self.coefficients
            .iter()
            .zip(features)
            .map(|(c, x)| c * x)
            .sum()
    }

    pub(super) fn daily(&self, features: &[f64; DAILY]) -> f64 {
        self.predict(features)
    }

    pub(super) fn coefficient(&self, place: usize) -> f64 {
        self.coefficients[place]
    }

    /// Learns from a sample; gives its residual.
    pub(super) fn learn(&mut self, features: &[f64], z: f64) -> f64 {
        if self.seen == 0 {
            self.coefficients[0] = z;
        }
        self.seen = self.seen.saturating_add(1);
        let n = self.prior.len();
        for (i, gain) in self.gain.iter_mut().enumerate() {
            let row = &self.covariance[i * n..(i + 1) * n];
            *gain = row.iter().zip(features).map(|(p, x)| p * x).sum();
        }
        let known: f64 = self.gain.iter().zip(features).map(|(g, x)| g * x).sum();
        let known = known.max(0.0);
        let error = z - self.predict(features);
        let limit = CLIP * libm::sqrt(known + self.noise);
        let clipped = error.clamp(-limit, limit);
        let variance = known + self.noise * self.alike;
        let walk = WALK / self.day;
        for i in 0..n {
            let share = self.gain[i] / variance;
            self.coefficients[i] += share * clipped;
            for k in 0..n {
                self.covariance[i * n + k] -= share * self.gain[k];
            }
            let own = &mut self.covariance[i * n + i];
            let walked = *own + walk * self.prior[i];
            if walked <= self.prior[i] {
                *own = walked.max(0.0);
            }
        }
        let rate = (1.0 / (self.seen as f64 + 10.0)).max(1.0 / self.day);
        self.noise = (self.noise + rate * (clipped * clipped - self.noise)).max(NOISE_MIN);
        error
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_week_of_waves_with_a_weekend_is_explained() {
        let mut regression = Regression::new(900);
        let value = |at_s: i64| {
            let x = daily(at_s);
            2.0 + 0.5 * x[1] - 0.3 * x[4] - 0.8 * x[DAILY - 1]
        };
        for step in 0..96 * 28 {
            let at_s = step * 900;
            regression.learn(&daily(at_s), value(at_s));
        }
        for step in 0..96 * 7 {
            let at_s = (96 * 28 + step) * 900;
            let off = regression.daily(&daily(at_s)) - value(at_s);
            assert!(off.abs() < 0.05, "{step}: {off}");
        }
    }

    #[test]
    fn the_covariance_stays_symmetric_and_positive_while_nothing_is_told_of_events() {
        let mut regression = Regression::new(300);
        regression.grow();
        let n = DAILY + PHASES;
        let mut features = vec![0.0; n];
        for step in 0..100_000_i64 {
            features[..DAILY].copy_from_slice(&daily(step * 300));
            regression.learn(&features, (step % 13) as f64 * 0.1);
        }
        for i in 0..n {
            let own = regression.covariance[i * n + i];
            assert!(own > 0.0 && own <= regression.prior[i], "{i}: {own}");
            for k in 0..n {
                let (a, b) = (
                    regression.covariance[i * n + k],
                    regression.covariance[k * n + i],
                );
                assert!((a - b).abs() < 1e-9);
            }
        }
    }
}
