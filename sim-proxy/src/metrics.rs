//! What `/metrics` says.

use crate::access_log::AccessLog;
use crate::clock::monotonic_ns;
use crate::counters::{Counters, Ending, ErrorSide, RetryReason};
use crate::dispatch::Dispatch;
use crate::exposition::{Kind, Page};
use crate::instance_metrics;
use crate::limits::{Crowd, Limits, Refusal};
use crate::live::{InstanceLive, Totals};
use crate::routes::Routes;
use crate::snapshot::Snapshot;
use crate::tls::accept::Door;
use crate::tls::watch::Reloads;
use crate::workloads::Workloads;
use sim_core::histogram::{bucket_mid_micros, bucket_of};
use sim_core::table::FULL_BP;
use std::fmt::Display;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Upper bounds of the exported latency buckets, in µs: 2^k and 1.5 · 2^k from 64 µs to 100 s.
/// All are bounds of the finer inner buckets, so the counts are exact.
fn bounds_micros() -> impl Iterator<Item = u64> {
    (6..27)
        .flat_map(|k| [1 << k, 3 << (k - 1)])
        .take_while(|&bound| bound <= 100_663_296)
}

type Reading = (Arc<InstanceLive>, Totals);

/// The page. Samples without a workload are of requests that reached none.
pub(crate) fn render(workloads: &Workloads, door: Option<&Door>) -> String {
    let now_ns = monotonic_ns();
    let mut page = Page::new(&[]);
    for Dispatch {
        routes,
        counters,
        mirror,
        hold,
        tls,
        ..
    } in workloads.iter().map(|dispatch| &**dispatch)
    {
        page.label(&[("workload", routes.workload())]);
        let snapshot = routes.snapshot();
        let read = |live: Arc<InstanceLive>| {
            let totals = live.totals();
            (live, totals)
        };
        let instances: Vec<Reading> = routes.known().into_iter().map(read).collect();
        requests(&mut page, counters);
        retries(&mut page, counters, routes);
        hold.export(&mut page);
        attempts(&mut page, &instances);
        health(&mut page, &instances, &snapshot, now_ns);
        latency(&mut page, &instances);
        instance_metrics::render(&mut page, instances.iter().map(|(live, _)| &**live));
        mirror.export(&mut page);
        if let Some(tls) = tls {
            tls.render(&mut page);
        }
        control(&mut page, &snapshot, counters, routes, now_ns);
    }
    page.label(&[]);
    requests(&mut page, &workloads.outside);
    connections(&mut page, &workloads.limits);
    if let Some(log) = &workloads.access_log {
        logged(&mut page, log);
    }
    workloads.outside.http2.export(&mut page);
    page.family(
        "sim_proxy_requests_unmatched_total",
        Kind::Counter,
        "Requests that are no workload's, by why: no_workload (no route holds for it; 404), dot_segment (its path has two readings; 400).",
    );
    for (reason, count) in workloads.refused() {
        page.sample(&[("reason", &reason)], count);
    }
    if let Some(door) = door {
        door.render(&mut page);
        Reloads::render(&mut page, &[("downstream", door.reloads())]);
    }
    page.finish()
}

fn requests(page: &mut Page, counters: &Counters) {
    use Kind::{Counter, Gauge};
    // Read before the arrivals: no request has ended that has not arrived.
    let ends = Ending::ALL.map(|(ending, name)| (name, counters.endings(ending)));
    page.family(
        "sim_proxy_requests_total",
        Counter,
        "Requests that arrived from users; without a workload: those that reached none.",
    )
    .sample(&[], counters.arrivals());
    page.family("sim_proxy_requests_ended_total", Counter, "Requests that ended, by how: ok (answer below 500), failed (500 and above, or none), refused (here, see sim_proxy_refused_total), aborted (the user left), drained (closed since its instance had no weight any more).");
    for (name, count) in ends {
        page.sample(&[("outcome", &name)], count);
    }
    page.family(
        "sim_proxy_refused_total",
        Counter,
        "Requests that were answered here and sent nowhere, by why; without a workload: those that reached none.",
    );
    for (refusal, name) in Refusal::ALL {
        page.sample(&[("reason", &name)], counters.refusals.count(refusal));
    }
    page.family("sim_proxy_requests_in_flight", Gauge, "Requests in flight.")
        .sample(&[], counters.in_flight());
    page.family(
        "sim_proxy_errors_total",
        Counter,
        "Requests that ended in an error, by the side it came from.",
    );
    for (side, name) in ErrorSide::ALL {
        page.sample(&[("source", &name)], counters.errors(side));
    }
}

