//! What holds an instance to its CPU share and tells what it used.
//!
//! Cgroups where this user may write them. Where not, a duty cycle: the process group is stopped
//! and continued so that it uses its share (the method of the `cpulimit` tool). That is coarse,
//! and it stops what it limits, but it needs no privilege at all.

use crate::cgroup::{Detail, Group, Hierarchy, StatFiles, Usage};
use crate::process_tree::{self, GroupClocks};
use nix::errno::Errno;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Length of a duty cycle's look.
const CYCLE: Duration = Duration::from_millis(10);
/// How long a killed process group may take to end.
const KILL_WAIT: Duration = Duration::from_secs(5);
/// Cycles whose share may be saved up: one period of the kernel's own quotas.
const CREDIT_CYCLES: f64 = 10.0;

/// Limits of one instance.
#[derive(Debug)]
pub(crate) enum Limits {
    /// A cgroup of its own.
    Cgroup(Group),
    /// A duty cycle over its process group.
    DutyCycle {
        /// Share in CPUs.
        cpus: f64,
    },
}

impl Limits {
    /// Makes them: a cgroup `name` where `hierarchy` is given.
    pub(crate) fn new(
        hierarchy: Option<&Hierarchy>,
        name: &str,
        cpus: f64,
        memory_bytes: u64,
    ) -> io::Result<Self> {
        let Some(hierarchy) = hierarchy else {
            return Ok(Self::DutyCycle { cpus });
        };
        let group = Group::create(hierarchy, name)?;
        let limited = group
            .limit_cpu(cpus)
            .and_then(|()| group.limit_memory(memory_bytes));
        if let Err(error) = limited {
            if let Err(left) = group.destroy() {
                tracing::warn!("cgroup {name} is left behind: {left}");
            }
            return Err(error);
        }
        Ok(Self::Cgroup(group))
    }

    /// Cgroup directories to enter.
    pub(crate) fn dirs(&self) -> Vec<PathBuf> {
        match self {
            Self::Cgroup(group) => group.dirs(),
            Self::DutyCycle { .. } => Vec::new(),
        }
    }

    /// Directory by which the kernel's probes know the cgroup.
    pub(crate) fn unified_dir(&self) -> Option<PathBuf> {
        match self {
            Self::Cgroup(group) => group.unified_dir(),
            Self::DutyCycle { .. } => None,
        }
    }

    /// Id by which the kernel's probes know the cgroup.
    pub(crate) fn cgroup_id(&self) -> Option<u64> {
        match self {
            Self::Cgroup(group) => group.id(),
            Self::DutyCycle { .. } => None,
        }
    }

    /// What was used since the start, by files.
    pub(crate) fn usage(
        &self,
        pid: u32,
        detail: Detail,
        files: &mut StatFiles,
    ) -> io::Result<Usage> {
        match self {
            Self::Cgroup(group) => group.usage(detail, files),
            Self::DutyCycle { .. } => process_tree::usage(pid),
        }
    }

    /// Kills everything in it and removes it.
    pub(crate) fn destroy(&self, pid: u32) -> io::Result<()> {
        match self {
            Self::Cgroup(group) => group.destroy(),
            // Group 0 would be the node's own.
            Self::DutyCycle { .. } if pid == 0 => Ok(()),
            Self::DutyCycle { .. } => kill_group(group_of(pid)),
        }
    }
}

/// SIGKILLs a process group and waits until it is gone.
fn kill_group(group: Pid) -> io::Result<()> {
    let began = Instant::now();
    loop {
        match killpg(group, Signal::SIGKILL) {
            Ok(()) if began.elapsed() < KILL_WAIT => std::thread::sleep(CYCLE),
            Ok(()) => {
                return Err(io::Error::other(format!(
                    "process group {group} outlives SIGKILL"
                )));
            }
            Err(Errno::ESRCH) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

pub(crate) fn group_of(pid: u32) -> Pid {
    Pid::from_raw(i32::try_from(pid).unwrap_or(i32::MAX))
}

/// Holds the process group `pid` to `cpus` until it is gone: it is stopped while it has used more
/// than that, looked at every 10 ms. Needs no privilege beyond that of sending it signals. Dropped,
/// it may leave the group stopped.
pub async fn hold_to_duty_cycle(pid: u32, cpus: f64) {
    let mut tick = tokio::time::interval(CYCLE);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let (mut last, mut stopped, mut credit) = (Instant::now(), false, 0.0_f64);
    let mut clocks = GroupClocks::new(pid);
    loop {
        tick.tick().await;
        let spent = match clocks.spent() {
            Ok(spent) => spent,
            // Not to be read for the moment; only the kernel's word that it is gone counts.
            Err(_) if killpg(group_of(pid), None) != Err(Errno::ESRCH) => continue,
            Err(_) => return,
        };
        let earned = last.elapsed().as_secs_f64() * cpus;
        last = Instant::now();
        // Unused credit lapses after a few cycles, as a quota's does after its period.
        credit =
            (credit + earned - spent.as_secs_f64()).min(CREDIT_CYCLES * CYCLE.as_secs_f64() * cpus);
        let stop = credit < 0.0;
        if stop != stopped {
            let signal = if stop {
                Signal::SIGSTOP
            } else {
                Signal::SIGCONT
            };
            if killpg(group_of(pid), signal).is_err() {
                return;
            }
            stopped = stop;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::CommandExt as _;
    use std::process::{Command, Stdio};

    #[tokio::test]
    async fn a_duty_cycle_holds_a_busy_group_to_its_share() {
        const CPUS: f64 = 0.2;
        let mut busy = Command::new("sh")
            // Two processes: the group is held, not its leader.
            .args(["-c", "(while :; do :; done) & while :; do :; done"])
            .process_group(0)
            .stdin(Stdio::null())
            .spawn()
            .expect("a shell");
        let pid = busy.id();
        let mut clocks = GroupClocks::new(pid);
        let holding = tokio::spawn(hold_to_duty_cycle(pid, CPUS));
        // The first look finds the second process late.
        tokio::time::sleep(Duration::from_millis(600)).await;
        clocks.spent().expect("a group");
        // A look that comes late lets it run on, on both cores: some second has none, or hardly any.
        let (mut all, mut held) = (Vec::new(), false);
        while !held && all.len() < 60 {
            let from = Instant::now();
            tokio::time::sleep(Duration::from_millis(1_000)).await;
            let spent = clocks.spent().expect("a group").as_secs_f64();
            let allowed = from.elapsed().as_secs_f64() * CPUS;
            held = spent > 0.0 && spent < 2.0 * allowed;
            all.push((spent, allowed));
        }
        holding.abort();
        killpg(group_of(pid), Signal::SIGKILL).expect("killed");
        busy.wait().expect("ended");
        assert!(held, "{all:?}");
    }
}
