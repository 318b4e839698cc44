//! One cgroup's figures as they are shown and printed: rates a second, times in seconds.

use serde::Serialize;
use sim_ebpf::{Group, Log2Histogram};
use sim_node::host::Reading;

/// One cgroup in one look.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct View {
    /// Path below the cgroup mount.
    pub(crate) cgroup: String,
    /// Time that the figures cover, in seconds.
    pub(crate) window_seconds: f64,
    /// `probes`, or `files` where no probe runs: then what is nested is included. `sim sense --signals`
    /// has it for each signal.
    pub(crate) source: &'static str,
    pub(crate) cpu: Cpu,
    /// None where its probes don't run, as below.
    pub(crate) block: Option<Block>,
    pub(crate) network: Network,
    pub(crate) requests: Option<Requests>,
    pub(crate) memory: Memory,
    pub(crate) pressure: Option<Pressure>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Cpu {
    /// CPUs used.
    pub(crate) cpus: f64,
    pub(crate) switches_per_second: Option<f64>,
    pub(crate) migrations_per_second: Option<f64>,
    /// Runnable without running, while there was quota.
    pub(crate) run_queue_delay: Option<Times>,
    /// Runnable without running because the own quota was used up: seconds a second, of all tasks together;
    /// without probes, of all CPUs.
    pub(crate) throttled: f64,
    /// Who held the CPU meanwhile, the longest first: waiting time of all tasks together.
    pub(crate) neighbours: Option<Vec<Neighbour>>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Neighbour {
    pub(crate) cgroup: String,
    pub(crate) seconds_per_second: f64,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Block {
    pub(crate) read_bytes_per_second: f64,
    pub(crate) write_bytes_per_second: f64,
    pub(crate) operations_per_second: f64,
    /// From issue to the device to completion.
    pub(crate) latency: Times,
    /// From the request's making to its issue.
    pub(crate) queue: Times,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Network {
    pub(crate) receive_bytes_per_second: Option<f64>,
    pub(crate) transmit_bytes_per_second: Option<f64>,
    pub(crate) retransmits_per_second: Option<f64>,
    /// Made from here, and made to here.
    pub(crate) connects_per_second: Option<f64>,
    pub(crate) connect_failures_per_second: Option<f64>,
    pub(crate) accepts_per_second: Option<f64>,
    pub(crate) resets_received_per_second: Option<f64>,
    pub(crate) resets_sent_per_second: Option<f64>,
    /// Connections that wait to be accepted; none without a listening socket in this network namespace.
    pub(crate) accept_queue: Option<u64>,
    /// Connections that a listening socket dropped, for want of room above all.
    pub(crate) listen_drops_per_second: Option<f64>,
    /// Smoothed round trip of its sockets.
    pub(crate) round_trip: Option<Times>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Requests {
    pub(crate) per_second: f64,
    /// Final responses a second by status class, 1xx to 5xx.
    pub(crate) responses_per_second: [f64; 5],
    /// Clear-text HTTP/1, at the server.
    pub(crate) service: Times,
    /// CPU time used over responses given, in seconds; none without responses.
    pub(crate) demand_seconds: Option<f64>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Memory {
    pub(crate) bytes: Option<u64>,
    pub(crate) working_set_bytes: Option<u64>,
    pub(crate) major_faults_per_second: Option<f64>,
    /// Seconds a second spent freeing memory.
    pub(crate) reclaim: Option<f64>,
    /// In this look.
    pub(crate) oom_kills: Option<u64>,
}

/// Seconds a second that some task waited (PSI, "some").
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Pressure {
    pub(crate) cpu: f64,
    pub(crate) memory: f64,
    pub(crate) io: f64,
}

/// A histogram's summary; quantiles are off by less than a factor of two.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Times {
    pub(crate) count: u64,
    pub(crate) mean_seconds: Option<f64>,
    pub(crate) p50_seconds: Option<f64>,
    pub(crate) p99_seconds: Option<f64>,
    #[serde(skip)]
    pub(crate) histogram: Log2Histogram,
}

impl Times {
    fn of(histogram: Log2Histogram, sum_ns: Option<u64>) -> Self {
        let count = histogram.total();
        let quantile = |q| histogram.quantile_ns(q).map(|ns| ns / 1e9);
        let mean = |sum: u64| sum as f64 / count as f64 / 1e9;
        Self {
            count,
            mean_seconds: sum_ns.filter(|_| count > 0).map(mean),
            p50_seconds: quantile(0.50),
            p99_seconds: quantile(0.99),
            histogram,
        }
    }
}

/// What there is to know here.
pub(crate) struct Known<Active> {
    /// Which groups of probes run.
    pub(crate) active: Active,
    /// Files of pressure.
    pub(crate) pressure: bool,
}

impl View {
    /// What is not known is no figure.
    pub(crate) fn of(reading: &Reading, known: &Known<impl Fn(Group) -> bool>) -> Self {
        let seconds = reading.window.as_secs_f64().max(1e-6);
        let files = &reading.files;
        let of = |group: Group| reading.kernel.as_ref().filter(|_| (known.active)(group));
        let rate = |count: u64| count as f64 / seconds;
        let share_ns = |ns: u64| ns as f64 / 1e9 / seconds;
        let share_micros = |micros: u64| micros as f64 / 1e6 / seconds;
        let neighbour = |(cgroup, time): &(String, std::time::Duration)| Neighbour {
            cgroup: cgroup.clone(),
            seconds_per_second: time.as_secs_f64() / seconds,
        };
        let (cpu, net, tcp) = (of(Group::Cpu), of(Group::Net), of(Group::Tcp));
        let cpu_ns = cpu.map_or(files.cpu_micros.saturating_mul(1_000), |k| k.on_cpu_ns);
        Self {
            cgroup: reading.cgroup.clone(),
            window_seconds: seconds,
            source: if reading.kernel.is_some() {
                "probes"
            } else {
                "files"
            },
            cpu: Cpu {
                cpus: share_ns(cpu_ns),
                switches_per_second: cpu.map(|k| rate(k.switches)),
                migrations_per_second: cpu.map(|k| rate(k.migrations)),
                run_queue_delay: cpu
                    .map(|k| Times::of(k.run_queue_hist, Some(k.run_queue_delay_ns))),
                throttled: match cpu {
                    Some(k) => share_ns(k.throttled_ns),
                    None => share_micros(files.throttled_micros),
                },
                neighbours: cpu.map(|_| reading.neighbours.iter().map(neighbour).collect()),
            },
            block: of(Group::Block).map(|k| Block {
                read_bytes_per_second: rate(k.block_read_bytes),
                write_bytes_per_second: rate(k.block_write_bytes),
                operations_per_second: rate(k.block_ops()),
                latency: Times::of(k.block_hist, Some(k.block_latency_ns)),
                queue: Times::of(k.block_queue_hist, Some(k.block_queue_ns)),
            }),
            network: Network {
                receive_bytes_per_second: net.map(|k| rate(k.net_rx_bytes)),
                transmit_bytes_per_second: net.map(|k| rate(k.net_tx_bytes)),
                retransmits_per_second: tcp.map(|k| rate(k.retransmits)),
                connects_per_second: tcp.map(|k| rate(k.connects)),
                connect_failures_per_second: tcp.map(|k| rate(k.connect_failures)),
                accepts_per_second: tcp.map(|k| rate(k.accepts)),
                resets_received_per_second: tcp.map(|k| rate(k.resets_received)),
                resets_sent_per_second: tcp.map(|k| rate(k.resets_sent)),
                accept_queue: reading.accept_queue.map(|queue| queue.waiting),
                listen_drops_per_second: reading.accept_queue.map(|queue| rate(queue.dropped)),
                round_trip: net.map(|k| Times::of(k.rtt_hist, None)),
            },
            requests: of(Group::Http).map(|k| {
                let responses: u64 = k.http_responses.iter().sum();
                Requests {
                    per_second: rate(k.http_requests),
                    responses_per_second: k.http_responses.map(rate),
                    service: Times::of(k.http_hist, Some(k.http_service_ns)),
                    demand_seconds: cpu
                        .filter(|_| responses > 0)
                        .map(|k| k.on_cpu_ns as f64 / 1e9 / responses as f64),
                }
            }),
            memory: Memory {
                bytes: reading.has_memory.then_some(files.memory_bytes),
                working_set_bytes: reading.has_memory.then_some(files.working_set_bytes),
                major_faults_per_second: reading.has_memory.then(|| rate(files.major_faults)),
                reclaim: of(Group::Memory).map(|k| share_ns(k.reclaim_ns)),
                oom_kills: reading.has_memory.then_some(files.oom_kills),
            },
            pressure: known.pressure.then(|| Pressure {
                cpu: share_micros(files.cpu_pressure_micros),
                memory: share_micros(files.memory_pressure_micros),
                io: share_micros(files.io_pressure_micros),
            }),
        }
    }

    /// Nothing ran, nothing was sent, nothing was read.
    pub(crate) fn is_idle(&self) -> bool {
        self.cpu.cpus == 0.0
            && self
                .block
                .as_ref()
                .is_none_or(|block| block.operations_per_second == 0.0)
            && self.network.receive_bytes_per_second.unwrap_or(0.0) == 0.0
            && self.network.transmit_bytes_per_second.unwrap_or(0.0) == 0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sim_ebpf::Counters;
    use sim_node::Queue;
    use sim_node::cgroup::Usage;
    use std::time::Duration;

    fn known<Active: Fn(Group) -> bool>(active: Active) -> Known<Active> {
        Known {
            active,
            pressure: true,
        }
    }

    fn reading(kernel: Option<Counters>) -> Reading {
        Reading {
            cgroup: "/a".into(),
            window: Duration::from_secs(2),
            kernel,
            files: Usage {
                cpu_micros: 500_000,
                throttled_micros: 100_000,
                ..Usage::default()
            },
            has_memory: false,
            accept_queue: Some(Queue {
                waiting: 3,
                dropped: 4,
            }),
            neighbours: vec![("/b".into(), Duration::from_millis(30))],
        }
    }

    #[test]
    fn rates_are_a_second_and_demand_is_a_response() {
        let counters = Counters {
            on_cpu_ns: 1_000_000_000,
            http_requests: 120,
            http_responses: [0, 80, 0, 15, 5],
            ..Counters::default()
        };
        let view = View::of(&reading(Some(counters)), &known(|_| true));
        assert_eq!(view.source, "probes");
        assert!((view.cpu.cpus - 0.5).abs() < 1e-9);
        let requests = view.requests.as_ref().unwrap();
        assert!((requests.per_second - 60.0).abs() < 1e-9);
        assert!((requests.demand_seconds.unwrap() - 0.01).abs() < 1e-9);
        assert_eq!(view.cpu.neighbours.as_ref().unwrap()[0].cgroup, "/b");
        assert_eq!(view.network.accept_queue, Some(3));
        assert_eq!(view.network.listen_drops_per_second, Some(2.0));
        assert!(!view.is_idle());
    }

    #[test]
    fn without_probes_the_files_speak() {
        let view = View::of(&reading(None), &known(|_| false));
        assert_eq!(view.source, "files");
        assert!((view.cpu.cpus - 0.25).abs() < 1e-9);
        assert!((view.cpu.throttled - 0.05).abs() < 1e-9);
        assert_eq!((view.requests, view.block), (None, None));
    }

    #[test]
    fn what_a_refused_group_did_not_count_is_no_zero() {
        let counters = Counters {
            http_responses: [0, 50, 0, 0, 0],
            ..Counters::default()
        };
        let view = View::of(
            &reading(Some(counters)),
            &known(|group| group == Group::Http),
        );
        assert!((view.cpu.cpus - 0.25).abs() < 1e-9, "of the files");
        assert_eq!(view.cpu.switches_per_second, None);
        assert_eq!(view.network.receive_bytes_per_second, None);
        assert_eq!(view.network.accept_queue, Some(3));
        let requests = view.requests.unwrap();
        assert!((requests.responses_per_second[1] - 25.0).abs() < 1e-9);
        assert_eq!(
            requests.demand_seconds, None,
            "files count nested cgroups too"
        );
        assert_eq!((view.memory.bytes, view.cpu.neighbours), (None, None));
        assert!(view.pressure.is_some());
    }
}
