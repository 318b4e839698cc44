//! `cargo xtask bench instructions`: what SIM adds to a request, in instructions, by callgrind.
//!
//! They are the same on every machine with the same compiler, however busy it is, so this is a gate for CI where times
//! can't be one.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, Result, bail};
use serde_json::{Map, json};

use crate::build::Profile;
use crate::context::{Context, find_program, is_root, privileged_required};
use crate::process;

/// Package and program.
const PROGRAM: &str = "sim-proxy-instructions";
/// What each way to choose an instance may cost a request: the split by weight is what is promised, and what chooses
/// between two or by a session's name may cost more, but not ever more.
const LIMITS: &[(&str, u64)] = &[
    ("weighted", 300),
    ("least-request", 450),
    ("peak-ewma", 500),
    ("sticky", 650),
];
/// The program without requests: its loop, and a look at a clock that costs nothing before and after each.
const NOTHING: &str = "none";
/// Requests of the shorter of two runs.
const REQUESTS: u64 = 10_000;

#[derive(Default, clap::Args)]
pub(crate) struct Arguments {
    /// Write the results here
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

pub(crate) fn run(context: &Context, arguments: &Arguments) -> Result<()> {
    if !is_root() && !privileged_required() {
        println!("bench instructions: SKIPPED: an array of life flags takes root");
        return Ok(());
    }
    process::run(
        context
            .cargo()
            .args(["build", "--profile", "dist", "--package", PROGRAM]),
    )?;
    let program = Profile::Dist.folder(context).join(PROGRAM);
    let count = |policy: &str, requests: u64| {
        callgrind(context, &program, &[policy, &requests.to_string()])
    };
    // Of as many requests again, so that what comes before and after them is taken off.
    let per_requests = |policy: &str| -> Result<u64> {
        Ok(count(policy, 2 * REQUESTS)?.saturating_sub(count(policy, REQUESTS)?))
    };
    let mut results = Map::new();
    let mut over = Vec::new();
    let nothing = per_requests(NOTHING)?;
    for &(policy, limit) in LIMITS {
        let each = per_requests(policy)?
            .saturating_sub(nothing)
            .div_ceil(REQUESTS);
        println!("bench instructions: {policy}: {each} for a request, {limit} allowed");
        results.insert(
            format!("instructions_per_request_{}", policy.replace('-', "_")),
            json!(each),
        );
        if each > limit {
            over.push(policy);
        }
    }
    if let Some(file) = &arguments.json {
        let text = serde_json::to_string_pretty(&results)? + "\n";
        std::fs::write(file, text).with_context(|| file.display().to_string())?;
    }
    if !over.is_empty() {
        bail!("more instructions than allowed: {}", over.join(", "));
    }
    Ok(())
}

/// Instructions that a program takes.
pub(super) fn callgrind(context: &Context, program: &Path, arguments: &[&str]) -> Result<u64> {
    let valgrind = find_program("valgrind")
        .context("no valgrind here: `cargo xtask setup --only packages` installs it")?;
    let mut command = context.command(&valgrind);
    command.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]);
    command.arg(program).args(arguments);
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| process::describe(&command))?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        bail!("{} failed: {said}", process::describe(&command));
    }
    collected(&said).with_context(|| format!("callgrind counted nothing: {said}"))
}

/// The number behind `Collected :` in what callgrind says.
fn collected(said: &str) -> Option<u64> {
    let (_, rest) = said.split_once("Collected :")?;
    rest.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_is_found_in_what_callgrind_says() {
        let said = "==7== Events    : Ir\n==7== Collected : 6517254\n==7== \n";
        assert_eq!(collected(said), Some(6_517_254));
        assert_eq!(collected("==7== Command: true"), None);
    }
}
