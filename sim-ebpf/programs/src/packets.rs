//! Network and requests in one program each way, for where both groups run: to find a packet's cgroup
//! and socket costs as much as to count, above all when the caches are cold.

use crate::{
    http,
    net::{self, PASS},
};
use aya_ebpf::{macros::cgroup_skb, programs::SkBuffContext};

#[cgroup_skb(ingress)]
pub fn packet_in(ctx: SkBuffContext) -> i32 {
    if let Some(counters) = net::counters(&ctx) {
        net::received(&ctx, counters);
        http::request(&ctx, || Some(counters));
    }
    PASS
}

#[cgroup_skb(egress)]
pub fn packet_out(ctx: SkBuffContext) -> i32 {
    if let Some(counters) = net::counters(&ctx) {
        let socket = net::socket(&ctx);
        net::sent(&ctx, counters, socket);
        http::response(&ctx, || Some(counters), || socket);
    }
    PASS
}
