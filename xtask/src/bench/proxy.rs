//! `cargo xtask bench proxy`: what a request costs the proxy, beside nginx, HAProxy and Envoy.

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
    /// Take the development build: quick to make, and slower than what is shipped
    #[arg(long)]
    dev: bool,
    /// For the benchmark: --rounds N, --only PART … (`-- --help` lists all)
    #[arg(last = true, value_name = "ARGUMENTS")]
    rest: Vec<String>,
}

pub(super) fn run(context: &Context, arguments: &Arguments) -> Result<()> {
    let profile = if arguments.dev {
        Profile::Dev
    } else {
        Profile::Dist
    };
    let mut steps = Steps::new("setup", setup::STEPS + 3);
    let prepared = setup::all(context, &mut steps, profile)?;
    let peers = setup::proxies(context, &mut steps)?;
    println!("{}", steps.heading("programs"));
    build::programs(context, profile, Extent::Programs)?;
    let mut bench = context.command(profile.folder(context).join("sim-bench-proxy"));
    prepared.tell(&mut bench, context, profile);
    peers.tell(&mut bench);
    if let Some(file) = &arguments.json {
        bench.arg("--json").arg(file);
    }
    process::run(bench.args(&arguments.rest))
}
