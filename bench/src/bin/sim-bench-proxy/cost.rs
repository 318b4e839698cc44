//! CPU time per request.

use anyhow::{Context as _, Result};
use bench::load::load;
use bench::peers::Peers;
use bench::{median, round_to};
use serde_json::{Map, Value, json};

use crate::contender::{Contender, Running};
use crate::processes::OTHER_CPU;

/// Length of one load, as wrk takes it.
const SECONDS: &str = "3";

/// What is asked for, and how it is called.
const BODIES: [(&str, &str); 3] = [
    ("96_bytes", "/"),
    ("8_kib", "/size/8192"),
    ("64_kib", "/size/65536"),
];

pub(crate) fn measure(peers: &Peers, rounds: usize) -> Result<Map<String, Value>> {
    let running = Running::all(peers)?;
    let mut taken = vec![vec![Vec::new(); running.len()]; BODIES.len()];
    for round in 0..rounds {
        for (body, (name, path)) in BODIES.iter().enumerate() {
            // In turn, and from another one each time: a slow minute hits all alike.
            for step in 0..running.len() {
                let which = (round + step) % running.len();
                let (contender, proxy) = &running[which];
                let before = proxy.cpu_ns()?;
                let url = format!("http://{}{path}", proxy.address);
                let requests = load(peers, &url, SECONDS, Some(OTHER_CPU))
                    .with_context(|| format!("{}, {name}", contender.name()))?;
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
                value[key] = round_to(ratio, 0.001).into();
            }
        }
        results.insert(format!("requests_per_cpu_second_{name}"), value);
    }
    // In one word: of bodies up to 8 KiB the worse, and the streamed one.
    for contender in &Contender::ALL[1..] {
        let key = format!("cpu_ratio_vs_{}", contender.name());
        let of = |name: &str| results[&format!("requests_per_cpu_second_{name}")][&key].clone();
        let [small, larger, streamed] = BODIES.map(|(name, _)| of(name));
        let worse = if small.as_f64() < larger.as_f64() {
            small
        } else {
            larger
        };
        results.insert(format!("{key}_64_kib"), streamed);
        results.insert(key, worse);
    }
    Ok(results)
}
