//! `sim run`: one process tree for all roles, restarted when they fall, ended in order.

use crate::cli::EXIT_USAGE;
use crate::config::Config;
use crate::ending::Ending;
use crate::roles::{CannotStart, block_on, own_program};
use anyhow::Context;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::{Duration, Instant};
use tokio::process::{Child, Command};

const RESTART_PAUSE: Duration = Duration::from_millis(500);
/// This many restarts of one role within the window, and something is wrong for good.
const RESTARTS_MAX: usize = 5;
const RESTARTS_WINDOW: Duration = Duration::from_secs(30);
/// A role that can't start says so within this time; later on the same error is a fault to outlive.
const FIRST_START: Duration = Duration::from_secs(10);
/// Longest time that a role may take to end. A node ends instances in it.
const END_TIMEOUT: Duration = Duration::from_secs(15);

/// One role as a child process.
struct Role {
    name: String,
    arguments: Vec<String>,
    child: Child,
    starts: Vec<Instant>,
}

/// What ended the wait.
enum End {
    Asked,
    Role(usize, ExitStatus),
}

/// Runs all roles until asked to end.
pub(crate) fn run(config: Config) -> anyhow::Result<()> {
    config.make_dirs()?;
    block_on(supervise(&config))?
}

async fn supervise(config: &Config) -> anyhow::Result<()> {
    let program = own_program()?;
    let mut ending = Ending::listen()?;
    let mut roles = Vec::new();
    let result = match start_all(config, &program, &mut roles) {
        Ok(()) => watch(&program, &mut roles, &mut ending).await,
        Err(error) => Err(error),
    };
    // Users first, then instances, then the one that everyone reports to.
    for name in ["proxy", "node", "control"] {
        end(&mut roles, name).await;
    }
    config.remove_leftovers();
    result
}

fn start_all(config: &Config, program: &PathBuf, roles: &mut Vec<Role>) -> anyhow::Result<()> {
    let path = config.path.display().to_string();
    let mut start = |name: String, extra: &[&str]| -> anyhow::Result<()> {
        let role = name.split(' ').next().unwrap_or_default().to_owned();
        let mut arguments = vec![role, "--config".into(), path.clone()];
        arguments.extend(extra.iter().map(|&s| s.to_owned()));
        let child = spawn(program, &arguments)?;
        roles.push(Role {
            name,
            arguments,
            child,
            starts: vec![Instant::now()],
        });
        Ok(())
    };
    start("control".into(), &[])?;
    for server in &config.servers {
        let name = server.spec.name.as_str();
        start(format!("node {name}"), &["--server", name])?;
    }
    start("proxy".into(), &[])
}

fn spawn(program: &PathBuf, arguments: &[String]) -> anyhow::Result<Child> {
    Command::new(program)
        .args(arguments)
        .args(["--parent", &std::process::id().to_string()])
        // A group of its own, so that the terminal's Ctrl-C comes here alone and the order of the
        // end is kept.
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("can't start {}", program.display()))
}

async fn watch(program: &PathBuf, roles: &mut [Role], ending: &mut Ending) -> anyhow::Result<()> {
    loop {
        let end = tokio::select! {
            () = ending.asked() => End::Asked,
            (at, status) = any_end(roles) => End::Role(at, status?),
        };
        let End::Role(at, status) = end else {
            return Ok(());
        };
        let role = &mut roles[at];
        let first = role.starts.len() == 1 && role.starts[0].elapsed() < FIRST_START;
        if first && status.code() == Some(i32::from(EXIT_USAGE)) {
            // It has said itself what is wrong, in one line.
            return Err(CannotStart(format!("{} can't start", role.name)).into());
        }
        role.starts.retain(|s| s.elapsed() < RESTARTS_WINDOW);
        anyhow::ensure!(
            role.starts.len() < RESTARTS_MAX,
            "{} ended {RESTARTS_MAX} times within {} s, the last time by {status}",
            role.name,
            RESTARTS_WINDOW.as_secs()
        );
        tracing::warn!("{} ended ({status}); it is started again", role.name);
        tokio::select! {
            () = ending.asked() => return Ok(()),
            () = tokio::time::sleep(RESTART_PAUSE) => {}
        }
        role.child = spawn(program, &role.arguments)?;
        role.starts.push(Instant::now());
    }
}

/// The first role that ends.
async fn any_end(roles: &mut [Role]) -> (usize, std::io::Result<ExitStatus>) {
    std::future::poll_fn(|context| {
        for (at, role) in roles.iter_mut().enumerate() {
            let mut wait = std::pin::pin!(role.child.wait());
            if let std::task::Poll::Ready(status) = wait.as_mut().poll(context) {
                return std::task::Poll::Ready((at, status));
            }
        }
        std::task::Poll::Pending
    })
    .await
}

async fn end(roles: &mut [Role], name: &str) {
    let chosen = || move |r: &&mut Role| r.name.split(' ').next() == Some(name);
    for role in roles.iter_mut().filter(chosen()) {
        let Some(pid) = role.child.id().and_then(|p| i32::try_from(p).ok()) else {
            continue;
        };
        if let Err(error) = kill(Pid::from_raw(pid), Signal::SIGTERM) {
            tracing::debug!("{}: {}", role.name, error.desc());
        }
    }
    for role in roles.iter_mut().filter(chosen()) {
        if tokio::time::timeout(END_TIMEOUT, role.child.wait())
            .await
            .is_ok()
        {
            continue;
        }
        tracing::error!("{} does not end: killed", role.name);
        if let Err(error) = role.child.kill().await {
            tracing::error!("{}: {error}", role.name);
        }
    }
}
