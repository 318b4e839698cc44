//! Finds the season of a series online.
//!
//! Every few samples the recent window is detrended by a quadratic, clipped, and its
//! autocorrelation searched for a peak behind a trough (Box & Jenkins; the idea of AutoPeriod,
//! Vlachos, Yu & Castelli, SDM 2005: one statistic proposes, the other confirms). The proposal is
//! refined to a fraction of a step by the power of the first two harmonics, and confirmed by their
//! F-ratio and by agreement in phase of the window's two halves: slow random walks show cycles too,
//! but not the same ones twice.
//!
//! Changes need several searches in a row that agree (hysteresis). Failure mode: a season that
//! jumps in length is dropped first and found again 2.5 periods later.

use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

/// Samples between searches.
const EVERY: u32 = 8;
/// Periods that the window must hold.
const PERIODS_MIN: f64 = 2.5;
/// Shortest season, in steps.
const PERIOD_MIN: usize = 4;
/// Smallest window, in samples.
const WINDOW_MIN: usize = 20;
/// F-ratio of the harmonics (4 degrees of freedom) that counts as found.
const F_MIN: f64 = 7.0;
/// F-ratio below which a season in use counts as lost.
const F_KEEP: f64 = 3.0;
/// Agreeing searches before a first season is used, one in use replaced, one in use dropped.
const VOTES_ADOPT: u32 = 2;
const VOTES_REPLACE: u32 = 5;
const VOTES_DROP: u32 = 8;
/// Periods closer than this are the same season, better or worse measured.
const SAME: f64 = 0.08;

/// A proposal of one search.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Found {
    period_steps: f64,
    f_ratio: f64,
}

/// Searches for one season and remembers what it holds to be true.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct SeasonFinder {
    period_max: usize,
    /// Error of the period that matters: what shifts the phase visibly within the horizon.
    horizon: usize,
    current: Option<f64>,
    candidate: Option<f64>,
    votes: u32,
    lost: u32,
    wait: u32,
    open: bool,
}

impl SeasonFinder {
    pub(super) fn new(period_max: usize, horizon: usize) -> Self {
        Self {
            period_max,
            horizon,
            current: None,
            candidate: None,
            votes: 0,
            lost: 0,
            wait: EVERY,
            open: true,
        }
    }

    /// Longest window the search can use, in samples.
    pub(super) fn window_max(&self) -> usize {
        self.period_max.saturating_mul(3)
    }

    /// The season in use, in steps, possibly fractional.
    pub(super) fn current(&self) -> Option<f64> {
        self.current
    }

    /// Whether a season may be there that the window is still too short to show: none is in use,
    /// and neighbouring samples hang together more than noise does.
    pub(super) fn is_open(&self) -> bool {
        self.open
    }

    /// Call once a sample with the recent samples (oldest first) of the present regime, given
    /// lazily since most calls don't search. Returns true if the season in use changed.
    pub(super) fn observe(&mut self, window: impl FnOnce() -> Vec<f64>) -> bool {
        if self.period_max < PERIOD_MIN {
            return false;
        }
        self.wait = self.wait.saturating_sub(1);
        if self.wait > 0 {
            return false;
        }
        self.wait = EVERY;
        let mut window = window();
        if window.len() < WINDOW_MIN {
            // Also right after a level shift: what was known then still holds.
            return false;
        }
        detrend(&mut window, Degree::Linear);
        let correlation = autocorrelation(&window, 1);
        detrend(&mut window, Degree::Quadratic);
        let found = self.search(&window);
        let before = self.current;
        self.judge(found, &window);
        let n = window.len();
        self.open = self.current.is_none()
            && n < self.period_max
            && correlation > 2.0 / libm::sqrt(n as f64);
        self.current != before
    }

    fn search(&self, x: &[f64]) -> Option<Found> {
        let lag = propose(x, self.period_max)?;
        let (period_steps, f_ratio) = refine(x, lag as f64);
        (f_ratio >= F_MIN
            && x.len() as f64 >= PERIODS_MIN * period_steps
            && coherent(x, period_steps))
        .then_some(Found {
            period_steps,
            f_ratio,
        })
    }

