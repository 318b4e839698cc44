//! The tracked cgroups and what they did.

use aya_ebpf::{bindings::BPF_F_NO_PREALLOC, macros::map, maps::PerCpuHashMap};
use sim_ebpf_abi::{CGROUPS_MAX, CgroupCounters};

/// Filled by user space only. Not preallocated, so that memory follows the number of tracked cgroups.
#[map]
static CGROUPS: PerCpuHashMap<u64, CgroupCounters> =
    PerCpuHashMap::with_max_entries(CGROUPS_MAX, BPF_F_NO_PREALLOC);

/// This CPU's counters of a cgroup, if it is tracked. They stay valid until the program returns, even if
/// user space untracks the cgroup meanwhile.
#[inline(always)]
pub fn tracked(id: u64) -> Option<*mut CgroupCounters> {
    CGROUPS.get_ptr_mut(&id)
}
