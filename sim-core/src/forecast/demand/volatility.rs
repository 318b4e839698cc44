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

use super::lanes::{exp, log, pack_all, unpack_all};
use super::regression::{Regression, Tuning, WANDER};

pub(super) const SIGNS: usize = 9;
/// The same, padded.
const SIZE: usize = 12;
/// Signs that are the same at every lead: how many, and where the others go on.
pub(super) const COMMON: usize = 3;
/// Where the coefficients start: fast, medium, last move, constant, this lead, time of day, outcomes,
/// disagreements.
const PRIOR: [f32; SIGNS] = [0.2, 0.2, 0.0, 0.0, 0.2, 0.3, 0.0, 0.0, 0.0];
const PRIOR_VARIANCE: f32 = 0.02;
/// Memory of the regression and of the usual size, in days.
const MEMORY_DAYS: f32 = 14.0;
const USUAL_DAYS: f32 = 7.0;
/// Memories of one-step residuals, in samples.
const FAST: f32 = 6.0;
const MEDIUM: f32 = 36.0;
const SLOT_RATE: f32 = 0.1;
const SLOT_DAYS: f32 = 3.0;
/// Samples before residuals are clipped, and before the regression learns.
const CLIP_FROM: u32 = 20;
const LEARN_FROM: u32 = 10;
const CLIP: f32 = 12.0;
/// No sign and no forecast says more than a factor of e³.
const LOG_MAX: f32 = 3.0;
/// Shares of the usual size below which distances tell nothing.
const APART_SHARE: [f32; 3] = [0.1, 0.2, 0.2];
const SIZE_MIN: f32 = 1e-9;

/// Sizes of one-step residuals, overall and by slot of the day.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct OneStep {
    fast: f32,
    medium: f32,
    usual: f32,
    mean: f32,
    slots: Vec<f32>,
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
    fn learn(&mut self, size: f32, slot: usize, count: u32) {
        let day = self.slots.len() as f32;
        let warm = 1.0 / count as f32;
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

    /// Signs that are the same at every lead; `last_move` is the series' latest.
    pub(super) fn signs(&self, last_move: f32) -> [f32; COMMON] {
        [
            ratio(self.fast, self.usual, 0.02),
            ratio(self.medium, self.usual, 0.02),
            ratio(last_move.abs(), self.usual, 0.3),
        ]
    }

    /// Logarithm of the usual size around `slot` over that of all slots.
    fn time_of_day(&self, slot: usize) -> f32 {
        let day = self.slots.len();
        let radius = 1 + day / 96;
        let mut at = (slot + 2 * day - radius) % day;
        let (mut sum, mut count) = (0.0, 0.0);
        for _ in 0..=2 * radius {
            let size = self.slots[at];
            sum += size;
            count += if size > 0.0 { 1.0 } else { 0.0 };
            at = if at + 1 == day { 0 } else { at + 1 };
        }
        if count > 0.0 {
            ratio(sum / count, self.mean, 0.05)
        } else {
            0.0
        }
    }
}

/// Logarithm of `size / usual`, neither below a `share` of the usual one, bounded.
fn ratio(size: f32, usual: f32, share: f32) -> f32 {
    let grain = share * usual + SIZE_MIN;
    log((size + grain) / (usual + grain)).clamp(-LOG_MAX, LOG_MAX)
}

/// Expected sizes at one knot.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Volatility {
    lead: f32,
    usual: f32,
    recent: f32,
    count: u32,
    regression: Regression<SIZE>,
}

/// What was read at the time of a forecast. The signs are those of this lead.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Reading {
    signs: [u16; SIGNS - COMMON - 1],
    /// The usual size.
    pub(super) usual: f32,
    /// The expected size.
    pub(super) spread: f32,
}

/// All signs in the order of the coefficients.
fn row(common: [f32; COMMON], own: [f32; SIGNS - COMMON - 1]) -> [f32; SIZE] {
    let mut row = [0.0; SIZE];
    row[..COMMON].copy_from_slice(&common);
    row[COMMON] = 1.0;
    row[COMMON + 1..SIGNS].copy_from_slice(&own);
    row
}

impl Volatility {
    pub(super) fn new(lead: usize, day: usize) -> Self {
        let tuning = Tuning {
            prior: PRIOR_VARIANCE,
            keep: 1.0 - 1.0 / (MEMORY_DAYS * day as f32),
            clip: 4.0,
            trace_max: 1.0,
            wander: WANDER,
        };
        Self {
            lead: lead as f32,
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

    /// The size to expect where the target falls into `slot`. `common`: [`OneStep::signs`]; `apart`: how far
    /// outcomes are apart, and the regression from the analogs and from the structural model; `fallback`
    /// is the series' own spread, taken before any residual was seen.
    pub(super) fn read(
        &self,
        one: &OneStep,
        common: [f32; COMMON],
        slot: usize,
        apart: [f32; 3],
        fallback: f32,
    ) -> Reading {
        let apart = if self.count > 1 {
            [0, 1, 2].map(|i| ratio(apart[i], self.usual, APART_SHARE[i]))
        } else {
            [0.0; 3]
        };
        let own = [
            ratio(self.recent, self.usual, 0.05),
            one.time_of_day(slot),
            apart[0],
            apart[1],
            apart[2],
        ];
        let usual = if self.count == 0 {
            fallback
        } else {
            self.usual.max(SIZE_MIN)
        };
        let said = self.regression.predict(&row(common, own));
        Reading {
            signs: pack_all(&own),
            usual,
            spread: usual * exp(said.clamp(-LOG_MAX, LOG_MAX)),
        }
    }

    /// Takes the residual of a forecast made under `reading`. At the first knot, `one` learns too.
    pub(super) fn learn(
        &mut self,
        residual: f32,
        common: [f32; COMMON],
        reading: &Reading,
        one: Option<(&mut OneStep, usize)>,
        day: f32,
    ) {
        self.count = self.count.saturating_add(1);
        let size = residual.abs();
        let clipped = if self.count > CLIP_FROM {
            size.min(CLIP * reading.spread.max(reading.usual))
        } else {
            size
        };
        if let Some((one, slot)) = one {
            one.learn(clipped, slot, self.count);
        }
        let warm = 1.0 / self.count as f32;
        self.recent += warm.max(1.0 / self.lead.max(FAST)) * (clipped - self.recent);
        self.usual += warm.max(1.0 / (USUAL_DAYS * day)) * (clipped - self.usual);
        if self.count > LEARN_FROM {
            let target = log((size + 0.1 * reading.usual) / reading.usual);
            self.regression
                .learn(&row(common, unpack_all(&reading.signs)), target);
        }
    }
}
