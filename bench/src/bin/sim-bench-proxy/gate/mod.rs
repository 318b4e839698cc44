//! The gate of a CI: is one `sim` slower than another? Both run as a whole, side by side, under the same configuration.
//!
//! A round starts both anew, since where a program's memory lies when it starts can cost more than a change of its code.
//! Then both are asked in short turns that begin with either by a toss, at a rate that they carry easily, by an open
//! loop. Each round gives three ratios: CPU time of the proxy a request, and two quantiles of latency as users see it.
//! `bench::compare` judges them.

mod prove;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bench::compare::{Figure, Judgement, LOOKS, Verdict, judge, overall};
use bench::open_loop::Plan;
use bench::{median, quantile, round_to};
use rand::{RngExt as _, SeedableRng as _};
use rand_pcg::Pcg64;
use serde_json::{Map, Value, json};

use crate::contender::Running;
use crate::processes::OTHER_CPU;
use crate::sim::Setting;

/// One turn: short, so that whatever else the machine does hits both.
const TURN: Duration = Duration::from_millis(200);
const WARM: Duration = Duration::from_millis(50);
/// Opened at each turn, which costs the proxy too.
const CONNECTIONS: usize = 16;
/// Whose turn it is; a toss may swap them. Drifts of the machine drop out, also those that bend.
const TURNS: [usize; 8] = [0, 1, 1, 0, 1, 0, 0, 1];
/// So often in a round.
const REPEATED: usize = 3;

const FIGURES: [Figure; 3] = [
    Figure {
        name: "cpu_per_request",
        ignored: 0.02,
        unwanted: 0.05,
    },
    Figure {
        name: "latency_p50",
        ignored: 0.02,
        unwanted: 0.05,
    },
    // It scatters more, and so small differences of it mean nothing.
    Figure {
        name: "latency_p99",
        ignored: 0.1,
        unwanted: 0.25,
    },
];

/// What was found is bad usage or couldn't be measured: no verdict on the candidate.
const EXIT_USAGE: u8 = 2;
const EXIT_UNMEASURED: u8 = 3;

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The `sim` that is known to be good
    #[arg(long, value_name = "BIN", required_unless_present = "prove")]
    baseline: Option<PathBuf>,
    /// The `sim` to judge; without it, what is built from this tree
    #[arg(long, value_name = "BIN")]
    candidate: Option<PathBuf>,
    /// Run both with this configuration; without it, with a workload that answers 96 bytes
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// But the baseline with this one
    #[arg(long, value_name = "FILE", requires = "config")]
    baseline_config: Option<PathBuf>,
    /// What is asked for
    #[arg(long, default_value = "/")]
    path: String,
    /// Requests a second; what the workload carries at less than half of its capacity
    #[arg(long, default_value_t = 5_000.0, value_parser = rate)]
    rate: f64,
    /// Write the results here
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Prove the gate itself: so many comparisons of one with itself, and as many with a planted slowdown
    #[arg(long, value_name = "N", num_args = 0..=1, default_missing_value = "20")]
    prove: Option<usize>,
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if (10.0..=100_000.0).contains(&rate) => Ok(rate),
        _ => Err("10 to 100000 requests a second".to_owned()),
    }
}

/// Runs it; the exit code is the verdict: 0 fine, 1 regressed, 2 bad usage, 3 not to be measured.
pub(crate) fn run(arguments: &Arguments) -> ExitCode {
    if let Err(error) = check(arguments) {
        eprintln!("bench: {error:#}");
        return EXIT_USAGE.into();
    }
    let result = match arguments.prove {
        Some(count) => prove::run(arguments, count),
        None => gate(arguments),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("bench: not measured: {error:#}");
            EXIT_UNMEASURED.into()
        }
    }
}

/// All that can be wrong with what was typed.
fn check(arguments: &Arguments) -> Result<()> {
    for program in [&arguments.baseline, &arguments.candidate] {
        let Some(program) = program else { continue };
        let shown = std::process::Command::new(program)
            .arg("--version")
            .output();
        let good =
            shown.is_ok_and(|output| output.status.success() && output.stdout.starts_with(b"sim "));
        ensure!(good, "{}: not a program `sim` that runs", program.display());
    }
    for file in [&arguments.config, &arguments.baseline_config] {
        let Some(file) = file else { continue };
        let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
        let parsed: Result<toml::Table, _> = text.parse();
        parsed.with_context(|| file.display().to_string())?;
    }
    ensure!(
        arguments.path.starts_with('/'),
        "--path {}: has to begin with `/`",
        arguments.path
    );
    Ok(())
}

/// What is loaded, and how.
struct Load<'a> {
    path: &'a str,
    rate_hz: f64,
}

