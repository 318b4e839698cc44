//! CPU: on-CPU time, switches and run-queue delay of each tracked cgroup.
//!
//! A task is charged when it *leaves* the CPU, because then its cgroup is the current one and one
//! helper names it. What the running task has used so far is brought in by [`settle`].
//!
//! **Charged lazily.** The counters of a cgroup are several cold lines of the cache away; a task's own storage
//! is one. So what a usual turn adds is first *owed* there, and the counters see it after some dozen switches,
//! or half a millisecond of CPU time, or when the task's turn is unusual, is its last, or goes on at a reading.
//! While a task sleeps its cgroup's counters lack that much, until it has run again; what is owed to a cgroup
//! that isn't tracked any more, or by a task whose last switch isn't seen, is never charged. (Measured: 47 ns
//! instead of 142 for a switch with warm caches, 113 instead of 195 under a service with cold ones.)
//!
//! Both figures are the scheduler's own account of each task: `sum_exec_runtime`, which quotas and
//! `cpu.stat` go by too (it leaves out what a hypervisor stole), and `sched_info`, which has the wait for a
//! turn by the time the turn ends. So nothing is timed here and hardly anything is done at a wakeup. Each
//! task remembers up to where it is charged, so its charges add up to the account even if a switch is not
//! seen. (There are kernels on which the program isn't run for every switch.)
//!
//! **Why did it wait?** A wait that begins while the quota of the task's cgroup, or of an ancestor, is
//! used up is the quota's doing and counted apart. Of the others, those that last are charged to the
//! cgroup whose task was on the CPU when they ended: over many waits, whoever keeps this cgroup
//! from the CPU comes out on top.
//!
//! Only tasks that were seen in a tracked cgroup have storage. The turn in which a task is first seen,
//! having been moved in, isn't charged; the first turn of its life is, whole, if the task is younger
//! than the tracking.

use crate::{
    atomic, cgroups,
    kernel::{self, offset},
    losses,
    tasks::{self, Task},
};
use aya_ebpf::{
    bindings::task_struct,
    helpers::{
        bpf_get_current_cgroup_id, bpf_get_smp_processor_id, generated::bpf_get_current_task_btf,
    },
    macros::{btf_tracepoint, map, raw_tracepoint},
    maps::HashMap,
    programs::{BtfTracePointContext, RawTracePointContext},
};
use sim_ebpf_abi::{
    CgroupCounters, Loss, NEIGHBOURS_MAX, Neighbour, OWED_MAX_NS, OWED_SWITCHES_MAX,
    bucket_lower_ns, bucket_of,
};

/// Waits shorter than this are not charged to a neighbour: together they are little, and each would
/// cost a hash update.
const NEIGHBOUR_WAIT_MIN_NS: u64 = 100_000;

/// Buckets of waits that a task can owe.
const OWED_BUCKETS: usize = size_of::<u64>();
/// Waits as long as this are charged at once.
const OWED_WAIT_MAX_NS: u64 = bucket_lower_ns(OWED_BUCKETS);

#[map]
static NEIGHBOURS: HashMap<Neighbour, u64> = HashMap::with_max_entries(NEIGHBOURS_MAX, 0);

#[btf_tracepoint(function = "sched_switch")]
pub fn sched_switch(ctx: BtfTracePointContext) -> i32 {
    let prev: *mut task_struct = ctx.arg(1);
    let next: *mut task_struct = ctx.arg(2);
    // SAFETY: both tasks come from the context, and `next` is about to leave this CPU's queue.
    unsafe {
        // From idling: nobody is charged, and nobody kept `next` waiting.
        if kernel::pid(prev) == 0 {
            return 0;
        }
        leave(&ctx, prev);
        // The idle task is never queued.
        let waited_ns = kernel::waiting_ns(next);
        if waited_ns >= NEIGHBOUR_WAIT_MIN_NS {
            blame(&ctx, next, waited_ns);
        }
    }
    0
}

