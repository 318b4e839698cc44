//! Runs the production forecaster over a folder of traces: writes what it forecasts from each origin for somebody else's
//! scorer, scores it by the same rules, draws it, and makes the tables of the documentation.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program speaks to the terminal"
)]

mod folder;
mod plots;
mod progress;
mod reliability;
mod run;
mod score;
mod split;
mod tables;

use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use clap::{Parser, ValueEnum};
use sim_core::forecast::demand::Ingredients;

use folder::Series;
use progress::Progress;
use run::{Cost, Made};
use score::Scores;

/// Forecast a folder of traces
#[derive(Parser)]
#[command(name = "cargo xtask forecast-traces", version, about)]
struct Arguments {
    /// Folder with manifest.csv, origins.csv and the samples
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Write mean and quantiles here, one row a target
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Write the probability of any crossing within 12 samples here, for series with a threshold
    #[arg(long, value_name = "FILE")]
    warnings: Option<PathBuf>,
    /// Score it, as a table a band and kind
    #[arg(long)]
    score: bool,
    /// Which series, and which origins of them
    #[arg(long, value_enum, default_value = "scored")]
    split: Split,
    /// What each part of the forecaster gives, on the half to tune by
    #[arg(long)]
    ablation: bool,
    /// How good forecasts are after the first samples
    #[arg(long)]
    age: bool,
    /// Draw the last days of each series here, an hour ahead
    #[arg(long, value_name = "DIR")]
    plots: Option<PathBuf>,
    /// Write chances of a crossing here, by bins, with the share of them that came true
    #[arg(long, value_name = "FILE")]
    reliability: Option<PathBuf>,
    /// Keep the scheduled events of events.csv from the forecaster
    #[arg(long)]
    no_events: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Split {
    /// All series at the folder's origins
    Scored,
    /// Half of the series, to tune by, at origins of our own
    Own,
    /// The other half at the folder's origins
    Held,
}

impl Split {
    /// What a report says of it.
    fn about(self) -> &'static str {
        match self {
            Self::Scored => "all series, at the folder's origins",
            Self::Own => "the half of the series to tune by, at origins of our own",
            Self::Held => "the half of the series that is not tuned by, at the folder's origins",
        }
    }
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let wants_forecasts =
        arguments.out.is_some() || arguments.warnings.is_some() || arguments.score;
    let wants_files = arguments.plots.is_some() || arguments.reliability.is_some();
    ensure!(
        wants_forecasts || wants_files || arguments.ablation || arguments.age,
        "nothing to do: --out, --warnings, --score, --ablation, --age, --plots or --reliability"
    );
    let mut all = folder::read(&arguments.data)?;
    if arguments.no_events {
        all.iter_mut().for_each(|series| series.events.clear());
    }
    if arguments.age {
        println!("{}", tables::age(&all)?);
    }
    if let Some(folder) = &arguments.plots {
        let ranks = plots::draw(&all, folder)?;
        for (relative, id) in &ranks {
            println!("{relative:.3} {id}.svg");
        }
    }
    if let Some(file) = &arguments.reliability {
        let mut file = create(file)?;
        reliability::table(&all)?.write(&mut file)?;
        file.flush()?;
    }
    if wants_forecasts {
        match arguments.split {
            Split::Scored => {}
            Split::Own => split::own(&mut all, true),
            Split::Held => split::held(&mut all),
        }
        forecasts(&arguments, &all)?;
    }
    if arguments.ablation {
        split::own(&mut all, false);
        println!("{}:\n", Split::Own.about());
        println!("{}", tables::ablation(&all)?);
    }
    Ok(())
}

fn forecasts(arguments: &Arguments, all: &[Series]) -> Result<()> {
    let mut out = arguments.out.as_deref().map(create).transpose()?;
    if let Some(out) = &mut out {
        writeln!(out, "series_id,origin_ts,step,mean,q05,q10,q50,q90,q95")?;
    }
    let mut warnings = arguments.warnings.as_deref().map(create).transpose()?;
    if let Some(warnings) = &mut warnings {
        writeln!(warnings, "series_id,origin_ts,p")?;
    }
    let mut progress = Progress::new(all.iter().map(|series| series.samples.len()).sum());
    let mut cost = Cost::default();
    let mut scores = Scores::default();
    for series in all {
        let made = run::run(series, Ingredients::ALL, &mut cost)?;
        write(series, &made, out.as_mut(), warnings.as_mut())?;
        if arguments.score {
            scores.add(series, &made);
        }
        progress.add(series.samples.len(), &series.id);
    }
    for file in [out, warnings].into_iter().flatten() {
        file.into_inner()
            .map_err(std::io::IntoInnerError::into_error)?;
    }
    let elapsed = progress.end();
    println!(
        "{} series, {} samples, {} forecasts in {:.1} s",
        all.len(),
        cost.samples,
        cost.forecasts,
        elapsed.as_secs_f64(),
    );
    for line in cost.lines() {
        println!("{line}");
    }
    if arguments.score {
        println!("\n{}:\n\n{}", arguments.split.about(), scores.table());
    }
    Ok(())
}

fn create(file: &Path) -> Result<BufWriter<std::fs::File>> {
    let file = std::fs::File::create(file).with_context(|| file.display().to_string())?;
    Ok(BufWriter::new(file))
}

fn write(
    series: &Series,
    made: &Made,
    out: Option<&mut impl Write>,
    warnings: Option<&mut impl Write>,
) -> Result<()> {
    let at = |origin: usize| series.start + origin as i64 * series.interval_s;
    if let Some(out) = out {
        for target in &made.targets {
            let [q05, q10, q50, q90, q95] = target.quantiles;
            let (origin, step, mean) = (at(target.origin), target.step, target.mean);
            writeln!(
                out,
                "{},{origin},{step},{mean},{q05},{q10},{q50},{q90},{q95}",
                series.id
            )?;
        }
    }
    if let Some(warnings) = warnings {
        for (origin, p) in &made.warnings {
            writeln!(warnings, "{},{},{p}", series.id, at(*origin))?;
        }
    }
    Ok(())
}
