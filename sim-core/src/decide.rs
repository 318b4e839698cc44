//! The decision: what should be, and why. Pure; [`crate::machine`] carries it out.

use crate::forecast::Forecast;
use crate::journal::Report;
use crate::parity::normal_upper;
use crate::policy::Policy;
use crate::workload::Standby;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

/// Bounds of the quantile level that prices may call for: below, a shadow would be started on a
/// coin's toss; above, the forecast has nothing to say.
const LEVEL_MIN: f64 = 0.6;
const LEVEL_MAX: f64 = 0.999;
/// Ticks over which early forecast crossings may not be stale: the first step is "now".
const FIRST_STEP: usize = 1;

/// What the decision stands on.
#[derive(Clone, Debug)]
pub struct View<'a> {
    /// Tunables.
    pub policy: &'a Policy,
    /// Forecast of offered demand in requests per second, once calibrated.
    pub forecast: Option<&'a Forecast>,
    /// Offered demand now, in requests per second.
    pub demand_rps: f64,
    /// Usable capacity of the primary: low, middle, high.
    pub capacity_rps: Option<[f64; 3]>,
    /// Upper lead time without margin, in seconds.
    pub lead_seconds: f64,
    /// Utilisation of the primary's quota in the last window.
    pub utilisation: f64,
    /// Consecutive ticks at which the primary was saturated.
    pub saturated_ticks: u32,
    /// Price of a shadow, per hour.
    pub shadow_hour_price: f64,
    /// Price of a minute outside the SLO.
    pub slo_minute_price: f64,
    /// Standby policy.
    pub standby: Standby,
    /// Telemetry is fresh.
    pub fresh: bool,
}

/// What should be.
#[derive(Clone, Debug, PartialEq)]
pub enum Desired {
    /// Leave everything where it is; says why.
    Stay(String),
    /// The primary should be relieved; says why.
    Move(String),
    /// A warm standby should stand by.
    Standby,
}

/// A decision with its report.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// What should be.
    pub desired: Desired,
    /// The figures it stood on.
    pub report: Report,
}

/// Quantile level at which a shadow is worth its price: the critical ratio of the newsvendor
/// (Arrow, Harris & Marschak 1951, "Optimal Inventory Policy"), cost of being short over cost of
/// being short plus cost of being over.
#[must_use]
pub fn level(slo_minute_price: f64, shadow_hour_price: f64) -> f64 {
    let short = slo_minute_price * 60.0;
    let ratio = if short > 0.0 {
        short / (short + shadow_hour_price)
    } else {
        0.0
    };
    ratio.clamp(LEVEL_MIN, LEVEL_MAX)
}

/// Upper quantile of the arrival *rate* at each step, from the quantile of the step's arrival
/// *count* that was forecast.
///
/// A count scatters around its rate by at least the Poisson variance, `rate / step`. That chance
/// is part of queueing, and so of usable capacity already (the knee lies below 100 % because of
/// it): counting it here again would call a noisy second a saturation. Independent variances
/// add, so half-widths subtract in squares.
pub fn rate_upper(
    forecast: &Forecast,
    level: f64,
    step_seconds: f64,
) -> impl Iterator<Item = f64> + '_ {
    let z = normal_upper(1.0 - level);
    (1..=forecast.steps.len()).map(move |step| {
        let mean = forecast.steps[step - 1].mean.max(0.0);
        let width = (forecast.quantile(step, level) - mean).max(0.0);
        let counting = z * z * mean / step_seconds;
        mean + libm::sqrt((width * width - counting).max(0.0))
    })
}

/// Decides.
#[must_use]
pub fn decide(view: &View<'_>) -> Decision {
    let policy = view.policy;
    let level = level(view.slo_minute_price, view.shadow_hour_price);
    let lead = view.lead_seconds + policy.lead_margin_ms as f64 / 1e3;
    let step_seconds = policy.step_ms as f64 / 1e3;
    let lead_steps =
        (libm::ceil(lead / step_seconds) as usize).clamp(FIRST_STEP, policy.horizon_steps as usize);
    let mut report = Report {
        demand_rps: view.demand_rps,
        capacity_rps: view.capacity_rps,
        lead_seconds: lead,
        level,
        utilisation: view.utilisation,
        ..Report::default()
    };
    let capacity = view.capacity_rps.map(|c| c[1]);
    if let (Some(forecast), Some(capacity)) = (view.forecast, capacity) {
        let upper: Vec<f64> = rate_upper(forecast, level, step_seconds)
            .take(lead_steps)
            .collect();
        report.forecast_rps = upper.iter().copied().fold(0.0, f64::max);
        report.crossing_seconds = upper
            .iter()
            .position(|&rate| rate > capacity)
            .map(|at| (at + 1) as f64 * step_seconds);
    }
    let desired = desired(view, &report);
    Decision { desired, report }
}

