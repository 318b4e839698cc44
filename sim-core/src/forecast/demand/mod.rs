//! Forecasts of demand on the clock's grid: samples a minute to an hour apart, hours ahead.
//!
//! ```text
//! sample ─► asinh ─► experts ─► quantiles around each ─► weighted a level ─► last correction ─► sinh
//!              history, lag search  ▲          ▲                  ▲                 ▲
//!                        regressions learn   pinball           losses            coverage
//! ```
//!
//! * `history`: averages, day and hour profiles, and the features of a moment; `lags` searches a week
//!   of lags for the moments that looked like now.
//! * Experts: naive, a day ago, a week ago, averages, profile, damped Holt-Winters (`smoothing`),
//!   a structural model (`structural`), a Kalman regression a knot (`regression`), two analogs, and
//!   tables of quantiles by hour and by state.
//! * `outcomes` sorts what followed the analogs; `lanes` is the arithmetic of all of it.
//! * `joint` forecasts the largest of the next samples, from which follows whether and when a threshold is crossed.
//! * `volatility` foretells the size of residuals, `tracker` their quantiles, and how far each expert
//!   is trusted at each level.
//!
//! * `events` mixes in what a regression on scheduled events says, where that is better.
//! * `standing` scores what is issued against naive and seasonal naive, and demotes it where it loses.
//! * `intake` makes samples of the grid out of raw ones, `units` follows a change of their unit; [`DemandSeries`]
//!   holds both before the forecaster.
//!
//! One configuration serves every series: all that depends on a series follows from its interval,
//! its bounds and its samples. Each sample costs the same, however many came before, but for a few: while all samples
//! are held (a week of them, 2016 of a 5-minute series), the scale is looked at again after 4, 8, 16 … of them and then once
//! a day, and if it is off they are all told again at once. No clock, no chance, no function of the processor's own: the
//! same samples give the same bits everywhere.
//!
//! ```
//! use sim_core::forecast::demand::{DemandConfig, DemandForecaster};
//!
//! let mut forecaster = DemandForecaster::new(DemandConfig { interval_s: 300, ..DemandConfig::default() });
//! for t in 0..600 {
//!     forecaster.observe(Some(40.0 + f64::from(t % 36)));
//! }
//! let next = forecaster.forecast(1);
//! assert!((next.quantiles[2] - 64.0).abs() < 3.0);
//! assert!(forecaster.probability_of_any_above(74.0, 12) > 0.5);
//! ```

mod engine;
mod events;
mod history;
mod ingredients;
pub mod intake;
mod joint;
mod lags;
mod lanes;
#[cfg(test)]
mod oracle;
mod outcomes;
mod quantiles;
mod regression;
mod series;
mod smoothing;
mod standing;
mod structural;
mod tracker;
mod units;
mod volatility;

use alloc::{vec, vec::Vec};

use serde::{Deserialize, Serialize};

use super::output::{ForecastStep, LEVELS};
use engine::Engine;
use events::Events;
pub use events::{EventRefused, ScheduledEvent};
pub use ingredients::Ingredients;
pub use intake::SampleKind;
pub use series::DemandSeries;
use standing::Standings;
pub use standing::{Reference, Standing};
use tracker::{EXPERTS, POINTS};
use units::{SCALE_MAX, SCALE_MIN};

const DAY_S: u32 = 86_400;
const HOUR_S: u32 = 3_600;
/// Bounds of the interval: below, a week of lags is more than memory and time allow.
const INTERVAL_MIN_S: u32 = 60;
const INTERVAL_MAX_S: u32 = 14_400;
/// Hours ahead when the configuration names no horizon.
const HORIZON_HOURS: u32 = 6;
/// Values beyond this, either way, are read as this.
const VALUE_MAX: f64 = 1e15;
/// Layout of the serialised state.
const VERSION: u32 = 6;
/// Samples before the scale is first chosen anew.
const RESCALE_FIRST: u64 = 4;
/// A scale that is off by less than this factor is left alone.
const RESCALE_FACTOR: f64 = 1.2;
/// The same after two days.
const RESCALE_FACTOR_LATE: f64 = 3.0;
/// Weights of the five inner quantiles in the mean: outer, inner, middle.
const MEAN: [f64; 3] = [0.175, 0.175, 0.3];
const BITS: usize = u32::BITS as usize;
/// Scaled samples beyond this are read as this where they are not transformed: their squares must be finite.
const LINEAR_MAX: f64 = 1e9;

