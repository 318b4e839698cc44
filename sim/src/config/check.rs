//! `[proxy.check]`: active checks of instances.

use super::ConfigError;
use super::validate::Rules;
use serde::Deserialize;
use sim_proxy::config::{CheckKind, CheckSettings};
use std::time::Duration;

/// As written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CheckTable {
    by: String,
    path: Option<String>,
    status: Option<u16>,
    service: Option<String>,
    #[serde(default = "five_seconds")]
    interval_ms: u64,
    #[serde(default = "a_second")]
    timeout_ms: u64,
    #[serde(default = "two")]
    rise: u32,
    #[serde(default = "three")]
    fall: u32,
}

fn five_seconds() -> u64 {
    5_000
}

fn a_second() -> u64 {
    1_000
}

fn two() -> u32 {
    2
}

fn three() -> u32 {
    3
}

/// `[proxy.check]`.
pub(super) fn check(rules: &Rules<'_>, table: CheckTable) -> Result<CheckSettings, ConfigError> {
    let CheckTable {
        by,
        path,
        status,
        service,
        interval_ms,
        timeout_ms,
        rise,
        fall,
    } = table;
    let only_with = |key: &str, found: Option<String>, kind: &str| match found {
        Some(found) if by != kind => {
            let allowed = format!("must not be there with proxy.check.by = {by:?}");
            Err(rules.broken(&format!("proxy.check.{key}"), found, &allowed))
        }
        _ => Ok(()),
    };
    only_with(
        "path",
        path.as_ref().map(|path| format!("{path:?}")),
        "http",
    )?;
    only_with("status", status.map(|status| status.to_string()), "http")?;
    only_with(
        "service",
        service.as_ref().map(|name| format!("{name:?}")),
        "grpc",
    )?;
    let kind = match by.as_str() {
        "tcp" => CheckKind::Tcp,
        "http" => http(
            rules,
            path.unwrap_or_else(|| "/".to_owned()),
            status.unwrap_or(200),
        )?,
        "grpc" => CheckKind::Grpc {
            service: service.unwrap_or_default().into(),
        },
        other => {
            let allowed = "must be one of http, tcp, grpc";
            return Err(rules.broken("proxy.check.by", format!("{other:?}"), allowed));
        }
    };
    let millis = |key: &str, ms: u64| {
        if (10..=600_000).contains(&ms) {
            Ok(Duration::from_millis(ms))
        } else {
            Err(rules.broken(key, ms, "must be 10 to 600000"))
        }
    };
    let times = |key: &str, times: u32| {
        if (1..=100).contains(&times) {
            Ok(times)
        } else {
            Err(rules.broken(key, times, "must be 1 to 100"))
        }
    };
    Ok(CheckSettings {
        kind,
        interval: millis("proxy.check.interval_ms", interval_ms)?,
        timeout: millis("proxy.check.timeout_ms", timeout_ms)?,
        rise: times("proxy.check.rise", rise)?,
        fall: times("proxy.check.fall", fall)?,
    })
}

fn http(rules: &Rules<'_>, path: String, status: u16) -> Result<CheckKind, ConfigError> {
    // It goes into a request as it stands.
    let is_path = path.starts_with('/') && path.bytes().all(|byte| byte.is_ascii_graphic());
    if !is_path {
        let allowed = "must begin with / and have neither spaces nor control characters";
        return Err(rules.broken("proxy.check.path", format!("{path:?}"), allowed));
    }
    if !(200..=599).contains(&status) {
        return Err(rules.broken("proxy.check.status", status, "must be 200 to 599"));
    }
    Ok(CheckKind::Http {
        path: path.into(),
        status,
    })
}
