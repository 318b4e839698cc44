//! Whether this machine lets us build servers, and what to do in a test when it does not.

use std::io::Write as _;

use anyhow::{Context as _, Result};
use sim_node::cgroup::Hierarchy;

use super::cgroup::CpuCap;
use super::namespace;

/// Where this is set to 1, a missing privilege fails a test instead of skipping it.
pub const REQUIRE: &str = "SIM_REQUIRE_PRIVILEGED";

/// What keeps servers from being built here; none where they can be.
#[must_use]
pub fn missing() -> Option<String> {
    let namespaces = namespace::create().map(drop).context("network namespace");
    let cap = || -> Result<()> {
        let name = format!("sim-privilege-{}", std::process::id());
        CpuCap::create(&Hierarchy::detect()?, &name, 0.5).map(drop)
    };
    let cgroups = cap().context("CPU cgroup");
    namespaces
        .and(cgroups)
        .err()
        .map(|error| format!("{error:#}"))
}

/// True if a test named `test` should run. Where `missing` names what it lacks, says so loudly
/// on the terminal, past the capture of test output.
///
/// # Panics
/// Something is missing and [`REQUIRE`] is set.
#[must_use]
pub fn or_skip(test: &str, missing: Option<String>) -> bool {
    let Some(reason) = missing else { return true };
    let required = std::env::var_os(REQUIRE).is_some_and(|value| value == "1");
    assert!(!required, "{test} needs what is missing here: {reason}");
    writeln!(std::io::stderr(), "SKIPPED ({reason}): {test}").ok();
    false
}
