//! Memory: time lost to reclaim.
//!
//! How much memory a cgroup holds, its major faults and its OOM kills the kernel counts itself
//! (`memory.stat`, `memory.events`).

use crate::{cgroups, storage::TaskStorage};
use aya_ebpf::{
    helpers::{bpf_get_current_cgroup_id, bpf_ktime_get_ns, generated::bpf_get_current_task_btf},
    macros::{btf_map, btf_tracepoint},
    programs::BtfTracePointContext,
};

/// Since when a task frees memory; 0 while it doesn't.
#[btf_map]
static RECLAIMING: TaskStorage<u64> = TaskStorage::new();

#[btf_tracepoint(function = "mm_vmscan_direct_reclaim_begin")]
pub fn reclaim_begin(_: BtfTracePointContext) -> i32 {
    begin()
}

#[btf_tracepoint(function = "mm_vmscan_memcg_reclaim_begin")]
pub fn memcg_reclaim_begin(_: BtfTracePointContext) -> i32 {
    begin()
}

#[btf_tracepoint(function = "mm_vmscan_direct_reclaim_end")]
pub fn reclaim_end(_: BtfTracePointContext) -> i32 {
    end()
}

#[btf_tracepoint(function = "mm_vmscan_memcg_reclaim_end")]
pub fn memcg_reclaim_end(_: BtfTracePointContext) -> i32 {
    end()
}

#[inline(always)]
fn begin() -> i32 {
    // SAFETY: the helpers give the current task; nobody else writes its storage.
    unsafe {
        if cgroups::tracked(bpf_get_current_cgroup_id()).is_some()
            && let Some(since) = RECLAIMING.get_or_zeroed(bpf_get_current_task_btf())
        {
            *since.as_ptr() = bpf_ktime_get_ns();
        }
    }
    0
}

#[inline(always)]
fn end() -> i32 {
    // SAFETY: as in `begin`. The counters are this CPU's, and preemption is off while this runs.
    unsafe {
        let Some(since) = RECLAIMING.get(bpf_get_current_task_btf()) else {
            return 0;
        };
        let began_ns = core::mem::replace(&mut *since.as_ptr(), 0);
        if began_ns != 0
            && let Some(counters) = cgroups::tracked(bpf_get_current_cgroup_id())
        {
            let counters = &mut (*counters).memory;
            counters.reclaim_ns += bpf_ktime_get_ns().saturating_sub(began_ns);
            counters.reclaims += 1;
        }
    }
    0
}
