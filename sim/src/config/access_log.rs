//! `[proxy.access_log]`.

use super::ConfigError;
use super::validate::Rules;
use serde::Deserialize;
use sim_proxy::access_log::{AccessLogSettings, Destination};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// As written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AccessLogTable {
    path: PathBuf,
    #[serde(default = "all")]
    sample: f64,
    #[serde(default = "yes")]
    always_failed: bool,
    slow_ms: Option<f64>,
    #[serde(default)]
    query: bool,
}

fn all() -> f64 {
    1.0
}

fn yes() -> bool {
    true
}

pub(super) fn access_log(
    rules: &Rules<'_>,
    table: AccessLogTable,
) -> Result<AccessLogSettings, ConfigError> {
    let to = match table.path.to_str() {
        Some("stdout") => Destination::Stdout,
        Some("stderr") => Destination::Stderr,
        _ if table.path.is_absolute() => Destination::File(table.path),
        _ => {
            let found = format!("{:?}", table.path);
            let allowed = "must be an absolute path, \"stdout\" or \"stderr\"";
            return Err(rules.broken("proxy.access_log.path", found, allowed));
        }
    };
    let share = |share: f64| (0.0..=1.0).contains(&share);
    let wait = |ms: f64| (0.0..=3_600_000.0).contains(&ms);
    let slow_ms = table
        .slow_ms
        .map(|ms| rules.number("proxy.access_log.slow_ms", ms, wait, "0 to 3600000"));
    Ok(AccessLogSettings {
        to,
        sample: rules.number("proxy.access_log.sample", table.sample, share, "0 to 1")?,
        always_failed: table.always_failed,
        slow: slow_ms
            .transpose()?
            .map(|ms| Duration::from_secs_f64(ms / 1e3)),
        query: table.query,
    })
}

/// Whether this user may append to the file `path`, or make it.
pub(super) fn check(path: &Path) -> Result<(), nix::errno::Errno> {
    if path.is_dir() {
        return Err(nix::errno::Errno::EISDIR);
    }
    let there = if path.exists() {
        Some(path)
    } else {
        path.parent()
    };
    let there = there.ok_or(nix::errno::Errno::ENOENT)?;
    sim_node::cgroup::may(there, nix::unistd::AccessFlags::W_OK)
}
