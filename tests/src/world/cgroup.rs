//! A cgroup of the tests' own that holds a process to a share of the CPU, made as the node makes
//! those of its instances: same quota, same period.

use std::fs::{File, OpenOptions};

use anyhow::{Context as _, Result, bail};
use sim_node::cgroup::{Group, Hierarchy};

/// Holds its processes to a share of the CPU, and goes with them when it is dropped.
#[derive(Debug)]
pub struct CpuCap {
    group: Group,
}

impl CpuCap {
    /// Makes it, capped to `cpus`.
    ///
    /// # Errors
    /// There is no CPU controller, or no right to use it.
    pub fn create(hierarchy: &Hierarchy, name: &str, cpus: f64) -> Result<Self> {
        if let Some(why) = hierarchy.refusal() {
            bail!("no cgroup: {why}");
        }
        let group = Group::create(hierarchy, name).with_context(|| format!("cgroup {name}"))?;
        let cap = Self { group };
        cap.group
            .limit_cpu(cpus)
            .with_context(|| format!("cgroup {name}"))?;
        Ok(cap)
    }

    /// The cgroup itself.
    #[must_use]
    pub fn group(&self) -> &Group {
        &self.group
    }

    /// For a child that joins.
    ///
    /// # Errors
    /// A file can't be opened.
    pub fn procs(&self) -> Result<Vec<File>> {
        let open = |dir: std::path::PathBuf| {
            let path = dir.join("cgroup.procs");
            OpenOptions::new()
                .write(true)
                .open(&path)
                .with_context(|| path.display().to_string())
        };
        self.group.dirs().into_iter().map(open).collect()
    }
}

impl Drop for CpuCap {
    fn drop(&mut self) {
        // What stays is found and named by the check for leftovers.
        drop(self.group.destroy());
    }
}
