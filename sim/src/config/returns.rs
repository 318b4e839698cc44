//! `[proxy]`: how instances come back.

use super::ConfigError;
use super::file::ProxyTable;
use super::validate::Rules;
use sim_proxy::config::EjectSettings;
use std::time::Duration;

/// `proxy.slow_start_s` and `proxy.slow_start_new_s`.
pub(super) fn eject(rules: &Rules<'_>, table: &ProxyTable) -> Result<EjectSettings, ConfigError> {
    let default = EjectSettings::default();
    let span = |key: &str, given: Option<f64>, default: Duration| {
        let seconds = given.unwrap_or(default.as_secs_f64());
        let is_good = |seconds| (0.0..=3_600.0).contains(&seconds);
        let seconds = rules.number(key, seconds, is_good, "0 to 3600")?;
        Ok(Duration::from_secs_f64(seconds))
    };
    Ok(EjectSettings {
        slow_start: span("proxy.slow_start_s", table.slow_start_s, default.slow_start)?,
        slow_start_new: span(
            "proxy.slow_start_new_s",
            table.slow_start_new_s,
            default.slow_start_new,
        )?,
        ..default
    })
}
