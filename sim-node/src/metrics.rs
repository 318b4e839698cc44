//! What the node knows, as a page for Prometheus.
//!
//! Names are those that people have dashboards for: Coroot's node agent (`container_resources_…`,
//! `container_net_tcp_…`), cAdvisor (`container_memory_…`, `container_network_…`), OpenTelemetry
//! (`http_server_request_duration_seconds`). What has no such name begins with `sim_`. Labels are workload,
//! instance and server; no cgroup, process or address ever makes a series.

mod own;

use crate::cgroup::Usage;
use crate::instance::AcceptQueue;
use crate::signals::Signal;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};
use sim_ebpf::Group::{self, Block, Cpu, Http, Memory, Net, Tcp};
use sim_ebpf::{Cost, Counters, Log2Histogram, Losses};
use std::fmt::Error;

/// All that one page shows.
#[derive(Clone, Debug, Default)]
pub(crate) struct Snapshot {
    pub(crate) server: String,
    pub(crate) instances: Vec<InstanceFigures>,
    /// Name and whether it runs.
    pub(crate) groups: Vec<(&'static str, bool)>,
    /// Where each signal comes from.
    pub(crate) signals: Vec<Signal>,
    pub(crate) cost: Cost,
    pub(crate) losses: Losses,
    pub(crate) reports_lost: u64,
}

/// One instance since its start.
#[derive(Clone, Debug, Default)]
pub(crate) struct InstanceFigures {
    pub(crate) workload: String,
    pub(crate) instance: String,
    /// `None` without probes.
    pub(crate) kernel: Option<Counters>,
    /// Groups that count.
    pub(crate) active: Vec<Group>,
    /// Whether there are files of memory, and of pressure.
    pub(crate) has_memory: bool,
    pub(crate) has_pressure: bool,
    /// `None` without a cgroup: a sum over the processes that live now is no counter.
    pub(crate) files: Option<Usage>,
    /// `None` where the kernel doesn't list listening sockets.
    pub(crate) accept_queue: Option<AcceptQueue>,
}

/// The page in the OpenMetrics text format.
pub(crate) fn page(snapshot: Snapshot) -> Result<String, Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(snapshot));
    let mut page = String::new();
    text::encode(&mut page, &registry)?;
    Ok(page)
}

/// A figure of an instance, if it is known.
type Figure<T> = fn(&InstanceFigures) -> Option<T>;

/// Name without unit and suffix, help, unit, figure.
type Row<T> = (&'static str, &'static str, Option<Unit>, Figure<T>);

fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

/// What a group counted, where it runs: the counters of one that is refused or shed say nothing.
fn kernel<T>(i: &InstanceFigures, group: Group, figure: impl Fn(&Counters) -> T) -> Option<T> {
    let active = i.active.contains(&group);
    i.kernel.as_ref().filter(|_| active).map(figure)
}

fn files<T>(i: &InstanceFigures, figure: impl Fn(&Usage) -> T) -> Option<T> {
    i.files.as_ref().map(figure)
}

fn memory<T>(i: &InstanceFigures, figure: impl Fn(&Usage) -> T) -> Option<T> {
    files(i, figure).filter(|_| i.has_memory)
}

fn pressure(i: &InstanceFigures, figure: impl Fn(&Usage) -> u64) -> Option<f64> {
    files(i, |f| micros(figure(f))).filter(|_| i.has_pressure)
}

fn micros(micros: u64) -> f64 {
    micros as f64 / 1e6
}

const fn times() -> [Row<f64>; 8] {
    [
        (
            "container_resources_cpu_usage",
            "CPU time used",
            Some(Unit::Seconds),
            // Not the probes', which may be shed: a counter has one source for life.
            |i| files(i, |f| micros(f.cpu_micros)),
        ),
        (
            "container_resources_cpu_delay",
            "Time that tasks were runnable and waited for a CPU that others held",
            Some(Unit::Seconds),
            |i| kernel(i, Cpu, |k| seconds(k.run_queue_delay_ns)),
        ),
        (
            "container_resources_cpu_throttled",
            "Time held back by the own CPU quota, all CPUs together",
            Some(Unit::Seconds),
            |i| files(i, |f| micros(f.throttled_micros)),
        ),
        (
            "container_resources_cpu_psi_waiting",
            "Time that some task waited for a CPU (pressure stall information)",
            Some(Unit::Seconds),
            |i| pressure(i, |f| f.cpu_pressure_micros),
        ),
        (
            "container_resources_memory_psi_waiting",
            "Time that some task waited for memory (pressure stall information)",
            Some(Unit::Seconds),
            |i| pressure(i, |f| f.memory_pressure_micros),
        ),
        (
            "container_resources_io_psi_waiting",
            "Time that some task waited for I/O (pressure stall information)",
            Some(Unit::Seconds),
            |i| pressure(i, |f| f.io_pressure_micros),
        ),
        (
            "sim_container_net_tcp_accept_wait",
            "Time that connections waited to be accepted, sampled each tick; over accepts it is the mean",
            Some(Unit::Seconds),
            |i| i.accept_queue.map(|queue| queue.waited_seconds),
        ),
        (
            "sim_container_memory_reclaim",
            "Time that tasks spent freeing memory instead of running",
            Some(Unit::Seconds),
            |i| kernel(i, Memory, |k| seconds(k.reclaim_ns)),
        ),
    ]
}

