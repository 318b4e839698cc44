//! A compiler and linker for the kernel side, from the first of three places that has them.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, anyhow, bail};

use super::apt::Apt;
use super::debian_rust;
use crate::cache::Stamp;
use crate::context::{Context, find_program};
use crate::process;
use crate::progress::Activity;

/// Names the compiler to take, whatever else is there.
const OVERRIDE: &str = "EBPF_RUSTC";

/// All that it takes to compile for `bpfel-unknown-none`.
pub(crate) struct Toolchain {
    pub(crate) cargo: PathBuf,
    pub(crate) rustc: PathBuf,
    pub(crate) linker: PathBuf,
    /// Where the libraries of compiler and linker are, if not where the system looks.
    pub(crate) libraries: Option<OsString>,
    /// Root of the compiler's own files.
    pub(crate) sysroot: PathBuf,
    /// Where it comes from, for the reader.
    pub(crate) origin: String,
}

impl Toolchain {
    /// Puts the toolchain's libraries in a child's way, and its compiler in cargo's.
    pub(crate) fn apply(&self, command: &mut Command) {
        command
            .env("RUSTC", &self.rustc)
            .env("RUSTC_BOOTSTRAP", "1");
        command
            .env_remove("RUSTC_WRAPPER")
            .env_remove("RUSTUP_TOOLCHAIN");
        if let Some(libraries) = &self.libraries {
            command.env("LD_LIBRARY_PATH", libraries);
        }
    }

    /// A stamp that changes with the compiler or the linker.
    pub(crate) fn stamp(&self, context: &Context) -> Result<Stamp> {
        let mut stamp = Stamp::new();
        for (program, flag) in [(&self.rustc, "-vV"), (&self.linker, "--version")] {
            let mut command = context.command(program);
            self.apply(&mut command);
            stamp = stamp.add(process::output(command.arg(flag))?.as_bytes());
        }
        Ok(stamp)
    }
}

/// `EBPF_RUSTC`, else a nightly with `rust-src` beside bpf-linker, else Debian's compiler,
/// unpacked in the cache.
pub(crate) fn find(context: &Context, apt: &Apt, activity: &Activity) -> Result<Toolchain> {
    if let Some(rustc) = override_rustc() {
        return complete(context, rustc, OVERRIDE).context(OVERRIDE);
    }
    let nightly = nightly_rustc(context).and_then(|rustc| complete(context, rustc, "nightly"));
    let no_nightly = match nightly {
        Ok(toolchain) => return Ok(toolchain),
        Err(error) => error,
    };
    debian_rust::toolchain(context, apt, activity).map_err(|no_debian| {
        anyhow!(
            "no Debian compiler ({no_debian:#}) and no nightly ({no_nightly:#}); a nightly is had by \
             `rustup toolchain install nightly --component rust-src` and `cargo install bpf-linker`"
        )
    })
}

fn override_rustc() -> Option<PathBuf> {
    std::env::var_os(OVERRIDE)
        .filter(|value| !value.is_empty())
        .map(PathBuf::from)
}

/// True when the user named a compiler: what is wrong with it is then an error.
pub(crate) fn is_overridden() -> bool {
    override_rustc().is_some()
}

fn nightly_rustc(context: &Context) -> Result<PathBuf> {
    let mut rustup = context.command("rustup");
    rustup.args(["which", "--toolchain", "nightly", "rustc"]);
    rustup
        .env_remove("RUSTUP_TOOLCHAIN")
        .env("RUSTUP_AUTO_INSTALL", "0");
    Ok(process::output(&mut rustup)?.trim().into())
}

/// A toolchain around a compiler that is on the machine, if nothing of it is missing.
fn complete(context: &Context, rustc: PathBuf, origin: &str) -> Result<Toolchain> {
    let mut ask = context.command(&rustc);
    ask.env_remove("RUSTUP_TOOLCHAIN")
        .args(["--print", "sysroot"]);
    let sysroot = PathBuf::from(process::output(&mut ask)?.trim());
    if !has_library_source(&sysroot) {
        bail!("no rust-src beside {}", rustc.display());
    }
    let linker = std::env::var_os("EBPF_LINKER")
        .map(PathBuf::from)
        .or_else(|| find_program("bpf-linker"))
        .context("no bpf-linker on PATH")?;
    // The compiler's own cargo knows its unstable flags best.
    let beside = sysroot.join("bin/cargo");
    let cargo = if beside.is_file() {
        beside
    } else {
        context.cargo_path().to_owned()
    };
    Ok(Toolchain {
        cargo,
        rustc,
        linker,
        libraries: None,
        sysroot,
        origin: origin.to_owned(),
    })
}

/// True when the sources of `core` are there for cargo to build.
pub(super) fn has_library_source(sysroot: &Path) -> bool {
    sysroot
        .join("lib/rustlib/src/rust/library/core/src/lib.rs")
        .is_file()
}

/// Major version of the LLVM that a compiler uses, from its `-vV`.
pub(super) fn llvm_major(verbose_version: &str) -> Result<u32> {
    verbose_version
        .lines()
        .find_map(|line| line.strip_prefix("LLVM version:"))
        .and_then(|version| version.trim().split('.').next()?.parse().ok())
        .context("rustc -vV names no LLVM version")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_llvm_version_is_read_from_the_compiler() {
        let text = "rustc 1.96.0\nbinary: rustc\nrelease: 1.96.0\nLLVM version: 22.1.4\n";
        assert_eq!(llvm_major(text).unwrap(), 22);
        assert!(llvm_major("rustc 1.96.0\n").is_err());
        assert!(llvm_major("LLVM version: unknown\n").is_err());
    }
}
