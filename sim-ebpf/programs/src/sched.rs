//! CPU: on-CPU time, switches and run-queue delay of each tracked cgroup.
//!
//! A task is charged when it *leaves* the CPU, because then its cgroup is the current one and one
//! helper names it: one per-CPU hash update per switch, one task-storage access for each of the two
//! tasks. What the running task has used so far is brought in by [`settle`].
//!
//! On-CPU time is the scheduler's own account (`sum_exec_runtime`), which quotas and `cpu.stat` go by too: it
//! leaves out what a hypervisor stole. Each task remembers up to where it is charged, so the charges of a
//! task add up to its runtime even if a switch is not seen. (Timing the turns per CPU here was 1 % off on a
//! busy machine: there are kernels on which the program isn't run for every switch.)
//!
//! **Why did it wait?** A wait that begins while the quota of the task's cgroup, or of an ancestor, is
//! used up is the quota's doing and counted apart. Of the others, those that last are charged to the
//! cgroup whose task was on the CPU when they ended: over many waits, whoever keeps this cgroup
//! from the CPU comes out on top.
//!
//! Only tasks that were seen in a tracked cgroup have storage, so a wakeup of anybody else is one
//! failed lookup. The turn in which a task is first seen, having been moved in, isn't charged.

use crate::{
    atomic, cgroups,
    kernel::{self, offset},
    losses,
    storage::TaskStorage,
};
use aya_ebpf::{
    bindings::task_struct,
    helpers::{
        bpf_get_current_cgroup_id, bpf_get_smp_processor_id, bpf_ktime_get_ns,
        generated::bpf_get_current_task_btf,
    },
    macros::{btf_map, btf_tracepoint, map, raw_tracepoint},
    maps::HashMap,
    programs::{BtfTracePointContext, RawTracePointContext},
};
use sim_ebpf_abi::{CgroupCounters, Loss, NEIGHBOURS_MAX, Neighbour, bucket_of};

/// Waits shorter than this are not charged to a neighbour: together they are little, and each would
/// cost a hash update.
const NEIGHBOUR_WAIT_MIN_NS: u64 = 100_000;

/// What isn't charged yet of a task.
#[repr(C)]
struct Task {
    /// 0 until the task's first charge, which only notes where to start.
    seen: u64,
    /// The task's runtime up to which it is charged.
    charged_ns: u64,
    /// Since when it is runnable without running; 0 if it is running or asleep.
    runnable_since_ns: u64,
    /// How long it had waited for the turn it is in.
    waited_ns: u64,
    /// Whether that wait began for want of quota.
    throttled: u32,
    /// The CPU it was charged on last, plus one; 0 before.
    cpu: u32,
}

#[btf_map]
static TASKS: TaskStorage<Task> = TaskStorage::new();

#[map]
static NEIGHBOURS: HashMap<Neighbour, u64> = HashMap::with_max_entries(NEIGHBOURS_MAX, 0);

#[btf_tracepoint(function = "sched_switch")]
pub fn sched_switch(ctx: BtfTracePointContext) -> i32 {
    let preempted: u32 = ctx.arg(0);
    let prev: *mut task_struct = ctx.arg(1);
    let next: *mut task_struct = ctx.arg(2);
    // SAFETY: both tasks come from the context. Their storage is ours while their runqueue is locked, as it
    // is here; counters belong to this CPU, and a switch can't nest.
    unsafe {
        if kernel::pid(prev) != 0 {
            leave(&ctx, prev, preempted & 0xff != 0);
        }
        if kernel::pid(next) != 0
            && let Some(task) = TASKS.get(next)
        {
            let task = &mut *task.as_ptr();
            if task.runnable_since_ns != 0 {
                let waited_ns = bpf_ktime_get_ns().saturating_sub(task.runnable_since_ns);
                task.waited_ns = waited_ns;
                task.runnable_since_ns = 0;
                if waited_ns >= NEIGHBOUR_WAIT_MIN_NS
                    && task.throttled == 0
                    && kernel::pid(prev) != 0
                {
                    blame(&ctx, next, waited_ns);
                }
            }
        }
    }
    0
}

/// Charges a wait to the cgroup of the current task, unless the waiting one is of the same.
///
/// # Safety
/// `next` comes from the program's context; the current task is about to be switched out for it.
#[inline(always)]
unsafe fn blame(ctx: &BtfTracePointContext, next: *mut task_struct, waited_ns: u64) {
    // SAFETY: as the caller promises.
    let pair = unsafe {
        Neighbour {
            waiting: kernel::task_cgroup_id(next),
            running: bpf_get_current_cgroup_id(),
        }
    };
    if pair.waiting == pair.running || cgroups::tracked(pair.waiting).is_none() {
        return;
    }
    if let Some(sum) = NEIGHBOURS.get_ptr_mut(&pair) {
        // SAFETY: a live map value.
        unsafe { atomic::add(sum, waited_ns) };
    } else if NEIGHBOURS.insert(&pair, &waited_ns, 0).is_err() {
        losses::count(ctx, Loss::Neighbour);
    }
}

