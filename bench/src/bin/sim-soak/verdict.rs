//! What has to hold in the end.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::samples::{Sample, Samples};
use crate::tally::{May, Tally};
use crate::world::WORKLOADS;

/// The heap may grow by so much in a minute, by least squares over the last two thirds: 13 bytes in each of the 20 000
/// requests. What the workers keep buffers for is filled before the first look. What is left is not nought: a connection
/// of HTTP/2 has room for as many streams as there ever were on it, and glibc's arenas fill up slowly.
const SLOPE_KIB_MAX: f64 = 256.0;
/// Of less than this no slope is judged: what the faults set free and take again is more than that.
const JUDGED_MINUTES: f64 = 10.0;
/// And even then the heap is no larger than this, in KiB.
const ANONYMOUS_KIB_MAX: u64 = 192 * 1_024;

/// Pingora's own, which it watches.
const TIMER: &str = "Timer thread";

pub(crate) struct Findings {
    pub(crate) report: String,
    pub(crate) results: Value,
    /// One line for each thing that is wrong.
    pub(crate) wrong: Vec<String>,
}

/// `last` is the proxy when all users have gone, and what it then has open and runs; `log` what it says of requests that failed,
/// by their numbers.
pub(crate) fn judge(
    samples: &Samples,
    last: (Sample, &BTreeMap<String, usize>, &BTreeMap<String, usize>),
    tally: &Tally,
    page: &str,
    log: &BTreeMap<u64, String>,
) -> Findings {
    let (last, open, threads) = last;
    let mut wrong = Vec::new();
    let mut report = String::from("soak: what became of the requests:\n");
    let mut kinds = Value::Object(serde_json::Map::new());
    tally.kinds(|all| {
        for (name, kind) in all {
            let may = match kind.may {
                May::Never => "none may",
                May::WhenKilled(_) => "those may that were lost with an instance",
            };
            let (done, failed) = (kind.done, kind.failed);
            // Nothing fails to be written to memory.
            writeln!(report, "  {name}: {done}, {failed} failed ({may})").unwrap_or_default();
            let mut causes = Vec::new();
            for ((why, error), cause) in &kind.causes {
                let count = cause.count;
                let allowed = if cause.is_allowed { "" } else { "WRONG: " };
                writeln!(report, "    {allowed}{count} × {error}: {why}").unwrap_or_default();
                for told in &cause.told {
                    writeln!(report, "      {told}").unwrap_or_default();
                    if let Some(line) = number_of(told).and_then(|number| log.get(&number)) {
                        writeln!(report, "      {line}").unwrap_or_default();
                    }
                }
                causes.push(json!({
                    "count": count,
                    "error": error,
                    "why": why.to_string(),
                    "allowed": cause.is_allowed,
                    "examples": cause.told,
                }));
            }
            kinds[*name] =
                json!({ "done": done, "failed": failed, "wrongly": kind.wrong, "causes": causes });
            if kind.wrong > 0 {
                wrong.push(format!(
                    "{name}: {} of {done} failed, see above",
                    kind.wrong
                ));
            }
        }
    });
    let first = samples.first();
    let minutes = samples.taken.last().map_or(0.0, |(at, _)| *at);
    let slope = samples.slope_kib();
    let most = samples.most(|sample| sample.anonymous_kib);
    let told_slope = slope.map_or("none".to_owned(), |slope| format!("{slope:.1} KiB"));
    let lines = [
        format!("faults: {:?}", tally.faults()),
        format!("before: {first}"),
        format!("after: {last}"),
        format!(
            "anonymous memory: {most} KiB at most, {told_slope} a minute over the last two thirds"
        ),
    ];
    for line in lines.into_iter().chain(said(page)) {
        writeln!(report, "soak: {line}").unwrap_or_default();
    }
    if minutes >= JUDGED_MINUTES && slope.is_none_or(|slope| slope > SLOPE_KIB_MAX) {
        wrong.push(format!(
            "the memory grows by {told_slope} a minute, more than {SLOPE_KIB_MAX}"
        ));
    }
    if most > ANONYMOUS_KIB_MAX {
        wrong.push(format!(
            "{most} KiB of memory, more than {ANONYMOUS_KIB_MAX}"
        ));
    }
    if last.descriptors > first.descriptors {
        let (before, after) = (&samples.open, open);
        wrong.push(format!("{after:?} are open, and {before:?} were"));
    }
    for (name, before, after) in more(&samples.threads, threads) {
        let text = format!("{after} threads {name:?} run, and {before} did");
        if name == TIMER {
            let why = "Pingora starts another where the machine let none run for 2 s";
            writeln!(report, "soak: {text}: {why}").unwrap_or_default();
        } else {
            wrong.push(text);
        }
    }
    wrong.extend(counters(page));
    let results = json!({
        "kinds": kinds,
        "faults": tally.faults(),
        "anonymous_kib_per_minute": slope,
        "anonymous_kib_max": most,
        "anonymous_kib": [first.anonymous_kib, last.anonymous_kib],
        "resident_kib": [first.resident_kib, last.resident_kib],
        "descriptors": [first.descriptors, last.descriptors],
        "threads": [first.threads, last.threads],
        "wrong": wrong,
    });
    Findings {
        report,
        results,
        wrong,
    }
}

