//! What a cgroup used, as its own files tell it: the source of memory figures, and of all others
//! where no probe runs.

use crate::cgroup::Hierarchy;
use crate::stat_files::StatFiles;
use std::io;
use std::path::Path;

/// Cumulative, but for the two that say how much memory is held now. 0 where a file is missing.
///
/// Files of a version 2 cgroup include the cgroups nested in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// CPU time used, in microseconds.
    pub cpu_micros: u64,
    /// Time held back by the own quota, in microseconds, of all CPUs together.
    pub throttled_micros: u64,
    /// Time that some task waited for a CPU (pressure, "some"), in microseconds.
    pub cpu_pressure_micros: u64,
    /// Time that some task waited for memory (pressure, "some"), in microseconds.
    pub memory_pressure_micros: u64,
    /// Time that some task waited for I/O (pressure, "some"), in microseconds.
    pub io_pressure_micros: u64,
    /// Memory charged now, in bytes.
    pub memory_bytes: u64,
    /// Memory charged now without file pages that nobody used lately, in bytes: what the kernel
    /// can't take back without somebody feeling it.
    pub working_set_bytes: u64,
    /// Page faults that had to wait for a device.
    pub major_faults: u64,
    /// Processes that the OOM killer ended.
    pub oom_kills: u64,
}

/// How much is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detail {
    /// What a sample needs, once a tick: CPU time, throttling, CPU pressure, memory held, OOM kills.
    Sample,
    /// The other pressures, working set and page faults as well.
    Whole,
}

impl Usage {
    /// Reads the files of the cgroup `name` by `files`.
    ///
    /// # Errors
    /// Where there are none, or one that is there can't be read.
    pub fn of(
        hierarchy: &Hierarchy,
        name: &str,
        detail: Detail,
        files: &mut StatFiles,
    ) -> io::Result<Self> {
        let mut usage = Self::default();
        let mut found = false;
        if let Some(dir) = hierarchy.unified_dir(name) {
            found |= usage.read_unified(&dir, detail, files)?;
        }
        if let Some(dir) = hierarchy.cpu_dir(name) {
            let stat = files.read(&dir.join("cpu.stat"))?;
            found |= !stat.is_empty();
            usage.throttled_micros = key(stat, "throttled_time").unwrap_or(0) / 1_000;
        }
        if let Some(dir) = hierarchy.memory_dir(name) {
            found |= usage.read_memory(&dir, detail, files)?;
        }
        if found {
            Ok(usage)
        } else {
            Err(io::ErrorKind::NotFound.into())
        }
    }

    fn read_unified(
        &mut self,
        dir: &Path,
        detail: Detail,
        files: &mut StatFiles,
    ) -> io::Result<bool> {
        let mut read = |file: &str, take: &mut dyn FnMut(&str)| -> io::Result<()> {
            take(files.read(&dir.join(file))?);
            Ok(())
        };
        let mut found = false;
        read("cpu.stat", &mut |stat| {
            found = !stat.is_empty();
            self.cpu_micros = key(stat, "usage_usec").unwrap_or(0);
            self.throttled_micros = key(stat, "throttled_usec").unwrap_or(0);
        })?;
        let pressures = [
            ("cpu.pressure", &mut self.cpu_pressure_micros),
            ("memory.pressure", &mut self.memory_pressure_micros),
            ("io.pressure", &mut self.io_pressure_micros),
        ];
        let wanted = if detail == Detail::Whole { 3 } else { 1 };
        for (file, micros) in pressures.into_iter().take(wanted) {
            read(file, &mut |text| {
                *micros = pressure_total(text).unwrap_or(0);
            })?;
        }
        // The files of a controller are there only where it is enabled.
        read("memory.current", &mut |text| {
            self.memory_bytes = text.trim().parse().unwrap_or(0);
        })?;
        if self.memory_bytes != 0 {
            if detail == Detail::Whole {
                read("memory.stat", &mut |stat| {
                    let idle = key(stat, "inactive_file").unwrap_or(0);
                    self.working_set_bytes = self.memory_bytes.saturating_sub(idle);
                    self.major_faults = key(stat, "pgmajfault").unwrap_or(0);
                })?;
            }
            read("memory.events", &mut |events| {
                self.oom_kills = key(events, "oom_kill").unwrap_or(0);
            })?;
        }
        Ok(found)
    }

