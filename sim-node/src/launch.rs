//! The launcher: a process that enters its cgroups and then becomes the instance.
//!
//! It runs between fork and the instance's program as `sim launch`, so that the instance is in
//! its cgroups from its first instruction and no code has to run between fork and exec.

use nix::unistd::execvp;
use std::ffi::CString;
use std::fs;
use std::path::PathBuf;

/// Enters `cgroups` and becomes `command`. Comes back only with an error.
///
/// # Errors
/// Where a cgroup can't be entered or the program not be executed; one line that names it.
pub fn launch(cgroups: &[PathBuf], command: &[String]) -> anyhow::Error {
    for dir in cgroups {
        let path = dir.join("cgroup.procs");
        // "0" means whoever writes.
        if let Err(error) = fs::write(&path, "0") {
            return anyhow::anyhow!("can't enter {}: {error}", path.display());
        }
    }
    let arguments: Result<Vec<CString>, _> =
        command.iter().map(|a| CString::new(a.as_bytes())).collect();
    match arguments.as_deref() {
        Ok([program, ..]) => match execvp(program, arguments.as_deref().unwrap_or_default()) {
            Ok(never) => match never {},
            Err(error) => anyhow::anyhow!("can't execute {}: {}", command[0], error.desc()),
        },
        Ok([]) => anyhow::anyhow!("no command given"),
        Err(error) => anyhow::anyhow!("a command can't hold a zero byte: {error}"),
    }
}