/// Of one of the two in one round.
#[derive(Clone, Copy, Debug)]
struct Side {
    /// In the order of the figures: nanoseconds, microseconds.
    figures: [f64; FIGURES.len()],
    failed: usize,
}

/// Rounds, each with the baseline's side and the candidate's.
type Rounds = Vec<[Side; 2]>;

fn gate(arguments: &Arguments) -> Result<bool> {
    let own = Setting::own()?;
    let setting = |program: &Option<PathBuf>, config: &Option<PathBuf>| Setting {
        program: program.clone().unwrap_or_else(|| own.program.clone()),
        config: config.clone(),
        ..own.clone()
    };
    let baseline_config = arguments
        .baseline_config
        .as_ref()
        .or(arguments.config.as_ref());
    let settings = [
        setting(&arguments.baseline, &baseline_config.cloned()),
        setting(&arguments.candidate, &arguments.config),
    ];
    let load = Load {
        path: &arguments.path,
        rate_hz: arguments.rate,
    };
    let mut random = Pcg64::seed_from_u64(rand_seed());
    let (rounds, judgements, verdict) = compare(&settings, &load, &mut random)?;
    let (results, failed) = describe(&rounds, &judgements, verdict);
    let versions = json!({
        "baseline": settings[0].version(),
        "candidate": settings[1].version(),
    });
    bench::report(&versions, rounds.len(), &results, arguments.json.as_deref())?;
    ensure!(
        failed[0] == 0,
        "{} requests to the baseline failed",
        failed[0]
    );
    Ok(passes(verdict, failed))
}

/// True if the candidate is as good as the baseline, by what is proven and by what failed of as many requests.
fn passes(verdict: Verdict, failed: [usize; 2]) -> bool {
    verdict != Verdict::Regressed && (failed[1] == 0 || failed[0] > 0)
}

/// Which of two comes first shall not be the same in every run of a CI.
fn rand_seed() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |now| now.as_nanos() as u64)
}

/// Rounds until there is a verdict, or no more of them.
fn compare(
    settings: &[Setting; 2],
    load: &Load<'_>,
    random: &mut Pcg64,
) -> Result<(Rounds, Vec<Judgement>, Verdict)> {
    let (mut rounds, mut judgements, mut verdict) = (Vec::new(), Vec::new(), Verdict::Open);
    for look in LOOKS {
        while rounds.len() < look {
            let sides = round(settings, load, random)?;
            say(rounds.len() + 1, &sides);
            rounds.push(sides);
        }
        judgements = judged(&rounds);
        verdict = overall(&judgements);
        println!("gate: after {look} rounds: {}", verdict.name());
        for (figure, found) in FIGURES.iter().zip(&judgements) {
            let said = found.verdict.name();
            println!("  {}: x {:.3}, {said}", figure.name, found.ratio);
        }
        if verdict != Verdict::Open {
            break;
        }
    }
    Ok((rounds, judgements, verdict))
}

fn say(number: usize, [baseline, candidate]: &[Side; 2]) {
    let ratio = |which: usize| candidate.figures[which] / baseline.figures[which];
    let ratios = FIGURES.iter().enumerate();
    let ratios = ratios.map(|(which, figure)| format!("{} x {:.3}", figure.name, ratio(which)));
    println!(
        "gate: round {number}: {}",
        ratios.collect::<Vec<_>>().join(", ")
    );
}

fn judged(rounds: &[[Side; 2]]) -> Vec<Judgement> {
    let figures = FIGURES.iter().enumerate();
    figures
        .map(|(which, figure)| {
            let logs = rounds.iter().map(|[baseline, candidate]| {
                (candidate.figures[which] / baseline.figures[which]).ln()
            });
            judge(figure, FIGURES.len(), &logs.collect::<Vec<_>>())
        })
        .collect()
}

fn round(settings: &[Setting; 2], load: &Load<'_>, random: &mut Pcg64) -> Result<[Side; 2]> {
    let swapped = usize::from(random.random::<bool>());
    // Who is started first is by the toss too.
    let mut started = [None, None];
    for step in [0, 1] {
        let which = step ^ swapped;
        started[which] = Some(Running::begin_sim(&settings[which])?);
    }
    let [Some(baseline), Some(candidate)] = started else {
        unreachable!("both were started");
    };
    let running = [baseline.settled(load.path)?, candidate.settled(load.path)?];
    let mut latencies_us = [Vec::new(), Vec::new()];
    let (mut cpu_ns, mut sent, mut failed) = ([0; 2], [0; 2], [0; 2]);
    for turn in [TURNS; REPEATED].concat() {
        let which = turn ^ swapped;
        let plan = Plan {
            warm: WARM,
            connections: CONNECTIONS,
            seed: random.random(),
            cpu: Some(OTHER_CPU),
            ..Plan::get(running[which].address, load.path, load.rate_hz, TURN)
        };
        let before = running[which].cpu_ns()?;
        let taken = plan.run()?;
        cpu_ns[which] += running[which].cpu_ns()?.saturating_sub(before);
        sent[which] += taken.sent;
        failed[which] += taken.failed();
        latencies_us[which].extend(taken.latencies_us());
    }
    // What they end with is nobody's turn.
    drop(running);
    let side = |which: usize| -> Result<Side> {
        let mut sorted = latencies_us[which].clone();
        sorted.sort_by(f64::total_cmp);
        let at = |q| quantile(&sorted, q).context("no request");
        let cost = cpu_ns[which] as f64 / sent[which].max(1) as f64;
        ensure!(cost > 0.0, "the kernel accounts no CPU time to the proxy");
        Ok(Side {
            figures: [cost, at(0.5)?, at(0.99)?],
            failed: failed[which],
        })
    };
    Ok([side(0)?, side(1)?])
}

