//! Offered demand: what requests cost in CPU time, bytes of I/O and bytes of network.
//!
//! ```text
//! used a second = base + demand × requests a second + noise
//! ```
//!
//! Request rates are forecast; utilisation is not, since it is cut off at saturation and leaps when SIM itself moves
//! work. This turns the one into the other, for any server: CPU time counts at reference speed (CPU seconds times the
//! server's speed), so what was learned on one server foretells another.
//!
//! Each resource has a Kalman filter of two states, the base load and the service demand of a request, both walking
//! at random, and noise whose variance grows with the rate (a request's cost varies: so does the sum of many) and
//! shrinks with the window. The noise is estimated from the innovations (Mehra, IEEE Trans. Automatic Control 17
//! (1972), §III, discounted); the covariance is updated in Joseph's form (Bucy & Joseph 1968), which stays positive.
//! Innovations are clipped, and a CUSUM tells a lasting change (a new version of the service), after which it learns
//! anew.
//!
//! A *saturated* sample says only that demand was at least what was used. Taken as it is, it would teach that requests
//! became cheap just when there are too many of them: a false ceiling. It is learned from as a censored one: the
//! innovation is replaced by what a latent one above the bound would be on average, and variance shrinks as far as
//! that tells anything (Tobin, Econometrica 26 (1958); as a filter: Allik et al., IEEE Trans. Control Systems Technology
//! 24 (2016)). A sample of an instance that is *settling*, after its start or while work is moved, is left out.
//!
//! How it fails: where cost depends on the kind of request, a change of the mix is a change of cost, which is followed
//! late, and later still where the first sample's rate was more than ten times the usual one. Where the rate never
//! changes, base and demand can't be told apart; the variance at other rates says so.
//! Memory is no flow and has no model here.
//!
//! ```
//! use sim_core::forecast::service::{Load, Sample, ServiceModel};
//!
//! let mut cpu = ServiceModel::new();
//! for i in 0..200_u32 {
//!     let rate = 50.0 + 40.0 * f64::from(i % 20) / 20.0;
//!     // 2 ms a request and a base of 0.1 CPUs, on a server of half the reference speed.
//!     let used = 15.0 * (0.1 + 0.002 * rate) / 0.5;
//!     cpu.observe(&Sample { seconds: 15.0, requests: 15.0 * rate, used, speed: 0.5, load: Load::Free });
//! }
//! let on_a_fast_server = cpu.predict(200.0, 0.0, 2.0).expect("known");
//! assert!((on_a_fast_server.mean - 0.25).abs() < 0.01);
//! ```

mod filter;

use core::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use super::output::{ForecastStep, LEVELS};
use crate::parity::normal_upper;
use filter::Filter;

/// How loaded an instance was while a sample was taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Load {
    /// It used what it needed.
    #[default]
    Free,
    /// It was at its limit, throttled, or had work waiting: it needed at least what it used.
    Saturated,
    /// It has just started, or work was being moved to it or from it.
    Settling,
}

/// What one instance did in one window.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    /// Length of the window, > 0.
    pub seconds: f64,
    /// Requests that came to it.
    pub requests: f64,
    /// CPU seconds or bytes that it used.
    pub used: f64,
    /// Speed of its server: CPU seconds at reference speed in one of its own. 1 for bytes.
    pub speed: f64,
    /// How loaded it was.
    pub load: Load,
}

/// Samples by what was made of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Learned from.
    pub learned: u64,
    /// Saturated ones, learned from as lower bounds.
    pub censored: u64,
    /// Left out, since the instance was settling.
    pub settling: u64,
    /// Left out, since a number in it makes no sense.
    pub refused: u64,
    /// Times that costs changed for good.
    pub shifts: u64,
}

/// Demand foretold for one rate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Predicted {
    /// CPU seconds or bytes a second.
    pub mean: f64,
    /// Its variance: of the rate, of what is known of costs, and of costs themselves.
    pub variance: f64,
}

impl Predicted {
    /// The quantile at `level` (0..1) of a normal distribution, not below zero.
    #[must_use]
    pub fn quantile(&self, level: f64) -> f64 {
        (self.mean + normal(level) * libm::sqrt(self.variance)).max(0.0)
    }
}

/// Quantile of the standard normal distribution; NaN reads as one half.
fn normal(level: f64) -> f64 {
    if level.is_nan() {
        0.0
    } else if level < 0.5 {
        -normal_upper(level)
    } else {
        normal_upper(1.0 - level)
    }
}

/// Learns what requests cost in one resource. See the [module](self) for how.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ServiceModel {
    filter: Option<Filter>,
    counts: Counts,
    /// Share of samples inside the 90 % band that was foretold for them, discounted, and how many there were.
    inside: f64,
    compared: u64,
}

