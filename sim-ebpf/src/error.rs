//! Errors, each one line.

use crate::{Group, GroupStatus};
use std::{error::Error, fmt::Write as _, io, path::PathBuf};

/// Nothing could be loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The object file can't be read.
    #[error("can't read the eBPF object {}: {source}; build it with `cargo xtask ebpf`", path.display())]
    Object {
        /// Where it was looked for.
        path: PathBuf,
        /// Why it can't be read.
        source: io::Error,
    },
    /// The process lacks a capability.
    #[error(
        "not permitted to load eBPF: run as root or grant CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN"
    )]
    Permission {
        /// What the kernel refused.
        what: String,
    },
    /// The object or the configuration is unusable here, whatever the privileges.
    #[error("can't load the eBPF object {}: {reason}", path.display())]
    Unusable {
        /// The object.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The kernel refused every group.
    #[error("the kernel refused every group of probes: {}", reasons(.0))]
    NothingLoaded(Vec<GroupStatus>),
}

fn reasons(status: &[GroupStatus]) -> String {
    let lines: Vec<_> = status.iter().map(ToString::to_string).collect();
    lines.join(" | ")
}

/// A cgroup can't be tracked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrackError {
    /// It is tracked already.
    #[error("cgroup {0} is tracked already")]
    AlreadyTracked(u64),
    /// As many cgroups are tracked as the maps hold.
    #[error("cgroup {id} is not tracked: the maps hold {limit} cgroups")]
    Full {
        /// The cgroup.
        id: u64,
        /// `cgroups_max` of the configuration.
        limit: u32,
    },
    /// The kernel refused the map entry.
    #[error("cgroup {id} is not tracked: {reason}")]
    Map {
        /// The cgroup.
        id: u64,
        /// The refusal.
        reason: String,
    },
}

/// A cgroup can't be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// Nobody tracks it.
    #[error("cgroup {0} is not tracked")]
    Untracked(u64),
    /// The kernel refused the read.
    #[error("counters of cgroup {id} can't be read: {reason}")]
    Map {
        /// The cgroup.
        id: u64,
        /// The refusal.
        reason: String,
    },
}

/// A process can't be watched.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WatchError {
    /// The group that watches isn't loaded.
    #[error("{} probes are off", Group::Life)]
    Off,
    /// The number is too high for a flag.
    #[error("instance {0}: numbers end at {max}", max = sim_ebpf_abi::LifeFlag::INSTANCE_MAX)]
    NoSuchInstance(u64),
    /// An instance that lives still has the slot, which that many later ones come round to.
    #[error("the slot is still that of instance {instance}")]
    SlotTaken {
        /// Whose it is.
        instance: u64,
    },
    /// The process is dead or dying already, so no probe will tell of it.
    #[error("process {0} is gone")]
    Gone(u32),
    /// The process is watched as another instance.
    #[error("process {tgid} is watched as instance {instance}")]
    AlreadyWatched {
        /// The process.
        tgid: u32,
        /// The instance.
        instance: u64,
    },
    /// The kernel refused the map entry.
    #[error("process {tgid} can't be watched: {reason}")]
    Map {
        /// The process.
        tgid: u32,
        /// The refusal.
        reason: String,
    },
}

/// An error with everything behind it, on one line and without repeating itself.
pub(crate) fn one_line(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let text = cause.to_string();
        if !line.contains(&text) {
            // Writing to a String can't fail.
            write!(line, ": {text}").ok();
        }
        next = cause.source();
    }
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The operating system's error number anywhere behind `error`.
pub(crate) fn os_error(error: &(dyn Error + 'static)) -> Option<i32> {
    let mut next = Some(error);
    while let Some(cause) = next {
        if let Some(code) = cause
            .downcast_ref::<io::Error>()
            .and_then(io::Error::raw_os_error)
        {
            return Some(code);
        }
        next = cause.source();
    }
    None
}
