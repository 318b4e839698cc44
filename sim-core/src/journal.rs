//! What was decided, and why: also why nothing was.

use crate::name::{InstanceId, ServerName, WorkloadName};
use crate::time::Time;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use serde::{Deserialize, Serialize};

/// What a record is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Phase `Baseline` began: the first instance is asked for.
    Baseline,
    /// Baseline is over: intervals are calibrated and capacity has a prior.
    Steady,
    /// The forecast, or the reactive floor, asks for a move.
    Trigger,
    /// Candidates were scored and one was chosen.
    Placement,
    /// No server fits.
    NoPlacement,
    /// A shadow is being created.
    Creating,
    /// An instance gave its readiness proof.
    Ready,
    /// The shadow takes a first share of live traffic.
    Warming,
    /// Parity of shadow and primary was proven.
    Parity,
    /// The shadow stays warm as a standby.
    StandbyWarm,
    /// The shadow's share rose.
    Ramp,
    /// The shadow's share fell back.
    StepBack,
    /// All traffic is on the shadow; the old primary drains.
    Draining,
    /// Nothing is in flight on the old primary; roles are swapped, the move can still be undone.
    Baking,
    /// The old primary was terminated.
    Reclaimed,
    /// A move was given up.
    Abort,
    /// The primary died and its shadow took over.
    Failover,
    /// An instance died.
    Died,
    /// Planned moves are frozen: telemetry is missing.
    Frozen,
    /// Telemetry is back.
    Thawed,
    /// The operator changed something.
    Operator,
    /// A command was refused by the invariants: a bug in the core.
    Refused,
}

impl Kind {
    /// The word for it, as tools print and JSON spells it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Baseline => "baseline",
            Self::Steady => "steady",
            Self::Trigger => "trigger",
            Self::Placement => "placement",
            Self::NoPlacement => "no_placement",
            Self::Creating => "creating",
            Self::Ready => "ready",
            Self::Warming => "warming",
            Self::Parity => "parity",
            Self::StandbyWarm => "standby_warm",
            Self::Ramp => "ramp",
            Self::StepBack => "step_back",
            Self::Draining => "draining",
            Self::Baking => "baking",
            Self::Reclaimed => "reclaimed",
            Self::Abort => "abort",
            Self::Failover => "failover",
            Self::Died => "died",
            Self::Frozen => "frozen",
            Self::Thawed => "thawed",
            Self::Operator => "operator",
            Self::Refused => "refused",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}

/// One candidate server, scored or refused.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Candidate {
    /// Which server.
    pub server: ServerName,
    /// Cost-like score, lower is better; absent where refused.
    pub score: Option<f64>,
    /// CPUs that the shadow would get.
    pub cpus: f64,
    /// Predicted utilisation of the shadow at the horizon.
    pub utilisation: f64,
    /// Why it was refused, or what the score is made of.
    pub why: String,
}

/// The figures that a decision stood on.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Offered demand now, in requests per second.
    pub demand_rps: f64,
    /// Usable capacity of the primary, in requests per second, with its interval.
    pub capacity_rps: Option<[f64; 3]>,
    /// Lead time with margin, in seconds.
    pub lead_seconds: f64,
    /// Quantile level that prices call for.
    pub level: f64,
    /// Forecast quantile at the end of the lead time, in requests per second.
    pub forecast_rps: f64,
    /// Seconds until that quantile passes capacity.
    pub crossing_seconds: Option<f64>,
    /// Utilisation of the primary's quota.
    pub utilisation: f64,
    /// Candidates, best first, then the refused.
    pub candidates: Vec<Candidate>,
}

/// One line of the journal.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// When.
    pub at: Time,
    /// Which workload.
    pub workload: WorkloadName,
    /// What.
    pub kind: Kind,
    /// Instance it is about, if one.
    pub instance: Option<InstanceId>,
    /// Share of the shadow, in basis points, after this.
    pub shadow_bp: u16,
    /// The reason, one line for people.
    pub reason: String,
    /// The figures, where a decision was taken.
    pub report: Option<Report>,
}
