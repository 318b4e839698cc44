//! The folder of one run. A lock on a file in it says that its run lives, whatever became of
//! the process id in its name; the next run removes what dead ones left.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::leftovers;

const LOCK: &str = "lock";
/// What the processes of a dead run get to end by themselves.
const PATIENCE: Duration = Duration::from_secs(10);

/// A folder that goes away with this value.
#[derive(Debug)]
pub struct Workspace {
    path: PathBuf,
    _lock: File,
}

impl Workspace {
    /// Makes `<temporary directory>/<name>.<pid>`, after removing those of dead runs of that
    /// name. Returns how many there were.
    ///
    /// # Errors
    /// Another run of that name lives, or the folder can't be made.
    pub fn create(parent: &Path, name: &str) -> Result<(Self, usize)> {
        let removed = remove_dead(parent, name)?;
        let path = parent.join(format!("{name}.{}", std::process::id()));
        fs::create_dir(&path).with_context(|| path.display().to_string())?;
        let lock = File::create(path.join(LOCK)).with_context(|| path.display().to_string())?;
        lock.lock().with_context(|| path.display().to_string())?;
        Ok((Self { path, _lock: lock }, removed))
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        // What stays is found and named by the check for leftovers, or by the next run.
        drop(fs::remove_dir_all(&self.path));
    }
}

fn remove_dead(parent: &Path, name: &str) -> Result<usize> {
    let mut removed = 0;
    let entries = fs::read_dir(parent).with_context(|| parent.display().to_string())?;
    for entry in entries.flatten() {
        let file_name = entry.file_name();
        let pid = file_name
            .to_str()
            .and_then(|n| n.strip_prefix(name)?.strip_prefix('.'));
        let Some(pid) = pid.filter(|pid| pid.bytes().all(|b| b.is_ascii_digit())) else {
            continue;
        };
        let path = entry.path();
        let alive = match File::open(path.join(LOCK)) {
            Ok(lock) => matches!(lock.try_lock(), Err(TryLockError::WouldBlock)),
            // Between making the folder and its lock, only the process id tells.
            Err(_) => Path::new("/proc").join(pid).exists(),
        };
        if alive {
            bail!("another run named {name} is under way, process {pid}");
        }
        // Its supervisor may still be tidying up; what does not end by itself is ended.
        leftovers::end_processes(&path.display().to_string(), PATIENCE);
        fs::remove_dir_all(&path).with_context(|| path.display().to_string())?;
        removed += 1;
    }
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_runs_folder_is_removed_and_a_living_ones_refused() {
        let parent = tempfile::tempdir().unwrap();
        fs::create_dir_all(parent.path().join("x.999999999/data")).unwrap();
        fs::create_dir_all(parent.path().join("x-other.1/data")).unwrap();
        let (first, removed) = Workspace::create(parent.path(), "x").unwrap();
        assert_eq!(removed, 1);
        assert!(parent.path().join("x-other.1").exists());
        let error = Workspace::create(parent.path(), "x")
            .unwrap_err()
            .to_string();
        assert!(error.contains("under way"), "{error}");
        let path = first.path().to_owned();
        drop(first);
        assert!(!path.exists());
    }
}
