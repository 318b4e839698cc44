//! Quantiles of residuals, their losses and the weights that follow, at one knot.
//!
//! A quantile is tracked by online gradient descent on the pinball loss: it moves up by the level
//! when the sample lies above and down by one minus the level when below, times a rate that falls
//! with the number of (independent) samples to a floor. Coverage comes out at the level in the
//! long run for any sequence: Gibbs & Candès, "Adaptive conformal inference under distribution
//! shift" (NeurIPS 2021); Angelopoulos, Candès & Tibshirani, "Conformal PID control for time series
//! prediction" (2023), §2. Overlapping forecasts tell less than their number: the count is divided
//! by one plus an eighth of the lead.
//!
//! Weights go with the discounted pinball loss to the power of −16, for each level on its own, over a
//! memory of a day: Stock & Watson, J. Forecasting 23 (2004), §2, with a large power, which is close
//! to following the best expert (Herbster & Warmuth 1998). An expert that is good at the median need
//! not be good at the tails.

use serde::{Deserialize, Serialize};

use super::ingredients::Ingredients;
use crate::forecast::output::LEVELS;

/// Point forecasts that quantiles are put around.
pub(super) const POINTS: usize = 12;
/// Tables of quantiles by hour or by state.
pub(super) const TABLES: usize = 4;
pub(super) const EXPERTS: usize = POINTS + TABLES + 1;
/// Place of the analogs' own quantiles.
pub(super) const ANALOGS: usize = POINTS + TABLES;
/// Bins of a table.
pub(super) const BINS: usize = 24;
const MEDIAN: usize = 2;

/// One number a level.
pub(super) type PerLevel = [f64; LEVELS.len()];
/// One number an expert.
pub(super) type PerExpert = [f64; EXPERTS];

/// Where trackers start, in units of the spread (a mean absolute residual).
const START: PerLevel = [-2.2, -1.5, 0.0, 1.5, 2.2, 4.0, 7.0];
/// Where the trackers around the analogs' quantiles start.
const START_ANALOGS: PerLevel = [-0.5, -0.3, 0.0, 0.3, 0.5, 1.0, 3.0];
/// How far each level steps at a rate of one: misses of the outer levels are rare.
const STEP: PerLevel = [3.0, 3.0, 1.0, 3.0, 3.0, 6.0, 6.0];
/// Floors of the rates.
const RATE: f64 = 0.005;
const TABLE_RATE: f64 = 0.01;
/// Rate and bound of the last correction, which is shared by all experts. Short leads overlap less
/// and may be corrected faster.
const FINAL_RATE: f64 = 0.001;
const FINAL_RATE_SHORT: f64 = 0.002;
const FINAL_MAX: f64 = 3.0;
/// A loss counts at most this many spreads.
const LOSS_MAX: f64 = 30.0;
/// Samples after which losses are believed by half.
const TRUST: f64 = 20.0;
/// How many times weights are squared: the power is two to it.
const SQUARINGS: u32 = 4;

/// Where the experts were centred when they made the forecast that is now scored.
#[derive(Clone, Debug)]
pub(super) struct Views {
    pub(super) points: [f64; POINTS],
    /// Spread around the points.
    pub(super) spread: f64,
    pub(super) tables: [Table; TABLES],
    /// Quantiles of what followed the analogs.
    pub(super) analogs: PerLevel,
}

/// How one table sees a moment: which bin, around what, in what unit.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Table {
    pub(super) bin: usize,
    pub(super) centre: f64,
    pub(super) unit: f64,
}

/// Trackers and weights at one knot.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Tracker {
    lead: f64,
    ingredients: Ingredients,
    scored: u64,
    offsets: [PerLevel; POINTS],
    tables: [[PerLevel; BINS]; TABLES],
    analogs: PerLevel,
    visits: [[u32; BINS]; TABLES],
    losses: [PerLevel; EXPERTS],
    weights: [PerLevel; EXPERTS],
    last: PerLevel,
}

impl Tracker {
    pub(super) fn new(lead: usize, ingredients: Ingredients) -> Self {
        let mut new = Self {
            lead: lead as f64,
            ingredients,
            scored: 0,
            offsets: [START; POINTS],
            tables: [[START; BINS]; TABLES],
            analogs: START_ANALOGS,
            visits: [[0; BINS]; TABLES],
            losses: [[0.0; LEVELS.len()]; EXPERTS],
            weights: [[0.0; LEVELS.len()]; EXPERTS],
            last: [0.0; LEVELS.len()],
        };
        new.weigh();
        new
    }

    pub(super) fn scored(&self) -> u64 {
        self.scored
    }

