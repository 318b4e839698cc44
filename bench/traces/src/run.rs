//! One series from its first sample to its last, and what is forecast on the way.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::Result;
use sim_core::forecast::demand::{DemandConfig, DemandForecaster, Ingredients, ScheduledEvent};

use crate::folder::Series;
use crate::score::Quantiles;

/// A warning looks so many samples ahead.
pub(crate) const WARNING_STEPS: usize = 12;

/// What was forecast of a series.
#[derive(Default)]
pub(crate) struct Made {
    pub(crate) targets: Vec<Target>,
    /// Index of the origin and the chance that any of the next samples exceeds the threshold.
    pub(crate) warnings: Vec<(usize, f64)>,
}

/// The forecast of one sample.
pub(crate) struct Target {
    /// Index of the last sample that was seen.
    pub(crate) origin: usize,
    pub(crate) step: usize,
    pub(crate) mean: f64,
    pub(crate) quantiles: Quantiles,
    /// Accuracy is judged by it; decisions are.
    pub(crate) is_accuracy: bool,
    pub(crate) is_decision: bool,
}

/// What it took.
#[derive(Default)]
pub(crate) struct Cost {
    pub(crate) samples: usize,
    pub(crate) forecasts: usize,
    /// Nanoseconds of each sample, by interval.
    observing: BTreeMap<i64, Vec<u64>>,
}

impl Cost {
    /// One line an interval.
    pub(crate) fn lines(&mut self) -> Vec<String> {
        let line = |(interval, times): (&i64, &mut Vec<u64>)| {
            times.sort_unstable();
            let at = |part: usize| times[(times.len() - 1) * part / 100] as f64 / 1e3;
            format!(
                "a sample each {interval} s takes {:.1} µs (median), {:.1} µs (p99), by {} samples",
                at(50),
                at(99),
                times.len()
            )
        };
        self.observing.iter_mut().map(line).collect()
    }
}

/// A forecaster for a series, which looks as far ahead as it is asked to.
pub(crate) fn forecaster(series: &Series, ingredients: Ingredients) -> Result<DemandForecaster> {
    let furthest = series
        .origins
        .values()
        .filter_map(|origin| origin.steps.last())
        .max();
    let config = DemandConfig {
        interval_s: u32::try_from(series.interval_s)?,
        horizon_steps: u32::try_from(furthest.copied().unwrap_or(0))?,
        upper: series.is_percent.then_some(100.0),
        ..DemandConfig::default()
    };
    let mut forecaster = DemandForecaster::with_ingredients(config, ingredients);
    forecaster.set_clock(series.start);
    for &(start_s, end_s, intensity) in &series.events {
        forecaster.schedule(ScheduledEvent {
            start_s,
            end_s,
            intensity,
            kind: 0,
            every_s: None,
        })?;
    }
    Ok(forecaster)
}

/// The five levels that are scored.
pub(crate) fn scored(quantiles: &[f64]) -> Quantiles {
    let mut out = [0.0; 5];
    out.copy_from_slice(&quantiles[..5]);
    out
}

/// Makes all forecasts that are asked for of a series.
pub(crate) fn run(series: &Series, ingredients: Ingredients, cost: &mut Cost) -> Result<Made> {
    let mut forecaster = forecaster(series, ingredients)?;
    let times = cost.observing.entry(series.interval_s).or_default();
    let mut made = Made::default();
    for (index, &sample) in series.samples.iter().enumerate() {
        let begin = Instant::now();
        forecaster.observe(sample);
        times.push(u64::try_from(begin.elapsed().as_nanos()).unwrap_or(u64::MAX));
        let Some(origin) = series.origins.get(&index) else {
            continue;
        };
        made.targets.extend(origin.steps.iter().map(|&step| {
            let forecast = forecaster.forecast(step);
            Target {
                origin: index,
                step,
                mean: forecast.mean,
                quantiles: scored(&forecast.quantiles),
                is_accuracy: origin.is_accuracy && series.scoring.steps_a.contains(&step),
                is_decision: origin.is_decision && series.scoring.steps_b.contains(&step),
            }
        }));
        if let (true, Some(threshold)) = (origin.is_decision, series.threshold) {
            let p = forecaster.probability_of_any_above(threshold, WARNING_STEPS);
            made.warnings.push((index, p));
        }
    }
    cost.samples += series.samples.len();
    cost.forecasts += made.targets.len();
    Ok(made)
}