    fn judge(&mut self, found: Option<Found>, x: &[f64]) {
        let n = x.len() as f64;
        if let Some(period) = self.current {
            // Right after a shift the window is too short to speak against anything.
            if n < PERIODS_MIN * period {
                return;
            }
            let kept = found.as_ref().is_some_and(|f| near(f.period_steps, period));
            let (refined, f_ratio) = refine(x, period);
            if kept || f_ratio >= F_KEEP {
                self.lost = 0;
                if kept || f_ratio >= F_MIN {
                    self.sharpen(period, refined, n);
                }
            } else {
                self.lost += 1;
            }
            if self.lost >= VOTES_DROP {
                self.current = None;
                self.lost = 0;
            }
            if kept {
                self.candidate = None;
                self.votes = 0;
                return;
            }
            // Another period must explain clearly more before it can replace the present one.
            if found.as_ref().is_some_and(|f| f.f_ratio < 1.5 * f_ratio) {
                return;
            }
        }
        let Some(found) = found else {
            self.candidate = None;
            self.votes = 0;
            return;
        };
        let agrees = self.candidate.is_some_and(|c| near(c, found.period_steps));
        self.votes = if agrees { self.votes + 1 } else { 1 };
        self.candidate = Some(found.period_steps);
        let needed = if self.current.is_some() {
            VOTES_REPLACE
        } else {
            VOTES_ADOPT
        };
        // Overwhelming evidence needs no second look.
        if self.votes >= needed || (self.current.is_none() && found.f_ratio > 4.0 * F_MIN) {
            self.current = Some(found.period_steps);
            self.candidate = None;
            self.votes = 0;
            self.lost = 0;
        }
    }

    /// Takes over a better measured period if the difference would be seen within the horizon.
    fn sharpen(&mut self, period: f64, refined: f64, n: f64) {
        let cycles = (refined - period).abs() / (period * period) * (self.horizon as f64).min(n);
        if cycles > 0.04 && near(refined, period) {
            self.current = Some(refined);
        }
    }
}

fn near(a: f64, b: f64) -> bool {
    (a - b).abs() <= SAME * b
}

/// What [`detrend`] removes.
#[derive(Clone, Copy, PartialEq)]
enum Degree {
    /// A line: leaves most of a cycle that the window holds only once.
    Linear,
    /// A parabola, so that a trend that sets in doesn't hide the season. Clips what is left.
    Quadratic,
}

/// Removes the least-squares polynomial; with the quadratic, also clips what is left at about 3σ.
/// Uses polynomials that are orthogonal on the grid, so no system is solved.
fn detrend(x: &mut [f64], degree: Degree) {
    let n = x.len() as f64;
    let centre = (n - 1.0) / 2.0;
    let t2_mean = (n * n - 1.0) / 12.0;
    let (mut s0, mut s1, mut s2, mut d1, mut d2) = (0.0, 0.0, 0.0, 0.0, 0.0);
    for (i, y) in x.iter().enumerate() {
        let t = i as f64 - centre;
        let u = t * t - t2_mean;
        s0 += y;
        s1 += t * y;
        s2 += u * y;
        d1 += t * t;
        d2 += u * u;
    }
    let c = if degree == Degree::Quadratic {
        s2 / d2.max(1e-9)
    } else {
        0.0
    };
    let (a, b) = (s0 / n, s1 / d1.max(1e-9));
    let mut spread = 0.0;
    for (i, y) in x.iter_mut().enumerate() {
        let t = i as f64 - centre;
        *y -= a + b * t + c * (t * t - t2_mean);
        spread += y.abs();
    }
    if degree == Degree::Linear {
        return;
    }
    let limit = 3.5 * spread / n;
    for y in x.iter_mut() {
        *y = y.max(-limit).min(limit);
    }
}

