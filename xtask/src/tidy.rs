//! `cargo xtask tidy`: what the compiler and clippy can't see. One line per violation.

mod dependencies;
mod hosts;
mod sources;

use std::fmt;

use anyhow::{Context as _, Result, bail};

use crate::context::Context;
use crate::process;

/// A broken rule, where, and what is allowed instead.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Violation {
    place: String,
    rule: String,
}

impl Violation {
    fn new(place: impl Into<String>, rule: impl Into<String>) -> Self {
        Self {
            place: place.into(),
            rule: rule.into(),
        }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.place, self.rule)
    }
}

/// A file under version control, or about to be.
struct Source {
    path: String,
    text: String,
}

pub(crate) fn run(context: &Context) -> Result<()> {
    let packages = dependencies::packages(&context.metadata()?)?;
    let sources = sources(context)?;
    let hosts = hosts::of_this_machine();

    let mut violations = dependencies::check(&dependencies::graph(&packages));
    violations.extend(dependencies::check_no_std(&core_features(context)?));
    violations.extend(sources::check(&sources, &hosts));
    for package in &packages {
        let path = package
            .manifest
            .strip_prefix(&context.root)
            .unwrap_or(&package.manifest);
        let text = std::fs::read_to_string(&package.manifest)
            .with_context(|| package.manifest.display().to_string())?;
        violations.extend(sources::check_lints(&path.display().to_string(), &text));
    }
    for violation in &violations {
        eprintln!("{violation}");
    }
    if !violations.is_empty() {
        bail!("tidy: {} violation(s)", violations.len());
    }
    println!("tidy: {} files, no violation", sources.len());
    Ok(())
}

/// Every text file that git knows or would take.
fn sources(context: &Context) -> Result<Vec<Source>> {
    let mut git = context.command("git");
    git.current_dir(&context.root);
    git.args([
        "ls-files",
        "--cached",
        "--others",
        "--exclude-standard",
        "-z",
    ]);
    let mut sources = Vec::new();
    for path in process::output(&mut git)?
        .split('\0')
        .filter(|path| !path.is_empty())
    {
        // Gone from the work tree, or no text: nothing to read.
        if let Ok(text) = std::fs::read_to_string(context.root.join(path)) {
            sources.push(Source {
                path: path.to_owned(),
                text,
            });
        }
    }
    Ok(sources)
}

/// The crates below sim-core and their features when it is built alone, one a line.
fn core_features(context: &Context) -> Result<String> {
    let mut cargo = context.cargo();
    cargo.args([
        "tree",
        "--package",
        "sim-core",
        "--edges",
        "normal,no-proc-macro",
    ]);
    process::output(cargo.args(["--prefix", "none", "--format", "{lib} {f}"]))
}
