//! `cargo xtask test`: set up, build, and run every test.

use std::process::{Command, ExitStatus};

use anyhow::{Result, bail};

use crate::build::{self, Extent, Profile};
use crate::context::{Context, find_program, privileged_required};
use crate::process;
use crate::progress::Steps;
use crate::setup::{self, Prepared};

/// Tests with this in their name share network namespaces and cgroups, and run one at a time.
/// `.config/nextest.toml` says the same to nextest.
const PRIVILEGED: &str = "privileged";

/// Tells the tests where that program is.
pub(crate) const HTTPWG: &str = "SIM_HTTPWG";

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Only tests whose name contains one of these
    filter: Vec<String>,
}

pub(crate) fn run(context: &Context, arguments: &Arguments) -> Result<()> {
    run_prepared(context, &arguments.filter).map(drop)
}

/// Runs the tests and returns what setup prepared, for what comes next.
pub(crate) fn run_prepared(context: &Context, filter: &[String]) -> Result<Prepared> {
    let mut steps = Steps::new("setup", setup::STEPS + 4);
    let prepared = setup::all(context, &mut steps, Profile::Dev)?;
    let peers = match setup::proxies(context, &mut steps) {
        Ok(peers) => Some(peers),
        Err(error) if privileged_required() => return Err(error),
        // The tests beside them say that they are left out.
        Err(_) => None,
    };
    let httpwg = match setup::httpwg(context, &mut steps) {
        Ok(httpwg) => Some(httpwg),
        Err(error) if privileged_required() => return Err(error),
        Err(_) => None,
    };
    println!("{}", steps.heading("programs and tests"));
    build::programs(context, Profile::Dev, Extent::ProgramsAndTests)?;

    let mut picked = Vec::new();
    let mut failed = Vec::new();
    let has_nextest = find_program("cargo-nextest").is_some();
    for mut command in commands(context, has_nextest, filter) {
        prepared.tell(&mut command, context, Profile::Dev);
        if let Some(peers) = &peers {
            peers.tell(&mut command);
        }
        if let Some(httpwg) = &httpwg {
            command.env(HTTPWG, httpwg);
        }
        println!("test: {}", process::describe(&command));
        let (status, lines) = process::run_and_pick(&mut command, picks())?;
        picked.extend(lines);
        if !status.success() {
            failed.push(failure(&command, status));
        }
    }
    let mut skipped = 0;
    for pick in &picked {
        match pick {
            Pick::Skipped(line) => {
                skipped += 1;
                println!("test: NOT TESTED: {line}");
            }
            Pick::Flaky(line) => {
                println!("test: FLAKY, which is a bug to be filed with its output above: {line}");
            }
        }
    }
    if skipped > 0 {
        println!("test: {skipped} test(s) above did not test what they are for");
    }
    if !failed.is_empty() {
        bail!("{}", failed.join("; "));
    }
    Ok(prepared)
}

/// A line that is told again at the end.
#[derive(Debug, PartialEq, Eq)]
enum Pick {
    /// It says SKIPPED; with the test that said it.
    Skipped(String),
    /// A test that failed, and passed when it was run once more.
    Flaky(String),
}

/// Picks such lines.
fn picks() -> impl FnMut(&str) -> Option<Pick> + Clone + Send {
    let mut test = String::new();
    move |line| {
        if let Some(name) = test_name(line) {
            name.clone_into(&mut test);
        }
        let skipped = || is_skip(line).then(|| Pick::Skipped(format!("{test}: {line}")));
        flaky_test(line)
            .map(|name| Pick::Flaky(name.to_owned()))
            .or_else(skipped)
    }
}

/// The test that such a line of nextest's summary is about.
fn flaky_test(line: &str) -> Option<&str> {
    let is_verdict = line.contains("FLAKY") && line.contains('[') && line.contains(']');
    is_verdict.then(|| line.rsplit([']', ')']).next().unwrap_or(line).trim())
}

/// The test whose output follows such a line of nextest, or of libtest.
fn test_name(line: &str) -> Option<&str> {
    if line.contains("PASS") && line.contains('[') {
        return line.rsplit(") ").next();
    }
    line.strip_prefix("---- ")?.strip_suffix(" stdout ----")
}

fn is_skip(line: &str) -> bool {
    line.split(|character: char| !character.is_ascii_alphabetic())
        .any(|word| word == "SKIPPED")
}

