//! What the guest said on its serial line, and what follows from it.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

/// The guest's own lines begin so.
const OWN: &str = "vm: ";
/// The cgroup in which the guest has a loop run while it looks.
const BUSY: &str = "/busy";
/// The loop has one CPU to itself; the emulation may be slow, but not that slow.
const BUSY_CPUS: std::ops::RangeInclusive<f64> = 0.2..=1.1;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Passed,
    Failed,
    /// It began, and nothing more was heard.
    Unfinished,
}

/// One test program.
#[derive(Debug, Default)]
struct Program {
    tests: BTreeMap<String, Outcome>,
    exit: Option<i32>,
    /// What its tests said they could not do.
    skipped: Vec<String>,
}

/// All that was heard so far.
#[derive(Default)]
pub(super) struct Report {
    kernel: String,
    programs: BTreeMap<String, Program>,
    current: String,
    test: String,
    sense: Option<String>,
    problems: Vec<String>,
    ended: bool,
}

impl Report {
    /// Takes one line of the serial line in. True where it is for people too.
    pub(super) fn hear(&mut self, line: &str) -> bool {
        let line = line.trim_end();
        match line.strip_prefix(OWN) {
            Some(own) => self.hear_own(own),
            None => {
                self.hear_program(line);
                true
            }
        }
    }

    fn hear_own(&mut self, line: &str) -> bool {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        match word {
            "kernel" => rest.clone_into(&mut self.kernel),
            "begin" => {
                rest.clone_into(&mut self.current);
                self.test.clear();
                self.programs.entry(rest.to_owned()).or_default();
            }
            "exit" => {
                if let Some((name, code)) = rest.split_once(' ') {
                    let program = self.programs.entry(name.to_owned()).or_default();
                    program.exit = code.parse().ok();
                }
            }
            "sense" => self.sense = Some(rest.to_owned()),
            "end" => self.ended = true,
            _ => self.problems.push(line.to_owned()),
        }
        // One line of tens of kilobytes.
        word != "sense"
    }

    fn hear_program(&mut self, line: &str) {
        // What it can't see here, on a machine made for it.
        if line.starts_with("sim sense: ") {
            self.problems.push(line.to_owned());
            return;
        }
        let Some(program) = self.programs.get_mut(&self.current) else {
            return;
        };
        if let Some((name, outcome)) = line
            .strip_prefix("test ")
            .and_then(|rest| rest.split_once(" ..."))
        {
            name.clone_into(&mut self.test);
            let outcome = outcome_of(outcome.trim()).unwrap_or(Outcome::Unfinished);
            program.tests.insert(name.to_owned(), outcome);
        } else if let Some(name) = line
            .strip_prefix("---- ")
            .and_then(|rest| rest.strip_suffix(" stdout ----"))
        {
            name.clone_into(&mut self.test);
        } else if line.starts_with("SKIPPED") {
            program.skipped.push(format!("{}: {line}", self.test));
        } else if let Some(outcome) = outcome_of(line)
            && let Some(open) = program.tests.get_mut(&self.test)
            && *open == Outcome::Unfinished
        {
            // What a test's children say may stand between its name and its outcome.
            *open = outcome;
        }
    }

    /// Why this is no success; nothing if it is one. `every` means that no program may stay without a test.
    pub(super) fn failures(&self, every: bool) -> Vec<String> {
        let mut failures = self.problems.clone();
        for (name, program) in &self.programs {
            for (test, outcome) in &program.tests {
                if *outcome != Outcome::Passed {
                    failures.push(format!("{name}: {test}: {outcome:?}"));
                }
            }
            match program.exit {
                Some(0) => {}
                Some(code) => failures.push(format!("{name} ended with code {code}")),
                None => failures.push(format!("{name} did not end")),
            }
            let skipped = program.skipped.iter();
            failures.extend(skipped.map(|line| format!("{name}: {line}")));
            if every && program.tests.is_empty() {
                failures.push(format!("{name} ran no test"));
            }
        }
        if self.programs.values().all(|one| one.tests.is_empty()) {
            failures.push("no test ran".to_owned());
        }
        if let Err(error) = self.sensed() {
            failures.push(format!("sim sense: {error:#}"));
        }
        if !self.ended {
            failures.push("the guest did not come to its end".to_owned());
        }
        failures
    }

