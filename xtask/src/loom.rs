//! `cargo xtask loom`: the proxy's protocols between threads, in every interleaving.

use anyhow::Result;

use crate::context::Context;
use crate::process;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// How often a thread that could go on is made to wait; `cargo xtask test` takes 3, and each more takes four times
    /// as long
    #[arg(long, value_name = "N", default_value_t = 4)]
    preemptions: u8,
    /// Only models whose name contains this
    filter: Option<String>,
}

pub(crate) fn run(context: &Context, arguments: &Arguments) -> Result<()> {
    let mut cargo = context.cargo();
    cargo
        .args(["test", "--package", "sim-proxy-models"])
        .env("LOOM_MAX_PREEMPTIONS", arguments.preemptions.to_string());
    process::run(cargo.args(&arguments.filter))
}
