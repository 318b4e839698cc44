//! Nanoseconds per switch and per wakeup: ours and theirs, in turn, in one run.
//!
//! The work is two threads on one CPU that wake each other by pipes: each round is two switches and
//! two wakeups, all of tracked tasks, so no run is cut short because the task is idle or a stranger.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde_json::{Map, Value, json};
use sim_tests::world::process::{Guarded, Placement};

use crate::cage::Cage;
use crate::counter::Counter;
use crate::peers::Tool;
use crate::settings::Settings;
use crate::spent::{self, Spent};
use bench::peers::Peers;
use bench::{median, round_to};

/// Rounds of the ping-pong of one measurement.
const PING_PONGS: u32 = 200_000;

/// Share of a CPU that is left to the work under [`Pressure::Quota`].
const QUOTA_CPUS: f64 = 0.2;

/// What one counter took in one round.
#[derive(Clone, Copy, Debug, Default)]
struct Taken {
    switch_ns: Option<f64>,
    wakeup_ns: Option<f64>,
    work_ns: f64,
    /// Of the switches of the work, those that end a wait of 131 µs or more, and one for want of quota; ours
    /// alone says.
    waits_share: f64,
    throttled_share: f64,
}

/// The figures, and what one run of an empty program reads.
pub(crate) fn measure(settings: &Settings, peers: &Peers) -> Result<(Value, f64)> {
    let cage = Cage::new("switches")?;
    let mut counters = vec![Counter::Nobody, Counter::Empty, Counter::Sim];
    counters.extend(Tool::ALL.map(Counter::Tool));
    let mut taken = vec![Vec::new(); counters.len()];
    for round in 0..settings.rounds {
        // In turn, and from another one each time: a slow minute hits all alike.
        for step in 0..counters.len() {
            let which = (round + step) % counters.len();
            let one = run(settings, peers, &cage, counters[which])
                .with_context(|| counters[which].name())?;
            taken[which].push(one);
        }
        println!("switches: round {} of {}", round + 1, settings.rounds);
    }
    let of = |which: usize, field: fn(&Taken) -> Option<f64>| {
        let values: Vec<f64> = taken[which].iter().filter_map(field).collect();
        median(&values)
    };
    let empty = counters.iter().position(|c| *c == Counter::Empty);
    let empty = empty.context("no empty program")?;
    let nothing = |field| of(empty, field).context("the empty program never ran");
    let (empty_switch, empty_wakeup) = (nothing(|t| t.switch_ns)?, nothing(|t| t.wakeup_ns)?);
    let idle = of(0, |t| Some(t.work_ns)).context("no round")?;
    let mut results = Map::new();
    for (which, counter) in counters.iter().enumerate() {
        let work = of(which, |t| Some(t.work_ns)).unwrap_or_default();
        let net = |gross: Option<f64>, empty: f64| gross.map(|ns| round_to(ns - empty, 1.0));
        let (switch, wakeup) = (of(which, |t| t.switch_ns), of(which, |t| t.wakeup_ns));
        let (switch_net, wakeup_net) = (net(switch, empty_switch), net(wakeup, empty_wakeup));
        results.insert(
            counter.name().to_owned(),
            json!({
                "switch_gross_ns": switch.map(|ns| round_to(ns, 1.0)),
                "wakeup_gross_ns": wakeup.map(|ns| round_to(ns, 1.0)),
                "switch_net_ns": switch_net,
                "wakeup_net_ns": wakeup_net,
                "switch_and_wakeup_net_ns": switch_net.map(|s| s + wakeup_net.unwrap_or(0.0)),
                "round_ratio": round_to(work / idle, 0.001),
                "switch_gross_ns_rounds":
                    taken[which].iter().filter_map(|t| t.switch_ns).map(|ns| round_to(ns, 1.0)).collect::<Vec<_>>(),
            }),
        );
    }
    let empty_ns = f64::midpoint(empty_switch, empty_wakeup);
    Ok((Value::Object(results), empty_ns))
}

/// What makes the work wait, and SIM look for the reason.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pressure {
    /// A stranger who wants the same CPU all the time.
    Rival,
    /// A quota of a fifth of the CPU.
    Quota,
}

