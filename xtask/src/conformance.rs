//! `cargo xtask conformance`: HTTP/1.1 beside nginx, `HAProxy`, Envoy and gunicorn, as processes on loopback, and HTTP/2
//! by the suites of others.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::build::{self, Extent, Profile};
use crate::context::{Context, REQUIRE_PRIVILEGED};
use crate::process;
use crate::progress::Steps;
use crate::setup;
use crate::test::HTTPWG;

/// The tests of that program are the ones meant.
const PACKAGE: &str = "sim-proxy";
const PROGRAM: &str = "loopback";
const TESTS: &str = "conformance::";
/// Runs a suite that is no test, since no registry has its program.
const H2SPEC: &str = "sim-h2spec";

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Conversations that nginx and SIM must make the same of
    #[arg(long, value_name = "N", default_value_t = 20_000)]
    count: u32,
    /// Which ones
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Run the cases of h2spec and nothing else, by its program, which no registry has
    #[arg(long, value_name = "PROGRAM", value_parser = program)]
    h2spec: Option<PathBuf>,
}

/// A program that is there.
fn program(text: &str) -> Result<PathBuf, String> {
    let path = std::path::absolute(text).map_err(|error| error.to_string())?;
    let is_there = path.is_file();
    is_there
        .then_some(path)
        .ok_or_else(|| "no such file".to_owned())
}

pub(crate) fn run(context: &Context, arguments: &Arguments) -> Result<()> {
    if let Some(program) = &arguments.h2spec {
        return h2spec(context, program);
    }
    let mut steps = Steps::new("setup", setup::STEPS + 4);
    let prepared = setup::all(context, &mut steps, Profile::Dev)?;
    let peers = setup::proxies(context, &mut steps)?;
    let httpwg = setup::httpwg(context, &mut steps)?;
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
    command.env(HTTPWG, httpwg);
    prepared.tell(&mut command, context, Profile::Dev);
    peers.tell(&mut command);
    process::run(&mut command)
}

/// A suite of others, in the clear and over TLS; fails where fewer than 145 and 146 of its 146 cases pass.
fn h2spec(context: &Context, program: &Path) -> Result<()> {
    build::programs(context, Profile::Dev, Extent::ProgramsAndTests)?;
    let folder = Profile::Dev.folder(context);
    let mut command = context.command(folder.join(H2SPEC));
    command.env("SIM_BIN", folder.join("sim")).arg(program);
    process::run(&mut command)
}
