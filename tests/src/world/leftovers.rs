//! What a run must not leave behind.

use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sim_node::cgroup::Hierarchy;

/// Environment variable that every process of a run inherits, with the run's folder as value.
pub const MARK: &str = "SIM_DEMO_RUN";

/// Cgroups and processes of a run that are still there, one line each; empty is clean.
/// `namespaces` are inodes of the run's network namespaces.
#[must_use]
pub fn find(
    hierarchy: &Hierarchy,
    cgroups: &[&str],
    mark: &str,
    namespaces: &[u64],
) -> Vec<String> {
    let mut left: Vec<String> = cgroups
        .iter()
        .flat_map(|name| hierarchy.directories(name))
        .map(|path| format!("cgroup {}", path.display()))
        .collect();
    left.extend(
        processes(mark, namespaces)
            .into_iter()
            .map(|(pid, command)| format!("process {pid} ({command})")),
    );
    left
}

/// Living processes, except this one, that carry the mark or live in one of the namespaces.
fn processes(mark: &str, namespaces: &[u64]) -> Vec<(u32, String)> {
    let entry = format!("{MARK}={mark}");
    let own = std::process::id();
    let Ok(directory) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for process in directory.flatten() {
        let name = process.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let path = process.path();
        let marked = || {
            fs::read(path.join("environ")).is_ok_and(|environment| {
                environment
                    .split(|byte| *byte == 0)
                    .any(|variable| variable == entry.as_bytes())
            })
        };
        let inside =
            || fs::metadata(path.join("ns/net")).is_ok_and(|ns| namespaces.contains(&ns.ino()));
        // A zombie has neither environment nor namespaces.
        if pid != own && (inside() || marked()) {
            let command = fs::read(path.join("cmdline")).unwrap_or_default();
            let command = std::ffi::OsStr::from_bytes(&command)
                .to_string_lossy()
                .replace('\0', " ");
            found.push((pid, command.trim().to_owned()));
        }
    }
    found
}

/// Waits for the processes that carry the mark to end, and kills those that don't.
pub fn end_processes(mark: &str, patience: Duration) {
    let deadline = Instant::now() + patience;
    loop {
        let left = processes(mark, &[]);
        if left.is_empty() {
            return;
        }
        if Instant::now() > deadline {
            for (pid, _) in left {
                // It may have ended just now.
                kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL).ok();
            }
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Inode of a namespace descriptor or path, as `/proc/<pid>/ns/net` shows it.
#[must_use]
pub fn namespace_inode(path: &str) -> Option<u64> {
    fs::metadata(path).ok().map(|ns| ns.ino())
}
