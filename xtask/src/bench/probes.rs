//! `cargo xtask bench probes`: what the kernel probes cost, beside others that do the same work.

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
    let program = Program {
        name: "sim-bench-probes",
        profile,
        peers: setup::peers,
        peers_steps: 1,
    };
    super::program(
        context,
        &program,
        arguments.json.as_deref(),
        &arguments.rest,
    )
}
