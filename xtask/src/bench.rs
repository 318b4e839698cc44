//! `cargo xtask bench`: the criterion benches, gathered into one JSON file, and those that are programs of their own.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::build::{self, Extent, Profile};
use crate::context::Context;
use crate::process;
use crate::progress::Steps;
use crate::setup::{self, Peers};

pub(crate) mod forecast;
pub(crate) mod instructions;
mod probes;
mod proxy;

#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    whole: Option<Whole>,
    /// Write the results here
    #[arg(long, value_name = "FILE", conflicts_with = "smoke")]
    json: Option<PathBuf>,
    /// Run each bench once, unoptimised, to see that it works
    #[arg(long)]
    smoke: bool,
    /// Only benches whose name contains this
    filter: Option<String>,
}

/// Benchmarks that are programs of their own.
#[derive(clap::Subcommand)]
enum Whole {
    /// What the demand forecaster costs, and whether it gives the same bits however it is compiled
    Forecast(forecast::Arguments),
    /// What the kernel probes cost, beside bpftrace and libbpf-tools; needs root
    Probes(probes::Arguments),
    /// What SIM adds to a request, in instructions, by callgrind: a gate
    Instructions(instructions::Arguments),
    /// What a request costs the proxy, beside nginx, `HAProxy`, Envoy and a naive Pingora; a gate for a CI
    Proxy(proxy::Arguments),
}

pub(crate) fn run(context: &Context, arguments: &Arguments) -> Result<()> {
    match &arguments.whole {
        Some(Whole::Forecast(arguments)) => return forecast::run(context, arguments),
        Some(Whole::Probes(arguments)) => return probes::run(context, arguments),
        Some(Whole::Instructions(arguments)) => return instructions::run(context, arguments),
        Some(Whole::Proxy(arguments)) => return proxy::run(context, arguments),
        None => {}
    }
    if arguments.smoke {
        return smoke(context);
    }
    let begin = SystemTime::now();
    let mut cargo = context.cargo();
    cargo.args(["bench", "--package", "bench", "--bench", "*"]);
    if let Some(filter) = &arguments.filter {
        cargo.arg("--").arg(filter);
    }
    process::run(&mut cargo)?;
    let Some(file) = &arguments.json else {
        return Ok(());
    };
    let benches = collected(context, begin)?;
    let report = json!({
        "machine": machine(context),
        "versions": versions(context)?,
        "command": std::env::args().skip(1).collect::<Vec<_>>().join(" "),
        "benches": benches,
    });
    let text = serde_json::to_string_pretty(&report)? + "\n";
    std::fs::write(file, text).with_context(|| file.display().to_string())?;
    println!("bench: {} results in {}", benches.len(), file.display());
    Ok(())
}

/// A benchmark that is a program of its own.
struct Program {
    name: &'static str,
    /// It and SIM are built so.
    profile: Profile,
    /// What it runs beside SIM.
    peers: fn(&Context, &mut Steps) -> Result<Peers>,
    peers_steps: usize,
}

/// Sets up, builds and runs one.
fn program(
    context: &Context,
    program: &Program,
    json: Option<&Path>,
    rest: &[String],
) -> Result<()> {
    let mut bench = prepare(context, program)?;
    if let Some(file) = json {
        bench.arg("--json").arg(file);
    }
    process::run(bench.args(rest))
}

/// Sets up and builds one, and knows how to start it.
fn prepare(context: &Context, program: &Program) -> Result<Command> {
    let profile = program.profile;
    let mut steps = Steps::new("setup", setup::STEPS + program.peers_steps + 1);
    let prepared = setup::all(context, &mut steps, profile)?;
    let peers = (program.peers)(context, &mut steps)?;
    println!("{}", steps.heading("programs"));
    build::programs(context, profile, Extent::Programs)?;
    let mut bench = context.command(profile.folder(context).join(program.name));
    prepared.tell(&mut bench, context, profile);
    peers.tell(&mut bench);
    Ok(bench)
}

/// Each bench once, in the profile and with the features of the tests: nothing is built anew.
pub(crate) fn smoke(context: &Context) -> Result<()> {
    process::run(
        context
            .cargo()
            .args(["test", "--workspace", "--bench", "*"]),
    )
}

