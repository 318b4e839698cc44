//! What the benchmarks have in common that are programs of their own (`src/bin`).
#![allow(clippy::print_stdout, reason = "a benchmark speaks to the terminal")]

pub mod compare;
pub mod control;
pub mod load;
pub mod open_loop;
pub mod peers;
pub mod secure;

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

/// To the nearest multiple of `step`: no figure here has more digits.
#[must_use]
pub fn round_to(value: f64, step: f64) -> f64 {
    // By the inverse, so that 0.1 stays 0.1 in print.
    (value / step).round() / (1.0 / step).round()
}

/// Middle value; the mean of the two in the middle. `None` of none.
#[must_use]
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        n if n % 2 == 1 => sorted.get(middle).copied(),
        _ => Some((sorted[middle - 1] + sorted[middle]) / 2.0),
    }
}

/// The least of the sorted values that a share `q` of all is no greater than. `None` of none.
#[must_use]
pub fn quantile(sorted: &[f64], q: f64) -> Option<f64> {
    let rank = (q * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.max(1) - 1).copied()
}

/// Shows what a benchmark found, and writes it to `file` if there is one.
///
/// # Errors
/// The file can't be written.
pub fn report(versions: &Value, rounds: usize, results: &Value, file: Option<&Path>) -> Result<()> {
    let report = json!({
        "machine": machine(),
        "versions": versions,
        "command": std::env::args().skip(1).collect::<Vec<_>>().join(" "),
        "rounds": rounds,
        "results": results,
    });
    let text = serde_json::to_string_pretty(&report)? + "\n";
    print!("{text}");
    if let Some(file) = file {
        std::fs::write(file, &text).with_context(|| file.display().to_string())?;
    }
    Ok(())
}

/// A loopback address that nobody listens on.
///
/// # Errors
/// There is none.
pub fn free_address() -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    Ok(listener.local_addr()?)
}

/// CPU time of all threads of a process, as the scheduler accounts it.
///
/// # Errors
/// There is no such process.
pub fn cpu_ns(pid: i32) -> Result<u64> {
    let mut sum = 0;
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread may end meanwhile.
        let text = std::fs::read_to_string(task?.path().join("schedstat")).unwrap_or_default();
        let first = text.split(' ').next().unwrap_or_default();
        sum += first.parse::<u64>().unwrap_or(0);
    }
    Ok(sum)
}

/// The machine a benchmark ran on.
fn machine() -> Value {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let model = cpuinfo.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == "model name").then(|| value.trim().to_owned())
    });
    json!({
        "cpu": model,
        "cores": std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
        "kernel": read("/proc/sys/kernel/osrelease").trim(),
        "architecture": std::env::consts::ARCH,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_of_the_sorted() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[9.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0]), Some(2.5));
    }

    #[test]
    fn a_quantile_is_one_of_the_values() {
        let hundred: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(quantile(&hundred, 0.5), Some(50.0));
        assert_eq!(quantile(&hundred, 0.99), Some(99.0));
        assert_eq!(quantile(&hundred, 1.0), Some(100.0));
        assert_eq!(quantile(&[], 0.5), None);
    }
}
