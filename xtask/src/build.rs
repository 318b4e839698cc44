//! The programs that the chores start.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::context::Context;
use crate::process;

/// A cargo profile of this workspace.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Profile {
    Dev,
    Release,
    Dist,
}

impl Profile {
    fn name(self) -> &'static str {
        match self {
            Self::Dev => "dev",
            Self::Release => "release",
            Self::Dist => "dist",
        }
    }

    /// Where cargo puts its binaries.
    pub(crate) fn folder(self, context: &Context) -> PathBuf {
        context.target.join(match self {
            Self::Dev => "debug",
            Self::Release => "release",
            Self::Dist => "dist",
        })
    }
}

/// What to build beside the programs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Extent {
    /// Nothing.
    Programs,
    /// The tests: cargo chooses the features of shared dependencies by everything it is asked to
    /// build, so asking for the same each time is what spares a second build of them.
    ProgramsAndTests,
}

/// A program of integration tests.
pub(crate) struct TestProgram {
    pub(crate) name: String,
    pub(crate) path: PathBuf,
}

/// Builds the workspace's programs, with cargo's own progress.
pub(crate) fn programs(context: &Context, profile: Profile, extent: Extent) -> Result<()> {
    process::run(&mut command(context, profile, extent))
}

/// Builds a library that is loaded by name, beside the programs.
pub(crate) fn library(context: &Context, profile: Profile, package: &str) -> Result<()> {
    let mut cargo = context.cargo();
    cargo.args(["build", "--profile", profile.name(), "--package", package]);
    process::run(&mut cargo)
}

/// Builds programs and tests, and says where the integration tests of one package are.
pub(crate) fn tests_of(
    context: &Context,
    profile: Profile,
    package: &str,
) -> Result<Vec<TestProgram>> {
    let mut cargo = command(context, profile, Extent::ProgramsAndTests);
    cargo.arg("--message-format=json-render-diagnostics");
    let output = cargo
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| process::describe(&cargo))?;
    process::success(output.status, &cargo)?;
    let messages = String::from_utf8(output.stdout).context("what cargo says")?;
    let manifest = context.root.join(package).join("Cargo.toml");
    Ok(messages
        .lines()
        .filter_map(|line| test_program(line, &manifest))
        .collect())
}

/// The integration test that such a message of cargo tells of, if it is one of that package.
fn test_program(message: &str, manifest: &Path) -> Option<TestProgram> {
    let message: Value = serde_json::from_str(message).ok()?;
    let target = &message["target"];
    let is_test = target["kind"].as_array()?.iter().any(|kind| kind == "test");
    let is_own = Path::new(message["manifest_path"].as_str()?) == manifest;
    (is_test && is_own).then_some(())?;
    Some(TestProgram {
        name: target["name"].as_str()?.to_owned(),
        path: message["executable"].as_str()?.into(),
    })
}

fn command(context: &Context, profile: Profile, extent: Extent) -> Command {
    let mut cargo = context.cargo();
    cargo.args([
        "build",
        "--profile",
        profile.name(),
        "--workspace",
        "--bins",
    ]);
    if extent == Extent::ProgramsAndTests {
        cargo.arg("--tests");
    } else {
        cargo.args(["--exclude", "xtask"]);
    }
    cargo
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_programs_are_told_from_libraries_and_other_packages() {
        let message = |kind: &str, package: &str| {
            format!(
                r#"{{"reason":"compiler-artifact","manifest_path":"/w/{package}/Cargo.toml",
                "target":{{"kind":["{kind}"],"name":"privileged"}},"executable":"/t/privileged-1"}}"#
            )
        };
        let manifest = Path::new("/w/own/Cargo.toml");
        let found = test_program(&message("test", "own"), manifest).unwrap();
        assert_eq!(found.name, "privileged");
        assert_eq!(found.path, Path::new("/t/privileged-1"));
        assert!(test_program(&message("bin", "own"), manifest).is_none());
        assert!(test_program(&message("test", "other"), manifest).is_none());
        assert!(test_program(r#"{"reason":"build-finished"}"#, manifest).is_none());
    }
}