    /// Learns from the sample `z`, for which the experts saw `views` and `issued` was forecast.
    /// `memory`: samples of a day.
    pub(super) fn learn(&mut self, z: f64, views: &Views, issued: &PerLevel, memory: f64) {
        self.scored += 1;
        let scored = self.scored as f64;
        let overlap = 1.0 + self.lead / 8.0;
        let rate = (1.0 / (scored / overlap + 10.0)).max(RATE);
        let forget = (1.0 / scored).max(1.0 / memory);
        for e in 0..EXPERTS {
            let (centre, unit, rate, quantiles) = if e < POINTS {
                (
                    [views.points[e]; LEVELS.len()],
                    views.spread,
                    rate,
                    &mut self.offsets[e],
                )
            } else if e == ANALOGS {
                (views.analogs, views.spread, rate, &mut self.analogs)
            } else {
                let table = views.tables[e - POINTS];
                let visits = &mut self.visits[e - POINTS][table.bin];
                *visits = visits.saturating_add(1);
                let rate = (1.0 / (f64::from(*visits) / overlap + 5.0)).max(TABLE_RATE);
                let quantiles = &mut self.tables[e - POINTS][table.bin];
                ([table.centre; LEVELS.len()], table.unit, rate, quantiles)
            };
            let loss_max = LOSS_MAX * views.spread;
            let losses = &mut self.losses[e];
            for l in 0..LEVELS.len() {
                let miss = z - centre[l] - unit * quantiles[l];
                let side = if miss < 0.0 {
                    LEVELS[l] - 1.0
                } else {
                    LEVELS[l]
                };
                losses[l] += forget * ((side * miss).min(loss_max) - losses[l]);
                quantiles[l] += rate * STEP[l] * side;
            }
        }
        let last_max = if self.ingredients.has(Ingredients::CORRECTION) {
            FINAL_MAX
        } else {
            0.0
        };
        let last_rate = FINAL_RATE + FINAL_RATE_SHORT / (1.0 + self.lead);
        for (l, c) in self.last.iter_mut().enumerate() {
            let side = if z < issued[l] {
                LEVELS[l] - 1.0
            } else {
                LEVELS[l]
            };
            let step = if l == MEDIAN { 0.5 } else { 3.0 };
            *c = (*c + last_rate * step * side).clamp(-last_max, last_max);
        }
        self.weigh();
    }

    fn weigh(&mut self) {
        let trust = if self.ingredients.has(Ingredients::WEIGHTS) {
            self.scored as f64 / (self.scored as f64 + TRUST)
        } else {
            0.0
        };
        let experts = self.ingredients.experts();
        let mut sums = [0.0; LEVELS.len()];
        let mut least = self.losses[0];
        for (e, losses) in self.losses.iter().enumerate() {
            if experts >> e & 1 == 0 {
                continue;
            }
            for (least, loss) in least.iter_mut().zip(losses) {
                *least = if *loss < *least { *loss } else { *least };
            }
        }
        for (e, (weights, losses)) in self.weights.iter_mut().zip(&self.losses).enumerate() {
            if experts >> e & 1 == 0 {
                weights.fill(0.0);
                continue;
            }
            for l in 0..LEVELS.len() {
                // Losses of almost nothing must not decide by rounding errors.
                let grain = 1e-3 * self.losses[0][l] + 1e-12;
                let mut w = 1.0 - trust + trust * (least[l] + grain) / (losses[l] + grain);
                for _ in 0..SQUARINGS {
                    w *= w;
                }
                weights[l] = w;
                sums[l] += w;
            }
        }
        let shares = sums.map(|sum| 1.0 / sum);
        for weights in &mut self.weights {
            for (w, share) in weights.iter_mut().zip(shares) {
                *w *= share;
            }
        }
    }

    /// The combined quantiles.
    pub(super) fn combine(&self, views: &Views) -> PerLevel {
        let mut out = self.last.map(|c| views.spread * c);
        for (e, weights) in self.weights.iter().enumerate() {
            let (centre, unit, quantiles) = if e < POINTS {
                (
                    [views.points[e]; LEVELS.len()],
                    views.spread,
                    &self.offsets[e],
                )
            } else if e == ANALOGS {
                (views.analogs, views.spread, &self.analogs)
            } else {
                let table = views.tables[e - POINTS];
                let quantiles = &self.tables[e - POINTS][table.bin];
                ([table.centre; LEVELS.len()], table.unit, quantiles)
            };
            for l in 0..LEVELS.len() {
                out[l] += weights[l] * (centre[l] + unit * quantiles[l]);
            }
        }
        out
    }

    /// Share of each expert in the median, and its discounted loss there.
    pub(super) fn medians(&self) -> (PerExpert, PerExpert) {
        (
            self.weights.map(|w| w[MEDIAN]),
            self.losses.map(|l| l[MEDIAN]),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn views(points: [f64; POINTS]) -> Views {
        Views {
            points,
            spread: 1.0,
            tables: [Table {
                bin: 0,
                centre: 0.0,
                unit: 1.0,
            }; TABLES],
            analogs: [0.0; LEVELS.len()],
        }
    }

    #[test]
    fn quantiles_of_a_uniform_are_found_and_the_best_expert_wins() {
        let mut t = Tracker::new(1, Ingredients::ALL);
        let mut seed = 1_u64;
        let mut noise = || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 33) as f64 / 2_147_483_648.0
        };
        let mut covered = 0;
        for i in 0..20_000 {
            let truth = 10.0 * noise();
            let mut points = [0.0; POINTS].map(|_| 10.0 * noise());
            points[3] = truth;
            let v = views(points);
            let q = t.combine(&v);
            let z = truth + noise();
            if i >= 2000 {
                covered += i32::from(q[0] <= z && z <= q[4]);
            }
            t.learn(z, &v, &q, 288.0);
        }
        let (weights, losses) = t.medians();
        assert!(weights[3] > 0.95, "{weights:?}");
        assert!(losses[3] < 0.2 * losses[0]);
        let share = f64::from(covered) / 18_000.0;
        assert!((share - 0.9).abs() < 0.02, "{share}");
    }

    #[test]
    fn a_constant_series_leaves_weights_that_sum_to_one() {
        let mut t = Tracker::new(6, Ingredients::ALL);
        let v = views([5.0; POINTS]);
        for _ in 0..3000 {
            let q = t.combine(&v);
            t.learn(5.0, &v, &q, 288.0);
        }
        for l in 0..LEVELS.len() {
            let sum: f64 = t.weights.iter().map(|w| w[l]).sum();
            assert!((sum - 1.0).abs() < 1e-12);
        }
    }
}
