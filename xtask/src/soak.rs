//! `cargo xtask soak`: a proxy under mixed traffic and faults, and what it has lost or kept in the end.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;

use crate::build::{self, Extent, Profile};
use crate::context::Context;
use crate::process;

const PROGRAM: &str = "sim-soak";
/// For the beginning, and until the last user and the last instance have gone.
const GRACE: Duration = Duration::from_secs(5 * 60);
/// So much of it in CI.
const CI_MINUTES: f64 = 1.0;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// How long
    #[arg(long, value_name = "N", default_value_t = 30.0)]
    minutes: f64,
    /// Which faults, and when
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Write the results here
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// How SIM is built
    #[arg(long, value_enum, default_value = "dev")]
    profile: Profile,
}

pub(crate) fn run(context: &Context, arguments: &Arguments) -> Result<()> {
    let profile = arguments.profile;
    // As the tests want it, so that nothing is built twice.
    build::programs(context, profile, Extent::ProgramsAndTests)?;
    let folder = profile.folder(context);
    let mut soak = context.command(folder.join(PROGRAM));
    soak.env("SIM_BIN", folder.join("sim"));
    soak.args(["--minutes", &arguments.minutes.to_string()]);
    soak.args(["--seed", &arguments.seed.to_string()]);
    if let Some(file) = &arguments.json {
        soak.arg("--json").arg(file);
    }
    let limit = Duration::from_secs_f64(arguments.minutes * 60.0) + GRACE;
    let status = process::run_within(&mut soak, limit, GRACE)?;
    process::success(status, &soak)
}

/// A short one.
pub(crate) fn smoke(context: &Context) -> Result<()> {
    let arguments = Arguments {
        minutes: CI_MINUTES,
        seed: 1,
        json: None,
        profile: Profile::Dev,
    };
    run(context, &arguments)
}
