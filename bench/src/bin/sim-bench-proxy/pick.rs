//! What choosing an instance costs, with the ticket drawn for it, and how even the choices are.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::Barrier;
use std::time::Instant;

use anyhow::{Context as _, Result};
use bench::{median, round_to};
use serde_json::{Map, Value};
use sim_core::name::{InstanceId, WorkloadName};
use sim_core::table::{Share, Version, WeightTable};
use sim_proxy::live::InstanceLive;
use sim_proxy::pick::pick_in_turn;
use sim_proxy::schedule::Cursor;
use sim_proxy::snapshot::Snapshot;
use sim_proxy::tickets::{take_ticket, take_turn};

/// Picks of one measurement, of each thread.
const PICKS: u32 = 10_000_000;
/// Picks whose prefixes are counted, and the seeds they are counted for.
const PREFIXES: u32 = 100_000;
const SEEDS: u64 = 32;
const NOW_NS: u64 = 1_000_000_000_000;

pub(crate) fn measure(rounds: usize) -> Result<Map<String, Value>> {
    let mut results = Map::new();
    for threads in [1, 2] {
        let taken: Result<Vec<f64>> = (0..rounds).map(|_| nanoseconds(threads)).collect();
        let ns = round_to(median(&taken?).unwrap_or_default(), 0.01);
        println!("pick: {ns} ns at {threads} threads");
        results.insert(format!("pick_ns_{threads}_threads"), ns.into());
    }
    let worst = discrepancy()?;
    println!("pick: prefixes are off by {worst:.2} requests at most");
    let worst = round_to(worst, 0.01);
    results.insert("pick_prefix_discrepancy_requests".to_owned(), worst.into());
    Ok(results)
}

/// 95 to 5.
fn snapshot() -> Result<Snapshot> {
    let shares = [(1, 9_500), (2, 500)].map(|(id, weight_bp)| Share {
        instance: InstanceId(id),
        address: ([127, 0, 0, 1], 1_000).into(),
        weight_bp,
        ready: true,
    });
    let version = Version {
        epoch: 1,
        generation: 1,
    };
    let name = WorkloadName::new("bench").context("a name")?;
    let table = WeightTable::new(name, version, shares.to_vec()).context("a table")?;
    Ok(Snapshot::new(&table, NOW_NS, |share| {
        Arc::new(InstanceLive::new(share.instance, share.address.clone()))
    }))
}

/// Of one pick, where `threads` pick at once from one snapshot; the slowest thread's.
fn nanoseconds(threads: usize) -> Result<f64> {
    let snapshot = snapshot()?;
    let begin = Barrier::new(threads);
    let each = std::thread::scope(|scope| {
        let started: Vec<_> = (0..threads)
            .map(|_| {
                scope.spawn(|| {
                    begin.wait();
                    let at = Instant::now();
                    for _ in 0..PICKS {
                        let snapshot = black_box(&snapshot);
                        let place = take_turn(0, snapshot.schedule());
                        black_box(pick_in_turn(snapshot, place, take_ticket, NOW_NS));
                    }
                    at.elapsed().as_secs_f64() * 1e9 / f64::from(PICKS)
                })
            })
            .collect();
        let joined = started.into_iter().map(std::thread::ScopedJoinHandle::join);
        joined.map(Result::ok).collect::<Option<Vec<f64>>>()
    });
    let each = each.context("a thread panicked")?;
    Ok(each.into_iter().fold(0.0, f64::max))
}

/// By how many requests the first of any number of picks of one worker miss the weights, at most.
fn discrepancy() -> Result<f64> {
    let mut worst: f64 = 0.0;
    for seed in 0..SEEDS {
        // Each in an order of its own.
        let (snapshot, mut cursor) = (snapshot()?, Cursor::default());
        let mut first = 0.0;
        for count in 1..=PREFIXES {
            let place = cursor.take(snapshot.schedule(), || seed << 59);
            let picked = pick_in_turn(&snapshot, place, take_ticket, NOW_NS).context("no pick")?;
            first += f64::from(u8::from(picked.at == 0));
            worst = worst.max((first - 0.95 * f64::from(count)).abs());
        }
    }
    Ok(worst)
}
