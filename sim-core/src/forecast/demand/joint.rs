//! The largest of the next samples: a target of its own at every second knot and the last.
//!
//! What a decision asks is not "how much at step 7" but "at all within the hour, and when". Chances of
//! single steps do not tell: neighbours cross together, by how much differs from series to series. So the maximum of
//! the next `lead` samples is forecast like a value, by experts whose quantiles are tracked and weighted as in
//! `tracker`:
//!
//! * a Kalman regression whose features are maxima: of the window a day and a week ago, of what followed the analogs,
//!   of the profile, of what the knots forecast (`history::window`),
//! * the maxima of what followed the analogs, of those of the long memory, and of the same window a day ago,
//! * the largest of the quantiles that the knots up to this one forecast,
//! * tables by state (around the last value) and by hour (around the regression).
//!
//! One is filed and learned from whenever its knot files a forecast.
//!
//! How it fails: where a maximum is a rare spike without a period, its distribution is that of the tables, which
//! change over hundreds of windows only.

use alloc::{vec, vec::Vec};

use serde::{Deserialize, Serialize};

use super::history::window::{DAY, LONG, WINDOW, Window};
use super::lanes::{LANES, Lanes, pack, unpack};
use super::regression::{Regression, Tuning, WANDER};

/// Levels of the maximum's quantiles. The upper half is closer: chances of a crossing that matter are small.
pub(super) const PEAK_LEVELS: Lanes = [0.05, 0.1, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99];
const MEDIAN: usize = 2;

/// Experts: points and quantiles around which quantiles are tracked, and tables of quantiles.
const ANALOGS: usize = 3;
const STEPS: usize = 4;
const POINTS: usize = 5;
const STATES: usize = POINTS;
const HOURS: usize = POINTS + 1;
const TABLES: usize = 2;
const EXPERTS: usize = POINTS + TABLES;
const BINS: usize = 24;

/// Where trackers start, in spreads: around a mean, around quantiles, around the last value.
const START: Lanes = [-1.8, -1.3, 0.0, 0.4, 0.8, 1.4, 2.0, 4.0];
const START_AROUND: Lanes = [-0.3, -0.2, 0.0, 0.1, 0.1, 0.2, 0.3, 1.0];
const START_STATES: Lanes = [-0.5, -0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 4.0];
const STEP: Lanes = [3.0, 3.0, 1.0, 1.5, 2.0, 3.0, 3.0, 6.0];
/// The same for the last correction.
const LAST_STEP: Lanes = [3.0, 3.0, 0.5, 1.5, 2.0, 3.0, 3.0, 6.0];
/// Floors of the rates, and that of the last correction.
const RATE: f32 = 0.005;
const TABLE_RATE: f32 = 0.01;
const LAST_RATE: f32 = 0.0007;
const LAST_MAX: f32 = 3.0;
/// A loss counts at most this many spreads.
const LOSS_MAX: f32 = 30.0;
/// Samples after which losses are believed by half.
const TRUST: f32 = 20.0;
/// How many times weights are squared: of so few experts the mean is worth more than the best.
const SQUARINGS: u32 = 2;
/// The regression's memory in days, plus four leads; at least so many samples.
const MEMORY_DAYS: f64 = 2.0;
const MEMORY_MIN: f64 = 30.0;
const PRIOR: [f32; WINDOW] = [0.0; WINDOW];

/// What the experts say of one maximum, relative to the last value.
struct View {
    unit: f32,
    spread: f32,
    /// State of the series, and hour of the target.
    bins: [u8; TABLES],
    /// Regression, the same window a day ago, and after the analogs of the long memory.
    points: [f32; 3],
    analogs: Lanes,
    steps: Lanes,
}

impl View {
    /// Around what expert `e` puts its quantiles, and in what unit.
    fn of(&self, e: usize) -> (Lanes, f32) {
        match e {
            ANALOGS => (self.analogs, self.spread),
            STEPS => (self.steps, self.spread),
            STATES => ([0.0; LANES], self.unit),
            // By hour around the regression.
            HOURS => ([self.points[0]; LANES], self.spread),
            e => ([self.points[e]; LANES], self.spread),
        }
    }
}

/// A forecast waiting for its window to end, packed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct Pending {
    features: [u16; WINDOW],
    regression: u16,
    analogs: [u16; LANES],
    steps: [u16; LANES],
    issued: [u16; LANES],
    spread: u16,
    hour: u8,
}

impl Pending {
    const EMPTY: Self = Self {
        features: [0; WINDOW],
        regression: 0,
        analogs: [0; LANES],
        steps: [0; LANES],
        issued: [0; LANES],
        spread: 0,
        hour: 0,
    };
}

