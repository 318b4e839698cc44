//! Online weighting of the models by their own recent loss at each knot lead.
//!
//! Weights are inverse powers of the discounted absolute loss (Bates & Granger 1969 with the power
//! of Stock & Watson, J. Forecasting 23 (2004), §2; a large power is close to Herbster & Warmuth's
//! tracking of the best expert). A model whose loss exceeds that of naive or seasonal naive gets
//! no weight at that lead: it is *demoted*, and [`super::Scores`] shows it.
//!
//! Losses at long leads come late, and overlapping errors tell less than their number. So each
//! lead's relative losses are shrunk towards those of the next shorter lead, and the first lead's
//! towards a prior.

use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

/// One of the models inside the ensemble.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Model {
    /// The last value: reference.
    Naive,
    /// The value one season ago, or the last value without a season: reference.
    SeasonalNaive,
    /// Exponential average, no trend, no season.
    Average,
    /// Structural model with a level and season but no trend.
    KalmanLevel,
    /// Structural model with a slow trend.
    KalmanSteady,
    /// Structural model with a quick trend.
    KalmanAgile,
    /// Damped-trend Holt–Winters.
    HoltWinters,
}

impl Model {
    /// All models, in the order of weights and losses.
    pub const ALL: [Self; MODELS] = [
        Self::Naive,
        Self::SeasonalNaive,
        Self::Average,
        Self::KalmanLevel,
        Self::KalmanSteady,
        Self::KalmanAgile,
        Self::HoltWinters,
    ];

    /// Name for metrics and display.
    pub fn name(self) -> &'static str {
        match self {
            Self::Naive => "naive",
            Self::SeasonalNaive => "seasonal_naive",
            Self::Average => "average",
            Self::KalmanLevel => "kalman_level",
            Self::KalmanSteady => "kalman_steady",
            Self::KalmanAgile => "kalman_agile",
            Self::HoltWinters => "holt_winters",
        }
    }

    /// Whether this is a yardstick rather than a model that has to earn its place.
    pub fn is_reference(self) -> bool {
        matches!(self, Self::Naive | Self::SeasonalNaive)
    }
}

/// Number of models.
pub(super) const MODELS: usize = 7;
/// One number a model.
pub(super) type PerModel = [f64; MODELS];

/// Relative losses assumed before any were seen: noise makes the references worse than models
/// that average, and a quick trend is the riskiest at long leads.
const PRIOR: PerModel = [1.4, 1.4, 1.02, 1.0, 1.05, 1.25, 1.1];
/// Weight of that prior, and of the shorter lead, in independent samples.
const PRIOR_SAMPLES: f64 = 4.0;
/// Weights go with loss to the power of minus this; twice that for the references, whose noise
/// would otherwise leak into the mean when they come close.
const POWER: i32 = 8;
/// Discounting: samples remembered at lead 0, plus one for each step of lead.
const MEMORY: f64 = 64.0;
/// Independent samples before a model may be demoted.
const VERDICT_SAMPLES: f64 = 4.0;
/// How much worse than a reference a model may look before it is demoted: less than this is noise.
const DEMOTE: f64 = 1.05;
const RELATIVE_MAX: f64 = 10.0;
/// An error counts at most this many times the reference's usual one: a spike hits every model
/// alike and would only drown what tells them apart.
const LOSS_CLIP: f64 = 8.0;

/// Losses and weights at one lead.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Lead {
    steps: usize,
    losses: PerModel,
    scored: u64,
    /// Loss over the best model's, shrunk; 1 is best.
    relative: PerModel,
    weights: PerModel,
    demoted: [bool; MODELS],
}

/// The weighting state over all knot leads.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Ensemble {
    leads: Vec<Lead>,
    seasonal: bool,
}

/// How many errors at this lead are worth one independent sample: they overlap.
pub(super) fn overlap(steps: usize) -> f64 {
    1.0 + steps as f64 / 8.0
}

/// How many independent samples `scored` overlapping errors at this lead are worth.
pub(super) fn effective_samples(scored: u64, memory: f64, steps: usize) -> f64 {
    (scored as f64).min(memory) / overlap(steps)
}

/// Rate of an average that starts by weighting sample k with k, then forgets over `memory`
/// samples: the first errors tell of start values more than of the models.
pub(super) fn warm_rate(count: u64, memory: f64) -> f64 {
    (2.0 / (count as f64 + 2.0)).max(1.0 / memory)
}

impl Ensemble {
    /// Without a season, seasonal naive is naive again and gets no weight of its own.
    pub(super) fn new(knots: &[usize], seasonal: bool) -> Self {
        let lead = |&steps: &usize| Lead {
            steps,
            losses: [0.0; MODELS],
            scored: 0,
            relative: PRIOR,
            weights: [0.0; MODELS],
            demoted: [false; MODELS],
        };
        let mut new = Self {
            leads: knots.iter().map(lead).collect(),
            seasonal,
        };
        new.reweigh();
        new
    }

