//! State of a workload, for people and tools.

use super::workload::{Phase, Workload};
use crate::forecast::LEVELS;
use crate::name::{InstanceId, WorkloadName};
use crate::policy::Policy;
use crate::table::Version;
use crate::time::Time;
use crate::workload::Standby;
use alloc::string::String;
use alloc::vec::Vec;
use serde::Serialize;

/// State of a workload.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Status {
    /// Which.
    pub workload: WorkloadName,
    /// Phase.
    pub phase: Phase,
    /// Standby policy.
    pub standby: Standby,
    /// Primary.
    pub primary: Option<InstanceId>,
    /// Shadow.
    pub shadow: Option<InstanceId>,
    /// Instance on its way out.
    pub retiring: Option<InstanceId>,
    /// Share of the shadow, in basis points.
    pub shadow_bp: u16,
    /// Table in force.
    pub table: Option<Version>,
    /// Offered demand, in requests per second.
    pub demand_rps: f64,
    /// Utilisation of the primary's quota.
    pub utilisation: f64,
    /// Usable capacity of the primary: low, middle, high.
    pub capacity_rps: Option<[f64; 3]>,
    /// CPU-seconds a request.
    pub service_seconds: Option<f64>,
    /// Upper lead time without margin, in seconds.
    pub lead_seconds: f64,
    /// Forecast intervals are calibrated.
    pub calibrated: bool,
    /// Planned moves are frozen.
    pub frozen: bool,
    /// What a baseline, a proof or a start waits for, while it does.
    pub waits_for: Option<String>,
    /// Forecast at each step: mean, median, q95, q99.
    pub forecast: Vec<[f64; 4]>,
    /// Levels the forecast's quantiles are kept at.
    pub levels: [f64; LEVELS.len()],
}

pub(super) fn of(workload: &Workload, policy: &Policy, now: Time) -> Status {
    let forecast = workload.demand.forecast();
    let step = |s: &crate::forecast::ForecastStep| {
        [s.mean, s.quantiles[2], s.quantiles[4], s.quantiles[5]]
    };
    let primary = workload.primary.and_then(|id| workload.instances.get(&id));
    Status {
        workload: workload.spec.name.clone(),
        phase: workload.phase,
        standby: workload.standby,
        primary: workload.primary,
        shadow: workload.shadow,
        retiring: workload.retiring,
        shadow_bp: workload.shadow_bp,
        table: workload
            .table
            .as_ref()
            .map(crate::table::WeightTable::version),
        demand_rps: workload.demand_rps,
        utilisation: primary.map_or(0.0, |i| i.utilisation),
        capacity_rps: primary.and_then(|i| workload.capacity.usable_rps(i.cpus)),
        service_seconds: workload.capacity.service_seconds(),
        lead_seconds: workload.lead_seconds(policy),
        calibrated: workload.demand.is_calibrated(),
        frozen: workload.frozen,
        waits_for: workload.waits_for(policy, now),
        forecast: forecast.steps.iter().map(step).collect(),
        levels: LEVELS,
    }
}
