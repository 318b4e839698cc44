//! The demonstration: one command that moves a real service before it saturates, and then kills
//! it. It speaks to SIM as any operator could and judges it by what users would see.

pub mod arguments;
pub mod compare;
pub mod config;
pub mod instance;
pub mod primary;
pub mod run;
pub mod scenario;
pub mod screen;
pub mod settings;
pub mod sim;
pub mod timeline;
pub mod verdict;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::world::World;
use crate::world::leftovers;
use crate::world::workspace::Workspace;
use arguments::Arguments;
use run::{Options, Verdict, run};
use screen::Screen;
use sim_node::cgroup::Hierarchy;

/// Exit code after SIGINT, SIGTERM or SIGHUP.
const EXIT_STOPPED: u8 = 130;
/// Exit code where the one broken promise is the tail during the move, and the primary was full
/// because the machine became slower, not because demand came that was not foreseen.
const EXIT_MACHINE: u8 = 3;

/// Runs what the arguments ask for. Must be called before any thread is made.
///
/// # Errors
/// What kept the demonstration from coming to a verdict.
pub fn main(arguments: &Arguments) -> Result<ExitCode> {
    if arguments.compare {
        compare(arguments)
    } else {
        single(arguments)
    }
}

fn single(arguments: &Arguments) -> Result<ExitCode> {
    let options = arguments.options();
    let world = World::build().context("network namespaces")?;
    let hierarchy = Hierarchy::detect().context("cgroup mounts")?;
    let mut screen = Screen::new(arguments.headless);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let (ended, mark) = runtime.block_on(async {
        let mut stops = Stops::new()?;
        let parent = std::env::temp_dir();
        let (workspace, dead) = Workspace::create(&parent, &options.name)?;
        let swept = hierarchy.remove(&options.sweep_cgroup())?;
        if dead + swept > 0 {
            screen.stage(
                "world",
                &format!("removed what {} killed run(s) left", dead.max(1)),
            );
        }
        let mark = workspace.path().display().to_string();
        let ended = tokio::select! {
            biased;
            name = stops.next() => Err(name),
            verdict = run(&options, &world, &hierarchy, &workspace, &mut screen) => Ok(verdict),
        };
        Ok::<_, anyhow::Error>((ended, mark))
    })?;
    // The run and its folder were dropped above, so everything it started has been stopped.
    let left = leftovers_after(&options, &hierarchy, &mark, &world.namespaces());
    for line in &left {
        screen.line(&format!("demo: left behind: {line}"));
    }
    match ended {
        Err(name) => {
            let state = if left.is_empty() {
                "nothing is left behind"
            } else {
                "see above"
            };
            screen.line(&format!("demo: stopped by {name}; {state}"));
            Ok(ExitCode::from(EXIT_STOPPED))
        }
        Ok(verdict) => conclude(arguments, &mut screen, verdict?, &left),
    }
}

fn conclude(
    arguments: &Arguments,
    screen: &mut Screen,
    verdict: Verdict,
    left: &[String],
) -> Result<ExitCode> {
    for line in &verdict.broken {
        screen.line(&format!("demo: broken: {line}"));
    }
    let json = serde_json::to_string(&verdict.figures).context("figures")?;
    if let Some(path) = &arguments.json {
        std::fs::write(path, format!("{json}\n")).with_context(|| path.display().to_string())?;
    }
    screen.line(&format!("demo: {json}"));
    let kept = verdict.broken.is_empty() && left.is_empty();
    Ok(if kept {
        ExitCode::SUCCESS
    } else if left.is_empty() && verdict.only_the_machine() {
        ExitCode::from(EXIT_MACHINE)
    } else {
        ExitCode::FAILURE
    })
}

fn leftovers_after(
    options: &Options,
    hierarchy: &Hierarchy,
    mark: &str,
    namespaces: &[u64],
) -> Vec<String> {
    let cgroups = [options.name.clone(), options.sweep_cgroup()];
    let cgroups: Vec<&str> = cgroups.iter().map(String::as_str).collect();
    // A killed process takes a moment to leave.
    let deadline = Instant::now() + Duration::from_secs(3);
    loop {
        let left = leftovers::find(hierarchy, &cgroups, mark, namespaces);
        if left.is_empty() || Instant::now() > deadline {
            return left;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn compare(arguments: &Arguments) -> Result<ExitCode> {
    let mut screen = Screen::new(arguments.headless);
    let name = format!("{}-compare", arguments.name);
    let (folder, _) = Workspace::create(&std::env::temp_dir(), &name)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut stops = Stops::new()?;
        let both = async {
            screen.line(&format!("— forecast, seed {}", arguments.seed));
            let first = arguments.for_one_run();
            let (forecast, first_kept) =
                compare::run_again(&first, &folder.path().join("forecast")).await?;
            screen.line(&format!("— reactive, seed {}", arguments.seed));
            let mut second = arguments.for_one_run();
            second.push("--reactive".to_owned());
            // Demand is scaled by the capacity: one sweep for both, or they would not be the same.
            second.push(format!("--capacity={}", forecast.capacity_measured_rps));
            let (reactive, second_kept) =
                compare::run_again(&second, &folder.path().join("reactive")).await?;
            compare::show(&mut screen, &forecast, &reactive);
            if let Some(path) = &arguments.json {
                let both = serde_json::to_string(&[&forecast, &reactive])?;
                std::fs::write(path, format!("{both}\n"))?;
            }
            Ok::<_, anyhow::Error>(if first_kept && second_kept {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            })
        };
        tokio::select! {
            biased;
            _ = stops.next() => Ok(ExitCode::from(EXIT_STOPPED)),
            code = both => code,
        }
    })
}

/// Signals that end a run.
#[derive(Debug)]
struct Stops {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
}

impl Stops {
    fn new() -> Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.hang_up.recv() => "SIGHUP",
        }
    }
}
