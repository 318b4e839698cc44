//! What the kernel probes cost: nanoseconds per switch beside bpftrace and libbpf-tools, share of a
//! service's CPU time, and what the node takes at a hundred workloads.
//!
//! All by the kernel's own account (`BPF_ENABLE_STATS`), all in one run and in turn; the median of the
//! rounds counts. Run it by `cargo xtask bench probes`, which fetches what it compares with.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a benchmark speaks to the terminal"
)]

mod agent;
mod cage;
mod counter;
mod flag;
mod peers;
mod services;
mod settings;
mod spent;
mod switches;

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use aya::sys::{Stats, enable_stats};
use clap::{Parser, Subcommand, ValueEnum};
use serde_json::{Map, Value, json};

use bench::peers::Peers;
use settings::Settings;

#[derive(Parser)]
#[command(version, about)]
struct Arguments {
    /// Write the results here
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Measurements of each, in turn
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Only these parts
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Part>,
    #[command(subcommand)]
    role: Option<Role>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Nanoseconds per switch and wakeup
    Switches,
    /// Reading the death flag, and how soon it is seen
    Flag,
    /// Share of the CPU time of services at capacity
    Services,
    /// The node at a hundred workloads
    Node,
}

#[derive(Subcommand)]
enum Role {
    /// The work of `switches`
    #[command(hide = true)]
    PingPong,
    /// A rival of `switches`
    #[command(hide = true)]
    Spin,
    /// A workload of `node`
    #[command(hide = true)]
    Serve { address: String },
}

fn main() -> std::process::ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    match &arguments.role {
        Some(Role::PingPong) => return switches::ping_pong(),
        Some(Role::Spin) => return switches::spin(),
        Some(Role::Serve { address }) => return agent::serve(address),
        None => {}
    }
    let settings = Settings::new(arguments.rounds)?;
    let peers = Peers::locate()?;
    let _ground = cage::Ground::take()?;
    let _measuring = enable_stats(Stats::RunTime)
        .context("the kernel doesn't measure programs; it takes CAP_SYS_ADMIN")?;
    let wanted = |part| arguments.only.is_empty() || arguments.only.contains(&part);
    let mut results = Map::new();
    // Always: the others need to know what measuring itself takes.
    let (value, empty_ns) = switches::measure(&settings, &peers)?;
    results.insert("cpu".to_owned(), value);
    if wanted(Part::Switches) {
        let value = switches::under_pressure(&settings, &peers)?;
        results.insert("cpu_under_pressure".to_owned(), value);
    }
    if wanted(Part::Flag) {
        results.insert("flag".to_owned(), flag::measure(&settings)?);
    }
    if wanted(Part::Services) {
        let value = services::measure(&settings, &peers, empty_ns)?;
        results.insert("services".to_owned(), value);
    }
    if wanted(Part::Node) {
        results.insert("node".to_owned(), agent::measure()?);
    }
    let versions = json!({
        "sim": env!("CARGO_PKG_VERSION"),
        "bpftrace": peers.version("bpftrace", "--version"),
        "libbpf_tools_runqlat": peers.version("runqlat", "--version"),
    });
    let file = arguments.json.as_deref();
    bench::report(&versions, settings.rounds, &Value::Object(results), file)
}
