//! Signals that stand or fall together, and the programs behind them.

use aya::programs::CgroupSkbAttachType;
use std::fmt;

/// Signals that are loaded together: all programs of a group, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Group {
    /// On-CPU time, switches, run-queue delay.
    Cpu,
    /// Block I/O bytes, operations, latency.
    Block,
    /// Bytes, packets, round-trip time of sockets.
    Net,
    /// TCP retransmits, connections and resets.
    Tcp,
    /// Clear-text HTTP/1 requests.
    Http,
    /// Time lost to reclaim.
    Memory,
    /// Death of watched processes.
    Life,
}

impl Group {
    /// All groups, in the order in which they are loaded.
    pub const ALL: [Self; 7] = [
        Self::Cpu,
        Self::Block,
        Self::Net,
        Self::Tcp,
        Self::Http,
        Self::Memory,
        Self::Life,
    ];

    /// What carries the group's signals, in part, when it can't be loaded.
    #[must_use]
    pub const fn fallback(self) -> &'static str {
        match self {
            Self::Cpu => {
                "cpu.stat (usage, throttling) and cpu.pressure of the cgroup; no delay histogram"
            }
            Self::Block => "io.pressure of the cgroup; no bytes and no latency",
            Self::Net | Self::Tcp => "nothing",
            Self::Http => "the proxy's own counts of what it sends there",
            Self::Memory => "memory.pressure of the cgroup",
            Self::Life => {
                "the node's pidfd of the process, told to the proxy over the control stream"
            }
        }
    }

    /// Name in logs and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Block => "block",
            Self::Net => "net",
            Self::Tcp => "tcp",
            Self::Http => "http",
            Self::Memory => "memory",
            Self::Life => "life",
        }
    }

    pub(crate) const fn programs(self) -> &'static [ProgramSpec] {
        match self {
            Self::Cpu => &[
                ProgramSpec {
                    name: "settle",
                    hook: Hook::OnDemand,
                },
                ProgramSpec {
                    name: "sched_wakeup",
                    hook: Hook::Tracepoint("sched_wakeup"),
                },
                ProgramSpec {
                    name: "sched_wakeup_new",
                    hook: Hook::Tracepoint("sched_wakeup_new"),
                },
                ProgramSpec {
                    name: "sched_switch",
                    hook: Hook::Tracepoint("sched_switch"),
                },
            ],
            Self::Block => &[
                ProgramSpec {
                    name: "block_rq_complete",
                    hook: Hook::Tracepoint("block_rq_complete"),
                },
                ProgramSpec {
                    name: "block_rq_issue",
                    hook: Hook::Tracepoint("block_rq_issue"),
                },
                ProgramSpec {
                    name: "block_rq_merge",
                    hook: Hook::Tracepoint("block_rq_merge"),
                },
                ProgramSpec {
                    name: "block_rq_insert",
                    hook: Hook::Tracepoint("block_rq_insert"),
                },
            ],
            Self::Net => &[
                ProgramSpec {
                    name: "net_ingress",
                    hook: Hook::Packets(CgroupSkbAttachType::Ingress),
                },
                ProgramSpec {
                    name: "net_egress",
                    hook: Hook::Packets(CgroupSkbAttachType::Egress),
                },
            ],
            Self::Tcp => &[
                ProgramSpec {
                    name: "tcp_retransmit",
                    hook: Hook::Tracepoint("tcp_retransmit_skb"),
                },
                ProgramSpec {
                    name: "tcp_state",
                    hook: Hook::Tracepoint("inet_sock_set_state"),
                },
                ProgramSpec {
                    name: "tcp_reset_received",
                    hook: Hook::Tracepoint("tcp_receive_reset"),
                },
                ProgramSpec {
                    name: "tcp_reset_sent",
                    hook: Hook::Tracepoint("tcp_send_reset"),
                },
            ],
            Self::Http => &[
                ProgramSpec {
                    name: "http_response",
                    hook: Hook::Packets(CgroupSkbAttachType::Egress),
                },
                ProgramSpec {
                    name: "http_request",
                    hook: Hook::Packets(CgroupSkbAttachType::Ingress),
                },
            ],
            Self::Memory => &[
                ProgramSpec {
                    name: "reclaim_end",
                    hook: Hook::Tracepoint("mm_vmscan_direct_reclaim_end"),
                },
                ProgramSpec {
                    name: "memcg_reclaim_end",
                    hook: Hook::Tracepoint("mm_vmscan_memcg_reclaim_end"),
                },
                ProgramSpec {
                    name: "reclaim_begin",
                    hook: Hook::Tracepoint("mm_vmscan_direct_reclaim_begin"),
                },
                ProgramSpec {
                    name: "memcg_reclaim_begin",
                    hook: Hook::Tracepoint("mm_vmscan_memcg_reclaim_begin"),
                },
            ],
            Self::Life => &[
                ProgramSpec {
                    name: "life_write",
                    hook: Hook::OnDemand,
                },
                ProgramSpec {
                    name: "process_exit",
                    hook: Hook::Tracepoint("sched_process_exit"),
                },
                ProgramSpec {
                    name: "process_signal",
                    hook: Hook::Tracepoint("signal_generate"),
                },
                ProgramSpec {
                    name: "cgroup_populated",
                    hook: Hook::Tracepoint("cgroup_notify_populated"),
                },
            ],
        }
    }
}

/// Groups that look at the same packets. Where all of them run, [`FUSED_PROGRAMS`] do their work: a packet's
/// cgroup and socket are looked up once.
pub(crate) const FUSED_GROUPS: [Group; 2] = [Group::Net, Group::Http];

/// In place of the programs of [`FUSED_GROUPS`].
pub(crate) const FUSED_PROGRAMS: [ProgramSpec; 2] = [
    ProgramSpec {
        name: "packet_in",
        hook: Hook::Packets(CgroupSkbAttachType::Ingress),
    },
    ProgramSpec {
        name: "packet_out",
        hook: Hook::Packets(CgroupSkbAttachType::Egress),
    },
];

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A program of the object and where it goes.
pub(crate) struct ProgramSpec {
    pub(crate) name: &'static str,
    pub(crate) hook: Hook,
}

pub(crate) enum Hook {
    /// A tracepoint with BTF-typed arguments.
    Tracepoint(&'static str),
    /// Packets of the sockets below the configured cgroup.
    Packets(CgroupSkbAttachType),
    /// Attached to nothing, run by user space.
    OnDemand,
}

impl Hook {
    /// What a process needs for it.
    pub(crate) const fn capabilities(&self) -> &'static str {
        match self {
            Self::Tracepoint(_) | Self::OnDemand => "CAP_BPF and CAP_PERFMON",
            Self::Packets(_) => "CAP_BPF and CAP_NET_ADMIN",
        }
    }
}

/// Whether a group works here, and if not why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupStatus {
    /// The group.
    pub group: Group,
    /// Its state; changes after the load only where it is shed.
    pub state: GroupState,
}

/// See [`GroupStatus`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GroupState {
    /// Loaded and attached.
    Active,
    /// Not loaded.
    Refused {
        /// One line: who refused what.
        reason: String,
    },
}

impl fmt::Display for GroupStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let group = self.group;
        match &self.state {
            GroupState::Active => write!(f, "{group} probes are active"),
            GroupState::Refused { reason } => {
                write!(
                    f,
                    "{group} probes are off: {reason}; instead: {}",
                    group.fallback()
                )
            }
        }
    }
}
