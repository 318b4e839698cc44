//! What the demand forecaster costs, in the ways that criterion can't tell: each sample by itself, instructions for
//! callgrind, and many series with cold caches. `cargo xtask bench forecast` runs it and says what came out.
#![expect(
    clippy::print_stdout,
    reason = "a program speaks to the terminal; xtask reads `name value` lines"
)]

use std::hint::black_box;
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use sim_bench_forecast::{BITS, Demand, bits, warm};
use sim_core::forecast::demand::DemandForecaster;

/// Samples that are timed, and forecasts of all steps.
const SAMPLES: usize = 40_000;
const FORECASTS: usize = 4_000;
/// How often each of many series takes a sample: the median round is told.
const ROUNDS: usize = 5;
/// Series that are told apart; the others are copies in memory of their own.
const KINDS: u64 = 8;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["bits"] => same_bits(),
        ["times"] => {
            times();
            Ok(())
        }
        ["count", what, count] => counted(what, count.parse().context("COUNT")?),
        ["series", count] => many(count.parse().context("COUNT")?),
        _ => bail!("bits | times | count nothing|sample|forecast COUNT | series COUNT"),
    }
}

/// Fails where this build forecasts with other bits than those that are committed.
fn same_bits() -> Result<()> {
    let found = bits();
    println!("bits {found:#018x}");
    ensure!(found == BITS, "{found:#018x}, committed are {BITS:#018x}");
    Ok(())
}

/// All steps of the horizon.
fn forecast(forecaster: &DemandForecaster) {
    for step in 1..=forecaster.horizon() {
        black_box(forecaster.forecast(black_box(step)));
    }
}

fn times() {
    let (mut forecaster, demand) = warm(1);
    let mut samples: Vec<u64> = demand
        .take(SAMPLES)
        .map(|sample| {
            let begin = Instant::now();
            forecaster.observe(black_box(sample));
            nanoseconds(begin)
        })
        .collect();
    let mut forecasts: Vec<u64> = (0..FORECASTS)
        .map(|_| {
            let begin = Instant::now();
            forecast(&forecaster);
            nanoseconds(begin)
        })
        .collect();
    for (name, times) in [("sample", &mut samples), ("forecast", &mut forecasts)] {
        times.sort_unstable();
        for (part, suffix) in [(500, "median"), (990, "p99"), (999, "p999")] {
            println!(
                "{name}_ns_{suffix} {}",
                times[(times.len() - 1) * part / 1_000]
            );
        }
    }
    println!("steps {}", forecaster.horizon());
}

fn nanoseconds(begin: Instant) -> u64 {
    u64::try_from(begin.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

/// The same before, and so many samples or forecasts: two counts have a difference.
fn counted(what: &str, count: usize) -> Result<()> {
    let (mut forecaster, demand) = warm(1);
    match what {
        "nothing" => demand.take(count).for_each(|sample| {
            black_box(sample);
        }),
        "sample" => demand
            .take(count)
            .for_each(|sample| forecaster.observe(black_box(sample))),
        "forecast" => (0..count).for_each(|_| forecast(&forecaster)),
        _ => bail!("{what}: allowed: nothing, sample, forecast"),
    }
    black_box(&forecaster);
    Ok(())
}

/// Many series side by side, each of which takes one sample a round: nothing of it is in a cache by then.
fn many(count: usize) -> Result<()> {
    let before = resident()?;
    let kinds: Vec<(DemandForecaster, Demand)> = (0..KINDS).map(warm).collect();
    let each = (resident()?.saturating_sub(before)) / KINDS;
    let available = memory("MemAvailable")?;
    ensure!(
        each * count as u64 <= available / 10 * 9,
        "{count} series of {each} bytes need more than the {available} bytes that are free; take fewer"
    );
    let before = resident()?;
    let mut series: Vec<DemandForecaster> = Vec::with_capacity(count);
    for place in 0..count {
        series.push(kinds[place % kinds.len()].0.clone());
    }
    let after = resident()?;
    let mut demand = kinds
        .into_iter()
        .map(|(_, demand)| demand)
        .collect::<Vec<_>>();
    let mut rounds = Vec::new();
    for _ in 0..ROUNDS {
        let samples: Vec<Option<f64>> = demand.iter_mut().filter_map(Iterator::next).collect();
        let begin = Instant::now();
        for (place, forecaster) in series.iter_mut().enumerate() {
            forecaster.observe(black_box(samples[place % samples.len()]));
        }
        rounds.push(begin.elapsed().as_secs_f64());
    }
    rounds.sort_by(f64::total_cmp);
    println!("series {count}");
    println!(
        "bytes_a_series {}",
        after.saturating_sub(before) / count.max(1) as u64
    );
    println!("updates_a_second {:.0}", count as f64 / rounds[ROUNDS / 2]);
    println!(
        "ns_an_update {:.0}",
        1e9 * rounds[ROUNDS / 2] / count.max(1) as f64
    );
    Ok(())
}

/// Bytes of this process in memory.
fn resident() -> Result<u64> {
    field("/proc/self/status", "VmRSS")
}

fn memory(name: &str) -> Result<u64> {
    field("/proc/meminfo", name)
}

fn field(file: &str, name: &str) -> Result<u64> {
    let text = std::fs::read_to_string(file).context(file.to_owned())?;
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|line| line.trim_matches([':', ' ', '\t']).split(' ').next());
    let kib: u64 = number
        .with_context(|| format!("{file}: no {name}"))?
        .parse()?;
    Ok(kib * 1_024)
}