    /// How many CPUs `sim sense` saw the guest's loop use.
    fn sensed(&self) -> Result<f64> {
        let text = self.sense.as_ref().context("it was not asked")?;
        let rows: Value = serde_json::from_str(text).context("no JSON")?;
        let rows = rows.as_array().context("no JSON array")?;
        let busy = rows
            .iter()
            .find(|row| row["cgroup"] == BUSY)
            .with_context(|| format!("no cgroup {BUSY}"))?;
        ensure!(
            busy["source"] == "probes",
            "{BUSY} is told by {}, not by probes",
            busy["source"]
        );
        for group in ["block", "network", "requests", "memory", "pressure"] {
            ensure!(busy[group].is_object(), "{BUSY} has no {group}");
        }
        let cpus = busy["cpu"]["cpus"].as_f64().context("no cpu.cpus")?;
        ensure!(
            BUSY_CPUS.contains(&cpus),
            "{BUSY} is a loop, and said to use {cpus:.2} CPUs"
        );
        Ok(cpus)
    }
}

fn outcome_of(word: &str) -> Option<Outcome> {
    match word {
        "ok" => Some(Outcome::Passed),
        "FAILED" => Some(Outcome::Failed),
        _ => None,
    }
}

/// A line for each program, and one for `sim sense`.
impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(formatter, "vm-test: kernel {}", self.kernel)?;
        for (name, program) in &self.programs {
            let count = |wanted| {
                let outcomes = program.tests.values();
                outcomes.filter(|outcome| **outcome == wanted).count()
            };
            writeln!(
                formatter,
                "vm-test: {name}: {} passed, {} failed, {} unfinished",
                count(Outcome::Passed),
                count(Outcome::Failed),
                count(Outcome::Unfinished)
            )?;
        }
        match self.sensed() {
            Ok(cpus) => write!(formatter, "vm-test: sim sense: a loop uses {cpus:.2} CPUs"),
            Err(error) => write!(formatter, "vm-test: sim sense: {error:#}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SENSE: &str = r#"[{"cgroup":"/busy","source":"probes","cpu":{"cpus":0.98},"block":{},
        "network":{},"requests":{},"memory":{},"pressure":{}}]"#;

    fn heard(lines: &str) -> Report {
        let mut report = Report::default();
        for line in lines.lines() {
            report.hear(line);
        }
        report
    }

    fn whole(tests: &str) -> String {
        let sense = SENSE.replace('\n', " ");
        format!("vm: kernel 6.1\nvm: begin p\n{tests}\nvm: sense {sense}\nvm: end\n")
    }

    #[test]
    fn a_good_run_has_no_failures_and_is_told_in_numbers() {
        // A test's child may speak between its name and its outcome.
        let tests = "test a ... ok\r\ntest b ... Aborted\nok\nvm: exit p 0";
        let report = heard(&whole(tests));
        assert_eq!(report.failures(true), [""; 0]);
        assert_eq!(
            report.to_string(),
            "vm-test: kernel 6.1\nvm-test: p: 2 passed, 0 failed, 0 unfinished\n\
             vm-test: sim sense: a loop uses 0.98 CPUs"
        );
    }

    #[test]
    fn each_way_to_fail_is_named() {
        let tests = "test a ... FAILED\ntest b ... ok\n---- b stdout ----\nSKIPPED (no x)\n\
                     vm: exit p 101\nvm: begin q\nvm: exit q 0\nsim sense: no y\nvm: no scratch disk";
        assert_eq!(
            heard(&whole(tests)).failures(true),
            [
                "sim sense: no y",
                "no scratch disk",
                "p: a: Failed",
                "p ended with code 101",
                "p: b: SKIPPED (no x)",
                "q ran no test",
            ]
        );
    }

    #[test]
    fn a_guest_that_stops_in_the_middle_is_a_failure() {
        let report = heard("vm: begin p\ntest a ... ok\ntest b ... \n");
        assert_eq!(
            report.failures(false),
            [
                "p: b: Unfinished",
                "p did not end",
                "sim sense: it was not asked",
                "the guest did not come to its end",
            ]
        );
        let silent = heard("").failures(false);
        assert_eq!(silent[0], "no test ran");
    }

    #[test]
    fn what_sense_says_must_come_from_probes_and_be_plausible() {
        let with = |from: &str, to: &str| {
            let text = SENSE.replace('\n', " ").replace(from, to);
            let report = heard(&format!("vm: sense {text}"));
            report.sensed().map_err(|error| error.to_string())
        };
        assert_eq!(with("", ""), Ok(0.98));
        assert!(
            with("probes", "files")
                .unwrap_err()
                .contains("not by probes")
        );
        assert!(with("0.98", "0.01").unwrap_err().contains("0.01 CPUs"));
        assert!(with("\"block\":{},", "").unwrap_err().contains("no block"));
        assert!(with("/busy", "/idle").unwrap_err().contains("no cgroup"));
    }
}
