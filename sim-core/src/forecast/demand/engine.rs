//! The experts, their regressions and trackers on one transformed scale.
//!
//! At each sample the forecasts made for it at the knots are scored and learned from, then the
//! state moves on and new ones are filed in one ring a knot, as long as its lead. Between knots a
//! forecast is made for the exact step: features are those of the step itself, coefficients and
//! what trackers say are taken between the knots' by the logarithm of the lead.

use alloc::{vec, vec::Vec};

use serde::{Deserialize, Serialize};

use super::history::{
    ANALOG_LONG, ANALOG_PERIOD, ANALOG_SHAPE, DAY_SAME, FEATURES, Features, History,
};
use super::ingredients::Ingredients;
use super::regression::{Regression, Tuning};
use super::smoothing::HoltWinters;
use super::structural::Structural;
use super::tracker::{POINTS, PerLevel, Table, Tracker, Views};
use super::volatility::{OneStep, Reading, Volatility};
use super::{smoothing, structural};
use crate::forecast::output::LEVELS;

/// Knots at most.
pub(super) const KNOTS_MAX: usize = 8;
/// Places among the points.
const REGRESSION: usize = 8;
const STRUCTURAL: usize = 7;
const SHAPE: usize = 9;
/// Samples before forecasts are filed.
const WARM: u64 = 3;
/// Regression memory in days, plus four leads; at least so many samples.
const MEMORY_DAYS: f64 = 1.0;
const MEMORY_MIN: f64 = 30.0;
/// Bounds between bins, in spreads of the series.
const LEVEL_BOUNDS: [f64; 7] = [-1.5, -0.7, -0.25, 0.0, 0.25, 0.7, 1.5];
const MOVE_BOUNDS: [f64; 2] = [-0.3, 0.3];

/// A forecast waiting for its sample. Differences from `z` are kept in single precision.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Pending {
    filed: bool,
    z: f64,
    unit: f64,
    daily: f64,
    features: [f32; FEATURES],
    points: [f32; POINTS],
    issued: [f32; LEVELS.len()],
    analogs: [f32; LEVELS.len()],
    bins: [u8; 2],
    reading: Reading,
}

impl Pending {
    fn empty() -> Self {
        Self {
            filed: false,
            z: 0.0,
            unit: 1.0,
            daily: 0.0,
            features: [0.0; FEATURES],
            points: [0.0; POINTS],
            issued: [0.0; LEVELS.len()],
            analogs: [0.0; LEVELS.len()],
            bins: [0; 2],
            reading: Reading::default(),
        }
    }

    fn views(&self) -> Views {
        let moment = Moment {
            z: self.z,
            unit: self.unit,
            daily: self.daily,
            bins: self.bins,
            points: self.points.map(|p| self.z + f64::from(p)),
            analogs: self.analogs.map(|q| self.z + f64::from(q)),
        };
        moment.views(self.reading.spread)
    }
}

/// What the experts say at one moment about one lead.
struct Moment {
    /// The last value, the series' spread and its daily mean.
    z: f64,
    unit: f64,
    daily: f64,
    /// Hour of the target, and the state of the series.
    bins: [u8; 2],
    points: [f64; POINTS],
    analogs: PerLevel,
}

impl Moment {
    /// How the tables see it: by hour and by state around the daily mean, by state around the last
    /// value, by hour around the regression.
    fn views(&self, spread: f64) -> Views {
        let [hour, state] = self.bins;
        let table = |bin: u8, centre: f64, unit: f64| Table {
            bin: usize::from(bin),
            centre,
            unit,
        };
        Views {
            points: self.points,
            spread,
            tables: [
                table(hour, self.daily, self.unit),
                table(state, self.z, self.unit),
                table(state, self.daily, self.unit),
                table(hour, self.points[REGRESSION], spread),
            ],
            analogs: self.analogs,
        }
    }
}

/// All at one lead.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Knot {
    lead: usize,
    regression: Regression,
    volatility: Volatility,
    tracker: Tracker,
    pending: Vec<Pending>,
}

/// The running experts and all that was learned about them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Engine {
    leads: Vec<usize>,
    history: History,
    structural: Structural,
    holt_winters: HoltWinters,
    one_step: OneStep,
    knots: Vec<Knot>,
    day: usize,
    ingredients: Ingredients,
}

/// Leads spread evenly by their logarithms, from 1 to the horizon.
fn leads(horizon: usize) -> Vec<usize> {
    let step = libm::log(horizon as f64) / (KNOTS_MAX - 1) as f64;
    let mut leads: Vec<usize> = (0..KNOTS_MAX)
        .map(|i| libm::round(libm::exp(step * i as f64)) as usize)
        .collect();
    leads.dedup();
    leads
}

