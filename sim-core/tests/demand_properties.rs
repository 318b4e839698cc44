//! Whatever comes in, what comes out of the demand forecaster can be acted on.

use proptest::prelude::*;
use sim_core::forecast::demand::{DemandConfig, DemandForecaster};

const HOURLY: DemandConfig = DemandConfig {
    interval_s: 3600,
    horizon_steps: 0,
    lower: None,
    upper: None,
};

fn check(f: &DemandForecaster) {
    for step in 1..=f.horizon() {
        let forecast = f.forecast(step);
        assert!(forecast.mean.is_finite());
        assert!(
            forecast.quantiles.iter().all(|q| q.is_finite()),
            "{forecast:?}"
        );
        assert!(
            forecast.quantiles.windows(2).all(|w| w[0] <= w[1]),
            "{forecast:?}"
        );
    }
    for threshold in [f64::MIN, -1.0, 0.0, 3.0, 1e18, f64::NAN] {
        let p = f.probability_of_any_above(threshold, 12);
        assert!((0.0..=1.0).contains(&p), "{threshold}: {p}");
    }
    for knot in f.scores() {
        let sum: f64 = knot.experts.iter().map(|e| e.weight).sum();
        assert!((sum - 1.0).abs() < 1e-6, "{sum}");
    }
}

fn any_sample() -> impl Strategy<Value = Option<f64>> {
    let odd = vec![
        0.0,
        -0.0,
        -1.0,
        f64::NAN,
        f64::INFINITY,
        f64::NEG_INFINITY,
        f64::MAX,
        f64::MIN,
        5e-324,
        1e18,
        1e-12,
    ];
    prop_oneof![
        6 => (0.0..500.0_f64).prop_map(Some),
        1 => Just(None),
        1 => any::<f64>().prop_map(Some),
        1 => prop::sample::select(odd).prop_map(Some),
    ]
}

