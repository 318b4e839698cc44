//! Tunables of the decision core, with their defaults and why.

use core::time::Duration;
use serde::{Deserialize, Serialize};

/// How the core decides. One set for all workloads.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Policy {
    /// Length of a sample window and of a forecast step, in milliseconds.
    pub step_ms: u64,
    /// "Demand now" is the rate over the last so many milliseconds, in reports and where a share
    /// is weighed against capacity. The forecast takes each step's own rate.
    pub demand_window_ms: u64,
    /// Forecast steps.
    pub horizon_steps: u32,
    /// `false`: the reactive floor alone decides (a control group for the forecast).
    pub forecast: bool,
    /// Added to the lead time, in milliseconds: a decision that is late by a little is a miss.
    pub lead_margin_ms: u64,
    /// Consecutive ticks a forecast must ask for a move before one starts.
    pub confirm_ticks: u32,
    /// Utilisation at which queueing is still tame, as a prior until it is learned; 0 < u < 1.
    pub utilisation_usable: f64,
    /// Utilisation aimed at on the new server at the forecast's upper quantile; 0 < u < 1.
    pub utilisation_target: f64,
    /// Reactive floor: utilisation at or above this is saturation now.
    pub utilisation_saturated: f64,
    /// Reactive floor: share of time throttled by the own quota at or above this is saturation.
    pub throttled_saturated: f64,
    /// Consecutive saturated ticks before the reactive floor acts.
    pub saturated_ticks: u32,
    /// Shadow's first and last share while it warms, in basis points.
    pub warm_bp: [u16; 2],
    /// First attempts that the shadow must have answered before parity is judged.
    pub parity_requests_min: u64,
    /// False alarm rate of one whole parity test, over all its looks; 0 < alpha < 1.
    pub parity_alpha: f64,
    /// How much slower than the primary a shadow's mean may be, as a ratio >= 1.
    pub parity_mean_ratio: f64,
    /// Differences of means below this don't matter, in milliseconds.
    pub parity_slack_ms: f64,
    /// Share of the shadow at each ramp step, in basis points, rising, ending in 10 000.
    pub ramp_bp: [u16; 5],
    /// Shortest stay on a ramp step, in milliseconds.
    pub ramp_step_ms: u64,
    /// A phase that proves nothing for so long is aborted, in milliseconds.
    pub phase_timeout_ms: u64,
    /// Old primary is kept idle for so long after the move, in milliseconds.
    pub bake_ms: u64,
    /// A drain with requests in flight after that goes on to bake anyway, and says so, once every proxy
    /// has taken the table over; in milliseconds.
    pub drain_timeout_ms: u64,
    /// Time between SIGTERM and SIGKILL for an instance that is terminated, in milliseconds.
    pub stop_grace_ms: u64,
    /// Shortest time between the end of one planned move and the start of the next.
    pub move_pause_ms: u64,
    /// Telemetry older than this freezes planned moves, in milliseconds.
    pub stale_ms: u64,
    /// Seasons that the operator knows, in steps.
    pub season_steps: alloc::vec::Vec<u32>,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            step_ms: 1_000,
            demand_window_ms: 5_000,
            horizon_steps: 90,
            forecast: true,
            lead_margin_ms: 10_000,
            confirm_ticks: 3,
            utilisation_usable: 0.80,
            utilisation_target: 0.55,
            utilisation_saturated: 0.90,
            throttled_saturated: 0.25,
            saturated_ticks: 3,
            warm_bp: [100, 500],
            parity_requests_min: 60,
            parity_alpha: 0.01,
            parity_mean_ratio: 1.25,
            parity_slack_ms: 5.0,
            ramp_bp: [1_500, 3_500, 6_000, 8_500, 10_000],
            ramp_step_ms: 2_000,
            phase_timeout_ms: 60_000,
            bake_ms: 10_000,
            drain_timeout_ms: 30_000,
            stop_grace_ms: 5_000,
            move_pause_ms: 30_000,
            stale_ms: 5_000,
            season_steps: alloc::vec::Vec::new(),
        }
    }
}

impl Policy {
    /// First broken rule, as `(key, what is allowed)`.
    ///
    /// # Errors
    /// Names the key and what it may be.
    pub fn validate(&self) -> Result<(), (&'static str, &'static str)> {
        let unit = |x: f64| x > 0.0 && x < 1.0;
        let positive = |x: f64| x.is_finite() && x >= 0.0;
        let rules: [(bool, &str, &str); 18] = [
            (
                (100..=60_000).contains(&self.step_ms),
                "step_ms",
                "100 to 60000",
            ),
            (
                self.demand_window_ms >= self.step_ms && self.demand_window_ms <= 600_000,
                "demand_window_ms",
                "step_ms to 600000",
            ),
            (
                (2..=512).contains(&self.horizon_steps),
                "horizon_steps",
                "2 to 512",
            ),
            (self.confirm_ticks >= 1, "confirm_ticks", "1 or more"),
            (self.saturated_ticks >= 1, "saturated_ticks", "1 or more"),
            (
                unit(self.utilisation_usable),
                "utilisation_usable",
                "between 0 and 1",
            ),
            (
                unit(self.utilisation_target),
                "utilisation_target",
                "between 0 and 1",
            ),
            (
                unit(self.utilisation_saturated),
                "utilisation_saturated",
                "between 0 and 1",
            ),
            (
                unit(self.throttled_saturated),
                "throttled_saturated",
                "between 0 and 1",
            ),
            (unit(self.parity_alpha), "parity_alpha", "between 0 and 1"),
            (
                self.parity_mean_ratio.is_finite() && self.parity_mean_ratio >= 1.0,
                "parity_mean_ratio",
                "1 or more",
            ),
            (
                positive(self.parity_slack_ms),
                "parity_slack_ms",
                "0 or more",
            ),
            (
                self.parity_requests_min >= 1,
                "parity_requests_min",
                "1 or more",
            ),
            (
                self.phase_timeout_ms > self.ramp_step_ms,
                "phase_timeout_ms",
                "more than ramp_step_ms",
            ),
            (
                self.lead_margin_ms <= 3_600_000,
                "lead_margin_ms",
                "0 to 3600000",
            ),
            (
                self.warm_bp[0] >= 1
                    && self.warm_bp[0] <= self.warm_bp[1]
                    && self.warm_bp[1] <= 500,
                "warm_bp",
                "two rising shares from 1 to 500 basis points",
            ),
            (
                self.ramp_bp.windows(2).all(|w| w[0] < w[1])
                    && self.ramp_bp[0] > self.warm_bp[1]
                    && self.ramp_bp[4] == 10_000,
                "ramp_bp",
                "five rising shares above warm_bp that end in 10000",
            ),
            (
                self.stale_ms >= self.step_ms,
                "stale_ms",
                "at least step_ms",
            ),
        ];
        rules
            .iter()
            .find(|r| !r.0)
            .map_or(Ok(()), |r| Err((r.1, r.2)))
    }

    /// One step.
    #[must_use]
    pub fn step(&self) -> Duration {
        Duration::from_millis(self.step_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_valid_and_a_broken_rule_is_named() {
        assert_eq!(Policy::default().validate(), Ok(()));
        let broken = Policy {
            utilisation_target: 1.5,
            ..Policy::default()
        };
        assert_eq!(
            broken.validate(),
            Err(("utilisation_target", "between 0 and 1"))
        );
    }
}