impl Engine {
    /// For series with `day` steps a day and `hour` steps an hour, up to `horizon` steps ahead.
    pub(super) fn new(day: usize, hour: usize, horizon: usize, ingredients: Ingredients) -> Self {
        let leads = leads(horizon);
        let knot = |&lead: &usize| {
            let memory = (MEMORY_DAYS * day as f64 + 4.0 * lead as f64).max(MEMORY_MIN);
            let tuning = Tuning {
                prior: 0.2,
                keep: 1.0 - 1.0 / memory,
                clip: 8.0,
                trace_max: 10.0,
            };
            Knot {
                lead,
                regression: Regression::new(&[0.0; FEATURES], tuning),
                volatility: Volatility::new(lead, day),
                tracker: Tracker::new(lead, ingredients),
                pending: vec![Pending::empty(); lead],
            }
        };
        Self {
            history: History::new(day, hour, &leads),
            structural: Structural::new(day, structural::TUNING),
            holt_winters: HoltWinters::new(day, smoothing::TUNING),
            one_step: OneStep::new(day),
            knots: leads.iter().map(knot).collect(),
            leads,
            day,
            ingredients,
        }
    }

    /// Forgets everything, without giving memory back.
    pub(super) fn reset(&mut self) {
        self.history.reset();
        self.structural.reset();
        self.holt_winters.reset();
        self.one_step.reset();
        for knot in &mut self.knots {
            knot.regression.reset(&[0.0; FEATURES]);
            knot.volatility.reset();
            knot.tracker = Tracker::new(knot.lead, self.ingredients);
            knot.pending.fill(Pending::empty());
        }
    }

    pub(super) fn history(&self) -> &History {
        &self.history
    }

    /// Forecasts scored at the first knot.
    pub(super) fn scored(&self) -> u64 {
        self.knots.first().map_or(0, |knot| knot.tracker.scored())
    }

    pub(super) fn trackers(&self) -> impl Iterator<Item = (usize, &Tracker)> {
        self.knots.iter().map(|knot| (knot.lead, &knot.tracker))
    }

    /// Takes the sample of the next step. Nothing may be missing before the first one.
    pub(super) fn observe(&mut self, sample: Option<f64>) {
        let step = self.history.step() + u64::from(self.history.observed() > 0);
        if let Some(z) = sample {
            self.score(step, z);
        }
        let slot = (step % self.day as u64) as usize;
        self.structural.observe(step, sample);
        self.holt_winters
            .observe(slot, self.history.is_next_slot_new(), sample);
        self.history.observe(sample, &self.leads);
        self.file(step);
    }

    fn score(&mut self, step: u64, z: f64) {
        let day = self.day as f64;
        let slot = (step % self.day as u64) as usize;
        for (j, knot) in self.knots.iter_mut().enumerate() {
            let pending = &knot.pending[(step % knot.lead as u64) as usize];
            if !pending.filed {
                continue;
            }
            let features = pending.features.map(f64::from);
            knot.regression
                .learn(&features, (z - pending.z) / pending.unit);
            let issued = pending.issued.map(|q| pending.z + f64::from(q));
            let one = (j == 0).then_some((&mut self.one_step, slot));
            knot.volatility
                .learn(z - issued[2], &pending.reading, one, day);
            knot.tracker.learn(z, &pending.views(), &issued, day);
        }
    }

    fn file(&mut self, step: u64) {
        let ready = self.history.observed() >= WARM;
        for j in 0..self.knots.len() {
            let lead = self.knots[j].lead;
            let features = self.history.features(lead, j);
            let seen = self.seen(&features);
            let value = self.knots[j].regression.predict(&seen);
            let (moment, apart) = self.moment(lead, j, &features, value);
            let reading = self.reading(j, lead, apart);
            let views = moment.views(reading.spread);
            let issued = self.settle(self.knots[j].tracker.combine(&views));
            let z = moment.z;
            let pending = &mut self.knots[j].pending[(step % lead as u64) as usize];
            *pending = Pending {
                filed: ready,
                z,
                unit: moment.unit,
                daily: moment.daily,
                features: seen.map(|x| x as f32),
                points: moment.points.map(|p| (p - z) as f32),
                issued: issued.map(|q| (q - z) as f32),
                analogs: moment.analogs.map(|q| (q - z) as f32),
                bins: moment.bins,
                reading,
            };
        }
    }

