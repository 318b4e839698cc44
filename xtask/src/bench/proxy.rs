//! `cargo xtask bench proxy`: what a request costs the proxy, beside nginx, HAProxy and Envoy.

use std::path::PathBuf;

use anyhow::Result;

use super::Program;
use crate::build::Profile;
use crate::context::Context;
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
    let program = Program {
        name: "sim-bench-proxy",
        profile,
        peers: setup::proxies,
        peers_steps: 2,
    };
    super::program(
        context,
        &program,
        arguments.json.as_deref(),
        &arguments.rest,
    )
}
