//! Regression whose coefficients are the state of a Kalman filter.
//!
//! In words: the target is the coefficients times the features plus noise of variance one; between
//! samples the coefficients may wander, which is written as forgetting (their covariance is divided
//! by a factor just below one). So the gain is `P x / (1 + xᵀ P x)`, the coefficients move by the gain
//! times the error, and `P` loses the gain times `(P x)ᵀ`. Source: A. C. Harvey, *Forecasting,
//! Structural Time Series Models and the Kalman Filter* (1989), §7.4; forgetting as in L. Ljung,
//! *System Identification* (1999), §11.2. Errors are clipped (Masreliez & Martin 1977).
//!
//! How it fails: what never varies is never learned, and forgetting would let its variance grow
//! without end ("wind-up"); forgetting stops where the trace of `P` reaches a bound. A few
//! hundred samples are needed before the coefficients are worth more than their prior.
//!
//! `P` is kept as its upper triangle, row after row: half the memory, and no rounding can make it
//! asymmetric.

use alloc::{vec, vec::Vec};

use serde::{Deserialize, Serialize};

/// Samples before errors are clipped.
const SETTLED: u32 = 5;
/// Memory of the mean absolute error that errors are clipped by, in samples.
const SPREAD_MEMORY: f64 = 300.0;

/// What makes one regression different from another.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Tuning {
    /// Variance of each coefficient at the start, noise being one.
    pub(super) prior: f64,
    /// Share of what is known that survives one sample.
    pub(super) keep: f64,
    /// Errors count in full up to this many times their usual size.
    pub(super) clip: f64,
    /// Forgetting stops where the trace of the covariance reaches this many times the prior's.
    pub(super) trace_max: f64,
}

/// One filtered regression.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Regression {
    tuning: Tuning,
    coefficients: Vec<f64>,
    covariance: Vec<f64>,
    /// Room for `P x`.
    scratch: Vec<f64>,
    mean_abs: f64,
    learned: u32,
}

impl Regression {
    pub(super) fn new(prior: &[f64], tuning: Tuning) -> Self {
        let n = prior.len();
        let mut new = Self {
            tuning,
            coefficients: vec![0.0; n],
            covariance: vec![0.0; n * (n + 1) / 2],
            scratch: vec![0.0; n],
            mean_abs: 0.0,
            learned: 0,
        };
        new.reset(prior);
        new
    }

    /// Forgets everything.
    pub(super) fn reset(&mut self, prior: &[f64]) {
        let n = self.coefficients.len();
        self.coefficients.copy_from_slice(prior);
        self.covariance.fill(0.0);
        let mut at = 0;
        for i in 0..n {
            self.covariance[at] = self.tuning.prior;
            at += n - i;
        }
        self.mean_abs = 0.0;
        self.learned = 0;
    }

    #[cfg(test)]
    fn coefficients(&self) -> &[f64] {
        &self.coefficients
    }

    /// The target that these features ask for.
    pub(super) fn predict(&self, x: &[f64]) -> f64 {
        dot(&self.coefficients, x)
    }

    /// Learns from one pair.
    pub(super) fn learn(&mut self, x: &[f64], target: f64) {
        let error = target - self.predict(x);
        let settled = self.learned >= SETTLED;
        let limit = self.tuning.clip * self.mean_abs;
        let clipped = if settled {
            error.clamp(-limit, limit)
        } else {
            error
        };
        self.learned = self.learned.saturating_add(1);
        let rate = (1.0 / (f64::from(self.learned) + 1.0)).max(1.0 / SPREAD_MEMORY);
        self.mean_abs = (self.mean_abs + rate * (clipped.abs() - self.mean_abs)).max(1e-9);

        let n = self.coefficients.len();
        let (px, covariance) = (&mut self.scratch[..n], &mut self.covariance);
        px.fill(0.0);
        let mut rest = &covariance[..];
        for (i, &xi) in x.iter().enumerate() {
            let (row, below) = rest.split_at(n - i);
            px[i] += dot(row, &x[i..]);
            for (p, v) in px[i + 1..].iter_mut().zip(&row[1..]) {
                *p += v * xi;
            }
            rest = below;
        }
        let scale = 1.0 / (1.0 + dot(px, x).max(0.0));
        let step = clipped * scale;
        let mut trace = 0.0;
        let mut at = 0;
        for (i, (coefficient, p)) in self.coefficients.iter_mut().zip(&*px).enumerate() {
            *coefficient += p * step;
            trace += covariance[at] - p * p * scale;
            at += n - i;
        }
        let bound = self.tuning.trace_max * self.tuning.prior * n as f64;
        let grow = if trace < bound * self.tuning.keep {
            1.0 / self.tuning.keep
        } else {
            1.0
        };
        let mut rest = &mut covariance[..];
        for (i, &gain) in px.iter().enumerate() {
            let (row, below) = rest.split_at_mut(n - i);
            let gain = gain * scale;
            for (v, p) in row.iter_mut().zip(&px[i..]) {
                *v = (*v - gain * p) * grow;
            }
            // Rounding may take a variance below zero, where it would stay.
            row[0] = row[0].max(1e-12 * self.tuning.prior);
            rest = below;
        }
    }
}