    /// What the experts say, and how far the analogs' outcomes, the regression from the analogs,
    /// and the regression from the structural model are apart. `next` is the first knot at or after the lead.
    fn moment(
        &self,
        lead: usize,
        next: usize,
        features: &Features,
        regression: f64,
    ) -> (Moment, [f64; 3]) {
        let h = &self.history;
        let points = self.points(lead, features, regression);
        let (analogs, off) = h.outcomes(lead, next, &LEVELS);
        let from = |place: usize| (points[place] - points[REGRESSION]).abs();
        let apart = [off, from(SHAPE), from(STRUCTURAL)];
        let moment = Moment {
            z: h.last(),
            unit: h.spread(),
            daily: h.daily(),
            bins: self.bins(lead),
            points,
            analogs,
        };
        (moment, apart)
    }

    /// What each expert says; `regression` is in spreads from the last value.
    fn points(&self, lead: usize, x: &Features, regression: f64) -> [f64; POINTS] {
        let h = &self.history;
        let (z, unit) = (h.last(), h.spread());
        let week = h.week_ago(lead).unwrap_or_else(|| h.medium());
        let mut points = [
            z,
            z + x[DAY_SAME] * unit,
            week,
            h.simple(),
            h.daily(),
            h.by_profile(lead),
            self.holt_winters.mean(lead, h.slot(lead)),
            self.structural.mean(h.step(), lead),
            z + regression * unit,
            z + x[ANALOG_SHAPE] * unit,
            z + x[ANALOG_PERIOD] * unit,
            z + x[ANALOG_LONG] * unit,
        ];
        let (low, high) = h.range();
        for point in &mut points {
            *point = point.clamp(low, high);
        }
        points
    }

    /// Hour of the target, and the state of the series now.
    fn bins(&self, lead: usize) -> [u8; 2] {
        let h = &self.history;
        let unit = h.spread();
        let level = (h.last() - h.daily()) / unit;
        let moved = h.moves().1 / unit;
        let above = |x: f64, bounds: &[f64]| bounds.iter().filter(|b| x > **b).count() as u8;
        let hour = (h.slot(lead) * 24 / self.day) as u8;
        [
            hour,
            above(level, &LEVEL_BOUNDS) * 3 + above(moved, &MOVE_BOUNDS),
        ]
    }

    fn reading(&self, j: usize, lead: usize, apart: [f64; 3]) -> Reading {
        let h = &self.history;
        let (moved, _) = h.moves();
        let mut reading =
            self.knots[j]
                .volatility
                .read(&self.one_step, h.slot(lead), moved, apart, h.spread());
        if !self.ingredients.has(Ingredients::VOLATILITY) {
            reading.spread = reading.usual;
        }
        reading
    }

    /// What the regressions are shown of the features.
    fn seen(&self, features: &Features) -> Features {
        let mut seen = *features;
        if !self.ingredients.has(Ingredients::ANALOGS) {
            seen[ANALOG_SHAPE..].fill(0.0);
        }
        seen
    }

    /// Brings quantiles into the range and in order.
    fn settle(&self, mut quantiles: PerLevel) -> PerLevel {
        let (low, high) = self.history.range();
        let mut below = low;
        for q in &mut quantiles {
            *q = q.clamp(low, high).max(below);
            below = *q;
        }
        quantiles
    }

    /// Quantiles `lead` steps ahead, on the transformed scale.
    pub(super) fn quantiles(&self, lead: usize) -> PerLevel {
        let lead = lead.clamp(1, self.history.horizon());
        let next = self.leads.iter().position(|&l| l >= lead).unwrap_or(0);
        let features = self.history.features(lead, next);
        let seen = self.seen(&features);
        let says = |j: usize| self.knots[j].regression.predict(&seen);
        let at = |j: usize, moment: &Moment, apart: [f64; 3]| {
            let reading = self.reading(j, lead, apart);
            self.settle(self.knots[j].tracker.combine(&moment.views(reading.spread)))
        };
        if self.leads[next] == lead || next == 0 {
            let (moment, apart) = self.moment(lead, next, &features, says(next));
            return at(next, &moment, apart);
        }
        let ln = |l: usize| libm::log(l as f64);
        let (a, b) = (self.leads[next - 1], self.leads[next]);
        let part = (ln(lead) - ln(a)) / (ln(b) - ln(a));
        let between = |a: f64, b: f64| a + part * (b - a);
        let value = between(says(next - 1), says(next));
        let (moment, apart) = self.moment(lead, next, &features, value);
        let (mut low, high) = (at(next - 1, &moment, apart), at(next, &moment, apart));
        for (q, high) in low.iter_mut().zip(high) {
            *q = between(*q, high);
        }
        low
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knots_run_from_the_next_step_to_the_horizon() {
        assert_eq!(leads(72), [1, 2, 3, 6, 12, 21, 39, 72]);
        assert_eq!(leads(360), [1, 2, 5, 12, 29, 67, 155, 360]);
        assert_eq!(leads(6), [1, 2, 3, 4, 5, 6]);
        assert_eq!(leads(1), [1]);
    }
}
