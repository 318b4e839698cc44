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
//! `P` is kept by its diagonals, each going round the edge of the matrix: `n / 2 + 1` rows of `n`, in which
//! row `k` holds the elements `(i, i + k mod n)`. That is half the memory, no rounding can make it
//! asymmetric, and every loop runs over whole rows. It is in single precision: each sample adds a little to
//! the variances (the coefficients wander a little anyway), which keeps them above the rounding errors.

use alloc::{vec, vec::Vec};

use serde::{Deserialize, Serialize};

use super::lanes::{Real, add_products, dot, take_products};

/// Features at most.
pub(super) const SIZE_MAX: usize = 24;
/// Samples before errors are clipped.
const SETTLED: u32 = 5;
/// Memory of the mean absolute error that errors are clipped by, in samples.
const SPREAD_MEMORY: f64 = 300.0;
/// What a sample adds to each variance, in shares of the prior's, so that it stays above rounding errors.
pub(super) const WANDER: f32 = 1e-6;

/// What makes one regression different from another.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Tuning<R = f32> {
    /// Variance of each coefficient at the start, noise being one.
    pub(super) prior: R,
    /// Share of what is known that survives one sample.
    pub(super) keep: R,
    /// Errors count in full up to this many times their usual size.
    pub(super) clip: R,
    /// Forgetting stops where the trace of the covariance reaches this many times the prior's.
    pub(super) trace_max: R,
    /// What a sample adds to each variance, in shares of the prior's.
    pub(super) wander: R,
}

/// One filtered regression on `N` features (a multiple of four, at most [`SIZE_MAX`]), of which the last
/// ones may be nothing but padding.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Regression<const N: usize, R = f32> {
    tuning: Tuning<R>,
    used: usize,
    coefficients: Vec<R>,
    covariance: Vec<R>,
    mean_abs: R,
    learned: u32,
}

impl<const N: usize, R: Real> Regression<N, R> {
    /// One that starts from these coefficients; the features after them are padding.
    pub(super) fn new(prior: &[R], tuning: Tuning<R>) -> Self {
        const { assert!(N.is_multiple_of(4) && N <= SIZE_MAX) };
        let zero = R::of(0.0);
        let mut new = Self {
            tuning,
            used: prior.len().min(N),
            coefficients: vec![zero; N],
            covariance: vec![zero; N * (N / 2 + 1)],
            mean_abs: zero,
            learned: 0,
        };
        new.reset(prior);
        new
    }

    /// Forgets everything.
    pub(super) fn reset(&mut self, prior: &[R]) {
        let zero = R::of(0.0);
        self.coefficients.fill(zero);
        self.coefficients[..self.used].copy_from_slice(&prior[..self.used]);
        self.covariance.fill(zero);
        self.covariance[..self.used].fill(self.tuning.prior);
        self.mean_abs = zero;
        self.learned = 0;
    }

    /// The target that these features ask for.
    pub(super) fn predict(&self, x: &[R; N]) -> R {
        let coefficients = self.coefficients.first_chunk();
        coefficients.map_or(R::of(0.0), |c| dot(c, x))
    }