/// Four sums side by side: the order of additions is fixed, and the compiler can keep them in
/// registers that hold several.
pub(super) fn dot(a: &[f64], b: &[f64]) -> f64 {
    let mut sums = [0.0; 4];
    let (a4, b4) = (a.chunks_exact(4), b[..a.len()].chunks_exact(4));
    let rest: f64 = a4
        .remainder()
        .iter()
        .zip(b4.remainder())
        .map(|(a, b)| a * b)
        .sum();
    for (a, b) in a4.zip(b4) {
        for (sum, (a, b)) in sums.iter_mut().zip(a.iter().zip(b)) {
            *sum += a * b;
        }
    }
    (sums[0] + sums[1]) + (sums[2] + sums[3]) + rest
}

#[cfg(test)]
mod tests {
    use super::super::oracle::Oracle;
    use super::*;

    const TUNING: Tuning = Tuning {
        prior: 1.0,
        keep: 0.999,
        clip: 8.0,
        trace_max: 10.0,
    };

    fn noise(seed: &mut u64) -> f64 {
        *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (*seed >> 33) as f64 / 2_147_483_648.0 - 0.5
    }

    #[test]
    fn the_coefficients_of_a_linear_relation_are_found() {
        let mut r = Regression::new(&[0.0; 5], TUNING);
        let truth = [0.5, -1.0, 0.0, 2.0, 0.25];
        let mut seed = 3;
        for _ in 0..2000 {
            let x = [0; 5].map(|_| noise(&mut seed));
            r.learn(&x, dot(&truth, &x) + 0.1 * noise(&mut seed));
        }
        for (found, true_one) in r.coefficients().iter().zip(truth) {
            assert!((found - true_one).abs() < 0.03, "{:?}", r.coefficients());
        }
    }

    #[test]
    fn one_step_equals_the_textbook_update() {
        // P = I, x = (1, 2): S = 6, gain (1/6, 2/6); target 3.
        let mut r = Regression::new(
            &[0.0, 0.0],
            Tuning {
                keep: 1.0,
                ..TUNING
            },
        );
        r.learn(&[1.0, 2.0], 3.0);
        assert!((r.coefficients()[0] - 0.5).abs() < 1e-15);
        assert!((r.coefficients()[1] - 1.0).abs() < 1e-15);
        let expected = [1.0 - 1.0 / 6.0, -2.0 / 6.0, 1.0 - 4.0 / 6.0];
        for (p, e) in r.covariance.iter().zip(expected) {
            assert!((p - e).abs() < 1e-15, "{:?}", r.covariance);
        }
    }

    #[test]
    fn predictions_and_coefficients_are_those_of_statsmodels() {
        let table = Oracle::read(include_str!("../../../tests/oracle/regression.csv"));
        let n = table.len("coefficient");
        let tuning = Tuning {
            prior: table.get("prior", 0),
            keep: 1.0,
            // No error is clipped.
            clip: 1e15,
            trace_max: 10.0,
        };
        let start: Vec<f64> = (0..n as u64).map(|i| table.get("start", i)).collect();
        let mut r = Regression::new(&start, tuning);
        for t in 0..table.len("y") as u64 {
            let x: Vec<f64> = (0..n as u64)
                .map(|i| table.get("x", t * n as u64 + i))
                .collect();
            table.agrees("mean", t, r.predict(&x));
            r.learn(&x, table.get("y", t));
        }
        for (i, &coefficient) in r.coefficients().iter().enumerate() {
            table.agrees("coefficient", i as u64, coefficient);
        }
    }

    #[test]
    fn features_that_never_vary_do_not_wind_the_covariance_up() {
        let mut r = Regression::new(&[0.0; 3], TUNING);
        for t in 0..100_000_u32 {
            r.learn(&[1.0, 0.0, 1e-9 * f64::from(t % 7)], 5.0);
        }
        assert!(
            r.covariance.iter().all(|p| p.abs() < 31.0),
            "{:?}",
            r.covariance
        );
        assert!((r.predict(&[1.0, 0.0, 0.0]) - 5.0).abs() < 1e-3);
    }
}
