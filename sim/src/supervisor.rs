//! `sim run`: one process tree for all roles, restarted when they fall, ended in order.

use crate::cli::EXIT_USAGE;
use crate::client;
use crate::config::Config;
use crate::ending::Ending;
use crate::roles::{CannotStart, block_on, own_program};
use crate::upgrade::{self, Event, Upgrades};
use anyhow::Context;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::{Duration, Instant};
use tokio::process::{Child, Command};

/// Pause before a restart, doubled for each other restart within the window. A role that falls
/// again and again never takes the others down: the proxy serves on without the control plane.
const RESTART_PAUSE: Duration = Duration::from_millis(500);
const RESTART_PAUSE_MAX: Duration = Duration::from_secs(15);
const RESTARTS_WINDOW: Duration = Duration::from_secs(60);
/// A role that can't start says so within this time; later on the same error is a fault to outlive.
const FIRST_START: Duration = Duration::from_secs(10);
/// Longest time that the control plane may take to hear of the end.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest time that a role may take to end. A node ends instances in it.
const END_TIMEOUT: Duration = Duration::from_secs(15);

/// One role as a child process.
struct Role {
    name: String,
    arguments: Vec<String>,
    /// None between its end and its next start.
    child: Option<Child>,
    restart_at: Option<Instant>,
    /// It has been started more than once.
    restarted: bool,
    starts: Vec<Instant>,
}

/// Runs all roles until asked to end.
pub(crate) fn run(config: Config) -> anyhow::Result<()> {
    config.make_dirs()?;
    block_on(supervise(&config))?
}

