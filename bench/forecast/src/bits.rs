//! All that a forecaster says about fixed series, as one number.

use sim_core::forecast::demand::{DemandConfig, DemandForecaster};
use xxhash_rust::xxh3::Xxh3;

use crate::demand::{Demand, INTERVAL_S};

/// What [`bits`] is on every machine, however it was compiled. Who changes what is forecast changes it too: the test
/// says the new one.
pub const BITS: u64 = 0x2d4e7af4e01a5d0e;

/// Samples of each series, and how often all steps are forecast.
const SAMPLES: usize = 2_400;
const EVERY: usize = 60;

/// The bits of means, quantiles and chances.
pub fn bits() -> u64 {
    let mut hash = Xxh3::new();
    let hourly = DemandConfig {
        interval_s: 3_600,
        upper: Some(60.0),
        ..DemandConfig::default()
    };
    let five_minutes = DemandConfig {
        interval_s: INTERVAL_S,
        ..DemandConfig::default()
    };
    for (seed, config) in [(1, five_minutes), (2, hourly)] {
        let mut forecaster = DemandForecaster::new(config);
        for (index, sample) in Demand::new(seed).take(SAMPLES).enumerate() {
            // A stretch of nothing, and a stretch of silence.
            let sample = if (700..760).contains(&index) {
                Some(0.0)
            } else {
                sample.filter(|_| !(900..930).contains(&index))
            };
            forecaster.observe(sample);
            if index % EVERY == 0 {
                tell(&forecaster, &mut hash);
            }
        }
        tell(&forecaster, &mut hash);
    }
    hash.digest()
}

fn tell(forecaster: &DemandForecaster, hash: &mut Xxh3) {
    let mut number = |x: f64| hash.update(&x.to_bits().to_le_bytes());
    for step in 1..=forecaster.horizon() {
        let forecast = forecaster.forecast(step);
        number(forecast.mean);
        forecast.quantiles.into_iter().for_each(&mut number);
    }
    number(forecaster.probability_of_any_above(45.0, 12));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fixed_series_is_forecast_with_the_bits_that_are_committed() {
        assert_eq!(format!("{:#018x}", bits()), format!("{BITS:#018x}"));
    }
}
