//! Which requests are a workload's: `workload.route`.

use super::ConfigError;
use super::Workload;
use super::validate::Rules;
use serde::Deserialize;
use sim_proxy::matching::{Condition, shared};
use std::collections::BTreeMap;

/// One of `workload.route`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RouteTable {
    host: Option<String>,
    path: Option<String>,
    #[serde(default)]
    header: BTreeMap<String, String>,
}

/// The conditions that a workload's routes state.
pub(super) fn conditions(
    rules: &Rules<'_>,
    tables: &[RouteTable],
) -> Result<Vec<Condition>, ConfigError> {
    let condition = |(at, table): (usize, &RouteTable)| {
        let fields = table.header.iter().map(|(n, v)| (n.as_str(), v.as_str()));
        let made = Condition::new(table.host.as_deref(), table.path.as_deref(), fields);
        made.map_err(|wrong| {
            let found = match wrong.part {
                "host" => format!("{:?}", table.host.as_deref().unwrap_or_default()),
                "path" => format!("{:?}", table.path.as_deref().unwrap_or_default()),
                _ => format!("{:?}", table.header),
            };
            let key = format!("workload.route[{at}].{}", wrong.part);
            rules.broken(&key, found, wrong.allowed)
        })
    };
    tables.iter().enumerate().map(condition).collect()
}

/// No request may be two workloads' by the same words.
pub(super) fn apart(rules: &Rules<'_>, workloads: &[Workload]) -> Result<(), ConfigError> {
    let conditions = workloads.iter().map(|w| w.conditions.as_slice());
    let Some((condition, [first, second])) = shared(conditions) else {
        return Ok(());
    };
    let name = |at: usize| workloads.get(at).map_or("", |w| w.spec.name.as_str());
    let whose = if first == second {
        format!("stands twice for workload {}", name(first))
    } else {
        format!("is of workloads {} and {}", name(first), name(second))
    };
    let allowed = format!("{whose}; give each workload routes of its own, and at most one none");
    Err(rules.broken("workload.route", condition, &allowed))
}
