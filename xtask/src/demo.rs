//! `cargo xtask demo`: set up, build, and become the demo.

use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::build::{self, Extent, Profile};
use crate::context::Context;
use crate::process::describe;
use crate::progress::Steps;
use crate::setup::{self, Prepared};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Build and run the optimised profile
    #[arg(long)]
    release: bool,
    /// For the demo: --headless, --seed N, --flat, --reactive, --compare … (`-- --help` lists all)
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "ARGUMENTS"
    )]
    rest: Vec<String>,
}

pub(crate) fn run(context: &Context, mut arguments: Arguments) -> Result<()> {
    // Behind the demo's first argument, clap leaves ours to the demo.
    let before = arguments.rest.len();
    arguments.rest.retain(|argument| argument != "--release");
    let release = arguments.release || arguments.rest.len() < before;
    let profile = if release {
        Profile::Release
    } else {
        Profile::Dev
    };
    let mut steps = Steps::new("setup", setup::STEPS + 1);
    let prepared = setup::all(context, &mut steps, profile)?;
    println!("{}", steps.heading("programs"));
    build::programs(context, profile, Extent::Programs)?;
    let mut demo = command(context, &prepared, profile, &arguments.rest);
    // In its place, not above it: Ctrl-C and signals reach the demo itself.
    let error = demo.exec();
    Err(error).with_context(|| describe(&demo))
}

/// The demo, told where everything is.
pub(crate) fn command(
    context: &Context,
    prepared: &Prepared,
    profile: Profile,
    arguments: &[impl AsRef<std::ffi::OsStr>],
) -> Command {
    let mut command = context.command(profile.folder(context).join("sim-demo"));
    prepared.tell(&mut command, context, profile);
    command.args(arguments);
    command
}
