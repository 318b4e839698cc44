//! What one sample costs the demand forecaster, and what the whole six hours ahead do, after more than a week of a
//! 5-minute series.

use criterion::{Criterion, criterion_group, criterion_main};
use sim_bench_forecast::warm;
use std::hint::black_box;

fn demand(c: &mut Criterion) {
    let (mut forecaster, mut demand) = warm(1);
    c.bench_function("demand/sample", |b| {
        b.iter(|| forecaster.observe(black_box(demand.next().flatten())));
    });
    c.bench_function("demand/forecast_six_hours", |b| {
        b.iter(|| {
            for step in 1..=forecaster.horizon() {
                black_box(forecaster.forecast(black_box(step)));
            }
        });
    });
    c.bench_function("demand/chance_of_any_crossing", |b| {
        b.iter(|| forecaster.probability_of_any_above(black_box(45.0), 12));
    });
}

criterion_group!(benches, demand);
criterion_main!(benches);
