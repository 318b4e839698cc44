//! Network and requests in one program each way, for where both groups run: to find a packet's cgroup
//! and socket costs as much as to count, above all when the caches are cold.

use crate::{
    http::{self, Flow},
    net::{self, PASS},
    tcp::{self, Payload},
};
use aya_ebpf::{macros::cgroup_skb, programs::SkBuffContext};

#[cgroup_skb(ingress)]
pub fn packet_in(ctx: SkBuffContext) -> i32 {
    match data(&ctx) {
        Some((payload, flow)) => {
            if let Some(counters) = flow.counters(&ctx) {
                net::received(&ctx, counters);
                http::request(&ctx, payload, &flow, counters);
            }
        }
        None => {
            if let Some(counters) = net::counters(&ctx) {
                net::received(&ctx, counters);
            }
        }
    }
    PASS
}

#[cgroup_skb(egress)]
pub fn packet_out(ctx: SkBuffContext) -> i32 {
    match data(&ctx) {
        Some((payload, flow)) => {
            if let Some(counters) = flow.counters(&ctx) {
                net::sent(&ctx, counters);
                net::round_trip(counters, flow.socket);
                http::response(&ctx, payload, &flow, counters);
            }
        }
        None => {
            if let Some(counters) = net::counters(&ctx) {
                net::sent(&ctx, counters);
            }
        }
    }
    PASS
}

/// What a packet carries on a connection, if anything.
#[inline(always)]
fn data(ctx: &SkBuffContext) -> Option<(Payload, Flow)> {
    Some((tcp::payload(ctx)?, Flow::of(ctx)?))
}
