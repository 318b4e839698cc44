//! Streaming probabilistic forecasts of one evenly spaced series.
//!
//! ```text
//! sample ─► models ─► combined mean ─► calibrated quantiles
//!             ▲           ▲                  ▲
//!      season finder   own recent loss    own recent residuals
//! ```
//!
//! * Models: three Kalman-filtered structural models (`kalman`: no trend, slow trend, quick
//!   trend; season by harmonics), damped Holt–Winters (`holt_winters`), and naive, seasonal naive
//!   and an average as reference (`reference`).
//! * `season` finds the season where the operator names none. When it changes, the models, their
//!   weights and their calibration are rebuilt by replaying the recent samples.
//! * `ensemble` weights the models at each lead by recent loss and demotes those that lose to a
//!   reference; `conformal` turns residuals of the combined forecast into intervals.
//!
//! One call of [`Forecaster::observe`] a step, in O(1) time and memory: cost and state depend on
//! the configuration, never on the number of samples. Missing samples, spikes, level shifts, and
//! values that are not numbers are normal input. The same samples give the same bits everywhere.
//!
//! ```
//! use sim_core::forecast::{Forecaster, ForecasterConfig};
//!
//! let mut forecaster = Forecaster::new(ForecasterConfig::default());
//! for t in 0..200 {
//!     forecaster.observe(Some(100.0 + f64::from(t % 7)));
//! }
//! let forecast = forecaster.forecast();
//! assert!(forecaster.is_calibrated());
//! assert_eq!(forecast.first_crossing(160.0, 0.99, 60), None);
//! ```

mod conformal;
pub mod demand;
mod engine;
mod ensemble;
mod harmonics;
mod holt_winters;
mod kalman;
mod output;
mod reference;
mod season;
pub mod service;
mod shift;

use alloc::{collections::VecDeque, vec::Vec};

use serde::{Deserialize, Serialize};

use engine::Engine;
pub use ensemble::Model;
use harmonics::SEASONS_MAX;
pub use output::{Forecast, ForecastStep, LEVELS};
use season::SeasonFinder;

/// Bounds of the configuration; values outside are brought to the nearest bound.
const HORIZON_MAX: usize = 1024;
const SEASON_KNOWN_MAX: u32 = 4096;
const SEASON_FOUND_MAX: usize = 512;
/// Values larger than this, either way, are read as this. Squares of it are far from overflow.
const VALUE_MAX: f64 = 1e15;
/// The lead at which samples are counted before intervals are called calibrated.
const CALIBRATION_LEAD: usize = 32;

/// What a [`Forecaster`] needs to know about its series beforehand.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForecasterConfig {
    /// Calendar seasons given by the operator, in steps: a day, a week. May be empty. Used: the
    /// two shortest within `2..=4096`.
    pub season_steps_known: Vec<u32>,
    /// Longest season that may be detected, in steps (at most 512; below 4: no detection). Where
    /// a known season is used none is searched for: on real traces a second, detected one made
    /// forecasts slightly worse.
    pub season_steps_max: u32,
    /// Steps to forecast (`1..=1024`).
    pub horizon_steps: u32,
    /// Samples scored 32 steps ahead (or at the horizon, if nearer) before the intervals count as
    /// calibrated. The first such score comes 40 samples after the start.
    pub calibrated_after: u32,
}

impl Default for ForecasterConfig {
    /// One-second samples, a lead time of up to a minute and a half.
    fn default() -> Self {
        Self {
            season_steps_known: Vec::new(),
            season_steps_max: 120,
            horizon_steps: 90,
            calibrated_after: 24,
        }
    }
}

/// Forecasts one series. See the [module](self) for how.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Forecaster {
    config: ForecasterConfig,
    seasons_known: Vec<f64>,
    finder: Option<SeasonFinder>,
    engine: Engine,
    /// What the season finder looks at and what a new engine is seeded from.
    recent: VecDeque<Option<f64>>,
    samples_seen: u64,
    negative_seen: bool,
    calibrated: bool,
}

impl Forecaster {
    /// A forecaster that has seen nothing. Configuration values out of range are clamped.
    pub fn new(config: ForecasterConfig) -> Self {
        let horizon = horizon(&config);
        let mut known: Vec<u32> = config.season_steps_known.clone();
        known.retain(|p| (2..=SEASON_KNOWN_MAX).contains(p));
        known.sort_unstable();
        known.dedup();
        known.truncate(SEASONS_MAX);
        let period_max = (config.season_steps_max as usize).min(SEASON_FOUND_MAX);
        let finder = known
            .is_empty()
            .then(|| SeasonFinder::new(period_max, horizon));
        let seasons_known: Vec<f64> = known.iter().map(|&p| f64::from(p)).collect();
        Self {
            engine: Engine::new(&seasons_known, horizon),
            recent: VecDeque::with_capacity(finder.as_ref().map_or(0, SeasonFinder::window_max)),
            config,
            seasons_known,
            finder,
            samples_seen: 0,
            negative_seen: false,
            calibrated: false,
        }
    }

