//! Process plumbing: becoming an instance, and ending with the parent.

use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::getppid;
use std::path::PathBuf;
use std::process::ExitCode;

/// `sim launch`: exit code 127 is what a shell gives for a program that can't be run.
pub(crate) fn run(cgroups: &[PathBuf], command: &[String]) -> ExitCode {
    let error = sim_node::launch(cgroups, command);
    crate::client::complain(&format!("sim launch: {error:#}"));
    ExitCode::from(127)
}

/// SIGTERM for this process as soon as `parent` ends, however it ends.
pub(crate) fn die_with(parent: i32) -> anyhow::Result<()> {
    set_pdeathsig(Signal::SIGTERM)?;
    // It may have ended before the line above.
    anyhow::ensure!(
        getppid().as_raw() == parent,
        "the process that started this one is gone"
    );
    Ok(())
}
