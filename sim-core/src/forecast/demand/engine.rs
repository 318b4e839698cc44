//! The experts, their regressions and trackers on one transformed scale.
//!
//! At each sample the forecasts made for it at the knots are scored and learned from, then the
//! state moves on and new ones are filed: what is the same at every lead once a sample, the rest in
//! one ring a knot, as long as its lead. Between knots a forecast is made for the exact step: features
//! are those of the step itself, coefficients and what trackers say are taken between the knots' by the
//! logarithm of the lead.

mod paths;
mod read;
mod saying;

use alloc::{boxed::Box, vec, vec::Vec};

use serde::{Deserialize, Serialize};

use super::history::{ANALOG_SHAPE, COMMON, FEATURES, Features, History, OWN};
use super::ingredients::Ingredients;
use super::joint::Joint;
use super::lanes::{LANES, Lanes, pack_all, unpack_all};
use super::outcomes::{Outcomes, Sorted};
use super::regression::{Regression, Tuning, WANDER};
use super::smoothing::{self, HoltWinters};
use super::structural::{self, Structural};
use super::tracker::{Bins, LEVEL_LANES, START_BINS, Tracker};
use super::volatility::{self, OneStep, Reading, Volatility};
use crate::forecast::output::LEVELS;
use paths::Spoken;
use saying::{KEPT, Moment, Pending, Present, REGRESSION, SHAPE, STRUCTURAL, points};

/// Knots at most.
pub(super) const KNOTS_MAX: usize = LANES;
/// Samples before forecasts are filed.
const WARM: u64 = 3;
/// Regression memory in days, plus four leads; at least so many samples.
const MEMORY_DAYS: f64 = 1.0;
const MEMORY_MIN: f64 = 30.0;
/// Bounds between bins, in spreads of the series.
const LEVEL_BOUNDS: [f64; 7] = [-1.5, -0.7, -0.25, 0.0, 0.25, 0.7, 1.5];
const MOVE_BOUNDS: [f64; 2] = [-0.3, 0.3];

type PerLevel = [f64; LEVELS.len()];
const PRIOR: [f32; COMMON + OWN] = [0.0; COMMON + OWN];

/// What every forecast at one lead has in common.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Ahead {
    lead: usize,
    slopes: f64,
    fade: f64,
    structural: structural::Ahead,
}

/// All at one lead.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Knot {
    ahead: Ahead,
    /// Forecasts are filed, and so learned from, at one step in two to the power of this.
    thinning: u32,
    /// Added to a step's number, so that not all knots' turns come at once.
    shift: u64,
    regression: Regression<FEATURES>,
    volatility: Volatility,
    tracker: Tracker,
    pending: Vec<Pending>,
    /// The latest quantiles.
    heard: Lanes,
    /// The largest up to this lead.
    joint: Option<Box<Joint>>,
}

impl Knot {
    /// Where the forecast made at `origin` waits, if one is filed there.
    fn place(&self, origin: u64) -> Option<usize> {
        let turn = origin + self.shift;
        let is_due = turn.trailing_zeros() >= self.thinning;
        is_due.then(|| (turn >> self.thinning) as usize % self.pending.len())
    }

    /// Steps from one forecast that is filed to the next.
    fn each(&self) -> f32 {
        (1_u32 << self.thinning) as f32
    }
}

/// The running experts and all that was learned about them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Engine {
    leads: Vec<usize>,
    history: History,
    structural: Structural,
    holt_winters: HoltWinters,
    one_step: OneStep,
    /// One for each step up to the horizon.
    presents: Vec<Present>,
    knots: Vec<Knot>,
    /// What happens at each hour of the day around the daily mean is the same at every lead.
    hours: Bins,
    day: usize,
    ingredients: Ingredients,
}

