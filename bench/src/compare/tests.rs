use rand::{RngExt as _, SeedableRng as _};
use rand_pcg::Pcg64;

use super::*;

const COST: Figure = Figure {
    name: "cost",
    ignored: 0.02,
    unwanted: 0.05,
};
const FIGURES: usize = 3;

/// Normal by Box and Muller.
fn normal(random: &mut Pcg64) -> f64 {
    let (one, two): (f64, f64) = (random.random(), random.random());
    (-2.0 * (1.0 - one).ln()).sqrt() * (std::f64::consts::TAU * two).cos()
}

/// A machine that is disturbed now and then.
fn heavy(random: &mut Pcg64) -> f64 {
    let wild = random.random::<f64>() < 0.1;
    normal(random) * if wild { 8.0 } else { 1.0 }
}

/// Looks as the gate does: the share of `trials` comparisons that end in an alarm.
fn alarms(trials: usize, mut value: impl FnMut(&mut Pcg64) -> f64) -> f64 {
    let mut random = Pcg64::seed_from_u64(11);
    let mut count = 0;
    for _ in 0..trials {
        let mut logs = Vec::new();
        for look in LOOKS {
            while logs.len() < look {
                logs.push(value(&mut random));
            }
            match judge(&COST, FIGURES, &logs).verdict {
                Verdict::Regressed => count += 1,
                Verdict::Fine => {}
                Verdict::Open => continue,
            }
            break;
        }
    }
    count as f64 / trials as f64
}

#[test]
fn p_is_that_of_the_tables() {
    // All eight on one side: one choice of signs out of 2^8.
    let positive: Vec<f64> = (1..=8).map(f64::from).collect();
    assert!((signed_rank_p(&positive) - 1.0 / 256.0).abs() < 1e-12);
    let negative: Vec<f64> = positive.iter().map(|value| -value).collect();
    assert!((signed_rank_p(&negative) - 1.0).abs() < 1e-12);
    // n = 10, sum of ranks 45: P(W >= 45) = P(W <= 10) = 43 / 1024.
    let values = [-1.0, -2.0, -3.0, -4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0];
    assert!((signed_rank_p(&values) - 43.0 / 1024.0).abs() < 1e-12);
    // Ties share their rank: of 1, 1, -1 the sum is 4 at least in 4 of 8 choices.
    assert!((signed_rank_p(&[1.0, 1.0, -1.0]) - 0.5).abs() < 1e-12);
    assert!((signed_rank_p(&[0.0, 0.0]) - 1.0).abs() < 1e-12);
}

#[test]
fn the_centre_is_hardly_moved_by_one_wild_round() {
    let calm = [0.010, 0.012, 0.011, 0.009, 0.010, 0.011, 0.010];
    let mut wild = calm;
    wild[2] = 3.0;
    assert!((centre(&calm) - 0.010_5).abs() < 0.000_5);
    assert!((centre(&wild) - centre(&calm)).abs() < 0.002);
}

#[test]
fn two_that_are_the_same_alarm_far_less_than_once_in_twenty() {
    assert!(alarms(2_000, |random| 0.015 * normal(random)) < 0.005);
    assert!(alarms(2_000, |random| 0.015 * heavy(random)) < 0.005);
}

#[test]
fn a_rise_that_is_ignored_alarms_no_more_than_stated() {
    let figures = FIGURES as f64;
    for noise in [0.002, 0.01, 0.05] {
        let share = alarms(2_000, |random| 1.02_f64.ln() + noise * normal(random));
        assert!(
            share <= 1.3 * FALSE_ALARM_RATE / figures,
            "{noise}: {share}"
        );
        let one_percent = alarms(2_000, |random| 1.01_f64.ln() + noise * normal(random));
        assert!(
            one_percent <= FALSE_ALARM_RATE / figures,
            "{noise}: {one_percent}"
        );
    }
}

#[test]
fn a_rise_by_a_twentieth_is_found_nineteen_times_in_twenty() {
    assert!(alarms(2_000, |random| 1.05_f64.ln() + 0.025 * normal(random)) >= 0.95);
    assert!(alarms(2_000, |random| 1.05_f64.ln() + 0.012 * heavy(random)) >= 0.95);
}

#[test]
fn peace_needs_all_figures_and_an_alarm_one() {
    let of = |verdict| Judgement {
        ratio: 1.0,
        p_regressed: 1.0,
        p_unwanted: 0.0,
        verdict,
    };
    let (fine, open, worse) = (Verdict::Fine, Verdict::Open, Verdict::Regressed);
    assert_eq!(overall(&[of(fine), of(fine)]), fine);
    assert_eq!(overall(&[of(fine), of(open)]), open);
    assert_eq!(overall(&[of(open), of(worse)]), worse);
    let rising: Vec<f64> = (0..8)
        .map(|round| 0.06 + 0.001 * f64::from(round))
        .collect();
    assert_eq!(judge(&COST, FIGURES, &rising).verdict, worse);
    let calm: Vec<f64> = (0..8).map(|round| 0.001 * f64::from(round)).collect();
    assert_eq!(judge(&COST, FIGURES, &calm).verdict, fine);
}