/// Mean product of samples `lag` apart over their mean square; 0 if all are zero.
fn autocorrelation(x: &[f64], lag: usize) -> f64 {
    let square = mean_product(x, x);
    if square > 0.0 {
        mean_product(x, &x[lag.min(x.len())..]) / square
    } else {
        0.0
    }
}

/// Mean of a·b over the shorter length. Four sums side by side, for one would wait for itself.
fn mean_product(a: &[f64], b: &[f64]) -> f64 {
    let n = a.len().min(b.len());
    let (a4, a1) = a[..n].as_chunks::<4>();
    let (b4, b1) = b[..n].as_chunks::<4>();
    let mut sums = [0.0; 4];
    for (a, b) in a4.iter().zip(b4) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
    let rest: f64 = a1.iter().zip(b1).map(|(a, b)| a * b).sum();
    (sums.iter().sum::<f64>() + rest) / n.max(1) as f64
}

/// Lag of the first autocorrelation peak that is as high as any, behind a trough.
fn propose(x: &[f64], period_max: usize) -> Option<usize> {
    let n = x.len();
    let lag_max = period_max.min((n as f64 / PERIODS_MIN) as usize);
    if lag_max < PERIOD_MIN {
        return None;
    }
    let square = mean_product(x, x);
    if square <= 0.0 {
        return None;
    }
    // One lag more than is searched, so that the last one can be seen to be a peak.
    let correlation: Vec<f64> = (0..=lag_max + 1)
        .map(|k| mean_product(x, &x[k..]) / square)
        .collect();
    let mut trough = f64::INFINITY;
    let mut peaks = Vec::new();
    for k in 1..=lag_max {
        let here = correlation[k];
        let significant = here > 0.12_f64.max(1.5 / libm::sqrt((n - k) as f64));
        let is_peak = here >= correlation[k - 1] && here >= correlation[k + 1];
        if k >= PERIOD_MIN && is_peak && significant && trough < here.min(0.3) - 0.2 {
            peaks.push((k, here));
        }
        trough = trough.min(here);
    }
    let highest = peaks.iter().map(|p| p.1).fold(0.0, f64::max);
    let &(first, _) = peaks.iter().find(|p| p.1 >= 0.8 * highest)?;
    // Noise splits one broad peak into several: take the highest close by.
    peaks
        .iter()
        .filter(|p| p.0 as f64 <= 1.25 * first as f64)
        .fold(None, |best: Option<&(usize, f64)>, p| match best {
            Some(b) if b.1 >= p.1 => Some(b),
            _ => Some(p),
        })
        .map(|p| p.0)
}

/// The period near `lag` whose first two harmonics explain most, and their F-ratio.
fn refine(x: &[f64], lag: f64) -> (f64, f64) {
    let n = x.len() as f64;
    let total: f64 = x.iter().map(|v| v * v).sum();
    // The window resolves frequencies to about 1/n; look that far to both sides.
    let reach = 0.6 / n;
    let mut best = (lag, 0.0_f64);
    let steps = 8;
    for i in -steps..=steps {
        let frequency = 1.0 / lag + reach * f64::from(i) / f64::from(steps);
        if frequency <= 0.0 || frequency > 0.45 {
            continue;
        }
        let share = harmonic_share(x, frequency, total);
        if share > best.1 {
            best = (1.0 / frequency, share);
        }
    }
    let share = best.1.min(0.999_999);
    let parameters = if best.0 >= 5.0 { 4.0 } else { 2.0 };
    let f_ratio = (share / parameters) / ((1.0 - share) / (n - 3.0 - parameters).max(1.0));
    (best.0, f_ratio)
}

/// Share of the sum of squares that the first two harmonics of `frequency` explain.
fn harmonic_share(x: &[f64], frequency: f64, total: f64) -> f64 {
    if total <= 0.0 {
        return 0.0;
    }
    let (a, b) = project(x, frequency, 0);
    let mut power = a * a + b * b;
    // The second harmonic only below Nyquist.
    if frequency < 0.2 {
        let (a, b) = project(x, 2.0 * frequency, 0);
        power += a * a + b * b;
    }
    0.5 * power * x.len() as f64 / total
}

