//! How a control plane begins where an earlier run's core can't be had.

use crate::driver::ControlConfig;
use crate::store::{Store, StoreError};
use sim_core::journal::{Kind, Record};
use sim_core::machine::Core;
use sim_core::name::WorkloadName;
use sim_core::time::Time;

/// Tells that what an operator set since the start of that run is gone with it.
pub(crate) fn lost_state(workload: &WorkloadName, at: Time, why: &str) -> Record {
    Record {
        at,
        workload: workload.clone(),
        kind: Kind::Operator,
        instance: None,
        shadow_bp: 0,
        reason: format!(
            "the state of an earlier run can't be read ({why}): begins anew by the configuration; history still teaches the forecast"
        ),
        report: None,
    }
}

/// Without a snapshot, history still teaches the forecaster what demand was like.
pub(crate) fn prime(
    core: &mut Core,
    store: &Store,
    config: &ControlConfig,
) -> Result<(), StoreError> {
    const STEPS: usize = 7_200;
    let step = config.policy.step();
    for workload in &config.workloads {
        let samples = store.history(&format!("{}/demand_rps", workload.name), STEPS)?;
        let mut regular: Vec<Option<f64>> = Vec::with_capacity(samples.len());
        let mut last: Option<Time> = None;
        for (at, value) in samples {
            let gap = last.map_or(0, |l| {
                (at.since(l).as_secs_f64() / step.as_secs_f64()).round() as usize
            });
            regular.extend(std::iter::repeat_n(None, gap.saturating_sub(1).min(STEPS)));
            regular.push(Some(value));
            last = Some(at);
        }
        core.prime(&workload.name, regular);
    }
    Ok(())
}
