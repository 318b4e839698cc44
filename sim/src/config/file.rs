//! The file as written.

use super::ConfigError;
use super::access_log::AccessLogTable;
use super::check::CheckTable;
use super::hold::HoldTable;
use super::limits::LimitsTable;
use super::mirror::MirrorTable;
use super::route::RouteTable;
use super::tell::TraceTable;
use super::tls::TlsTable;
use super::upstream::InstanceTlsTable;
use serde::Deserialize;
use sim_core::policy::Policy;
use sim_core::workload::Standby;
use sim_proxy::config::HedgeSettings;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The whole file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    #[serde(default = "data_dir")]
    pub(super) data_dir: PathBuf,
    #[serde(default = "runtime_dir")]
    pub(super) runtime_dir: PathBuf,
    #[serde(default = "cgroup")]
    pub(super) cgroup: String,
    pub(super) probes_object: Option<PathBuf>,
    #[serde(default = "probe_budget_percent")]
    pub(super) probe_budget_percent: f64,
    pub(super) proxy: ProxyTable,
    // That there has to be one is said where the tables are looked at: the parser would say `missing field`.
    #[serde(default)]
    pub(super) server: Vec<ServerTable>,
    #[serde(default)]
    pub(super) workload: Vec<WorkloadTable>,
    #[serde(default)]
    pub(super) policy: Policy,
}

fn data_dir() -> PathBuf {
    "/var/lib/sim".into()
}

fn runtime_dir() -> PathBuf {
    "/run/sim".into()
}

fn probe_budget_percent() -> f64 {
    2.0
}

fn cgroup() -> String {
    "sim".into()
}

/// `[proxy]`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ProxyTable {
    pub(super) listen: Option<String>,
    pub(super) tls: Option<TlsTable>,
    #[serde(default = "admin")]
    pub(super) admin: String,
    #[serde(default = "one")]
    pub(super) threads: usize,
    #[serde(default = "weighted")]
    pub(super) policy: String,
    #[serde(default = "upgrade_drain_s")]
    pub(super) upgrade_drain_s: f64,
    pub(super) stream_grace_s: Option<f64>,
    pub(super) sticky: Option<StickyTable>,
    #[serde(default)]
    pub(super) hedge: HedgeTable,
    pub(super) check: Option<CheckTable>,
    pub(super) hold: Option<HoldTable>,
    pub(super) slow_start_s: Option<f64>,
    pub(super) slow_start_new_s: Option<f64>,
    #[serde(default)]
    pub(super) trusted_proxies: Vec<String>,
    #[serde(default)]
    pub(super) forwarded: bool,
    pub(super) trace: Option<TraceTable>,
    #[serde(default)]
    pub(super) mirror: MirrorTable,
    #[serde(default)]
    pub(super) limits: LimitsTable,
    pub(super) access_log: Option<AccessLogTable>,
}

fn upgrade_drain_s() -> f64 {
    600.0
}

fn weighted() -> String {
    "weighted".into()
}

/// `[proxy.hedge]`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct HedgeTable {
    pub(super) quantile: f64,
    pub(super) floor_ms: f64,
    pub(super) late_factor: u32,
}

impl Default for HedgeTable {
    fn default() -> Self {
        let HedgeSettings {
            quantile,
            floor,
            late_factor,
        } = HedgeSettings::default();
        Self {
            quantile,
            floor_ms: floor.as_secs_f64() * 1e3,
            late_factor,
        }
    }
}

/// `[proxy.sticky]`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StickyTable {
    pub(super) by: String,
    pub(super) name: Option<String>,
}

fn admin() -> String {
    "127.0.0.1:9901".into()
}

fn one() -> usize {
    1
}

/// `[[server]]`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ServerTable {
    pub(super) name: String,
    #[serde(default = "loopback")]
    pub(super) address: String,
    pub(super) cpus: f64,
    #[serde(default = "memory_mib")]
    pub(super) memory_mib: u64,
    #[serde(default)]
    pub(super) price_per_hour: f64,
    pub(super) failure_domain: Option<String>,
    pub(super) netns: Option<PathBuf>,
    pub(super) metrics: Option<String>,
}

