//! Hours of a proxy in minutes: every kind of traffic that it serves, users who leave or misbehave, instances that are
//! killed, stopped, weighted anew and exchanged, and a look at the proxy's memory, descriptors and threads once a
//! second. In the end no GET has failed, the memory is flat, every descriptor is back and every request that arrived
//! has ended. Run it by `cargo xtask soak`.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a soak speaks to the terminal"
)]

mod arrivals;
mod faults;
mod instance;
mod rude;
mod samples;
mod tally;
mod traffic;
mod verdict;
mod world;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Parser;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::json;
use tokio::task::JoinSet;

use arrivals::Arrivals;
use samples::Samples;
use tally::Tally;
use traffic::Kind;
use world::{Users, World};

/// Lines of the access log that are kept to be told.
const LOGGED_MAX: usize = 5_000;

#[derive(Parser)]
#[command(version, about)]
struct Arguments {
    /// How long
    #[arg(long, value_name = "N", default_value_t = 30.0)]
    minutes: f64,
    /// Which faults, and when
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Without faults
    #[arg(long)]
    calm: bool,
    /// Write the results here
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    #[command(subcommand)]
    role: Option<Role>,
}

#[derive(clap::Subcommand)]
enum Role {
    /// What the proxy has behind it
    #[command(hide = true)]
    Instance {
        listen: SocketAddr,
        tell: SocketAddr,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let soaked = runtime.context("a runtime").and_then(|runtime| {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("RLIMIT_NOFILE")?;
        match &arguments.role {
            Some(Role::Instance { listen, tell }) => {
                runtime.block_on(instance::serve(*listen, *tell))?;
                Ok(vec![])
            }
            None => runtime.block_on(soak(&arguments)),
        }
    });
    match soaked {
        Ok(faults) if faults.is_empty() => ExitCode::SUCCESS,
        Ok(faults) => {
            for fault in faults {
                eprintln!("soak: FAILED: {fault}");
            }
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("soak: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Users by what they do, but those of the open loop.
fn kinds(users: &Users) -> Vec<Kind> {
    let mut kinds = traffic::kinds(users);
    kinds.extend(rude::kinds(users));
    kinds
}

/// What is wrong, one line each.
async fn soak(arguments: &Arguments) -> Result<Vec<String>> {
    let span = Duration::from_secs_f64(arguments.minutes * 60.0);
    let arrivals = Arrivals::listen()?;
    let mut world = World::start(arrivals.address()?).await?;
    let tally = Arc::new(Tally::new(arrivals));
    // Each kind of user once, so that what is made for the first one only is there before the first look.
    traffic::once(kinds(&world.users()), &tally).await;
    rude::fill(&world.users()).await?;
    world.settle().await?;
    let samples = Samples::begin(world.proxy(), &tally).await?;
    println!(
        "soak: {} for {:.1} minutes, from {}",
        world.version,
        arguments.minutes,
        samples.first()
    );
    let open_loop = traffic::plans(&world.users(), span)?;
    let mut users = JoinSet::new();
    for kind in kinds(&world.users()) {
        users.spawn(kind.keep_asking(tally.clone(), span));
    }
    let sampling = tokio::spawn(samples.take(span));
    if !arguments.calm {
        faults::run(&mut world, span, arguments.seed, &tally).await?;
    }
    while let Some(user) = users.join_next().await {
        user.context("a user panicked")?;
    }
    for load in open_loop {
        load.note(&tally).await?;
    }
    let samples = sampling.await.context("sampling panicked")??;
    world.settle().await?;
    let last = samples::Sample::settled(world.proxy()).await?;
    let page = world.metrics().await?;
    let open = samples::open(world.proxy())?;
    let threads = samples::threads(world.proxy())?;
    let log = world.failures_logged(LOGGED_MAX)?;
    let findings = verdict::judge(&samples, (last, &open, &threads), &tally, &page, &log);
    println!("{}", findings.report);
    if let Some(file) = &arguments.json {
        let text = json!({
            "minutes": arguments.minutes,
            "seed": arguments.seed,
            "version": world.version,
            "results": findings.results,
        });
        let text = serde_json::to_string_pretty(&text)? + "\n";
        std::fs::write(file, text).with_context(|| file.display().to_string())?;
    }
    Ok(findings.wrong)
}