impl Engine {
    /// For series with `day` steps a day and `hour` steps an hour, up to `horizon` steps ahead.
    pub(super) fn new(day: usize, hour: usize, horizon: usize, ingredients: Ingredients) -> Self {
        let leads = paths::leads(horizon);
        let history = History::new(day, hour, &leads);
        let structural = Structural::new(day, structural::TUNING);
        let holt_winters = HoltWinters::new(day, smoothing::TUNING);
        let knot = |(shift, &lead): (usize, &usize)| {
            let thinning = paths::thinning(lead, hour);
            let memory = (MEMORY_DAYS * day as f64 + 4.0 * lead as f64).max(MEMORY_MIN);
            let tuning = Tuning {
                prior: 0.2,
                keep: (1.0 - 1.0 / memory) as f32,
                clip: 8.0,
                trace_max: 10.0,
                wander: WANDER,
            };
            let waiting = lead.div_ceil(1 << thinning);
            Knot {
                ahead: ahead(lead, &history, &holt_winters, &structural),
                regression: Regression::new(&PRIOR, tuning),
                volatility: Volatility::new(lead, day),
                tracker: Tracker::new(lead, ingredients),
                thinning,
                shift: shift as u64,
                pending: vec![Pending::empty(); waiting],
                heard: [0.0; LANES],
                joint: paths::has_joint(shift, leads.len())
                    .then(|| Box::new(Joint::new(lead, day, waiting))),
            }
        };
        Self {
            knots: leads.iter().enumerate().map(knot).collect(),
            presents: vec![Present::EMPTY; horizon],
            history,
            structural,
            holt_winters,
            one_step: OneStep::new(day),
            leads,
            hours: START_BINS,
            day,
            ingredients,
        }
    }

    /// Forgets everything but the samples, without giving memory back, and is told these again, on a new scale.
    /// `gaps` says of each whether it was missing. `false`: not all of them are held, and nothing was done.
    pub(super) fn tell_again(
        &mut self,
        rescale: impl Fn(f64) -> f64,
        gaps: impl Fn(usize) -> bool,
    ) -> bool {
        let Some(told) = self.history.told() else {
            return false;
        };
        for z in &mut *told {
            *z = rescale(f64::from(*z)) as f32;
        }
        let count = told.len();
        self.history.rewind();
        self.structural.reset();
        self.holt_winters.reset();
        self.one_step.reset();
        self.hours = START_BINS;
        self.presents.fill(Present::EMPTY);
        for knot in &mut self.knots {
            knot.regression.reset(&PRIOR);
            knot.volatility.reset();
            knot.tracker = Tracker::new(knot.ahead.lead, self.ingredients);
            if let Some(joint) = &mut knot.joint {
                joint.reset();
            }
        }
        for i in 0..count {
            let z = f64::from(self.history.upcoming());
            self.observe((!gaps(i)).then_some(z));
        }
        true
    }

    pub(super) fn history(&self) -> &History {
        &self.history
    }

    /// The samples so far, if all of them are held.
    pub(super) fn told(&mut self) -> Option<&[f32]> {
        self.history.told().map(|told| &*told)
    }

    /// Takes the sample of the next step. Nothing may be missing before the first one.
    pub(super) fn observe(&mut self, sample: Option<f64>) {
        let step = self.history.step() + u64::from(self.history.observed() > 0);
        if let Some(z) = sample {
            self.score(step, z);
            self.score_peaks(step, z as f32);
        }
        let slot = (step % self.day as u64) as usize;
        self.structural.observe(step, sample);
        self.holt_winters
            .observe(slot, self.history.is_next_slot_new(), sample);
        self.history.observe(sample, &self.leads);
        self.file(step);
    }

    fn score(&mut self, step: u64, z: f64) {
        let day = self.day as f32;
        let slot = (step % self.day as u64) as usize;
        let horizon = self.presents.len() as u64;
        for (j, knot) in self.knots.iter_mut().enumerate() {
            let lead = knot.ahead.lead as u64;
            if step < lead {
                break;
            }
            let present = &self.presents[((step - lead) % horizon) as usize];
            let place = knot.place(step - lead);
            let (true, Some(place)) = (present.filed, place) else {
                continue;
            };
            let pending = &knot.pending[place];
            let features = pending.features(present);
            let moved = (z - present.z) as f32;
            knot.regression.learn(&features, moved / present.unit);
            let issued: Lanes = unpack_all(&pending.issued);
            let one = (j == 0).then_some((&mut self.one_step, slot));
            let signs = unpack_all(&present.signs);
            let views = pending.views(present, &features);
            knot.volatility
                .learn(moved - issued[2], signs, &pending.reading, one, day);
            let each = knot.each();
            knot.tracker
                .learn(moved, &views, &issued, day, each, &mut self.hours);
        }
    }

