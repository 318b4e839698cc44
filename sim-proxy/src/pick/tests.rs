use super::*;
use crate::config::EjectSettings;
use crate::live::InstanceLive;
use crate::tickets::Tickets;
use proptest::prelude::*;
use sim_core::name::WorkloadName;
use sim_core::table::{Share, Version, WeightTable};
use std::sync::Arc;

const NOW: u64 = 1_000_000_000_000;
const HALF_SECOND: u64 = 500_000_000;

/// Instances 0, 1, … with these weights; `None` is one that is not ready.
fn snapshot(weights: &[Option<u16>]) -> Snapshot {
    let share = |(id, weight): (usize, &Option<u16>)| Share {
        instance: InstanceId(id as u64),
        address: ([127, 0, 0, 1], 80).into(),
        weight_bp: weight.unwrap_or(0),
        ready: weight.is_some(),
    };
    let shares = weights.iter().enumerate().map(share).collect();
    let name = WorkloadName::new("web").expect("valid");
    let version = Version {
        epoch: 1,
        generation: 1,
    };
    let table = WeightTable::new(name, version, shares).expect("a table");
    Snapshot::new(&table, NOW, |share| {
        Arc::new(InstanceLive::new(share.instance, share.address.clone()))
    })
}

fn eject(snapshot: &Snapshot, at: usize, now_ns: u64) {
    snapshot.upstreams()[at]
        .live
        .health()
        .eject(now_ns, &EjectSettings::default());
}

fn counts(snapshot: &Snapshot, picks: usize, now_ns: u64) -> Vec<usize> {
    let mut tickets = Tickets::new(7);
    let mut counts = vec![0; snapshot.upstreams().len()];
    for _ in 0..picks {
        counts[pick(snapshot, tickets.take(), now_ns)
            .expect("an instance")
            .at] += 1;
    }
    counts
}

prop_compose! {
    /// Weights that sum to 10 000, some of them 0, some instances not ready.
    fn weights()(cuts in prop::collection::vec(0u16..=10_000, 0..15),
                 unready in prop::collection::vec(any::<bool>(), 16)) -> Vec<Option<u16>> {
        let mut cuts = cuts;
        cuts.push(10_000);
        cuts.sort_unstable();
        let mut before = 0;
        let mut weights = vec![];
        for (cut, unready) in cuts.into_iter().zip(unready) {
            weights.push(Some(cut - before));
            before = cut;
            if unready {
                weights.push(None);
            }
        }
        weights
    }
}

proptest! {
    #[test]
    fn shares_are_met_after_any_number_of_picks(weights in weights(), seed: u64) {
        let snapshot = snapshot(&weights);
        let mut tickets = Tickets::new(seed);
        let mut counts = vec![0.0; weights.len()];
        for n in 1..=5_000 {
            let picked = pick(&snapshot, tickets.take(), NOW).expect("an instance");
            prop_assert_eq!(picked.how, How::Share);
            counts[picked.at] += 1.0;
            for (count, weight) in counts.iter().zip(&weights) {
                let due = f64::from(n) * f64::from(weight.unwrap_or(0)) / 10_000.0;
                let off: f64 = count - due;
                // A share lies between two points of the sequence, each even to within 6.
                prop_assert!(off.abs() <= 10.0, "{off} after {n}");
            }
        }
    }

    #[test]
    fn nothing_unready_and_nothing_excluded_is_picked_whatever_is_ejected(
        weights in weights(), ejected: u32, ticket: u64, not in 0u64..16, later in 0..2 * HALF_SECOND,
    ) {
        let snapshot = snapshot(&weights);
        for at in (0..weights.len()).filter(|at| ejected >> at & 1 == 1) {
            eject(&snapshot, at, NOW);
        }
        let ready = |at: usize| snapshot.upstreams()[at].ready;
        let first = pick(&snapshot, ticket, NOW + later).expect("one is ready");
        prop_assert!(ready(first.at));
        let other = pick_other(&snapshot, ticket, NOW + later, InstanceId(not));
        let exists = (0..weights.len()).any(|at| ready(at) && at as u64 != not);
        prop_assert_eq!(other.is_some(), exists);
        if let Some(other) = other {
            prop_assert!(ready(other.at) && other.at as u64 != not);
            prop_assert!(other.how != How::Probe);
        }
    }

    #[test]
    fn a_healthy_instance_goes_before_an_ejected_one(
        weights in weights(), ejected: u32, ticket: u64,
    ) {
        let snapshot = snapshot(&weights);
        let out = |at: usize| ejected >> at & 1 == 1;
        (0..weights.len()).filter(|&at| out(at)).for_each(|at| eject(&snapshot, at, NOW));
        let picked = pick(&snapshot, ticket, NOW).expect("one is ready");
        let any_healthy = (0..weights.len()).any(|at| weights[at].is_some() && !out(at));
        prop_assert_eq!(picked.how == How::Panic, !any_healthy);
        prop_assert!(!any_healthy || !out(picked.at));
    }
}

#[test]
fn a_table_of_zeros_or_of_nothing_picks_nothing() {
    for weights in [&[][..], &[None, None]] {
        let snapshot = snapshot(weights);
        assert_eq!(pick(&snapshot, u64::MAX, NOW), None);
        assert_eq!(pick_other(&snapshot, 0, NOW, InstanceId(0)), None);
    }
}

#[test]
fn both_ends_of_the_range_belong_to_an_instance() {
    let snapshot = snapshot(&[Some(0), Some(9_999), Some(1), Some(0)]);
    let at = |ticket| pick(&snapshot, ticket, NOW).map(|p| p.at);
    assert_eq!((at(0), at(u64::MAX)), (Some(1), Some(2)));
}

