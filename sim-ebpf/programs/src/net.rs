//! Network: bytes, packets and smoothed round trip by the socket's cgroup, and TCP retransmits, connections
//! and resets.
//!
//! The packet programs are attached to one cgroup of SIM's, so that only sockets below it pay. A packet
//! is charged to the cgroup in which its *socket was created*; a socket handed to a process elsewhere
//! stays where it was. Bytes are those of the IP packets: of a segmented one the headers count once.

use crate::{
    atomic::add,
    cgroups,
    kernel::{self, member, offset},
    tcp,
};
use aya_ebpf::{
    bindings::bpf_sock,
    helpers::{
        bpf_skb_cgroup_id,
        generated::{bpf_sk_fullsock, bpf_tcp_sock},
    },
    macros::{btf_tracepoint, cgroup_skb},
    programs::{BtfTracePointContext, SkBuffContext},
};
use sim_ebpf_abi::{CgroupCounters, bucket_of};

/// States of a TCP socket (`include/net/tcp_states.h`).
const ESTABLISHED: i32 = 1;
const SYN_SENT: i32 = 2;
const SYN_RECV: i32 = 3;
const CLOSED: i32 = 7;

/// Verdict of a `cgroup_skb` program: let the packet through.
pub const PASS: i32 = 1;

/// The kernel gives a segment up for lost after two minutes (`TCP_RTO_MAX`). An estimate above that is
/// no round trip but an echoed time stamp that was never sent.
const RTT_MAX_US: u32 = 120_000_000;

#[cgroup_skb(ingress)]
pub fn net_ingress(ctx: SkBuffContext) -> i32 {
    if let Some(counters) = counters(&ctx) {
        received(&ctx, counters);
    }
    PASS
}

#[cgroup_skb(egress)]
pub fn net_egress(ctx: SkBuffContext) -> i32 {
    if let Some(counters) = counters(&ctx) {
        sent(&ctx, counters);
        if tcp::payload(&ctx).is_some()
            && let Some(socket) = socket(&ctx)
        {
            round_trip(counters, socket);
        }
    }
    PASS
}

/// Counts a packet that came.
///
/// Atomic, here and below, because a packet sent from process context can be interrupted by one that a
/// softirq on the same CPU sends or receives.
#[inline(always)]
pub fn received(ctx: &SkBuffContext, counters: *mut CgroupCounters) {
    // SAFETY: a live map value; `add` is atomic.
    unsafe {
        add(&raw mut (*counters).net.rx_bytes, u64::from(ctx.len()));
        add(&raw mut (*counters).net.rx_packets, packets(ctx));
    }
}

/// Counts a packet that goes.
#[inline(always)]
pub fn sent(ctx: &SkBuffContext, counters: *mut CgroupCounters) {
    // SAFETY: a live map value; `add` is atomic.
    unsafe {
        add(&raw mut (*counters).net.tx_bytes, u64::from(ctx.len()));
        add(&raw mut (*counters).net.tx_packets, packets(ctx));
    }
}

/// Counts the round trip as it is estimated when a packet with data goes. One without learns nothing: no
/// answer to it will be timed.
#[inline(always)]
pub fn round_trip(counters: *mut CgroupCounters, socket: *mut bpf_sock) {
    // SAFETY: a live map value; `add` is atomic; `socket` gives full sockets only.
    unsafe {
        if let Some(rtt_ns) = smoothed_rtt_ns(socket) {
            add(&raw mut (*counters).net.rtt.buckets[bucket_of(rtt_ns)], 1);
        }
    }
}

#[btf_tracepoint(function = "tcp_retransmit_skb")]
pub fn tcp_retransmit(ctx: BtfTracePointContext) -> i32 {
    let (socket, packet): (*const u8, *const u8) = (ctx.arg(0), ctx.arg(1));
    // SAFETY: socket and packet come from the context; the counter is a live map value, and `add` is atomic.
    unsafe {
        if let Some(counters) = owner(socket) {
            // One packet here may leave as several segments. The control block is bytes to the verifier.
            let segments = match offset!(skb_segments) {
                0 => 1,
                at => u16::from_ne_bytes([member(packet, at), member(packet, at + 1)]),
            };
            add(
                &raw mut (*counters).tcp.retransmits,
                u64::from(segments).max(1),
            );
        }
    }
    0
}

