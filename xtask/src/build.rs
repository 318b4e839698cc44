//! The programs that the chores start.

use std::path::PathBuf;

use anyhow::Result;

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

/// Builds the workspace's programs, with cargo's own progress.
pub(crate) fn programs(context: &Context, profile: Profile, extent: Extent) -> Result<()> {
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
    process::run(&mut cargo)
}
