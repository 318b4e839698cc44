//! What the demonstration promises, and whether it was kept. Pure: figures in, verdict out.

use serde::{Deserialize, Serialize};
use sim_core::journal::Kind;

use super::primary::DearMoment;
use super::settings::RUN_SECONDS_MAX;

/// How the run was meant to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Demand grows and the forecast decides.
    Forecast,
    /// Demand grows and the reactive floor alone decides: the control group.
    Reactive,
    /// Demand stays: nothing may move.
    Flat,
}

/// p50 and p99 of one stretch, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Quantiles {
    /// Median.
    pub p50_ms: f64,
    /// 99th percentile.
    pub p99_ms: f64,
    /// Requests it is made of.
    pub requests: u64,
}

/// The line at the end: every figure of a run. What was not reached is absent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// What the demand was drawn from.
    pub seed: u64,
    /// How the run was meant to go.
    pub mode: Mode,
    /// Requests sent.
    pub requests_sent: u64,
    /// Answered right.
    pub ok: u64,
    /// Not.
    pub failed: u64,
    /// Failed between the shadow's creation and the old primary's end, any method.
    pub failed_planned_move: u64,
    /// Failed after the kill, methods that may be repeated.
    pub failed_kill_idempotent: u64,
    /// Failed after the kill, other methods.
    pub failed_kill_other: u64,
    /// Failed at any other time.
    pub failed_otherwise: u64,
    /// From the load's start to the shadow's creation.
    pub before: Option<Quantiles>,
    /// From the shadow's creation to the old primary's end.
    pub during: Option<Quantiles>,
    /// From there to the kill.
    pub after: Option<Quantiles>,
    /// From the kill to the end.
    pub kill: Option<Quantiles>,
    /// A moment of the move in which the machine was so slow that the primary was full.
    pub dear_moment: Option<DearMoment>,
    /// p99 during over p99 before.
    pub p99_during_over_before: Option<f64>,
    /// From the shadow's readiness to the moment true demand reaches the measured capacity.
    pub lead_left_seconds: Option<f64>,
    /// From death to the last pick of the dead instance.
    pub failover_ms: Option<f64>,
    /// Whose stamp of the death that counts from: `kernel`, or `kill` for the moment before the
    /// call, where the kernel's is not known.
    pub died_seen_by: Option<String>,
    /// CPU time of the probes over that of the machine.
    pub probe_overhead_percent: Option<f64>,
    /// Journal entries.
    pub decisions: u64,
    /// The decisions came in the order they must.
    pub order_ok: bool,
    /// What the sweep found the first instance to carry.
    pub capacity_measured_rps: f64,
    /// What the control plane took it for when it decided.
    pub capacity_estimated_rps: Option<f64>,
    /// From the first line to the verdict.
    pub duration_seconds: f64,
}

/// p99 during the move over p99 before it, at most.
pub const P99_RATIO_MAX: f64 = 1.5;

const ORDER: [Kind; 14] = [
    Kind::Baseline,
    Kind::Steady,
    Kind::Trigger,
    Kind::Placement,
    Kind::Creating,
    Kind::Ready,
    Kind::Warming,
    Kind::Parity,
    Kind::Ramp,
    Kind::Draining,
    Kind::Baking,
    Kind::Reclaimed,
    Kind::StandbyWarm,
    Kind::Failover,
];

const MOVES: [Kind; 12] = [
    Kind::Died,
    Kind::Trigger,
    Kind::Placement,
    Kind::NoPlacement,
    Kind::Creating,
    Kind::Warming,
    Kind::Ramp,
    Kind::StepBack,
    Kind::Draining,
    Kind::Baking,
    Kind::Failover,
    Kind::Abort,
];

/// First way in which the order of decisions is not the promised one.
#[must_use]
pub fn order_broken(mode: Mode, kinds: &[Kind]) -> Option<String> {
    if let Some(kind) = kinds.iter().find(|kind| **kind == Kind::Refused) {
        return Some(format!("the journal holds {kind:?}"));
    }
    if mode == Mode::Flat {
        return match kinds.iter().find(|kind| MOVES.contains(kind)) {
            Some(kind) => Some(format!("{kind:?} happened under constant load")),
            None if !kinds.contains(&Kind::Steady) => Some("Steady is missing".to_owned()),
            None => None,
        };
    }
    if kinds.contains(&Kind::Abort) {
        return Some("a move was given up".to_owned());
    }
    let mut rest = kinds.iter();
    ORDER
        .iter()
        .find(|expected| !rest.any(|kind| kind == *expected))
        .map(|missing| format!("{missing:?} is missing or out of order"))
}

