//! Whatever comes in, quantiles that can be acted on come out.

use proptest::prelude::*;
use sim_core::forecast::{Forecaster, ForecasterConfig, LEVELS};

fn check(f: &Forecaster, horizon: usize, all_non_negative: bool) {
    let forecast = f.forecast();
    assert_eq!(forecast.steps.len(), horizon);
    for step in &forecast.steps {
        assert!(step.mean.is_finite());
        assert!(step.quantiles.iter().all(|q| q.is_finite()), "{step:?}");
        assert!(step.quantiles.windows(2).all(|w| w[0] <= w[1]), "{step:?}");
        if all_non_negative {
            assert!(step.mean >= 0.0 && step.quantiles[0] >= 0.0);
        }
        let p = step.probability_above(step.quantiles[3]);
        assert!((0.0..=1.0).contains(&p));
        for level in LEVELS
            .into_iter()
            .chain([-1.0, 0.0, 1e-9, 1.0, 2.0, f64::NAN])
        {
            assert!(step.quantile(level).is_finite());
        }
    }
    let scores = f.scores();
    assert!(
        scores
            .models
            .iter()
            .all(|m| (0.0..=1.0).contains(&m.weight))
    );
    assert!((scores.models.iter().map(|m| m.weight).sum::<f64>() - 1.0).abs() < 1e-9);
}

fn any_sample() -> impl Strategy<Value = Option<f64>> {
    let odd = vec![
        0.0,
        -0.0,
        1.0,
        -1.0,
        f64::NAN,
        f64::INFINITY,
        f64::NEG_INFINITY,
        f64::MAX,
        f64::MIN,
        f64::MIN_POSITIVE,
        5e-324,
        1e15,
        1e-12,
    ];
    prop_oneof![
        3 => (0.0..500.0_f64).prop_map(Some),
        1 => Just(None),
        1 => any::<f64>().prop_map(Some),
        1 => prop::sample::select(odd).prop_map(Some),
    ]
}

fn any_config() -> impl Strategy<Value = ForecasterConfig> {
    let known = prop::collection::vec(prop_oneof![0..40_u32, any::<u32>()], 0..4);
    let longest = prop_oneof![0..130_u32, 0..2000_u32];
    (known, longest, 0..130_u32, 0..60_u32).prop_map(
        |(season_steps_known, season_steps_max, horizon_steps, calibrated_after)| {
            ForecasterConfig {
                season_steps_known,
                season_steps_max,
                horizon_steps,
                calibrated_after,
            }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn arbitrary_streams_give_finite_monotone_quantiles(
        config in any_config(),
        samples in prop::collection::vec(any_sample(), 0..400),
    ) {
        let horizon = (config.horizon_steps as usize).max(1);
        let mut f = Forecaster::new(config);
        let mut all_non_negative = true;
        for (t, &y) in samples.iter().enumerate() {
            f.observe(y);
            all_non_negative &= !y.is_some_and(|y| y.is_finite() && y < 0.0);
            if t % 29 == 0 {
                check(&f, horizon, all_non_negative);
            }
        }
        check(&f, horizon, all_non_negative);
    }

    #[test]
    fn constant_series_are_forecast_as_constant(value in -1e9..1e9_f64, n in 20..300_usize) {
        let mut f = Forecaster::new(ForecasterConfig::default());
        for _ in 0..n {
            f.observe(Some(value));
        }
        check(&f, 90, value >= 0.0);
        let near = |x: f64| (x - value).abs() <= 1e-6 + 1e-6 * value.abs();
        prop_assert!(f.forecast().steps.iter().all(|s| near(s.mean)));
    }

    #[test]
    fn scaling_the_series_scales_the_forecast(
        samples in prop::collection::vec(10.0..500.0_f64, 60..200),
        shift in -20..30_i32,
    ) {
        let scale = 2.0_f64.powi(shift);
        let mut a = Forecaster::new(ForecasterConfig::default());
        let mut b = Forecaster::new(ForecasterConfig::default());
        for &y in &samples {
            a.observe(Some(y));
            b.observe(Some(y * scale));
        }
        for (a, b) in a.forecast().steps.iter().zip(&b.forecast().steps) {
            prop_assert!((a.mean * scale - b.mean).abs() <= 1e-6 * scale * a.mean.abs());
        }
    }
}
