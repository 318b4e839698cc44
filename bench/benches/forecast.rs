//! What one sample costs the forecaster, and what one forecast does, after a day of samples with
//! a season of an hour.

use criterion::{Criterion, criterion_group, criterion_main};
use sim_core::forecast::{Forecaster, ForecasterConfig};
use std::f64::consts::TAU;
use std::hint::black_box;

/// One a 15 s step.
const DAY: u32 = 5_760;

fn demand(step: u32) -> f64 {
    let season = (f64::from(step % 240) / 240.0 * TAU).sin();
    // Noise without a generator: enough to keep the filters busy.
    let noise = f64::from(step.wrapping_mul(2_654_435_761) >> 16) / 65_536.0;
    200.0 + 80.0 * season + 0.01 * f64::from(step) + 10.0 * noise
}

fn forecasts(c: &mut Criterion) {
    let mut forecaster = Forecaster::new(ForecasterConfig::default());
    for step in 0..DAY {
        forecaster.observe(Some(demand(step)));
    }
    let mut step = DAY;
    c.bench_function("forecast/observe", |b| {
        b.iter(|| {
            forecaster.observe(black_box(Some(demand(step))));
            step = step.wrapping_add(1);
        });
    });
    c.bench_function("forecast/forecast", |b| {
        b.iter(|| black_box(&forecaster).forecast());
    });
}

criterion_group!(benches, forecasts);
criterion_main!(benches);