#[btf_tracepoint(function = "inet_sock_set_state")]
pub fn tcp_state(ctx: BtfTracePointContext) -> i32 {
    let socket: *const u8 = ctx.arg(0);
    let (from, to): (i32, i32) = (ctx.arg(1), ctx.arg(2));
    let known = matches!(
        (from, to),
        (SYN_SENT, ESTABLISHED) | (SYN_RECV, ESTABLISHED) | (SYN_SENT, CLOSED)
    );
    if !known {
        return 0;
    }
    // SAFETY: the socket comes from the context; counters are live map values, and `add` is atomic.
    unsafe {
        if let Some(counters) = owner(socket) {
            let tcp = &raw mut (*counters).tcp;
            add(
                match (from, to) {
                    (SYN_SENT, ESTABLISHED) => &raw mut (*tcp).connects,
                    (SYN_RECV, _) => &raw mut (*tcp).accepts,
                    _ => &raw mut (*tcp).connect_failures,
                },
                1,
            );
        }
    }
    0
}

#[btf_tracepoint(function = "tcp_receive_reset")]
pub fn tcp_reset_received(ctx: BtfTracePointContext) -> i32 {
    let socket: *const u8 = ctx.arg(0);
    // SAFETY: the socket comes from the context; the counter is a live map value, and `add` is atomic.
    unsafe {
        if let Some(counters) = owner(socket) {
            add(&raw mut (*counters).tcp.resets_received, 1);
        }
    }
    0
}

#[btf_tracepoint(function = "tcp_send_reset")]
pub fn tcp_reset_sent(ctx: BtfTracePointContext) -> i32 {
    let socket: *const u8 = ctx.arg(0);
    // A reset to a packet that no socket waits for has none.
    if socket.is_null() {
        return 0;
    }
    // SAFETY: the socket comes from the context; the counter is a live map value, and `add` is atomic.
    unsafe {
        if let Some(counters) = owner(socket) {
            add(&raw mut (*counters).tcp.resets_sent, 1);
        }
    }
    0
}

/// Counters of the cgroup that a socket is charged to.
///
/// # Safety
/// `socket` comes from the program's context.
#[inline(always)]
unsafe fn owner(socket: *const u8) -> Option<*mut CgroupCounters> {
    // SAFETY: as the caller promises.
    cgroups::tracked(unsafe { kernel::cgroup_id(member(socket, offset!(sock_cgroup))) })
}

/// Counters of the cgroup that a packet's socket is charged to.
#[inline(always)]
pub fn counters(ctx: &SkBuffContext) -> Option<*mut CgroupCounters> {
    cgroups::tracked(cgroup_id(ctx))
}

/// The cgroup that a packet's socket is charged to.
#[inline(always)]
pub fn cgroup_id(ctx: &SkBuffContext) -> u64 {
    // SAFETY: the packet of the context.
    unsafe { bpf_skb_cgroup_id(ctx.skb.skb) }
}

/// The packet's socket, unless it is that of a handshake or of a closed connection.
#[inline(always)]
pub fn socket(ctx: &SkBuffContext) -> Option<*mut bpf_sock> {
    // SAFETY: the packet of the context; each pointer is tested before it is used.
    unsafe {
        let socket = (*ctx.skb.skb).__bindgen_anon_2.sk;
        if socket.is_null() {
            return None;
        }
        let socket = bpf_sk_fullsock(socket);
        (!socket.is_null()).then_some(socket)
    }
}

#[inline(always)]
fn packets(ctx: &SkBuffContext) -> u64 {
    // SAFETY: the packet of the context.
    let segments = unsafe { (*ctx.skb.skb).gso_segs };
    if segments == 0 {
        1
    } else {
        u64::from(segments)
    }
}

/// `None` if the socket isn't TCP's or has no estimate yet.
///
/// # Safety
/// `socket` comes from [`socket`].
#[inline(always)]
unsafe fn smoothed_rtt_ns(socket: *mut bpf_sock) -> Option<u64> {
    // SAFETY: as the caller promises; the pointer is tested before it is used.
    let srtt_us = unsafe {
        let tcp = bpf_tcp_sock(socket);
        if tcp.is_null() {
            return None;
        }
        // The kernel keeps it in eighths.
        (*tcp).srtt_us >> 3
    };
    (1..=RTT_MAX_US)
        .contains(&srtt_us)
        .then(|| u64::from(srtt_us) * 1_000)
}