/// # Safety
/// `prev` is the current task, about to be switched out.
#[inline(always)]
unsafe fn leave(ctx: &BtfTracePointContext, prev: *mut task_struct, preempted: bool) {
    // SAFETY: as the caller promises, and see `sched_switch`.
    unsafe {
        let counters = cgroups::tracked(bpf_get_current_cgroup_id());
        let task = match counters {
            Some(_) => TASKS.get_or_zeroed(prev),
            None => TASKS.get(prev),
        };
        let Some(task) = task else {
            if counters.is_some() {
                losses::count(ctx, Loss::TaskStorage);
            }
            return;
        };
        let task = &mut *task.as_ptr();
        if let Some(counters) = counters {
            (*counters).cpu.switches += 1;
            let cpu = bpf_get_smp_processor_id() + 1;
            if task.cpu != 0 && task.cpu != cpu {
                (*counters).cpu.migrations += 1;
            }
            task.cpu = cpu;
            charge(counters, task, kernel::runtime_ns(prev));
        } else {
            // In an untracked cgroup now; it may come back.
            task.charged_ns = kernel::runtime_ns(prev);
            task.waited_ns = 0;
        }
        // Preempted on the way to sleep counts as runnable: it must run again to finish going to sleep.
        let runnable = preempted || kernel::member::<u32>(prev.cast(), offset!(task_state)) == 0;
        task.runnable_since_ns = 0;
        if runnable {
            task.runnable_since_ns = bpf_ktime_get_ns();
            task.throttled = u32::from(kernel::is_throttled(prev));
        }
    }
}

#[btf_tracepoint(function = "sched_wakeup")]
pub fn sched_wakeup(ctx: BtfTracePointContext) -> i32 {
    let task: *mut task_struct = ctx.arg(0);
    // SAFETY: the task comes from the context, and its runqueue is locked: nobody else writes its storage.
    unsafe {
        if let Some(state) = TASKS.get(task) {
            let state = &mut *state.as_ptr();
            // A preempted task that is woken again has been waiting since it was preempted.
            if state.runnable_since_ns == 0 {
                state.runnable_since_ns = bpf_ktime_get_ns();
                state.throttled = u32::from(kernel::is_throttled(task));
            }
        }
    }
    0
}

#[btf_tracepoint(function = "sched_wakeup_new")]
pub fn sched_wakeup_new(ctx: BtfTracePointContext) -> i32 {
    let task: *mut task_struct = ctx.arg(0);
    // SAFETY: the task comes from the context; it is new, so nobody else writes its storage.
    unsafe {
        if cgroups::tracked(kernel::task_cgroup_id(task)).is_some() {
            match TASKS.get_or_zeroed(task) {
                Some(state) => {
                    let state = &mut *state.as_ptr();
                    state.seen = 1;
                    state.charged_ns = kernel::runtime_ns(task);
                    state.runnable_since_ns = bpf_ktime_get_ns();
                }
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
/// account of it is at most some timer ticks old. Runs with preemption off, on a remote CPU in the
/// interrupt that the kernel sends there, so no switch can nest.
#[raw_tracepoint]
pub fn settle(ctx: RawTracePointContext) -> i32 {
    // SAFETY: the helper gives the current task; see above for why nothing else charges it meanwhile.
    unsafe {
        let current = bpf_get_current_task_btf();
        if kernel::pid(current) == 0 {
            return 0;
        }
        if let Some(counters) = cgroups::tracked(bpf_get_current_cgroup_id()) {
            match TASKS.get_or_zeroed(current) {
                Some(task) => charge(counters, &mut *task.as_ptr(), kernel::runtime_ns(current)),
                None => losses::count(&ctx, Loss::TaskStorage),
            }
        }
    }
    0
}

/// # Safety
/// `counters` points to values of this CPU that nobody else writes meanwhile.
#[inline(always)]
unsafe fn charge(counters: *mut CgroupCounters, task: &mut Task, runtime_ns: u64) {
    // SAFETY: as the caller promises.
    let counters = unsafe { &mut (*counters).cpu };
    if task.seen != 0 {
        counters.on_cpu_ns += runtime_ns.saturating_sub(task.charged_ns);
    }
    task.seen = 1;
    task.charged_ns = runtime_ns;
    if task.waited_ns != 0 && task.throttled != 0 {
        counters.throttled_ns += task.waited_ns;
        counters.throttled_waits += 1;
        task.waited_ns = 0;
    } else if task.waited_ns != 0 {
        counters.run_queue_ns += task.waited_ns;
        counters.run_queue_waits += 1;
        counters.run_queue.buckets[bucket_of(task.waited_ns)] += 1;
        task.waited_ns = 0;
    }
}