fn desired(view: &View<'_>, report: &Report) -> Desired {
    if !view.fresh {
        return Desired::Stay("telemetry is stale: planned moves are frozen".into());
    }
    if view.standby == Standby::None {
        return Desired::Stay("standby is 'none': moves are not allowed".into());
    }
    if view.saturated_ticks >= view.policy.saturated_ticks {
        return Desired::Move(format!(
            "saturated now: {:.0} % of the CPU quota used for {} ticks (reactive floor)",
            view.utilisation * 100.0,
            view.saturated_ticks
        ));
    }
    if view.policy.forecast
        && let (Some(seconds), Some(capacity)) = (report.crossing_seconds, view.capacity_rps)
    {
        return Desired::Move(format!(
            "forecast q{:.1} passes usable capacity {:.0}/s in {seconds:.0} s, lead time is {:.0} s; now {:.0}/s, {:.0}/s by then",
            report.level * 100.0,
            capacity[1],
            report.lead_seconds,
            report.demand_rps,
            report.forecast_rps,
        ));
    }
    if view.standby == Standby::Always {
        return Desired::Standby;
    }
    Desired::Stay(
        match (view.policy.forecast, view.forecast, view.capacity_rps) {
            (false, ..) => "forecast is off; not saturated".into(),
            (true, None, _) => "forecast is not calibrated yet; not saturated".into(),
            (true, _, None) => "capacity is not known yet; not saturated".into(),
            (true, Some(_), Some(c)) => format!(
                "forecast stays at {:.0}/s, below usable capacity {:.0}/s, for {:.0} s",
                report.forecast_rps, c[1], report.lead_seconds
            ),
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(policy: &Policy) -> View<'_> {
        View {
            policy,
            forecast: None,
            demand_rps: 100.0,
            capacity_rps: Some([190.0, 200.0, 210.0]),
            lead_seconds: 30.0,
            utilisation: 0.5,
            saturated_ticks: 0,
            shadow_hour_price: 0.1,
            slo_minute_price: 0.1,
            standby: Standby::Predicted,
            fresh: true,
        }
    }

    #[test]
    fn the_level_is_the_price_ratio() {
        assert!(
            (level(1.0, 60.0) - LEVEL_MIN).abs() < 1e-9,
            "0.5 is raised to the floor"
        );
        assert!((level(1.0, 3.0) - 60.0 / 63.0).abs() < 1e-9);
        assert!((level(0.0, 1.0) - LEVEL_MIN).abs() < 1e-9);
        assert!((level(1.0, 0.0) - LEVEL_MAX).abs() < 1e-9);
    }

    #[test]
    fn without_a_forecast_the_reactive_floor_still_acts() {
        let policy = Policy::default();
        assert!(matches!(decide(&view(&policy)).desired, Desired::Stay(_)));
        let saturated = View {
            saturated_ticks: 3,
            utilisation: 0.97,
            ..view(&policy)
        };
        assert!(matches!(decide(&saturated).desired, Desired::Move(_)));
    }

    #[test]
    fn stale_telemetry_and_a_forbidden_standby_freeze_even_a_saturated_primary() {
        let policy = Policy::default();
        let saturated = View {
            saturated_ticks: 9,
            ..view(&policy)
        };
        for frozen in [
            View {
                fresh: false,
                ..saturated.clone()
            },
            View {
                standby: Standby::None,
                ..saturated
            },
        ] {
            assert!(matches!(decide(&frozen).desired, Desired::Stay(_)));
        }
    }

    #[test]
    fn a_standby_is_held_where_the_operator_asks_for_one() {
        let policy = Policy::default();
        let always = View {
            standby: Standby::Always,
            ..view(&policy)
        };
        assert_eq!(decide(&always).desired, Desired::Standby);
    }
}
