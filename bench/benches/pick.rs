//! What choosing an instance costs a request: alone, with the ticket drawn for it, around an
//! ejected primary, and with everything that entering an attempt does.

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use sim_core::name::{InstanceId, WorkloadName};
use sim_core::table::{Share, Version, WeightTable};
use sim_proxy::config::EjectSettings;
use sim_proxy::live::InstanceLive;
use sim_proxy::pick::{pick, pick_in_turn};
use sim_proxy::routes::{Entry, Routes};
use sim_proxy::snapshot::Snapshot;
use sim_proxy::tickets::{Tickets, take_ticket, take_turn};
use std::hint::black_box;
use std::sync::Arc;

const NOW: u64 = 1_000_000_000_000;

/// `count` ready instances: the first with 95 %, the rest of it spread over the others.
fn table(count: u16) -> WeightTable {
    let others = count - 1;
    let shares = (0..count)
        .map(|id| Share {
            instance: InstanceId(u64::from(id)),
            address: ([127, 0, 0, 1], 1_000 + id).into(),
            weight_bp: match id {
                0 => 9_500 + 500 % others,
                _ => 500 / others,
            },
            ready: true,
        })
        .collect();
    let name = WorkloadName::new("bench").expect("valid");
    WeightTable::new(
        name,
        Version {
            epoch: 1,
            generation: 1,
        },
        shares,
    )
    .expect("a table")
}

fn snapshot(count: u16) -> Snapshot {
    Snapshot::new(&table(count), NOW, |share| {
        Arc::new(InstanceLive::new(share.instance, share.address.clone()))
    })
}

fn picks(c: &mut Criterion) {
    let mut group = c.benchmark_group("pick");
    for count in [2, 16] {
        let healthy = snapshot(count);
        let mut tickets = Tickets::new(1);
        group.bench_function(BenchmarkId::new("ticket_given", count), |b| {
            let mut ticket = 0_u64;
            b.iter(|| {
                ticket = ticket.wrapping_add(0x9E37_79B9_7F4A_7C15);
                pick(black_box(&healthy), ticket, NOW)
            });
        });
        group.bench_function(BenchmarkId::new("own_sequence", count), |b| {
            b.iter(|| pick(black_box(&healthy), tickets.take(), NOW));
        });
        group.bench_function(BenchmarkId::new("thread_sequence", count), |b| {
            b.iter(|| pick(black_box(&healthy), take_ticket(), NOW));
        });
        group.bench_function(BenchmarkId::new("in_turn", count), |b| {
            b.iter(|| {
                let place = take_turn(usize::from(count), healthy.schedule());
                pick_in_turn(black_box(&healthy), place, take_ticket, NOW)
            });
        });
        let failing = snapshot(count);
        failing.upstreams()[0]
            .live
            .health()
            .eject(NOW, &EjectSettings::default());
        group.bench_function(BenchmarkId::new("around_an_ejected", count), |b| {
            b.iter(|| pick(black_box(&failing), take_ticket(), NOW));
        });
        let routes = Routes::new(table(count).workload().clone(), EjectSettings::default());
        routes.apply(&table(count)).expect("the first table");
        let entry = Entry {
            not: None,
            may_probe: true,
            first: true,
            session: None,
        };
        group.bench_function(BenchmarkId::new("enter_and_leave", count), |b| {
            b.iter(|| drop(black_box(routes.enter(entry))));
        });
    }
    group.finish();
}

criterion_group!(benches, picks);
criterion_main!(benches);