/// A day's wave with noise, from a seed, one sample an hour.
fn wave(t: u64) -> f64 {
    // SplitMix64's finaliser: neighbouring steps have nothing in common.
    let x = (t + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    let noise = (x ^ (x >> 31)) >> 40;
    let day = (std::f64::consts::TAU * (t % 24) as f64 / 24.0).cos();
    100.0 + 40.0 * day + noise as f64 / 16_777_216.0 * 10.0
}

fn bits(f: &DemandForecaster) -> Vec<[u64; 7]> {
    (1..=f.horizon())
        .map(|step| f.forecast(step).quantiles.map(f64::to_bits))
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn arbitrary_streams_give_finite_monotone_quantiles(
        samples in prop::collection::vec(any_sample(), 0..300),
        upper in prop::option::of(Just(100.0)),
        // Of the shorter one far knots learn seldom.
        interval_s in prop::sample::select(vec![300, 3600]),
    ) {
        let mut f = DemandForecaster::new(DemandConfig { interval_s, upper, ..HOURLY });
        for (t, &y) in samples.iter().enumerate() {
            f.observe(y);
            if t % 23 == 0 {
                check(&f);
            }
        }
        check(&f);
        if upper.is_some() {
            prop_assert!(f.forecast(1).quantiles[6] <= 100.0);
        }
    }

    #[test]
    fn constants_are_forecast_as_constant(value in prop_oneof![Just(0.0), -1e9..1e9_f64], n in 30..200_usize) {
        let mut f = DemandForecaster::new(HOURLY);
        for _ in 0..n {
            f.observe(Some(value));
        }
        check(&f);
        for step in 1..=f.horizon() {
            let q = f.forecast(step).quantiles;
            prop_assert!((q[2] - value).abs() <= 1e-3 * value.abs() + 1e-6, "{step}: {q:?}");
        }
    }

    #[test]
    fn a_restart_goes_on_bit_for_bit(split in 0..500_u64) {
        let mut whole = DemandForecaster::new(HOURLY);
        let mut parts = DemandForecaster::new(HOURLY);
        for t in 0..500_u64 {
            let sample = (t % 17 != 3).then(|| wave(t));
            whole.observe(sample);
            if t == split {
                // A value, not text: text is only exact with serde_json's `float_roundtrip`.
                let state = serde_json::to_value(&parts).expect("state is a value");
                parts = serde_json::from_value(state).expect("a value is state");
                prop_assert!(parts.is_current());
            }
            parts.observe(sample);
        }
        prop_assert_eq!(bits(&whole), bits(&parts));
        prop_assert!(whole == parts);
    }
}

#[test]
fn a_restart_goes_on_bit_for_bit_where_far_knots_learn_seldom() {
    for split in [1, 61, 334, 511] {
        let mut whole = DemandForecaster::new(DemandConfig::default());
        let mut parts = DemandForecaster::new(DemandConfig::default());
        for t in 0..700_u64 {
            let sample = (t % 17 != 3).then(|| wave(t));
            whole.observe(sample);
            if t == split {
                let state = serde_json::to_value(&parts).expect("state is a value");
                parts = serde_json::from_value(state).expect("a value is state");
            }
            parts.observe(sample);
        }
        assert_eq!(bits(&whole), bits(&parts), "{split}");
        assert!(whole == parts, "{split}");
    }
}

#[test]
fn nothing_seen_is_forecast_as_zero_and_leading_gaps_do_not_count() {
    let mut f = DemandForecaster::new(HOURLY);
    for _ in 0..50 {
        f.observe(None);
    }
    assert_eq!((f.observed(), f.forecast(3).quantiles), (0, [0.0; 7]));
    assert!(f.probability_of_any_above(1.0, 6) < 1e-3);
}

#[test]
fn a_series_that_was_never_negative_is_not_forecast_to_be() {
    let mut f = DemandForecaster::new(HOURLY);
    for t in 0..400_u64 {
        f.observe(Some(if t % 9 == 0 { 50.0 } else { 0.0 }));
    }
    assert!((1..=6).all(|step| f.forecast(step).quantiles[0] >= 0.0));
    f.observe(Some(-5.0));
    assert!((1..=6).all(|step| f.forecast(step).quantiles.iter().all(|q| q.is_finite())));
}

#[test]
fn a_days_wave_is_foreseen_and_the_bands_hold_what_they_promise() {
    let mut f = DemandForecaster::new(HOURLY);
    let mut made: Vec<[f64; 7]> = Vec::new();
    let (mut inside, mut above, mut compared) = (0, 0, 0);
    for t in 0..24 * 60_u64 {
        let y = wave(t);
        if t >= 24 * 14 {
            let q = made[t as usize - 6];
            compared += 1;
            inside += i32::from(q[0] <= y && y <= q[4]);
            above += i32::from(y > q[4]);
            assert!((q[2] - y).abs() < 40.0, "{t}: {q:?} {y}");
        }
        f.observe(Some(y));
        made.push(f.forecast(6).quantiles);
    }
    let share = f64::from(inside) / f64::from(compared);
    assert!((0.85..=0.95).contains(&share), "{share}");
    let above = f64::from(above) / f64::from(compared);
    assert!((0.02..=0.08).contains(&above), "{above}");
}

#[test]
fn a_spike_at_a_period_that_nobody_named_is_foreseen() {
    // Every 7 hours, which divides neither the day nor the week's hours evenly in phase.
    let value = |t: u64| {
        if t.is_multiple_of(7) {
            80.0
        } else {
            20.0 + (t * 31 % 5) as f64
        }
    };
    let mut f = DemandForecaster::new(HOURLY);
    for t in 0..24 * 30 {
        f.observe(Some(value(t)));
    }
    for step in 1..=6_u64 {
        let q = f.forecast(step as usize).quantiles[2];
        let truth = value(24 * 30 - 1 + step);
        assert!((q - truth).abs() < 12.0, "{step}: {q} {truth}");
    }
}
