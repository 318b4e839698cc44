//! The death flag: what a read costs, and how long after a signal another CPU sees it.

use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::signal::{Signal, kill};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;
use serde_json::{Value, json};
use sim_ebpf::{LifeFlags, Probes};
use sim_tests::world::process::{Guarded, Placement};

use crate::cage::Cage;
use crate::settings::Settings;
use bench::{median, quantile, round_to};

/// Reads of one measurement of their cost.
const READS: u64 = 1_000_000;
/// Measurements of each round, in turn with as many of the loop alone: what disturbs some of them doesn't
/// move their median.
const TURNS: u64 = 50;
/// Processes killed in each round.
const KILLS: u64 = 100;
/// Times that one process is stopped and continued in each round.
const STOPS: u64 = 500;
const PATIENCE: Duration = Duration::from_secs(5);

pub(crate) fn measure(settings: &Settings) -> Result<Value> {
    // A thread of its own, for what is pinned stays so.
    let pinned = || {
        pin(0)?;
        measure_here(settings)
    };
    std::thread::scope(|threads| threads.spawn(pinned).join())
        .map_err(|_| anyhow::anyhow!("the measurement panicked"))?
}

fn measure_here(settings: &Settings) -> Result<Value> {
    let cage = Cage::new("flag")?;
    let mut probes = Probes::load(&settings.probes())?;
    let mut next = 1_u64;
    let (mut reads, mut stops, mut kills) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..settings.rounds {
        let flags = LifeFlags::from_descriptor(probes.life_descriptor()?)?;
        reads.push(read_ns(&flags));
        let process = idle(&cage)?;
        watch(&mut probes, next, &process, &cage)?;
        for _ in 0..STOPS {
            stops.push(signal_to_flag(&flags, next, &process, Signal::SIGSTOP)?);
            kill(process.pid(), Signal::SIGCONT)?;
            ensure!(!flags.is_down(next), "continued, and yet down");
        }
        probes.unwatch(next);
        drop(process);
        next += 1;
        for _ in 0..KILLS {
            let process = idle(&cage)?;
            watch(&mut probes, next, &process, &cage)?;
            kills.push(signal_to_flag(&flags, next, &process, Signal::SIGKILL)?);
            probes.unwatch(next);
            next += 1;
        }
        println!("flag: round {} of {}", round + 1, settings.rounds);
    }
    let seen = |mut all: Vec<f64>| {
        all.sort_by(f64::total_cmp);
        let at = |q| quantile(&all, q).map(|ns| round_to(ns / 1e3, 0.1));
        json!({ "count": all.len(), "p50_us": at(0.5), "p99_us": at(0.99), "max_us": at(1.0) })
    };
    Ok(json!({
        "read_net_ns": median(&reads).map(|ns| round_to(ns, 0.01)),
        "sigkill_to_flag_seen": seen(kills),
        "sigstop_to_flag_seen": seen(stops),
    }))
}

fn watch(probes: &mut Probes, instance: u64, process: &Guarded, cage: &Cage) -> Result<()> {
    let pid = process.pid().as_raw().cast_unsigned();
    Ok(probes.watch(instance, pid, Some(cage.id()))?)
}

/// Nanoseconds per read, beside the same loop that only counts.
fn read_ns(flags: &LifeFlags) -> f64 {
    let time = |is_down: &dyn Fn() -> u64| {
        let begin = Instant::now();
        std::hint::black_box(is_down());
        begin.elapsed().as_nanos() as f64 / READS as f64
    };
    let turn = |_| {
        let alone = time(&|| {
            (0..READS / 8)
                .map(|i| eight(i, |one| one == u64::MAX))
                .sum()
        });
        let reading = time(&|| {
            (0..READS / 8)
                .map(|i| eight(i, |one| flags.is_down(one)))
                .sum()
        });
        reading - alone
    };
    let turns: Vec<f64> = (0..TURNS).map(turn).collect();
    median(&turns).unwrap_or(f64::NAN)
}

/// How many of eight instances in a row are down. Eight at a time, or the loop around a read would be as dear as the
/// read, and move with its place in memory.
#[inline(always)]
fn eight(first: u64, is_down: impl Fn(u64) -> bool) -> u64 {
    let first = std::hint::black_box(first);
    (0..8)
        .filter(|&one| is_down(first.wrapping_add(one)))
        .count() as u64
}

/// Nanoseconds from before `kill(2)` here until a reader on the other CPU has seen the flag.
fn signal_to_flag(
    flags: &LifeFlags,
    instance: u64,
    process: &Guarded,
    signal: Signal,
) -> Result<f64> {
    let ready = AtomicBool::new(false);
    std::thread::scope(|threads| {
        let reader = threads.spawn(|| -> Result<u64> {
            pin(1)?;
            // Release, paired with the Acquire below: who sees it knows that the reader looks.
            ready.store(true, Ordering::Release);
            let deadline = Instant::now() + PATIENCE;
            let mut looks = 0_u32;
            while !flags.is_down(instance) {
                looks = looks.wrapping_add(1);
                ensure!(
                    !looks.is_multiple_of(1024) || Instant::now() < deadline,
                    "the flag isn't seen"
                );
            }
            monotonic_ns()
        });
        let deadline = Instant::now() + PATIENCE;
        while !ready.load(Ordering::Acquire) {
            ensure!(Instant::now() < deadline, "the reader isn't ready");
            std::thread::yield_now();
        }
        let before = monotonic_ns()?;
        kill(process.pid(), signal)?;
        let seen = reader
            .join()
            .map_err(|_| anyhow::anyhow!("the reader panicked"))??;
        Ok(seen.saturating_sub(before) as f64)
    })
}

fn idle(cage: &Cage) -> Result<Guarded> {
    let mut command = Command::new("sleep");
    command.arg("1000").stdin(Stdio::null());
    let placement = Placement {
        netns: None,
        cgroups: cage.procs()?,
    };
    Guarded::spawn("sleep", command, placement, Signal::SIGKILL, PATIENCE).context("sleep")
}

fn pin(cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &set)?)
}

fn monotonic_ns() -> Result<u64> {
    let now = Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC)?);
    Ok(u64::try_from(now.as_nanos())?)
}
