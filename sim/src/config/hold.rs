//! `[proxy.hold]`: requests that wait while no instance is ready.

use super::ConfigError;
use super::validate::Rules;
use serde::Deserialize;
use sim_proxy::config::HoldSettings;
use std::time::Duration;

/// As written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct HoldTable {
    requests_max: usize,
    wait_ms: u64,
}

impl Default for HoldTable {
    fn default() -> Self {
        let default = HoldSettings::default();
        Self {
            requests_max: default.requests_max,
            wait_ms: default.wait_max.as_millis() as u64,
        }
    }
}

/// `[proxy.hold]`.
pub(super) fn hold(rules: &Rules<'_>, table: &HoldTable) -> Result<HoldSettings, ConfigError> {
    if !(1..=1_000_000).contains(&table.requests_max) {
        let allowed = "must be 1 to 1000000";
        return Err(rules.broken("proxy.hold.requests_max", table.requests_max, allowed));
    }
    if !(1..=600_000).contains(&table.wait_ms) {
        return Err(rules.broken("proxy.hold.wait_ms", table.wait_ms, "must be 1 to 600000"));
    }
    Ok(HoldSettings {
        requests_max: table.requests_max,
        wait_max: Duration::from_millis(table.wait_ms),
    })
}