#[test]
fn two_alternating_routes_both_get_their_share() {
    let snapshot = snapshot(&[Some(9_500), Some(500)]);
    for period in 2..=6 {
        let mut tickets = Tickets::new(period as u64);
        let mut small = vec![0_u32; period];
        let rounds = 20_000;
        for _ in 0..rounds {
            for route in &mut small {
                let picked = pick(&snapshot, tickets.take(), NOW).expect("an instance");
                *route += u32::from(picked.at == 1);
            }
        }
        for count in small {
            // 1 000 expected; fair coins have a standard deviation of 31.
            assert!(count.abs_diff(1_000) < 200, "{count} at period {period}");
        }
    }
}

#[test]
fn the_part_of_an_ejected_instance_is_shared_by_weight() {
    let snapshot = snapshot(&[Some(5_000), Some(4_000), Some(1_000)]);
    eject(&snapshot, 0, NOW);
    let counts = counts(&snapshot, 10_000, NOW);
    assert_eq!(counts[0], 0);
    assert!(counts[1].abs_diff(8_000) < 20, "{counts:?}");
}

#[test]
fn a_warm_shadow_takes_over_from_an_ejected_primary() {
    let snapshot = snapshot(&[Some(10_000), Some(0), None]);
    eject(&snapshot, 0, NOW);
    assert_eq!(counts(&snapshot, 100, NOW), [0, 100, 0]);
    assert_eq!(
        pick(&snapshot, 0, NOW),
        Some(Pick {
            at: 1,
            how: How::Spare
        })
    );
    assert!(!has_other(&snapshot, InstanceId(1)));
    let due = NOW + HALF_SECOND;
    assert_eq!(
        pick(&snapshot, 0, due),
        Some(Pick {
            at: 0,
            how: How::Probe
        })
    );
}

#[test]
fn with_all_ejected_the_first_to_come_back_is_used() {
    let snapshot = snapshot(&[Some(9_000), Some(1_000)]);
    eject(&snapshot, 0, NOW + 10);
    eject(&snapshot, 1, NOW);
    assert_eq!(
        pick(&snapshot, 0, NOW + 20),
        Some(Pick {
            at: 1,
            how: How::Panic
        })
    );
}

#[test]
fn a_retry_goes_to_a_shadow_without_weight_if_that_is_all_there_is() {
    let snapshot = snapshot(&[Some(10_000), Some(0), None]);
    let other = pick_other(&snapshot, 0, NOW, InstanceId(0));
    assert_eq!(
        other,
        Some(Pick {
            at: 1,
            how: How::Spare
        })
    );
}

#[test]
fn the_part_of_two_ejected_instances_is_shared_too() {
    let snapshot = snapshot(&[Some(100), Some(6_000), Some(2_000), Some(1_900)]);
    eject(&snapshot, 0, NOW);
    eject(&snapshot, 2, NOW);
    let counts = counts(&snapshot, 10_000, NOW);
    assert_eq!((counts[0], counts[2]), (0, 0));
    assert!(counts[1].abs_diff(7_595) < 30, "{counts:?}");
}

proptest! {
    #[test]
    fn one_that_comes_back_gets_a_rising_part_of_its_weight_and_the_others_the_rest(
        first in 500u16..=9_500,
        seed: u64,
        elapsed in 0u64..=4_999,
    ) {
        let rest = 10_000 - first;
        let snapshot = snapshot(&[Some(first), Some(rest / 2), Some(rest - rest / 2), Some(0)]);
        let span = std::time::Duration::from_secs(5);
        snapshot.upstreams()[0].live.health().ramp().begin(NOW, span);
        let now_ns = NOW + elapsed * 1_000_000;
        let part = 0.1 + 0.9 * elapsed as f64 / 5_000.0;
        let mut tickets = Tickets::new(seed);
        let mut counts = [0.0; 4];
        for n in 1..=5_000 {
            let pick = pick(&snapshot, tickets.take(), now_ns).expect("an instance");
            prop_assert_eq!(pick.how, How::Share);
            counts[pick.at] += 1.0;
            let due = f64::from(n) * f64::from(first) / 1e4 * part;
            prop_assert!((counts[0] - due).abs() <= 12.0, "{} of {due} after {n}", counts[0]);
        }
        let halves: f64 = counts[1] + counts[2];
        prop_assert!((counts[1] - counts[2]).abs() <= 0.02 * halves + 24.0, "{counts:?}");
        prop_assert_eq!(counts[3], 0.0);
        // With nobody else it gets everything.
        eject(&snapshot, 1, now_ns);
        eject(&snapshot, 2, now_ns);
        eject(&snapshot, 3, now_ns);
        let alone = pick(&snapshot, tickets.take(), now_ns).expect("an instance");
        prop_assert_eq!(alone.at, 0);
    }
}

#[test]
fn while_the_only_one_with_weight_comes_back_the_warm_shadow_takes_the_rest() {
    let snapshot = snapshot(&[Some(10_000), Some(0)]);
    let span = std::time::Duration::from_secs(5);
    snapshot.upstreams()[0]
        .live
        .health()
        .ramp()
        .begin(NOW, span);
    let counts = counts(&snapshot, 1_000, NOW);
    assert!((80..=120).contains(&counts[0]), "{counts:?}");
    let whole = self::counts(&snapshot, 1_000, NOW + 10 * HALF_SECOND);
    assert_eq!(whole, [1_000, 0]);
}
