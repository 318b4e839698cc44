//! What the operator says of a workload.

use crate::name::{ServerName, WorkloadName};
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::time::Duration;
use serde::{Deserialize, Serialize};

/// Service level objective: `quantile` of latencies stay within `bound`, and at most
/// `error_budget` of requests fail, over any `window`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Slo {
    /// 0 < quantile < 1.
    pub quantile: f64,
    /// > 0.
    pub bound: Duration,
    /// > 0.
    pub window: Duration,
    /// 0 <= budget < 1.
    pub error_budget: f64,
}

/// When a warm shadow stands ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Standby {
    /// Always; its price is in the plan.
    Always,
    /// Only when the forecast asks for one.
    Predicted,
    /// Never: SIM reports, but creates nothing.
    None,
}

impl fmt::Display for Standby {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Always => "always",
            Self::Predicted => "predicted",
            Self::None => "none",
        })
    }
}

/// How an instance proves that it is ready.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Readiness {
    /// Path that must answer 2xx.
    pub path: String,
    /// Consecutive good answers asked for, >= 1.
    pub successes: u32,
    /// Pause between tries.
    pub interval: Duration,
    /// An instance that isn't ready by then is given up.
    pub timeout: Duration,
}

/// One service behind one address.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WorkloadSpec {
    /// Its name.
    pub name: WorkloadName,
    /// Program and arguments; `{address}` and `{port}` are replaced.
    pub command: Vec<String>,
    /// Environment, name and value.
    pub environment: Vec<(String, String)>,
    /// CPU of the first instance, in CPUs. A shadow gets what the forecast asks for.
    pub cpus: f64,
    /// Memory of an instance, in bytes.
    pub memory_bytes: u64,
    /// Where the first instance starts.
    pub home: ServerName,
    /// Objective.
    pub slo: Slo,
    /// Readiness proof.
    pub readiness: Readiness,
    /// Standby policy at start; can be changed while it runs.
    pub standby: Standby,
    /// What a minute outside the SLO costs, in the currency of the servers' prices.
    pub slo_minute_price: f64,
}