/// What a [`DemandForecaster`] needs to know beforehand.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DemandConfig {
    /// Seconds from sample to sample (60 to 14400; values outside are brought to the nearest bound).
    pub interval_s: u32,
    /// Furthest step that is forecast; 0 means six hours. At most a day.
    pub horizon_steps: u32,
    /// No value lies below this. `None`: below zero, as long as no sample was.
    pub lower: Option<f64>,
    /// No value lies above this (100 for per cent).
    pub upper: Option<f64>,
}

impl Default for DemandConfig {
    fn default() -> Self {
        Self {
            interval_s: 300,
            horizon_steps: 0,
            lower: None,
            upper: None,
        }
    }
}

/// Forecasts one series. See the [module](self) for how.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DemandForecaster {
    version: u32,
    config: DemandConfig,
    ingredients: Ingredients,
    horizon: usize,
    day: usize,
    engine: Engine,
    standings: Standings,
    events: Option<Events>,
    /// When the next sample's interval begins, in seconds since the Unix epoch, if that was told.
    next_s: i64,
    /// A bit for each of the first samples, as many as the history holds: whether it was missing.
    gaps: Vec<u32>,
    scale: f64,
    rescale_at: u64,
    /// Steps since the first sample.
    steps: u64,
    observed: u64,
    negative_seen: bool,
}

impl DemandForecaster {
    /// A forecaster that has seen nothing.
    pub fn new(config: DemandConfig) -> Self {
        Self::with_ingredients(config, Ingredients::ALL)
    }

    /// One that does without some of its parts, to find out what they are worth.
    pub fn with_ingredients(config: DemandConfig, ingredients: Ingredients) -> Self {
        let interval = config.interval_s.clamp(INTERVAL_MIN_S, INTERVAL_MAX_S);
        let day = (DAY_S / interval) as usize;
        let hour = (HOUR_S / interval).max(1) as usize;
        let horizon = match config.horizon_steps {
            0 => (HORIZON_HOURS * HOUR_S / interval).max(1) as usize,
            steps => (steps as usize).min(day),
        };
        let engine = Engine::new(day, hour, horizon, ingredients);
        let capacity = engine.history().capacity();
        let standings = Standings::new(day, engine.leads());
        Self {
            version: VERSION,
            config,
            ingredients,
            horizon,
            day,
            engine,
            standings,
            events: None,
            next_s: 0,
            gaps: vec![0; capacity.div_ceil(BITS)],
            scale: 1.0,
            rescale_at: RESCALE_FIRST,
            steps: 0,
            observed: 0,
            negative_seen: false,
        }
    }

    /// Whether serialised state was written by this layout.
    pub fn is_current(&self) -> bool {
        self.version == VERSION
    }

    /// Furthest step that is forecast.
    pub fn horizon(&self) -> usize {
        self.horizon
    }

    /// Samples seen so far, missing ones left out.
    pub fn observed(&self) -> u64 {
        self.observed
    }

    /// Takes the sample of the next step; `None` or a value that is not finite means it is missing:
    /// nothing is learned then, and state is carried on. Values beyond ±10¹⁵ are read as that.
    pub fn observe(&mut self, sample: Option<f64>) {
        let sample = sample
            .filter(|y| y.is_finite())
            .map(|y| y.clamp(-VALUE_MAX, VALUE_MAX));
        let now_s = self.time_of(1);
        self.next_s = self.next_s.saturating_add(self.interval_s());
        if self.observed == 0 && sample.is_none() {
            return;
        }
        self.observed += u64::from(sample.is_some());
        self.negative_seen |= sample.is_some_and(|y| y < 0.0);
        let at = usize::try_from(self.steps).unwrap_or(usize::MAX);
        if let (None, Some(bits)) = (sample, self.gaps.get_mut(at / BITS)) {
            *bits |= 1 << (at % BITS);
        }
        self.steps += 1;
        let sample_z = sample.map(|y| inward(self.ingredients, y / self.scale));
        if let Some(z) = sample_z {
            self.score(z, now_s);
        }
        self.engine.observe(sample_z);
        if let Some(events) = &mut self.events {
            events.observe(self.steps - 1, now_s, sample_z);
        }
        if self.observed >= self.rescale_at && sample.is_some() {
            self.rescale_at += self.rescale_at.min(self.day as u64);
            self.rescale();
        }
    }