    fn read_memory(
        &mut self,
        dir: &Path,
        detail: Detail,
        files: &mut StatFiles,
    ) -> io::Result<bool> {
        let usage = files.read(&dir.join("memory.usage_in_bytes"))?;
        let Ok(memory_bytes) = usage.trim().parse() else {
            return Ok(false);
        };
        self.memory_bytes = memory_bytes;
        if detail == Detail::Whole {
            let stat = files.read(&dir.join("memory.stat"))?;
            let idle = key(stat, "total_inactive_file").unwrap_or(0);
            self.working_set_bytes = memory_bytes.saturating_sub(idle);
            self.major_faults = key(stat, "total_pgmajfault").unwrap_or(0);
        }
        let control = files.read(&dir.join("memory.oom_control"))?;
        self.oom_kills = key(control, "oom_kill").unwrap_or(0);
        Ok(true)
    }

    /// What was used since `before`, with the memory held now.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let grown = |field: fn(&Self) -> u64| field(self).saturating_sub(field(before));
        Self {
            cpu_micros: grown(|u| u.cpu_micros),
            throttled_micros: grown(|u| u.throttled_micros),
            cpu_pressure_micros: grown(|u| u.cpu_pressure_micros),
            memory_pressure_micros: grown(|u| u.memory_pressure_micros),
            io_pressure_micros: grown(|u| u.io_pressure_micros),
            memory_bytes: self.memory_bytes,
            working_set_bytes: self.working_set_bytes,
            major_faults: grown(|u| u.major_faults),
            oom_kills: grown(|u| u.oom_kills),
        }
    }
}

/// Value of `name` in a file of "name value" lines.
fn key(text: &str, name: &str) -> Option<u64> {
    text.lines()
        .find_map(|l| l.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

/// `total` of the "some" line of a pressure file.
fn pressure_total(text: &str) -> Option<u64> {
    let some = text.lines().find(|l| l.starts_with("some "))?;
    some.split(' ')
        .find_map(|f| f.strip_prefix("total="))?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn files_are_read_by_key() {
        assert_eq!(key("usage_usec 12\nuser_usec 3\n", "usage_usec"), Some(12));
        assert_eq!(key("usage_usec_x 12\n", "usage_usec"), None);
        let pressure = "some avg10=0.00 avg60=0.00 avg300=0.00 total=77\nfull avg10=0 total=5\n";
        assert_eq!(pressure_total(pressure), Some(77));
    }

    #[test]
    fn version_2_files_are_read_and_missing_ones_are_zero() {
        let dir = tempfile::tempdir().expect("dir");
        let write =
            |name: &str, text: &str| fs::write(dir.path().join(name), text).expect("written");
        write("cpu.stat", "usage_usec 900\nthrottled_usec 70\n");
        write("memory.current", "5000\n");
        write("memory.stat", "anon 1\ninactive_file 1500\npgmajfault 4\n");
        write("memory.events", "low 0\noom 2\noom_kill 1\n");
        write(
            "io.pressure",
            "some avg10=0.00 avg60=0.00 avg300=0.00 total=33\n",
        );
        let mut usage = Usage::default();
        let found = usage.read_unified(dir.path(), Detail::Whole, &mut StatFiles::opened_anew());
        assert!(found.expect("read"));
        let expected = Usage {
            cpu_micros: 900,
            throttled_micros: 70,
            io_pressure_micros: 33,
            memory_bytes: 5_000,
            working_set_bytes: 3_500,
            major_faults: 4,
            oom_kills: 1,
            ..Usage::default()
        };
        assert_eq!(usage, expected);
        assert_eq!(usage.since(&usage).working_set_bytes, 3_500);
        assert_eq!(usage.since(&usage).cpu_micros, 0);
    }

    #[test]
    fn version_1_memory_files_are_read() {
        let dir = tempfile::tempdir().expect("dir");
        let write =
            |name: &str, text: &str| fs::write(dir.path().join(name), text).expect("written");
        let mut usage = Usage::default();
        let found = usage.read_memory(dir.path(), Detail::Whole, &mut StatFiles::opened_anew());
        assert!(!found.expect("read"));
        write("memory.usage_in_bytes", "4096\n");
        write(
            "memory.stat",
            "inactive_file 9\ntotal_inactive_file 96\ntotal_pgmajfault 3\n",
        );
        write(
            "memory.oom_control",
            "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
        );
        let found = usage.read_memory(dir.path(), Detail::Whole, &mut StatFiles::opened_anew());
        assert!(found.expect("read"));
        let expected = (4_096, 4_000, 3, 2);
        assert_eq!(
            (
                usage.memory_bytes,
                usage.working_set_bytes,
                usage.major_faults,
                usage.oom_kills
            ),
            expected
        );
    }
}
