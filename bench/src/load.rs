//! A closed loop (wrk): what is measured under it is CPU time, not latency, and it keeps a service at its capacity.

use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::peers::Peers;

/// Connections of the loop.
const CONNECTIONS: &str = "32";

/// Loads `url`, on one core if given; the number of good answers.
///
/// # Errors
/// There were others, or none could be had.
pub fn load(peers: &Peers, url: &str, seconds: &str, cpu: Option<usize>) -> Result<f64> {
    let mut wrk = peers.command("wrk")?;
    if let Some(cpu) = cpu {
        let mut pinned = Command::new("taskset");
        pinned.arg("-c").arg(cpu.to_string()).arg(wrk.get_program());
        pinned.envs(
            wrk.get_envs()
                .filter_map(|(name, value)| Some((name, value?))),
        );
        wrk = pinned;
    }
    wrk.args(["-t", "1", "-c", CONNECTIONS, "-d", seconds, url]);
    let output = wrk.output().context("wrk")?;
    requests(&String::from_utf8_lossy(&output.stdout))
}

/// What wrk says of its requests.
fn requests(text: &str) -> Result<f64> {
    for line in text.lines().map(str::trim) {
        if line.starts_with("Non-2xx") {
            bail!("wrk: {line}");
        }
        // An answer late for wrk costs the service what any other does.
        if line.starts_with("Socket errors") && !line.contains("connect 0, read 0, write 0") {
            bail!("wrk: {line}");
        }
    }
    // "  123456 requests in 4.00s, 20.01MB read"
    let requests = text.lines().find_map(|line| {
        let (count, _) = line.trim().split_once(" requests in ")?;
        count.parse().ok()
    });
    requests.with_context(|| format!("wrk says no number of requests: {text}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_good_answers_count() {
        let text = "  Latency 1ms\n  1234 requests in 3.00s, 1.00MB read\n";
        assert!(requests(text).is_ok_and(|count| (count - 1234.0).abs() < 0.1));
        let late = format!("{text}  Socket errors: connect 0, read 0, write 0, timeout 3\n");
        assert!(requests(&late).is_ok());
        let broken = format!("{text}  Socket errors: connect 0, read 1, write 0, timeout 0\n");
        assert!(requests(&broken).is_err());
        assert!(requests(&format!("{text}  Non-2xx or 3xx responses: 1\n")).is_err());
        assert!(requests("unable to connect\n").is_err());
    }
}
