//! What is known of each task that was seen in a tracked cgroup.
//!
//! In storage of the task's own, which is gone with it. The kernel makes it in the middle of a switch, while
//! the runqueue is locked. Before Linux 6.4 it asked the page allocator for it, which may wake the thread that
//! reclaims memory, and for that lock the runqueue: a deadlock. There a table made in advance holds tasks by
//! their ids.

use crate::{
    kernel::{self, offset},
    storage::TaskStorage,
};
use aya_ebpf::{
    bindings::task_struct,
    macros::{btf_map, map},
    maps::HashMap,
};
use core::ptr::NonNull;
use sim_ebpf_abi::TASKS_MAX;

/// `TASK_DEAD` of `include/linux/sched.h`: it leaves its CPU for good.
pub const DEAD: u32 = 0x80;

/// Up to where a task is charged, and what it owes. All but the last fits in a line of the cache together with
/// the kernel's word before it.
#[repr(C)]
pub struct Task {
    /// [`kernel::runtime_ns`]
    pub runtime_ns: u64,
    /// [`kernel::run_delay_ns`]
    pub run_delay_ns: u64,
    /// [`kernel::css_set`] when it was charged last; 0 if that was in no tracked cgroup. While it is the same,
    /// the cgroup is.
    pub home: u64,
    /// Waits by bucket, a byte each. Like all that is owed, its cgroup's counters lack it.
    pub owed_waits: u64,
    pub owed_waited_ns: u32,
    pub owed_ran_ns: u32,
    /// [`kernel::turns`], its lower half
    pub turns: u32,
    /// The CPU it left last, plus one; 0 until it is seen in a tracked cgroup.
    pub cpu: u16,
    /// Whether its wait began for want of quota.
    pub throttled: u8,
    pub owed_switches: u8,
    pub owed_migrations: u8,
    /// The cgroup it was charged to last.
    pub cgroup_id: u64,
}

/// A task by its id, which another one may have had before.
#[repr(C)]
struct Numbered {
    /// [`kernel::born_ns`]
    born_ns: u64,
    task: Task,
}

#[btf_map]
static TASKS: TaskStorage<Task> = TaskStorage::new();

/// Has room for one where [`TASKS`] does the work.
#[map]
static TASKS_BY_PID: HashMap<i32, Numbered> = HashMap::with_max_entries(TASKS_MAX, 0);

/// What is known of a task, if anything is.
///
/// # Safety
/// `task` comes from the program's context.
#[inline(always)]
pub unsafe fn get(task: *mut task_struct) -> Option<NonNull<Task>> {
    // SAFETY: as the caller promises.
    unsafe {
        if offset!(tasks_by_pid) == 0 {
            TASKS.get(task)
        } else {
            by_pid(task)
        }
    }
}

/// What is known of a task; all zero if it is new. `None` where there is no room.
///
/// # Safety
/// As for [`get`], and the task's runqueue is locked.
#[inline(always)]
pub unsafe fn get_or_zeroed(task: *mut task_struct) -> Option<NonNull<Task>> {
    // SAFETY: as the caller promises.
    unsafe {
        if offset!(tasks_by_pid) == 0 {
            return TASKS.get_or_zeroed(task);
        }
        if let Some(known) = by_pid(task) {
            return Some(known);
        }
        let new = Numbered {
            born_ns: kernel::born_ns(task),
            task: Task {
                runtime_ns: 0,
                run_delay_ns: 0,
                home: 0,
                owed_waits: 0,
                owed_waited_ns: 0,
                owed_ran_ns: 0,
                turns: 0,
                cpu: 0,
                throttled: 0,
                owed_switches: 0,
                owed_migrations: 0,
                cgroup_id: 0,
            },
        };
        TASKS_BY_PID.insert(&kernel::pid(task), &new, 0).ok()?;
        by_pid(task)
    }
}

/// To be called when a task that is known leaves its CPU in `state`.
///
/// # Safety
/// As for [`get_or_zeroed`]. What it gave is not used any more.
#[inline(always)]
pub unsafe fn leave(task: *mut task_struct, state: u32) {
    if offset!(tasks_by_pid) != 0 && state & DEAD != 0 {
        // SAFETY: as the caller promises. One that can't be removed is another's when its id is used again.
        unsafe { TASKS_BY_PID.remove(&kernel::pid(task)).ok() };
    }
}

/// # Safety
/// As for [`get`].
#[inline(always)]
unsafe fn by_pid(task: *mut task_struct) -> Option<NonNull<Task>> {
    // SAFETY: as the caller promises; a live map value.
    unsafe {
        let numbered = TASKS_BY_PID.get_ptr_mut(&kernel::pid(task))?;
        if (*numbered).born_ns != kernel::born_ns(task) {
            return None;
        }
        NonNull::new(&raw mut (*numbered).task)
    }
}