/// What is known at the moment of a forecast, relative to the last value.
pub(super) struct Now {
    pub(super) unit: f32,
    pub(super) spread: f32,
    pub(super) state: u8,
    /// Of the target.
    pub(super) hour: u8,
    pub(super) features: Window,
    /// Quantiles of the largest in the windows after the analogs.
    pub(super) analogs: Lanes,
    /// The largest of the steps' quantiles.
    pub(super) steps: Lanes,
    /// Least and most that is possible.
    pub(super) range: (f32, f32),
}

/// The largest over one knot's lead.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Joint {
    lead: usize,
    regression: Regression<WINDOW>,
    scored: u32,
    offsets: [Lanes; POINTS],
    tables: [[Lanes; BINS]; TABLES],
    visits: [[u16; BINS]; TABLES],
    losses: [Lanes; EXPERTS],
    weights: [Lanes; EXPERTS],
    last: Lanes,
    pending: Vec<Pending>,
}

impl Joint {
    /// For series with `day` steps a day, with so many forecasts `waiting`.
    pub(super) fn new(lead: usize, day: usize, waiting: usize) -> Self {
        let memory = (MEMORY_DAYS * day as f64 + 4.0 * lead as f64).max(MEMORY_MIN);
        let tuning = Tuning {
            prior: 0.1,
            keep: (1.0 - 1.0 / memory) as f32,
            clip: 8.0,
            trace_max: 10.0,
            wander: WANDER,
        };
        let mut new = Self {
            lead,
            regression: Regression::new(&PRIOR, tuning),
            scored: 0,
            offsets: [START; POINTS],
            tables: [[START_STATES; BINS], [START; BINS]],
            visits: [[0; BINS]; TABLES],
            losses: [[0.0; LANES]; EXPERTS],
            weights: [[1.0 / EXPERTS as f32; LANES]; EXPERTS],
            last: [0.0; LANES],
            pending: vec![Pending::EMPTY; waiting],
        };
        new.reset();
        new
    }

    pub(super) fn reset(&mut self) {
        self.regression.reset(&PRIOR);
        self.scored = 0;
        self.offsets = [START; POINTS];
        self.offsets[ANALOGS] = START_AROUND;
        self.offsets[STEPS] = START_AROUND;
        self.tables = [[START_STATES; BINS], [START; BINS]];
        self.visits = [[0; BINS]; TABLES];
        self.losses = [[0.0; LANES]; EXPERTS];
        self.weights = [[1.0 / EXPERTS as f32; LANES]; EXPERTS];
        self.last = [0.0; LANES];
        self.pending.fill(Pending::EMPTY);
    }

    /// The window after the forecast at `place` has ended and was `peak` at most, relative to the sample before it.
    /// There the series had this spread `unit` and `state`. `day`: steps a day; `each`: steps from one filed forecast
    /// to the next.
    pub(super) fn learn(
        &mut self,
        place: usize,
        peak: f32,
        (unit, state): (f32, u8),
        day: f32,
        each: f32,
    ) {
        let pending = self.pending[place];
        self.scored = self.scored.saturating_add(1);
        let features = pending.features.map(unpack);
        self.regression.learn(&features, peak / unit);
        let view = View {
            unit,
            spread: unpack(pending.spread),
            bins: [state, pending.hour],
            points: [
                unpack(pending.regression),
                features[DAY] * unit,
                features[LONG] * unit,
            ],
            analogs: pending.analogs.map(unpack),
            steps: pending.steps.map(unpack),
        };
        self.track(peak, &view, day, each);
        self.correct(peak, &pending.issued.map(unpack), each);
        self.weigh();
    }

    fn track(&mut self, peak: f32, view: &View, day: f32, each: f32) {
        let overlap = ((1.0 + self.lead as f32 / 8.0) / each).max(1.0);
        let scored = self.scored as f32;
        let rate = (1.0 / (scored / overlap + 10.0)).max(RATE * each);
        let forget = (1.0 / scored).max(each / day);
        let loss_max = LOSS_MAX * view.spread;
        for e in 0..EXPERTS {
            let (centre, unit) = view.of(e);
            let (rate, quantiles) = if e < POINTS {
                (rate, &mut self.offsets[e])
            } else {
                let bin = usize::from(view.bins[e - POINTS]);
                let visits = &mut self.visits[e - POINTS][bin];
                *visits = visits.saturating_add(1);
                let rate = (1.0 / (f32::from(*visits) / overlap + 5.0)).max(TABLE_RATE * each);
                (rate, &mut self.tables[e - POINTS][bin])
            };
            for l in 0..LANES {
                let miss = peak - centre[l] - unit * quantiles[l];
                let side = side(l, miss < 0.0);
                self.losses[e][l] += forget * ((side * miss).min(loss_max) - self.losses[e][l]);
                quantiles[l] += rate * STEP[l] * side;
            }
        }
    }

