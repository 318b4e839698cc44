//! `cargo xtask …`: every chore of this repository, one module per subcommand.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a chore speaks to the terminal"
)]

mod bench;
mod build;
mod cache;
mod ci;
mod conformance;
mod context;
mod demo;
mod ebpf;
mod forecast;
mod fuzz;
mod loom;
mod process;
mod progress;
mod setup;
mod soak;
mod test;
mod tidy;
mod vm;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version, about)]
struct Arguments {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Install what the build, the tests and the demo need (idempotent)
    Setup(setup::Arguments),
    /// Set up, build, and run the main job; other arguments go to the demo
    Demo(demo::Arguments),
    /// Set up, build, and run every test
    Test(test::Arguments),
    /// What CI runs: fmt, clippy, tidy, test, bench smoke, soak, fuzz, demos
    Ci,
    /// Build the kernel side into the target directory, beside the binary
    Ebpf(ebpf::Arguments),
    /// Run the benchmarks and gather their results
    Bench(bench::Arguments),
    /// Run the proxy's protocols between threads in every interleaving
    Loom(loom::Arguments),
    /// Look for bytes that break the HTTP/1.1 readers, by libFuzzer
    Fuzz(fuzz::Arguments),
    /// Compare HTTP/1.1 with nginx, `HAProxy`, Envoy and gunicorn; run suites of HTTP/2
    Conformance(conformance::Arguments),
    /// Run the forecaster over a folder of traces and write what a scorer reads
    ForecastTraces(forecast::Arguments),
    /// Keep a proxy under mixed traffic and faults, and look for what it loses or keeps
    Soak(soak::Arguments),
    /// Boot Debian's kernel in a virtual machine and run the tests of the probes there
    VmTest(vm::Arguments),
    /// Check dependency rules, lints, file sizes and words
    Tidy,
}

fn main() -> std::process::ExitCode {
    let chore = Arguments::parse().chore;
    match context::Context::new().and_then(|context| run(chore, &context)) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}

fn run(chore: Chore, context: &context::Context) -> anyhow::Result<()> {
    match chore {
        Chore::Setup(arguments) => setup::run(context, &arguments),
        Chore::Demo(arguments) => demo::run(context, arguments),
        Chore::Test(arguments) => test::run(context, &arguments),
        Chore::Ci => ci::run(context),
        Chore::Ebpf(arguments) => ebpf::run(context, &arguments),
        Chore::Bench(arguments) => bench::run(context, &arguments),
        Chore::Loom(arguments) => loom::run(context, &arguments),
        Chore::Fuzz(arguments) => fuzz::run(context, &arguments),
        Chore::Conformance(arguments) => conformance::run(context, &arguments),
        Chore::ForecastTraces(arguments) => forecast::run(context, &arguments),
        Chore::Soak(arguments) => soak::run(context, &arguments),
        Chore::VmTest(arguments) => vm::run(context, &arguments),
        Chore::Tidy => tidy::run(context),
    }
}
