#![allow(
    missing_docs,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "dev"
)]
use sim_tests::{
    demo::{instance::Instance, settings::*},
    load::request::{Mix, client},
    sweep::Sweep,
    world::{World, cgroup::Mounts},
};
use std::time::Duration;
fn main() {
    let world = World::build().unwrap();
    let mounts = Mounts::read().unwrap();
    let programs = Programs::locate().unwrap();
    let rt = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    rt.block_on(async {
        let mut fixed = None;
        for period in [10_000, 100_000] {
            let mut i = Instance::start(
                &programs,
                &world.servers[0],
                &mounts,
                "sim-measure",
                period,
                std::path::Path::new("/tmp/x"),
            )
            .unwrap();
            let t = std::time::Instant::now();
            let c = client();
            i.ready(&c).await.unwrap();
            println!("period {period}: ready in {:?}", t.elapsed());
            let mix = Mix::learn(&c, i.address).await.unwrap();
            let mut s = Sweep::new(i.address, mix, OBJECTIVE, 1).unwrap();
            let t = std::time::Instant::now();
            let own = s.capacity_rps(|s| println!("  {s:?}")).await.unwrap();
            println!("capacity {own:.0} in {:?}", t.elapsed());
            let cap = *fixed.get_or_insert(own);
            for share in [0.5, 0.75, 0.9] {
                let st = s.step(cap * share, Duration::from_secs(12)).await.unwrap();
                println!(
                    "  {:.0} % of {cap:.0}: p50 {:.1} p99 {:.1} failed {}",
                    share * 100.0,
                    st.p50_ms,
                    st.p99_ms,
                    st.failed
                );
            }
        }
    });
}
