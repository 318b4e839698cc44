//! Whether and when a threshold is crossed: what the demand forecaster says of all next samples together.

use sim_core::forecast::demand::{DemandConfig, DemandForecaster};

const HOURLY: DemandConfig = DemandConfig {
    interval_s: 3600,
    horizon_steps: 0,
    lower: None,
    upper: None,
};

/// Uniform in 0..1, from a step.
fn chance(t: u64) -> f64 {
    // SplitMix64's finaliser: neighbouring steps have nothing in common.
    let x = (t + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    ((x ^ (x >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
}

fn bell(t: u64) -> f64 {
    let radius = (-2.0 * (1.0 - chance(2 * t)).ln()).sqrt();
    radius * (std::f64::consts::TAU * chance(2 * t + 1)).cos()
}

/// Each sample remembers the one before, so that neighbours cross together.
fn sticky(count: u64) -> Vec<f64> {
    let mut now = 0.0;
    let next = |t| {
        now = 0.8 * now + 0.6 * bell(t);
        100.0 + 10.0 * now
    };
    (0..count).map(next).collect()
}

#[test]
fn a_crossing_is_likelier_over_more_steps_and_less_likely_of_a_higher_threshold() {
    let mut f = DemandForecaster::new(DemandConfig::default());
    for (t, y) in (0_u64..).zip(sticky(1500)) {
        f.observe((t % 13 != 5).then_some(y));
        if t % 151 != 0 {
            continue;
        }
        for threshold in (60..140).step_by(4).map(f64::from) {
            let p = |steps| f.probability_of_any_above(threshold, steps);
            let all: Vec<f64> = (1..=f.horizon()).map(p).collect();
            assert!(all.is_sorted(), "{t} {threshold}: {all:?}");
            // Where the largest is a target of its own.
            for steps in [1, 3, 12, 39, 72] {
                let below = all[steps - 1];
                let higher = f.probability_of_any_above(threshold + 4.0, steps);
                assert!(
                    higher <= below + 1e-12,
                    "{t} {threshold} {steps}: {higher} {below}"
                );
            }
            for level in [0.05, 0.3, 0.5, 0.9] {
                let expected = all.iter().position(|&p| p >= level).map(|at| at + 1);
                assert_eq!(
                    f.first_crossing(threshold, level),
                    expected,
                    "{t} {threshold}"
                );
            }
        }
    }
}

#[test]
fn crossings_happen_as_often_as_foretold() {
    let samples = sticky(24 * 600);
    let mut f = DemandForecaster::new(HOURLY);
    let mut bins = [(0_u32, 0.0, 0_u32); 10];
    for (t, &y) in samples.iter().enumerate() {
        f.observe(Some(y));
        if t < 24 * 30 {
            continue;
        }
        for (threshold, steps) in [(105.0, 3), (112.0, 4), (112.0, 6), (118.0, 6)] {
            let Some(next) = samples.get(t + 1..=t + steps) else {
                continue;
            };
            let p = f.probability_of_any_above(threshold, steps);
            let bin = &mut bins[((p * 10.0) as usize).min(9)];
            bin.0 += 1;
            bin.1 += p;
            bin.2 += u32::from(next.iter().any(|&y| y > threshold));
        }
    }
    for (count, sum, crossed) in bins {
        assert!(count > 500, "{bins:?}");
        let (foretold, observed) = (
            sum / f64::from(count),
            f64::from(crossed) / f64::from(count),
        );
        assert!(
            (foretold - observed).abs() < 0.06,
            "{foretold} {observed}: {bins:?}"
        );
    }
}

#[test]
fn the_time_of_a_spike_is_foreseen() {
    // Every 19 steps: no divisor of the day.
    let value = |t: u64| {
        if t.is_multiple_of(19) {
            80.0
        } else {
            20.0 + chance(t)
        }
    };
    let mut f = DemandForecaster::new(DemandConfig::default());
    for t in 0..288 * 8 {
        f.observe(Some(value(t)));
    }
    let mut off = 0;
    for t in 288 * 8..288 * 8 + 190 {
        let truth = (1_u64..).find(|ahead| (t - 1 + ahead).is_multiple_of(19));
        let foreseen = f.first_crossing(60.0, 0.5);
        let truth = truth.map_or(0, |ahead| ahead as i64);
        off += foreseen.map_or(19, |ahead| (ahead as i64 - truth).abs());
        f.observe(Some(value(t)));
    }
    // A step off in the mean.
    assert!(off < 190, "{off}");
}

#[test]
fn nothing_exceeds_the_upper_bound_and_everything_what_lies_below_the_lower_one() {
    let mut f = DemandForecaster::new(DemandConfig {
        lower: Some(0.0),
        upper: Some(100.0),
        ..HOURLY
    });
    // At the bound for half of the time.
    for y in sticky(600) {
        f.observe(Some(y.min(100.0)));
    }
    for steps in [1, 3, 6] {
        assert_eq!(f.probability_of_any_above(100.0, steps), 0.0);
        assert_eq!(f.probability_of_any_above(250.0, steps), 0.0);
        assert_eq!(f.probability_of_any_above(-0.1, steps), 1.0);
    }
    assert!(f.probability_of_any_above(95.0, 6) > 0.5);
    assert_eq!(f.first_crossing(100.0, 1e-9), None);
    assert_eq!(f.first_crossing(-0.1, 1.0), Some(1));
    assert!(f.first_crossing(95.0, 0.5).is_some());
}

#[test]
fn what_is_no_threshold_or_no_level_is_never_crossed() {
    let mut f = DemandForecaster::new(HOURLY);
    assert_eq!(f.first_crossing(1.0, 0.5), None);
    assert_eq!(f.probability_of_any_above(1.0, 3), 0.0);
    for y in sticky(200) {
        f.observe(Some(y));
    }
    assert_eq!(f.probability_of_any_above(f64::NAN, 3), 0.0);
    for level in [0.0, -1.0, 1.5, f64::NAN] {
        assert_eq!(f.first_crossing(50.0, level), None);
    }
    assert_eq!(f.first_crossing(50.0, 0.5), Some(1));
    assert_eq!(f.first_crossing(f64::INFINITY, 0.01), None);
    assert_eq!(f.first_crossing(f64::NEG_INFINITY, 0.99), Some(1));
}