    /// Chooses the scale anew from all samples, as long as all of them are held. If it has changed,
    /// they are told again on the new one.
    fn rescale(&mut self) {
        let (gaps, before, ingredients) = (&self.gaps, self.scale, self.ingredients);
        let is_gap = |i: usize| {
            gaps.get(i / BITS)
                .is_some_and(|bits| bits >> (i % BITS) & 1 == 1)
        };
        let Some(told) = self.engine.told() else {
            return;
        };
        let held = || {
            (0..)
                .zip(told)
                .filter(|(i, _)| !is_gap(*i))
                .map(|(_, z)| z.abs())
        };
        let n = held().count();
        let mean = held()
            .map(|z| outward(ingredients, f64::from(z)) * before)
            .sum::<f64>()
            / n as f64;
        let middle = outward(ingredients, f64::from(median(n, held))) * before;
        // A series that is mostly zero has a median that says nothing.
        let scale = middle.max(0.5 * mean);
        if scale == 0.0 {
            // Nothing but zeros: any scale is right.
            return;
        }
        let scale = scale.clamp(SCALE_MIN, SCALE_MAX);
        let late = self.observed > 2 * self.day as u64;
        let factor = if late {
            RESCALE_FACTOR_LATE
        } else {
            RESCALE_FACTOR
        };
        if scale <= factor * before && before <= factor * scale {
            return;
        }
        let rescale = |z: f64| inward(ingredients, outward(ingredients, z) * before / scale);
        if self.engine.tell_again(rescale, is_gap) {
            self.scale = scale;
            // Losses of another scale are of no use.
            self.standings.reset();
            if let Some(events) = &mut self.events {
                events.reset();
            }
        }
    }

    /// Tells when the next sample's interval begins, in seconds since the Unix epoch. Needed for scheduled events only;
    /// from then on each sample is an interval later.
    pub fn set_clock(&mut self, next_s: i64) {
        self.next_s = next_s;
    }

    /// Takes an event that is known beforehand. The clock must have been [set](Self::set_clock). Asks for memory.
    ///
    /// # Errors
    /// There are too many events, or its intensity is no number.
    pub fn schedule(&mut self, event: ScheduledEvent) -> Result<(), EventRefused> {
        let interval_s = self.interval_s();
        let leads = self.engine.leads();
        self.events
            .get_or_insert_with(|| Events::new(interval_s, leads))
            .add(event, self.next_s)
    }

    /// Takes all events back. What was learned of them is kept.
    pub fn unschedule_all(&mut self) {
        if let Some(events) = &mut self.events {
            events.clear();
        }
    }

    fn interval_s(&self) -> i64 {
        i64::from(self.config.interval_s.clamp(INTERVAL_MIN_S, INTERVAL_MAX_S))
    }

    /// The middle of the interval `step` steps after the last sample.
    fn time_of(&self, step: usize) -> i64 {
        let ahead = (step as i64 - 1) * self.interval_s() + self.interval_s() / 2;
        self.next_s.saturating_add(ahead)
    }

    /// Compares what was issued for the next sample, of the moment `now_s`, with it.
    fn score(&mut self, z: f64, now_s: i64) {
        let day_ago = self.engine.history().ago(self.day - 1);
        for j in 0..self.engine.leads().len() {
            if let Some((last, own)) = self.engine.due(j) {
                let issued = match &mut self.events {
                    None => own,
                    Some(events) => events.score(j, (self.steps - 1, now_s), z, own),
                };
                self.standings.learn(j, z, &issued, [Some(last), day_ago]);
            }
        }
    }