impl Figures {
    /// Promises that were not kept, one line each with figure and bound; empty is success.
    #[must_use]
    pub fn broken(&self, order: Option<String>) -> Vec<String> {
        let mut broken = Vec::new();
        let mut must = |kept: bool, line: String| {
            if !kept {
                broken.push(line);
            }
        };
        must(
            self.requests_sent > 0 && self.requests_sent == self.ok + self.failed,
            format!(
                "requests unaccounted for: {} sent, {} ok + {} failed",
                self.requests_sent, self.ok, self.failed
            ),
        );
        if let Some(order) = order {
            must(false, format!("order of decisions: {order}"));
        }
        let none_of = |count: u64, what: &str| (count == 0, format!("{count} {what}, bound 0"));
        let rules = [
            none_of(
                self.failed_planned_move,
                "requests failed through the planned move",
            ),
            none_of(
                self.failed_kill_idempotent,
                "idempotent requests failed through the kill",
            ),
            none_of(
                self.failed_otherwise,
                "requests failed outside of move and kill",
            ),
        ];
        for (kept, line) in rules {
            must(kept, line);
        }
        must(
            self.duration_seconds <= RUN_SECONDS_MAX as f64,
            format!(
                "{:.0} s from the first line to the verdict, bound {RUN_SECONDS_MAX}",
                self.duration_seconds
            ),
        );
        if self.mode != Mode::Flat {
            must(
                self.failover_ms.is_some(),
                "time to failover was not measured".to_owned(),
            );
            must(
                self.probe_overhead_percent.is_some(),
                "probe overhead was not measured".to_owned(),
            );
        }
        if self.mode == Mode::Forecast {
            must(
                self.p99_during_over_before
                    .is_some_and(|ratio| ratio <= P99_RATIO_MAX),
                format!(
                    "p99 during the move over before: {}, bound {P99_RATIO_MAX}",
                    shown(self.p99_during_over_before)
                ),
            );
            must(
                self.lead_left_seconds.is_some_and(|seconds| seconds > 0.0),
                format!(
                    "lead time left when the shadow was ready: {} s, must be above 0",
                    shown(self.lead_left_seconds)
                ),
            );
        }
        broken
    }
}

/// A figure, or that it is missing.
#[must_use]
pub fn shown(figure: Option<f64>) -> String {
    figure.map_or_else(|| "not measured".to_owned(), |value| format!("{value:.2}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept() -> Figures {
        Figures {
            dear_moment: None,
            seed: 1,
            mode: Mode::Forecast,
            requests_sent: 100,
            ok: 98,
            failed: 2,
            failed_planned_move: 0,
            failed_kill_idempotent: 0,
            failed_kill_other: 2,
            failed_otherwise: 0,
            before: None,
            during: None,
            after: None,
            kill: None,
            p99_during_over_before: Some(1.2),
            lead_left_seconds: Some(12.0),
            failover_ms: Some(0.2),
            died_seen_by: Some("kernel".to_owned()),
            probe_overhead_percent: Some(0.3),
            decisions: 20,
            order_ok: true,
            capacity_measured_rps: 400.0,
            capacity_estimated_rps: None,
            duration_seconds: 200.0,
        }
    }

    #[test]
    fn each_broken_promise_is_named_alone() {
        assert_eq!(kept().broken(None), Vec::<String>::new());
        let cases: [(Figures, &str); 11] = [
            (
                Figures {
                    duration_seconds: 241.0,
                    ..kept()
                },
                "first line",
            ),
            (Figures { ok: 97, ..kept() }, "unaccounted"),
            (
                Figures {
                    failed_planned_move: 1,
                    ..kept()
                },
                "planned move",
            ),
            (
                Figures {
                    failed_kill_idempotent: 1,
                    ..kept()
                },
                "idempotent",
            ),
            (
                Figures {
                    failed_otherwise: 1,
                    ..kept()
                },
                "outside",
            ),
            (
                Figures {
                    p99_during_over_before: Some(1.6),
                    ..kept()
                },
                "p99",
            ),
            (
                Figures {
                    p99_during_over_before: None,
                    ..kept()
                },
                "p99",
            ),
            (
                Figures {
                    lead_left_seconds: Some(-0.5),
                    ..kept()
                },
                "lead time",
            ),
            (
                Figures {
                    lead_left_seconds: None,
                    ..kept()
                },
                "lead time",
            ),
            (
                Figures {
                    failover_ms: None,
                    ..kept()
                },
                "failover",
            ),
            (
                Figures {
                    probe_overhead_percent: None,
                    ..kept()
                },
                "overhead",
            ),
        ];
        for (figures, word) in cases {
            let broken = figures.broken(None);
            assert_eq!(broken.len(), 1, "{broken:?}");
            assert!(broken[0].contains(word), "{broken:?} names {word}");
        }
        assert_eq!(
            kept().broken(Some("x".to_owned())),
            ["order of decisions: x"]
        );
    }

    #[test]
    fn a_reactive_run_owes_neither_lead_time_nor_tail() {
        let late = Figures {
            mode: Mode::Reactive,
            p99_during_over_before: Some(9.0),
            lead_left_seconds: Some(-9.0),
            ..kept()
        };
        assert_eq!(late.broken(None), Vec::<String>::new());
    }

    #[test]
    fn the_promised_order_may_hold_more_but_not_less() {
        let mut kinds = ORDER.to_vec();
        kinds.insert(1, Kind::Ready);
        kinds.insert(10, Kind::StepBack);
        kinds.insert(11, Kind::Ramp);
        assert_eq!(order_broken(Mode::Forecast, &kinds), None);
        for missing in 0..ORDER.len() {
            let mut kinds = ORDER.to_vec();
            let kind = kinds.remove(missing);
            let broken = order_broken(Mode::Reactive, &kinds).unwrap();
            assert!(broken.contains(&format!("{kind:?}")), "{broken}");
        }
        let mut swapped = ORDER.to_vec();
        swapped.swap(7, 8);
        assert!(order_broken(Mode::Forecast, &swapped).is_some());
        kinds.push(Kind::Abort);
        assert!(order_broken(Mode::Forecast, &kinds).is_some());
    }

    #[test]
    fn under_constant_load_nothing_may_move() {
        let still = [Kind::Baseline, Kind::Ready, Kind::Steady];
        assert_eq!(order_broken(Mode::Flat, &still), None);
        assert!(order_broken(Mode::Flat, &still[..2]).is_some());
        for kind in MOVES {
            let broken = order_broken(Mode::Flat, &[Kind::Baseline, Kind::Steady, kind]).unwrap();
            assert!(broken.contains(&format!("{kind:?}")), "{broken}");
        }
    }
}
