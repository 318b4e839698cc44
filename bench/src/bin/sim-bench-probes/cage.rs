//! A cgroup for what is measured, gone when it is dropped.

use std::fs::{File, OpenOptions};
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use nix::fcntl::Flock;
use sim_node::cgroup::{Group, Hierarchy};

/// Where all cages are.
const ALL: &str = "sim-bench";

/// Takes the place of the cages for this process alone, and clears away what an interrupted one left.
pub(crate) struct Ground {
    hierarchy: Hierarchy,
    lock: Option<Flock<File>>,
}

impl Ground {
    pub(crate) fn take() -> Result<Self> {
        let hierarchy = Hierarchy::detect().context("cgroup mounts")?;
        let lock = hierarchy
            .lock(ALL)
            .with_context(|| format!("cgroup {ALL}: does another benchmark run?"))?;
        hierarchy.clear(ALL)?;
        Ok(Self {
            hierarchy,
            lock: Some(lock),
        })
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        self.hierarchy.remove_empty(ALL);
        drop(self.lock.take());
    }
}

/// Holds processes so that the kernel accounts for them together.
pub(crate) struct Cage {
    group: Group,
    id: u64,
    directory: PathBuf,
}

impl Cage {
    pub(crate) fn new(name: &str) -> Result<Self> {
        let name = format!("{ALL}/{name}");
        let hierarchy = Hierarchy::detect().context("cgroup mounts")?;
        let group = Group::create(&hierarchy, &name).with_context(|| format!("cgroup {name}"))?;
        let directory = group.unified_dir().context("no cgroup version 2 mount")?;
        let id = group
            .id()
            .with_context(|| format!("cgroup {name} has no id"))?;
        Ok(Self {
            group,
            id,
            directory,
        })
    }

    /// Caps what it may use, as a node caps its instances.
    pub(crate) fn hold_to(&self, cpus: f64) -> Result<()> {
        self.group.limit_cpu(cpus).context("CPU quota")
    }

    /// As the probes know it.
    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    /// On the version 2 mount.
    pub(crate) fn directory(&self) -> PathBuf {
        self.directory.clone()
    }

    /// For a child that joins.
    pub(crate) fn procs(&self) -> Result<Vec<File>> {
        let open = |directory: PathBuf| {
            let path = directory.join("cgroup.procs");
            OpenOptions::new()
                .write(true)
                .open(&path)
                .with_context(|| path.display().to_string())
        };
        self.group.dirs().into_iter().map(open).collect()
    }

    /// CPU time of all that ever ran in it.
    pub(crate) fn cpu_ns(&self) -> Result<u64> {
        let path = self.directory.join("cpu.stat");
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let micros = text
            .lines()
            .find_map(|line| line.strip_prefix("usage_usec "))
            .with_context(|| format!("{}: no usage_usec", path.display()))?;
        Ok(micros.trim().parse::<u64>()? * 1_000)
    }
}

impl Drop for Cage {
    fn drop(&mut self) {
        if let Err(error) = self.group.destroy() {
            eprintln!("bench: {} stays behind: {error}", self.directory.display());
        }
    }
}
