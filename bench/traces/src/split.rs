//! Halves of the series: one to tune by, at origins of our own, and one that nothing was tuned on, at those that are scored.
//!
//! Which half a series is in follows from its group, so that one recording at two intervals, or two parts of it, is
//! never in both.

use crate::folder::Series;
use crate::score::quantile;

/// Origins a series, one in each of as many equal slices of what follows the warm-up.
const ORIGINS: usize = 200;
/// Decisions are judged on the week before the one that is scored, by quantiles of that week.
const WEEK_DAYS: usize = 7;
const THRESHOLD: f64 = 0.97;
const CAPACITY: f64 = 0.95;
const SEED: u64 = 0x5A17_2026;

/// Whether a series is one to tune by.
fn is_own(series: &Series) -> bool {
    let start = SEED ^ series.group.len() as u64;
    let hash = |hash: u64, byte: u8| mix(hash ^ u64::from(byte));
    series.group.bytes().fold(start, hash) & 1 == 0
}

/// Leaves the half that nothing is tuned on, and what is asked of it.
pub(crate) fn held(all: &mut Vec<Series>) {
    all.retain(|series| !is_own(series));
}

/// Leaves the half to tune by, and replaces what is asked of it.
pub(crate) fn own(all: &mut Vec<Series>, with_decisions: bool) {
    all.retain(is_own);
    ask(all, with_decisions);
}

/// Replaces what is asked for.
fn ask(all: &mut [Series], with_decisions: bool) {
    for (place, series) in all.iter_mut().enumerate() {
        let scored = series
            .origins
            .iter()
            .find(|(_, origin)| origin.is_decision)
            .map(|(&at, _)| at);
        series.origins.clear();
        let (from, until) = (series.scoring.warm_up, series.samples.len());
        let slices = ORIGINS as u64;
        let span = until.saturating_sub(from);
        for slice in 0..slices {
            let [low, high] = [slice, slice + 1].map(|i| from + span * i as usize / ORIGINS);
            if high > low {
                let chance = mix(SEED ^ mix(place as u64 * slices + slice));
                series.ask(low + (chance % (high - low) as u64) as usize, false);
            }
        }
        (series.threshold, series.scoring.capacity) = (None, None);
        if let (Some(scored), true) = (scored, with_decisions) {
            let first = scored
                .saturating_sub(WEEK_DAYS * series.scoring.day)
                .max(from);
            let mut week: Vec<f64> = (first..scored).filter_map(|at| series.at(at)).collect();
            week.sort_by(f64::total_cmp);
            if !week.is_empty() {
                series.threshold = Some(quantile(&week, THRESHOLD));
                series.scoring.capacity = Some(quantile(&week, CAPACITY));
                (first..scored).for_each(|at| series.ask(at, true));
            }
        }
    }
}

/// `SplitMix64`'s finaliser.
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    use crate::folder::Scoring;

    fn series(id: &str, group: &str) -> Series {
        Series {
            id: id.to_owned(),
            group: group.to_owned(),
            interval_s: 3_600,
            start: 0,
            is_percent: false,
            samples: (0..3_000).map(|t| Some(f64::from(t % 24))).collect(),
            threshold: Some(1.0),
            events: vec![],
            origins: Default::default(),
            scoring: Scoring {
                day: 24,
                warm_up: 1_000,
                steps_a: vec![1, 6],
                steps_b: vec![2, 3],
                ..Scoring::default()
            },
        }
    }

    #[test]
    fn nothing_that_is_tuned_by_is_in_the_other_half_nor_of_the_same_recording() {
        let all = || -> Vec<Series> {
            let each = |i: usize| series(&format!("s{i}"), &format!("recording{}", i / 2));
            let mut all: Vec<Series> = (0..200).map(each).collect();
            all.iter_mut().for_each(|series| series.ask(2_000, false));
            all
        };
        let (mut tuned, mut others) = (all(), all());
        own(&mut tuned, false);
        held(&mut others);
        let of = |all: &[Series], what: fn(&Series) -> &String| -> BTreeSet<String> {
            all.iter().map(what).cloned().collect()
        };
        assert!(of(&tuned, |s| &s.id).is_disjoint(&of(&others, |s| &s.id)));
        assert!(of(&tuned, |s| &s.group).is_disjoint(&of(&others, |s| &s.group)));
        assert_eq!(tuned.len() + others.len(), 200);
        // Halves, as near as a hundred tosses of a coin come to it.
        assert!((60..=140).contains(&tuned.len()), "{}", tuned.len());
        // What is held back is scored at the folder's own origins.
        assert!(others.iter().all(|s| s.origins.keys().eq([&2_000])));
    }

    #[test]
    fn origins_are_spread_after_the_warm_up_and_decisions_end_before_the_scored_week() {
        let mut series = series("s", "s");
        (2_800..3_000).for_each(|at| series.ask(at, true));
        let mut all = [series];
        ask(&mut all, true);
        let [series] = all;
        let at = |is: &dyn Fn(&crate::folder::Origin) -> bool| -> Vec<usize> {
            let origins = series.origins.iter().filter(|(_, origin)| is(origin));
            origins.map(|(&at, _)| at).collect()
        };
        let accuracy = at(&|origin| origin.is_accuracy);
        assert_eq!(accuracy.len(), ORIGINS);
        assert!(
            accuracy
                .iter()
                .enumerate()
                .all(|(i, at)| (at - 1_000) / 10 == i)
        );
        assert_eq!(
            at(&|origin| origin.is_decision),
            (2_800 - 168..2_800).collect::<Vec<_>>()
        );
        // The 97th of a hundred even steps from 0 to 23.
        assert!(series.threshold.is_some_and(|y| (22.0..=23.0).contains(&y)));
    }
}
