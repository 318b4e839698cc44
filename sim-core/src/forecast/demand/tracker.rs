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
//!
//! All is told relative to the last value at the time of the forecast, in single precision.

use serde::{Deserialize, Serialize};

use super::ingredients::Ingredients;
use super::lanes::{LANES, Lanes, least};
use crate::forecast::output::LEVELS;

/// Point forecasts that quantiles are put around.
pub(super) const POINTS: usize = 11;
/// Tables of quantiles: by hour, by state.
pub(super) const TABLES: usize = 2;
pub(super) const EXPERTS: usize = POINTS + TABLES + 1;
/// Place of the analogs' own quantiles.
pub(super) const ANALOGS: usize = POINTS + TABLES;
/// Bins of a table.
pub(super) const BINS: usize = 24;
const MEDIAN: usize = 2;
/// The lane after the levels. Tables count the visits of a bin there; elsewhere it holds nothing.
const SPARE: usize = LEVELS.len();

/// One table.
pub(super) type Bins = [Lanes; BINS];
pub(super) const START_BINS: Bins = [START; BINS];
/// The table by hour is learned at all knots, each of which moves it so much less.
const SHARED: f32 = 0.125;

/// One number an expert.
pub(super) type PerExpert = [f32; EXPERTS];

/// The levels, and what keeps the spare lane finite.
pub(super) const LEVEL_LANES: Lanes = lanes(LEVELS, 0.5);
/// Where trackers start, in units of the spread (a mean absolute residual).
const START: Lanes = [-2.2, -1.5, 0.0, 1.5, 2.2, 4.0, 7.0, 0.0];
/// Where the trackers around the analogs' quantiles start.
const START_ANALOGS: Lanes = [-0.5, -0.3, 0.0, 0.3, 0.5, 1.0, 3.0, 0.0];
/// How far each level steps at a rate of one: misses of the outer levels are rare.
const STEP: Lanes = [3.0, 3.0, 1.0, 3.0, 3.0, 6.0, 6.0, 0.0];
/// The same for the last correction.
const LAST_STEP: Lanes = [3.0, 3.0, 0.5, 3.0, 3.0, 3.0, 3.0, 0.0];
/// Floors of the rates.
const RATE: f32 = 0.005;
const TABLE_RATE: f32 = 0.01;
/// Rate and bound of the last correction, which is shared by all experts. Short leads overlap less
/// and may be corrected faster.
const FINAL_RATE: f32 = 0.001;
const FINAL_RATE_SHORT: f32 = 0.002;
const FINAL_MAX: f32 = 3.0;
/// Bands of a forecaster that saw little are wider: by so much over the number of forecasts scored that do not
/// overlap, of which this share of one is there from the start. Set by the coverage after 12, 48 and 288 samples.
const EARLY_BELOW: f32 = 1.3;
const EARLY_ABOVE: f32 = 1.6;
const EARLY_SEEN: f32 = 0.4;
/// How a forecast overlaps with others, over its lead to the power of 5/4.
const EARLY_OVERLAP: f32 = 0.25;
/// A loss counts at most this many spreads.
const LOSS_MAX: f32 = 30.0;
/// Samples after which losses are believed by half.
const TRUST: f32 = 20.0;
/// How many times weights are squared: the power is two to it.
const SQUARINGS: u32 = 4;
const fn lanes(levels: [f64; LEVELS.len()], spare: f32) -> Lanes {
    let mut out = [spare; LANES];
    let mut i = 0;
    while i < levels.len() {
        out[i] = levels[i] as f32;
        i += 1;
    }
    out
}

/// Where the experts were centred when they made the forecast that is now scored.
#[derive(Clone, Debug)]
pub(super) struct Views {
    pub(super) points: [f32; POINTS],
    /// Spread around the points.
    pub(super) spread: f32,
    pub(super) tables: [Table; TABLES],
    /// Quantiles of what followed the analogs.
    pub(super) analogs: Lanes,
}

/// How one table sees a moment: which bin, around what, in what unit.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Table {
    pub(super) bin: usize,
    pub(super) centre: f32,
    pub(super) unit: f32,
}

/// Trackers and weights at one knot.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Tracker {
    lead: f32,
    ingredients: Ingredients,
    /// Share of a forecast scored that counts as one of its own, as to how wide bands have to be.
    alone: f32,
    /// How many there were of those.
    seen: f32,
    scored: u32,
    offsets: [Lanes; POINTS],
    states: Bins,
    analogs: Lanes,
    losses: [Lanes; EXPERTS],
    weights: [Lanes; EXPERTS],
    last: Lanes,
}

