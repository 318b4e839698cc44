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
    /// A descriptor of each main process.
    pub(crate) pidfds: bool,
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
            ("probe: sched_switch, sched_wakeup", Exact),
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
        .map(|&(name, groups, probed, filed)| {
            let origin = if groups.iter().all(|&group| (means.active)(group)) {
                probed
            } else if means.cgroups {
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
    } else if means.pidfds {
        ("pidfd", Quality::Exact)
    } else {
        NONE
    };
    let memory = if means.cgroups {
        ("cgroup file: memory.stat", Quality::Exact)
    } else {
        ("/proc: status of each process", Quality::Indirect)
    };
    signals.extend([
        signal("accept_queue", accepting),
        signal("listen_drops", accepting),
        signal("memory", memory),
        signal(
            "oom_kills",
            file(
                means.cgroups,
                "cgroup file: memory.events, memory.oom_control",
            ),
        ),
        signal(
            "pressure",
            file(
                means.cgroups,
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

    fn at(active: &dyn Fn(Group) -> bool, cgroups: bool, name: &str) -> Signal {
        let means = Means {
            active,
            cgroups,
            listeners: true,
            pidfds: true,
        };
        let mut found = all(means).into_iter().filter(|signal| signal.name == name);
        let signal = found.next().unwrap();
        assert_eq!(found.next(), None, "{name} twice");
        signal
    }

    #[test]
    fn a_signal_comes_from_the_next_best_source_that_is_there() {
        let cpu = at(&|_| true, true, "cpu_time");
        assert_eq!(
            (cpu.source, cpu.quality),
            ("probe: sched_switch", Quality::Exact)
        );
        let without = |group| group != Group::Cpu;
        assert_eq!(
            at(&without, true, "cpu_time").source,
            "cgroup file: cpu.stat"
        );
        assert_eq!(
            at(&without, true, "run_queue_delay").quality,
            Quality::Indirect
        );
        assert_eq!(
            at(&without, true, "service_demand").quality,
            Quality::Absent
        );
        assert_eq!(at(&without, true, "requests").quality, Quality::Exact);
        assert_eq!(
            at(&|_| false, false, "run_queue_delay").quality,
            Quality::Absent
        );
        assert_eq!(
            at(&|_| false, false, "cpu_time").source,
            "/proc: stat of each process"
        );
        assert_eq!(at(&|_| false, true, "death").source, "pidfd");
    }

    #[test]
    fn what_is_absent_has_no_source_and_what_has_none_is_absent() {
        for active in [true, false] {
            for cgroups in [true, false] {
                let means = Means {
                    active: &|_| active,
                    cgroups,
                    listeners: active,
                    pidfds: false,
                };
                for signal in all(means) {
                    let absent = signal.quality == Quality::Absent;
                    assert_eq!(absent, signal.source.is_empty(), "{signal:?}");
                }
            }
        }
    }
}
