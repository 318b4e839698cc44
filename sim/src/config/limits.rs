//! `[proxy.limits]`.

use super::ConfigError;
use super::validate::Rules;
use serde::Deserialize;
use sim_proxy::limits::{BODY_REPLAY_BYTES_MAX, HEADER_BYTES_MAX, HEADERS_MAX, LimitSettings};
use std::ops::RangeInclusive;
use std::time::Duration;

/// As written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct LimitsTable {
    header_bytes: u64,
    headers: u64,
    header_timeout_s: f64,
    body_timeout_s: f64,
    body_bytes_per_second: u64,
    connections: Option<u64>,
    connections_per_source: Option<u64>,
    requests_per_second: u64,
    requests_burst: Option<u64>,
    upstream_concurrency: u64,
    request_timeout_s: f64,
    body_replay_bytes: u64,
    idle_timeout_s: f64,
}

impl Default for LimitsTable {
    fn default() -> Self {
        let limits = LimitSettings::default();
        Self {
            header_bytes: limits.header_bytes as u64,
            headers: limits.headers as u64,
            header_timeout_s: limits.header_timeout.as_secs_f64(),
            body_timeout_s: limits.body_timeout.as_secs_f64(),
            body_bytes_per_second: limits.body_bytes_per_second.into(),
            connections: limits.connections,
            connections_per_source: limits.connections_per_source,
            requests_per_second: limits.requests_per_second.into(),
            requests_burst: limits.requests_burst.map(u64::from),
            upstream_concurrency: limits.upstream_concurrency,
            request_timeout_s: limits.request_timeout.as_secs_f64(),
            body_replay_bytes: limits.body_replay_bytes as u64,
            idle_timeout_s: sim_proxy::config::CLIENT_IDLE_TIMEOUT.as_secs_f64(),
        }
    }
}

/// Valid.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) settings: LimitSettings,
    pub(crate) idle_timeout: Duration,
}

impl Limits {
    /// What they are, a line for each subject and its text.
    pub(super) fn words(&self) -> [(&'static str, String); 4] {
        let Self {
            settings: s,
            idle_timeout,
        } = self;
        let any = |count: u64, of: &str| match count {
            0 => format!("any number of {of}"),
            count => format!("{count} {of}"),
        };
        let connections = s.connections.map_or(
            "as many connections as files allow".to_owned(),
            |connections| format!("{connections} connections"),
        );
        let per_source = s
            .connections_per_source
            .map_or("half of them".to_owned(), |count| match count {
                0 => "any number of them".to_owned(),
                count => format!("{count} of them"),
            });
        let rate = u64::from(s.requests_per_second);
        let requests = match rate {
            0 => any(0, "requests"),
            rate => {
                let burst = s.requests_burst.map_or(rate, u64::from);
                format!("{rate} requests a second, {burst} at once,")
            }
        };
        let rate = match s.body_bytes_per_second {
            0 => "at any rate".to_owned(),
            rate => format!("at {rate} bytes a second at least"),
        };
        [
            (
                "heads",
                format!(
                    "up to {} bytes and {} fields, whole within {} s",
                    s.header_bytes,
                    s.headers,
                    s.header_timeout.as_secs_f64()
                ),
            ),
            (
                "bodies",
                format!(
                    "a piece every {} s, {rate}; up to {} bytes are kept for another try",
                    s.body_timeout.as_secs_f64(),
                    s.body_replay_bytes
                ),
            ),
            (
                "users",
                format!(
                    "{connections}, {per_source} and {requests} from one source; closed after {} s of idleness",
                    idle_timeout.as_secs_f64()
                ),
            ),
            (
                "answers",
                format!(
                    "begin within {} s, all tries together; {} at an instance",
                    s.request_timeout.as_secs_f64(),
                    any(s.upstream_concurrency, "requests in flight")
                ),
            ),
        ]
    }
}

const CONNECTIONS_MAX: u64 = 100_000_000;
/// Requests a second, and at once.
const RATE_MAX: u64 = 1_000_000;
/// Longest wait for a user, seconds.
const WAIT_MAX_S: f64 = 3_600.0;

pub(super) fn limits(rules: &Rules<'_>, table: &LimitsTable) -> Result<Limits, ConfigError> {
    let seconds = |key: &str, value: f64, least: f64| {
        let key = format!("proxy.limits.{key}");
        let good = |v: f64| (least..=WAIT_MAX_S).contains(&v);
        let allowed = format!("{least} to {WAIT_MAX_S}");
        let value = rules.number(&key, value, good, &allowed)?;
        Ok(Duration::from_secs_f64(value))
    };
    let count = |key: &str, value: u64, allowed: RangeInclusive<u64>| {
        if allowed.contains(&value) {
            return Ok(value);
        }
        let allowed = format!("must be {} to {}", allowed.start(), allowed.end());
        Err(rules.broken(&format!("proxy.limits.{key}"), value, &allowed))
    };
    let maybe = |key: &str, value: Option<u64>, allowed| {
        value.map(|value| count(key, value, allowed)).transpose()
    };
    Ok(Limits {
        settings: LimitSettings {
            header_bytes: count(
                "header_bytes",
                table.header_bytes,
                1_024..=HEADER_BYTES_MAX as u64,
            )? as usize,
            headers: count("headers", table.headers, 1..=HEADERS_MAX as u64)? as usize,
            header_timeout: seconds("header_timeout_s", table.header_timeout_s, 0.1)?,
            body_timeout: seconds("body_timeout_s", table.body_timeout_s, 0.1)?,
            body_bytes_per_second: count(
                "body_bytes_per_second",
                table.body_bytes_per_second,
                0..=1_000_000_000,
            )? as u32,
            connections: maybe("connections", table.connections, 1..=CONNECTIONS_MAX)?,
            connections_per_source: maybe(
                "connections_per_source",
                table.connections_per_source,
                0..=CONNECTIONS_MAX,
            )?,
            requests_per_second: count(
                "requests_per_second",
                table.requests_per_second,
                0..=RATE_MAX,
            )? as u32,
            requests_burst: maybe("requests_burst", table.requests_burst, 1..=RATE_MAX)?
                .map(|burst| burst as u32),
            upstream_concurrency: count(
                "upstream_concurrency",
                table.upstream_concurrency,
                0..=CONNECTIONS_MAX,
            )?,
            request_timeout: seconds("request_timeout_s", table.request_timeout_s, 0.01)?,
            body_replay_bytes: count(
                "body_replay_bytes",
                table.body_replay_bytes,
                0..=BODY_REPLAY_BYTES_MAX as u64,
            )? as usize,
        },
        idle_timeout: seconds("idle_timeout_s", table.idle_timeout_s, 1.0)?,
    })
}
