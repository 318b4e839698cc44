//! `cargo xtask ci`: what a change must pass, in the order in which it fails fastest.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::build::Profile;
use crate::context::Context;
use crate::progress::seconds;
use crate::{bench, demo, fuzz, process, soak, test, tidy};

/// The flat control and one run of the main job for each of two seeds.
const DEMOS: [&[&str]; 3] = [
    &["--headless", "--seed", "1"],
    &["--headless", "--seed", "2"],
    &["--headless", "--seed", "3", "--flat"],
];
const KERNEL_SIDE: &str = "sim-ebpf/programs/Cargo.toml";
/// A demo takes four minutes at most; twice that is a hang.
const DEMO_LIMIT: Duration = Duration::from_secs(8 * 60);
/// The demo's exit code for a tail that was broken by a machine that became slower, and nothing else.
const EXIT_MACHINE: i32 = 3;
/// For the demo to take down its servers.
const DEMO_GRACE: Duration = Duration::from_secs(30);

pub(crate) fn run(context: &Context) -> Result<()> {
    let begin = Instant::now();
    let mut times = Vec::new();
    step(&mut times, "fmt", || {
        process::run(context.cargo().args(["fmt", "--all", "--check"]))?;
        // The kernel side is a workspace of its own.
        process::run(
            context
                .cargo()
                .args(["fmt", "--check", "--manifest-path", KERNEL_SIDE]),
        )
    })?;
    step(&mut times, "tidy", || tidy::run(context))?;
    step(&mut times, "clippy", || {
        let mut clippy = context.cargo();
        clippy.args([
            "clippy",
            "--workspace",
            "--all-targets",
            "--",
            "-D",
            "warnings",
        ]);
        process::run(&mut clippy)
    })?;
    let prepared = step(&mut times, "test", || test::run_prepared(context, &[]))?;
    step(&mut times, "bench smoke", || bench::smoke(context))?;
    step(&mut times, "bench instructions", || {
        bench::instructions::run(context, &Default::default())
    })?;
    step(&mut times, "bench forecast", || {
        bench::forecast::gate(context)
    })?;
    step(&mut times, "soak", || soak::smoke(context))?;
    step(&mut times, "fuzz", || fuzz::smoke(context))?;
    for arguments in DEMOS {
        step(&mut times, &format!("demo {}", arguments.join(" ")), || {
            let mut demo = demo::command(context, &prepared, Profile::Dev, arguments);
            let status = process::run_within(&mut demo, DEMO_LIMIT, DEMO_GRACE)?;
            if status.code() != Some(EXIT_MACHINE) {
                return process::success(status, &demo);
            }
            println!(
                "ci: the machine became so slow during the move that the primary was full: the tail is \
                 measured in a second run"
            );
            let status = process::run_within(&mut demo, DEMO_LIMIT, DEMO_GRACE)?;
            process::success(status, &demo)
        })?;
    }
    for (name, elapsed) in &times {
        println!("ci: {name} … ok {}", seconds(*elapsed));
    }
    println!("ci: all of it in {}", seconds(begin.elapsed()));
    Ok(())
}

fn step<T>(
    times: &mut Vec<(String, Duration)>,
    name: &str,
    work: impl FnOnce() -> Result<T>,
) -> Result<T> {
    println!("ci: {name}");
    let begin = Instant::now();
    let value = work();
    let elapsed = begin.elapsed();
    let verdict = if value.is_ok() { "ok" } else { "FAILED" };
    println!("ci: {name} … {verdict} {}", seconds(elapsed));
    times.push((name.to_owned(), elapsed));
    value.with_context(|| format!("ci stopped at `{name}`"))
}
