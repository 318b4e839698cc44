//! What the probes themselves cost, as the kernel measures it.

use crate::error::one_line;
use aya::{
    Ebpf,
    programs::{Program, ProgramFd},
    sys::{Stats, enable_stats},
};
use std::{
    fs, io,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
};

/// CPU time spent in the kernel programs since they were loaded.
///
/// The measurement itself adds some 20 to 60 ns to each run, inside the figures: an empty program
/// doesn't read as 0. All zero where the kernel refused to measure (it takes `CAP_SYS_ADMIN`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Time in all programs.
    pub run_ns_total: u64,
    /// Runs of all programs.
    pub run_count_total: u64,
    /// Each loaded program.
    pub programs: Vec<ProgramCost>,
}

/// See [`Cost`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProgramCost {
    /// Its name in the object.
    pub name: String,
    /// Time spent in it.
    pub run_ns: u64,
    /// Times it ran.
    pub run_count: u64,
    /// Times the kernel skipped it, because it was running on that CPU already. What it would have
    /// counted is lost.
    pub missed_count: u64,
}

/// Asks the kernel to measure, until the descriptor is closed.
pub(crate) fn measure() -> Option<OwnedFd> {
    enable_stats(Stats::RunTime)
        .inspect_err(|error| {
            tracing::warn!("the probes' own cost is not measured: {}", one_line(error));
        })
        .ok()
}

pub(crate) fn read(ebpf: &Ebpf) -> Cost {
    let mut cost = Cost::default();
    for (name, program) in ebpf.programs() {
        // Not loaded: nothing spent.
        let Some(fd) = fd(program) else { continue };
        match info(&fd) {
            Ok(info) => {
                let one = parse(name, &info);
                cost.run_ns_total = cost.run_ns_total.saturating_add(one.run_ns);
                cost.run_count_total = cost.run_count_total.saturating_add(one.run_count);
                cost.programs.push(one);
            }
            Err(error) => tracing::debug!("no statistics of {name}: {error}"),
        }
    }
    cost.programs.sort_by(|a, b| a.name.cmp(&b.name));
    cost
}

fn fd(program: &Program) -> Option<OwnedFd> {
    let fd: &ProgramFd = program.fd().ok()?;
    fd.as_fd().try_clone_to_owned().ok()
}

/// fdinfo rather than `BPF_OBJ_GET_INFO_BY_FD`: aya doesn't pass on the number of missed runs.
fn info(fd: &OwnedFd) -> io::Result<String> {
    fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd()))
}

fn parse(name: &str, info: &str) -> ProgramCost {
    let field = |key: &str| {
        let line = info
            .lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
        line.and_then(|value| value.trim().parse().ok())
            .unwrap_or(0)
    };
    ProgramCost {
        name: name.to_owned(),
        run_ns: field("run_time_ns"),
        run_count: field("run_cnt"),
        missed_count: field("recursion_misses"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_taken_by_their_whole_name_and_missing_ones_are_zero() {
        let info = "pos:\t0\nprog_type:\t26\nrun_time_ns:\t1234\nrun_cnt:\t56\n";
        let expected = ProgramCost {
            name: "x".into(),
            run_ns: 1234,
            run_count: 56,
            missed_count: 0,
        };
        assert_eq!(parse("x", info), expected);
    }
}
