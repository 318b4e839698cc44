//! `[proxy.mirror]`: what is copied, and where to.

use super::ConfigError;
use super::validate::Rules;
use serde::Deserialize;
use sim_core::table::FULL_BP;
use sim_proxy::config::MirrorSettings;
use sim_proxy::snapshot::MirrorTo;
use std::time::Duration;

/// The table as written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct MirrorTable {
    to: Option<String>,
    percent: Option<f64>,
    unsafe_methods: bool,
    compare: bool,
    timeout_ms: f64,
}

impl Default for MirrorTable {
    fn default() -> Self {
        let settings = MirrorSettings::default();
        Self {
            to: None,
            percent: None,
            unsafe_methods: settings.unsafe_methods,
            compare: settings.compare,
            timeout_ms: settings.timeout.as_secs_f64() * 1e3,
        }
    }
}

pub(super) fn settings(
    rules: &Rules<'_>,
    table: &MirrorTable,
) -> Result<MirrorSettings, ConfigError> {
    let fixed = match (&table.to, table.percent) {
        (None, None) => None,
        (Some(to), Some(percent)) => {
            let allowed =
                "must be ip:port, such as \"10.0.0.7:8080\", or unix: and an absolute path";
            let address = rules.parsed("proxy.mirror.to", to, allowed)?;
            let good = |percent: f64| (0.01..=100.0).contains(&percent);
            let percent = rules.number("proxy.mirror.percent", percent, good, "0.01 to 100")?;
            let share_bp = percent / 100.0 * f64::from(FULL_BP);
            Some(MirrorTo {
                instance: None,
                address,
                share_bp: share_bp.round() as u16,
            })
        }
        (Some(to), None) => {
            let allowed = "must come with proxy.mirror.percent";
            return Err(rules.broken("proxy.mirror.to", format!("{to:?}"), allowed));
        }
        (None, Some(percent)) => {
            let allowed = "must come with proxy.mirror.to";
            return Err(rules.broken("proxy.mirror.percent", percent, allowed));
        }
    };
    let timeout_ms = rules.number(
        "proxy.mirror.timeout_ms",
        table.timeout_ms,
        |ms| (1.0..=60_000.0).contains(&ms),
        "1 to 60000",
    )?;
    Ok(MirrorSettings {
        fixed,
        unsafe_methods: table.unsafe_methods,
        compare: table.compare,
        timeout: Duration::from_secs_f64(timeout_ms / 1e3),
    })
}