    /// Takes the sample of the next step; `None` or a value that is not finite means it is
    /// missing. Values beyond ±10¹⁵ are read as that bound.
    ///
    /// When the detected season changes, up to three of the longest detectable seasons of samples
    /// are replayed within this call (a few milliseconds, rare).
    pub fn observe(&mut self, sample: Option<f64>) {
        let sample = sample
            .filter(|y| y.is_finite())
            .map(|y| y.clamp(-VALUE_MAX, VALUE_MAX));
        self.samples_seen = self.samples_seen.saturating_add(1);
        self.negative_seen |= sample.is_some_and(|y| y < 0.0);
        self.engine.observe(sample);
        if let Some(finder) = &mut self.finder {
            if self.recent.len() >= finder.window_max() {
                self.recent.pop_front();
            }
            self.recent.push_back(sample);
            let regime = usize::try_from(self.engine.regime_samples()).unwrap_or(usize::MAX);
            let recent = &self.recent;
            if finder.observe(|| filled(recent, regime)) {
                let season = finder.current();
                self.engine = Engine::new(season.as_slice(), horizon(&self.config));
                for &sample in &self.recent {
                    self.engine.observe(sample);
                }
            }
        }
        let open = self.finder.as_ref().is_some_and(SeasonFinder::is_open);
        self.calibrated |= !open
            && self.engine.scored(CALIBRATION_LEAD) >= u64::from(self.config.calibrated_after);
    }

    /// Mean and quantiles for steps `1..=horizon_steps` after the last sample. All zero before the
    /// first one. Lower bounds are cut at zero as long as no sample was negative.
    pub fn forecast(&self) -> Forecast {
        let mut steps = self.engine.forecast();
        for step in &mut steps {
            let ForecastStep { mean, quantiles } = step;
            for value in quantiles.iter_mut().chain([mean]) {
                if !self.negative_seen {
                    *value = value.max(0.0);
                }
            }
        }
        Forecast {
            steps,
            made_at: self.samples_seen,
            calibrated: self.is_calibrated(),
        }
    }

    /// Whether intervals rest on enough scored samples ([`ForecasterConfig::calibrated_after`]) and
    /// no season is suspected that the samples are still too few to show (decided at the latest
    /// after `season_steps_max` samples). Once true it stays true.
    pub fn is_calibrated(&self) -> bool {
        self.calibrated
    }

    /// Steps observed so far, present or missing.
    pub fn samples_seen(&self) -> u64 {
        self.samples_seen
    }

    /// How each model is doing, for display and metrics.
    pub fn scores(&self) -> Scores {
        let ensemble = self.engine.ensemble();
        let models = Model::ALL
            .iter()
            .enumerate()
            .map(|(m, &model)| {
                let (relative_loss, weight, demoted) = ensemble.summary(m);
                ModelScore {
                    model,
                    relative_loss,
                    weight,
                    demoted,
                }
            })
            .collect();
        let coverage: Vec<LeadCoverage> = self
            .engine
            .coverage()
            .filter(|&(_, _, compared)| compared > 0)
            .map(|(steps, coverage_90, compared)| LeadCoverage {
                steps: steps as u32,
                coverage_90,
                compared,
            })
            .collect();
        let n = coverage.len() as f64;
        let mean = coverage.iter().map(|c| c.coverage_90).sum::<f64>() / n.max(1.0);
        let detected = self.finder.as_ref().and_then(SeasonFinder::current);
        let primary = self.seasons_known.first().copied().or(detected);
        Scores {
            models,
            season_steps: primary.map(|p| libm::round(p) as u32),
            season_steps_detected: detected,
            coverage_90: (n > 0.0).then_some(mean),
            coverage_90_by_lead: coverage,
        }
    }
}

fn horizon(config: &ForecasterConfig) -> usize {
    (config.horizon_steps as usize).clamp(1, HORIZON_MAX)
}

/// The last `count` samples with gaps filled by the value before them.
fn filled(recent: &VecDeque<Option<f64>>, count: usize) -> Vec<f64> {
    let window = recent.iter().skip(recent.len().saturating_sub(count));
    let mut last = window.clone().find_map(|y| *y).unwrap_or(0.0);
    window
        .map(|y| {
            last = y.unwrap_or(last);
            last
        })
        .collect()
}

/// How the forecaster's parts are doing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scores {
    /// One entry a model, references included, in the order of [`Model::ALL`].
    pub models: Vec<ModelScore>,
    /// The season in use by the slot-wise models, in steps, known or detected.
    pub season_steps: Option<u32>,
    /// The detected season in steps, to a fraction of a step.
    pub season_steps_detected: Option<f64>,
    /// Share of recent samples inside the 90 % band issued for them, averaged over the leads;
    /// `None` before any could be compared.
    pub coverage_90: Option<f64>,
    /// The same for each knot lead.
    pub coverage_90_by_lead: Vec<LeadCoverage>,
}

/// How one model is doing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelScore {
    /// Which model.
    pub model: Model,
    /// Recent mean absolute error over that of the naive forecast, averaged over the leads; below
    /// 1 is better than naive. `None` before any forecast was scored.
    pub relative_loss: Option<f64>,
    /// Share in the combined forecast, averaged over the leads (0..=1; all sum to 1).
    pub weight: f64,
    /// Whether the model has lost to naive or seasonal naive at most leads and has no say there.
    pub demoted: bool,
}

/// Coverage at one lead.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LeadCoverage {
    /// Lead in steps.
    pub steps: u32,
    /// Share of samples inside the 90 % band (0..=1), the last 500 or so counting most.
    pub coverage_90: f64,
    /// Samples compared.
    pub compared: u64,
}