    fn file(&mut self, step: u64) {
        let common = self.common();
        let mut outcomes = Outcomes::<KNOTS_MAX>::new();
        let mut features = [[0.0; FEATURES]; KNOTS_MAX];
        for (j, (&lead, x)) in self.leads.iter().zip(&mut features).enumerate() {
            if self.knots[j].place(step).is_some() {
                let add = |value, weight| outcomes.add(j, value, weight);
                *x = self.features(&common, lead, j, add);
            }
        }
        let sorted = outcomes.sort();
        let mut spoken = [const { None }; KNOTS_MAX];
        for (j, x) in (0..self.knots.len()).zip(&features) {
            let knot = &self.knots[j];
            let Some(place) = knot.place(step) else {
                continue;
            };
            let value = knot.regression.predict(x);
            let said = self.moment(&knot.ahead, &common, x, value, &sorted, j);
            let reading = self.reading(j, &common, &said);
            let issued = self.settle(
                knot.tracker
                    .combine(&said.moment.views(reading.spread), &self.hours),
            );
            spoken[j] = Some(Spoken {
                issued,
                spread: reading.spread,
                hour: said.moment.bins[0],
            });
            self.knots[j].pending[place] = Pending {
                features: pack_all(&x[COMMON..]),
                points: pack_all(&said.kept),
                issued: pack_all(&issued),
                analogs: pack_all(&said.moment.analogs),
                hour: said.moment.bins[0],
                reading,
            };
        }
        self.file_peaks(step, &common, &spoken);
        let at = (step % self.presents.len() as u64) as usize;
        self.presents[at] = Present {
            filed: self.history.observed() >= WARM,
            state: common.state,
            z: self.history.last(),
            unit: common.unit,
            simple: common.simple,
            features: pack_all(&common.features),
            signs: pack_all(&common.signs),
        };
    }

    /// What the regressions see `lead` steps ahead; see [`History::features`].
    fn features(
        &self,
        common: &Common,
        lead: usize,
        knot: usize,
        add: impl FnMut(f32, f32),
    ) -> Features {
        let now = self.history.analogs(knot);
        let mut x = self
            .history
            .features(&common.features, lead, knot, &now, add);
        if !self.ingredients.has(Ingredients::ANALOGS) {
            x[ANALOG_SHAPE..ANALOG_SHAPE + 4].fill(0.0);
        }
        x
    }

    fn common(&self) -> Common {
        let h = &self.history;
        let (moved, _) = h.moves();
        Common {
            features: h.present(),
            signs: self.one_step.signs(moved as f32),
            unit: h.spread() as f32,
            simple: (h.simple() - h.last()) as f32,
            state: self.state(),
        }
    }

    /// What the experts say at a lead. `x` and `value`: what the regression saw and says. Its outcomes
    /// stand in `column` of `sorted`.
    fn moment<const L: usize>(
        &self,
        ahead: &Ahead,
        common: &Common,
        x: &Features,
        value: f32,
        sorted: &Sorted<L>,
        column: usize,
    ) -> Said {
        let h = &self.history;
        let slot = h.slot(ahead.lead);
        let z = h.last();
        let unit = common.unit;
        let (low, high) = h.range();
        // The others lie between samples that were.
        let within = |y: f64| (y.clamp(low, high) - z) as f32;
        let kept = [
            h.week_ago(ahead.lead),
            within(h.by_profile(ahead.lead, ahead.fade)),
            within(self.holt_winters.mean(ahead.slopes, slot)),
            within(self.structural.mean(&ahead.structural)),
            within(z + f64::from(value * unit)),
        ];
        let points = points(x, unit, common.simple, kept);
        let (analogs, off) = sorted
            .quantiles(column, &LEVEL_LANES)
            .unwrap_or(([0.0; LANES], 0.0));
        let from = |place: usize| (points[place] - points[REGRESSION]).abs();
        Said {
            slot,
            apart: [off, from(SHAPE), from(STRUCTURAL)],
            kept,
            moment: Moment {
                unit,
                bins: [(slot * 24 / self.day) as u8, common.state],
                points,
                analogs,
            },
        }
    }

