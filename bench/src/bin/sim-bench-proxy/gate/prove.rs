//! Does the gate keep its word? Comparisons of one `sim` with itself, which shall be silent, and with itself slowed down
//! by a twentieth, which shall be found.
//!
//! The slowdown is a library that is loaded before the C library into the proxy and spins at each `send`. It is there on
//! both sides: the baseline's spins for no time.

use anyhow::{Context as _, Result, ensure};
use bench::compare::{LOOKS, Verdict, overall};
use bench::{median, round_to};
use rand::{RngExt as _, SeedableRng as _};
use rand_pcg::Pcg64;
use serde_json::json;

use super::{Arguments, FIGURES, Load, Rounds, compare, judged, library, rand_seed, round};
use crate::sim::Setting;

/// Of the proxy's CPU time a request.
const SLOWDOWN: f64 = 0.05;
/// A request is sent on once, and its answer once.
const SENDS: f64 = 2.0;
/// Comparisons drawn from the rounds of all, with replacement: the rates to more digits than the real ones give.
const RESAMPLED: usize = 5_000;

/// True if no more than one in twenty alarms, and no less than nineteen in twenty find.
pub(super) fn run(arguments: &Arguments, count: usize) -> Result<bool> {
    ensure!(count > 0, "--prove 0 proves nothing");
    let library = library("sim_planted")?;
    let spinning = |ns: f64| -> Result<Setting> {
        let own = Setting::own()?;
        Ok(Setting {
            program: arguments.candidate.clone().unwrap_or(own.program),
            config: arguments.config.clone(),
            grpc: false,
            planted: Some((library.clone(), ns.round() as u64)),
        })
    };
    let load = Load {
        path: &arguments.path,
        rate_hz: arguments.rate,
    };
    let mut random = Pcg64::seed_from_u64(rand_seed());
    let base = spinning(0.0)?;
    let pair = [base.clone(), base.clone()];
    let mut costs = Vec::new();
    for _ in 0..3 {
        let sides = round(&pair, &load, &mut random)?;
        costs.extend(sides.map(|side| side.figures[0]));
    }
    let cost_ns = median(&costs).context("no round")?;
    let spin_ns = SLOWDOWN * cost_ns / SENDS;
    println!("prove: a request costs {cost_ns:.0} ns; planted are {spin_ns:.0} ns at each send");
    let planted = [base, spinning(spin_ns)?];
    let (mut same_rounds, mut slow_rounds): (Rounds, Rounds) = (Vec::new(), Vec::new());
    let (mut alarms, mut found) = (0, 0);
    for number in 1..=count {
        // In turn, so that a bad hour hits both kinds.
        let (rounds, _, verdict) = compare(&pair, &load, &mut random)?;
        alarms += usize::from(verdict == Verdict::Regressed);
        same_rounds.extend(rounds);
        let (rounds, _, verdict) = compare(&planted, &load, &mut random)?;
        found += usize::from(verdict == Verdict::Regressed);
        slow_rounds.extend(rounds);
        println!("prove: of {number} each: {alarms} false alarms, {found} planted ones found");
    }
    let figure = |rounds: &Rounds| {
        let all = judged(rounds);
        FIGURES
            .iter()
            .zip(all)
            .map(|(figure, found)| (figure.name, round_to(found.ratio, 0.000_1)))
            .map(|(name, ratio)| (name.to_owned(), ratio.into()))
            .collect::<serde_json::Map<_, _>>()
    };
    let results = json!({
        "comparisons_of_each": count,
        "false_alarms": alarms,
        "planted_found": found,
        "planted_ns_each_send": spin_ns.round(),
        "false_alarms_share_resampled": resampled(&same_rounds, &mut random),
        "planted_found_share_resampled": resampled(&slow_rounds, &mut random),
        "ratios_of_the_same": figure(&same_rounds),
        "ratios_of_planted": figure(&slow_rounds),
        "rounds_of_the_same": same_rounds.len(),
        "rounds_of_planted": slow_rounds.len(),
    });
    let versions = json!({ "sim": pair[0].version() });
    let file = arguments.json.as_deref();
    bench::report(
        &versions,
        same_rounds.len() + slow_rounds.len(),
        &results,
        file,
    )?;
    Ok(20 * alarms <= count && 20 * found >= 19 * count)
}

/// Share of alarms among comparisons whose rounds are drawn from `all`.
fn resampled(all: &Rounds, random: &mut Pcg64) -> f64 {
    let alarms = (0..RESAMPLED).filter(|_| {
        let mut rounds = Rounds::new();
        for look in LOOKS {
            while rounds.len() < look {
                rounds.push(all[random.random_range(0..all.len())]);
            }
            match overall(&judged(&rounds)) {
                Verdict::Open => {}
                verdict => return verdict == Verdict::Regressed,
            }
        }
        false
    });
    round_to(alarms.count() as f64 / RESAMPLED as f64, 0.000_1)
}
