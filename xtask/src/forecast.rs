//! `cargo xtask forecast-traces`: the production forecaster over a folder of traces.

use std::ffi::OsString;

use anyhow::Result;

use crate::build::Profile;
use crate::context::Context;
use crate::process;

/// Package and program.
const PROGRAM: &str = "sim-forecast-traces";

/// The program knows its own; `--help` tells them.
#[derive(clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Arguments {
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "ARGUMENTS"
    )]
    rest: Vec<OsString>,
}

pub(crate) fn run(context: &Context, arguments: &Arguments) -> Result<()> {
    process::run(
        context
            .cargo()
            .args(["build", "--profile", "release", "--package", PROGRAM]),
    )?;
    let mut program = context.command(Profile::Release.folder(context).join(PROGRAM));
    process::run(program.args(&arguments.rest))
}
