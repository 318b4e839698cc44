//! Life: one word per instance that tells of its death as soon as the kernel knows.
//!
//! The words live in an array that user space maps read-only. A word is 0 while the process lives and
//! the `CLOCK_MONOTONIC` time of its death from then on; each is written once, by a plain 8-byte store.
//!
//! What counts as death: the last thread of the process exits, or SIGKILL has been *delivered* to it
//! (nothing can undo that, and the exit itself may be milliseconds away). A signal that can be caught,
//! blocked or ignored is no death.

use crate::kernel::{self, member, offset};
use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, task_struct},
    helpers::bpf_ktime_get_ns,
    macros::{btf_tracepoint, map},
    maps::{Array, HashMap},
    programs::BtfTracePointContext,
};
use aya_log_ebpf::info;
use core::ptr::{read_volatile, write_volatile};
use sim_ebpf_abi::SLOTS_MAX;

const SIGKILL: i32 = 9;
/// `TRACE_SIGNAL_DELIVERED` of the kernel's `signal_generate` tracepoint.
const DELIVERED: i32 = 0;

#[map]
static DEATHS: Array<u64> = Array::with_max_entries(SLOTS_MAX, BPF_F_MMAPABLE);

/// Slot of each watched process, by process id as the initial pid namespace counts.
#[map]
static WATCHED: HashMap<u32, u32> = HashMap::with_max_entries(SLOTS_MAX, 0);

#[btf_tracepoint(function = "sched_process_exit")]
pub fn process_exit(ctx: BtfTracePointContext) -> i32 {
    let task: *const task_struct = ctx.arg(0);
    // SAFETY: the task comes from the context.
    let tgid = unsafe { kernel::tgid(task) };
    let Some(slot) = WATCHED.get_ptr(&tgid) else {
        return 0;
    };
    // SAFETY: as above. The kernel has already taken this thread off `live`: 0 means it was the last,
    // leader or not.
    let threads_left: u32 = unsafe {
        let signal: *const u8 = member(task.cast(), offset!(task_signal));
        member(signal, offset!(signal_live))
    };
    // SAFETY: a live entry of the hash.
    let slot = unsafe { *slot };
    if threads_left == 0 && mark(slot) {
        info!(&ctx, "process {} in slot {} exited", tgid, slot);
    }
    0
}

#[btf_tracepoint(function = "signal_generate")]
pub fn process_killed(ctx: BtfTracePointContext) -> i32 {
    let signal: i32 = ctx.arg(0);
    let task: *const task_struct = ctx.arg(2);
    let result: i32 = ctx.arg(4);
    if signal != SIGKILL || result != DELIVERED {
        return 0;
    }
    // SAFETY: the task comes from the context.
    let tgid = unsafe { kernel::tgid(task) };
    let Some(slot) = WATCHED.get_ptr(&tgid) else {
        return 0;
    };
    // SAFETY: a live entry of the hash.
    let slot = unsafe { *slot };
    if mark(slot) {
        info!(&ctx, "process {} in slot {} was killed", tgid, slot);
    }
    0
}

/// Writes the time in a slot that is still 0; whether it did.
///
/// Two CPUs may both find 0 and both write. Either time is right, and readers only ask for "not 0".
#[inline(always)]
fn mark(slot: u32) -> bool {
    let Some(word) = DEATHS.get_ptr_mut(slot) else {
        return false;
    };
    // SAFETY: an aligned element of the array; volatile makes each a single 8-byte access.
    unsafe {
        if read_volatile(word) != 0 {
            return false;
        }
        write_volatile(word, bpf_ktime_get_ns());
    }
    true
}