    /// Learns from one pair.
    pub(super) fn learn(&mut self, x: &[R; N], target: R) {
        let (zero, one) = (R::of(0.0), R::of(1.0));
        let step = self.clipped(target - self.predict(x));
        let mut px = self.times(x);
        let scale = one / (one + dot(&px, x).max(zero));
        let step = step * scale;
        for (coefficient, &p) in self.coefficients.iter_mut().zip(&px) {
            *coefficient = *coefficient + p * step;
        }
        // What P loses is the product of a vector with itself: the same bits on both sides of it.
        let root = scale.sqrt();
        for p in &mut px {
            *p = *p * root;
        }
        let twice = twice(&px);
        let mut rows = self.covariance.chunks_exact_mut(N);
        let Some(variances) = rows.next() else { return };
        for (v, &p) in variances.iter_mut().zip(&px) {
            *v = *v - p * p;
        }
        let trace = variances.chunks_exact(4).fold(zero, |sum, four| {
            sum + ((four[0] + four[1]) + (four[2] + four[3]))
        });
        let Tuning {
            prior,
            keep,
            trace_max,
            wander,
            ..
        } = self.tuning;
        let bound = trace_max * prior * R::of(self.used as f64);
        let grow = if trace < bound * keep {
            one / keep
        } else {
            one
        };
        for v in &mut variances[..self.used] {
            // Rounding may take a variance below zero, where it would stay.
            *v = (*v * grow).max(zero) + wander * prior;
        }
        variances[self.used..].fill(zero);
        for (k, row) in (1..).zip(rows) {
            if let (Some(row), Some(other)) = (row.first_chunk_mut(), twice[k..].first_chunk()) {
                take_products(row, &px, other, grow);
            }
        }
    }

    /// Clips an error by the size of earlier ones, and takes note of its own.
    fn clipped(&mut self, error: R) -> R {
        let limit = self.tuning.clip * self.mean_abs;
        let size = error.abs();
        let is_clipped = self.learned >= SETTLED && size > limit;
        let size = if is_clipped { limit } else { size };
        self.learned = self.learned.saturating_add(1);
        let rate = (1.0 / (f64::from(self.learned) + 1.0)).max(1.0 / SPREAD_MEMORY);
        let mean_abs = self.mean_abs + R::of(rate) * (size - self.mean_abs);
        self.mean_abs = mean_abs.max(R::of(1e-9));
        if error < R::of(0.0) { -size } else { size }
    }

    /// P x.
    fn times(&self, x: &[R; N]) -> [R; N] {
        let mut low = [R::of(0.0); N];
        let mut high = [R::of(0.0); 2 * SIZE_MAX];
        let twice = twice(x);
        for (k, row) in self.covariance.chunks_exact(N).enumerate() {
            let (Some(row), Some(other)) = (row.first_chunk(), twice[k..].first_chunk()) else {
                return low;
            };
            add_products(&mut low, row, other);
            // The diagonal and the one half way round hold both of their sides themselves.
            if k > 0
                && 2 * k < N
                && let Some(high) = high[k..].first_chunk_mut()
            {
                add_products(high, row, x);
            }
        }
        for i in 0..N {
            low[i] = low[i] + (high[i] + high[i + N]);
        }
        low
    }
}

