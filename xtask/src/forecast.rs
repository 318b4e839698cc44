//! `cargo xtask forecast-traces`: the production forecaster over a folder of traces, for a scorer.

use std::path::PathBuf;

use anyhow::Result;

use crate::build::Profile;
use crate::context::Context;
use crate::process;

/// Package and program.
const PROGRAM: &str = "sim-forecast-traces";

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Folder with manifest.csv, origins.csv and the samples
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Write mean and quantiles here, one row a target
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Write the probability of any crossing within 12 samples here
    #[arg(long, value_name = "FILE")]
    warnings: Option<PathBuf>,
}

pub(crate) fn run(context: &Context, arguments: &Arguments) -> Result<()> {
    process::run(
        context
            .cargo()
            .args(["build", "--profile", "release", "--package", PROGRAM]),
    )?;
    let mut program = context.command(Profile::Release.folder(context).join(PROGRAM));
    program
        .arg("--data")
        .arg(&arguments.data)
        .arg("--out")
        .arg(&arguments.out);
    if let Some(warnings) = &arguments.warnings {
        program.arg("--warnings").arg(warnings);
    }
    process::run(&mut program)
}
