//! The roles that a process can have.

use crate::config::Config;
use crate::ending::Ending;
use anyhow::Context;
use std::fs::File;
use std::future::Future;
use std::path::PathBuf;

/// What the user can mend keeps a role from starting.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct CannotStart(pub(crate) String);

fn cannot_start(error: impl std::fmt::Display) -> anyhow::Error {
    CannotStart(error.to_string()).into()
}

/// One thread is plenty for control and node, and a process that ends with its parent must have
/// been started by its parent's main thread.
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    Ok(runtime.block_on(future))
}

/// `sim control`.
pub(crate) fn control(config: Config) -> anyhow::Result<()> {
    config.make_dirs()?;
    block_on(async {
        let mut ending = Ending::listen()?;
        sim_control::run(config.control(), ending.asked())
            .await
            .map_err(cannot_start)
    })?
}

/// `sim node`.
pub(crate) fn node(config: Config, server: &str) -> anyhow::Result<()> {
    let found = config
        .servers
        .iter()
        .find(|s| s.spec.name.as_str() == server)
        .ok_or_else(|| cannot_start(format!("{}: no server {server:?}", config.path.display())))?;
    if let Some(path) = &found.netns {
        // Before any thread exists: a namespace is a thread's, not a process's.
        let file = File::open(path).with_context(|| format!("netns {}", path.display()))?;
        nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET)
            .with_context(|| format!("can't enter netns {}", path.display()))?;
    }
    let node = config.node(found, own_program()?);
    block_on(async {
        // Before the first cgroup is made, so that none is left by an early signal.
        let mut ending = Ending::listen()?;
        sim_node::run(node, ending.asked())
            .await
            .map_err(cannot_start)
    })?
}

/// Whom a proxy relieves.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Predecessor {
    None,
    /// The one that runs.
    Running,
    /// The one that runs, if one does.
    IfAny,
}

/// `sim proxy`.
pub(crate) fn proxy(config: &Config, predecessor: Predecessor) -> anyhow::Result<()> {
    let settings = config.proxy()?;
    let proxy = match predecessor {
        Predecessor::None => sim_proxy::Proxy::bind(settings),
        Predecessor::Running => sim_proxy::Proxy::take_over(settings),
        Predecessor::IfAny => sim_proxy::Proxy::take_over_or_bind(settings),
    };
    proxy.map_err(cannot_start)?.run(std::future::pending());
    Ok(())
}

/// This program.
pub(crate) fn own_program() -> anyhow::Result<PathBuf> {
    std::env::current_exe().context("can't tell the path of this program")
}
