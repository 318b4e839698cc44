//! Where things are, and how children are started.

use std::ffi::{OsStr, OsString};
use std::io::IsTerminal;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::cache::Cache;
use crate::process;

/// Name of the variable that turns "this machine can't" into a failure.
pub(crate) const REQUIRE_PRIVILEGED: &str = "SIM_REQUIRE_PRIVILEGED";

/// The workspace this run works on.
pub(crate) struct Context {
    /// Workspace root.
    pub(crate) root: PathBuf,
    /// Cargo's target directory, as configured.
    pub(crate) target: PathBuf,
    /// What is kept outside the checkout.
    pub(crate) cache: Cache,
    cargo: PathBuf,
}

impl Context {
    pub(crate) fn new() -> Result<Self> {
        // Of this start, and not of the build: checkouts may share one target folder.
        let manifest = std::env::var_os("CARGO_MANIFEST_DIR")
            .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
        let mut context = Self {
            root: manifest.parent().unwrap_or(&manifest).to_owned(),
            target: PathBuf::new(),
            cache: Cache::locate()?,
            cargo: std::env::var_os("CARGO").map_or_else(|| "cargo".into(), PathBuf::from),
        };
        let target = &context.metadata()?["target_directory"];
        context.target = target
            .as_str()
            .context("cargo metadata: no target_directory")?
            .into();
        Ok(context)
    }

    /// What cargo says of the workspace's own packages.
    pub(crate) fn metadata(&self) -> Result<serde_json::Value> {
        let mut cargo = self.cargo();
        let text = process::output(cargo.args(["metadata", "--format-version", "1", "--no-deps"]))?;
        serde_json::from_str(&text).context("cargo metadata")
    }

    /// Cargo in the workspace root, as if it had not been started by `cargo run`.
    pub(crate) fn cargo(&self) -> Command {
        let mut command = self.command(&self.cargo);
        command.current_dir(&self.root);
        command
    }

    /// The cargo that runs this program.
    pub(crate) fn cargo_path(&self) -> &Path {
        &self.cargo
    }

    /// A command without the variables that `cargo run` adds: they would reach build scripts and
    /// make them run again, and the toolchain's libraries would reach every program we start.
    pub(crate) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        for (name, _) in std::env::vars_os() {
            if is_cargo_run_variable(&name) {
                command.env_remove(name);
            }
        }
        if let Some(path) = std::env::var_os("LD_LIBRARY_PATH") {
            let sysroot = self.cargo.parent().and_then(Path::parent);
            match library_path_without(&path, &self.target, sysroot) {
                Some(kept) => command.env("LD_LIBRARY_PATH", kept),
                None => command.env_remove("LD_LIBRARY_PATH"),
            };
        }
        command
    }
}

fn is_cargo_run_variable(name: &OsStr) -> bool {
    name.to_str().is_some_and(|name| {
        name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") || name == "OUT_DIR"
    })
}

/// `path` less what lies in the target directory or the toolchain; none if nothing is left.
fn library_path_without(path: &OsStr, target: &Path, sysroot: Option<&Path>) -> Option<OsString> {
    let kept: Vec<PathBuf> = std::env::split_paths(path)
        .filter(|entry| !entry.as_os_str().is_empty())
        .filter(|entry| target.as_os_str().is_empty() || !entry.starts_with(target))
        .filter(|entry| !sysroot.is_some_and(|sysroot| entry.starts_with(sysroot)))
        .collect();
    if kept.is_empty() {
        return None;
    }
    std::env::join_paths(kept).ok()
}

/// True when run by root: `/proc/self` belongs to the effective user.
pub(crate) fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|metadata| metadata.uid() == 0)
}

/// True when a missing privilege or tool must fail the run.
pub(crate) fn privileged_required() -> bool {
    std::env::var_os(REQUIRE_PRIVILEGED).is_some_and(|value| value == "1")
}

/// True when someone watches.
pub(crate) fn is_terminal() -> bool {
    std::io::stdout().is_terminal()
}

/// The first executable of that name on `PATH`.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        // Not every login has the administrator's directories on its path.
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|directory| directory.join(name))
        .find(|candidate| {
            candidate
                .metadata()
                .is_ok_and(|metadata| metadata.is_file() && metadata.mode() & 0o111 != 0)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_toolchain_and_target_leave_the_library_path() {
        let path = OsStr::new("/w/target/debug/deps:/opt/lib:/rust/lib:");
        let kept = library_path_without(path, Path::new("/w/target"), Some(Path::new("/rust")));
        assert_eq!(kept.as_deref(), Some(OsStr::new("/opt/lib")));
        let none =
            library_path_without(OsStr::new("/w/target/debug"), Path::new("/w/target"), None);
        assert_eq!(none, None);
    }

    #[test]
    fn only_the_variables_of_cargo_run_are_dropped() {
        assert!(is_cargo_run_variable(OsStr::new("CARGO_PKG_NAME")));
        assert!(is_cargo_run_variable(OsStr::new("CARGO_MANIFEST_DIR")));
        assert!(!is_cargo_run_variable(OsStr::new("CARGO_INCREMENTAL")));
        assert!(!is_cargo_run_variable(OsStr::new("CARGO_TARGET_DIR")));
    }
}
