//! Reading kernel structs through BTF-typed pointers.
//!
//! In a `tp_btf` program the verifier knows the type of each argument and allows plain loads from it;
//! a load through a null or stale pointer reads as zero instead of faulting. It checks that the offset
//! is a constant inside the struct and ends at a member's boundary, so a wrong offset is a refused
//! load, never a wild read.

use aya_ebpf::bindings::task_struct;
use core::ptr::read_volatile;
use sim_ebpf_abi::KernelOffsets;

/// Set by the loader from the running kernel's BTF.
#[unsafe(no_mangle)]
pub static OFFSETS: KernelOffsets = KernelOffsets {
    task_pid: 0,
    task_tgid: 0,
    task_state: 0,
    task_runtime: 0,
    task_run_delay: 0,
    task_turns: 0,
    task_last_queued: 0,
    task_start: 0,
    task_cgroups: 0,
    task_cfs_rq: 0,
    cfs_rq_throttle_count: 0,
    cfs_rq_rq: 0,
    rq_clock: 0,
    task_signal: 0,
    signal_live: 0,
    css_set_dfl_cgrp: 0,
    cgroup_kn: 0,
    kernfs_node_id: 0,
    request_data_len: 0,
    request_cmd_flags: 0,
    request_start_ns: 0,
    request_bio: 0,
    bio_blkg: 0,
    blkg_blkcg: 0,
    blkcg_cgroup: 0,
    sock_cgroup: 0,
    skb_segments: 0,
    tasks_by_pid: 0,
    block_owner: 0,
};

/// A member of [`OFFSETS`] as the loader set it (the compiler only sees the zero above).
macro_rules! offset {
    ($field:ident) => {
        $crate::kernel::overridden(&$crate::kernel::OFFSETS.$field)
    };
}
pub(crate) use offset;

#[inline(always)]
pub fn overridden(constant: &u32) -> u32 {
    // SAFETY: a reference; volatile only stops the compiler from folding in the initial value.
    unsafe { read_volatile(constant) }
}

/// Loads the member at `offset` of the kernel struct at `base`.
///
/// # Safety
/// `base` is a BTF-typed pointer of the program's context or was loaded through one.
#[inline(always)]
pub unsafe fn member<T: Copy>(base: *const u8, offset: u32) -> T {
    // SAFETY: the verifier allows the load only inside the struct that `base` points to.
    unsafe { read_volatile(base.add(offset as usize).cast::<T>()) }
}

/// A kernel thread's or process's thread id; 0 is the idle task.
///
/// # Safety
/// `task` comes from the program's context.
#[inline(always)]
pub unsafe fn pid(task: *const task_struct) -> i32 {
    // SAFETY: as the caller promises.
    unsafe { member(task.cast(), offset!(task_pid)) }
}

/// How long a task has run in its life, in nanoseconds, as the scheduler accounts it.
///
/// # Safety
/// `task` comes from the program's context.
#[inline(always)]
pub unsafe fn runtime_ns(task: *const task_struct) -> u64 {
    // SAFETY: as the caller promises.
    unsafe { member(task.cast(), offset!(task_runtime)) }
}

/// How long a task has waited in its life for a CPU, up to its present turn, in nanoseconds, as the
/// scheduler accounts it.
///
/// # Safety
/// `task` comes from the program's context.
#[inline(always)]
pub unsafe fn run_delay_ns(task: *const task_struct) -> u64 {
    // SAFETY: as the caller promises.
    unsafe { member(task.cast(), offset!(task_run_delay)) }
}

/// How often a task was given a CPU after it had to ask.
///
/// # Safety
/// `task` comes from the program's context.
#[inline(always)]
pub unsafe fn turns(task: *const task_struct) -> u64 {
    // SAFETY: as the caller promises. An `unsigned long`, on machines of 64 bits.
    unsafe { member(task.cast(), offset!(task_turns)) }
}

/// Address of the set of cgroups that a task is in. It stays the same until the task is moved.
///
/// # Safety
/// `task` comes from the program's context.
#[inline(always)]
pub unsafe fn css_set(task: *const task_struct) -> u64 {
    // SAFETY: as the caller promises; only the number is used.
    unsafe { member(task.cast(), offset!(task_cgroups)) }
}

/// When a task was born, on the monotonic clock.
///
/// # Safety
/// `task` comes from the program's context.
#[inline(always)]
pub unsafe fn born_ns(task: *const task_struct) -> u64 {
    // SAFETY: as the caller promises.
    unsafe { member(task.cast(), offset!(task_start)) }
}

/// Whether the scheduler counts a task as waiting for a CPU. One that was preempted on its way to sleep
/// waits for one too, but uncounted.
///
/// # Safety
/// `task` comes from the program's context.
#[inline(always)]
pub unsafe fn is_waiting(task: *const task_struct) -> bool {
    // SAFETY: as the caller promises.
    unsafe { member::<u64>(task.cast(), offset!(task_last_queued)) != 0 }
}

/// How long a runnable task has waited on this CPU, in nanoseconds; 0 if it didn't, or if the kernel has
/// no scheduling groups, by which its clock is found.
///
/// # Safety
/// `task` comes from the program's context and is queued on this CPU.
#[inline(always)]
pub unsafe fn waiting_ns(task: *const task_struct) -> u64 {
    if offset!(cfs_rq_rq) == 0 {
        return 0;
    }
    // SAFETY: each pointer is loaded through the one before, from the task the caller vouches for.
    unsafe {
        let since: u64 = member(task.cast(), offset!(task_last_queued));
        if since == 0 {
            return 0;
        }
        let queue: *const u8 = member(task.cast(), offset!(task_cfs_rq));
        let queue: *const u8 = member(queue, offset!(cfs_rq_rq));
        member::<u64>(queue, offset!(rq_clock)).saturating_sub(since)
    }
}

/// Whether the quota of a task's cgroup, or of an ancestor, is used up on the task's CPU.
///
/// # Safety
/// `task` comes from the program's context.
#[inline(always)]
pub unsafe fn is_throttled(task: *const task_struct) -> bool {
    if offset!(cfs_rq_throttle_count) == 0 {
        return false;
    }
    // SAFETY: each pointer is loaded through the one before, from the task the caller vouches for.
    unsafe {
        let queue: *const u8 = member(task.cast(), offset!(task_cfs_rq));
        member::<i32>(queue, offset!(cfs_rq_throttle_count)) > 0
    }
}

/// The id of the process that a task belongs to.
///
/// # Safety
/// `task` comes from the program's context.
#[inline(always)]
pub unsafe fn tgid(task: *const task_struct) -> u32 {
    // SAFETY: as the caller promises.
    unsafe { member(task.cast(), offset!(task_tgid)) }
}

/// Id of the cgroup2 cgroup of a task that need not be the current one.
///
/// # Safety
/// `task` comes from the program's context.
#[inline(always)]
pub unsafe fn task_cgroup_id(task: *const task_struct) -> u64 {
    // SAFETY: each pointer is loaded through the one before, from the task the caller vouches for.
    unsafe {
        let css_set: *const u8 = member(task.cast(), offset!(task_cgroups));
        cgroup_id(member(css_set, offset!(css_set_dfl_cgrp)))
    }
}

/// Id of a cgroup: the inode number of its directory.
///
/// # Safety
/// `cgroup` was loaded through a BTF-typed pointer.
#[inline(always)]
pub unsafe fn cgroup_id(cgroup: *const u8) -> u64 {
    // SAFETY: as the caller promises.
    unsafe {
        let node: *const u8 = member(cgroup, offset!(cgroup_kn));
        member(node, offset!(kernfs_node_id))
    }
}
