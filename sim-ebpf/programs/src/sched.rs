//! CPU: on-CPU time, switches and run-queue delay of each tracked cgroup.
//!
//! A task is charged when it *leaves* the CPU, because then its cgroup is the current one and one
//! helper names it: one per-CPU hash update per switch, one task-storage access for each of the two
//! tasks. What the running task has used so far is brought in by [`settle`].
//!
//! On-CPU time is the scheduler's own account (`sum_exec_runtime`), which quotas and `cpu.stat` go by too: it
//! leaves out what a hypervisor stole. Timing the turns here would differ from it by some microseconds per
//! preemption, since a task that is woken from another CPU is charged from its wakeup, not from its turn.
//!
//! Only tasks that were seen in a tracked cgroup have storage, so a wakeup of anybody else is one
//! failed lookup.

use crate::{
    cgroups,
    kernel::{self, offset},
    losses,
    task_storage::TaskStorage,
};
use aya_ebpf::{
    bindings::task_struct,
    helpers::{bpf_get_current_cgroup_id, bpf_ktime_get_ns, generated::bpf_get_current_task_btf},
    macros::{btf_map, btf_tracepoint, map, raw_tracepoint},
    maps::PerCpuArray,
    programs::{BtfTracePointContext, RawTracePointContext},
};
use sim_ebpf_abi::{CgroupCounters, Loss, bucket_of};

/// Since when a task is runnable but not running; 0 if it is running or asleep.
#[btf_map]
static RUNNABLE_SINCE: TaskStorage<u64> = TaskStorage::new();

/// The turn of the task that runs on this CPU, as far as it isn't charged yet.
#[repr(C)]
#[derive(Clone, Copy)]
struct Running {
    /// The task's runtime up to which it is charged.
    charged_ns: u64,
    /// How long it had waited for this turn, or 0.
    waited_ns: u64,
    /// 0 until the first switch on this CPU, 1 from then on.
    known: u64,
}

#[map]
static RUNNING: PerCpuArray<Running> = PerCpuArray::with_max_entries(1, 0);

#[btf_tracepoint(function = "sched_switch")]
pub fn sched_switch(ctx: BtfTracePointContext) -> i32 {
    let preempted: u32 = ctx.arg(0);
    let prev: *mut task_struct = ctx.arg(1);
    let next: *mut task_struct = ctx.arg(2);
    let Some(running) = RUNNING.get_ptr_mut(0) else { return 0 };
    // SAFETY: both tasks come from the context; map values belong to this CPU, and a switch can't nest.
    unsafe {
        if kernel::pid(prev) != 0 {
            // Preempted on the way to sleep counts as runnable: it must run again to finish going to sleep.
            let runnable = preempted & 0xff != 0 || kernel::member::<u32>(prev.cast(), offset!(task_state)) == 0;
            let waits_since = if runnable { bpf_ktime_get_ns() } else { 0 };
            if let Some(counters) = cgroups::tracked(bpf_get_current_cgroup_id()) {
                charge(counters, running, kernel::runtime_ns(prev));
                (*counters).cpu.switches += 1;
                match RUNNABLE_SINCE.get_or_zeroed(prev) {
                    Some(since) => *since.as_ptr() = waits_since,
                    None => losses::count(&ctx, Loss::TaskStorage),
                }
            } else if let Some(since) = RUNNABLE_SINCE.get(prev) {
                *since.as_ptr() = waits_since;
            }
        }
        let mut waited_ns = 0;
        if kernel::pid(next) != 0
            && let Some(since) = RUNNABLE_SINCE.get(next)
        {
            let since = since.as_ptr();
            if *since != 0 {
                waited_ns = bpf_ktime_get_ns().saturating_sub(*since);
                *since = 0;
            }
        }
        *running = Running { charged_ns: kernel::runtime_ns(next), waited_ns, known: 1 };
    }
    0
}

#[btf_tracepoint(function = "sched_wakeup")]
pub fn sched_wakeup(ctx: BtfTracePointContext) -> i32 {
    let task: *mut task_struct = ctx.arg(0);
    // SAFETY: the task comes from the context, and its runqueue is locked: nobody else writes the value.
    unsafe {
        if let Some(since) = RUNNABLE_SINCE.get(task) {
            let since = since.as_ptr();
            // A preempted task that is woken again has been waiting since it was preempted.
            if *since == 0 {
                *since = bpf_ktime_get_ns();
            }
        }
    }
    0
}

#[btf_tracepoint(function = "sched_wakeup_new")]
pub fn sched_wakeup_new(ctx: BtfTracePointContext) -> i32 {
    let task: *mut task_struct = ctx.arg(0);
    // SAFETY: the task comes from the context; it is new, so nobody else writes the value.
    unsafe {
        if cgroups::tracked(kernel::task_cgroup_id(task)).is_some() {
            match RUNNABLE_SINCE.get_or_zeroed(task) {
                Some(since) => *since.as_ptr() = bpf_ktime_get_ns(),
                None => losses::count(&ctx, Loss::TaskStorage),
            }
        }
    }
    0
}

/// Charges the task that runs on this CPU with what it has used up to now.
///
/// Attached to nothing: user space runs it on each CPU (`BPF_PROG_TEST_RUN`) before it reads. A task
/// alone on its CPU may not be switched out for seconds, and its cgroup would look idle. The scheduler's
/// account of it is at most one timer tick old. Runs with preemption off, on a remote CPU in the
/// interrupt that the kernel sends there, so no switch can nest.
#[raw_tracepoint]
pub fn settle(_ctx: RawTracePointContext) -> i32 {
    let Some(running) = RUNNING.get_ptr_mut(0) else { return 0 };
    // SAFETY: the helper gives the current task; map values belong to this CPU; see above for why nothing
    // else touches them meanwhile.
    unsafe {
        let task = bpf_get_current_task_btf();
        if kernel::pid(task) == 0 {
            return 0;
        }
        let runtime_ns = kernel::runtime_ns(task);
        if let Some(counters) = cgroups::tracked(bpf_get_current_cgroup_id()) {
            charge(counters, running, runtime_ns);
        }
        *running = Running { charged_ns: runtime_ns, waited_ns: 0, known: 1 };
    }
    0
}

/// # Safety
/// Both point to values of this CPU that nobody else writes meanwhile.
#[inline(always)]
unsafe fn charge(counters: *mut CgroupCounters, running: *const Running, runtime_ns: u64) {
    // SAFETY: as the caller promises.
    let (counters, running) = unsafe { (&mut (*counters).cpu, *running) };
    if running.known != 0 {
        counters.on_cpu_ns += runtime_ns.saturating_sub(running.charged_ns);
    }
    if running.waited_ns != 0 {
        counters.run_queue_ns += running.waited_ns;
        counters.run_queue_waits += 1;
        counters.run_queue.buckets[bucket_of(running.waited_ns)] += 1;
    }
}