    fn correct(&mut self, peak: f32, issued: &Lanes, each: f32) {
        let rate = LAST_RATE * each;
        for l in 0..LANES {
            let step = rate * LAST_STEP[l] * side(l, peak < issued[l]);
            self.last[l] = (self.last[l] + step).clamp(-LAST_MAX, LAST_MAX);
        }
    }

    fn weigh(&mut self) {
        let scored = self.scored as f32;
        let trust = scored / (scored + TRUST);
        let mut sums = [0.0; LANES];
        let first = self.losses[0];
        let mut least = first;
        for losses in &self.losses {
            for (least, loss) in least.iter_mut().zip(losses) {
                *least = if *loss < *least { *loss } else { *least };
            }
        }
        for (weights, losses) in self.weights.iter_mut().zip(&self.losses) {
            for l in 0..LANES {
                // Losses of almost nothing must not decide by rounding errors.
                let grain = 1e-3 * first[l] + 1e-12;
                let mut w = 1.0 - trust + trust * (least[l] + grain) / (losses[l] + grain);
                for _ in 0..SQUARINGS {
                    w *= w;
                }
                weights[l] = w;
                sums[l] += w;
            }
        }
        for weights in &mut self.weights {
            for (w, sum) in weights.iter_mut().zip(sums) {
                *w /= sum;
            }
        }
    }

    /// Files the forecast that follows from `now`.
    pub(super) fn file(&mut self, place: usize, now: &Now) {
        let (view, issued) = self.issue(now);
        self.pending[place] = Pending {
            features: now.features.map(pack),
            regression: pack(view.points[0]),
            analogs: now.analogs.map(pack),
            steps: now.steps.map(pack),
            issued: issued.map(pack),
            spread: pack(now.spread),
            hour: now.hour,
        };
    }

    /// What the experts say, and their quantiles together.
    fn issue(&self, now: &Now) -> (View, Lanes) {
        let (low, high) = now.range;
        let regression = (now.unit * self.regression.predict(&now.features)).clamp(low, high);
        let view = View {
            unit: now.unit,
            spread: now.spread,
            bins: [now.state, now.hour],
            points: [
                regression,
                now.features[DAY] * now.unit,
                now.features[LONG] * now.unit,
            ],
            analogs: now.analogs,
            steps: now.steps,
        };
        let mut below = low;
        let mut issued = self.combine(&view);
        for q in &mut issued {
            *q = q.clamp(low, high).max(below);
            below = *q;
        }
        (view, issued)
    }

    fn combine(&self, view: &View) -> Lanes {
        let mut out = self.last.map(|c| view.spread * c);
        for (e, weights) in self.weights.iter().enumerate() {
            let (centre, unit) = view.of(e);
            let quantiles = if e < POINTS {
                &self.offsets[e]
            } else {
                &self.tables[e - POINTS][usize::from(view.bins[e - POINTS])]
            };
            for l in 0..LANES {
                out[l] += weights[l] * (centre[l] + unit * quantiles[l]);
            }
        }
        out
    }

    /// Chance that the largest of the next `lead` samples exceeds `threshold`, which is relative to the last one.
    pub(super) fn exceeds(&self, now: &Now, threshold: f32) -> f64 {
        above(&self.issue(now).1, threshold)
    }
}

/// What a quantile moves by: its level up when the truth lies above, the rest of it down when `below`.
fn side(l: usize, below: bool) -> f32 {
    if below {
        PEAK_LEVELS[l] - 1.0
    } else {
        PEAK_LEVELS[l]
    }
}

/// Chance of exceeding `t`. Between levels the logarithm of the chance is linear in the upper half, the chance
/// itself in the lower one; beyond both ends it goes on exponentially.
fn above(q: &Lanes, t: f32) -> f64 {
    let chance = |l: usize| 1.0 - f64::from(PEAK_LEVELS[l]);
    let width = |a: f32, b: f32| f64::from((b - a).max(f32::MIN_POSITIVE));
    if t < q[0] {
        let widths = f64::from(q[0] - t) / width(q[0], q[1]);
        return 1.0 - (1.0 - chance(0)) * libm::exp(-core::f64::consts::LN_2 * widths);
    }
    for l in 0..LANES - 1 {
        if t < q[l + 1] {
            let part = f64::from(t - q[l]) / width(q[l], q[l + 1]);
            return if l < MEDIAN {
                chance(l) + part * (chance(l + 1) - chance(l))
            } else {
                let (a, b) = (libm::log(chance(l)), libm::log(chance(l + 1)));
                libm::exp(a + part * (b - a))
            };
        }
    }
    let (last, before) = (LANES - 1, LANES - 2);
    let fall = libm::log(chance(before) / chance(last));
    let widths = f64::from(t - q[last]) / width(q[before], q[last]);
    chance(last) * libm::exp(-fall * widths)
}
