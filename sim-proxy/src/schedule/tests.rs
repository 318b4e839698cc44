use super::*;
use proptest::prelude::*;

/// A whole one.
fn whole(weights: &[u16], seed: u64) -> Schedule {
    let schedule = Schedule::new(weights, seed);
    schedule.complete();
    schedule
}

impl Schedule {
    fn all(&self) -> &[u32] {
        self.all.get().expect("complete")
    }
}

prop_compose! {
    /// Weights that sum to 10 000, some of them 0.
    fn weights()(mut cuts in prop::collection::vec(0_u16..=10_000, 0..12), round in prop::sample::select(&[1_u16, 100, 500])) -> Vec<u16> {
        for cut in &mut cuts {
            *cut -= *cut % round;
        }
        cuts.push(10_000);
        cuts.sort_unstable();
        let mut before = 0;
        let weight = |cut: u16| cut - std::mem::replace(&mut before, cut);
        cuts.into_iter().map(weight).collect()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_instance_is_within_one_request_of_its_share(weights in weights(), seed: u64, drawn: u64) {
        let schedule = whole(&weights, seed);
        let (mut cursor, mut had) = (Cursor::default(), vec![0_u32; weights.len()]);
        for taken in 1..=25_000_u32 {
            let place = cursor.take(&schedule, || drawn);
            had[schedule.at(place).expect("a turn")] += 1;
            for (had, weight) in had.iter().zip(&weights) {
                let off = i64::from(*had) * 10_000 - i64::from(taken) * i64::from(*weight);
                prop_assert!(off.abs() < 10_000, "{off}/10000 after {taken}");
            }
        }
    }

    #[test]
    fn what_is_there_at_once_is_what_all_of_it_begins_with(weights in weights(), seed: u64, drawn: u64, at in 0_usize..600) {
        let begun = Schedule::new(&weights, seed);
        let (mut cursor, mut had) = (Cursor::default(), vec![0_u32; weights.len()]);
        let mut places = vec![];
        for taken in 1..=FIRST {
            if places.len() == at {
                begun.complete();
            }
            let place = cursor.take(&begun, || drawn);
            places.push((place, begun.at(place)));
            had[begun.at(place).expect("a turn")] += 1;
            for (had, weight) in had.iter().zip(&weights) {
                let off = i64::from(*had) * 10_000 - i64::from(taken) * i64::from(*weight);
                prop_assert!(off.abs() < 10_000, "{off}/10000 after {taken}");
            }
        }
        begun.complete();
        for (place, of) in places {
            prop_assert_eq!(begun.at(place), of);
        }
    }

    #[test]
    fn a_periodic_client_is_not_stuck_on_one_instance(seed: u64, drawn: u64, period in 2_usize..400) {
        let schedule = whole(&[5_000, 5_000], seed);
        let mut cursor = Cursor::default();
        let mut all = (0..2_000 * period).map(|_| schedule.at(cursor.take(&schedule, || drawn)));
        let (mut run, mut last) = (0, None);
        while let Some(at) = all.nth(period - 1) {
            run = if at == last { run + 1 } else { 0 };
            last = at;
            // A fair coin gives such a run once in 2^40 tosses.
            prop_assert!(run < 40);
        }
    }
}

#[test]
fn a_periodic_client_meets_its_share() {
    // Its rare instance is met as often as by fair coins.
    for seed in 0..20 {
        let schedule = whole(&[9_500, 500], seed);
        for period in [2_usize, 3, 5, 8, 10, 19, 20, 21, 40, 64] {
            let mut cursor = Cursor::default();
            let turns = schedule.all().len();
            let places = (0..turns * period).map(|_| cursor.take(&schedule, || seed << 56));
            let met = places
                .step_by(period)
                .filter(|&p| schedule.at(p) == Some(1));
            let (met, taken) = (met.count() as f64, turns as f64);
            // A client that meets the same places in each round has fewer of its own.
            let own = taken / gcd(turns as u32, period as u32) as f64;
            let bound = 5.0 * (own * 0.05 * 0.95).sqrt() * taken / own;
            assert!(
                (met - taken * 0.05).abs() < bound,
                "{met} of {taken} by {period}"
            );
        }
    }
}

#[test]
fn each_period_and_each_table_has_an_order_of_its_own() {
    let schedule = whole(&[6_000, 3_000, 1_000], 7);
    let periods: std::collections::HashSet<_> = schedule.all().chunks(10).collect();
    assert!(periods.len() > 20, "{}", periods.len());
    let other = whole(&[6_000, 3_000, 1_000], 8);
    assert_ne!(schedule.all(), other.all());
    let begun = |drawn: u64| Cursor::default().take(&schedule, || drawn);
    assert_ne!(begun(0), begun(1 << 63));
}

#[test]
fn nobody_has_a_turn_without_a_weight() {
    for schedule in [Schedule::empty(), whole(&[0, 0], 1)] {
        let mut cursor = Cursor::default();
        for _ in 0..3 {
            assert_eq!(schedule.at(cursor.take(&schedule, || u64::MAX)), None);
        }
    }
    let one = whole(&[0, 10_000], 1);
    assert!(one.all().iter().all(|&of| of == 1));
}
