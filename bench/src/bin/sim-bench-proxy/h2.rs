//! CPU time per request over HTTP/2 in clear text, and per call of gRPC, beside Envoy.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use bench::peers::Peers;
use bench::{median, round_to};
use serde_json::{Map, Value, json};

use crate::configurations::Users;
use crate::contender::{Contender, Running};
use crate::processes::OTHER_CPU;

const COMPARED: [Contender; 2] = [Contender::Sim, Contender::Envoy];
/// Length of one load, its connections, and the streams of each at a time.
const SECONDS: &str = "3";
const CONNECTIONS: &str = "8";
const STREAMS: &str = "8";

/// A message of 64 bytes, not compressed.
const CALL_BYTES: [u8; 5] = [0, 0, 0, 0, 64];

/// Plain requests, answered by an instance that speaks HTTP/1.1; and calls of gRPC, all the way in HTTP/2.
pub(crate) fn measure(peers: &Peers, rounds: usize) -> Result<Map<String, Value>> {
    let folder = tempfile::tempdir()?;
    let call = folder.path().join("call");
    std::fs::write(&call, [&CALL_BYTES[..], &[b'x'; 64]].concat())?;
    let call = call.display().to_string();
    let fields = ["content-type: application/grpc", "te: trailers"];
    let [kind, trailers] = fields;
    let as_call = ["-H", kind, "-H", trailers, "-d", &call];
    let mut results = compare(peers, rounds, "h2", Users::Http2, "/", &[])?;
    let path = "/bench.Echo/Call";
    results.append(&mut compare(
        peers,
        rounds,
        "grpc",
        Users::Grpc,
        path,
        &as_call,
    )?);
    Ok(results)
}

fn compare(
    peers: &Peers,
    rounds: usize,
    name: &str,
    users: Users,
    path: &str,
    arguments: &[&str],
) -> Result<Map<String, Value>> {
    let mut running = Vec::new();
    for contender in COMPARED {
        let started = Running::start_for(contender, peers, users);
        running.push(started.with_context(|| format!("{name}, {}", contender.name()))?);
    }
    let mut taken = [Vec::new(), Vec::new()];
    for round in 0..rounds {
        for step in 0..running.len() {
            let which = (round + step) % running.len();
            let proxy = &running[which];
            let before = proxy.cpu_ns()?;
            let answered = load(peers, &format!("http://{}{path}", proxy.address), arguments);
            let answered = answered.with_context(|| COMPARED[which].name())?;
            let cpu_ns = proxy.cpu_ns()?.saturating_sub(before) as f64;
            taken[which].push(answered / (cpu_ns / 1e9));
        }
        println!("{name}: round {} of {rounds}", round + 1);
    }
    // Of the same round: what slows one slows the other.
    let ratios = taken[0].iter().zip(&taken[1]);
    let ratios: Vec<f64> = ratios.map(|(ours, theirs)| ours / theirs).collect();
    let ratio = round_to(median(&ratios).unwrap_or_default(), 0.001);
    let [ours, theirs] = taken.map(|all| median(&all).unwrap_or_default().round());
    let each = json!({ "sim": ours, "envoy": theirs, "cpu_ratio_vs_envoy": ratio });
    Ok(Map::from_iter([
        (format!("{name}_requests_per_cpu_second"), each),
        (format!("{name}_cpu_ratio_vs_envoy"), ratio.into()),
    ]))
}

/// Keeps `url` busy; the number of good answers.
fn load(peers: &Peers, url: &str, arguments: &[&str]) -> Result<f64> {
    let h2load = peers.command("h2load")?;
    let mut command = Command::new("taskset");
    command.args(["-c", &OTHER_CPU.to_string()]);
    command.arg(h2load.get_program());
    let variables = h2load.get_envs();
    command.envs(variables.filter_map(|(name, value)| Some((name, value?))));
    command.args(["-t", "1", "-c", CONNECTIONS, "-m", STREAMS, "-D", SECONDS]);
    command.args(arguments);
    let output = command.arg(url).output().context("h2load")?;
    answered(&String::from_utf8_lossy(&output.stdout))
}

/// What h2load says of its requests; those that the end of the time cut off are neither good nor bad.
fn answered(text: &str) -> Result<f64> {
    // "requests: 90 total, 99 started, 90 done, 90 succeeded, 0 failed, 0 errored, 0 timeout"
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("requests: "))
        .with_context(|| format!("h2load says no number of requests: {text}"))?;
    let count = |what: &str| -> Result<u64> {
        let counts = line.split(", ").filter_map(|part| part.split_once(' '));
        let mut counts = counts.filter(|(_, name)| *name == what);
        let (count, _) = counts
            .next()
            .with_context(|| format!("no {what}: {line}"))?;
        Ok(count.parse()?)
    };
    ensure!(count("failed")? + count("errored")? == 0, "h2load: {line}");
    ensure!(count("succeeded")? > 0, "h2load: {line}");
    Ok(count("succeeded")? as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_good_answers_count() {
        let text = |failed: u32| {
            format!(
                "finished in 3.00s, 30.00 req/s\n\
                 requests: 90 total, 99 started, 90 done, 90 succeeded, {failed} failed, {failed} errored, 0 timeout\n"
            )
        };
        assert!(answered(&text(0)).is_ok_and(|count| (count - 90.0).abs() < 0.1));
        assert!(answered(&text(1)).is_err());
        assert!(answered("no").is_err());
    }
}