/// All results that criterion wrote since `begin`, by name.
fn collected(context: &Context, begin: SystemTime) -> Result<Vec<Value>> {
    let mut benches = Vec::new();
    collect(&context.target.join("criterion"), begin, &mut benches)?;
    benches.sort_by_key(|bench| bench["name"].as_str().unwrap_or_default().to_owned());
    Ok(benches)
}

/// Results that criterion wrote below `folder` since `begin`.
fn collect(folder: &Path, begin: SystemTime, benches: &mut Vec<Value>) -> Result<()> {
    let entries = std::fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    for entry in entries {
        let path = entry?.path();
        if !path.is_dir() {
            continue;
        }
        let estimates = path.join("estimates.json");
        let is_new = path.file_name().is_some_and(|name| name == "new")
            && estimates
                .metadata()
                .is_ok_and(|file| file.modified().is_ok_and(|at| at >= begin));
        if is_new {
            benches.push(result(
                &read(&path.join("benchmark.json"))?,
                &read(&estimates)?,
            ));
        } else {
            collect(&path, begin, benches)?;
        }
    }
    Ok(())
}

fn read(file: &Path) -> Result<Value> {
    let text = std::fs::read(file).with_context(|| file.display().to_string())?;
    serde_json::from_slice(&text).with_context(|| file.display().to_string())
}

/// One bench from criterion's `benchmark.json` and `estimates.json`; its times are nanoseconds.
fn result(benchmark: &Value, estimates: &Value) -> Value {
    let interval = &estimates["median"]["confidence_interval"];
    json!({
        "name": benchmark["full_id"],
        "median_ns": estimates["median"]["point_estimate"],
        "mad_ns": estimates["median_abs_dev"]["point_estimate"],
        "ci_level": interval["confidence_level"],
        "ci_ns": [interval["lower_bound"], interval["upper_bound"]],
    })
}

fn machine(context: &Context) -> Value {
    let field = |file: &str, name: &str| {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        let line = text
            .lines()
            .find(|line| line.starts_with(name))
            .unwrap_or_default();
        line.split_once(':')
            .map(|(_, value)| value.trim().to_owned())
    };
    json!({
        "cpu": field("/proc/cpuinfo", "model name"),
        "cores": std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
        "memory": field("/proc/meminfo", "MemTotal"),
        "kernel": process::output(context.command("uname").arg("-sr")).map(trimmed).ok(),
        "architecture": std::env::consts::ARCH,
    })
}

fn versions(context: &Context) -> Result<Value> {
    let git = |arguments: &[&str]| {
        process::output(
            context
                .command("git")
                .current_dir(&context.root)
                .args(arguments),
        )
    };
    Ok(json!({
        "sim": env!("CARGO_PKG_VERSION"),
        "commit": git(&["rev-parse", "HEAD"]).map(trimmed).ok(),
        "modified": git(&["status", "--porcelain"]).map(|text| !text.is_empty()).ok(),
        "rustc": trimmed(process::output(context.command("rustc").arg("--version"))?),
        "criterion": criterion_version(&context.root),
    }))
}

fn trimmed(text: String) -> String {
    text.trim().to_owned()
}

fn criterion_version(root: &Path) -> Option<String> {
    let lock = std::fs::read_to_string(root.join("Cargo.lock")).ok()?;
    let (_, rest) = lock.split_once("name = \"criterion\"\nversion = \"")?;
    rest.split('"').next().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_keeps_median_spread_and_interval() {
        let estimates = json!({
            "median": {
                "confidence_interval":
                    {"confidence_level": 0.95, "lower_bound": 1.0, "upper_bound": 3.0},
                "point_estimate": 2.0,
            },
            "median_abs_dev": {"point_estimate": 0.5},
        });
        let result = result(&json!({"full_id": "pick/2"}), &estimates);
        let expected = json!({
            "name": "pick/2", "median_ns": 2.0, "mad_ns": 0.5, "ci_level": 0.95, "ci_ns": [1.0, 3.0],
        });
        assert_eq!(result, expected);
    }
}
