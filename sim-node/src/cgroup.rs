//! Control groups, version 1, version 2 and the hybrid of both.
//!
//! On a hybrid machine the controllers are version 1 hierarchies, while the version 2 tree has
//! none and yet holds what SIM needs of it: the ids by which eBPF tells workloads apart,
//! `cpu.stat` and pressure. A workload is therefore put into all of them, under one relative
//! name. Nothing is ever mounted or remounted here.

pub use crate::stat_files::StatFiles;
pub use crate::usage::{Detail, Usage};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, Flock, FlockArg};
use nix::unistd::{AccessFlags, faccessat};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Enforcement period of CPU quotas, in microseconds. The kernel's default of 100 ms makes a
/// throttled service wait up to 90 ms; at 10 ms the tail stays near the service time.
const PERIOD_MICROS: u64 = 10_000;
/// Smallest quota that the kernel takes, in microseconds.
const QUOTA_MICROS_MIN: u64 = 1_000;
/// How long a killed cgroup may take to empty.
const EMPTY_WAIT: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(2);

/// The mounted hierarchies that SIM uses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hierarchy {
    /// Version 2 mount.
    unified: Option<PathBuf>,
    /// Controllers hang on the version 2 mount.
    unified_controls: bool,
    /// Version 1 `cpu` mount.
    cpu: Option<PathBuf>,
    /// Version 1 `memory` mount.
    memory: Option<PathBuf>,
}

impl Hierarchy {
    /// Reads what is mounted.
    ///
    /// # Errors
    /// Where `/proc/self/mounts` can't be read.
    pub fn detect() -> io::Result<Self> {
        Ok(Self::parse(
            &fs::read_to_string("/proc/self/mounts")?,
            |unified| {
                fs::read_to_string(unified.join("cgroup.controllers"))
                    .is_ok_and(|list| list.split_whitespace().any(|c| c == "cpu"))
            },
        ))
    }

    fn parse(mounts: &str, controls: impl Fn(&Path) -> bool) -> Self {
        let mut found = Self::default();
        for line in mounts.lines() {
            let mut fields = line.split(' ').skip(1);
            let (Some(path), Some(kind), Some(options)) =
                (fields.next(), fields.next(), fields.next())
            else {
                continue;
            };
            let path = PathBuf::from(path);
            let has = |name: &str| options.split(',').any(|o| o == name);
            match kind {
                "cgroup2" if found.unified.is_none() => found.unified = Some(path),
                "cgroup" if has("cpu") && found.cpu.is_none() => found.cpu = Some(path),
                "cgroup" if has("memory") && found.memory.is_none() => found.memory = Some(path),
                _ => {}
            }
        }
        found.unified_controls =
            found.cpu.is_none() && found.unified.as_deref().is_some_and(controls);
        found
    }

    /// Why CPU can't be capped with these mounts by this user; `None` where it can.
    #[must_use]
    pub fn refusal(&self) -> Option<String> {
        let mount = match (&self.cpu, &self.unified, self.unified_controls) {
            (Some(cpu), ..) => cpu,
            (None, Some(unified), true) => unified,
            _ => return Some("no cgroup mount has a cpu controller".into()),
        };
        may(mount, AccessFlags::W_OK)
            .err()
            .map(|error| format!("{}: {}", mount.display(), error.desc()))
    }

    /// Whether a cgroup has files that say how much memory it holds.
    #[must_use]
    pub fn has_memory(&self) -> bool {
        let of_version_2 = || {
            let root = self.unified.as_ref()?;
            let list = fs::read_to_string(root.join("cgroup.controllers")).ok()?;
            Some(list.split_whitespace().any(|name| name == "memory"))
        };
        self.memory.is_some() || of_version_2().unwrap_or(false)
    }

    /// Whether the cgroup `name` has such files: on version 1 it need not be in every hierarchy.
    #[must_use]
    pub fn has_memory_of(&self, name: &str) -> bool {
        let version_1 = self.memory_dir(name).map(|dir| dir.join("memory.stat"));
        let file = version_1.or_else(|| Some(self.unified_dir(name)?.join("memory.stat")));
        file.is_some_and(|file| file.exists())
    }

    /// Whether a cgroup has files of pressure: on version 2, where the kernel accounts for it.
    #[must_use]
    pub fn has_pressure(&self) -> bool {
        // Where it is built in and switched off, the file is there and can't be read.
        self.unified.is_some() && fs::read_to_string("/proc/pressure/cpu").is_ok()
    }

