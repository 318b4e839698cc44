//! Filling in [`KernelOffsets`], and saying which group can't do without what isn't there.

use crate::{
    Group,
    btf::{Btf, BtfError},
};
use sim_ebpf_abi::KernelOffsets;

/// One member that some group reads.
struct Wanted {
    /// Who can't work without it.
    needed_by: &'static [Group],
    of: &'static str,
    /// Its path; older kernels' names after newer ones.
    paths: &'static [&'static str],
    field: fn(&mut KernelOffsets) -> &mut u32,
}

const WANTED: &[Wanted] = {
    use Group::{Block, Cpu, Life, Tcp};
    &[
        Wanted {
            needed_by: &[Cpu],
            of: "task_struct",
            paths: &["pid"],
            field: |o| &mut o.task_pid,
        },
        Wanted {
            needed_by: &[Life],
            of: "task_struct",
            paths: &["tgid"],
            field: |o| &mut o.task_tgid,
        },
        Wanted {
            needed_by: &[Cpu],
            of: "task_struct",
            paths: &["__state", "state"],
            field: |o| &mut o.task_state,
        },
        Wanted {
            needed_by: &[Cpu],
            of: "task_struct",
            paths: &["se.sum_exec_runtime"],
            field: |o| &mut o.task_runtime,
        },
        // With task delay accounting or scheduler statistics, which every distribution has.
        Wanted {
            needed_by: &[Cpu],
            of: "task_struct",
            paths: &["sched_info.run_delay"],
            field: |o| &mut o.task_run_delay,
        },
        Wanted {
            needed_by: &[Cpu],
            of: "task_struct",
            paths: &["sched_info.pcount"],
            field: |o| &mut o.task_turns,
        },
        Wanted {
            needed_by: &[Cpu],
            of: "task_struct",
            paths: &["sched_info.last_queued"],
            field: |o| &mut o.task_last_queued,
        },
        Wanted {
            needed_by: &[Cpu],
            of: "task_struct",
            paths: &["start_time"],
            field: |o| &mut o.task_start,
        },
        Wanted {
            needed_by: &[Cpu],
            of: "task_struct",
            paths: &["cgroups"],
            field: |o| &mut o.task_cgroups,
        },
        // Without quotas there is nothing to tell apart, and without scheduling groups no neighbour is
        // named: nobody needs these.
        Wanted {
            needed_by: &[],
            of: "task_struct",
            paths: &["se.cfs_rq"],
            field: |o| &mut o.task_cfs_rq,
        },
        Wanted {
            needed_by: &[],
            of: "cfs_rq",
            paths: &["throttle_count"],
            field: |o| &mut o.cfs_rq_throttle_count,
        },
        Wanted {
            needed_by: &[],
            of: "cfs_rq",
            paths: &["rq"],
            field: |o| &mut o.cfs_rq_rq,
        },
        Wanted {
            needed_by: &[Cpu],
            of: "rq",
            paths: &["clock"],
            field: |o| &mut o.rq_clock,
        },
        Wanted {
            needed_by: &[],
            of: "request",
            paths: &["start_time_ns"],
            field: |o| &mut o.request_start_ns,
        },
        Wanted {
            needed_by: &[Life],
            of: "task_struct",
            paths: &["signal"],
            field: |o| &mut o.task_signal,
        },
        Wanted {
            needed_by: &[Life],
            of: "signal_struct",
            paths: &["live"],
            field: |o| &mut o.signal_live,
        },
        Wanted {
            needed_by: &[Cpu],
            of: "css_set",
            paths: &["dfl_cgrp"],
            field: |o| &mut o.css_set_dfl_cgrp,
        },
        Wanted {
            needed_by: &[Cpu, Tcp, Life],
            of: "cgroup",
            paths: &["kn"],
            field: |o| &mut o.cgroup_kn,
        },
        Wanted {
            needed_by: &[Cpu, Tcp, Life],
            of: "kernfs_node",
            paths: &["id"],
            field: |o| &mut o.kernfs_node_id,
        },
        Wanted {
            needed_by: &[Block],
            of: "request",
            paths: &["__data_len"],
            field: |o| &mut o.request_data_len,
        },
        Wanted {
            needed_by: &[Block],
            of: "request",
            paths: &["cmd_flags"],
            field: |o| &mut o.request_cmd_flags,
        },
        Wanted {
            needed_by: &[Tcp],
            of: "sock",
            paths: &["sk_cgrp_data.cgroup"],
            field: |o| &mut o.sock_cgroup,
        },
    ]
};