/// What an expert's quantiles are put around, and what is tracked of them.
fn expert<'a>(
    tracker: &'a Tracker,
    hours: &'a Bins,
    views: &Views,
    e: usize,
) -> (Lanes, f32, &'a Lanes) {
    if e < POINTS {
        ([views.points[e]; LANES], views.spread, &tracker.offsets[e])
    } else if e == ANALOGS {
        (views.analogs, views.spread, &tracker.analogs)
    } else {
        let table = views.tables[e - POINTS];
        let bins = if e == POINTS { hours } else { &tracker.states };
        let quantiles = &bins[table.bin];
        ([table.centre; LANES], table.unit, quantiles)
    }
}

/// Scores one expert and moves its quantiles.
struct Step {
    z: f32,
    forget: f32,
    loss_max: f32,
}

impl Step {
    fn take(
        &self,
        centre: &Lanes,
        unit: f32,
        rate: f32,
        quantiles: &mut Lanes,
        losses: &mut Lanes,
    ) {
        for l in 0..LANES {
            let miss = self.z - centre[l] - unit * quantiles[l];
            let side = LEVEL_LANES[l] - if miss < 0.0 { 1.0 } else { 0.0 };
            losses[l] += self.forget * (least(side * miss, self.loss_max) - losses[l]);
            quantiles[l] += rate * STEP[l] * side;
        }
    }
}

impl Tracker {
    pub(super) fn new(lead: usize, ingredients: Ingredients) -> Self {
        let mut new = Self {
            lead: lead as f32,
            ingredients,
            alone: 1.0
                / (1.0 + EARLY_OVERLAP * lead as f32 * libm::sqrtf(libm::sqrtf(lead as f32))),
            seen: EARLY_SEEN,
            scored: 0,
            offsets: [START; POINTS],
            states: START_BINS,
            analogs: START_ANALOGS,
            losses: [[0.0; LANES]; EXPERTS],
            weights: [[0.0; LANES]; EXPERTS],
            last: [0.0; LANES],
        };
        new.weigh();
        new
    }

    pub(super) fn scored(&self) -> u32 {
        self.scored
    }

    /// Learns from the sample `z`, for which the experts saw `views` and `issued` was forecast.
    /// `day`: samples of a day, of which each `each`th comes here.
    pub(super) fn learn(
        &mut self,
        z: f32,
        views: &Views,
        issued: &Lanes,
        day: f32,
        each: f32,
        hours: &mut Bins,
    ) {
        self.scored = self.scored.saturating_add(1);
        self.seen += (each * self.alone).min(1.0);
        let scored = self.scored as f32;
        let independent = (each / (1.0 + self.lead / 8.0)).min(1.0);
        // Those that come seldom tell more, but less than as many would.
        let faster = libm::sqrtf(each);
        let rate = (1.0 / (scored * independent + 10.0)).max(faster * RATE);
        let step = Step {
            z,
            forget: (1.0 / scored).max(each / day),
            loss_max: LOSS_MAX * views.spread,
        };
        let (points, rest) = self.losses.split_at_mut(POINTS);
        for ((centre, quantiles), losses) in views.points.iter().zip(&mut self.offsets).zip(points)
        {
            step.take(&[*centre; LANES], views.spread, rate, quantiles, losses);
        }
        let (tables, rest) = rest.split_at_mut(TABLES);
        let bins = [(hours, SHARED), (&mut self.states, 1.0)];
        for ((view, (bins, share)), losses) in views.tables.iter().zip(bins).zip(tables) {
            let quantiles = &mut bins[view.bin];
            quantiles[SPARE] += share;
            let rate = 1.0 / (quantiles[SPARE] * independent + 5.0);
            let rate = share * rate.max(faster * TABLE_RATE);
            step.take(&[view.centre; LANES], view.unit, rate, quantiles, losses);
        }
        for losses in rest {
            step.take(
                &views.analogs,
                views.spread,
                rate,
                &mut self.analogs,
                losses,
            );
        }
        let last_max = if self.ingredients.has(Ingredients::CORRECTION) {
            FINAL_MAX
        } else {
            0.0
        };
        let last_rate = faster * (FINAL_RATE + FINAL_RATE_SHORT / (1.0 + self.lead));
        for (l, c) in self.last.iter_mut().enumerate() {
            let side = LEVEL_LANES[l] - if z < issued[l] { 1.0 } else { 0.0 };
            *c = (*c + last_rate * LAST_STEP[l] * side).clamp(-last_max, last_max);
        }
        self.weigh();
    }