async fn supervise(config: &Config) -> anyhow::Result<()> {
    let program = own_program()?;
    let mut ending = Ending::listen()?;
    let mut upgrades = Upgrades::listen(config)
        .with_context(|| format!("can't listen on {}", config.run_socket().display()))?;
    let mut roles = Vec::new();
    let result = match start_all(config, &program, &mut roles) {
        Ok(()) => {
            let names: Vec<&str> = config
                .workloads
                .iter()
                .map(|w| w.spec.name.as_str())
                .collect();
            tracing::info!(
                "{}: served at {}; metrics at http://{}/metrics; ask with: sim status --config {}",
                names.join(", "),
                config.front.urls(),
                config.front.admin,
                config.path.display()
            );
            watch(&program, &mut roles, &mut ending, &mut upgrades).await
        }
        Err(error) => Err(error),
    };
    roles.extend(upgrades.end().into_iter().map(|child| Role {
        name: "proxy".into(),
        arguments: Vec::new(),
        child: Some(child),
        restart_at: None,
        restarted: true,
        starts: Vec::new(),
    }));
    // Users first, then instances, then the one that everyone reports to.
    end(&mut roles, "proxy").await;
    // The socket may be another run's where this one's control plane could not start.
    if roles
        .iter()
        .any(|r| r.name == "control" && r.child.is_some())
    {
        let socket = config.control_socket();
        let closing = client::close(&socket);
        match tokio::time::timeout(CLOSE_TIMEOUT, closing).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::debug!("control can't be told that this is the end: {error:#}");
            }
            Err(_) => tracing::debug!("control does not answer"),
        }
    }
    for name in ["node", "control"] {
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
            child: Some(child),
            restart_at: None,
            restarted: false,
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

async fn watch(
    program: &PathBuf,
    roles: &mut [Role],
    ending: &mut Ending,
    upgrades: &mut Upgrades,
) -> anyhow::Result<()> {
    loop {
        let due = roles.iter().filter_map(|role| role.restart_at).min();
        let end = tokio::select! {
            () = ending.asked() => return Ok(()),
            (at, status) = any_end(roles) => Some((at, status?)),
            event = upgrades.next() => {
                if let Some(proxy) = roles.iter_mut().find(|role| role.name == "proxy") {
                    upgrade(program, proxy, upgrades, event).await;
                }
                continue;
            }
            () = at(due) => None,
        };
        let Some((at, status)) = end else {
            let now = Instant::now();
            for role in roles
                .iter_mut()
                .filter(|role| role.restart_at.is_some_and(|at| at <= now))
            {
                role.restarted = true;
                role.starts.push(now);
                role.restart_at = None;
                match spawn(program, &role.arguments) {
                    Ok(child) => role.child = Some(child),
                    Err(error) => {
                        let pause = role.pause();
                        tracing::error!("{error:#}; next try in {:.1} s", pause.as_secs_f64());
                        role.restart_at = Some(now + pause);
                    }
                }
            }
            continue;
        };
        let role = &mut roles[at];
        role.child = None;
        let first = !role.restarted && role.starts[0].elapsed() < FIRST_START;
        if first && status.code() == Some(i32::from(EXIT_USAGE)) {
            // It has said itself what is wrong, in one line.
            return Err(CannotStart(format!("{} can't start", role.name)).into());
        }
        let pause = role.pause();
        tracing::warn!(
            "{} ended ({status}); it is started again in {:.1} s",
            role.name,
            pause.as_secs_f64()
        );
        role.restart_at = Some(Instant::now() + pause);
    }
}

/// Does what is next for a proxy that is to be relieved.
async fn upgrade(program: &PathBuf, proxy: &mut Role, upgrades: &mut Upgrades, event: Event) {
    match event {
        Event::Asked(mut asked_by) => {
            if upgrades.joins(&mut asked_by) {
                return;
            }
            if proxy.child.is_none() {
                let why = "the proxy does not run; it is started again from what is on disk";
                return upgrade::answer(asked_by, "error", why).await;
            }
            let arguments = [proxy.arguments.as_slice(), &["--take-over".into()]].concat();
            match spawn(program, &arguments) {
                Ok(successor) => upgrades.begun(successor, asked_by),
                Err(error) => upgrade::answer(asked_by, "error", &format!("{error:#}")).await,
            }
        }
        Event::Serves => {
            if let Some(successor) = upgrades.serves(proxy.child.take()).await {
                proxy.child = Some(successor);
                proxy.restart_at = None;
                proxy.restarted = true;
            }
        }
        Event::Failed(why) => upgrades.failed(&why).await,
        Event::Ended(pid, Ok(status)) if status.success() => {
            tracing::info!("proxy {pid}, which was relieved, has ended");
        }
        Event::Ended(pid, status) => {
            let status = status.map_or_else(|e| e.to_string(), |status| status.to_string());
            tracing::warn!("proxy {pid}, which was relieved, ended: {status}");
        }
    }
}

/// Done at that moment; never where there is none.
async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment.into()).await,
        None => std::future::pending().await,
    }
}

impl Role {
    /// How long to wait before the next start.
    fn pause(&mut self) -> Duration {
        self.starts.retain(|s| s.elapsed() < RESTARTS_WINDOW);
        let doublings = u32::try_from(self.starts.len().saturating_sub(1)).unwrap_or(u32::MAX);
        RESTART_PAUSE
            .saturating_mul(2_u32.saturating_pow(doublings))
            .min(RESTART_PAUSE_MAX)
    }
}

/// The first role that ends.
async fn any_end(roles: &mut [Role]) -> (usize, std::io::Result<ExitStatus>) {
    std::future::poll_fn(|context| {
        for (at, role) in roles.iter_mut().enumerate() {
            let Some(child) = &mut role.child else {
                continue;
            };
            let mut wait = std::pin::pin!(child.wait());
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
        let pid = role.child.as_ref().and_then(Child::id);
        let Some(pid) = pid.and_then(|p| i32::try_from(p).ok()) else {
            continue;
        };
        if let Err(error) = kill(Pid::from_raw(pid), Signal::SIGTERM) {
            tracing::debug!("{}: {}", role.name, error.desc());
        }
    }
    for role in roles.iter_mut().filter(chosen()) {
        let Some(child) = &mut role.child else {
            continue;
        };
        if tokio::time::timeout(END_TIMEOUT, child.wait())
            .await
            .is_ok()
        {
            continue;
        }
        tracing::error!("{} does not end: killed", role.name);
        if let Err(error) = child.kill().await {
            tracing::error!("{}: {error}", role.name);
        }
    }
}