    /// The version 2 directory of `name`, if version 2 is mounted.
    #[must_use]
    pub fn unified_dir(&self, name: &str) -> Option<PathBuf> {
        self.unified.as_ref().map(|u| u.join(name))
    }

    /// The version 1 directory of `name` in the `cpu` hierarchy, if there is one.
    pub(crate) fn cpu_dir(&self, name: &str) -> Option<PathBuf> {
        self.cpu.as_ref().map(|mount| mount.join(name))
    }

    /// The version 1 directory of `name` in the `memory` hierarchy, if there is one.
    pub(crate) fn memory_dir(&self, name: &str) -> Option<PathBuf> {
        self.memory.as_ref().map(|mount| mount.join(name))
    }

    fn mounts(&self) -> impl Iterator<Item = &PathBuf> {
        [&self.unified, &self.cpu, &self.memory]
            .into_iter()
            .flatten()
    }

    /// Takes the cgroup `name` for this process alone, making it where it is missing. It is held
    /// until the lock is dropped or the process ends, however it ends.
    ///
    /// # Errors
    /// Where another process holds it, or it can't be made.
    pub fn lock(&self, name: &str) -> io::Result<Flock<File>> {
        let Some(mount) = self.mounts().next() else {
            return Err(io::Error::other("no cgroup mount"));
        };
        let dir = mount.join(name);
        let wrap = |error: io::Error| context(&error, &dir);
        loop {
            fs::create_dir_all(&dir).map_err(wrap)?;
            // Who may open it may lock it.
            fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).map_err(wrap)?;
            let file = File::open(&dir).map_err(wrap)?;
            let inode = file.metadata().map_err(wrap)?.ino();
            let locked = Flock::lock(file, FlockArg::LockExclusiveNonblock);
            let lock = locked.map_err(|(_, errno)| match errno {
                Errno::EWOULDBLOCK => io::Error::new(
                    io::ErrorKind::WouldBlock,
                    "another node runs this server in this cgroup",
                ),
                errno => errno.into(),
            })?;
            // Whoever held it may have removed it in between.
            if fs::metadata(&dir).is_ok_and(|now| now.ino() == inode) {
                return Ok(lock);
            }
        }
    }

    /// The directories of `name` that exist.
    #[must_use]
    pub fn directories(&self, name: &str) -> Vec<PathBuf> {
        self.mounts()
            .map(|mount| mount.join(name))
            .filter(|dir| dir.is_dir())
            .collect()
    }

    /// Whether another process holds the lock on the cgroup `name`. Nothing is made.
    #[must_use]
    pub fn is_held(&self, name: &str) -> bool {
        self.mounts().next().is_some_and(|m| m.join(name).is_dir())
            && self
                .lock(name)
                .is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }

    /// Kills everything in the cgroup `name` and below, and removes it all. Gives the number of
    /// cgroups removed: 0 where there was none.
    ///
    /// # Errors
    /// Where another process holds the lock, or a directory can't be removed.
    pub fn remove(&self, name: &str) -> io::Result<usize> {
        let left = self.directories(name);
        if left.is_empty() {
            return Ok(0);
        }
        let _lock = self.lock(name)?;
        let mut removed = self.clear(name)?;
        for dir in self.directories(name) {
            remove_dir(&dir)?;
            removed += 1;
        }
        Ok(removed)
    }

    /// Removes the cgroup `name` where it is empty; where others still use it, nothing happens.
    pub fn remove_empty(&self, name: &str) {
        for dir in self.mounts().map(|m| m.join(name)) {
            if let Err(error) = fs::remove_dir(&dir) {
                tracing::debug!("{} stays: {error}", dir.display());
            }
        }
    }

    /// Kills everything below the cgroup `name` and removes what is below, whoever left it. Gives
    /// the number of cgroups removed.
    ///
    /// # Errors
    /// Where a directory can't be removed.
    pub fn clear(&self, name: &str) -> io::Result<usize> {
        let mut cleared = 0;
        for mount in self.mounts() {
            cleared += clear_below(&mount.join(name))?;
        }
        Ok(cleared)
    }
}

/// Whether this process, with the capabilities that it has, may do that to `path`.
///
/// # Errors
/// The kernel's reason.
pub fn may(path: &Path, access: AccessFlags) -> nix::Result<()> {
    // access(2) asks for the real user and forgets capabilities.
    faccessat(AT_FDCWD, path, access, AtFlags::AT_EACCESS)
}

