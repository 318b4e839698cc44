//! `cargo xtask bench forecast`: what the demand forecaster costs a sample and a forecast, in time and in instructions,
//! what many series cost, and whether it gives the same bits however it is compiled.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context as _, Result, bail};
use serde_json::{Map, Value, json};

use super::instructions::callgrind;
use crate::build::Profile;
use crate::context::Context;
use crate::process;

/// Package and program.
const PROGRAM: &str = "sim-bench-forecast";
/// Instructions of one sample and of one forecast of all 72 steps, as they were committed; how many are counted.
const COMMITTED: &[(&str, u64, u64)] = &[("sample", 114_250, 288), ("forecast", 695_966, 10)];
/// The program does nothing beside making samples.
const NOTHING: &str = "nothing";
/// How much more than was committed is allowed, in hundredths.
const ALLOWED: u64 = 105;
/// A profile that optimises nothing.
const PLAIN: &str = "plain";

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Write the results here
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// So many series side by side, with cold caches
    #[arg(long, value_name = "COUNT")]
    series: Option<usize>,
    /// Only what CI runs: instructions and bits
    #[arg(long)]
    gate: bool,
}

/// Name and value of each figure.
type Figures = Map<String, Value>;

pub(super) fn run(context: &Context, arguments: &Arguments) -> Result<()> {
    if arguments.gate {
        return gate(context);
    }
    let begin = SystemTime::now();
    let program = build(context, "dist")?;
    let mut cargo = context.cargo();
    process::run(cargo.args(["bench", "--profile", "dist", "--package", PROGRAM]))?;
    let mut figures = Figures::new();
    for bench in super::collected(context, begin)? {
        let name = bench["name"].as_str().unwrap_or_default().to_owned();
        figures.insert(
            format!("{name} (criterion, median, ns)"),
            bench["median_ns"].clone(),
        );
    }
    said(context, &program, &["times"], &mut figures)?;
    let verdict = instructions(context, &program, &mut figures);
    if let Some(count) = arguments.series {
        said(
            context,
            &program,
            &["series", &count.to_string()],
            &mut figures,
        )?;
    }
    let (machine, versions) = (super::machine(context), super::versions(context)?);
    println!("\n| forecast of demand | |\n|---|---|");
    let about = [
        &machine["cpu"],
        &machine["kernel"],
        &versions["rustc"],
        &versions["commit"],
    ];
    for (name, value) in ["machine", "kernel", "compiler", "commit"]
        .iter()
        .zip(about)
    {
        println!("| {name} | {} |", value.as_str().unwrap_or_default());
    }
    for (name, value) in &figures {
        match value.as_f64() {
            Some(number) if number.fract() != 0.0 => println!("| {name} | {number:.1} |"),
            _ => println!("| {name} | {value} |"),
        }
    }
    if let Some(file) = &arguments.json {
        let report = json!({"machine": machine, "versions": versions, "figures": figures});
        let text = serde_json::to_string_pretty(&report)? + "\n";
        std::fs::write(file, text).with_context(|| file.display().to_string())?;
    }
    verdict
}

/// What may fail in CI: more instructions than were committed, other bits than were committed.
pub(crate) fn gate(context: &Context) -> Result<()> {
    for profile in [PLAIN, "dist"] {
        let program = build(context, profile)?;
        process::run(context.command(program).arg("bits"))
            .with_context(|| format!("profile {profile}"))?;
    }
    let program = Profile::Dist.folder(context).join(PROGRAM);
    instructions(context, &program, &mut Figures::new())
}

fn build(context: &Context, profile: &str) -> Result<PathBuf> {
    let mut cargo = context.cargo();
    cargo.args([
        "build",
        "--profile",
        profile,
        "--package",
        PROGRAM,
        "--bins",
    ]);
    process::run(&mut cargo)?;
    Ok(context.target.join(profile).join(PROGRAM))
}

/// The lines `name value` that the program says.
fn said(context: &Context, program: &Path, arguments: &[&str], into: &mut Figures) -> Result<()> {
    let text = process::output(context.command(program).args(arguments))?;
    for (name, value) in text.lines().filter_map(|line| line.split_once(' ')) {
        into.insert(name.to_owned(), value.parse::<u64>()?.into());
    }
    Ok(())
}

fn instructions(context: &Context, program: &Path, figures: &mut Figures) -> Result<()> {
    let mut over = Vec::new();
    for &(what, committed, count) in COMMITTED {
        // Of as many again, so that what comes before and after them is taken off.
        let more = |what: &str| -> Result<u64> {
            let of = |count: u64| callgrind(context, program, &["count", what, &count.to_string()]);
            Ok(of(2 * count)?.saturating_sub(of(count)?))
        };
        let nothing = if what == "sample" { more(NOTHING)? } else { 0 };
        let each = more(what)?.saturating_sub(nothing).div_ceil(count);
        let allowed = committed * ALLOWED / 100;
        println!(
            "bench forecast: {what}: {each} instructions, {committed} committed, {allowed} allowed"
        );
        figures.insert(format!("{what}_instructions"), each.into());
        if each > allowed {
            over.push(what);
        }
    }
    if !over.is_empty() {
        bail!("more instructions than allowed: {}", over.join(", "));
    }
    Ok(())
}