fn retries(page: &mut Page, counters: &Counters, routes: &Routes) {
    use Kind::{Counter, Gauge};
    page.family(
        "sim_proxy_retries_total",
        Counter,
        "Second attempts, by why the first failed.",
    );
    for (reason, name) in RetryReason::ALL {
        page.sample(&[("reason", &name)], counters.retries(reason));
    }
    let read = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    page.family(
        "sim_proxy_retry_budget_exhausted_total",
        Counter,
        "Retries not made because the budget was spent.",
    )
    .sample(&[], read(&counters.budget_exhausted));
    page.family(
        "sim_proxy_no_instance_total",
        Counter,
        "Requests answered 503 because no instance was ready.",
    )
    .sample(&[], read(&counters.no_instance));
    page.family(
        "sim_proxy_request_timeouts_total",
        Counter,
        "Requests answered 504 because their time was over, all tries together.",
    )
    .sample(&[], read(&counters.overtime));
    if let Some(after_ns) = routes.overdue().known_ns() {
        page.family(
            "sim_proxy_overdue_after_seconds",
            Gauge,
            "A request that has waited so long for its answer is sent to a second instance as well; absent while too few latencies are known.",
        )
        .sample(&[], Nanos(after_ns));
    }
    page.family(
        "sim_proxy_panic_picks_total",
        Counter,
        "Picks of an ejected instance because all were ejected.",
    )
    .sample(&[], routes.panic_picks());
}

fn connections(page: &mut Page, limits: &Limits) {
    use Kind::{Counter, Gauge};
    page.family("sim_proxy_connections", Gauge, "Connections of users.")
        .sample(&[], limits.connections());
    page.family(
        "sim_proxy_connections_refused_total",
        Counter,
        "Connections closed as soon as they had come, by the limit that was reached.",
    );
    for (crowd, name) in Crowd::ALL {
        page.sample(&[("reason", &name)], limits.crowded(crowd));
    }
    page.family(
        "sim_proxy_sources_untracked_total",
        Counter,
        "Connections without a limit by source, because the places for sources that they may have were taken.",
    )
    .sample(&[], limits.untracked());
}

fn logged(page: &mut Page, log: &AccessLog) {
    let tally = log.tally();
    page.family(
        "sim_proxy_access_log_lines_total",
        Kind::Counter,
        "Lines written to the access log.",
    )
    .sample(&[], tally.written.load(Ordering::Relaxed));
    page.family(
        "sim_proxy_access_log_dropped_total",
        Kind::Counter,
        "Lines that were to be there and are not: the writer was too slow, or could not write.",
    )
    .sample(&[], tally.dropped.load(Ordering::Relaxed));
}

fn attempts(page: &mut Page, instances: &[Reading]) {
    page.family("sim_proxy_attempts_total", Kind::Counter, "Ended attempts, by instance, first attempt or retry, and outcome (ok, failed, aborted by the user, overtaken by a later attempt elsewhere).");
    for (live, totals) in instances {
        for (attempt, ends) in [("first", totals.first), ("retry", totals.retry)] {
            for (outcome, count) in [
                ("ok", ends.ok),
                ("failed", ends.failed),
                ("aborted", ends.aborted),
                ("overtaken", ends.overtaken),
            ] {
                let instance = live.id();
                page.sample(
                    &[
                        ("instance", &instance),
                        ("attempt", &attempt),
                        ("outcome", &outcome),
                    ],
                    count,
                );
            }
        }
    }
    page.family("sim_proxy_in_flight", Kind::Gauge, "Attempts in flight.");
    for (live, totals) in instances {
        page.sample(&[("instance", &live.id())], totals.in_flight);
    }
    page.family(
        "sim_proxy_last_pick_monotonic_seconds",
        Kind::Gauge,
        "Last pick, on CLOCK_MONOTONIC; 0 = never.",
    );
    for (live, totals) in instances {
        page.sample(&[("instance", &live.id())], Nanos(totals.last_pick_ns));
    }
}

fn health(page: &mut Page, instances: &[Reading], snapshot: &Snapshot, now_ns: u64) {
    page.family(
        "sim_proxy_ejections_total",
        Kind::Counter,
        "Ejections, failed probes included.",
    );
    for (live, _) in instances {
        page.sample(&[("instance", &live.id())], live.health().ejections());
    }
    page.family(
        "sim_proxy_life_watched",
        Kind::Gauge,
        "1 = the kernel's word on its life is read at each pick.",
    );
    for (live, _) in instances {
        page.sample(&[("instance", &live.id())], u8::from(live.is_watched()));
    }
    page.family(
        "sim_proxy_life_down",
        Kind::Gauge,
        "1 = dead or stopped, as the kernel says.",
    );
    for (live, _) in instances {
        page.sample(&[("instance", &live.id())], u8::from(live.is_down()));
    }
    page.family("sim_proxy_ejected", Kind::Gauge, "1 = ejected now.");
    for (live, _) in instances {
        page.sample(
            &[("instance", &live.id())],
            u8::from(live.health().is_ejected(now_ns) || live.checked().is_out()),
        );
    }
    page.family(
        "sim_proxy_ready",
        Kind::Gauge,
        "1 = proven ready, by the table.",
    );
    for (live, _) in instances {
        let ready = snapshot.upstream(live.id()).is_some_and(|u| u.ready);
        page.sample(&[("instance", &live.id())], u8::from(ready));
    }
    page.family(
        "sim_proxy_weight_ratio",
        Kind::Gauge,
        "Share of new requests, by the table; 0..1.",
    );
    for (live, _) in instances {
        let weight_bp = snapshot.upstream(live.id()).map_or(0, |u| u.weight_bp);
        page.sample(
            &[("instance", &live.id())],
            f64::from(weight_bp) / f64::from(FULL_BP),
        );
    }
}

