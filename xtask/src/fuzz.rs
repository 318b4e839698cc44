//! `cargo xtask fuzz`: what must hold of the fast path's readers, for bytes that libFuzzer makes up by what they reach.
//!
//! The flags are those of cargo-fuzz without a sanitizer, which a stable compiler has too: there is no unsafe code to
//! find faults in, and what is looked for are broken invariants. The same ones are property tests, which
//! `cargo xtask test` runs without a build of their own.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::context::Context;
use crate::process;
use crate::progress::Activity;

const FOLDER: &str = "sim-proxy/fuzz";
const TARGETS: [&str; 3] = ["request", "chunks", "answer"];
const FLAGS: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1";
/// Longest input, bytes.
const BYTES_MAX: u32 = 2_048;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// For all targets together
    #[arg(long, value_name = "N", default_value_t = 3_600)]
    seconds: u64,
    /// Give it this input alone, once
    #[arg(long, value_name = "FILE", requires = "target", value_parser = input)]
    replay: Option<PathBuf>,
    /// Only this one
    #[arg(value_parser = TARGETS)]
    target: Option<String>,
}

/// A file that is there, wherever the target is run.
fn input(text: &str) -> Result<PathBuf, String> {
    fs::canonicalize(text).map_err(|error| error.to_string())
}

/// Long enough for the compiler, not for an endless loop.
const GRACE: Duration = Duration::from_secs(120);
/// For all targets together, in CI.
const CI_SECONDS: u64 = 60;

/// A short one.
pub(crate) fn smoke(context: &Context) -> Result<()> {
    let arguments = Arguments {
        seconds: CI_SECONDS,
        replay: None,
        target: None,
    };
    run(context, &arguments)
}

pub(crate) fn run(context: &Context, arguments: &Arguments) -> Result<()> {
    let folder = context.root.join(FOLDER);
    // The versions that are shipped; what it needs beyond them is in its own manifest.
    let lock = folder.join("Cargo.lock");
    fs::copy(context.root.join("Cargo.lock"), &lock).with_context(|| lock.display().to_string())?;
    let host = process::output(context.command("rustc").args(["--print", "host-tuple"]))?;
    let host = host.trim();
    // In the cache: what lies below SIM is built once for all checkouts, and what was found to reach something new is
    // where the next run begins.
    let _lock = context.cache.lock("fuzz", &Activity::default())?;
    let target = context.cache.path("fuzz");
    let mut cargo = context.cargo();
    cargo.args(["build", "--release", "--bins", "--manifest-path"]);
    cargo.arg(folder.join("Cargo.toml"));
    // Naming the target keeps the flags from build scripts.
    cargo.args(["--target", host, "--target-dir"]).arg(&target);
    process::run(cargo.env("RUSTFLAGS", FLAGS))?;
    let targets = TARGETS
        .iter()
        .filter(|name| arguments.target.as_ref().is_none_or(|only| only == *name));
    let count = targets.clone().count() as u64;
    for name in targets {
        let program = target.join(host).join("release").join(name);
        if let Some(file) = &arguments.replay {
            replay(context, &program, file)?;
            continue;
        }
        one(context, &program, &target, name, arguments.seconds / count)?;
    }
    Ok(())
}

fn one(context: &Context, program: &Path, target: &Path, name: &str, seconds: u64) -> Result<()> {
    // What was found to reach something new, kept for the next run.
    let corpus = target.join("corpus").join(name);
    fs::create_dir_all(&corpus).with_context(|| corpus.display().to_string())?;
    let found = target.join("found").join(name);
    fs::create_dir_all(&found).with_context(|| found.display().to_string())?;
    let mut command = context.command(program);
    command
        .arg(&corpus)
        .arg(context.root.join(FOLDER).join("seeds"));
    command.arg(format!("-max_total_time={seconds}"));
    command.arg(format!("-max_len={BYTES_MAX}"));
    command.arg(format!("-artifact_prefix={}/", found.display()));
    command.args(["-timeout=10", "-print_final_stats=1", "-verbosity=0"]);
    command.arg(format!(
        "-dict={}",
        context.root.join(FOLDER).join("http.dict").display()
    ));
    println!("fuzz: {name} for {seconds} s");
    let status = process::run_within(&mut command, Duration::from_secs(seconds) + GRACE, GRACE)?;
    process::success(status, &command).with_context(|| {
        let found = found.display();
        format!("what breaks it is in {found}; once more: cargo xtask fuzz {name} --replay FILE")
    })
}

/// Fails where the input breaks what must hold. What is said of it, and where, comes from the target.
fn replay(context: &Context, program: &Path, file: &Path) -> Result<()> {
    let mut command = context.command(program);
    command.args(["-timeout=10", "-verbosity=0"]).arg(file);
    process::run(&mut command)?;
    println!("fuzz: {} breaks nothing", file.display());
    Ok(())
}
