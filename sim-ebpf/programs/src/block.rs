//! Block I/O: bytes, operations and issue-to-completion latency of each tracked cgroup.
//!
//! **Whose I/O is it?** By default that of the cgroup which was current when the request was queued, or
//! when it went to the device where it wasn't. That is right for direct I/O and for reads. A buffered write goes out later from a flusher
//! thread (nobody's cgroup) or from whoever calls `fsync`. Where the `io` controller is on cgroup2 the
//! loader asks for [`BLOCK_OWNER_BIO`]: then the bio itself carries the cgroup that dirtied the page. With
//! `io` on cgroup1 the bio's cgroup lives in another hierarchy, whose ids may collide with cgroup2's.

use crate::{
    cgroups,
    kernel::{self, member, offset},
    losses,
};
use aya_ebpf::{
    helpers::{bpf_get_current_cgroup_id, bpf_ktime_get_ns},
    macros::{btf_tracepoint, map},
    maps::HashMap,
    programs::BtfTracePointContext,
};
use sim_ebpf_abi::{BLOCK_OWNER_BIO, IN_FLIGHT_MAX, InFlight, Loss, bucket_of};

const REQ_OP_MASK: u32 = 0xff;
const REQ_OP_READ: u32 = 0;
const REQ_OP_WRITE: u32 = 1;

#[map]
static IN_FLIGHT: HashMap<u64, InFlight> = HashMap::with_max_entries(IN_FLIGHT_MAX, 0);

/// In place of a cgroup: a stranger, whose request may be issued by a tracked task all the same.
const NOBODY: u64 = 0;

/// A request that goes to the device by way of a queue: whose it is, while the one that made it is current.
/// Anybody may issue it, a worker of the kernel's or another task that uses the device.
#[btf_tracepoint(function = "block_rq_insert")]
pub fn block_rq_insert(ctx: BtfTracePointContext) -> i32 {
    let request: *const u8 = ctx.arg(0);
    // SAFETY: the request comes from the context; an entry is a live map value.
    unsafe {
        // What isn't stamped couldn't be told from an earlier request in the same memory.
        let queued_ns = made_ns(request);
        if queued_ns == 0 {
            return 0;
        }
        // Queued again, perhaps by a worker.
        if let Some(in_flight) = IN_FLIGHT.get_ptr(&(request as u64))
            && (*in_flight).queued_ns == queued_ns
        {
            return 0;
        }
        let owner = tracked_owner(request).unwrap_or(NOBODY);
        remember(&ctx, request, queued_ns, 0, owner);
    }
    0
}

/// A request that became part of another before it was issued.
#[btf_tracepoint(function = "block_rq_merge")]
pub fn block_rq_merge(ctx: BtfTracePointContext) -> i32 {
    let request: *const u8 = ctx.arg(0);
    // Most were never remembered.
    IN_FLIGHT.remove(&(request as u64)).ok();
    0
}

#[btf_tracepoint(function = "block_rq_issue")]
pub fn block_rq_issue(ctx: BtfTracePointContext) -> i32 {
    let request: *const u8 = ctx.arg(0);
    // SAFETY: the request comes from the context; an entry belongs to a request, which one CPU at a time has
    // in hand; the helper has no arguments.
    unsafe {
        let queued_ns = made_ns(request);
        if let Some(in_flight) = IN_FLIGHT.get_ptr_mut(&(request as u64)) {
            // The owner stays. A requeued request is issued again: the later issue counts.
            if (*in_flight).queued_ns == queued_ns {
                if queued_ns == 0
                    && let Some(cgroup_id) = tracked_owner(request)
                {
                    (*in_flight).cgroup_id = cgroup_id;
                }
                if (*in_flight).cgroup_id != NOBODY {
                    (*in_flight).issued_ns = bpf_ktime_get_ns();
                }
                return 0;
            }
            // Of an earlier request in the same memory, whose end wasn't seen.
            IN_FLIGHT.remove(&(request as u64)).ok();
        }
        if let Some(cgroup_id) = tracked_owner(request) {
            remember(&ctx, request, queued_ns, bpf_ktime_get_ns(), cgroup_id);
        }
    }
    0
}