const fn counts() -> [Row<u64>; 19] {
    [
        (
            "sim_container_cpu_switches",
            "Times that a task left a CPU",
            None,
            |i| kernel(i, Cpu, |k| k.switches),
        ),
        (
            "sim_container_cpu_migrations",
            "Times that a task left another CPU than the time before",
            None,
            |i| kernel(i, Cpu, |k| k.migrations),
        ),
        (
            "container_oom_kills",
            "Processes that the OOM killer ended",
            None,
            |i| memory(i, |f| f.oom_kills),
        ),
        (
            "container_memory_major_page_faults",
            "Page faults that waited for a device",
            None,
            |i| memory(i, |f| f.major_faults),
        ),
        (
            "container_resources_disk_reads",
            "Completed reads",
            None,
            |i| kernel(i, Block, |k| k.block_read_ops),
        ),
        (
            "container_resources_disk_writes",
            "Completed writes",
            None,
            |i| kernel(i, Block, |k| k.block_write_ops),
        ),
        (
            "container_resources_disk_read_bytes",
            "Bytes read from block devices",
            None,
            |i| kernel(i, Block, |k| k.block_read_bytes),
        ),
        (
            "container_resources_disk_written_bytes",
            "Bytes written to block devices",
            None,
            |i| kernel(i, Block, |k| k.block_write_bytes),
        ),
        (
            "sim_container_disk_errors",
            "Block operations that failed",
            None,
            |i| kernel(i, Block, |k| k.block_errors),
        ),
        (
            "container_network_receive_bytes",
            "Bytes received, IP headers included",
            None,
            |i| kernel(i, Net, |k| k.net_rx_bytes),
        ),
        (
            "container_network_transmit_bytes",
            "Bytes sent, IP headers included",
            None,
            |i| kernel(i, Net, |k| k.net_tx_bytes),
        ),
        (
            "container_network_receive_packets",
            "Packets received",
            None,
            |i| kernel(i, Net, |k| k.net_rx_packets),
        ),
        (
            "container_network_transmit_packets",
            "Packets sent",
            None,
            |i| kernel(i, Net, |k| k.net_tx_packets),
        ),
        (
            "container_net_tcp_successful_connects",
            "TCP connections made from here",
            None,
            |i| kernel(i, Tcp, |k| k.connects),
        ),
        (
            "container_net_tcp_failed_connects",
            "TCP connections from here that were refused or timed out",
            None,
            |i| kernel(i, Tcp, |k| k.connect_failures),
        ),
        (
            "sim_container_net_tcp_accepts",
            "TCP connections made to here",
            None,
            |i| kernel(i, Tcp, |k| k.accepts),
        ),
        (
            "sim_container_net_tcp_retransmits",
            "TCP segments sent again",
            None,
            |i| kernel(i, Tcp, |k| k.retransmits),
        ),
        (
            "sim_container_net_tcp_listen_drops",
            "TCP connections dropped by listening sockets, for want of room in their queue above all",
            None,
            |i| i.accept_queue.map(|queue| queue.dropped),
        ),
        (
            "sim_container_net_tcp_resets",
            "TCP resets sent and received",
            None,
            |i| kernel(i, Tcp, |k| k.resets_sent.saturating_add(k.resets_received)),
        ),
    ]
}

const fn gauges() -> [Row<u64>; 3] {
    [
        (
            "sim_container_net_tcp_accept_queue",
            "TCP connections that wait to be accepted",
            None,
            |i| i.accept_queue.map(|queue| queue.waiting),
        ),
        (
            "container_memory_usage_bytes",
            "Memory charged now",
            None,
            |i| memory(i, |f| f.memory_bytes),
        ),
        (
            "container_memory_working_set_bytes",
            "Memory charged now without file pages that nobody used lately",
            None,
            |i| memory(i, |f| f.working_set_bytes),
        ),
    ]
}

/// Histogram and the sum of its values in nanoseconds, where it is kept.
type Durations = (Log2Histogram, Option<u64>);

