//! Byte offsets of the kernel struct members that the programs read.
//!
//! Rust emits no CO-RE relocations, so user space looks them up in the running kernel's BTF and
//! writes them in this read-only global before the load. The verifier then sees constants.

/// Block requests are charged to the cgroup that was current when they were issued.
pub const BLOCK_OWNER_ISSUER: u32 = 0;
/// Block requests are charged to the cgroup that the bio carries.
pub const BLOCK_OWNER_BIO: u32 = 1;

/// Value of the `OFFSETS` global.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KernelOffsets {
    /// `task_struct.pid`
    pub task_pid: u32,
    /// `task_struct.tgid`
    pub task_tgid: u32,
    /// `task_struct.__state` (`state` before Linux 5.14)
    pub task_state: u32,
    /// `task_struct.se.sum_exec_runtime`
    pub task_runtime: u32,
    /// `task_struct.sched_info.run_delay`
    pub task_run_delay: u32,
    /// `task_struct.sched_info.pcount`
    pub task_turns: u32,
    /// `task_struct.sched_info.last_queued`
    pub task_last_queued: u32,
    /// `task_struct.start_time`
    pub task_start: u32,
    /// `task_struct.cgroups`
    pub task_cgroups: u32,
    /// `task_struct.se.cfs_rq`
    pub task_cfs_rq: u32,
    /// `cfs_rq.throttle_count`; 0 where the kernel has no CPU quotas
    pub cfs_rq_throttle_count: u32,
    /// `cfs_rq.rq`; 0 where the kernel has no scheduling groups
    pub cfs_rq_rq: u32,
    /// `rq.clock`
    pub rq_clock: u32,
    /// `task_struct.signal`
    pub task_signal: u32,
    /// `signal_struct.live`
    pub signal_live: u32,
    /// `css_set.dfl_cgrp`
    pub css_set_dfl_cgrp: u32,
    /// `cgroup.kn`
    pub cgroup_kn: u32,
    /// `kernfs_node.id`
    pub kernfs_node_id: u32,
    /// `request.__data_len`
    pub request_data_len: u32,
    /// `request.cmd_flags`
    pub request_cmd_flags: u32,
    /// `request.start_time_ns`
    pub request_start_ns: u32,
    /// `request.bio`
    pub request_bio: u32,
    /// `bio.bi_blkg`
    pub bio_blkg: u32,
    /// `blkcg_gq.blkcg`
    pub blkg_blkcg: u32,
    /// `blkcg.css.cgroup`
    pub blkcg_cgroup: u32,
    /// `sock.sk_cgrp_data.cgroup`
    pub sock_cgroup: u32,
    /// `sk_buff.cb` and, in it, `tcp_skb_cb.tcp_gso_segs`
    pub skb_segments: u32,
    /// 1 where the kernel must not be asked for a task's storage while it switches tasks, 0 elsewhere.
    pub tasks_by_pid: u32,
    /// [`BLOCK_OWNER_ISSUER`] or [`BLOCK_OWNER_BIO`].
    pub block_owner: u32,
}