/// # Safety
/// `request` comes from the program's context.
#[inline(always)]
unsafe fn remember(
    ctx: &BtfTracePointContext,
    request: *const u8,
    queued_ns: u64,
    issued_ns: u64,
    cgroup_id: u64,
) {
    let in_flight = InFlight {
        queued_ns,
        issued_ns,
        cgroup_id,
    };
    if IN_FLIGHT.insert(&(request as u64), &in_flight, 0).is_err() {
        losses::count(ctx, Loss::InFlight);
    }
}

/// When a request was made; 0 where the kernel doesn't stamp it.
///
/// # Safety
/// `request` comes from the program's context.
#[inline(always)]
unsafe fn made_ns(request: *const u8) -> u64 {
    match offset!(request_start_ns) {
        0 => 0,
        // SAFETY: as the caller promises.
        at => unsafe { member(request, at) },
    }
}

#[btf_tracepoint(function = "block_rq_complete")]
pub fn block_rq_complete(ctx: BtfTracePointContext) -> i32 {
    let request: *const u8 = ctx.arg(0);
    let error: u32 = ctx.arg(1);
    let bytes: u32 = ctx.arg(2);
    let key = request as u64;
    let Some(in_flight) = IN_FLIGHT.get_ptr(&key) else {
        return 0;
    };
    // SAFETY: the entry stays until this very completion removes it; the request comes from the context.
    let (in_flight, left, flags) = unsafe {
        let left: u32 = member(request, offset!(request_data_len));
        let flags: u32 = member(request, offset!(request_cmd_flags));
        (*in_flight, left, flags)
    };
    // A request may complete in parts; `left` is what remained before this one.
    let last = bytes >= left;
    if let Some(counters) = cgroups::tracked(in_flight.cgroup_id) {
        // SAFETY: this CPU's value, and the kernel doesn't run a tp_btf program nested in itself.
        let counters = unsafe { &mut (*counters).block };
        let operation = flags & REQ_OP_MASK;
        // blk_status_t is one byte.
        let failed = error & 0xff != 0;
        if !failed {
            match operation {
                REQ_OP_READ => counters.read_bytes += u64::from(bytes),
                REQ_OP_WRITE => counters.write_bytes += u64::from(bytes),
                _ => {}
            }
        }
        if last {
            match operation {
                REQ_OP_READ => counters.read_ops += 1,
                REQ_OP_WRITE => counters.write_ops += 1,
                _ => counters.other_ops += 1,
            }
            if failed {
                counters.errors += 1;
            }
            // The kernel may give a request up before it was issued.
            if in_flight.issued_ns != 0 {
                // SAFETY: a helper without arguments.
                let latency_ns = unsafe { bpf_ktime_get_ns() }.saturating_sub(in_flight.issued_ns);
                counters.latency_ns += latency_ns;
                counters.latency.buckets[bucket_of(latency_ns)] += 1;
            }
            if in_flight.queued_ns != 0 && in_flight.issued_ns != 0 {
                let queue_ns = in_flight.issued_ns.saturating_sub(in_flight.queued_ns);
                counters.queue_ns += queue_ns;
                counters.queue.buckets[bucket_of(queue_ns)] += 1;
            }
        }
    }
    if last {
        // Fails only if it is gone already, which is what is wanted.
        IN_FLIGHT.remove(&key).ok();
    }
    0
}

/// # Safety
/// `request` comes from the program's context.
#[inline(always)]
unsafe fn tracked_owner(request: *const u8) -> Option<u64> {
    if offset!(block_owner) == BLOCK_OWNER_BIO {
        // SAFETY: each pointer is loaded through the one before; a flush has no bio and reads as 0,
        // which is no cgroup's id.
        let id = unsafe {
            let bio: *const u8 = member(request, offset!(request_bio));
            let blkg: *const u8 = member(bio, offset!(bio_blkg));
            let blkcg: *const u8 = member(blkg, offset!(blkg_blkcg));
            kernel::cgroup_id(member(blkcg, offset!(blkcg_cgroup)))
        };
        if cgroups::tracked(id).is_some() {
            return Some(id);
        }
        // The bio names the nearest ancestor that has the io controller enabled, which need not be
        // tracked: then the issuer is the better answer.
    }
    // SAFETY: a helper without arguments.
    let id = unsafe { bpf_get_current_cgroup_id() };
    cgroups::tracked(id).map(|_| id)
}
