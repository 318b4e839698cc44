//! `sim`: the Shadow Instance Manager, one program for every role.

mod cli;
mod client;
mod config;
mod ending;
mod launch;
mod logging;
mod roles;
mod sense;
mod supervisor;
mod upgrade;

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    cli::Cli::parse().run()
}
