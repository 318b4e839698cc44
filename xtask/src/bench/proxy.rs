//! `cargo xtask bench proxy`: what a request costs the proxy, beside nginx, HAProxy, Envoy and a naive Pingora; with
//! `--ci`, whether one `sim` is slower than another.

use std::path::PathBuf;
use std::process::{Command, ExitStatus};

use anyhow::{Context as _, Result};

use super::Program;
use crate::build::{self, Profile};
use crate::context::Context;
use crate::{process, setup};

/// What the gate ends with where there is no verdict: it was asked wrongly, or can't measure.
const EXIT_USAGE: i32 = 2;
const EXIT_UNMEASURED: i32 = 3;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Write the results here; the table and the plot of latency against rate beside it
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Take the development build: quick to make, and slower than what is shipped
    #[arg(long)]
    dev: bool,
    /// Judge this tree's `sim` against the baseline: exit code 1 if it is slower (docs/bench-ci.md)
    #[arg(long)]
    ci: bool,
    /// The `sim` that is known to be good
    #[arg(long, value_name = "BIN", requires = "ci", value_parser = file)]
    baseline: Option<PathBuf>,
    /// Judge this `sim` and not this tree's
    #[arg(long, value_name = "BIN", requires = "ci", value_parser = file)]
    candidate: Option<PathBuf>,
    /// Run both with this configuration
    #[arg(long, value_name = "FILE", requires = "ci", value_parser = file)]
    config: Option<PathBuf>,
    /// Prove the gate: so many comparisons of a `sim` with itself, and as many with a planted slowdown
    #[arg(long, value_name = "N", num_args = 0..=1, default_missing_value = "20", requires = "ci")]
    prove: Option<usize>,
    /// For the benchmark: --rounds N, --only PART … (`-- --help` lists all); with --ci --path, --rate
    #[arg(last = true, value_name = "ARGUMENTS")]
    rest: Vec<String>,
}

/// A file that is there; a usage error is told before anything is built.
fn file(text: &str) -> Result<PathBuf, String> {
    let path = std::path::absolute(text).map_err(|error| error.to_string())?;
    if path.is_file() {
        Ok(path)
    } else {
        Err("no such file".to_owned())
    }
}

pub(super) fn run(context: &Context, arguments: &Arguments) -> Result<()> {
    if !arguments.ci {
        let json = arguments.json.as_deref();
        return super::program(context, &program(arguments), json, &arguments.rest);
    }
    if arguments.baseline.is_none() && arguments.prove.is_none() {
        eprintln!("xtask: --ci: --baseline BIN says what to compare with");
        std::process::exit(EXIT_USAGE);
    }
    match gate(context, arguments) {
        // Its code is the verdict, and not ours to change.
        Ok(status) => std::process::exit(status.code().unwrap_or(EXIT_UNMEASURED)),
        Err(error) => {
            eprintln!("xtask: {error:#}");
            std::process::exit(EXIT_UNMEASURED);
        }
    }
}

fn program(arguments: &Arguments) -> Program {
    Program {
        name: "sim-bench-proxy",
        profile: if arguments.dev {
            Profile::Dev
        } else {
            Profile::Dist
        },
        peers: if arguments.ci {
            setup::peers
        } else {
            setup::proxies
        },
        peers_steps: if arguments.ci { 1 } else { 2 },
    }
}

fn gate(context: &Context, arguments: &Arguments) -> Result<ExitStatus> {
    let program = program(arguments);
    let mut bench: Command = super::prepare(context, &program)?;
    bench.arg("gate");
    if let Some(count) = arguments.prove {
        build::library(context, program.profile, "sim-planted")?;
        bench.arg("--prove").arg(count.to_string());
    }
    for (option, file) in [
        ("--baseline", &arguments.baseline),
        ("--candidate", &arguments.candidate),
        ("--config", &arguments.config),
        ("--json", &arguments.json),
    ] {
        if let Some(file) = file {
            bench.arg(option).arg(file);
        }
    }
    bench.args(&arguments.rest);
    bench.status().with_context(|| process::describe(&bench))
}
