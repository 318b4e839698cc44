//! What a process group used, from `/proc`: the last resort where neither probes nor cgroups are
//! to be had.

use crate::cgroup::Usage;
use std::fs;
use std::io;

/// CPU time and memory of all live processes of the group `pgid`, plus what its leader's
/// reaped children used.
pub(crate) fn usage(pgid: u32) -> io::Result<Usage> {
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
    let mut found = false;
    let mut total = Usage::default();
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        if !entry
            .file_name()
            .to_string_lossy()
            .bytes()
            .all(|b| b.is_ascii_digit())
        {
            continue;
        }
        // A process may be gone between listing and reading.
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else {
            continue;
        };
        let Some(process) = parse(&stat) else {
            continue;
        };
        if process.pgid == i64::from(pgid) {
            found = true;
            total.cpu_micros += process.ticks * 1_000_000 / ticks_second;
            total.memory_bytes += process.resident_pages * page_bytes;
        }
    }
    if found {
        Ok(total)
    } else {
        Err(io::ErrorKind::NotFound.into())
    }
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
    fn the_own_group_has_used_something_and_a_missing_one_is_an_error() {
        let own = nix::unistd::getpgrp().as_raw();
        assert!(usage(own.unsigned_abs()).expect("own group").memory_bytes > 0);
        assert!(usage(u32::MAX).is_err());
    }
}
