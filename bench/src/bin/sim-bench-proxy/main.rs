//! What a request costs the proxy, beside nginx, HAProxy, Envoy and the least program by pingora-proxy.
//!
//! One instance behind each, the same for all; one worker each, pinned to a core of its own, the instance and the load
//! on the other. The load is a closed loop that keeps the worker busy, and what counts is the CPU time of the proxy's
//! threads by the scheduler's account, so that a slow minute of the machine hits the rate and not the figure. All in
//! turn in one run; the median of the rounds counts. Run it by `cargo xtask bench proxy`, which fetches the others.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a benchmark speaks to the terminal"
)]

mod configurations;
mod contender;
mod cost;
mod failure;
mod gate;
mod grpc;
mod h2;
mod idle;
mod latency;
mod pick;
mod plot;
mod processes;
mod relative;
mod sim;
mod upgrade;

use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use bench::peers::Peers;
use clap::{Parser, ValueEnum};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::{Map, Value, json};

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

#[derive(clap::Subcommand)]
enum Role {
    /// The workload of SIM
    #[command(hide = true)]
    Instance { listen: String, folder: PathBuf },
    /// The same, for gRPC
    #[command(hide = true)]
    Grpc { listen: std::net::SocketAddr },
    /// Judge one `sim` against another: exit code 1 if it is slower
    Gate(gate::Arguments),
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// CPU time per request
    Cost,
    /// Memory per idle connection
    Idle,
    /// Added latency at 5 000 requests a second
    Latency,
    /// Latency against rate: a table and a plot
    Sweep,
    /// CPU time per request over HTTP/2, and per call of gRPC
    H2,
    /// What a pick costs, and how even picks are
    Pick,
    /// An instance killed, one stopped, weights changed
    Failure,
    /// The proxy replaced by another
    Upgrade,
}

fn main() -> std::process::ExitCode {
    let arguments = Arguments::parse();
    if let Err(error) = many_files() {
        eprintln!("bench: {error:#}");
        return std::process::ExitCode::FAILURE;
    }
    if let Some(Role::Gate(arguments)) = &arguments.role {
        return gate::run(arguments);
    }
    match run(&arguments) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}

/// Thousands of connections, here and in whatever is started.
fn many_files() -> Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("RLIMIT_NOFILE")
}

fn run(arguments: &Arguments) -> Result<()> {
    if let Some(Role::Grpc { listen }) = &arguments.role {
        return grpc::serve(*listen);
    }
    let peers = Peers::locate()?;
    if let Some(Role::Instance { listen, folder }) = &arguments.role {
        // SIM numbers its instances.
        let number = std::env::var("SIM_INSTANCE").context("SIM_INSTANCE")?;
        std::fs::write(folder.join(sim::INSTANCE), listen)?;
        let error = configurations::instance(&peers, folder, listen, number.parse()?)?.exec();
        return Err(error).context("nginx");
    }
    let wanted = |part| arguments.only.is_empty() || arguments.only.contains(&part);
    let mut results = Map::new();
    if wanted(Part::Cost) {
        results.append(&mut cost::measure(&peers, arguments.rounds)?);
    }
    if wanted(Part::Idle) {
        results.append(&mut idle::measure(&peers)?);
    }
    if wanted(Part::Latency) {
        results.append(&mut latency::measure(&peers, arguments.rounds)?);
    }
    if wanted(Part::Sweep) {
        let file = arguments.json.as_deref();
        results.append(&mut latency::sweep(&peers, arguments.rounds, file)?);
    }
    if wanted(Part::H2) {
        results.append(&mut h2::measure(&peers, arguments.rounds)?);
    }
    if wanted(Part::Pick) {
        results.append(&mut pick::measure(arguments.rounds)?);
    }
    if wanted(Part::Failure) {
        results.append(&mut failure::measure(&peers)?);
    }
    if wanted(Part::Upgrade) {
        results.append(&mut upgrade::measure()?);
    }
    let versions = json!({
        "sim": env!("CARGO_PKG_VERSION"),
        "nginx": peers.version("nginx", "-v"),
        "haproxy": peers.version("haproxy", "-v"),
        "envoy": peers.version("envoy", "--version"),
        "h2load": peers.version("h2load", "--version"),
        "wrk": peers.version("wrk", "-v"),
    });
    let file = arguments.json.as_deref();
    bench::report(&versions, arguments.rounds, &Value::Object(results), file)
}