    fn weigh(&mut self) {
        let trust = if self.ingredients.has(Ingredients::WEIGHTS) {
            self.scored as f32 / (self.scored as f32 + TRUST)
        } else {
            0.0
        };
        let experts = self.ingredients.experts();
        let mut sums = [0.0; LANES];
        let mut smallest = self.losses[0];
        for (e, losses) in self.losses.iter().enumerate() {
            if experts >> e & 1 == 0 {
                continue;
            }
            for l in 0..LANES {
                smallest[l] = least(smallest[l], losses[l]);
            }
        }
        // Losses of almost nothing must not decide by rounding errors.
        let grain = self.losses[0].map(|naive| 1e-3 * naive + 1e-12);
        for (e, (weights, losses)) in self.weights.iter_mut().zip(&self.losses).enumerate() {
            if experts >> e & 1 == 0 {
                weights.fill(0.0);
                continue;
            }
            for l in 0..LANES {
                let ratio = (smallest[l] + grain[l]) / (losses[l] + grain[l]);
                let mut w = 1.0 - trust + trust * ratio;
                for _ in 0..SQUARINGS {
                    w *= w;
                }
                weights[l] = w;
                sums[l] += w;
            }
        }
        for sum in &mut sums {
            *sum = 1.0 / *sum;
        }
        for weights in &mut self.weights {
            let mut shares = *weights;
            for l in 0..LANES {
                shares[l] *= sums[l];
            }
            *weights = shares;
        }
    }

    /// The combined quantiles.
    pub(super) fn combine(&self, views: &Views, hours: &Bins) -> Lanes {
        let mut out = self.last.map(|c| views.spread * c);
        for (e, weights) in self.weights.iter().enumerate() {
            let (centre, unit, quantiles) = expert(self, hours, views, e);
            for l in 0..LANES {
                out[l] += weights[l] * (centre[l] + unit * quantiles[l]);
            }
        }
        self.widen(out)
    }

    /// Moves quantiles away from the median, the further the less was seen: few forecasts that overlap tell neither how
    /// far residuals go nor that they go further with the lead.
    fn widen(&self, mut quantiles: Lanes) -> Lanes {
        let median = quantiles[MEDIAN];
        for (l, q) in quantiles.iter_mut().enumerate() {
            let more = if l < MEDIAN { EARLY_BELOW } else { EARLY_ABOVE };
            *q += more / self.seen * (*q - median);
        }
        quantiles
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

    fn views(points: [f32; POINTS]) -> Views {
        Views {
            points,
            spread: 1.0,
            tables: [Table {
                bin: 0,
                centre: 0.0,
                unit: 1.0,
            }; TABLES],
            analogs: [0.0; LANES],
        }
    }

    #[test]
    fn quantiles_of_a_uniform_are_found_and_the_best_expert_wins() {
        let mut t = Tracker::new(1, Ingredients::ALL);
        let mut hours = START_BINS;
        let mut seed = 1_u64;
        let mut noise = || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 33) as f32 / 2_147_483_648.0
        };
        let mut covered = 0;
        for i in 0..20_000 {
            let truth = 10.0 * noise();
            let mut points = [0.0; POINTS].map(|_| 10.0 * noise());
            points[3] = truth;
            let v = views(points);
            let q = t.combine(&v, &hours);
            let z = truth + noise();
            if i >= 2000 {
                covered += i32::from(q[0] <= z && z <= q[4]);
            }
            t.learn(z, &v, &q, 288.0, 1.0, &mut hours);
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
        let mut hours = START_BINS;
        let v = views([5.0; POINTS]);
        for _ in 0..3000 {
            let q = t.combine(&v, &hours);
            t.learn(5.0, &v, &q, 288.0, 1.0, &mut hours);
        }
        for l in 0..LEVELS.len() {
            let sum: f32 = t.weights.iter().map(|w| w[l]).sum();
            assert!((sum - 1.0).abs() < 1e-5);
        }
    }
}
