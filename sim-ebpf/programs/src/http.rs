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
    cgroups, losses,
    net::{self, PASS},
    storage::SocketStorage,
    tcp::{self, Payload},
};
use aya_ebpf::{
    bindings::bpf_sock,
    helpers::bpf_ktime_get_ns,
    macros::{btf_map, cgroup_skb},
    programs::SkBuffContext,
};
use core::ptr::NonNull;
use sim_ebpf_abi::{CgroupCounters, Connection, Loss, bucket_of};

#[btf_map]
static CONNECTIONS: SocketStorage<Connection> = SocketStorage::new();

/// The socket of a packet, and what is known of its connection.
pub struct Flow {
    pub socket: *mut bpf_sock,
    known: Option<NonNull<Connection>>,
}

impl Flow {
    #[inline(always)]
    pub fn of(ctx: &SkBuffContext) -> Option<Self> {
        let socket = net::socket(ctx)?;
        // SAFETY: `socket` gives full sockets only.
        let known = unsafe { CONNECTIONS.get(socket) };
        Some(Self { socket, known })
    }

    /// Counters of the cgroup that the socket is charged to.
    #[inline(always)]
    pub fn counters(&self, ctx: &SkBuffContext) -> Option<*mut CgroupCounters> {
        match self.known {
            // SAFETY: the value lives as long as the socket, which the packet holds.
            Some(connection) => cgroups::tracked(unsafe { (*connection.as_ptr()).cgroup_id }),
            None => net::counters(ctx),
        }
    }
}

#[cgroup_skb(ingress)]
pub fn http_request(ctx: SkBuffContext) -> i32 {
    if let Some(payload) = tcp::payload(&ctx)
        && let Some(flow) = Flow::of(&ctx)
        && let Some(counters) = flow.counters(&ctx)
    {
        request(&ctx, payload, &flow, counters);
    }
    PASS
}

#[cgroup_skb(egress)]
pub fn http_response(ctx: SkBuffContext) -> i32 {
    if let Some(payload) = tcp::payload(&ctx)
        && let Some(flow) = Flow::of(&ctx)
        && let Some(counters) = flow.counters(&ctx)
    {
        response(&ctx, payload, &flow, counters);
    }
    PASS
}

/// Counts a request, where the packet brings one.
#[inline(always)]
pub fn request(ctx: &SkBuffContext, payload: Payload, flow: &Flow, counters: *mut CgroupCounters) {
    let Ok(head) = ctx.load::<[u8; 8]>(payload.offset) else {
        return;
    };
    if !is_request(&head) {
        return;
    }
    let connection = match flow.known {
        Some(connection) => connection,
        // SAFETY: a full socket, as it comes from `net::socket`.
        None => match unsafe { CONNECTIONS.get_or_zeroed(flow.socket) } {
            Some(connection) => {
                // SAFETY: see below.
                unsafe { (*connection.as_ptr()).cgroup_id = net::cgroup_id(ctx) };
                connection
            }
            None => {
                losses::count(ctx, Loss::Connection);
                return;
            }
        },
    };
    // SAFETY: the value lives as long as the socket, which the packet holds. The packets of one
    // connection are received one after the other, and answered by a server that has read them.
    unsafe {
        let connection = &mut *connection.as_ptr();
        // One sequence number in four billion is taken for a retransmission of nothing.
        if connection.request_seq == payload.sequence {
            return;
        }
        connection.request_seq = payload.sequence;
        connection.pending += 1;
        if connection.since_ns == 0 {
            connection.since_ns = bpf_ktime_get_ns();
        }
        add(&raw mut (*counters).http.requests, 1);
    }
}

/// Counts a final response, where the packet carries the head of one.
#[inline(always)]
pub fn response(ctx: &SkBuffContext, payload: Payload, flow: &Flow, counters: *mut CgroupCounters) {
    let Some(connection) = flow.known else {
        return;
    };
    // SAFETY: see `request`.
    let connection = unsafe { &mut *connection.as_ptr() };
    if connection.pending == 0 {
        return;
    }
    // "HTTP/1.1 200"
    let Ok(head) = ctx.load::<[u8; 12]>(payload.offset) else {
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
    // SAFETY: the helper only reads.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    let service_ns = now_ns.saturating_sub(connection.since_ns);
    connection.pending -= 1;
    // The next one of several waited for this one.
    connection.since_ns = if connection.pending == 0 { 0 } else { now_ns };
    // SAFETY: a live map value; `add` is atomic.
    unsafe {
        let http = &raw mut (*counters).http;
        add(&raw mut (*http).responses[class], 1);
        add(&raw mut (*http).service_ns, service_ns);
        add(&raw mut (*http).service.buckets[bucket_of(service_ns)], 1);
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