/// What names a bio's cgroup; absent where the kernel has no block cgroups.
const WANTED_FOR_BIO_OWNER: &[Wanted] = &[
    Wanted {
        needed_by: &[],
        of: "request",
        paths: &["bio"],
        field: |o| &mut o.request_bio,
    },
    Wanted {
        needed_by: &[],
        of: "bio",
        paths: &["bi_blkg"],
        field: |o| &mut o.bio_blkg,
    },
    Wanted {
        needed_by: &[],
        of: "blkcg_gq",
        paths: &["blkcg"],
        field: |o| &mut o.blkg_blkcg,
    },
    Wanted {
        needed_by: &[],
        of: "blkcg",
        paths: &["css.cgroup"],
        field: |o| &mut o.blkcg_cgroup,
    },
];

/// Where a packet keeps how many segments it will be; 0 where the kernel doesn't say, and then each counts
/// as one.
fn skb_segments(btf: &Btf) -> u32 {
    let block = btf.offset("sk_buff", "cb");
    let inside = btf.offset("tcp_skb_cb", "tcp_gso_segs");
    block
        .and_then(|block| Ok(block + inside?))
        .unwrap_or_default()
}

/// What was found of the running kernel's structs.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// Offsets; 0 where the member is missing.
    pub(crate) offsets: KernelOffsets,
    /// Whether all members are there that lead from a request to its bio's cgroup.
    pub(crate) bio_owner: bool,
    /// Whether tasks are held back one by one when their quota is used up (Linux 6.18 and later), rather than
    /// the whole queue that they are in.
    pub(crate) throttles_tasks: bool,
    missing: Vec<(Group, BtfError)>,
}

impl Found {
    pub(crate) fn in_kernel(btf: &Btf) -> Self {
        let mut found = Self::default();
        for wanted in WANTED {
            if let Err(error) = wanted.fill(btf, &mut found.offsets) {
                let name = |group: &Group| (*group, error.clone());
                found.missing.extend(wanted.needed_by.iter().map(name));
            }
        }
        found.bio_owner = WANTED_FOR_BIO_OWNER
            .iter()
            .all(|wanted| wanted.fill(btf, &mut found.offsets).is_ok());
        found.offsets.skb_segments = skb_segments(btf);
        // Storage from memory set aside for it; before, the page allocator was asked.
        let set_aside = btf.offset("bpf_local_storage_map", "selem_ma").is_ok();
        found.offsets.tasks_by_pid = u32::from(!set_aside);
        found.throttles_tasks = btf.offset("task_struct", "throttled").is_ok();
        found
    }

    /// Whether a program would have nothing to do on this kernel, and only cost.
    pub(crate) fn makes_moot(&self, program: &str) -> bool {
        let no_quotas = self.offsets.cfs_rq_throttle_count == 0;
        matches!(program, "sched_wakeup" | "sched_wakeup_new")
            && (no_quotas || self.throttles_tasks)
    }

    /// The first member that `group` needs and this kernel hasn't.
    pub(crate) fn missing_for(&self, group: Group) -> Option<&BtfError> {
        self.missing
            .iter()
            .find(|(of, _)| *of == group)
            .map(|(_, error)| error)
    }
}

impl Wanted {
    fn fill(&self, btf: &Btf, offsets: &mut KernelOffsets) -> Result<(), BtfError> {
        let mut first = None;
        for path in self.paths {
            match btf.offset(self.of, path) {
                Ok(offset) => {
                    *(self.field)(offsets) = offset;
                    return Ok(());
                }
                Err(error) => first = first.or(Some(error)),
            }
        }
        first.map_or(Ok(()), Err)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wakeups_are_left_alone_where_they_tell_nothing_of_quotas() {
        let mut found = Found::default();
        assert!(found.makes_moot("sched_wakeup"), "no quotas at all");
        found.offsets.cfs_rq_throttle_count = 8;
        assert!(!found.makes_moot("sched_wakeup") && !found.makes_moot("sched_wakeup_new"));
        found.throttles_tasks = true;
        assert!(found.makes_moot("sched_wakeup_new") && !found.makes_moot("sched_switch"));
    }
}
