//! Where each signal comes from on this machine at present, and how good it is.

use sim_ebpf::Group;
use std::fmt;

/// One thing that is sensed of a workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signal {
    /// Its name: words of small letters with underscores.
    pub name: &'static str,
    /// Kind of source and what in it; empty where there is none.
    pub source: &'static str,
    /// How good it is there.
    pub quality: Quality,
}

/// What a signal's figures are worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Quality {
    /// Nothing is known.
    Absent,
    /// Another figure that goes up and down with it.
    Indirect,
    /// Looked at now and then; right over many looks.
    Sampled,
    /// Each event counts. Quantiles of histograms are off by less than a factor of two all the same.
    Exact,
}

impl Quality {
    /// In small letters.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Absent => "absent",
            Self::Indirect => "indirect",
            Self::Sampled => "sampled",
            Self::Exact => "exact",
        }
    }
}

impl fmt::Display for Quality {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// What there is to read from.
#[derive(Clone, Copy)]
pub(crate) struct Means<'a> {
    /// Groups of probes that run.
    pub(crate) active: &'a dyn Fn(Group) -> bool,
    /// Files of a cgroup for each workload, rather than `/proc`.
    pub(crate) cgroups: bool,
    /// The list of listening sockets.
    pub(crate) listeners: bool,
    /// A node rather than `sim sense`: it has a descriptor of each main process, takes CPU time and throttling
    /// from files, which no group that is shed takes away, and shows neither neighbours nor demand.
    pub(crate) node: bool,
    /// Files that say how much memory is held.
    pub(crate) memory: bool,
    /// Files of pressure.
    pub(crate) pressure: bool,
}

