//! CPU time per request.

use std::process::Command;

use anyhow::{Context as _, Result, bail};
use bench::median;
use bench::peers::Peers;
use serde_json::{Map, Value, json};

use crate::contender::{Contender, OTHER_CPU, Running};

/// Length of one load, as wrk takes it.
const SECONDS: &str = "3";
/// Connections of the closed loop.
const CONNECTIONS: &str = "32";

/// What is asked for, and how it is called.
const BODIES: [(&str, &str); 3] = [
    ("96_bytes", "/"),
    ("8_kib", "/size/8192"),
    ("64_kib", "/size/65536"),
];

pub(crate) fn measure(peers: &Peers, rounds: usize) -> Result<Map<String, Value>> {
    let mut running = Vec::new();
    for contender in Contender::ALL {
        let started = Running::start(contender, peers);
        running.push(started.with_context(|| contender.name())?);
    }
    let mut taken = vec![vec![Vec::new(); running.len()]; BODIES.len()];
    for round in 0..rounds {
        for (body, (name, path)) in BODIES.iter().enumerate() {
            // In turn, and from another one each time: a slow minute hits all alike.
            for step in 0..running.len() {
                let which = (round + step) % running.len();
                let proxy = &running[which];
                let before = proxy.cpu_ns()?;
                let requests = load(peers, &format!("http://{}{path}", proxy.address))
                    .with_context(|| format!("{}, {name}", Contender::ALL[which].name()))?;
                let cpu_ns = proxy.cpu_ns()?.saturating_sub(before) as f64;
                taken[body][which].push(requests / (cpu_ns / 1e9));
            }
        }
        println!("cost: round {} of {rounds}", round + 1);
    }
    let mut results = Map::new();
    for (body, (name, _)) in BODIES.iter().enumerate() {
        let of = |which: usize| median(&taken[body][which]).unwrap_or_default();
        let mut value = json!({});
        for (which, contender) in Contender::ALL.iter().enumerate() {
            value[contender.name()] = of(which).round().into();
            if *contender != Contender::Sim {
                let key = format!("cpu_ratio_vs_{}", contender.name());
                // Of the same round: what slows one slows the other.
                let ratios = taken[body][0].iter().zip(&taken[body][which]);
                let ratios: Vec<f64> = ratios.map(|(ours, theirs)| ours / theirs).collect();
                let ratio = median(&ratios).unwrap_or_default();
                value[key] = ((ratio * 1000.0).round() / 1000.0).into();
            }
        }
        results.insert(format!("requests_per_cpu_second_{name}"), value);
    }
    Ok(results)
}

/// Loads it; the number of good answers.
fn load(peers: &Peers, url: &str) -> Result<f64> {
    let wrk = peers.command("wrk")?;
    let mut pinned = Command::new("taskset");
    pinned
        .args(["-c", &OTHER_CPU.to_string()])
        .arg(wrk.get_program());
    for (name, value) in wrk.get_envs() {
        if let Some(value) = value {
            pinned.env(name, value);
        }
    }
    pinned.args(["-t", "1", "-c", CONNECTIONS, "-d", SECONDS, url]);
    let output = pinned.output().context("taskset")?;
    let text = String::from_utf8_lossy(&output.stdout);
    // "  123456 requests in 4.00s, 20.01MB read"
    let requests = text.lines().find_map(|line| {
        let (count, _) = line.trim().split_once(" requests in ")?;
        count.parse::<f64>().ok()
    });
    for line in text.lines().map(str::trim) {
        if line.starts_with("Non-2xx") || line.starts_with("Socket errors") {
            bail!("wrk: {line}");
        }
    }
    requests.with_context(|| format!("wrk says no number of requests: {text}"))
}