/// A vector and the same again.
fn twice<R: Real, const N: usize>(x: &[R; N]) -> [R; 2 * SIZE_MAX] {
    let mut out = [R::of(0.0); 2 * SIZE_MAX];
    out[..N].copy_from_slice(x);
    out[N..2 * N].copy_from_slice(x);
    out
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
        wander: WANDER,
    };

    fn noise(seed: &mut u64) -> f32 {
        *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (*seed >> 33) as f32 / 2_147_483_648.0 - 0.5
    }

    /// Element `(i, j)` of the covariance.
    fn at<const N: usize>(r: &Regression<N>, i: usize, j: usize) -> f32 {
        let k = (N + j - i) % N;
        if 2 * k <= N {
            r.covariance[k * N + i]
        } else {
            r.covariance[(N - k) * N + j]
        }
    }

    #[test]
    fn the_coefficients_of_a_linear_relation_are_found() {
        let mut r = Regression::<8>::new(&[0.0; 5], TUNING);
        let truth = [0.5, -1.0, 0.0, 2.0, 0.25, 0.0, 0.0, 0.0];
        let mut seed = 3;
        for _ in 0..2000 {
            let mut x = [0; 8].map(|_| noise(&mut seed));
            x[5..].fill(0.0);
            r.learn(&x, dot(&truth, &x) + 0.1 * noise(&mut seed));
        }
        for (found, true_one) in r.coefficients.iter().zip(truth) {
            assert!((found - true_one).abs() < 0.03, "{:?}", r.coefficients);
        }
    }

    #[test]
    fn one_step_equals_the_textbook_update() {
        // P = I, x = (1, 2): S = 6, gain (1/6, 2/6); target 3.
        let tuning = Tuning {
            keep: 1.0,
            ..TUNING
        };
        let mut r = Regression::<4>::new(&[0.0, 0.0], tuning);
        r.learn(&[1.0, 2.0, 0.0, 0.0], 3.0);
        assert!((r.coefficients[0] - 0.5).abs() < 1e-6);
        assert!((r.coefficients[1] - 1.0).abs() < 1e-6);
        for (i, j, expected) in [
            (0, 0, 5.0 / 6.0),
            (0, 1, -1.0 / 3.0),
            (1, 1, 1.0 / 3.0),
            (2, 2, 0.0),
        ] {
            assert!((at(&r, i, j) - expected).abs() < 3e-6, "{:?}", r.covariance);
        }
    }

    #[test]
    fn diagonals_hold_the_same_matrix_as_rows_would() {
        let mut r = Regression::<12>::new(&[0.0; 11], TUNING);
        let mut full = [[0.0_f64; 12]; 12];
        for (i, row) in full.iter_mut().enumerate().take(11) {
            row[i] = 1.0;
        }
        let mut seed = 9;
        for _ in 0..300 {
            let mut x = [0; 12].map(|_| noise(&mut seed));
            x[11] = 0.0;
            r.learn(&x, noise(&mut seed));
            let x = x.map(f64::from);
            let px = full.map(|row| row.iter().zip(x).map(|(p, x)| p * x).sum::<f64>());
            let scale = 1.0 / (1.0 + px.iter().zip(x).map(|(p, x)| p * x).sum::<f64>());
            for i in 0..11 {
                for j in 0..11 {
                    full[i][j] = (full[i][j] - px[i] * px[j] * scale) / 0.999;
                }
                full[i][i] += f64::from(WANDER);
            }
        }
        for (i, row) in full.iter().enumerate() {
            for (j, &expected) in row.iter().enumerate() {
                assert!((f64::from(at(&r, i, j)) - expected).abs() < 2e-4, "{i} {j}");
                assert_eq!(at(&r, i, j), at(&r, j, i));
            }
        }
    }

    #[test]
    fn predictions_and_coefficients_are_those_of_statsmodels() {
        let table = Oracle::read(include_str!("../../../tests/oracle/regression.csv"));
        let n = table.len("coefficient");
        let tuning = Tuning {
            prior: table.get("prior", 0),
            keep: 1.0,
            // No error is clipped, no coefficient wanders.
            clip: 1e15,
            trace_max: 10.0,
            wander: 0.0,
        };
        let start: Vec<f64> = (0..n as u64).map(|i| table.get("start", i)).collect();
        let mut r = Regression::<8, f64>::new(&start, tuning);
        for t in 0..table.len("y") as u64 {
            let mut x = [0.0; 8];
            for (i, x) in (0..n as u64).zip(&mut x) {
                *x = table.get("x", t * n as u64 + i);
            }
            table.agrees("mean", t, r.predict(&x));
            r.learn(&x, table.get("y", t));
        }
        for (i, &coefficient) in r.coefficients[..n].iter().enumerate() {
            table.agrees("coefficient", i as u64, coefficient);
        }
    }

    #[test]
    fn features_that_never_vary_do_not_wind_the_covariance_up() {
        let mut r = Regression::<4>::new(&[0.0; 3], TUNING);
        for t in 0..100_000_u32 {
            r.learn(&[1.0, 0.0, 1e-9 * (t % 7) as f32, 0.0], 5.0);
        }
        assert!(
            r.covariance.iter().all(|p| p.abs() < 31.0),
            "{:?}",
            r.covariance
        );
        assert!((r.predict(&[1.0, 0.0, 0.0, 0.0]) - 5.0).abs() < 1e-3);
    }
}
