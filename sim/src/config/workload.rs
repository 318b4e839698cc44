//! `[[workload]]`: each by itself, and all of them together.

use super::describe::placeholders;
use super::file::WorkloadTable;
use super::validate::{Rules, mebibytes};
use super::{ConfigError, Server, Workload, route, upstream};
use sim_core::name::WorkloadName;
use sim_core::workload::{Readiness, Slo, WorkloadSpec};

/// The placeholder that `name` is nearly.
fn misspelt(name: &str) -> Option<&'static str> {
    let near = |known: &&str| (1..=2).contains(&strsim::damerau_levenshtein(name, known));
    ["address", "port", "socket"].into_iter().find(near)
}

/// Validates them; the first broken rule is the error.
pub(super) fn all(
    rules: &Rules<'_>,
    tables: Vec<WorkloadTable>,
    servers: &[Server],
) -> Result<Vec<Workload>, ConfigError> {
    if tables.is_empty() {
        return Err(rules.broken("workload", "0 tables", "must be one [[workload]] or more"));
    }
    let several = tables.len() > 1;
    let mut workloads: Vec<Workload> = Vec::new();
    for mut table in tables {
        let name = table.name.clone();
        let found = route::conditions(rules, &table.route).and_then(|conditions| {
            let protocol = upstream::protocol(rules, &table.protocol)?;
            let tls = table.tls.take();
            let tls = tls.map(|tls| upstream::tls(rules, tls)).transpose()?;
            let spec = validate_workload(rules, table, servers)?;
            room_at_home(rules, &workloads, &spec, servers)?;
            Ok(Workload {
                spec,
                conditions,
                protocol,
                tls,
            })
        });
        let workload = found.map_err(|mut error| {
            if several {
                error.problem = format!("workload {name:?}: {}", error.problem);
            }
            error
        })?;
        let same = |other: &Workload| other.spec.name == workload.spec.name;
        if workloads.iter().any(same) {
            let allowed = "is used twice; names must differ";
            return Err(rules.broken("workload.name", format!("{name:?}"), allowed));
        }
        workloads.push(workload);
    }
    route::apart(rules, &workloads)?;
    Ok(workloads)
}

/// An instance listens at a port or at a socket.
fn one_place(rules: &Rules<'_>, table: &WorkloadTable) -> Result<(), ConfigError> {
    let texts = table.command.iter().chain(table.environment.values());
    let found: Vec<_> = texts.flat_map(|text| placeholders(text)).collect();
    let other = ["port", "address"]
        .into_iter()
        .find(|name| found.contains(name));
    match other {
        Some(other) if found.contains(&"socket") => {
            let allowed = format!("must not be there with {{{other}}}: it listens at one of them");
            Err(rules.broken("workload.command", "\"{socket}\"", &allowed))
        }
        _ => Ok(()),
    }
}

/// Whether a workload's instances listen at sockets.
pub(super) fn is_at_socket(spec: &WorkloadSpec) -> bool {
    let values = spec.environment.iter().map(|(_, value)| value);
    let mut texts = spec.command.iter().chain(values);
    texts.any(|text| placeholders(text).any(|name| name == "socket"))
}

/// The first instances of all workloads at one home have to fit there together.
fn room_at_home(
    rules: &Rules<'_>,
    before: &[Workload],
    spec: &WorkloadSpec,
    servers: &[Server],
) -> Result<(), ConfigError> {
    let Some(home) = servers.iter().find(|s| s.spec.name == spec.home) else {
        return Ok(());
    };
    let there = || before.iter().filter(|w| w.spec.home == spec.home);
    let cpus: f64 = there().map(|w| w.spec.cpus).sum();
    if cpus + spec.cpus > home.spec.cpus {
        let allowed = format!(
            "must be at most {}, as the others leave of its home",
            home.spec.cpus - cpus
        );
        return Err(rules.broken("workload.cpus", spec.cpus, &allowed));
    }
    let memory: u64 = there().map(|w| w.spec.memory_bytes).sum();
    if memory + spec.memory_bytes > home.spec.memory_bytes {
        let left = home.spec.memory_bytes.saturating_sub(memory) >> 20;
        let allowed = format!("must be at most {left}, as the others leave of its home");
        return Err(rules.broken("workload.memory_mib", spec.memory_bytes >> 20, &allowed));
    }
    Ok(())
}

