//! What `/metrics` says of each instance beyond its counts: how fast it is of late, and what goes wrong there.

use crate::clock::monotonic_ns;
use crate::errors::ErrorClass;
use crate::exposition::{Kind, Page};
use crate::live::InstanceLive;
use crate::quantiles::{QUANTILES, WINDOWS};

/// The families of `instances`.
pub(crate) fn render<'a>(page: &mut Page, instances: impl Iterator<Item = &'a InstanceLive>) {
    let instances: Vec<_> = instances.collect();
    page.family(
        "sim_proxy_latency_seconds",
        Kind::Gauge,
        "Quantiles of the latency of answered first attempts over the last 10 and 60 s, within 3.1 %; absent where none was answered. One that was overtaken counts with the time it had by then.",
    );
    for live in &instances {
        for (window, (_, span)) in WINDOWS.into_iter().enumerate() {
            for (at, (_, quantile)) in QUANTILES.into_iter().enumerate() {
                if let Some(micros) = live.quantiles().micros(window, at) {
                    let labels: [(&str, &dyn std::fmt::Display); 3] = [
                        ("instance", &live.id()),
                        ("window", &span),
                        ("quantile", &quantile),
                    ];
                    page.sample(&labels, micros as f64 / 1e6);
                }
            }
        }
    }
    checks(page, &instances);
    page.family(
        "sim_proxy_slow_start_ratio",
        Kind::Gauge,
        "Part of its weight that an instance gets; below 1 while it comes back.",
    );
    let now_ns = monotonic_ns();
    for live in &instances {
        let part = live.health().ramp().part(now_ns) as f64 / u64::MAX as f64;
        page.sample(&[("instance", &live.id())], part);
    }
    page.family(
        "sim_proxy_instance_errors_total",
        Kind::Counter,
        "What went wrong at an instance, by class: connect (no connection), reset (broke off), timeout, malformed (no HTTP), down (stopped or dead, says the kernel), refused (a stream of HTTP/2), late (given up, see proxy.hedge.late_factor), 5xx (and failed gRPC calls), 4xx, tls (its certificate isn't good, or it takes none of ours).",
    );
    for live in &instances {
        for (class, name) in ErrorClass::ALL {
            let count = live.errors().of(class);
            page.sample(&[("instance", &live.id()), ("class", &name)], count);
        }
    }
}

fn checks(page: &mut Page, instances: &[&InstanceLive]) {
    page.family(
        "sim_proxy_checks_total",
        Kind::Counter,
        "Active checks (proxy.check), by outcome.",
    );
    for live in instances {
        let [passed, failed, _] = live.checked().counts();
        for (outcome, count) in [("passed", passed), ("failed", failed)] {
            page.sample(&[("instance", &live.id()), ("outcome", &outcome)], count);
        }
    }
    page.family(
        "sim_proxy_check_falls_total",
        Kind::Counter,
        "How often active checks took an instance out.",
    );
    for live in instances {
        let [.., falls] = live.checked().counts();
        page.sample(&[("instance", &live.id())], falls);
    }
    page.family(
        "sim_proxy_check_out",
        Kind::Gauge,
        "1 = taken out by active checks now.",
    );
    for live in instances {
        let is_out = u8::from(live.checked().is_out());
        page.sample(&[("instance", &live.id())], is_out);
    }
}