/// Charges a wait to the cgroup of the current task, unless the waiting one is of the same or waited for
/// want of quota.
///
/// # Safety
/// `next` comes from the program's context; the current task is about to be switched out for it.
#[inline(always)]
unsafe fn blame(ctx: &BtfTracePointContext, next: *mut task_struct, waited_ns: u64) {
    // SAFETY: as the caller promises; the storage is of a task that doesn't run.
    let pair = unsafe {
        match tasks::get(next) {
            Some(task) if (*task.as_ptr()).throttled != 0 => return,
            Some(_) => {}
            // A new task: had it found no quota, `sched_wakeup_new` would have noted it.
            None if kernel::turns(next) == 0 => {}
            // One that was moved in. Why it waited isn't known.
            None => return,
        }
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
/// `prev` is the current task, about to be switched out, and not the idle one.
#[inline(always)]
unsafe fn leave(ctx: &BtfTracePointContext, prev: *mut task_struct) {
    // SAFETY: as the caller promises. The storage is ours while the runqueue is locked, as it is here;
    // counters belong to this CPU, and a switch can't nest.
    unsafe {
        let state = kernel::member::<u32>(prev.cast(), offset!(task_state));
        let known = tasks::get(prev);
        let task = match known {
            Some(task) if owe(&mut *task.as_ptr(), prev, state) => task,
            _ => {
                let counters = cgroups::tracked(bpf_get_current_cgroup_id());
                if counters.is_none() && known.is_none() {
                    return;
                }
                let Some(task) = known.or_else(|| tasks::get_or_zeroed(prev)) else {
                    losses::count(ctx, Loss::TaskStorage);
                    return;
                };
                if let Some(counters) = counters {
                    (*counters).cpu.switches += 1;
                }
                charge(counters, &mut *task.as_ptr(), prev);
                task
            }
        };
        // By the scheduler's rule: who is preempted on the way to sleep begins no wait that it counts.
        (*task.as_ptr()).throttled = u8::from(state == 0 && kernel::is_throttled(prev));
        tasks::leave(prev, state);
    }
}

/// Not attached where tasks are held back one by one: one that wakes waits for its turn as ever there, and is
/// held back when it would go on in user mode, which is a switch.
#[btf_tracepoint(function = "sched_wakeup")]
pub fn sched_wakeup(ctx: BtfTracePointContext) -> i32 {
    let task: *mut task_struct = ctx.arg(0);
    // SAFETY: the task comes from the context, and its runqueue is locked. If it waits, it doesn't run, so
    // nobody else writes its storage; one that is woken while it runs yet is left alone.
    unsafe {
        if kernel::is_throttled(task)
            && kernel::is_waiting(task)
            && let Some(task) = tasks::get(task)
        {
            (*task.as_ptr()).throttled = 1;
        }
    }
    0
}

/// As [`sched_wakeup`].
#[btf_tracepoint(function = "sched_wakeup_new")]
pub fn sched_wakeup_new(ctx: BtfTracePointContext) -> i32 {
    let task: *mut task_struct = ctx.arg(0);
    // SAFETY: the task comes from the context; it has never run, and its runqueue is locked.
    unsafe {
        if kernel::is_throttled(task) && cgroups::tracked(kernel::task_cgroup_id(task)).is_some() {
            match tasks::get_or_zeroed(task) {
                Some(task) => (*task.as_ptr()).throttled = 1,
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
        let counters = cgroups::tracked(bpf_get_current_cgroup_id());
        if counters.is_some() {
            match tasks::get_or_zeroed(current) {
                Some(task) => charge(counters, &mut *task.as_ptr(), current),
                None => losses::count(&ctx, Loss::TaskStorage),
            }
        }
    }
    0
}

/// Notes in a task's own storage what a usual turn adds to its cgroup's counters, so that most switches touch
/// no others. `false`, and nothing done, if this one is not usual or enough is owed: [`charge`] it.
///
/// # Safety
/// `task` is the storage of `current`, which comes from the program's context, leaves this CPU in `state`, and
/// whose runqueue is locked.
#[inline(always)]
unsafe fn owe(task: &mut Task, current: *mut task_struct, state: u32) -> bool {
    // SAFETY: as the caller promises.
    let (home, runtime_ns, turns) = unsafe {
        (
            kernel::css_set(current),
            kernel::runtime_ns(current),
            kernel::turns(current) as u32,
        )
    };
    let ran_ns = runtime_ns.wrapping_sub(task.runtime_ns);
    let owed_ns = ran_ns.wrapping_add(task.owed_ran_ns.into());
    let usual = task.home == home
        && task.throttled == 0
        && state & tasks::DEAD == 0
        && owed_ns < OWED_MAX_NS
        && task.owed_switches < OWED_SWITCHES_MAX;
    if !usual {
        return false;
    }
    if turns != task.turns {
        // SAFETY: as the caller promises.
        let run_delay_ns = unsafe { kernel::run_delay_ns(current) };
        let waited_ns = run_delay_ns.wrapping_sub(task.run_delay_ns);
        if waited_ns >= OWED_WAIT_MAX_NS {
            return false;
        }
        task.owed_waits += 1 << (u8::BITS * bucket_of(waited_ns) as u32);
        task.owed_waited_ns += waited_ns as u32;
        task.run_delay_ns = run_delay_ns;
        task.turns = turns;
    }
    let cpu = this_cpu();
    if task.cpu != cpu {
        task.cpu = cpu;
        task.owed_migrations += 1;
    }
    task.owed_ran_ns = owed_ns as u32;
    task.owed_switches += 1;
    task.runtime_ns = runtime_ns;
    true
}

/// Adds what a task owes to the counters of its cgroup.
///
/// # Safety
/// As for [`charge`].
#[inline(always)]
unsafe fn pay(counters: *mut CgroupCounters, task: &mut Task) {
    // SAFETY: as the caller promises.
    let counters = unsafe { &mut (*counters).cpu };
    counters.on_cpu_ns += u64::from(task.owed_ran_ns);
    counters.switches += u64::from(task.owed_switches);
    counters.migrations += u64::from(task.owed_migrations);
    counters.run_queue_ns += u64::from(task.owed_waited_ns);
    for bucket in 0..OWED_BUCKETS {
        let waits = task.owed_waits >> (u8::BITS * bucket as u32) & 0xff;
        counters.run_queue_waits += waits;
        counters.run_queue.buckets[bucket] += waits;
    }
}

/// Charges a task with what it owes, and what it has used and waited since. Without `counters` the task is in
/// an untracked cgroup: it is only noted up to where it is charged, for it may come back.
///
/// # Safety
/// `counters` points to values of this CPU that nobody else writes meanwhile; `current` runs on it and
/// comes from the program's context; `task` is its storage.
#[inline(always)]
unsafe fn charge(
    counters: Option<*mut CgroupCounters>,
    task: &mut Task,
    current: *mut task_struct,
) {
    // SAFETY: as the caller promises.
    let (home, runtime_ns, run_delay_ns, turns) = unsafe {
        (
            kernel::css_set(current),
            kernel::runtime_ns(current),
            kernel::run_delay_ns(current),
            kernel::turns(current),
        )
    };
    if task.owed_switches != 0 {
        // If it has moved, what it owes, it owes where it was.
        // SAFETY: the helper only reads.
        let creditor = if task.cgroup_id == unsafe { bpf_get_current_cgroup_id() } {
            counters
        } else {
            cgroups::tracked(task.cgroup_id)
        };
        if let Some(counters) = creditor {
            // SAFETY: as the caller promises.
            unsafe { pay(counters, task) };
        }
        (task.owed_switches, task.owed_migrations, task.owed_ran_ns) = (0, 0, 0);
        (task.owed_waited_ns, task.owed_waits) = (0, 0);
    }
    let cpu = this_cpu();
    if let Some(counters) = counters {
        // SAFETY: as the caller promises.
        let (born_ns, counters) = unsafe { (kernel::born_ns(current), &mut *counters) };
        if task.cpu != 0 || turns <= 1 && born_ns >= counters.tracked_ns {
            let counters = &mut counters.cpu;
            counters.on_cpu_ns += runtime_ns.saturating_sub(task.runtime_ns);
            if turns as u32 != task.turns {
                let waited_ns = run_delay_ns.saturating_sub(task.run_delay_ns);
                if task.throttled != 0 {
                    counters.throttled_ns += waited_ns;
                    counters.throttled_waits += 1;
                } else {
                    counters.run_queue_ns += waited_ns;
                    counters.run_queue_waits += 1;
                    counters.run_queue.buckets[bucket_of(waited_ns)] += 1;
                }
                task.throttled = 0;
            }
            if task.cpu != 0 && task.cpu != cpu {
                counters.migrations += 1;
            }
        }
        task.cpu = cpu;
        task.home = home;
        // SAFETY: the helper only reads.
        task.cgroup_id = unsafe { bpf_get_current_cgroup_id() };
    } else {
        task.home = 0;
    }
    task.runtime_ns = runtime_ns;
    task.run_delay_ns = run_delay_ns;
    task.turns = turns as u32;
}

/// This CPU's number plus one.
#[inline(always)]
fn this_cpu() -> u16 {
    // SAFETY: the helper only reads.
    (unsafe { bpf_get_smp_processor_id() }) as u16 + 1
}
