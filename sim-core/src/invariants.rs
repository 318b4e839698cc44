//! What must never happen, checked on every command, whichever driver runs the core.
//!
//! The rules stand apart from the code that obeys them, so that one mistake does not hide in
//! both. A command that breaks one is dropped and journaled as `refused`.

use crate::command::Command;
use crate::name::InstanceId;
use crate::table::{Version, WeightTable};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

/// What the rules need to know of an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Health {
    /// Which.
    pub instance: InstanceId,
    /// Proven ready, and not dead nor asked to stop.
    pub healthy: bool,
}

/// What the rules need to know of a workload.
#[derive(Clone, Debug)]
pub struct Facts<'a> {
    /// Its instances.
    pub copies: Vec<Health>,
    /// Table in force.
    pub table: Option<&'a WeightTable>,
    /// Telemetry is fresh.
    pub fresh: bool,
    /// The command belongs to a failover or an abort, not to a planned move.
    pub unplanned: bool,
}

/// Whether `command` keeps every rule.
///
/// # Errors
/// The first rule it breaks, in one line.
pub fn check(facts: &Facts<'_>, command: &Command) -> Result<(), String> {
    match command {
        Command::Start { cpus, .. } if !(cpus.is_finite() && *cpus > 0.0) => {
            Err(format!("an instance can't have {cpus} CPUs"))
        }
        Command::Start { .. } if !facts.fresh && !facts.unplanned => {
            Err("a planned move on stale telemetry".into())
        }
        Command::Start { .. } => Ok(()),
        Command::Stop { instance, .. } => check_stop(facts, *instance),
        Command::Publish(table) => check_table(facts, table),
    }
}

fn healthy(facts: &Facts<'_>, instance: InstanceId) -> bool {
    facts
        .copies
        .iter()
        .any(|c| c.instance == instance && c.healthy)
}

fn check_stop(facts: &Facts<'_>, instance: InstanceId) -> Result<(), String> {
    let weight = facts.table.map_or(0, |t| t.weight_bp(instance));
    if healthy(facts, instance) {
        if !facts
            .copies
            .iter()
            .any(|c| c.healthy && c.instance != instance)
        {
            return Err(format!("{instance} is the last healthy copy"));
        }
        if weight > 0 {
            return Err(format!("{instance} still has {weight} bp of the traffic"));
        }
    }
    Ok(())
}

fn check_table(facts: &Facts<'_>, table: &WeightTable) -> Result<(), String> {
    let old = facts.table.map_or(Version::default(), WeightTable::version);
    if table.version() <= old {
        return Err(format!("table {} does not follow {old}", table.version()));
    }
    for share in table.shares() {
        if share.ready && !healthy(facts, share.instance) {
            return Err(format!("{} is listed as ready and is not", share.instance));
        }
        let before = facts.table.map_or(0, |t| t.weight_bp(share.instance));
        let first = facts
            .table
            .is_none_or(|t| t.shares().iter().all(|s| s.weight_bp == 0));
        if share.weight_bp > before && !first && !facts.fresh && !facts.unplanned {
            return Err(format!(
                "the weight of {} rises on stale telemetry",
                share.instance
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::{ServerName, WorkloadName};
    use crate::table::Share;

    use core::time::Duration;

    fn table(generation: u64, weights: &[(u64, u16)]) -> WeightTable {
        let share = |&(id, weight_bp): &(u64, u16)| Share {
            instance: InstanceId(id),
            address: ([127, 0, 0, 1], 80).into(),
            weight_bp,
            ready: true,
        };
        WeightTable::new(
            WorkloadName::new("web").expect("valid"),
            Version {
                epoch: 1,
                generation,
            },
            weights.iter().map(share).collect(),
        )
        .expect("valid")
    }

    fn facts<'a>(table: Option<&'a WeightTable>, healthy: &[u64]) -> Facts<'a> {
        let copy = |&id: &u64| Health {
            instance: InstanceId(id),
            healthy: true,
        };
        Facts {
            copies: healthy.iter().map(copy).collect(),
            table,
            fresh: true,
            unplanned: false,
        }
    }

    fn stop(id: u64) -> Command {
        Command::Stop {
            instance: InstanceId(id),
            server: ServerName::new("a").expect("valid"),
            grace: Duration::ZERO,
        }
    }

    #[test]
    fn the_last_healthy_copy_and_one_with_traffic_are_not_stopped() {
        let now = table(4, &[(1, 10_000), (2, 0)]);
        assert!(check(&facts(Some(&now), &[1]), &stop(1)).is_err());
        assert!(check(&facts(Some(&now), &[1, 2]), &stop(1)).is_err());
        assert!(check(&facts(Some(&now), &[1, 2]), &stop(2)).is_ok());
        assert!(
            check(&facts(Some(&now), &[1]), &stop(2)).is_ok(),
            "a dead one may be fenced"
        );
    }

    #[test]
    fn an_old_table_and_an_unready_weight_are_refused() {
        let now = table(4, &[(1, 10_000)]);
        let publish = |t: &WeightTable, healthy: &[u64]| {
            check(&facts(Some(&now), healthy), &Command::Publish(t.clone()))
        };
        assert!(publish(&table(4, &[(1, 10_000)]), &[1]).is_err());
        assert!(publish(&table(5, &[(1, 9_900), (2, 100)]), &[1]).is_err());
        assert!(publish(&table(5, &[(1, 9_900), (2, 100)]), &[1, 2]).is_ok());
    }

    #[test]
    fn stale_telemetry_stops_planned_raises_but_not_a_failover() {
        let now = table(4, &[(1, 10_000), (2, 0)]);
        let next = Command::Publish(table(5, &[(1, 0), (2, 10_000)]));
        let stale = Facts {
            fresh: false,
            ..facts(Some(&now), &[1, 2])
        };
        assert!(check(&stale, &next).is_err());
        assert!(
            check(
                &Facts {
                    unplanned: true,
                    ..stale
                },
                &next
            )
            .is_ok()
        );
    }

    #[test]
    fn an_instance_without_cpus_is_not_started() {
        let command = Command::Start {
            instance: InstanceId(1),
            workload: WorkloadName::new("web").expect("valid"),
            server: ServerName::new("a").expect("valid"),
            cpus: 0.0,
        };
        assert!(check(&facts(None, &[]), &command).is_err());
    }
}