/// Memory of the coverage, in samples.
const COVERAGE_MEMORY: f64 = 500.0;
/// What makes sense.
const VALUES: RangeInclusive<f64> = 0.0..=1e15;
const SECONDS: RangeInclusive<f64> = 1e-3..=1e9;
const SPEEDS: RangeInclusive<f64> = 1e-6..=1e6;
/// Both rates of the first sample are at least so large, since they are the units of all others.
const LEAST: f64 = 1e-9;

impl ServiceModel {
    /// A model that knows nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes a sample of one instance.
    pub fn observe(&mut self, sample: &Sample) {
        let Sample {
            seconds,
            requests,
            used,
            speed,
            load,
        } = *sample;
        let (rate, use_rate) = (requests / seconds, used * speed / seconds);
        let is_sane = SECONDS.contains(&seconds)
            && SPEEDS.contains(&speed)
            && [rate, use_rate].iter().all(|x| VALUES.contains(x));
        if !is_sane {
            self.counts.refused += 1;
            return;
        }
        if load == Load::Settling {
            self.counts.settling += 1;
            return;
        }
        let Some(filter) = &mut self.filter else {
            if rate >= LEAST && use_rate >= LEAST && load == Load::Free {
                self.filter = Some(Filter::new(rate, use_rate, seconds));
                self.counts.learned += 1;
            } else {
                self.counts.refused += 1;
            }
            return;
        };
        if load == Load::Saturated {
            let has_shifted = filter.censored(rate, use_rate, seconds);
            self.counts.censored += 1;
            self.counts.shifts += u64::from(has_shifted);
            return;
        }
        let (mean, variance) = filter.predict(rate, 0.0, seconds);
        let off = libm::fabs(use_rate - mean);
        let is_inside = off <= normal(0.95) * libm::sqrt(variance);
        self.compared += 1;
        let share = (1.0 / self.compared as f64).max(1.0 / COVERAGE_MEMORY);
        self.inside += share * (f64::from(u8::from(is_inside)) - self.inside);
        let has_shifted = filter.learn(rate, use_rate, seconds);
        self.counts.learned += 1;
        self.counts.shifts += u64::from(has_shifted);
    }

    /// Says that the workload was moved: what servers' speeds are worth to it is known to a tenth only, so the next
    /// samples may correct costs faster.
    pub fn moved(&mut self) {
        if let Some(filter) = &mut self.filter {
            filter.loosen();
        }
    }

    /// Demand a second at `rate_mean` requests a second that vary by `rate_variance`, on one instance on a server of
    /// `speed` (1 for bytes), over a window as long as those that were seen. `None` before anything is known, or
    /// if a number makes no sense.
    #[must_use]
    pub fn predict(&self, rate_mean: f64, rate_variance: f64, speed: f64) -> Option<Predicted> {
        let is_sane = VALUES.contains(&rate_mean)
            && VALUES.contains(&libm::sqrt(rate_variance))
            && SPEEDS.contains(&speed);
        let filter = self.filter.as_ref().filter(|_| is_sane)?;
        let (mean, variance) = filter.predict(rate_mean, rate_variance, filter.window());
        Some(Predicted {
            mean: mean / speed,
            variance: variance / (speed * speed),
        })
    }

    /// Demand that follows from a forecast of the rate. On each side of the median the rate's width and that of
    /// costs add in squares.
    #[must_use]
    pub fn carry(&self, rate: &ForecastStep, speed: f64) -> Option<ForecastStep> {
        let median = rate.quantile(0.5).max(0.0);
        let centre = self.predict(median, 0.0, speed)?;
        let mean = self.predict(rate.mean.max(0.0), 0.0, speed)?.mean;
        let (_, demand) = self.costs()?;
        let own = libm::sqrt(centre.variance);
        let mut quantiles = rate.quantiles;
        for (q, level) in quantiles.iter_mut().zip(LEVELS) {
            let z = normal(level);
            let width = libm::hypot((*q - median) * demand / speed, z * own);
            *q = (centre.mean + libm::copysign(width, z)).max(0.0);
        }
        // The median is its own centre: rounding must not move it.
        quantiles[2] = centre.mean;
        Some(ForecastStep { mean, quantiles })
    }

    /// Base load a second and cost of a request, at reference speed; `None` before anything is known.
    #[must_use]
    pub fn costs(&self) -> Option<(f64, f64)> {
        self.filter.as_ref().map(Filter::costs)
    }

    /// Share of samples inside the 90 % band that was foretold for them; `None` before any could be compared.
    #[must_use]
    pub fn coverage_90(&self) -> Option<f64> {
        (self.compared > 0).then_some(self.inside)
    }

    /// Samples by what was made of them.
    #[must_use]
    pub fn counts(&self) -> &Counts {
        &self.counts
    }
}