const fn histograms() -> [Row<Durations>; 5] {
    [
        (
            "sim_container_cpu_run_queue_delay",
            "From runnable to running, while there was quota",
            Some(Unit::Seconds),
            |i| kernel(i, Cpu, |k| (k.run_queue_hist, Some(k.run_queue_delay_ns))),
        ),
        (
            "sim_container_disk_latency",
            "Block I/O from issue to completion",
            Some(Unit::Seconds),
            |i| kernel(i, Block, |k| (k.block_hist, Some(k.block_latency_ns))),
        ),
        (
            "sim_container_disk_queue",
            "Block I/O from its making to its issue",
            Some(Unit::Seconds),
            |i| kernel(i, Block, |k| (k.block_queue_hist, Some(k.block_queue_ns))),
        ),
        (
            "sim_container_net_tcp_rtt",
            "Smoothed round-trip time at each TCP packet sent with data; the sum is estimated",
            Some(Unit::Seconds),
            |i| kernel(i, Net, |k| (k.rtt_hist, None)),
        ),
        (
            "http_server_request_duration",
            "Clear-text HTTP/1 requests, from their first packet to the first of their final response",
            Some(Unit::Seconds),
            |i| kernel(i, Http, |k| (k.http_hist, Some(k.http_service_ns))),
        ),
    ]
}

impl Collector for Snapshot {
    fn encode(&self, mut to: DescriptorEncoder<'_>) -> Result<(), Error> {
        for (name, help, unit, figure) in &times() {
            let mut family =
                to.encode_descriptor(name, help, unit.as_ref(), MetricType::Counter)?;
            for (labels, value) in self.known(*figure) {
                let mut metric = family.encode_family(&labels)?;
                metric.encode_counter::<NoLabelSet, _, f64>(&value, None)?;
            }
        }
        for (name, help, unit, figure) in &counts() {
            let mut family =
                to.encode_descriptor(name, help, unit.as_ref(), MetricType::Counter)?;
            for (labels, value) in self.known(*figure) {
                let mut metric = family.encode_family(&labels)?;
                metric.encode_counter::<NoLabelSet, _, f64>(&value, None)?;
            }
        }
        for (name, help, unit, figure) in &gauges() {
            let mut family = to.encode_descriptor(name, help, unit.as_ref(), MetricType::Gauge)?;
            for (labels, value) in self.known(*figure) {
                family.encode_family(&labels)?.encode_gauge(&value)?;
            }
        }
        for (name, help, unit, figure) in &histograms() {
            let kind = MetricType::Histogram;
            let mut family = to.encode_descriptor(name, help, unit.as_ref(), kind)?;
            for (labels, (histogram, sum_ns)) in self.known(*figure) {
                let (sum, buckets) = buckets(&histogram, sum_ns);
                let mut metric = family.encode_family(&labels)?;
                metric.encode_histogram::<NoLabelSet>(sum, histogram.total(), &buckets, None)?;
            }
        }
        self.responses(&mut to)?;
        self.own(&mut to)
    }
}

impl Snapshot {
    fn known<T>(&self, figure: Figure<T>) -> Vec<([(&'static str, &str); 3], T)> {
        let instances = self.instances.iter();
        instances
            .filter_map(|i| figure(i).map(|value| (self.labels(i), value)))
            .collect()
    }

    fn labels<'a>(&'a self, of: &'a InstanceFigures) -> [(&'static str, &'a str); 3] {
        [
            ("workload", &of.workload),
            ("instance", &of.instance),
            ("server", &self.server),
        ]
    }

    /// By status class: five more series for each instance, whatever the service answers.
    fn responses(&self, to: &mut DescriptorEncoder<'_>) -> Result<(), Error> {
        const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];
        let mut family = to.encode_descriptor(
            "sim_container_http_responses",
            "Clear-text HTTP/1 responses by status class",
            None,
            MetricType::Counter,
        )?;
        for instance in &self.instances {
            let Some(responses) = kernel(instance, Http, |k| k.http_responses) else {
                continue;
            };
            for (class, count) in CLASSES.into_iter().zip(responses) {
                let [a, b, c] = self.labels(instance);
                let labels = [a, b, c, ("status", class)];
                let mut metric = family.encode_family(&labels)?;
                metric.encode_counter::<NoLabelSet, _, f64>(&count, None)?;
            }
        }
        Ok(())
    }
}