    /// The state of the series now: its level, and how it moved.
    fn state(&self) -> u8 {
        let h = &self.history;
        let unit = h.spread();
        let level = (h.last() - h.daily()) / unit;
        let moved = h.moves().1 / unit;
        let above = |x: f64, bounds: &[f64]| bounds.iter().filter(|b| x > **b).count() as u8;
        above(level, &LEVEL_BOUNDS) * 3 + above(moved, &MOVE_BOUNDS)
    }

    fn reading(&self, j: usize, common: &Common, said: &Said) -> Reading {
        let volatility = &self.knots[j].volatility;
        let (signs, slot, apart) = (common.signs, said.slot, said.apart);
        let mut reading = volatility.read(&self.one_step, signs, slot, apart, common.unit);
        if !self.ingredients.has(Ingredients::VOLATILITY) {
            reading.spread = reading.usual;
        }
        reading
    }

    /// Brings quantiles into the range and in order.
    fn settle(&self, mut quantiles: Lanes) -> Lanes {
        let (low, high) = self.history.range();
        let z = self.history.last();
        let (low, high) = ((low - z) as f32, (high - z) as f32);
        let mut below = low;
        for q in &mut quantiles[..LEVELS.len()] {
            *q = q.clamp(low, high).max(below);
            below = *q;
        }
        quantiles
    }

    /// Quantiles `lead` steps ahead, on the transformed scale.
    pub(super) fn quantiles(&self, lead: usize) -> PerLevel {
        let lead = lead.clamp(1, self.presents.len());
        let next = self.leads.iter().position(|&l| l >= lead).unwrap_or(0);
        let common = self.common();
        let mut outcomes = Outcomes::<1>::new();
        let add = |value, weight| outcomes.add(0, value, weight);
        let x = self.features(&common, lead, next, add);
        let sorted = outcomes.sort();
        let says = |j: usize| self.knots[j].regression.predict(&x);
        let at = |j: usize, said: &Said| {
            let reading = self.reading(j, &common, said);
            let views = said.moment.views(reading.spread);
            self.settle(self.knots[j].tracker.combine(&views, &self.hours))
        };
        let quantiles = if self.leads[next] == lead || next == 0 {
            let ahead = &self.knots[next].ahead;
            let said = self.moment(ahead, &common, &x, says(next), &sorted, 0);
            at(next, &said)
        } else {
            let ln = |l: usize| libm::log(l as f64);
            let (a, b) = (self.leads[next - 1], self.leads[next]);
            let part = ((ln(lead) - ln(a)) / (ln(b) - ln(a))) as f32;
            let between = |a: f32, b: f32| a + part * (b - a);
            let value = between(says(next - 1), says(next));
            let ahead = ahead(lead, &self.history, &self.holt_winters, &self.structural);
            let said = self.moment(&ahead, &common, &x, value, &sorted, 0);
            let (mut low, high) = (at(next - 1, &said), at(next, &said));
            for (q, high) in low.iter_mut().zip(high) {
                *q = between(*q, high);
            }
            low
        };
        let z = self.history.last();
        let mut out = [0.0; LEVELS.len()];
        for (out, q) in out.iter_mut().zip(quantiles) {
            *out = z + f64::from(q);
        }
        out
    }
}

/// What is the same at every lead.
struct Common {
    features: [f32; COMMON],
    signs: [f32; volatility::COMMON],
    unit: f32,
    simple: f32,
    state: u8,
}

/// What the experts say, and how far the analogs' outcomes, the regression from the analogs, and the
/// regression from the structural model are apart.
struct Said {
    moment: Moment,
    slot: usize,
    apart: [f32; 3],
    kept: [f32; KEPT.len()],
}

fn ahead(
    lead: usize,
    history: &History,
    holt_winters: &HoltWinters,
    structural: &Structural,
) -> Ahead {
    Ahead {
        lead,
        slopes: holt_winters.slopes(lead),
        fade: history.fade(lead),
        structural: structural.ahead(lead),
    }
}