fn validate_workload(
    rules: &Rules<'_>,
    table: WorkloadTable,
    servers: &[Server],
) -> Result<WorkloadSpec, ConfigError> {
    let name = WorkloadName::new(&table.name)
        .map_err(|e| rules.broken("workload.name", format!("{:?}", table.name), &e.to_string()))?;
    if table.command.is_empty() {
        return Err(rules.broken("workload.command", "[]", "must hold a program"));
    }
    for text in table.command.iter().chain(table.environment.values()) {
        for name in placeholders(text) {
            if let Some(meant) = misspelt(name) {
                let allowed = format!("is no placeholder; {{{meant}}} is");
                return Err(rules.broken("workload.command", format!("\"{{{name}}}\""), &allowed));
            }
        }
    }
    one_place(rules, &table)?;
    let home = servers.iter().find(|s| s.spec.name.as_str() == table.home);
    let Some(home) = home else {
        let names: Vec<&str> = servers.iter().map(|s| s.spec.name.as_str()).collect();
        let allowed = format!("must be a server's name: {}", names.join(", "));
        return Err(rules.broken("workload.home", format!("{:?}", table.home), &allowed));
    };
    let cpus = rules.number(
        "workload.cpus",
        table.cpus,
        |v| v >= 0.1 && v <= home.spec.cpus,
        &format!("0.1 to {}, the CPUs of its home", home.spec.cpus),
    )?;
    let memory_bytes = mebibytes(rules, "workload.memory_mib", table.memory_mib)?;
    if memory_bytes > home.spec.memory_bytes {
        let allowed = format!(
            "must be at most {}, as its home has",
            home.spec.memory_bytes >> 20
        );
        return Err(rules.broken("workload.memory_mib", table.memory_mib, &allowed));
    }
    let unit = |v: f64| v > 0.0 && v < 1.0;
    let readiness = &table.readiness;
    if readiness.successes == 0 {
        return Err(rules.broken("workload.readiness.successes", 0, "must be 1 or more"));
    }
    if !readiness.path.starts_with('/') {
        let found = format!("{:?}", readiness.path);
        return Err(rules.broken("workload.readiness.path", found, "must begin with '/'"));
    }
    let millis = |key: &str, ms: u64| rules.seconds(key, ms as f64, 1e-3);
    Ok(WorkloadSpec {
        name,
        cpus,
        memory_bytes,
        home: home.spec.name.clone(),
        slo: Slo {
            quantile: rules.number(
                "workload.slo.quantile",
                table.slo.quantile,
                unit,
                "between 0 and 1",
            )?,
            bound: rules.seconds("workload.slo.bound_ms", table.slo.bound_ms, 1e-3)?,
            window: rules.seconds("workload.slo.window_s", table.slo.window_s, 1.0)?,
            error_budget: rules.number(
                "workload.slo.error_budget",
                table.slo.error_budget,
                |v| (0.0..1.0).contains(&v),
                "0 to below 1",
            )?,
        },
        readiness: Readiness {
            path: readiness.path.clone(),
            successes: readiness.successes,
            interval: millis("workload.readiness.interval_ms", readiness.interval_ms)?,
            timeout: millis("workload.readiness.timeout_ms", readiness.timeout_ms)?,
        },
        standby: table.standby,
        slo_minute_price: rules.positive("workload.slo_minute_price", table.slo_minute_price)?,
        environment: table.environment.into_iter().collect(),
        command: table.command,
    })
}