type Origin = (&'static str, Quality);

const NONE: Origin = ("", Quality::Absent);

/// A signal, the groups it takes, what it is with them, and what from files without.
type Row = (&'static str, &'static [Group], Origin, Origin);

const ROWS: &[Row] = {
    use Group::{Block, Cpu, Http, Memory, Net, Tcp};
    use Quality::{Exact, Indirect, Sampled};
    &[
        (
            "cpu_time",
            &[Cpu],
            ("probe: sched_switch", Exact),
            ("cgroup file: cpu.stat", Exact),
        ),
        (
            "run_queue_delay",
            &[Cpu],
            ("probe: sched_switch", Exact),
            ("PSI: cpu.pressure", Indirect),
        ),
        ("switches", &[Cpu], ("probe: sched_switch", Exact), NONE),
        ("migrations", &[Cpu], ("probe: sched_switch", Exact), NONE),
        (
            "throttling",
            &[Cpu],
            (
                "probe: sched_switch, and sched_wakeup before Linux 6.18",
                Exact,
            ),
            ("cgroup file: cpu.stat", Exact),
        ),
        ("neighbour", &[Cpu], ("probe: sched_switch", Sampled), NONE),
        (
            "block_io",
            &[Block],
            (
                "probe: block_rq_insert, block_rq_issue, block_rq_complete",
                Exact,
            ),
            ("PSI: io.pressure", Indirect),
        ),
        (
            "network",
            &[Net],
            ("probe: packets of its sockets", Exact),
            NONE,
        ),
        (
            "round_trip",
            &[Net],
            ("probe: packets of its sockets", Sampled),
            NONE,
        ),
        (
            "retransmits",
            &[Tcp],
            ("probe: tcp_retransmit_skb", Exact),
            NONE,
        ),
        (
            "connects",
            &[Tcp],
            ("probe: inet_sock_set_state", Exact),
            NONE,
        ),
        (
            "resets",
            &[Tcp],
            ("probe: tcp_send_reset, tcp_receive_reset", Exact),
            NONE,
        ),
        (
            "requests",
            &[Http],
            ("probe: packets of its sockets", Exact),
            NONE,
        ),
        (
            "service_demand",
            &[Http, Cpu],
            ("probe: sched_switch, packets of its sockets", Exact),
            NONE,
        ),
        (
            "reclaim",
            &[Memory],
            ("probe: mm_vmscan_*_reclaim_*", Exact),
            ("PSI: memory.pressure", Indirect),
        ),
    ]
};

/// What only `sim sense` shows.
const HOST_ONLY: &[&str] = &["neighbour", "service_demand"];

/// What a node takes from files though probes have it too.
const FILES_ONLY_AT_NODE: &[&str] = &["cpu_time", "throttling"];

/// All signals.
pub(crate) fn all(means: Means<'_>) -> Vec<Signal> {
    let signal = |name, (source, quality): Origin| Signal {
        name,
        source,
        quality,
    };
    let file = |there: bool, source| {
        if there {
            (source, Quality::Exact)
        } else {
            NONE
        }
    };
    let mut signals: Vec<Signal> = ROWS
        .iter()
        .filter(|(name, ..)| !(means.node && HOST_ONLY.contains(name)))
        .map(|&(name, groups, probed, filed)| {
            let by_probe = !(means.node && FILES_ONLY_AT_NODE.contains(&name));
            let origin = if by_probe && groups.iter().all(|&group| (means.active)(group)) {
                probed
            } else if means.cgroups && (means.pressure || !filed.0.starts_with("PSI")) {
                filed
            } else if name == "cpu_time" {
                ("/proc: stat of each process", Quality::Exact)
            } else {
                NONE
            };
            signal(name, origin)
        })
        .collect();
    let accepting = if means.listeners {
        ("netlink: sock_diag", Quality::Sampled)
    } else {
        NONE
    };
    let death = if (means.active)(Group::Life) {
        ("probe: sched_process_exit, signal_generate", Quality::Exact)
    } else if means.node {
        ("pidfd", Quality::Exact)
    } else {
        NONE
    };
    let memory = if means.cgroups {
        file(means.memory, "cgroup file: memory.stat")
    } else {
        ("/proc: stat of each process", Quality::Indirect)
    };
    signals.extend([
        signal("accept_queue", accepting),
        signal("listen_drops", accepting),
        signal("memory", memory),
        signal(
            "oom_kills",
            file(
                means.cgroups && means.memory,
                "cgroup file: memory.events, memory.oom_control",
            ),
        ),
        signal(
            "pressure",
            file(
                means.cgroups && means.pressure,
                "PSI: cpu.pressure, memory.pressure, io.pressure",
            ),
        ),
        signal("death", death),
    ]);
    signals
}

#[cfg(test)]
mod tests {
    use super::*;

    fn means(active: &dyn Fn(Group) -> bool) -> Means<'_> {
        Means {
            active,
            cgroups: true,
            listeners: true,
            node: false,
            memory: true,
            pressure: true,
        }
    }

    fn named(means: Means<'_>, name: &str) -> Option<Signal> {
        let mut found = all(means).into_iter().filter(|signal| signal.name == name);
        let signal = found.next();
        assert_eq!(found.next(), None, "{name} twice");
        signal
    }

    #[test]
    fn a_signal_comes_from_the_next_best_source_that_is_there() {
        let of = |means, name| named(means, name).unwrap();
        let every = means(&|_| true);
        assert_eq!(of(every, "cpu_time").source, "probe: sched_switch");
        let without = means(&|group| group != Group::Cpu);
        assert_eq!(of(without, "cpu_time").source, "cgroup file: cpu.stat");
        assert_eq!(of(without, "run_queue_delay").quality, Quality::Indirect);
        assert_eq!(of(without, "service_demand").quality, Quality::Absent);
        assert_eq!(of(without, "requests").quality, Quality::Exact);
        let no_pressure = Means {
            pressure: false,
            memory: false,
            ..without
        };
        for name in ["run_queue_delay", "pressure", "memory", "oom_kills"] {
            assert_eq!(of(no_pressure, name).quality, Quality::Absent, "{name}");
        }
        let nothing = Means {
            cgroups: false,
            ..means(&|_| false)
        };
        assert_eq!(of(nothing, "run_queue_delay").quality, Quality::Absent);
        assert_eq!(
            of(nothing, "cpu_time").source,
            "/proc: stat of each process"
        );
    }

    #[test]
    fn a_node_names_what_its_own_page_is_made_of() {
        let node = Means {
            node: true,
            ..means(&|_| true)
        };
        for name in ["cpu_time", "throttling"] {
            assert_eq!(named(node, name).unwrap().source, "cgroup file: cpu.stat");
        }
        assert_eq!(named(node, "neighbour"), None);
        let blind = Means {
            active: &|_| false,
            ..node
        };
        assert_eq!(named(blind, "death").unwrap().source, "pidfd");
    }

    #[test]
    fn what_is_absent_has_no_source_and_what_has_none_is_absent() {
        for active in [true, false] {
            for cgroups in [true, false] {
                let means = Means {
                    active: &|_| active,
                    cgroups,
                    listeners: active,
                    node: false,
                    memory: active,
                    pressure: active,
                };
                for signal in all(means) {
                    let absent = signal.quality == Quality::Absent;
                    assert_eq!(absent, signal.source.is_empty(), "{signal:?}");
                }
            }
        }
    }
}
