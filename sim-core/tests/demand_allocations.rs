//! Once it is made, the demand forecaster asks for no memory.

use sim_core::forecast::demand::{DemandConfig, DemandForecaster};

#[test]
fn samples_and_forecasts_allocate_nothing() {
    let mut f = DemandForecaster::new(DemandConfig {
        interval_s: 3600,
        ..DemandConfig::default()
    });
    let mut sum = 0.0;
    let counted = allocation_counter::measure(|| {
        for t in 0..24 * 12_u32 {
            // Grows, so that the scale is chosen anew more than once; with gaps.
            let value = f64::from(t) * f64::from(t % 24 + 1);
            f.observe((t % 11 != 4).then_some(value));
            for step in 1..=f.horizon() {
                sum += f.forecast(step).quantiles[4];
            }
            sum += f.probability_of_any_above(1000.0, 6);
            sum += f
                .first_crossing(1000.0, 0.3)
                .map_or(0.0, |step| step as f64);
        }
    });
    assert!(sum.is_finite());
    assert_eq!(counted.count_total, 0, "{counted:?}");
}

/// What a 5-minute series takes, the forecaster itself and what it asked for: 89.8 KiB. The aim is 64 KiB.
const BYTES: u64 = 91_928;

#[test]
fn a_five_minute_series_takes_two_per_cent_more_than_was_measured_at_most() {
    let counted = allocation_counter::measure(|| {
        let f = DemandForecaster::new(DemandConfig::default());
        assert_eq!(f.horizon(), 72);
    });
    let bytes = counted.bytes_max + size_of::<DemandForecaster>() as u64;
    assert!(bytes <= BYTES * 102 / 100, "{bytes}");
}