    /// Mean and quantiles `step` steps ahead (1 to the horizon, brought into it). All zero before the first
    /// sample.
    pub fn forecast(&self, step: usize) -> ForecastStep {
        let quantiles = if self.observed == 0 {
            [0.0; LEVELS.len()]
        } else {
            let step = step.clamp(1, self.horizon);
            self.issue(step).map(|z| self.value(z))
        };
        let [outer, inner, middle] = MEAN;
        let [q05, q10, q50, q90, q95, ..] = quantiles;
        ForecastStep {
            mean: outer * (q05 + q95) + inner * (q10 + q90) + middle * q50,
            quantiles,
        }
    }

    /// Quantiles `step` steps ahead on the transformed scale: the engine's own, with weight to what the schedule says
    /// and, where it is demoted, to a reference's.
    fn issue(&self, step: usize) -> [f64; LEVELS.len()] {
        let mut own = self.engine.quantiles(step);
        if let Some(events) = &self.events {
            own = events.issue(self.time_of(step), step, own);
        }
        if !self.standings.is_demoted() {
            return own;
        }
        let history = self.engine.history();
        let last = history.last();
        let day_ago = history.ago(self.day - step).unwrap_or(last);
        self.standings.issue(step, own, [last, day_ago])
    }

    fn value(&self, z: f64) -> f64 {
        let y = outward(self.ingredients, z) * self.scale;
        let y = self.config.upper.map_or(y, |upper| y.min(upper));
        let lower = self.config.lower.or((!self.negative_seen).then_some(0.0));
        lower
            .map_or(y, |lower| y.max(lower))
            .clamp(-10.0 * VALUE_MAX, 10.0 * VALUE_MAX)
    }

    /// Probability that any of the next `steps` samples (1 to the horizon, brought into it) exceeds `threshold`.
    /// It never falls with `steps`. 0 before the first sample and for NaN.
    ///
    /// Not put together from single steps: the largest of the next samples is a target of its own, at some knots. The
    /// steps' own chances only share out what lies between two of them. That target knows nothing of the schedule and
    /// of a demotion. Where there is either, its chance is brought between the largest of the issued steps' chances and
    /// their sum, where it must lie.
    pub fn probability_of_any_above(&self, threshold: f64, steps: usize) -> f64 {
        let steps = steps.clamp(1, self.horizon);
        let inside = match self.inside(threshold) {
            Inside::Never => return 0.0,
            Inside::Always => return 1.0,
            Inside::At(inside) => inside,
        };
        let chance = self.engine.exceeds(inside, steps);
        if !self.is_changed() {
            return chance;
        }
        let (least, most) = self
            .bounds(threshold)
            .take(steps)
            .last()
            .unwrap_or((0.0, 1.0));
        chance.min(most).max(least)
    }

    /// The step by which `threshold` will have been exceeded with a probability of `level` or more (above 0, at
    /// most 1); `None` if there is none up to the horizon. Over all levels these are the quantiles of the time of the
    /// first crossing.
    pub fn first_crossing(&self, threshold: f64, level: f64) -> Option<usize> {
        let is_level = level > 0.0 && level <= 1.0;
        let inside = match self.inside(threshold) {
            Inside::At(inside) if is_level => inside,
            Inside::Always if is_level => return Some(1),
            _ => return None,
        };
        let by_engine = self.engine.first_crossing(inside, level);
        if !self.is_changed() {
            return by_engine;
        }
        let is_reached = |step| by_engine.is_some_and(|first| step >= first);
        (1..=self.horizon)
            .zip(self.bounds(threshold))
            .find(|&(step, (least, most))| least >= level || (most >= level && is_reached(step)))
            .map(|(step, _)| step)
    }

    /// Whether what is issued is not what the engine says.
    fn is_changed(&self) -> bool {
        self.events.is_some() || self.standings.is_demoted()
    }

    /// The largest of the chances of the steps up to each one, as they are issued, and their sum, which is 1 at most.
    fn bounds(&self, threshold: f64) -> impl Iterator<Item = (f64, f64)> {
        (1..=self.horizon).scan((0.0_f64, 0.0_f64), move |(least, most), step| {
            let chance = self.forecast(step).probability_above(threshold);
            (*least, *most) = (least.max(chance), (*most + chance).min(1.0));
            Some((*least, *most))
        })
    }

