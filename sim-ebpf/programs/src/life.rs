//! Life: one word per instance that tells of its death as soon as the kernel knows.
//!
//! The words live in an array that user space maps read-only; `abi/src/life.rs` says what is in one.
//!
//! What counts as death: the last thread of the main process exits, or SIGKILL has been *delivered* to it,
//! by whomever, the OOM killer too (nothing can undo that, and the exit itself may be milliseconds
//! away). A signal that can be caught, blocked or ignored is no death. SIGSTOP is a stop, until SIGCONT.
//! That no process is left in the instance's cgroup, nested ones included, is told apart.

use crate::kernel::{self, member, offset};
use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, task_struct},
    helpers::bpf_ktime_get_ns,
    macros::{btf_tracepoint, map, raw_tracepoint},
    maps::{Array, HashMap},
    programs::{BtfTracePointContext, RawTracePointContext},
};
use aya_log_ebpf::debug;
use core::ptr::{read_volatile, write_volatile};
use sim_ebpf_abi::{LifeFlag, SLOTS_MAX, Watched};

const SIGKILL: i32 = 9;
const SIGCONT: i32 = 18;
const SIGSTOP: i32 = 19;
/// In place of a signal's information: the kernel itself sends it.
const SEND_SIG_PRIV: usize = 1;
/// `TRACE_SIGNAL_DELIVERED` of the kernel's `signal_generate` tracepoint.
const DELIVERED: i32 = 0;

#[map]
static LIFE: Array<LifeFlag> = Array::with_max_entries(SLOTS_MAX, BPF_F_MMAPABLE);

/// The main process of each instance, by process id as the initial pid namespace counts.
#[map]
static WATCHED: HashMap<u32, Watched> = HashMap::with_max_entries(SLOTS_MAX, 0);

/// The cgroup of each instance.
#[map]
static WATCHED_CGROUPS: HashMap<u64, Watched> = HashMap::with_max_entries(SLOTS_MAX, 0);

/// Gives a slot a word: that of a living instance, or 0.
///
/// Attached to nothing: user space runs it (`BPF_PROG_TEST_RUN`), because the array is frozen and can't be
/// written from there by anybody, whatever descriptor they hold.
#[raw_tracepoint]
pub fn life_write(ctx: RawTracePointContext) -> i32 {
    let slot: u64 = ctx.arg(0);
    let word: u64 = ctx.arg(1);
    let Some(flag) = LIFE.get_ptr_mut(slot as u32) else {
        return 1;
    };
    // SAFETY: an aligned element of the array; volatile makes each a single 8-byte store.
    unsafe {
        // In between it is nobody's, so that no reader takes one instance's death for another's.
        write_volatile(&raw mut (*flag).word, 0);
        write_volatile(&raw mut (*flag).died_ns, 0);
        write_volatile(&raw mut (*flag).word, word);
    }
    0
}

#[btf_tracepoint(function = "sched_process_exit")]
pub fn process_exit(ctx: BtfTracePointContext) -> i32 {
    let task: *const task_struct = ctx.arg(0);
    // SAFETY: the task comes from the context.
    let tgid = unsafe { kernel::tgid(task) };
    let Some(watched) = watched(tgid) else {
        return 0;
    };
    // SAFETY: as above. The kernel has already taken this thread off `live`: 0 means it was the last,
    // leader or not.
    let threads_left: u32 = unsafe {
        let signal: *const u8 = member(task.cast(), offset!(task_signal));
        member(signal, offset!(signal_live))
    };
    if threads_left == 0 && died(watched) {
        debug!(&ctx, "process {} of i{} exited", tgid, watched.instance);
    }
    0
}

#[btf_tracepoint(function = "signal_generate")]
pub fn process_signal(ctx: BtfTracePointContext) -> i32 {
    let signal: i32 = ctx.arg(0);
    let task: *const task_struct = ctx.arg(2);
    let result: i32 = ctx.arg(4);
    let info: *const u8 = ctx.arg(1);
    // A debugger that attaches stops the process by a SIGSTOP of the kernel's own, and lets it go
    // without a SIGCONT.
    if signal == SIGSTOP && info as usize == SEND_SIG_PRIV {
        return 0;
    }
    // SIGCONT continues the process when it is sent, whatever becomes of the signal itself.
    if signal != SIGCONT && (result != DELIVERED || (signal != SIGKILL && signal != SIGSTOP)) {
        return 0;
    }
    // SAFETY: the task comes from the context.
    let tgid = unsafe { kernel::tgid(task) };
    let Some(watched) = watched(tgid) else {
        return 0;
    };
    if signal == SIGKILL {
        if died(watched) {
            debug!(&ctx, "process {} of i{} was killed", tgid, watched.instance);
        }
    } else {
        set(watched, LifeFlag::STOPPED_BYTE, u8::from(signal == SIGSTOP));
    }
    0
}

#[btf_tracepoint(function = "cgroup_notify_populated")]
pub fn cgroup_populated(ctx: BtfTracePointContext) -> i32 {
    let cgroup: *const u8 = ctx.arg(0);
    let populated: i32 = ctx.arg(2);
    // SAFETY: the cgroup comes from the context.
    let id = unsafe { kernel::cgroup_id(cgroup) };
    if let Some(watched) = WATCHED_CGROUPS.get_ptr(&id) {
        // SAFETY: a live entry of the hash.
        let watched = unsafe { *watched };
        set(watched, LifeFlag::EMPTY_BYTE, u8::from(populated == 0));
    }
    0
}

#[inline(always)]
fn watched(tgid: u32) -> Option<Watched> {
    // SAFETY: a live entry of the hash.
    WATCHED.get_ptr(&tgid).map(|watched| unsafe { *watched })
}

/// The slot, if it is still this instance's.
#[inline(always)]
fn flag(watched: Watched) -> Option<*mut LifeFlag> {
    let flag = LIFE.get_ptr_mut(watched.slot as u32)?;
    // SAFETY: an aligned element of the array; volatile makes it a single 8-byte load.
    let word = unsafe { read_volatile(&raw const (*flag).word) };
    (word >> LifeFlag::INSTANCE_SHIFT == watched.instance).then_some(flag)
}

#[inline(always)]
fn set(watched: Watched, byte: usize, value: u8) {
    if let Some(flag) = flag(watched) {
        // SAFETY: a byte of an element of the array; volatile makes it a single store.
        unsafe { write_volatile(flag.cast::<u8>().add(byte), value) };
    }
}

/// Notes the death, unless it is noted already; whether it did.
///
/// Two CPUs may both find it alive and both write. Either time is right.
#[inline(always)]
fn died(watched: Watched) -> bool {
    let Some(flag) = flag(watched) else {
        return false;
    };
    // SAFETY: an aligned element of the array; volatile makes each access a single one.
    unsafe {
        if read_volatile(&raw const (*flag).died_ns) != 0 {
            return false;
        }
        write_volatile(&raw mut (*flag).died_ns, bpf_ktime_get_ns());
    }
    set(watched, LifeFlag::DEAD_BYTE, 1);
    true
}