fn loopback() -> String {
    "127.0.0.1".into()
}

fn memory_mib() -> u64 {
    512
}

/// `[[workload]]`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WorkloadTable {
    pub(super) name: String,
    pub(super) command: Vec<String>,
    #[serde(default)]
    pub(super) environment: BTreeMap<String, String>,
    pub(super) cpus: f64,
    #[serde(default = "memory_mib")]
    pub(super) memory_mib: u64,
    pub(super) home: String,
    #[serde(default)]
    pub(super) route: Vec<RouteTable>,
    #[serde(default = "http1")]
    pub(super) protocol: String,
    pub(super) tls: Option<InstanceTlsTable>,
    #[serde(default = "predicted")]
    pub(super) standby: Standby,
    #[serde(default = "slo_minute_price")]
    pub(super) slo_minute_price: f64,
    pub(super) slo: SloTable,
    #[serde(default)]
    pub(super) readiness: ReadinessTable,
}

fn http1() -> String {
    "http1".into()
}

fn predicted() -> Standby {
    Standby::Predicted
}

fn slo_minute_price() -> f64 {
    0.1
}

/// `workload.slo`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SloTable {
    #[serde(default = "p99")]
    pub(super) quantile: f64,
    pub(super) bound_ms: f64,
    #[serde(default = "minute")]
    pub(super) window_s: f64,
    #[serde(default = "error_budget")]
    pub(super) error_budget: f64,
}

fn p99() -> f64 {
    0.99
}

fn minute() -> f64 {
    60.0
}

fn error_budget() -> f64 {
    0.001
}

/// `workload.readiness`.
#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct ReadinessTable {
    pub(super) path: String,
    pub(super) successes: u32,
    pub(super) interval_ms: u64,
    pub(super) timeout_ms: u64,
}

impl Default for ReadinessTable {
    fn default() -> Self {
        Self {
            path: "/".into(),
            successes: 3,
            interval_ms: 200,
            timeout_ms: 30_000,
        }
    }
}

/// Parses; a problem is told in one line with its place and its key.
pub(super) fn parse(path: &Path, text: &str) -> Result<File, ConfigError> {
    let problem = |error: &toml::de::Error, key: String| {
        let line = error
            .span()
            .map(|s| text[..s.start.min(text.len())].matches('\n').count() + 1);
        let place = line.map_or(String::new(), |l| format!(":{l}"));
        ConfigError {
            path: format!("{}{place}", path.display()),
            problem: format!("{key}{}", in_plain_words(error.message())),
        }
    };
    let document =
        toml::Deserializer::parse(text).map_err(|error| problem(&error, String::new()))?;
    serde_path_to_error::deserialize(document).map_err(|error| {
        let key = match error.path().to_string() {
            whole if whole == "." => String::new(),
            key => format!("{key}: "),
        };
        problem(error.inner(), key)
    })
}

/// The parser names Rust's types; an operator knows TOML's.
fn in_plain_words(message: &str) -> String {
    const WORDS: [(&str, &str); 9] = [
        ("expected f64", "expected a number"),
        ("expected u64", "expected a whole number"),
        ("expected u32", "expected a whole number"),
        ("expected u16", "expected a whole number"),
        ("expected usize", "expected a whole number"),
        ("expected a sequence", "expected a list"),
        ("expected a map", "expected a table"),
        ("invalid type: sequence", "found a list"),
        ("invalid type: map", "found a table"),
    ];
    if message == "missing field `proxy`" {
        return "proxy: must be there: a table [proxy] that says where users connect, such as listen = \"127.0.0.1:8080\"".into();
    }
    let mut text = message.replace('\n', " ");
    for (from, to) in WORDS {
        text = text.replace(from, to);
    }
    // A struct is named by its Rust name.
    match text.split_once("expected struct ") {
        Some((found, _)) => format!("{found}expected a table"),
        None => text,
    }
}
