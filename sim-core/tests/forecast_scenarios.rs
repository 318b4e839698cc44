//! The forecaster on the loads it is made for: request rates once a second, Poisson noise around
//! level, trend and season.

use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;
use sim_core::forecast::{Forecast, Forecaster, ForecasterConfig, Model};

/// Counts of a Poisson process by its normal approximation, good at the rates used here.
fn poisson(rng: &mut Pcg64, rate: f64) -> f64 {
    let u: f64 = rng.random::<f64>().max(1e-12);
    let v: f64 = rng.random();
    let normal = (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos();
    (rate + rate.sqrt() * normal).round().max(0.0)
}

fn wave(t: usize, period: f64, seed: u64) -> f64 {
    (std::f64::consts::TAU * t as f64 / period + seed as f64).sin()
}

/// When the ramps of the next test start, in steps.
const RAMP_FROM: usize = 80;

#[test]
fn a_ramp_is_seen_in_its_first_two_thirds_and_no_alarm_is_raised_long_before() {
    for rate_per_step in [0.004, 0.006, 0.008] {
        for (seed, period) in (0..24).zip([15.0, 20.0, 27.0, 40.0].into_iter().cycle()) {
            let base = if seed % 8 < 4 { 180.0 } else { 300.0 };
            let truth = |t: usize| {
                let ramp = 1.0 + rate_per_step * t.saturating_sub(RAMP_FROM) as f64;
                base * (ramp + 0.12 * wave(t, period, seed))
            };
            let capacity = 1.6 * base;
            let crossing = (0..).find(|&t| truth(t) > capacity).unwrap();
            let mut rng = Pcg64::seed_from_u64(seed);
            let mut f = Forecaster::new(ForecasterConfig::default());
            let alarm = (0..crossing).find(|&t| {
                f.observe(Some(poisson(&mut rng, truth(t))));
                f.is_calibrated() && f.forecast().first_crossing(capacity, 0.95, 90).is_some()
            });
            let lead = crossing - alarm.unwrap_or(crossing);
            assert!(
                3 * lead >= crossing - RAMP_FROM && lead <= 140,
                "{rate_per_step} {period} {seed}: {lead} of {}",
                crossing - RAMP_FROM
            );
        }
    }
}

/// A trend that ends surprises any forecaster once. What must not happen is that the surprise
/// of its start, seen again at each lead, keeps the intervals blown up.
#[test]
fn when_a_ramp_ends_the_upper_quantiles_come_back_to_the_load() {
    for (seed, period) in (0..24).zip([30.0, 40.0, 54.0].into_iter().cycle()) {
        let truth = |t: usize| {
            let ramp = 0.011 * t.clamp(100, 260).saturating_sub(100) as f64;
            220.0 * (1.0 + ramp) * (1.0 + 0.08 * wave(t, period, seed))
        };
        let mut rng = Pcg64::seed_from_u64(seed);
        let mut f = Forecaster::new(ForecasterConfig {
            horizon_steps: 80,
            ..ForecasterConfig::default()
        });
        let mut highest = 0.0_f64;
        for t in 0..420 {
            f.observe(Some(poisson(&mut rng, truth(t))));
            let next: f64 = (t..t + 80).map(truth).fold(0.0, f64::max);
            let ratio = f.forecast().upper_max(1, 80, 0.95) / next;
            if t >= 140 {
                highest = highest.max(ratio);
            }
            assert!(
                t < 380 || ratio < 1.5,
                "seed {seed} t {t}: {ratio} times the load"
            );
        }
        assert!(highest < 2.3, "seed {seed}: {highest} times the load");
    }
}

#[test]
fn a_flat_load_with_season_raises_no_alarm() {
    let base = 300.0;
    for (seed, period) in (0..24).zip([15.0, 20.0, 30.0, 40.0].into_iter().cycle()) {
        let mut rng = Pcg64::seed_from_u64(seed);
        let mut f = Forecaster::new(ForecasterConfig::default());
        let mut calibrated_at = None;
        for t in 0..300 {
            f.observe(Some(poisson(
                &mut rng,
                base * (1.0 + 0.10 * wave(t, period, seed)),
            )));
            if f.is_calibrated() {
                calibrated_at.get_or_insert(t);
                let highest = f.forecast().upper_max(1, 60, 0.99) / base;
                // A perfect forecaster's highest would be 1.24.
                assert!(
                    highest <= 1.35,
                    "seed {seed} period {period} t {t}: {highest}"
                );
            }
        }
        assert!(
            calibrated_at.is_some_and(|t| t <= 121),
            "{seed}: {calibrated_at:?}"
        );
    }
}

#[test]
fn a_flat_load_without_season_is_calibrated_within_70_samples() {
    for seed in 0..10 {
        let mut rng = Pcg64::seed_from_u64(seed);
        let mut f = Forecaster::new(ForecasterConfig::default());
        for _ in 0..70 {
            f.observe(Some(poisson(&mut rng, 200.0)));
        }
        assert!(f.is_calibrated(), "{seed}");
        let q = f.forecast().quantile(45, 0.99);
        assert!((210.0..270.0).contains(&q), "{seed}: {q}");
    }
}

#[test]
fn the_90_percent_band_covers_about_90_percent() {
    for period in [17.0, 25.0, 40.0] {
        let (mut inside, mut compared) = ([0; 3], 0);
        for seed in 0..6 {
            let mut rng = Pcg64::seed_from_u64(100 + seed);
            let mut f = Forecaster::new(ForecasterConfig::default());
            let mut made: Vec<Forecast> = Vec::new();
            for t in 0..700 {
                let y = poisson(&mut rng, 200.0 * (1.0 + 0.12 * wave(t, period, seed)));
                if t >= 200 {
                    compared += 1;
                    for (inside, lead) in inside.iter_mut().zip([1, 8, 32]) {
                        let past = &made[t - lead];
                        let band = past.quantile(lead, 0.05)..=past.quantile(lead, 0.95);
                        *inside += i32::from(band.contains(&y));
                    }
                }
                f.observe(Some(y));
                made.push(f.forecast());
            }
            let coverage = f.scores().coverage_90.unwrap();
            assert!(
                (0.82..=0.97).contains(&coverage),
                "{period} {seed}: {coverage}"
            );
        }
        for inside in inside {
            let coverage = f64::from(inside) / f64::from(compared);
            assert!((0.82..=0.97).contains(&coverage), "{period}: {coverage}");
        }
    }
}

#[test]
fn a_level_shift_is_recovered_from_within_20_samples() {
    for factor in [0.6, 1.3, 1.5, 2.0] {
        let (mut near, mut far) = (0.0, 0.0);
        let runs = 20;
        for seed in 0..runs {
            let mut rng = Pcg64::seed_from_u64(300 + seed);
            let mut f = Forecaster::new(ForecasterConfig::default());
            let truth = |t: usize| {
                let level = if t < 150 { 200.0 } else { 200.0 * factor };
                level * (1.0 + 0.10 * wave(t, 24.0, seed))
            };
            for t in 0..170 {
                f.observe(Some(poisson(&mut rng, truth(t))));
            }
            let forecast = f.forecast();
            let error =
                |lead: usize| (forecast.steps[lead - 1].mean / truth(169 + lead) - 1.0).abs();
            near += error(8) / runs as f64;
            far += error(45) / runs as f64;
        }
        assert!(near < 0.10 && far < 0.10, "{factor}: {near} {far}");
    }
}

#[test]
fn one_spike_moves_neither_mean_nor_band_far() {
    let mut rng = Pcg64::seed_from_u64(11);
    let mut f = Forecaster::new(ForecasterConfig::default());
    for _ in 0..200 {
        f.observe(Some(poisson(&mut rng, 200.0)));
    }
    let before = f.forecast();
    f.observe(Some(20_000.0));
    let after = f.forecast();
    for lead in [1, 8, 45, 90] {
        assert!(
            (after.steps[lead - 1].mean - before.steps[lead - 1].mean).abs() < 20.0,
            "{lead}"
        );
        assert!(after.quantile(lead, 0.99) < 1.6 * 200.0, "{lead}");
    }
}

#[test]
fn gaps_leave_a_forecast_close_to_the_truth() {
    let mut rng = Pcg64::seed_from_u64(5);
    let mut f = Forecaster::new(ForecasterConfig::default());
    let truth = |t: usize| 250.0 * (1.0 + 0.12 * wave(t, 20.0, 0));
    for t in 0..300 {
        let y = poisson(&mut rng, truth(t));
        let lost = t % 7 == 3 || (200..215).contains(&t);
        f.observe(if lost { None } else { Some(y) });
    }
    assert_eq!(f.samples_seen(), 300);
    assert!(f.is_calibrated());
    assert!(
        f.scores()
            .season_steps
            .is_some_and(|p| (19..=21).contains(&p))
    );
    let forecast = f.forecast();
    for lead in [1, 8, 45] {
        let mean = forecast.steps[lead - 1].mean;
        assert!(
            (mean / truth(299 + lead) - 1.0).abs() < 0.06,
            "{lead}: {mean}"
        );
        assert!(forecast.quantile(lead, 0.99) < 1.35 * 250.0);
    }
}

#[test]
fn with_nothing_but_missing_samples_the_forecast_is_zero_and_not_calibrated() {
    let mut f = Forecaster::new(ForecasterConfig::default());
    for y in [None, Some(f64::NAN), Some(f64::INFINITY)]
        .into_iter()
        .cycle()
        .take(500)
    {
        f.observe(y);
    }
    assert!(!f.is_calibrated());
    assert!(
        f.forecast()
            .steps
            .iter()
            .all(|s| s.mean == 0.0 && s.quantiles == [0.0; 7])
    );
}

#[test]
fn a_known_season_is_used_from_the_start() {
    let config = ForecasterConfig {
        season_steps_known: vec![30],
        ..ForecasterConfig::default()
    };
    let mut rng = Pcg64::seed_from_u64(9);
    let mut f = Forecaster::new(config);
    let truth = |t: usize| 300.0 * (1.0 + 0.15 * wave(t, 30.0, 1));
    for t in 0..75 {
        f.observe(Some(poisson(&mut rng, truth(t))));
    }
    assert_eq!(f.scores().season_steps, Some(30));
    assert!(f.is_calibrated());
    let forecast = f.forecast();
    for lead in 1..=60 {
        let error = forecast.steps[lead - 1].mean / truth(74 + lead) - 1.0;
        assert!(error.abs() < 0.09, "{lead}: {error}");
    }
}

#[test]
fn a_random_walk_is_forecast_as_one_and_the_losers_are_demoted() {
    let mut rng = Pcg64::seed_from_u64(2);
    let mut f = Forecaster::new(ForecasterConfig::default());
    let mut y = 1000.0;
    for _ in 0..600 {
        y += (rng.random::<f64>() - 0.5) * 40.0;
        f.observe(Some(y));
    }
    let scores = f.scores();
    let weights: f64 = scores.models.iter().map(|m| m.weight).sum();
    assert!((weights - 1.0).abs() < 1e-9);
    let average = scores
        .models
        .iter()
        .find(|m| m.model == Model::Average)
        .unwrap();
    assert!(average.demoted && average.weight < 0.1, "{average:?}");
    assert!((f.forecast().steps[0].mean - y).abs() < 40.0);
}

#[test]
fn the_same_samples_give_the_same_bits_also_across_a_snapshot() {
    let mut rng = Pcg64::seed_from_u64(3);
    let samples: Vec<Option<f64>> = (0..400)
        .map(|t| (t % 13 != 5).then(|| poisson(&mut rng, 200.0 + 25.0 * wave(t, 21.0, 0))))
        .collect();
    let run = |split: usize| {
        let mut f = Forecaster::new(ForecasterConfig::default());
        for (t, &y) in samples.iter().enumerate() {
            if t == split {
                // A value, not text: text is only exact with serde_json's `float_roundtrip`.
                let snapshot = serde_json::to_value(&f).unwrap();
                let restored: Forecaster = serde_json::from_value(snapshot).unwrap();
                assert_eq!(restored, f);
                f = restored;
            }
            f.observe(y);
        }
        let steps = f.forecast().steps;
        let bits: Vec<_> = steps
            .iter()
            .map(|s| (s.mean.to_bits(), s.quantiles.map(f64::to_bits)))
            .collect();
        (bits, f)
    };
    let reference = run(usize::MAX);
    for split in [0, 1, 47, 200, 399] {
        assert_eq!(run(split), reference, "{split}");
    }
}