/// Ours alone, where tasks wait: neighbours are looked up, or waits for want of quota told apart.
pub(crate) fn under_pressure(settings: &Settings, peers: &Peers) -> Result<Value> {
    let mut results = Map::new();
    for (name, pressure) in [("rival", Pressure::Rival), ("quota", Pressure::Quota)] {
        let cage = Cage::new(name)?;
        let strangers = Cage::new("strangers")?;
        let mut rival = None;
        match pressure {
            Pressure::Rival => rival = Some(child("spin", &strangers)?),
            Pressure::Quota => cage.hold_to(QUOTA_CPUS)?,
        }
        let (mut empty, mut ours) = (Vec::new(), Vec::new());
        for round in 0..settings.rounds {
            let mut turns = [(Counter::Empty, &mut empty), (Counter::Sim, &mut ours)];
            if round % 2 == 1 {
                turns.reverse();
            }
            for (counter, taken) in turns {
                taken.push(run(settings, peers, &cage, counter)?);
            }
            println!("{name}: round {} of {}", round + 1, settings.rounds);
        }
        drop(rival);
        let net = |field: fn(&Taken) -> Option<f64>| {
            let of = |taken: &[Taken]| median(&taken.iter().filter_map(field).collect::<Vec<_>>());
            Some(round_to(of(&ours)? - of(&empty)?, 1.0))
        };
        let share = |field: fn(&Taken) -> f64| {
            let shares: Vec<f64> = ours.iter().map(field).collect();
            median(&shares).map(|share| round_to(share * 100.0, 0.01))
        };
        results.insert(
            name.to_owned(),
            json!({
                "switch_net_ns": net(|t| t.switch_ns),
                "wakeup_net_ns": net(|t| t.wakeup_ns),
                "switches_after_a_long_wait_percent": share(|t| t.waits_share),
                "switches_after_a_throttled_wait_percent": share(|t| t.throttled_share),
            }),
        );
    }
    Ok(Value::Object(results))
}

fn run(settings: &Settings, peers: &Peers, cage: &Cage, counter: Counter) -> Result<Taken> {
    let running = counter.start(settings, peers, cage)?;
    let before = running.spent()?;
    let work_ns = work(cage)?;
    let spent = spent::between(&before, &running.spent()?);
    let (switch, wakeup) = switch_and_wakeup(spent);
    let waits = running.waits_shares(cage);
    let each = |spent: Spent| spent.run_ns as f64 / spent.run_count as f64;
    Ok(Taken {
        switch_ns: switch.map(each),
        wakeup_ns: wakeup.map(each),
        work_ns,
        waits_share: waits.0,
        throttled_share: waits.1,
    })
}

/// The programs of the two tracepoints. Not all say in their names where they are attached: they are the
/// two that ran each round, and the switch takes more.
fn switch_and_wakeup(mut programs: Vec<Spent>) -> (Option<Spent>, Option<Spent>) {
    programs.retain(|one| one.run_count >= u64::from(PING_PONGS));
    let named = |part: &str| programs.iter().find(|one| one.name.contains(part)).cloned();
    if let (Some(switch), wakeup) = (named("switch"), named("wakeup")) {
        return (Some(switch), wakeup);
    }
    programs.sort_by_key(|one| std::cmp::Reverse((one.run_ns, one.size)));
    let mut dearest = programs.into_iter();
    (dearest.next(), dearest.next())
}

/// One ping-pong in the cage; nanoseconds per round.
fn work(cage: &Cage) -> Result<f64> {
    let mut child = child("ping-pong", cage)?;
    let stdout = child.stdout().context("output of the ping-pong")?;
    let mut line = String::new();
    BufReader::new(stdout).read_line(&mut line)?;
    let ns: f64 = line.trim().parse().context("what the ping-pong says")?;
    Ok(ns / f64::from(PING_PONGS))
}

/// This program again, in a role and in a cage.
fn child(role: &'static str, cage: &Cage) -> Result<Guarded> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg(role);
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let placement = Placement {
        netns: None,
        cgroups: cage.procs()?,
    };
    let grace = Duration::from_secs(5);
    Ok(Guarded::spawn(
        role,
        command,
        placement,
        Signal::SIGTERM,
        grace,
    )?)
}

/// What the rival does until it is ended.
pub(crate) fn spin() -> Result<()> {
    pin()?;
    let mut x = 1_u64;
    loop {
        x = std::hint::black_box(x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
    }
}

/// What the child does: prints how many nanoseconds it took.
pub(crate) fn ping_pong() -> Result<()> {
    let (mut there_in, mut there_out) = std::io::pipe()?;
    let (mut back_in, mut back_out) = std::io::pipe()?;
    let echo = std::thread::spawn(move || -> Result<()> {
        pin()?;
        let mut byte = [0];
        for _ in 0..PING_PONGS {
            there_in.read_exact(&mut byte)?;
            back_out.write_all(&byte)?;
        }
        Ok(())
    });
    pin()?;
    let begin = Instant::now();
    let mut byte = [0];
    for _ in 0..PING_PONGS {
        there_out.write_all(&byte)?;
        back_in.read_exact(&mut byte)?;
    }
    println!("{}", begin.elapsed().as_nanos());
    echo.join()
        .map_err(|_| anyhow::anyhow!("the echo panicked"))?
}

fn pin() -> Result<()> {
    let mut set = CpuSet::new();
    set.set(0)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &set)?)
}