    /// A threshold as the experts see it.
    fn inside(&self, threshold: f64) -> Inside {
        let DemandConfig { lower, upper, .. } = self.config;
        if self.observed == 0 || threshold.is_nan() || upper.is_some_and(|upper| threshold >= upper)
        {
            Inside::Never
        } else if lower.is_some_and(|lower| threshold < lower) {
            Inside::Always
        } else {
            Inside::At(inward(self.ingredients, threshold / self.scale))
        }
    }

    /// How the experts do at each knot, for display and metrics.
    pub fn scores(&self) -> Vec<KnotScore> {
        self.engine
            .trackers()
            .map(|(lead, tracker)| {
                let (weights, losses) = tracker.medians();
                let (weights, losses) = (weights.map(f64::from), losses.map(f64::from));
                let naive = losses[0];
                let experts = EXPERT_NAMES
                    .iter()
                    .zip(weights.iter().zip(losses))
                    .map(|(&name, (&weight, loss))| ExpertScore {
                        name,
                        weight,
                        relative_loss: (naive > 0.0).then(|| loss / naive),
                    })
                    .collect();
                KnotScore { lead, experts }
            })
            .collect()
    }

    /// How it stands against naive and seasonal naive at each knot.
    pub fn standings(&self) -> impl Iterator<Item = Standing> {
        self.standings.all()
    }

    /// Whether it loses to one of them at any knot, so that weight goes to the reference's quantiles there.
    pub fn is_demoted(&self) -> bool {
        self.standings.is_demoted()
    }

    /// How often that began, over all knots.
    pub fn demotions(&self) -> u64 {
        self.standings.demotions()
    }

    /// Forecasts that were scored one step ahead.
    pub fn scored(&self) -> u64 {
        self.engine.scored()
    }
}

/// A threshold on the transformed scale, if a sample may lie on either side of it.
enum Inside {
    Never,
    Always,
    At(f64),
}

/// A scaled sample as the experts see it, and back.
fn inward(ingredients: Ingredients, y: f64) -> f64 {
    if ingredients.has(Ingredients::TRANSFORM) {
        libm::asinh(y)
    } else {
        y.clamp(-LINEAR_MAX, LINEAR_MAX)
    }
}

fn outward(ingredients: Ingredients, z: f64) -> f64 {
    if ingredients.has(Ingredients::TRANSFORM) {
        libm::sinh(z)
    } else {
        z
    }
}

/// The median of `n` numbers that are not negative. Their bits are in the same order as they are, so it is found
/// bit by bit, which takes no memory.
fn median<I: Iterator<Item = f32>>(n: usize, numbers: impl Fn() -> I) -> f32 {
    let mut found = 0_u32;
    for bit in (0..31).rev() {
        let middle = found | 1 << bit;
        let below = numbers().filter(|x| x.to_bits() < middle).count();
        if below <= n / 2 {
            found = middle;
        }
    }
    f32::from_bits(found)
}

/// Names of the experts, in the order of [`KnotScore::experts`].
pub const EXPERT_NAMES: [&str; EXPERTS] = [
    "naive",
    "day_ago",
    "week_ago",
    "average",
    "day_mean",
    "profile",
    "holt_winters",
    "structural",
    "regression",
    "analog_shape",
    "analog_long",
    "hours",
    "states",
    "analogs",
];
const _: () = assert!(POINTS == 11);

/// How the experts do at one lead.
#[derive(Clone, Debug, PartialEq)]
pub struct KnotScore {
    /// Steps ahead.
    pub lead: usize,
    /// One entry an expert.
    pub experts: Vec<ExpertScore>,
}

/// How one expert does at the median.
#[derive(Clone, Debug, PartialEq)]
pub struct ExpertScore {
    /// Which one.
    pub name: &'static str,
    /// Its share (0 to 1; all sum to 1).
    pub weight: f64,
    /// Recent loss over that of the last value repeated; `None` before any was scored.
    pub relative_loss: Option<f64>,
}