fn failure(command: &Command, status: ExitStatus) -> String {
    format!("{} failed ({status})", process::describe(command))
}

fn commands(context: &Context, has_nextest: bool, filter: &[String]) -> Vec<Command> {
    // Cargo itself takes one filter, the harness behind `--` any number.
    let cargo = |arguments: &[&str], own: &[&str]| {
        let mut command = context.cargo();
        command.args(arguments).arg("--").args(own).args(filter);
        command
    };
    let documentation = cargo(&["test", "--workspace", "--doc"], &[]);
    if has_nextest {
        let mut nextest = context.cargo();
        nextest.args(["nextest", "run", "--workspace"]).args(filter);
        // Its output passes through us; it can't see the terminal.
        if crate::context::is_terminal() {
            nextest.args(["--color", "always"]);
        }
        // A filter may name documentation tests only.
        nextest.args([
            "--no-tests",
            if filter.is_empty() { "fail" } else { "pass" },
        ]);
        return vec![nextest, documentation];
    }
    let unit = [
        "test",
        "--workspace",
        "--lib",
        "--bins",
        "--tests",
        "--no-fail-fast",
    ];
    // Output of a passed test is shown for the sake of its SKIPPED lines.
    if filter.is_empty() {
        vec![
            cargo(&unit, &["--show-output", "--skip", PRIVILEGED]),
            cargo(&unit, &["--show-output", "--test-threads", "1", PRIVILEGED]),
            documentation,
        ]
    } else {
        // libtest takes the union of its filters, so the privileged can't be told apart here.
        let one = cargo(&unit, &["--show-output", "--test-threads", "1"]);
        vec![one, documentation]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_skip_is_told_with_the_test_that_said_it() {
        let skipped = |text: &str| Some(Pick::Skipped(text.to_owned()));
        let mut nextest = picks();
        assert_eq!(
            nextest("PASS [   1.007s] ( 4/38) sim-tests::end e2e::moves"),
            None
        );
        assert_eq!(
            nextest("SKIPPED (not root)"),
            skipped("sim-tests::end e2e::moves: SKIPPED (not root)")
        );
        let mut libtest = picks();
        assert_eq!(libtest("---- e2e::moves stdout ----"), None);
        assert_eq!(
            libtest("SKIPPED (not root)"),
            skipped("e2e::moves: SKIPPED (not root)")
        );
    }

    #[test]
    fn a_test_that_passed_at_the_second_try_alone_is_told_again() {
        let flaky = Some(Pick::Flaky("sim-tests::end e2e::moves".to_owned()));
        for line in [
            "   FLAKY 2/2 [   0.005s] sim-tests::end e2e::moves",
            "   FLAKY 2/2 [   0.005s] ( 4/38) sim-tests::end e2e::moves",
        ] {
            assert_eq!(picks()(line), flaky, "{line}");
        }
        let others = [
            "TRY 1 FAIL [   0.005s] sim-tests::end e2e::moves",
            "Summary [   0.1s] 3 tests run: 3 passed (1 flaky), 0 skipped",
        ];
        assert!(others.iter().all(|line| picks()(line).is_none()));
    }

    #[test]
    fn several_filters_reach_the_harness_and_not_cargo_which_takes_one() {
        let context = Context::new().unwrap();
        let filter = ["first".to_owned(), "second".to_owned()];
        for has_nextest in [true, false] {
            let commands = commands(&context, has_nextest, &filter);
            assert_eq!(commands.len(), 2);
            for command in commands {
                let line = process::describe(&command);
                let (of_cargo, own) = line.split_once(" -- ").unwrap_or((&line, ""));
                let is_nextest = of_cargo.contains(" nextest run ");
                assert_eq!(of_cargo.contains(" first second"), is_nextest, "{line}");
                assert_eq!(own.contains("first second"), !is_nextest, "{line}");
            }
        }
    }

    #[test]
    fn a_skip_is_the_word_in_capitals() {
        assert!(is_skip("SKIPPED privileged_e2e: not root"));
        assert!(is_skip("test: SKIPPED: not root"));
        assert!(!is_skip("Summary [0.1s] 3 tests run: 3 passed, 1 skipped"));
        assert!(!is_skip("UNSKIPPED"));
    }
}