/// Removes the cgroup directories below `dir`, killing what runs there and in `dir` itself.
fn clear_below(dir: &Path) -> io::Result<usize> {
    if !dir.is_dir() {
        return Ok(0);
    }
    let mut cleared = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            let child = entry.path();
            cleared += clear_below(&child)? + 1;
            remove_dir(&child)?;
        }
    }
    kill_all(dir)?;
    Ok(cleared)
}

fn remove_dir(dir: &Path) -> io::Result<()> {
    let began = Instant::now();
    loop {
        match fs::remove_dir(dir) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            // A process that has left `cgroup.procs` may still be on its way out.
            Err(error)
                if error.raw_os_error() == Some(Errno::EBUSY as i32)
                    && began.elapsed() < EMPTY_WAIT =>
            {
                std::thread::sleep(POLL);
            }
            Err(error) => return Err(context(&error, dir)),
        }
    }
}

fn context(error: &io::Error, path: &Path) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

fn write(path: &Path, value: &str) -> io::Result<()> {
    fs::write(path, value).map_err(|error| context(&error, path))
}

fn pids_in(dir: &Path) -> io::Result<Vec<i32>> {
    let path = dir.join("cgroup.procs");
    match fs::read_to_string(&path) {
        Ok(text) => Ok(text.lines().filter_map(|l| l.trim().parse().ok()).collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        // The cgroup is being removed by somebody else.
        Err(error) if error.raw_os_error() == Some(Errno::ENODEV as i32) => Ok(Vec::new()),
        Err(error) => Err(context(&error, &path)),
    }
}

/// SIGKILLs all of a cgroup until it is empty: forks may outrun one pass.
fn kill_all(dir: &Path) -> io::Result<()> {
    let began = Instant::now();
    loop {
        let pids = pids_in(dir)?;
        if pids.is_empty() {
            return Ok(());
        }
        if began.elapsed() > EMPTY_WAIT {
            let still = format!(
                "{}: {} processes outlive SIGKILL",
                dir.display(),
                pids.len()
            );
            return Err(io::Error::other(still));
        }
        for pid in pids {
            let pid = nix::unistd::Pid::from_raw(pid);
            match nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(error) => return Err(error.into()),
            }
        }
        // Exit takes the kernel a moment; there is nothing to wait on for all versions alike.
        std::thread::sleep(POLL);
    }
}

/// One cgroup in all hierarchies.
#[derive(Debug)]
pub struct Group {
    hierarchy: Hierarchy,
    name: String,
}

impl Group {
    /// Makes the cgroup in every hierarchy. `name` is relative to the mounts.
    ///
    /// # Errors
    /// Where a directory can't be made or a controller not be enabled.
    pub fn create(hierarchy: &Hierarchy, name: &str) -> io::Result<Self> {
        let group = Self {
            hierarchy: hierarchy.clone(),
            name: name.to_owned(),
        };
        if hierarchy.unified_controls {
            group.enable_controllers()?;
        }
        for dir in group.dirs() {
            fs::create_dir_all(&dir).map_err(|error| context(&error, &dir))?;
        }
        Ok(group)
    }

    /// Version 2 hands controllers down level by level.
    fn enable_controllers(&self) -> io::Result<()> {
        let Some(mut dir) = self.hierarchy.unified.clone() else {
            return Ok(());
        };
        for part in Path::new(&self.name).components() {
            write(&dir.join("cgroup.subtree_control"), "+cpu +memory")?;
            dir.push(part);
            fs::create_dir_all(&dir).map_err(|error| context(&error, &dir))?;
        }
        Ok(())
    }

    /// Its directories, one in each hierarchy: where a process must be put.
    #[must_use]
    pub fn dirs(&self) -> Vec<PathBuf> {
        self.hierarchy
            .mounts()
            .map(|m| m.join(&self.name))
            .collect()
    }

    /// Its directory on the version 2 mount.
    #[must_use]
    pub fn unified_dir(&self) -> Option<PathBuf> {
        self.hierarchy.unified_dir(&self.name)
    }

    /// Its id, by which the kernel's probes know it.
    #[must_use]
    pub fn id(&self) -> Option<u64> {
        fs::metadata(self.unified_dir()?).ok().map(|m| m.ino())
    }

