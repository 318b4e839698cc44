//! Requests: service time and status class of clear-text HTTP/1, seen at the server's sockets.
//!
//! A request begins with the packet that brings its head to the socket, and ends with the packet that
//! carries the head of its final response away; so the time includes the wait for the service to
//! accept and to read. The service is not touched, and may be in any language.
//!
//! What isn't seen: HTTP/2, anything inside TLS, a head that doesn't begin its packet (the later ones
//! of several that a client or server sends in one go), and connections that were open before
//! the probes came (their next request is seen).
//!
//! Attached to one cgroup of SIM's, so that only sockets below it pay. A socket is charged to the
//! cgroup in which it was created: for an accepted one that of its listener.

use crate::{
    atomic::add,
    losses,
    net::{self, PASS},
    storage::SocketStorage,
};
use aya_ebpf::{
    bindings::bpf_sock,
    helpers::bpf_ktime_get_ns,
    macros::{btf_map, cgroup_skb},
    programs::SkBuffContext,
};
use sim_ebpf_abi::{CgroupCounters, Connection, Loss, bucket_of};

const TCP: u8 = 6;
/// Least length of the headers of a TCP packet.
const IP_AND_TCP: usize = 40;

#[btf_map]
static CONNECTIONS: SocketStorage<Connection> = SocketStorage::new();

#[cgroup_skb(ingress)]
pub fn http_request(ctx: SkBuffContext) -> i32 {
    request(&ctx, || net::counters(&ctx));
    PASS
}

#[cgroup_skb(egress)]
pub fn http_response(ctx: SkBuffContext) -> i32 {
    response(&ctx, || net::counters(&ctx), || net::socket(&ctx));
    PASS
}

/// Counts a request, where the packet brings one, in the counters that it is told of.
#[inline(always)]
pub fn request(ctx: &SkBuffContext, counters: impl FnOnce() -> Option<*mut CgroupCounters>) {
    let Some((seq, payload)) = payload(ctx) else {
        return;
    };
    let Ok(head) = ctx.load::<[u8; 8]>(payload) else {
        return;
    };
    if !is_request(&head) {
        return;
    }
    let (Some(counters), Some(socket)) = (counters(), net::socket(ctx)) else {
        return;
    };
    // SAFETY: `socket` gives full sockets only.
    let Some(connection) = (unsafe { CONNECTIONS.get_or_zeroed(socket) }) else {
        losses::count(ctx, Loss::Connection);
        return;
    };
    // SAFETY: the value lives as long as the socket, which the packet holds. The packets of one
    // connection are received one after the other, and answered by a server that has read them.
    unsafe {
        let connection = &mut *connection.as_ptr();
        // One sequence number in four billion is taken for a retransmission of nothing.
        if connection.request_seq == seq {
            return;
        }
        connection.request_seq = seq;
        connection.pending += 1;
        if connection.since_ns == 0 {
            connection.since_ns = bpf_ktime_get_ns();
        }
        add(&raw mut (*counters).http.requests, 1);
    }
}

/// Counts a final response, where the packet carries the head of one, in the counters that it is told of.
#[inline(always)]
pub fn response(
    ctx: &SkBuffContext,
    counters: impl FnOnce() -> Option<*mut CgroupCounters>,
    socket: impl FnOnce() -> Option<*mut bpf_sock>,
) {
    let Some((_, payload)) = payload(ctx) else {
        return;
    };
    // "HTTP/1.1 200"
    let Ok(head) = ctx.load::<[u8; 12]>(payload) else {
        return;
    };
    if head[0] != b'H' || head[1] != b'T' || head[2] != b'T' || head[3] != b'P' || head[8] != b' ' {
        return;
    }
    let class = head[9].wrapping_sub(b'1') as usize;
    // 1xx announces the final response, but for 101, which is one.
    let interim = class == 0 && head[11] != b'1';
    if class > 4 || interim {
        return;
    }
    let Some(socket) = socket() else {
        return;
    };
    // SAFETY: `socket` gives full sockets only.
    let Some(connection) = (unsafe { CONNECTIONS.get(socket) }) else {
        return;
    };
    let Some(counters) = counters() else {
        return;
    };
    // SAFETY: see `request`.
    unsafe {
        let connection = &mut *connection.as_ptr();
        if connection.pending == 0 {
            return;
        }
        let now_ns = bpf_ktime_get_ns();
        let service_ns = now_ns.saturating_sub(connection.since_ns);
        connection.pending -= 1;
        // The next one of several waited for this one.
        connection.since_ns = if connection.pending == 0 { 0 } else { now_ns };
        let http = &raw mut (*counters).http;
        add(&raw mut (*http).responses[class], 1);
        add(&raw mut (*http).service_ns, service_ns);
        add(&raw mut (*http).service.buckets[bucket_of(service_ns)], 1);
    }
}

/// TCP sequence number, and where the payload starts; `None` if the packet has none.
///
/// Read in place: by the time that a packet is at its socket its headers lie in one piece.
#[inline(always)]
fn payload(ctx: &SkBuffContext) -> Option<(u32, usize)> {
    // SAFETY: each load lies before `end`, as the verifier checks.
    unsafe {
        let (start, end) = (
            (*ctx.skb.skb).data as usize,
            (*ctx.skb.skb).data_end as usize,
        );
        if start + IP_AND_TCP > end {
            return None;
        }
        let first = *(start as *const u8);
        let (protocol, tcp) = match first >> 4 {
            4 => (*((start + 9) as *const u8), (first as usize & 15) * 4),
            // Extension headers are rare on TCP, and skipped with their packets.
            6 => (*((start + 6) as *const u8), 40),
            _ => return None,
        };
        let header = start + tcp;
        if protocol != TCP || header + 20 > end {
            return None;
        }
        let seq = *((header + 4) as *const u32);
        let payload = tcp + (*((header + 12) as *const u8) as usize >> 4) * 4;
        ((payload as u32) < ctx.len()).then_some((u32::from_be(seq), payload))
    }
}

/// By the first letters of a method and, for the short ones, the space behind it.
#[inline(always)]
fn is_request(head: &[u8; 8]) -> bool {
    let four = [head[0], head[1], head[2], head[3]];
    matches!(
        &four,
        b"GET " | b"PUT " | b"POST" | b"HEAD" | b"DELE" | b"PATC" | b"OPTI"
    )
}