/// Of what there is more: its name, and how many there were and are.
fn more<'a>(
    before: &BTreeMap<String, usize>,
    after: &'a BTreeMap<String, usize>,
) -> Vec<(&'a str, usize, usize)> {
    let counts = after.iter().map(|(name, count)| {
        let before = before.get(name).copied().unwrap_or(0);
        (name.as_str(), before, *count)
    });
    counts.filter(|(_, before, after)| after > before).collect()
}

/// The number in what is told of a failure.
fn number_of(told: &str) -> Option<u64> {
    let (number, _) = told.strip_prefix("number ")?.split_once(',')?;
    number.parse().ok()
}

/// What the proxy says of failures and of what it made of them, without what never was.
fn said(page: &str) -> impl Iterator<Item = String> {
    const FAMILIES: [&str; 6] = [
        "sim_proxy_errors_total",
        "sim_proxy_retries_total",
        "sim_proxy_retry_budget_exhausted_total",
        "sim_proxy_no_instance_total",
        "sim_proxy_request_timeouts_total",
        "sim_proxy_panic_picks_total",
    ];
    let is_one = |line: &&str| {
        let name = line.split(['{', ' ']).next().unwrap_or_default();
        FAMILIES.contains(&name) && !line.ends_with(" 0")
    };
    page.lines().filter(is_one).map(str::to_owned)
}

/// What the counters of an idle proxy must not say.
fn counters(page: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut same = |what: &str, one: f64, other: f64| {
        if (one - other).abs() > 0.5 {
            wrong.push(format!("{what}: {one} and {other}"));
        }
    };
    let of = |name, labels: &[&str]| sum(page, name, labels);
    for workload in WORKLOADS {
        let workload = format!("workload=\"{workload}\"");
        same(
            &format!("requests of {workload} that arrived, and that ended"),
            of("sim_proxy_requests_total", &[&workload]),
            of("sim_proxy_requests_ended_total", &[&workload]),
        );
    }
    for (what, one, other) in [
        (
            "all that arrived, and that ended",
            "sim_proxy_requests_total",
            "sim_proxy_requests_ended_total",
        ),
        (
            "connections of HTTP/2 that began, and that ended",
            "sim_proxy_http2_connections_total",
            "sim_proxy_http2_connections_ended_total",
        ),
    ] {
        same(what, of(one, &[]), of(other, &[]));
    }
    for gauge in [
        "sim_proxy_requests_in_flight",
        "sim_proxy_in_flight",
        "sim_proxy_connections",
    ] {
        same(gauge, of(gauge, &[]), 0.0);
    }
    wrong
}

/// The sum of all samples of `family` on a page of metrics whose labels contain each of `labels`.
pub(crate) fn sum(page: &str, family: &str, labels: &[&str]) -> f64 {
    let samples = page.lines().filter_map(|line| line.rsplit_once(' '));
    let wanted = samples.filter(|(name, _)| {
        name.split('{').next() == Some(family) && labels.iter().all(|label| name.contains(label))
    });
    wanted
        .filter_map(|(_, value)| value.parse::<f64>().ok())
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "\
# TYPE sim_proxy_requests_total counter
sim_proxy_requests_total 2
sim_proxy_requests_total{workload=\"web\"} 7
sim_proxy_requests_total{workload=\"rpc\"} 1
sim_proxy_requests_ended_total{outcome=\"refused\"} 2
sim_proxy_requests_ended_total{workload=\"web\",outcome=\"ok\"} 5
sim_proxy_requests_ended_total{workload=\"web\",outcome=\"failed\"} 2
sim_proxy_requests_ended_total{workload=\"rpc\",outcome=\"ok\"} 1
sim_proxy_connections 0
";

    #[test]
    fn a_thread_more_is_found_by_its_name_whatever_ended_beside_it() {
        let threads = |all: &[(&str, usize)]| {
            let all = all.iter().map(|(name, count)| ((*name).to_owned(), *count));
            all.collect::<BTreeMap<_, _>>()
        };
        let before = threads(&[("proxy", 2), ("admin", 1)]);
        let after = threads(&[("proxy", 2), (TIMER, 1)]);
        assert_eq!(more(&before, &after), [(TIMER, 0, 1)]);
    }

    #[test]
    fn an_idle_proxy_whose_requests_have_all_ended_is_right() {
        assert_eq!(counters(PAGE), Vec::<String>::new());
    }

    #[test]
    fn a_request_without_an_end_and_a_gauge_above_zero_are_wrong() {
        let lost = PAGE.replace("\"failed\"} 2", "\"failed\"} 1");
        let told = counters(&lost);
        assert_eq!(told.len(), 2, "{told:?}");
        assert!(told[0].contains("workload=\"web\"") && told[0].contains("7 and 6"));
        let open = PAGE.replace("sim_proxy_connections 0", "sim_proxy_connections 1");
        assert_eq!(counters(&open).len(), 1);
    }
}
