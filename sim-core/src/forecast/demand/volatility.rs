//! How far the next residual may be expected to go, at one knot.
//!
//! In words: the logarithm of a residual's size, relative to its usual size at this lead, is a Kalman
//! regression on what sizes have been lately: the last move, one-step residuals over six samples and
//! over three dozen, residuals at this lead, the target's time of day, how far the analogs' outcomes
//! are apart, and how far experts disagree. It is the
//! heterogeneous autoregression of F. Corsi, "A simple approximate long-memory model of realized
//! volatility", J. Financial Econometrics 7 (2009), in logarithms and learned online.
//!
//! How it fails: a quiet series that bursts without warning has nothing to be read beforehand; the
//! tail quantiles carry that.

use alloc::{vec, vec::Vec};

use serde::{Deserialize, Serialize};

use super::regression::{Regression, Tuning};

pub(super) const SIGNS: usize = 9;
/// Where the coefficients start: constant, fast, medium, this lead, time of day, last move,
/// outcomes, disagreements.
const PRIOR: [f64; SIGNS] = [0.0, 0.2, 0.2, 0.2, 0.3, 0.0, 0.0, 0.0, 0.0];
const PRIOR_VARIANCE: f64 = 0.02;
/// Memory of the regression and of the usual size, in days.
const MEMORY_DAYS: f64 = 14.0;
const USUAL_DAYS: f64 = 7.0;
/// Memories of one-step residuals, in samples.
const FAST: f64 = 6.0;
const MEDIUM: f64 = 36.0;
const SLOT_RATE: f64 = 0.1;
const SLOT_DAYS: f64 = 3.0;
/// Samples before residuals are clipped, and before the regression learns.
const CLIP_FROM: u64 = 20;
const LEARN_FROM: u64 = 10;
const CLIP: f64 = 12.0;
/// No sign and no forecast says more than a factor of e³.
const LOG_MAX: f64 = 3.0;
/// Shares of the usual size below which distances tell nothing.
const APART_SHARE: [f64; 3] = [0.1, 0.2, 0.2];
const SIZE_MIN: f64 = 1e-9;

/// Sizes of one-step residuals, overall and by slot of the day.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct OneStep {
    fast: f64,
    medium: f64,
    usual: f64,
    mean: f64,
    slots: Vec<f64>,
}

impl OneStep {
    pub(super) fn new(day: usize) -> Self {
        Self {
            fast: 0.0,
            medium: 0.0,
            usual: 0.0,
            mean: 0.0,
            slots: vec![0.0; day],
        }
    }

    pub(super) fn reset(&mut self) {
        self.slots.fill(0.0);
        (self.fast, self.medium, self.usual, self.mean) = (0.0, 0.0, 0.0, 0.0);
    }

    /// Takes the size of the residual at `slot`, the `count`th one.
    fn learn(&mut self, size: f64, slot: usize, count: u64) {
        let day = self.slots.len() as f64;
        let warm = 1.0 / count as f64;
        for (average, memory) in [
            (&mut self.fast, FAST),
            (&mut self.medium, MEDIUM),
            (&mut self.usual, USUAL_DAYS * day),
            (&mut self.mean, SLOT_DAYS * day),
        ] {
            *average += warm.max(1.0 / memory) * (size - *average);
        }
        let place = &mut self.slots[slot];
        *place = if *place == 0.0 {
            size
        } else {
            *place + SLOT_RATE * (size - *place)
        };
    }

    /// Logarithm of the usual size around `slot` over that of all slots.
    fn time_of_day(&self, slot: usize) -> f64 {
        let day = self.slots.len();
        let radius = 1 + day / 96;
        let (mut sum, mut count) = (0.0, 0.0);
        for i in 0..=2 * radius {
            let size = self.slots[(slot + 2 * day + i - radius) % day];
            if size > 0.0 {
                sum += size;
                count += 1.0;
            }
        }
        if count > 0.0 {
            ratio(sum / count, self.mean, 0.05)
        } else {
            0.0
        }
    }
}

/// Logarithm of `size / usual`, neither below a `share` of the usual one, bounded.
fn ratio(size: f64, usual: f64, share: f64) -> f64 {
    let grain = share * usual + SIZE_MIN;
    libm::log((size + grain) / (usual + grain)).clamp(-LOG_MAX, LOG_MAX)
}

/// Expected sizes at one knot.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Volatility {
    lead: f64,
    usual: f64,
    recent: f64,
    count: u64,
    regression: Regression,
}

/// What was read at the time of a forecast.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Reading {
    signs: [f32; SIGNS],
    /// The usual size.
    pub(super) usual: f64,
    /// The expected size.
    pub(super) spread: f64,
}

impl Volatility {
    pub(super) fn new(lead: usize, day: usize) -> Self {
        let tuning = Tuning {
            prior: PRIOR_VARIANCE,
            keep: 1.0 - 1.0 / (MEMORY_DAYS * day as f64),
            clip: 4.0,
            trace_max: 1.0,
        };
        Self {
            lead: lead as f64,
            usual: 0.0,
            recent: 0.0,
            count: 0,
            regression: Regression::new(&PRIOR, tuning),
        }
    }

    pub(super) fn reset(&mut self) {
        (self.usual, self.recent, self.count) = (0.0, 0.0, 0);
        self.regression.reset(&PRIOR);
    }

    /// The size to expect where the target falls into `slot`; `last_move` is the series' latest,
    /// `apart` how far outcomes are apart, and the regression from the analogs and from the structural
    /// model; `fallback` is the series' own spread, taken before any residual was seen.
    pub(super) fn read(
        &self,
        one: &OneStep,
        slot: usize,
        last_move: f64,
        apart: [f64; 3],
        fallback: f64,
    ) -> Reading {
        let apart = if self.count > 1 {
            [0, 1, 2].map(|i| ratio(apart[i], self.usual, APART_SHARE[i]))
        } else {
            [0.0; 3]
        };
        let signs = [
            1.0,
            ratio(one.fast, one.usual, 0.02),
            ratio(one.medium, one.usual, 0.02),
            ratio(self.recent, self.usual, 0.05),
            one.time_of_day(slot),
            ratio(last_move.abs(), one.usual, 0.3),
            apart[0],
            apart[1],
            apart[2],
        ];
        let usual = if self.count == 0 {
            fallback
        } else {
            self.usual.max(SIZE_MIN)
        };
        let log = self.regression.predict(&signs).clamp(-LOG_MAX, LOG_MAX);
        Reading {
            signs: signs.map(|s| s as f32),
            usual,
            spread: usual * libm::exp(log),
        }
    }

    /// Takes the residual of a forecast made under `reading`. At the first knot, `one` learns too.
    pub(super) fn learn(
        &mut self,
        residual: f64,
        reading: &Reading,
        one: Option<(&mut OneStep, usize)>,
        day: f64,
    ) {
        self.count += 1;
        let size = residual.abs();
        let clipped = if self.count > CLIP_FROM {
            size.min(CLIP * reading.spread.max(reading.usual))
        } else {
            size
        };
        if let Some((one, slot)) = one {
            one.learn(clipped, slot, self.count);
        }
        let warm = 1.0 / self.count as f64;
        self.recent += warm.max(1.0 / self.lead.max(FAST)) * (clipped - self.recent);
        self.usual += warm.max(1.0 / (USUAL_DAYS * day)) * (clipped - self.usual);
        if self.count > LEARN_FROM {
            let target = libm::log((size + 0.1 * reading.usual) / reading.usual);
            self.regression.learn(&reading.signs.map(f64::from), target);
        }
    }
}