    /// Scores the forecasts `means` made for `y` at knot `i`.
    pub(super) fn score(&mut self, i: usize, means: &PerModel, y: f64) {
        let Some(lead) = self.leads.get_mut(i) else {
            return;
        };
        let rate = warm_rate(lead.scored, MEMORY + lead.steps as f64);
        let best = lead.losses.iter().copied().fold(f64::INFINITY, f64::min);
        let cap = if lead.scored >= 5 && best > 0.0 {
            LOSS_CLIP * best
        } else {
            f64::INFINITY
        };
        for (loss, mean) in lead.losses.iter_mut().zip(means) {
            let error = (y - mean).abs().min(cap.max(*loss));
            *loss += rate * (error - *loss);
        }
        lead.scored = lead.scored.saturating_add(1);
    }

    /// Weights anew from the losses. Call after all knots of a step were scored.
    pub(super) fn reweigh(&mut self) {
        let mut prior = PRIOR;
        for lead in &mut self.leads {
            let samples = effective_samples(lead.scored, MEMORY + lead.steps as f64, lead.steps);
            let best = lead.losses.iter().copied().fold(f64::INFINITY, f64::min);
            // Losses near zero (a constant series) must not decide by rounding errors.
            let grain = 1e-3 * lead.losses.iter().sum::<f64>() + 1e-12;
            let seen = lead
                .losses
                .map(|l| ((l + grain) / (best + grain)).min(RELATIVE_MAX));
            for ((relative, seen), prior) in lead.relative.iter_mut().zip(seen).zip(prior) {
                *relative = (samples * seen + PRIOR_SAMPLES * prior) / (samples + PRIOR_SAMPLES);
            }
            prior = lead.relative;
            let yardstick = lead.relative[0].min(lead.relative[1]);
            let lowest = lead.relative.iter().copied().fold(f64::INFINITY, f64::min);
            let mut sum = 0.0;
            for (m, model) in Model::ALL.iter().enumerate() {
                lead.demoted[m] = !model.is_reference()
                    && samples >= VERDICT_SAMPLES
                    && lead.relative[m] > DEMOTE * yardstick;
                let ratio = lowest / lead.relative[m];
                let power = if model.is_reference() {
                    2 * POWER
                } else {
                    POWER
                };
                let absent = *model == Model::SeasonalNaive && !self.seasonal;
                lead.weights[m] = if lead.demoted[m] || absent {
                    0.0
                } else {
                    powi(ratio, power)
                };
                sum += lead.weights[m];
            }
            // Never zero: the best model has weight 1 here, and where that is a seasonal naive
            // that is absent, naive equals it.
            lead.weights.iter_mut().for_each(|w| *w /= sum);
        }
    }

    /// Weights at knot `i`, summing to 1.
    pub(super) fn weights(&self, i: usize) -> &PerModel {
        &self.leads[i].weights
    }

    /// Samples scored at knot `i`.
    pub(super) fn scored(&self, i: usize) -> u64 {
        self.leads.get(i).map_or(0, |l| l.scored)
    }

    /// For model `m`: loss relative to naive and weight, both averaged over the knots that have
    /// been scored, and whether it is demoted at most of them. Without any: `None`, 0, false.
    pub(super) fn summary(&self, m: usize) -> (Option<f64>, f64, bool) {
        let scored = || self.leads.iter().filter(|l| l.scored > 0);
        let n = scored().count();
        if n == 0 {
            let weight = self.leads.first().map_or(0.0, |l| l.weights[m]);
            return (None, weight, false);
        }
        let relative = |l: &Lead| {
            let naive = l.losses[0];
            if naive > 0.0 {
                l.losses[m] / naive
            } else {
                1.0
            }
        };
        let loss = scored().map(relative).sum::<f64>() / n as f64;
        let weight = scored().map(|l| l.weights[m]).sum::<f64>() / n as f64;
        let demoted = scored().filter(|l| l.demoted[m]).count();
        (Some(loss), weight, 2 * demoted > n)
    }
}

/// Integer power by multiplication, so that bits agree everywhere.
fn powi(x: f64, n: i32) -> f64 {
    (0..n).fold(1.0, |p, _| p * x)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_sum_to_one_and_follow_the_better_model() {
        let mut e = Ensemble::new(&[1, 8, 64], true);
        for _ in 0..100 {
            // Naive off by 5, Holt–Winters by 1, agile by 20.
            e.score(0, &[105.0, 105.0, 104.0, 104.0, 104.0, 120.0, 101.0], 100.0);
            e.reweigh();
        }
        for i in 0..3 {
            assert!((e.weights(i).iter().sum::<f64>() - 1.0).abs() < 1e-12);
        }
        assert!(e.weights(0)[6] > 0.95);
        assert_eq!(e.weights(0)[5], 0.0);
        let (loss, weight, demoted) = e.summary(5);
        assert!(loss.is_some_and(|l| l > 1.5) && weight == 0.0 && demoted);
        // The unscored lead believes the scored one.
        assert!(e.weights(2)[6] > 0.9);
    }

    #[test]
    fn a_constant_series_leaves_the_weights_defined() {
        let mut e = Ensemble::new(&[1], false);
        for _ in 0..50 {
            e.score(0, &[5.0; MODELS], 5.0);
            e.reweigh();
        }
        assert!((e.weights(0).iter().sum::<f64>() - 1.0).abs() < 1e-12);
    }
}
