//! All models under one set of seasons, their weights and their calibration.
//!
//! The engine has no memory of samples beyond its models' states and the forecasts still waiting
//! to be scored: one ring a knot lead, as long as the lead. Changing the seasons means building a
//! new engine and replaying the recent samples through it ([`super::Forecaster`] does).

use alloc::{vec, vec::Vec};

use serde::{Deserialize, Serialize};

use super::conformal::{Conformal, Issued, PerLevel};
use super::ensemble::{Ensemble, Model, PerModel};
use super::harmonics::{Harmonics, Row};
use super::holt_winters::HoltWinters;
use super::kalman::{Structural, Tuning};
use super::output::{ForecastStep, LEVELS};
use super::reference::References;

/// Level without trend; memory about 30 samples.
const LEVEL: Tuning = Tuning {
    level: 1.5e-3,
    slope: 0.0,
    slope_prior: 0.0,
    damping: 1.0,
};
/// Trend with a memory of about 60 samples (the fourth root of 1 / slope noise).
const STEADY: Tuning = Tuning {
    level: 5e-4,
    slope: 1e-7,
    slope_prior: 1e-3,
    damping: 0.995,
};
/// Trend with a memory of about 20 samples.
const AGILE: Tuning = Tuning {
    level: 1e-2,
    slope: 6e-6,
    slope_prior: 4e-3,
    damping: 0.98,
};

/// Samples before forecasts are kept for scoring: the first few say more about the start values.
const WARM: u64 = 8;

/// Place of [`Model::KalmanLevel`] in [`Model::ALL`].
const LEVEL_INDEX: usize = 3;
/// How far a reference may lie from the trendless model, in that model's deviations.
const REFERENCE_REACH: f64 = 5.0;

/// A forecast waiting for its sample.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Pending {
    means: PerModel,
    issued: Issued,
}

/// Scale of the combined forecast at one knot.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Spread {
    /// Deviation of the trendless model.
    level: f64,
    /// Quantiles minus mean.
    offsets: PerLevel,
}

/// The running models and everything learned about them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Engine {
    knots: Vec<usize>,
    /// For each step ahead: the knot at or before it and how far it is to the next (0..1).
    between: Vec<(usize, f64)>,
    harmonics: Harmonics,
    references: References,
    level: Structural,
    steady: Structural,
    agile: Structural,
    holt_winters: HoltWinters,
    ensemble: Ensemble,
    conformal: Vec<Conformal>,
    /// One ring a knot, as long as the knot's lead.
    pending: Vec<Vec<Option<Pending>>>,
    /// Scale of the latest forecast, one a knot.
    spreads: Vec<Spread>,
    /// Number of the next step.
    step: u64,
    observed: u64,
    /// First step of the present regime.
    regime_from: u64,
}

/// Knot leads: powers of two and the horizon itself.
fn knots(horizon: usize) -> Vec<usize> {
    let mut knots: Vec<usize> = core::iter::successors(Some(1_usize), |k| k.checked_mul(2))
        .take_while(|&k| k < horizon)
        .collect();
    // A knot just short of the horizon would cost as much as it tells.
    if knots.len() > 1 && knots.last().is_some_and(|&k| 4 * k > 3 * horizon) {
        knots.pop();
    }
    knots.push(horizon);
    knots
}

/// Steps are placed between knots by the logarithm of the lead, as uncertainty grows.
fn between(knots: &[usize], horizon: usize) -> Vec<(usize, f64)> {
    let ln = |k: usize| libm::log(k as f64);
    (1..=horizon)
        .map(|h| {
            let i = knots.iter().rposition(|&k| k <= h).unwrap_or(0);
            match knots.get(i + 1) {
                Some(&next) => (i, (ln(h) - ln(knots[i])) / (ln(next) - ln(knots[i]))),
                None => (i, 0.0),
            }
        })
        .collect()
}

