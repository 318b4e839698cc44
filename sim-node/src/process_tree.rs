//! What a process group used, from `/proc`: the last resort where neither probes nor cgroups are
//! to be had.

use crate::cgroup::Usage;
use nix::sys::signal::{Signal, kill};
use nix::time::{ClockId, clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;
use std::fs;
use std::io;
use std::time::{Duration, Instant};

/// How often a group is looked through for new processes.
const RELIST: Duration = Duration::from_millis(250);

/// CPU time and memory of all live processes of the group `pgid`, plus what its leader's
/// reaped children used.
///
/// # Errors
/// There is no such group.
pub fn usage(pgid: u32) -> io::Result<Usage> {
    let ticks_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)
        .ok()
        .flatten()
        .and_then(|t| u64::try_from(t).ok())
        .unwrap_or(100)
        .max(1);
    let page_bytes = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE)
        .ok()
        .flatten()
        .and_then(|p| u64::try_from(p).ok())
        .unwrap_or(4096);
    let mut total = Usage::default();
    for (_, process) in members(pgid)? {
        total.cpu_micros += process.ticks * 1_000_000 / ticks_second;
        total.memory_bytes += process.resident_pages * page_bytes;
    }
    Ok(total)
}

/// The live processes of the group; an error if there are none.
fn members(pgid: u32) -> io::Result<Vec<(Pid, Process)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // A process may be gone between listing and reading.
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else {
            continue;
        };
        if let Some(process) = parse(&stat).filter(|p| p.pgid == i64::from(pgid)) {
            found.push((Pid::from_raw(pid), process));
        }
    }
    if found.is_empty() {
        return Err(io::ErrorKind::NotFound.into());
    }
    Ok(found)
}

/// CPU clocks of a process group: nanoseconds, where `/proc` counts hundredths of a second.
///
/// Processes that start are found within [`RELIST`]; what one used between its last reading and
/// its end is missed.
#[derive(Debug)]
pub(crate) struct GroupClocks {
    pgid: u32,
    clocks: Vec<(Pid, ClockId, Duration)>,
    listed: Option<Instant>,
}

impl GroupClocks {
    pub(crate) fn new(pgid: u32) -> Self {
        Self {
            pgid,
            clocks: Vec::new(),
            listed: None,
        }
    }

    /// CPU time since the last call, of all processes of the group; on the first one, all of it.
    pub(crate) fn spent(&mut self) -> io::Result<Duration> {
        if self.listed.is_none_or(|at| at.elapsed() >= RELIST) {
            let members = members(self.pgid)?;
            self.clocks
                .retain(|(pid, ..)| members.iter().any(|(member, _)| member == pid));
            for (pid, _) in members {
                if self.clocks.iter().all(|(known, ..)| *known != pid) {
                    // It may have ended since it was listed.
                    if let Ok(clock) = clock_getcpuclockid(pid) {
                        self.clocks.push((pid, clock, Duration::ZERO));
                    }
                }
            }
            self.listed = Some(Instant::now());
        }
        let mut spent = Duration::ZERO;
        self.clocks.retain_mut(|(_, clock, used)| {
            let Ok(now) = clock_gettime(*clock).map(Duration::from) else {
                return false;
            };
            spent += now.saturating_sub(*used);
            *used = now;
            true
        });
        Ok(spent)
    }
}

/// Environment variable that names the server in its instances: the cgroup that it would have.
pub(crate) const MARK: &str = "SIM_SERVER";

