//! `cargo xtask conformance`: HTTP/1.1 beside nginx, `HAProxy`, Envoy and gunicorn, as processes on loopback.

use anyhow::{Context as _, Result};

use crate::build::{self, Profile};
use crate::context::{Context, REQUIRE_PRIVILEGED};
use crate::process;
use crate::progress::Steps;
use crate::setup;

/// The tests of that program are the ones meant.
const PACKAGE: &str = "sim-proxy";
const PROGRAM: &str = "loopback";
const TESTS: &str = "conformance::";

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Conversations that nginx and SIM must make the same of
    #[arg(long, value_name = "N", default_value_t = 20_000)]
    count: u32,
    /// Which ones
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
}

pub(crate) fn run(context: &Context, arguments: &Arguments) -> Result<()> {
    let mut steps = Steps::new("setup", setup::STEPS + 3);
    let prepared = setup::all(context, &mut steps, Profile::Dev)?;
    let peers = setup::proxies(context, &mut steps)?;
    println!("{}", steps.heading("tests"));
    let programs = build::tests_of(context, Profile::Dev, PACKAGE)?;
    let program = programs
        .iter()
        .find(|program| program.name == PROGRAM)
        .with_context(|| format!("{PACKAGE} has no test program {PROGRAM}"))?;
    let mut command = context.command(&program.path);
    command.current_dir(context.root.join(PACKAGE));
    // One after the other: each has the machine's ports and time to itself.
    command.args(["--nocapture", "--test-threads", "1", TESTS]);
    command.env("SIM_CONFORMANCE_COUNT", arguments.count.to_string());
    command.env("SIM_CONFORMANCE_SEED", arguments.seed.to_string());
    command.env(REQUIRE_PRIVILEGED, "1");
    prepared.tell(&mut command, context, Profile::Dev);
    peers.tell(&mut command);
    process::run(&mut command)
}