impl Engine {
    /// An engine for these seasons (in steps, the first one for the slot-wise models) and horizon.
    pub(super) fn new(seasons: &[f64], horizon: usize) -> Self {
        let harmonics = Harmonics::new(seasons);
        let slots = seasons.first().map_or(0, |&p| libm::round(p) as usize);
        let knots = knots(horizon);
        let structural = |tuning| Structural::new(tuning, &harmonics, horizon);
        Self {
            between: between(&knots, horizon),
            references: References::new(slots),
            level: structural(LEVEL),
            steady: structural(STEADY),
            agile: structural(AGILE),
            holt_winters: HoltWinters::new(slots, horizon),
            ensemble: Ensemble::new(&knots, slots > 0),
            conformal: knots.iter().map(|&k| Conformal::new(k)).collect(),
            pending: knots.iter().map(|&k| vec![None; k]).collect(),
            spreads: Vec::with_capacity(knots.len()),
            knots,
            harmonics,
            step: 0,
            observed: 0,
            regime_from: 0,
        }
    }

    /// Takes the sample of the next step.
    pub(super) fn observe(&mut self, sample: Option<f64>) {
        if let Some(y) = sample {
            self.score(y);
        }
        let row = self.harmonics.row(self.step);
        self.references.observe(sample);
        self.level.observe(sample, &row);
        self.steady.observe(sample, &row);
        if let Some(age) = self.agile.observe(sample, &row) {
            self.regime_from = (self.step + 1).saturating_sub(u64::from(age));
        }
        self.holt_winters.observe(sample);
        self.observed += u64::from(sample.is_some());
        self.issue();
        self.step += 1;
    }

    fn score(&mut self, y: f64) {
        for (i, (&knot, ring)) in self.knots.iter().zip(&self.pending).enumerate() {
            let Some(pending) = ring.get(slot(self.step, knot)).and_then(Option::as_ref) else {
                continue;
            };
            let same_regime = self.step >= self.regime_from + knot as u64;
            if same_regime {
                self.ensemble.score(i, &pending.means, y);
            }
            self.conformal[i].score(&pending.issued, y, same_regime);
        }
        self.ensemble.reweigh();
    }

    /// Makes the forecasts at the knots and files them to be scored.
    fn issue(&mut self) {
        self.spreads.clear();
        let mut shorter = 1.0;
        for (i, &knot) in self.knots.iter().enumerate() {
            let row = self.harmonics.row(self.step + knot as u64);
            let means = self.means(knot, &row);
            let weights = self.ensemble.weights(i);
            let level = libm::sqrt(self.level.variance(knot, &row));
            let mean = combine(weights, &means, level);
            let deviation = self.deviation(knot, &row, &means, mean, weights, level);
            let conformal = &self.conformal[i];
            shorter = conformal.multiplier(shorter, deviation);
            let multiplier = shorter * conformal.widening();
            let offsets = conformal.offsets().map(|q| q * multiplier * deviation);
            let pending = (self.observed >= WARM).then_some(Pending {
                means,
                issued: Issued {
                    mean,
                    deviation,
                    multiplier,
                    band: [
                        mean + offsets[0].min(offsets[4]),
                        mean + offsets[4].max(offsets[0]),
                    ],
                },
            });
            if let Some(place) = self.pending[i].get_mut(slot(self.step, knot)) {
                *place = pending;
            }
            self.spreads.push(Spread { level, offsets });
        }
    }

    fn means(&self, lead: usize, row: &Row) -> PerModel {
        [
            self.references.naive(),
            self.references.seasonal_naive(lead),
            self.references.average(),
            self.level.mean(lead, row),
            self.steady.mean(lead, row),
            self.agile.mean(lead, row),
            self.holt_winters.mean(lead),
        ]
    }

    /// Law of total variance over the ensemble: the models' own variances, mixed by their weights,
    /// plus their disagreement. Models that state no variance are lent the trendless one's; the
    /// references' distance is left out, since one past sample's noise is no opinion.
    fn deviation(
        &self,
        lead: usize,
        row: &Row,
        means: &PerModel,
        mean: f64,
        weights: &PerModel,
        level: f64,
    ) -> f64 {
        let [_, _, _, _, steady, agile, _] = *weights;
        let own = (1.0 - steady - agile) * level * level
            + steady * self.steady.variance(lead, row)
            + agile * self.agile.variance(lead, row);
        let spread: f64 = means
            .iter()
            .zip(weights)
            .zip(Model::ALL)
            .filter(|(_, model)| !model.is_reference())
            .map(|((m, w), _)| w * (m - mean) * (m - mean))
            .sum();
        libm::sqrt(own.max(0.0) + spread)
    }