fn latency(page: &mut Page, instances: &[Reading]) {
    page.family("sim_proxy_request_duration_seconds", Kind::Histogram, "From the request's head to the end of the answer, of answered first attempts. The sum is of bucket midpoints, within 1.6 %.");
    for (live, totals) in instances {
        let instance = live.id();
        histogram(page, &[("instance", &instance)], &totals.latency);
    }
}

/// Samples of a histogram by the counts of its inner buckets.
pub(crate) fn histogram(page: &mut Page, labels: &[(&str, &dyn Display)], counts: &[u64]) {
    let mut counted = 0;
    let mut buckets = counts.iter();
    let mut next = 0;
    let bucket = |page: &mut Page, bound: &dyn Display, counted: u64| {
        let labels = [labels, &[("le", bound)]].concat();
        page.suffixed("_bucket", &labels, counted);
    };
    for bound in bounds_micros() {
        let width = bucket_of(bound) - next;
        next += width;
        counted += buckets.by_ref().take(width).sum::<u64>();
        bucket(page, &(bound as f64 / 1e6), counted);
    }
    let total: u64 = counts.iter().sum();
    let weighed = |(bucket, &count): (usize, &u64)| bucket_mid_micros(bucket) * count as f64;
    let micros: f64 = counts.iter().enumerate().map(weighed).sum();
    bucket(page, &"+Inf", total);
    page.suffixed("_sum", labels, micros / 1e6);
    page.suffixed("_count", labels, total);
}

fn control(
    page: &mut Page,
    snapshot: &Snapshot,
    counters: &Counters,
    routes: &Routes,
    now_ns: u64,
) {
    use Kind::{Counter, Gauge};
    let version = snapshot.version();
    page.family(
        "sim_proxy_table_epoch",
        Gauge,
        "Epoch of the table in force.",
    )
    .sample(&[], version.epoch);
    page.family(
        "sim_proxy_table_generation",
        Gauge,
        "Generation of the table in force.",
    )
    .sample(&[], version.generation);
    page.family(
        "sim_proxy_table_age_seconds",
        Gauge,
        "Since the table in force came (before the first one: since the start).",
    )
    .sample(&[], Nanos(now_ns.saturating_sub(snapshot.applied_at_ns())));
    page.family(
        "sim_proxy_tables_refused_total",
        Counter,
        "Tables refused, by why.",
    )
    .sample(&[("reason", &"older_or_foreign")], routes.refused())
    .sample(
        &[("reason", &"malformed")],
        counters.tables_malformed.load(Ordering::Relaxed),
    );
    page.family(
        "sim_proxy_control_connected",
        Gauge,
        "1 = a control session is up.",
    )
    .sample(
        &[],
        u8::from(counters.control_connected.load(Ordering::Relaxed)),
    );
    page.family(
        "sim_proxy_control_sessions_total",
        Counter,
        "Control sessions so far.",
    )
    .sample(&[], counters.control_sessions.load(Ordering::Relaxed));
}

/// Nanoseconds, written as seconds without loss (a float would lose digits after 104 days of
/// uptime).
struct Nanos(u64);

impl std::fmt::Display for Nanos {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{}.{:09}",
            self.0 / 1_000_000_000,
            self.0 % 1_000_000_000
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::live::InstanceLive;
    use sim_core::histogram::bucket_low_micros;
    use sim_core::name::InstanceId;

    #[test]
    fn exported_bounds_are_exact_and_rise() {
        let bounds: Vec<_> = bounds_micros().collect();
        assert!(
            bounds
                .iter()
                .all(|&bound| bucket_low_micros(bucket_of(bound)) == bound)
        );
        assert!(bounds.is_sorted());
        assert_eq!(
            (bounds.first(), bounds.last()),
            (Some(&64), Some(&100_663_296))
        );
    }

    #[test]
    fn a_latency_is_counted_in_every_bucket_above_it() {
        let live = Arc::new(InstanceLive::new(
            InstanceId(1),
            ([127, 0, 0, 1], 80).into(),
        ));
        live.record_latency(1_000);
        live.record_latency(300_000_000);
        let totals = live.totals();
        let mut page = Page::new(&[]);
        latency(&mut page, &[(live, totals)]);
        let text = page.finish();
        assert!(
            text.contains("_bucket{instance=\"i1\",le=\"0.000768\"} 0\n"),
            "{text}"
        );
        assert!(text.contains("_bucket{instance=\"i1\",le=\"0.001024\"} 1\n"));
        assert!(text.contains("_bucket{instance=\"i1\",le=\"100.663296\"} 1\n"));
        assert!(text.contains("_bucket{instance=\"i1\",le=\"+Inf\"} 2\n"));
        assert!(text.contains("_count{instance=\"i1\"} 2\n"));
    }

    #[test]
    fn stamps_keep_every_nanosecond() {
        assert_eq!(
            Nanos(12_345_678_901_234_567).to_string(),
            "12345678.901234567"
        );
    }
}
