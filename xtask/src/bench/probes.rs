//! `cargo xtask bench probes`: what the kernel probes cost, beside others that do the same work.

use std::path::PathBuf;

use anyhow::Result;

use crate::build::{self, Extent, Profile};
use crate::context::Context;
use crate::process;
use crate::progress::Steps;
use crate::setup;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Write the results here
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Build SIM as it is shipped; takes long, and changes only what the node itself costs
    #[arg(long)]
    dist: bool,
    /// For the benchmark: --rounds N, --only PART … (`-- --help` lists all)
    #[arg(last = true, value_name = "ARGUMENTS")]
    rest: Vec<String>,
}

pub(super) fn run(context: &Context, arguments: &Arguments) -> Result<()> {
    let profile = if arguments.dist {
        Profile::Dist
    } else {
        Profile::Dev
    };
    let mut steps = Steps::new("setup", setup::STEPS + 2);
    let prepared = setup::all(context, &mut steps, profile)?;
    let peers = setup::peers(context, &mut steps)?;
    println!("{}", steps.heading("programs"));
    build::programs(context, profile, Extent::Programs)?;
    let mut bench = context.command(profile.folder(context).join("sim-bench-probes"));
    prepared.tell(&mut bench, context, profile);
    peers.tell(&mut bench);
    if let Some(file) = &arguments.json {
        bench.arg("--json").arg(file);
    }
    process::run(bench.args(&arguments.rest))
}