/// Sum in seconds and buckets by their upper bounds in seconds. A sum that isn't kept is put together from
/// the middles of the buckets.
fn buckets(histogram: &Log2Histogram, sum_ns: Option<u64>) -> (f64, Vec<(f64, u64)>) {
    let mut lower = 0.0;
    let mut middles = 0.0;
    let mut buckets = Vec::new();
    for (upper_ns, count) in histogram.buckets() {
        let upper = upper_ns.map_or(f64::MAX, seconds);
        let middle = if upper_ns.is_some() {
            f64::midpoint(lower, upper)
        } else {
            lower
        };
        middles += middle * count as f64;
        lower = upper;
        buckets.push((upper, count));
    }
    (sum_ns.map_or(middles, seconds), buckets)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::signals::Quality;
    use sim_ebpf::ProgramCost;

    fn snapshot() -> Snapshot {
        let mut buckets = [0; 32];
        buckets[1] = 3;
        buckets[11] = 1;
        let kernel = Counters {
            run_queue_delay_ns: 250_000_000,
            rtt_hist: Log2Histogram::from(sim_ebpf::RawHistogram { buckets }),
            http_responses: [0, 7, 0, 0, 1],
            ..Counters::default()
        };
        Snapshot {
            server: "a".into(),
            instances: vec![InstanceFigures {
                workload: "web".into(),
                instance: "i1".into(),
                kernel: Some(kernel),
                active: Group::ALL.to_vec(),
                has_memory: true,
                has_pressure: true,
                files: Some(Usage {
                    cpu_micros: 1_500_000,
                    working_set_bytes: 4_096,
                    ..Usage::default()
                }),
                accept_queue: Some(AcceptQueue {
                    waiting: 2,
                    waited_seconds: 3.5,
                    dropped: 4,
                }),
            }],
            groups: vec![("cpu", true), ("net", false)],
            signals: vec![Signal {
                name: "pressure",
                source: "PSI: cpu.pressure",
                quality: Quality::Exact,
            }],
            cost: Cost {
                programs: vec![ProgramCost {
                    name: "sched_switch".into(),
                    run_ns: 2_000_000_000,
                    run_count: 9,
                    missed_count: 2,
                }],
                ..Cost::default()
            },
            losses: Losses::default(),
            reports_lost: 3,
        }
    }

    #[test]
    fn the_page_has_known_names_base_units_and_only_bounded_labels() {
        let page = page(snapshot()).expect("a page");
        let of = r#"{workload="web",instance="i1",server="a"}"#;
        for line in [
            format!("container_resources_cpu_usage_seconds_total{of} 1.5"),
            format!("container_resources_cpu_delay_seconds_total{of} 0.25"),
            format!("container_memory_working_set_bytes{of} 4096"),
            format!("sim_container_net_tcp_accept_wait_seconds_total{of} 3.5"),
            format!("sim_container_net_tcp_listen_drops_total{of} 4"),
            r#"sim_container_http_responses_total{workload="web",instance="i1",server="a",status="5xx"} 1"#.into(),
            r#"sim_probe_run_seconds_total{server="a",program="sched_switch"} 2.0"#.into(),
            r#"sim_probe_missed_runs_total{server="a",program="sched_switch"} 2"#.into(),
            r#"sim_probe_group_active{server="a",group="net"} 0"#.into(),
            r#"sim_signal_info{server="a",signal="pressure",source="PSI: cpu.pressure",quality="exact"} 1"#.into(),
            r#"sim_node_reports_lost_total{server="a"} 3"#.into(),
        ] {
            assert!(page.lines().any(|l| l == line), "no {line} in:\n{page}");
        }
        assert!(page.ends_with("# EOF\n"));
    }

    #[test]
    fn a_histogram_is_cumulative_and_a_sum_that_is_not_kept_is_estimated() {
        let page = page(snapshot()).expect("a page");
        let lines: Vec<&str> = page
            .lines()
            .filter(|l| l.starts_with("sim_container_net_tcp_rtt_seconds"))
            .collect();
        let value = |part: &str| {
            let line = lines.iter().find(|l| l.contains(part)).expect("a line");
            line.rsplit(' ')
                .next()
                .expect("a value")
                .parse::<f64>()
                .expect("a number")
        };
        assert!((value("_count") - 4.0).abs() < 1e-9);
        assert!((value("le=\"+Inf\"") - 4.0).abs() < 1e-9);
        assert!((value("le=\"0.000002048\"") - 3.0).abs() < 1e-9);
        // Three of 1 to 2 µs, one of 1 to 2 ms.
        assert!((value("_sum") - 0.001_577_5).abs() < 1e-6, "{lines:?}");
    }

    #[test]
    fn what_is_not_known_is_not_shown() {
        let mut snapshot = snapshot();
        snapshot.instances[0].active = vec![Cpu];
        let shed = page(snapshot.clone()).expect("a page");
        assert!(shed.contains("container_resources_cpu_delay_seconds_total{"));
        for family in [
            "network_receive",
            "http",
            "net_tcp_retransmits",
            "disk_reads",
        ] {
            let shown = |line: &&str| line.contains(family) && line.contains("instance=");
            assert_eq!(shed.lines().find(shown), None);
        }
        snapshot.instances[0].kernel = None;
        snapshot.instances[0].files = None;
        snapshot.instances[0].accept_queue = None;
        let page = page(snapshot).expect("a page");
        assert!(!page.contains("instance="), "{page}");
    }
}