/// Amplitudes of cosine and sine at `frequency` (cycles a step); `start` is the step of `x[0]`.
fn project(x: &[f64], frequency: f64, start: usize) -> (f64, f64) {
    let (rs, rc) = libm::sincos(core::f64::consts::TAU * frequency);
    let (mut s, mut c) = libm::sincos(core::f64::consts::TAU * frequency * start as f64);
    let (mut a, mut b) = (0.0, 0.0);
    for v in x {
        a += v * c;
        b += v * s;
        (c, s) = (c * rc - s * rs, s * rc + c * rs);
    }
    let scale = 2.0 / (x.len() as f64).max(1.0);
    (a * scale, b * scale)
}

/// Whether both halves of the window show the period with like phase and size. The stronger of
/// the first two harmonics is looked at.
fn coherent(x: &[f64], period: f64) -> bool {
    let f = 1.0 / period;
    let size = |(a, b): (f64, f64)| libm::sqrt(a * a + b * b);
    let double = 2.0 * f < 0.45 && size(project(x, 2.0 * f, 0)) > size(project(x, f, 0));
    let f = if double { 2.0 * f } else { f };
    let half = x.len() / 2;
    let (first, second) = (project(&x[..half], f, 0), project(&x[half..], f, half));
    let (s1, s2) = (size(first), size(second));
    let agreement = first.0 * second.0 + first.1 * second.1;
    agreement > 0.6 * s1 * s2 && s1 > 0.33 * s2 && s2 > 0.33 * s1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(seed: &mut u64) -> f64 {
        let mut sum = 0.0;
        for _ in 0..4 {
            *seed = seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695);
            sum += (*seed >> 33) as f64 / 2_147_483_648.0 - 0.5;
        }
        sum * 1.73
    }

    fn run(
        n: usize,
        signal: impl Fn(f64) -> f64,
        sigma: f64,
        seed: u64,
    ) -> (SeasonFinder, usize, usize) {
        let mut finder = SeasonFinder::new(120, 90);
        let (mut xs, mut seed) = (Vec::new(), seed);
        let (mut changes, mut first) = (0, n);
        for t in 0..n {
            xs.push(signal(t as f64) + sigma * noise(&mut seed));
            let from = xs.len().saturating_sub(finder.window_max());
            if finder.observe(|| xs[from..].to_vec()) {
                changes += 1;
                first = first.min(t);
            }
        }
        (finder, changes, first)
    }

    #[test]
    fn seasons_of_the_demo_are_found_within_four_periods() {
        for period in [15.0, 22.5, 30.0, 40.0] {
            for seed in 0..10 {
                let wave = |t: f64| {
                    200.0 + 0.4 * t + 22.0 * libm::sin(core::f64::consts::TAU * t / period)
                };
                let (finder, changes, first) = run(300, wave, 14.0, seed);
                let found = finder.current().unwrap_or(0.0);
                assert!(
                    (found - period).abs() < 0.05 * period,
                    "{period} {seed}: {found}"
                );
                assert!(changes <= 12, "{period} {seed}: {changes}");
                assert!(
                    (first as f64) < 4.5 * period + 40.0,
                    "{period} {seed}: {first}"
                );
            }
        }
    }

    #[test]
    fn noise_has_no_season() {
        let mut wrong = 0;
        for seed in 0..40 {
            let (_, changes, _) = run(400, |_| 100.0, 10.0, seed);
            wrong += usize::from(changes > 0);
        }
        assert!(wrong <= 2, "{wrong}");
    }

    #[test]
    fn a_constant_series_is_no_season() {
        let (finder, changes, _) = run(400, |_| 7.0, 0.0, 1);
        assert_eq!((finder.current(), changes), (None, 0));
    }
}