    /// Mean and quantiles at each step of the horizon.
    pub(super) fn forecast(&self) -> Vec<ForecastStep> {
        let horizon = self.between.len();
        if self.spreads.is_empty() {
            return vec![
                ForecastStep {
                    mean: 0.0,
                    quantiles: [0.0; LEVELS.len()]
                };
                horizon
            ];
        }
        // After `observe` the next step is number `step`, which is lead 1.
        let rows: Vec<Row> = (0..horizon)
            .map(|h| self.harmonics.row(self.step + h as u64))
            .collect();
        let mut paths = vec![0.0; 3 * horizon];
        let (level, rest) = paths.split_at_mut(horizon);
        let (steady, agile) = rest.split_at_mut(horizon);
        self.level.fill(&rows, level);
        self.steady.fill(&rows, steady);
        self.agile.fill(&rows, agile);
        let (naive, average) = (self.references.naive(), self.references.average());
        let mut steps = Vec::with_capacity(horizon);
        for (h, &(i, part)) in self.between.iter().enumerate() {
            let next = (i + 1).min(self.knots.len() - 1);
            let means = [
                naive,
                self.references.seasonal_naive(h + 1),
                average,
                level[h],
                steady[h],
                agile[h],
                self.holt_winters.mean(h + 1),
            ];
            let level = lerp(self.spreads[i].level, self.spreads[next].level, part);
            let mean = lerp(
                combine(self.ensemble.weights(i), &means, level),
                combine(self.ensemble.weights(next), &means, level),
                part,
            );
            let mut quantiles = [0.0; LEVELS.len()];
            let mut below = f64::NEG_INFINITY;
            for (l, q) in quantiles.iter_mut().enumerate() {
                let offset = lerp(
                    self.spreads[i].offsets[l],
                    self.spreads[next].offsets[l],
                    part,
                );
                // Trackers may cross for a while; a quantile may not.
                below = below.max(mean + offset);
                *q = below;
            }
            steps.push(ForecastStep { mean, quantiles });
        }
        steps
    }

    /// Samples scored at the longest knot lead of at most `lead` steps.
    pub(super) fn scored(&self, lead: usize) -> u64 {
        self.ensemble
            .scored(self.knots.iter().rposition(|&k| k <= lead).unwrap_or(0))
    }

    /// Samples since the latest level shift.
    pub(super) fn regime_samples(&self) -> u64 {
        self.step - self.regime_from.min(self.step)
    }

    pub(super) fn ensemble(&self) -> &Ensemble {
        &self.ensemble
    }

    /// For each knot lead: the lead, coverage of the 90 % band so far, and samples compared.
    pub(super) fn coverage(&self) -> impl Iterator<Item = (usize, f64, u64)> + '_ {
        self.knots.iter().zip(&self.conformal).map(|(&k, c)| {
            let (coverage, compared) = c.coverage();
            (k, coverage, compared)
        })
    }
}

/// The place in a knot's ring of the forecast that step `step` answers, which is also where the
/// one made at that step goes.
fn slot(step: u64, knot: usize) -> usize {
    (step % knot.max(1) as u64) as usize
}

/// The weighted mean. References repeat whatever was last seen; a spike must not come through by
/// way of even a small weight, so they are held within [`REFERENCE_REACH`] of the trendless
/// model, `level` being its deviation.
fn combine(weights: &PerModel, means: &PerModel, level: f64) -> f64 {
    let centre = means[LEVEL_INDEX];
    let reach = REFERENCE_REACH * level;
    let mut sum = 0.0;
    for ((weight, mean), model) in weights.iter().zip(means).zip(Model::ALL) {
        let held = if model.is_reference() {
            mean.max(centre - reach).min(centre + reach)
        } else {
            *mean
        };
        sum += weight * held;
    }
    sum
}

fn lerp(a: f64, b: f64, part: f64) -> f64 {
    a + (b - a) * part
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knots_end_at_the_horizon() {
        assert_eq!(knots(1), [1]);
        assert_eq!(knots(60), [1, 2, 4, 8, 16, 32, 60]);
        assert_eq!(knots(72), [1, 2, 4, 8, 16, 32, 72]);
        assert_eq!(knots(90), [1, 2, 4, 8, 16, 32, 64, 90]);
        let b = between(&knots(90), 90);
        assert_eq!((b.len(), b[0], b[89]), (90, (0, 0.0), (7, 0.0)));
        assert!(
            b.iter()
                .all(|&(i, part)| i < 8 && (0.0..1.0).contains(&part))
        );
    }
}
