//! The cgroup mounts of this machine, read from `/proc/self/mounts`: never remounted, never
//! assumed to lie in one place. The CPU controller may be v1 or v2.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Quota period of an instance, in microseconds, as `sim node` sets it: short, so that a
/// throttled request waits a few milliseconds and not most of the kernel's default 100 ms.
pub const PERIOD_MICROS: u64 = 10_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    V1,
    V2,
}

/// Mounted cgroup hierarchies.
#[derive(Clone, Debug)]
pub struct Mounts {
    cpu: Option<(PathBuf, Version)>,
    all: Vec<PathBuf>,
}

impl Mounts {
    /// Of this process.
    ///
    /// # Errors
    /// `/proc` can't be read.
    pub fn read() -> Result<Self> {
        let text = fs::read_to_string("/proc/self/mounts").context("/proc/self/mounts")?;
        Ok(Self::parse(&text, |path| {
            fs::read_to_string(path.join("cgroup.controllers"))
                .is_ok_and(|controllers| controllers.split_whitespace().any(|c| c == "cpu"))
        }))
    }

    fn parse(mounts: &str, has_cpu: impl Fn(&Path) -> bool) -> Self {
        let mut cpu = None;
        let mut all = Vec::new();
        for line in mounts.lines() {
            let mut fields = line.split(' ').skip(1);
            let (Some(path), Some(kind), Some(options)) =
                (fields.next(), fields.next(), fields.next())
            else {
                continue;
            };
            let path = PathBuf::from(path);
            match kind {
                "cgroup" if options.split(',').any(|option| option == "cpu") => {
                    cpu = Some((path.clone(), Version::V1));
                }
                "cgroup2" if cpu.is_none() && has_cpu(&path) => {
                    cpu = Some((path.clone(), Version::V2));
                }
                "cgroup" | "cgroup2" => {}
                _ => continue,
            }
            all.push(path);
        }
        Self { cpu, all }
    }

    /// Directories of that name, in any hierarchy.
    #[must_use]
    pub fn directories(&self, name: &str) -> Vec<PathBuf> {
        self.all
            .iter()
            .map(|mount| mount.join(name))
            .filter(|path| path.is_dir())
            .collect()
    }

    /// Kills and removes what a killed run left under that name. Returns what it removed.
    ///
    /// # Errors
    /// A directory does not go away.
    pub fn remove(&self, name: &str) -> Result<usize> {
        let left = self.directories(name);
        for directory in &left {
            remove_directory(directory)?;
        }
        Ok(left.len())
    }
}

/// A cgroup of our own that holds a process to a share of the CPU.
#[derive(Debug)]
pub struct CpuCap {
    directory: PathBuf,
}

impl CpuCap {
    /// Makes it, capped to `cpus` with quota periods of `period_micros`.
    ///
    /// # Errors
    /// There is no CPU controller, or no right to use it.
    pub fn create(mounts: &Mounts, name: &str, cpus: f64, period_micros: u64) -> Result<Self> {
        let (mount, version) = mounts
            .cpu
            .as_ref()
            .context("no cgroup CPU controller mounted")?;
        let directory = mount.join(name);
        if *version == Version::V2 {
            write(&mount.join("cgroup.subtree_control"), "+cpu")?;
        }
        fs::create_dir(&directory).with_context(|| directory.display().to_string())?;
        let cap = Self { directory };
        let quota_micros = (cpus * period_micros as f64).round() as u64;
        match version {
            Version::V1 => {
                write(
                    &cap.directory.join("cpu.cfs_period_us"),
                    &period_micros.to_string(),
                )?;
                write(
                    &cap.directory.join("cpu.cfs_quota_us"),
                    &quota_micros.to_string(),
                )?;
            }
            Version::V2 => {
                let limit = format!("{quota_micros} {period_micros}");
                write(&cap.directory.join("cpu.max"), &limit)?;
            }
        }
        Ok(cap)
    }

    /// For a child that joins.
    ///
    /// # Errors
    /// The file can't be opened.
    pub fn procs(&self) -> Result<File> {
        let path = self.directory.join("cgroup.procs");
        OpenOptions::new()
            .write(true)
            .open(&path)
            .with_context(|| path.display().to_string())
    }
}

impl Drop for CpuCap {
    fn drop(&mut self) {
        // What stays is found and named by the check for leftovers.
        drop(remove_directory(&self.directory));
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("{} <- {text}", path.display()))
}

/// Depth first; a cgroup goes once its last process is gone.
fn remove_directory(directory: &Path) -> Result<()> {
    if let Ok(entries) = fs::read_dir(directory) {
        for entry in entries.flatten().filter(|entry| entry.path().is_dir()) {
            remove_directory(&entry.path())?;
        }
    }
    let deadline = Instant::now() + Duration::from_secs(3);
    while directory.exists() {
        let procs = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
        for pid in procs.lines().filter_map(|line| line.parse().ok()) {
            // It may be gone already.
            kill(Pid::from_raw(pid), Signal::SIGKILL).ok();
        }
        if let Err(error) = fs::remove_dir(directory) {
            ensure!(
                Instant::now() < deadline,
                "{}: {error}",
                directory.display()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_controller_is_found_in_hybrid_and_in_pure_v2_layouts() {
        let hybrid = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\n\
                      cgroup /cg/cpu,cpuacct cgroup rw,cpuacct,cpu 0 0\n\
                      cgroup /cg/cpuset cgroup rw,cpuset 0 0\n\
                      cgroup2 /cg/unified cgroup2 rw 0 0\n";
        let mounts = Mounts::parse(hybrid, |_| false);
        assert_eq!(
            mounts.cpu,
            Some((PathBuf::from("/cg/cpu,cpuacct"), Version::V1))
        );
        assert_eq!(mounts.all.len(), 3);
        let pure = Mounts::parse("cgroup2 /cg cgroup2 rw,nsdelegate 0 0\n", |_| true);
        assert_eq!(pure.cpu, Some((PathBuf::from("/cg"), Version::V2)));
    }
}
