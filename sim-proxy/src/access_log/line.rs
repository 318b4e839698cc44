//! An entry as a line of JSON.

use super::entry::Entry;
use crate::counters::Ending;
use chrono::{DateTime, SecondsFormat};
use serde::Serialize;
use sim_core::name::WorkloadName;
use std::borrow::Cow;
use std::net::IpAddr;

/// In the order of the line.
#[derive(Serialize)]
struct Line<'a> {
    /// When the request came, RFC 3339 in UTC.
    time: String,
    client: Option<IpAddr>,
    method: Cow<'a, str>,
    host: Cow<'a, str>,
    path: Cow<'a, str>,
    protocol: &'a str,
    status: Option<u16>,
    outcome: &'a str,
    bytes_in: u64,
    bytes_out: u64,
    duration_ms: f64,
    workload: Option<&'a str>,
    instance: Option<String>,
    tries: u8,
    hedged: bool,
    #[serde(skip_serializing_if = "str::is_empty")]
    trace_id: Cow<'a, str>,
    /// Method, host or path is longer than what is here.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    cut: bool,
}

/// Adds the line of `entry` to `out`, its end included.
pub(super) fn write(entry: &Entry, out: &mut Vec<u8>) {
    let question = &entry.question;
    let began_ns = entry.ended_ns.saturating_sub(entry.duration_ns);
    let time = DateTime::from_timestamp_nanos(began_ns.cast_signed());
    let outcome = Ending::ALL
        .iter()
        .find(|(ending, _)| *ending == entry.ending);
    let line = Line {
        time: time.to_rfc3339_opts(SecondsFormat::Micros, true),
        client: entry.client,
        method: String::from_utf8_lossy(question.method()),
        host: String::from_utf8_lossy(question.host()),
        path: String::from_utf8_lossy(question.path()),
        protocol: entry.protocol,
        status: Some(entry.status).filter(|&status| status != 0),
        outcome: outcome.map_or("", |(_, name)| name),
        bytes_in: entry.bytes_in,
        bytes_out: entry.bytes_out,
        duration_ms: (entry.duration_ns / 1_000) as f64 / 1e3,
        workload: entry.workload.as_ref().map(WorkloadName::as_str),
        instance: entry.instance.map(|instance| instance.to_string()),
        tries: entry.tries,
        hedged: entry.hedged,
        trace_id: String::from_utf8_lossy(question.trace_id()),
        cut: question.is_cut(),
    };
    let from = out.len();
    if let Err(error) = serde_json::to_writer(&mut *out, &line) {
        // There is nothing in it that has no JSON.
        out.truncate(from);
        tracing::debug!(%error, "a line of the access log");
        return;
    }
    out.push(b'\n');
}
