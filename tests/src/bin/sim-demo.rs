//! `cargo xtask demo` runs this.
#![allow(clippy::print_stderr, reason = "a program says why it ends")]

use clap::Parser as _;

fn main() -> std::process::ExitCode {
    let arguments = sim_tests::demo::arguments::Arguments::parse();
    match sim_tests::demo::main(&arguments) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("demo: {error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}
