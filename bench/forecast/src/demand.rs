//! A series made of nothing but additions and multiplications, so that it has the same bits everywhere.

use sim_core::forecast::demand::{DemandConfig, DemandForecaster};

/// Seconds from sample to sample.
pub const INTERVAL_S: u32 = 300;
const DAY: u64 = 288;
const HOUR: u64 = 12;
/// Samples after which a forecaster has seen a week and more, and nothing is told anew.
pub const WARM: u64 = 2_400;

/// A day, a job each hour, noise, bursts and gaps.
#[derive(Clone, Debug)]
pub struct Demand {
    seed: u64,
    step: u64,
    burst: f64,
}

impl Demand {
    /// Another series for each seed.
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            step: 0,
            burst: 0.0,
        }
    }

    /// Between 0 and 1: `SplitMix64`.
    fn chance(&mut self) -> f64 {
        self.seed = self.seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let x = (self.seed ^ (self.seed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((x ^ (x >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }
}

impl Iterator for Demand {
    type Item = Option<f64>;

    fn next(&mut self) -> Option<Self::Item> {
        let noise = self.chance() + self.chance() - 1.0;
        self.burst *= 0.7;
        if self.chance() < 0.01 {
            self.burst += 30.0 * self.chance();
        }
        let is_missing = self.chance() < 0.01;
        let part = (self.step % DAY) as f64 / DAY as f64;
        // A parabola over the day, highest at noon.
        let day = 100.0 * part * (1.0 - part);
        let job = if self.step.is_multiple_of(HOUR) {
            12.0
        } else {
            0.0
        };
        self.step += 1;
        Some((!is_missing).then_some(15.0 + day + job + 4.0 * noise + self.burst))
    }
}

/// A forecaster that has seen [`WARM`] samples of a series, and the rest of the series.
pub fn warm(seed: u64) -> (DemandForecaster, Demand) {
    let mut forecaster = DemandForecaster::new(DemandConfig {
        interval_s: INTERVAL_S,
        ..DemandConfig::default()
    });
    let mut demand = Demand::new(seed);
    for sample in demand.by_ref().take(WARM as usize) {
        forecaster.observe(sample);
    }
    (forecaster, demand)
}