/// The results, and how many requests of each side failed.
fn describe(
    rounds: &[[Side; 2]],
    judgements: &[Judgement],
    verdict: Verdict,
) -> (Value, [usize; 2]) {
    let failed = [0, 1].map(|side| rounds.iter().map(|round| round[side].failed).sum::<usize>());
    let mut results = Map::new();
    let said = if passes(Verdict::Open, failed) {
        verdict.name()
    } else {
        "requests failed"
    };
    results.insert("verdict".to_owned(), said.into());
    results.insert("failed_baseline".to_owned(), failed[0].into());
    results.insert("failed_candidate".to_owned(), failed[1].into());
    for (which, (figure, found)) in FIGURES.iter().zip(judgements).enumerate() {
        let middle = |side: usize| {
            let all = rounds.iter().map(|round| round[side].figures[which]);
            round_to(median(&all.collect::<Vec<_>>()).unwrap_or_default(), 0.1)
        };
        let of_round = |[baseline, candidate]: &[Side; 2]| {
            round_to(candidate.figures[which] / baseline.figures[which], 0.000_1)
        };
        let value = json!({
            "ratio": round_to(found.ratio, 0.000_1),
            "verdict": found.verdict.name(),
            "p_regressed": found.p_regressed,
            "p_unwanted": found.p_unwanted,
            "ignored": figure.ignored,
            "unwanted": figure.unwanted,
            "unit": if which == 0 { "ns" } else { "us" },
            "baseline": middle(0),
            "candidate": middle(1),
            "ratios": rounds.iter().map(of_round).collect::<Vec<_>>(),
        });
        results.insert(figure.name.to_owned(), value);
    }
    (Value::Object(results), failed)
}

/// Where a library of this build is: beside its programs.
fn library(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let file = own.with_file_name(format!("lib{name}.so"));
    ensure!(
        Path::is_file(&file),
        "no {}; `cargo xtask bench proxy --ci --prove` builds it",
        file.display()
    );
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Eight rounds in which the candidate's figures are the baseline's by these factors.
    fn rounds(factors: [f64; 3], failed: usize) -> Rounds {
        let side = |number: u32, factors: [f64; 3], failed| Side {
            figures: factors.map(|factor| factor * (100.0 + f64::from(number))),
            failed,
        };
        let each = (0..8).map(|number| {
            let wobble = 1.0 + 0.001 * f64::from(number);
            let factors = factors.map(|factor| factor * wobble);
            [side(number, [1.0; 3], 0), side(number, factors, failed)]
        });
        each.collect()
    }

    /// What is written as the verdict, and whether the gate lets it pass.
    fn outcome(rounds: &Rounds) -> (String, bool) {
        let judgements = judged(rounds);
        let verdict = overall(&judgements);
        let (results, failed) = describe(rounds, &judgements, verdict);
        let said = results["verdict"].as_str().unwrap_or_default().to_owned();
        (said, passes(verdict, failed))
    }

    #[test]
    fn one_figure_that_rose_is_enough_and_a_small_rise_is_none() {
        let fine = ("fine".to_owned(), true);
        assert_eq!(outcome(&rounds([1.0, 1.0, 1.0], 0)), fine);
        assert_eq!(outcome(&rounds([0.9, 1.01, 1.05], 0)), fine);
        let regressed = ("regressed".to_owned(), false);
        assert_eq!(outcome(&rounds([1.05, 1.0, 1.0], 0)), regressed);
        assert_eq!(outcome(&rounds([1.0, 1.05, 1.0], 0)), regressed);
        assert_eq!(outcome(&rounds([1.0, 1.0, 1.3], 0)), regressed);
    }

    #[test]
    fn a_candidate_that_fails_requests_does_not_pass_however_quick_it_is() {
        let quick = rounds([0.5, 0.5, 0.5], 1);
        assert_eq!(outcome(&quick), ("requests failed".to_owned(), false));
    }
}
