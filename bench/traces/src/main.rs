//! Runs the production forecaster over a folder of traces and writes what it forecasts from each origin. What comes
//! out is scored by somebody else's program.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program speaks to the terminal"
)]

mod folder;
mod progress;

use std::collections::BTreeMap;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result};
use clap::Parser;
use sim_core::forecast::demand::{DemandConfig, DemandForecaster};

use folder::Series;
use progress::Progress;

/// A warning looks so many samples ahead.
const WARNING_STEPS: usize = 12;

/// Forecast a folder of traces
#[derive(Parser)]
#[command(version, about)]
struct Arguments {
    /// Folder with manifest.csv, origins.csv and the samples
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Write mean and quantiles here, one row a target
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Write the probability of any crossing within 12 samples here, for series with a threshold
    #[arg(long, value_name = "FILE")]
    warnings: Option<PathBuf>,
}

/// What it took.
#[derive(Default)]
struct Cost {
    samples: usize,
    forecasts: usize,
    /// Nanoseconds of each sample, by interval.
    observing: BTreeMap<i64, Vec<u64>>,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let all = folder::read(&arguments.data)?;
    let mut out = create(&arguments.out)?;
    writeln!(out, "series_id,origin_ts,step,mean,q05,q10,q50,q90,q95")?;
    let mut warnings = arguments.warnings.as_deref().map(create).transpose()?;
    if let Some(warnings) = &mut warnings {
        writeln!(warnings, "series_id,origin_ts,p")?;
    }
    let mut progress = Progress::new(all.iter().map(|series| series.samples.len()).sum());
    let mut cost = Cost::default();
    for series in &all {
        run(series, &mut out, warnings.as_mut(), &mut cost)?;
        progress.add(series.samples.len(), &series.id);
    }
    out.flush()?;
    if let Some(mut warnings) = warnings {
        warnings.flush()?;
    }
    let elapsed = progress.end();
    println!(
        "{} series, {} samples, {} forecasts in {:.1} s",
        all.len(),
        cost.samples,
        cost.forecasts,
        elapsed.as_secs_f64(),
    );
    for (interval, times) in &mut cost.observing {
        times.sort_unstable();
        let at = |part: usize| times[(times.len() - 1) * part / 100] as f64 / 1e3;
        println!(
            "a sample each {interval} s takes {:.1} µs (median), {:.1} µs (p99), by {} samples",
            at(50),
            at(99),
            times.len()
        );
    }
    Ok(())
}

fn create(file: &Path) -> Result<BufWriter<std::fs::File>> {
    let file = std::fs::File::create(file).with_context(|| file.display().to_string())?;
    Ok(BufWriter::new(file))
}

/// One series from its first sample to its last.
fn run(
    series: &Series,
    out: &mut impl Write,
    mut warnings: Option<&mut impl Write>,
    cost: &mut Cost,
) -> Result<()> {
    let furthest = series
        .origins
        .values()
        .filter_map(|(steps, _)| steps.last())
        .max();
    let mut forecaster = DemandForecaster::new(DemandConfig {
        interval_s: u32::try_from(series.interval_s)?,
        horizon_steps: u32::try_from(furthest.copied().unwrap_or(0))?,
        upper: series.is_percent.then_some(100.0),
        ..DemandConfig::default()
    });
    let times = cost.observing.entry(series.interval_s).or_default();
    for (index, &sample) in series.samples.iter().enumerate() {
        let begin = Instant::now();
        forecaster.observe(sample);
        times.push(u64::try_from(begin.elapsed().as_nanos()).unwrap_or(u64::MAX));
        cost.samples += 1;
        let Some((steps, is_decision)) = series.origins.get(&index) else {
            continue;
        };
        let origin = series.start + index as i64 * series.interval_s;
        for &step in steps {
            let forecast = forecaster.forecast(step);
            let [q05, q10, q50, q90, q95, ..] = forecast.quantiles;
            writeln!(
                out,
                "{},{origin},{step},{},{q05},{q10},{q50},{q90},{q95}",
                series.id, forecast.mean
            )?;
            cost.forecasts += 1;
        }
        if let (true, Some(threshold), Some(warnings)) =
            (*is_decision, series.threshold, warnings.as_mut())
        {
            let p = forecaster.probability_of_any_above(threshold, WARNING_STEPS);
            writeln!(warnings, "{},{origin},{p}", series.id)?;
        }
    }
    Ok(())
}