/// Kills what a killed node of that server left where there are no cgroups: marked processes whose
/// group has lost its leader. (The leader ends with its node; what it forked need not.) Gives
/// their number.
pub(crate) fn kill_orphans(mark: &str) -> usize {
    let wanted = format!("{MARK}={mark}");
    let Ok(entries) = fs::read_dir("/proc") else {
        return 0;
    };
    let mut killed = 0;
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // Unreadable for a process of another user, which is none of ours.
        let environment = fs::read(entry.path().join("environ")).unwrap_or_default();
        let marked = environment
            .split(|&byte| byte == 0)
            .any(|entry| entry == wanted.as_bytes());
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let Some(process) = parse(&stat).filter(|_| marked) else {
            continue;
        };
        let leads = fs::exists(format!("/proc/{}", process.pgid)).unwrap_or(true);
        if !leads && kill(Pid::from_raw(pid), Signal::SIGKILL).is_ok() {
            killed += 1;
        }
    }
    killed
}

struct Process {
    pgid: i64,
    ticks: u64,
    resident_pages: u64,
}

/// One `/proc/<pid>/stat` line. The name may hold spaces and parentheses: fields count after the
/// last one.
fn parse(stat: &str) -> Option<Process> {
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let number = |at: usize| fields.get(at)?.parse::<u64>().ok();
    // Fields 14 to 17 of proc(5): user, system, and the same of reaped children.
    let ticks = (11..=14).filter_map(number).sum();
    Some(Process {
        pgid: fields.get(2)?.parse().ok()?,
        ticks,
        resident_pages: number(21).unwrap_or(0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_a_parenthesis_does_not_shift_the_fields() {
        let stat = "7 (a) b) S 1 42 42 0 -1 0 0 0 0 0 10 20 3 4 20 0 1 0 99 1000 250 0";
        let process = parse(stat).expect("parsed");
        assert_eq!(
            (process.pgid, process.ticks, process.resident_pages),
            (42, 37, 250)
        );
    }

    #[test]
    fn orphans_are_killed_and_groups_with_a_leader_are_not() {
        use std::os::unix::process::CommandExt as _;
        let mark = format!("test/{}", std::process::id());
        let start = |script: &str| {
            std::process::Command::new("sh")
                .args(["-c", script])
                .env(MARK, &mark)
                .process_group(0)
                .stdin(std::process::Stdio::null())
                .spawn()
                .expect("a shell")
        };
        let mut led = start("exec sleep 60");
        // Its child stays behind in the group.
        let mut gone = start("sleep 60 & exit 0");
        gone.wait().expect("ended");
        let group = gone.id();
        assert_eq!(members(group).expect("the orphan").len(), 1);
        // In the middle of its exec a process has no environment that could be read.
        let mut killed = kill_orphans(&mark);
        while killed == 0 {
            std::thread::yield_now();
            killed = kill_orphans(&mark);
        }
        assert_eq!(killed, 1);
        while members(group).is_ok() {
            std::thread::yield_now();
        }
        assert!(led.try_wait().expect("asked").is_none(), "it has a leader");
        led.kill().expect("killed");
        led.wait().expect("ended");
    }

    #[test]
    fn clocks_count_what_the_group_used_and_nothing_twice() {
        let own = nix::unistd::getpgrp().as_raw().unsigned_abs();
        let mut clocks = GroupClocks::new(own);
        let start = clocks.spent().expect("own group");
        assert!(start > Duration::ZERO);
        let own_time = || {
            let clock = ClockId::CLOCK_PROCESS_CPUTIME_ID;
            Duration::from(clock_gettime(clock).expect("own clock"))
        };
        let before = own_time();
        while own_time() - before < Duration::from_millis(20) {
            std::hint::spin_loop();
        }
        let spun = clocks.spent().expect("own group");
        assert!(spun >= Duration::from_millis(20), "{spun:?}");
        assert!(clocks.spent().expect("own group") < start + spun);
        assert!(GroupClocks::new(u32::MAX).spent().is_err());
    }

    #[test]
    fn the_own_group_has_used_something_and_a_missing_one_is_an_error() {
        let own = nix::unistd::getpgrp().as_raw();
        assert!(usage(own.unsigned_abs()).expect("own group").memory_bytes > 0);
        assert!(usage(u32::MAX).is_err());
    }
}
