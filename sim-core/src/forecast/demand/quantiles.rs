//! Quantiles of the residuals around a point forecast, and the pinball loss of a whole forecast.
//!
//! The same online gradient descent as in `tracker` (see there), for the few forecasts that are made outside of the
//! engine.

use serde::{Deserialize, Serialize};

use crate::forecast::output::LEVELS;

/// One number a level.
pub(super) type PerLevel = [f64; LEVELS.len()];

/// Where quantiles start, in spreads, and how far each level steps at a rate of one.
const START: PerLevel = [-2.2, -1.5, 0.0, 1.5, 2.2, 4.0, 7.0];
const STEP: PerLevel = [3.0, 3.0, 1.0, 3.0, 3.0, 6.0, 6.0];
/// Least rate.
const RATE: f64 = 0.005;
/// A loss counts at most this many spreads.
const LOSS_MAX: f64 = 30.0;

/// Sum of the levels' pinball losses.
pub(super) fn pinball(z: f64, quantiles: &PerLevel) -> f64 {
    let loss = |(q, level): (&f64, f64)| {
        let miss = z - q;
        if miss < 0.0 {
            (level - 1.0) * miss
        } else {
            level * miss
        }
    };
    quantiles.iter().zip(LEVELS).map(loss).sum()
}

/// Quantiles around a centre, and their discounted loss.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Around {
    offsets: PerLevel,
    spread: f64,
    scored: u64,
    loss: f64,
}

impl Around {
    pub(super) fn new() -> Self {
        Self {
            offsets: START,
            spread: 0.0,
            scored: 0,
            loss: 0.0,
        }
    }

    pub(super) fn scored(&self) -> u64 {
        self.scored
    }

    pub(super) fn loss(&self) -> f64 {
        self.loss
    }

    /// What a loss counts at most; nothing is known of the size of errors at first.
    pub(super) fn loss_max(&self) -> f64 {
        if self.spread > 0.0 {
            LOSS_MAX * self.spread
        } else {
            f64::MAX
        }
    }

    pub(super) fn quantiles(&self, centre: f64) -> PerLevel {
        let mut below = f64::MIN;
        self.offsets.map(|offset| {
            below = (centre + self.spread * offset).max(below);
            below
        })
    }

    /// Learns from the sample `z`, forecast `lead` steps before to be near `centre`. Losses and spread have a memory
    /// of so many samples. Gives the loss.
    pub(super) fn learn(
        &mut self,
        z: f64,
        centre: f64,
        lead: usize,
        memory: f64,
        loss_max: f64,
    ) -> f64 {
        let loss = pinball(z, &self.quantiles(centre)).min(loss_max);
        self.scored += 1;
        let scored = self.scored as f64;
        let (warm, overlap) = (1.0 / scored, 1.0 + lead as f64 / 8.0);
        self.loss += warm.max(1.0 / memory) * (loss - self.loss);
        let rate = (1.0 / (scored / overlap + 10.0)).max(RATE);
        for ((offset, step), level) in self.offsets.iter_mut().zip(STEP).zip(LEVELS) {
            let is_below = z < centre + self.spread * *offset;
            *offset += rate * step * if is_below { level - 1.0 } else { level };
        }
        self.spread += warm.max(1.0 / memory) * ((z - centre).abs() - self.spread);
        loss
    }
}
