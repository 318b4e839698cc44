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

use crate::{atomic::add, cgroups, losses, storage::SocketStorage};
use aya_ebpf::{
    bindings::bpf_sock,
    helpers::{bpf_ktime_get_ns, bpf_skb_cgroup_id, generated::bpf_sk_fullsock},
    macros::{btf_map, cgroup_skb},
    programs::SkBuffContext,
};
use sim_ebpf_abi::{Connection, Loss, bucket_of};

/// Verdict of a `cgroup_skb` program: let the packet through.
const PASS: i32 = 1;
const TCP: u8 = 6;
/// Least length of the headers of a TCP packet.
const IP_AND_TCP: usize = 40;

#[btf_map]
static CONNECTIONS: SocketStorage<Connection> = SocketStorage::new();

#[cgroup_skb(ingress)]
pub fn http_request(ctx: SkBuffContext) -> i32 {
    let Some((seq, payload)) = payload(&ctx) else {
        return PASS;
    };
    let Ok(head) = ctx.load::<[u8; 8]>(payload) else {
        return PASS;
    };
    if !is_request(&head) {
        return PASS;
    }
    // SAFETY: the packet of the context.
    let Some(counters) = cgroups::tracked(unsafe { bpf_skb_cgroup_id(ctx.skb.skb) }) else {
        return PASS;
    };
    let Some(socket) = socket(&ctx) else {
        return PASS;
    };
    // SAFETY: `socket` gives full sockets only.
    let Some(connection) = (unsafe { CONNECTIONS.get_or_zeroed(socket) }) else {
        losses::count(&ctx, Loss::Connection);
        return PASS;
    };
    // SAFETY: the value lives as long as the socket, which the packet holds. The packets of one
    // connection are received one after the other, and answered by a server that has read them.
    unsafe {
        let connection = &mut *connection.as_ptr();
        // One sequence number in four billion is taken for a retransmission of nothing.
        if connection.request_seq == seq {
            return PASS;
        }
        connection.request_seq = seq;
        connection.pending += 1;
        if connection.since_ns == 0 {
            connection.since_ns = bpf_ktime_get_ns();
        }
        add(&raw mut (*counters).http.requests, 1);
    }
    PASS
}

#[cgroup_skb(egress)]
pub fn http_response(ctx: SkBuffContext) -> i32 {
    let Some((_, payload)) = payload(&ctx) else {
        return PASS;
    };
    // "HTTP/1.1 200"
    let Ok(head) = ctx.load::<[u8; 12]>(payload) else {
        return PASS;
    };
    if head[0] != b'H' || head[1] != b'T' || head[2] != b'T' || head[3] != b'P' || head[8] != b' ' {
        return PASS;
    }
    let class = head[9].wrapping_sub(b'1') as usize;
    // 1xx announces the final response, but for 101, which is one.
    let interim = class == 0 && head[11] != b'1';
    if class > 4 || interim {
        return PASS;
    }
    let Some(socket) = socket(&ctx) else {
        return PASS;
    };
    // SAFETY: `socket` gives full sockets only.
    let Some(connection) = (unsafe { CONNECTIONS.get(socket) }) else {
        return PASS;
    };
    // SAFETY: the packet of the context.
    let Some(counters) = cgroups::tracked(unsafe { bpf_skb_cgroup_id(ctx.skb.skb) }) else {
        return PASS;
    };
    // SAFETY: see `http_request`.
    unsafe {
        let connection = &mut *connection.as_ptr();
        if connection.pending == 0 {
            return PASS;
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
    PASS
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

#[inline(always)]
fn socket(ctx: &SkBuffContext) -> Option<*mut bpf_sock> {
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
