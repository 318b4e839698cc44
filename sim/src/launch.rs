//! Process plumbing: becoming an instance, and ending with the parent.

use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::getppid;
use std::path::PathBuf;
use std::process::ExitCode;

/// `sim launch`: exit code 127 is what a shell gives for a program that can't be run.
pub(crate) fn run(cgroups: &[PathBuf], parent: Option<i32>, command: &[String]) -> ExitCode {
    // Kept across exec: the instance ends with the node.
    let bound = parent.map_or(Ok(()), |parent| end_with(parent, Signal::SIGKILL));
    let error = match bound {
        Ok(()) => sim_node::launch(cgroups, command),
        Err(error) => error,
    };
    crate::client::complain(&format!("sim launch: {error:#}"));
    ExitCode::from(127)
}

/// SIGTERM for this process as soon as `parent` ends, however it ends.
pub(crate) fn die_with(parent: i32) -> anyhow::Result<()> {
    end_with(parent, Signal::SIGTERM)
}

fn end_with(parent: i32, signal: Signal) -> anyhow::Result<()> {
    set_pdeathsig(signal)?;
    // It may have ended before the line above.
    anyhow::ensure!(
        getppid().as_raw() == parent,
        "the process that started this one is gone"
    );
    Ok(())
}
