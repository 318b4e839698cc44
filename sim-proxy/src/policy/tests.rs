use super::*;
use crate::live::InstanceLive;
use crate::pick::pick_of_two;
use crate::snapshot::Snapshot;
use crate::tickets::Tickets;
use proptest::prelude::*;
use sim_core::name::{InstanceId, WorkloadName};
use sim_core::table::{Share, Version, WeightTable};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;

fn snapshot(weights: &[u16]) -> Snapshot {
    let share = |(id, &weight_bp): (usize, &u16)| Share {
        instance: InstanceId(id as u64),
        address: ([127, 0, 0, 1], 80).into(),
        weight_bp,
        ready: true,
    };
    let shares = weights.iter().enumerate().map(share).collect();
    let name = WorkloadName::new("web").expect("valid");
    let version = Version {
        epoch: 1,
        generation: 1,
    };
    let table = WeightTable::new(name, version, shares).expect("a table");
    Snapshot::new(&table, 1, |share| {
        Arc::new(InstanceLive::new(share.instance, share.address.clone()))
    })
}

/// What became of requests that came at even times to instances that serve one after the other.
struct Served {
    counts: Vec<usize>,
    /// Latencies, µs, sorted.
    latencies: Vec<u64>,
}

/// A queue for each instance; `service_micros` by instance. The proxy knows what it sent and what came back.
fn serve(
    snapshot: &Snapshot,
    policy: Policy,
    service_micros: impl Fn(usize, usize) -> u64,
    gap_micros: u64,
    requests: usize,
) -> Served {
    let upstreams = snapshot.upstreams();
    let (mut tickets, mut seconds) = (Tickets::new(7), Tickets::new(8));
    let mut free_at = vec![0_u64; upstreams.len()];
    let mut ends: BinaryHeap<Reverse<(u64, usize, u64)>> = BinaryHeap::new();
    let mut served = Served {
        counts: vec![0; upstreams.len()],
        latencies: vec![],
    };
    for n in 0..requests {
        let now = 1_000 + n as u64 * gap_micros;
        while let Some(&Reverse((end, at, came))) = ends.peek() {
            if end > now {
                break;
            }
            ends.pop();
            upstreams[at].live.leave();
            upstreams[at].live.note_pace(end - came, end * 1_000);
        }
        let (first, second) = (tickets.take(), seconds.take());
        let pick = pick_of_two(snapshot, policy, first, second, now * 1_000).expect("an instance");
        let at = pick.at;
        upstreams[at].live.enter();
        free_at[at] = free_at[at].max(now) + service_micros(at, n);
        ends.push(Reverse((free_at[at], at, now)));
        served.counts[at] += 1;
        served.latencies.push(free_at[at] - now);
    }
    served.latencies.sort_unstable();
    served
}

impl Served {
    fn p99(&self) -> u64 {
        self.latencies[self.latencies.len() * 99 / 100]
    }
}

const CHOOSING: [Policy; 2] = [Policy::LeastRequest, Policy::PeakEwma];

#[test]
fn a_slow_instance_gets_less_and_users_wait_less() {
    // One needs four times as long, and would be overloaded by its half.
    let slow = |at: usize, _| if at == 0 { 4_000 } else { 1_000 };
    let by = |policy| serve(&snapshot(&[5_000, 5_000]), policy, slow, 1_600, 20_000);
    let weighted = by(Policy::Weighted);
    for policy in CHOOSING {
        let served = by(policy);
        assert!(
            served.counts[0] < weighted.counts[0] * 8 / 10,
            "{policy}: {:?}",
            served.counts
        );
        assert!(
            served.p99() * 20 < weighted.p99(),
            "{policy}: {} of {}",
            served.p99(),
            weighted.p99()
        );
    }
}

#[test]
fn alike_instances_share_by_weight() {
    for policy in CHOOSING {
        for weights in [[5_000, 5_000], [6_000, 4_000]] {
            // A service time that varies, the same for both.
            let varying = |_, n: usize| 500 + (n as u64 * 7_919) % 1_000;
            let served = serve(&snapshot(&weights), policy, varying, 2_000, 20_000);
            let share = served.counts[0] as f64 / 20_000.0;
            let weight = f64::from(weights[0]) / 10_000.0;
            assert!(
                (share - weight).abs() < 0.08,
                "{policy} {weights:?}: {share}"
            );
        }
    }
}

#[test]
fn a_stalled_instance_is_left_alone_by_all_that_look() {
    // From the 2 000th request on the first one answers nothing within the test.
    let stalls = |at: usize, n| {
        if at == 0 && n >= 2_000 {
            60_000_000
        } else {
            500
        }
    };
    for policy in CHOOSING {
        let served = serve(&snapshot(&[5_000, 5_000]), policy, stalls, 1_000, 4_000);
        // Of the last 2 000 a quarter draws it twice, and has no choice.
        let stuck = served
            .latencies
            .iter()
            .filter(|&&micros| micros > 1_000_000)
            .count();

        assert!(stuck < 2_000 * 3 / 10, "{policy}: {stuck}");
    }
}

proptest! {
    #[test]
    fn nobody_gets_more_than_twice_its_weight_and_a_warming_shadow_no_more_than_it(
        weight in 100_u16..3_300,
        slow in 1_u64..20,
        policy in prop::sample::select(CHOOSING.to_vec()),
    ) {
        // However slow the primary is.
        let primary = |at: usize, _| if at == 0 { 500 * slow } else { 500 };
        let served = serve(&snapshot(&[10_000 - weight, weight]), policy, primary, 2_000, 10_000);
        let share = served.counts[1] as f64 / 10_000.0;
        prop_assert!(share <= f64::from(weight) / 10_000.0 + 0.001, "{share}");
    }

    #[test]
    fn a_choice_is_one_of_the_two_that_were_drawn(
        first: u64, second: u64, weights in prop::collection::vec(1_u16..4, 2..6),
        loads in prop::collection::vec((0_u8..5, 0_u64..9_000), 6),
        policy in prop::sample::select(CHOOSING.to_vec()),
    ) {
        let total: u16 = weights.iter().sum();
        let mut weights: Vec<u16> = weights.iter().map(|w| w * (10_000 / total)).collect();
        weights[0] += 10_000 - weights.iter().sum::<u16>();
        let snapshot = snapshot(&weights);
        for (upstream, (in_flight, micros)) in snapshot.upstreams().iter().zip(loads) {
            for _ in 0..in_flight {
                upstream.live.enter();
            }
            upstream.live.note_pace(micros, 1_000_000);
        }
        let drawn = [snapshot.share_at(first), snapshot.share_at(second)];
        let pick = pick_of_two(&snapshot, policy, first, second, 2_000_000).expect("one");
        prop_assert!(drawn.contains(&pick.at));
        let picked = snapshot.upstreams()[pick.at].weight_bp;
        prop_assert!(2 * picked >= snapshot.upstreams()[drawn[0]].weight_bp);
    }
}