    /// Caps CPU at `cpus` CPUs.
    ///
    /// # Errors
    /// Where the kernel refuses, as when the parent has less.
    pub fn limit_cpu(&self, cpus: f64) -> io::Result<()> {
        let quota = ((cpus * PERIOD_MICROS as f64).round() as u64).max(QUOTA_MICROS_MIN);
        if let Some(cpu) = &self.hierarchy.cpu {
            let dir = cpu.join(&self.name);
            write(&dir.join("cpu.cfs_period_us"), &PERIOD_MICROS.to_string())?;
            write(&dir.join("cpu.cfs_quota_us"), &quota.to_string())
        } else if let Some(dir) = self.hierarchy.unified_dir(&self.name) {
            write(&dir.join("cpu.max"), &format!("{quota} {PERIOD_MICROS}"))
        } else {
            Err(io::Error::other("no cgroup mount has a cpu controller"))
        }
    }

    /// Caps memory at `bytes`.
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub fn limit_memory(&self, bytes: u64) -> io::Result<()> {
        if let Some(memory) = &self.hierarchy.memory {
            write(
                &memory.join(&self.name).join("memory.limit_in_bytes"),
                &bytes.to_string(),
            )
        } else if self.hierarchy.unified_controls {
            let dir = self.hierarchy.unified_dir(&self.name).unwrap_or_default();
            write(&dir.join("memory.max"), &bytes.to_string())
        } else {
            Ok(())
        }
    }

    /// What its files say.
    ///
    /// # Errors
    /// Where none of them can be read.
    pub fn usage(&self, detail: Detail, files: &mut StatFiles) -> io::Result<Usage> {
        Usage::of(&self.hierarchy, &self.name, detail, files)
    }

    /// Kills all that runs in it and removes it everywhere.
    ///
    /// # Errors
    /// Where something can't be killed or removed.
    pub fn destroy(&self) -> io::Result<()> {
        for dir in self.dirs() {
            kill_all(&dir)?;
            remove_dir(&dir)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
tmpfs /sys/fs/cgroup tmpfs rw,relatime 0 0
cgroup /sys/fs/cgroup/cpu cgroup rw,relatime,cpu 0 0
cgroup /sys/fs/cgroup/cpuset cgroup rw,relatime,cpuset 0 0
cgroup /sys/fs/cgroup/memory cgroup rw,relatime,memory 0 0
cgroup2 /sys/fs/cgroup/unified cgroup2 rw,relatime 0 0
";

    #[test]
    fn hybrid_and_pure_mounts_are_told_apart() {
        let hybrid = Hierarchy::parse(HYBRID, |_| false);
        assert_eq!(hybrid.cpu.as_deref(), Some(Path::new("/sys/fs/cgroup/cpu")));
        assert_eq!(
            hybrid.memory.as_deref(),
            Some(Path::new("/sys/fs/cgroup/memory"))
        );
        assert!(!hybrid.unified_controls);
        let pure = Hierarchy::parse("cgroup2 /sys/fs/cgroup cgroup2 rw,nosuid 0 0\n", |_| true);
        assert_eq!(pure.cpu, None);
        assert!(pure.unified_controls);
        let none = Hierarchy::parse("proc /proc proc rw 0 0\n", |_| true);
        assert!(none.refusal().is_some());
    }

    #[test]
    fn below_an_ordinary_directory_everything_goes_and_the_directory_stays() {
        let dir = tempfile::tempdir().expect("dir");
        fs::create_dir_all(dir.path().join("x/y/z")).expect("made");
        assert_eq!(clear_below(dir.path()).expect("cleared"), 3);
        assert!(dir.path().is_dir() && !dir.path().join("x").exists());
    }

    #[test]
    fn a_lock_is_exclusive_and_ends_with_its_holder() {
        let dir = tempfile::tempdir().expect("dir");
        let hierarchy = Hierarchy {
            unified: Some(dir.path().to_owned()),
            ..Hierarchy::default()
        };
        let held = hierarchy.lock("pool/a").expect("free");
        let refused = hierarchy.lock("pool/a").expect_err("held");
        assert!(refused.to_string().contains("another node"), "{refused}");
        assert!(hierarchy.is_held("pool/a") && !hierarchy.is_held("pool/b"));
        hierarchy.remove("pool/a").expect_err("held");
        drop(held);
        drop(hierarchy.lock("pool/a").expect("free again"));
        assert!(!hierarchy.is_held("pool/a"));
        fs::create_dir(dir.path().join("pool/a/i1")).expect("made");
        assert_eq!(hierarchy.remove("pool/a").expect("removed"), 2);
        assert_eq!(hierarchy.remove("pool/a").expect("nothing"), 0);
    }
}
