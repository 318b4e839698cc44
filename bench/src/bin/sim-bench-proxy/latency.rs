//! What a proxy adds to a request's latency: the same open loop directly at an instance and through each proxy.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bench::open_loop::{Outcome, Plan};
use bench::peers::Peers;
use bench::{median, quantile, round_to};
use serde_json::{Map, Value, json};

use crate::contender::Running;
use crate::plot::{self, Line};
use crate::processes::OTHER_CPU;

/// At this rate latencies are compared, requests a second.
const RATE_HZ: f64 = 5_000.0;
const SPAN: Duration = Duration::from_secs(2);

/// The rates of the sweep; the last ones are more than some can serve.
const SWEEP_HZ: [f64; 6] = [1_000.0, 2_500.0, 5_000.0, 10_000.0, 15_000.0, 20_000.0];
const SWEEP_SPAN: Duration = Duration::from_secs(1);
/// Of the sweep, since each takes a minute.
const SWEEP_ROUNDS_MAX: usize = 3;

/// How the way without a proxy is called.
const DIRECT: &str = "direct";

/// Quantiles of one run, microseconds.
#[derive(Clone, Copy, Debug)]
struct Quantiles {
    p50: f64,
    p99: f64,
}

/// One of them.
type Part = fn(&Quantiles) -> f64;

/// All who are compared, the way without a proxy first.
struct Field {
    running: Vec<(&'static str, Running)>,
}

impl Field {
    fn start(peers: &Peers) -> Result<Self> {
        let all = Running::all(peers)?;
        let direct = all.first().map(|(_, sim)| sim.without_proxy());
        let mut running = vec![(DIRECT, direct.context(DIRECT)??)];
        let named = all.into_iter().map(|(of, running)| (of.name(), running));
        running.extend(named);
        Ok(Self { running })
    }

    /// One run of each in turn, from another one each time: a slow minute hits all alike.
    fn round(&self, round: usize, rate_hz: f64, span: Duration) -> Result<Vec<Quantiles>> {
        let mut taken = vec![None; self.running.len()];
        for step in 0..self.running.len() {
            let which = (round + step) % self.running.len();
            let (name, running) = &self.running[which];
            let found = quantiles(running, rate_hz, span, round as u64);
            taken[which] = Some(found.with_context(|| format!("{name} at {rate_hz} Hz"))?);
        }
        Ok(taken.into_iter().flatten().collect())
    }
}

fn quantiles(running: &Running, rate_hz: f64, span: Duration, seed: u64) -> Result<Quantiles> {
    let plan = Plan {
        // The same arrivals for all of a round.
        seed,
        cpu: Some(OTHER_CPU),
        ..Plan::get(running.address, "/", rate_hz, span)
    };
    let taken = plan.run()?;
    // Who is asked for more than it can serve is late, and its quantiles say so.
    let failed = taken.shots.iter().filter(|shot| shot.failed());
    let failed = failed.filter(|shot| shot.outcome != Outcome::Late).count();
    ensure!(
        failed == 0,
        "{failed} of {} requests failed",
        taken.shots.len()
    );
    let sorted = taken.latencies_us();
    let at = |q| quantile(&sorted, q).context("no request");
    Ok(Quantiles {
        p50: at(0.5)?,
        p99: at(0.99)?,
    })
}

/// Added latency at one rate.
pub(crate) fn measure(peers: &Peers, rounds: usize) -> Result<Map<String, Value>> {
    let field = Field::start(peers)?;
    let mut taken = Vec::new();
    for round in 0..rounds {
        taken.push(field.round(round, RATE_HZ, SPAN)?);
        println!("latency: round {} of {rounds}", round + 1);
    }
    // Of the same round: what slows one slows the other.
    let added = |which: usize, of: Part| {
        let rounds = taken.iter();
        let rounds: Vec<f64> = rounds.map(|all| of(&all[which]) - of(&all[0])).collect();
        median(&rounds).unwrap_or_default()
    };
    let whole = |which: usize, of: Part| {
        let rounds: Vec<f64> = taken.iter().map(|all| of(&all[which])).collect();
        median(&rounds).unwrap_or_default()
    };
    let parts: [(&str, Part); 2] = [("p50", |q| q.p50), ("p99", |q| q.p99)];
    let mut results = Map::new();
    let mut each = json!({});
    for (which, (name, _)) in field.running.iter().enumerate() {
        for (part, of) in parts {
            each[*name][format!("{part}_us")] = round_to(whole(which, of), 0.1).into();
            if *name != DIRECT {
                each[*name][format!("added_{part}_us")] = round_to(added(which, of), 0.1).into();
            }
        }
    }
    results.insert("latency_at_5000_rps".to_owned(), each);
    for (part, of) in parts {
        let ours = added(1, of);
        results.insert(format!("added_{part}_us"), round_to(ours, 0.1).into());
        for (which, (name, _)) in field.running.iter().enumerate().skip(2) {
            let ratio = ours / added(which, of);
            let key = format!("added_{part}_ratio_vs_{name}");
            results.insert(key, round_to(ratio, 0.001).into());
        }
    }
    Ok(results)
}

/// Latency against rate; as a table on the terminal and, beside the results, as a table and a plot.
pub(crate) fn sweep(
    peers: &Peers,
    rounds: usize,
    file: Option<&Path>,
) -> Result<Map<String, Value>> {
    let field = Field::start(peers)?;
    let rounds = rounds.min(SWEEP_ROUNDS_MAX);
    let mut lines: Vec<Line> = field
        .running
        .iter()
        .map(|(name, _)| Line::new(name))
        .collect();
    for rate_hz in SWEEP_HZ {
        let taken: Vec<Vec<Quantiles>> = (0..rounds)
            .map(|round| field.round(round, rate_hz, SWEEP_SPAN))
            .collect::<Result<_>>()?;
        for (which, line) in lines.iter_mut().enumerate() {
            let of = |part: Part| {
                let all: Vec<f64> = taken.iter().map(|all| part(&all[which])).collect();
                round_to(median(&all).unwrap_or_default(), 0.1)
            };
            line.p50_us.push((rate_hz, of(|q| q.p50)));
            line.p99_us.push((rate_hz, of(|q| q.p99)));
        }
        println!("sweep: {rate_hz} requests a second");
    }
    let table = plot::table(&lines);
    println!("{table}");
    if let Some(file) = file {
        let beside = file.with_extension("latency.md");
        std::fs::write(&beside, &table).with_context(|| beside.display().to_string())?;
        plot::draw(&lines, &file.with_extension("latency.svg"))?;
    }
    let points = |points: &[(f64, f64)]| {
        let points = points.iter();
        points
            .map(|(rate_hz, us)| json!({"rate_hz": rate_hz, "us": us}))
            .collect::<Value>()
    };
    let lines = lines.iter().map(|line| {
        let value = json!({"p50": points(&line.p50_us), "p99": points(&line.p99_us)});
        (line.name.clone(), value)
    });
    Ok(Map::from_iter([(
        "latency_against_rate".to_owned(),
        Value::Object(lines.collect()),
    )]))
}
