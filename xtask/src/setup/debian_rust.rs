//! Debian's newest compiler, unpacked in the cache without root, and bpf-linker built against its
//! LLVM: the way to an eBPF object where rustup can't fetch a nightly with `rust-src`.
//!
//! No version is written here but bpf-linker's: Debian's security updates move the compiler, and
//! with it the LLVM that the linker must match.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::apt::{Apt, library_path};
use super::toolchain::{Toolchain, has_library_source, llvm_major};
use crate::cache::remove_folder;
use crate::context::Context;
use crate::process;
use crate::progress::Activity;

const COMPILER: &str = "rustc-web";
const SOURCE: &str = "rust-web-src";
const LINKER_VERSION: &str = "0.13.0";
/// The oldest LLVM that this bpf-linker builds against.
const LLVM_MIN: u32 = 21;

pub(super) fn toolchain(context: &Context, apt: &Apt, activity: &Activity) -> Result<Toolchain> {
    let _lock = context.cache.lock("ebpf-toolchain", activity)?;
    let root = context.cache.path("debian-rust");
    let mut origin = "cached";
    // A compiler of earlier days may be too old for the linker of today.
    if usable_version(context, &root).is_err() {
        unpack_compiler(context, apt, activity)?;
        origin = "built";
    }
    let libraries = library_path(&root)?;
    let version = usable_version(context, &root)?;
    let llvm = llvm_major(&version)?;
    let folder = format!("bpf-linker-{LINKER_VERSION}-llvm{llvm}");
    let linker = context.cache.path(&folder).join("bin/bpf-linker");
    if !linker.is_file() {
        build_linker(context, &folder, llvm, &libraries, activity)?;
        origin = "built";
    }
    Ok(Toolchain {
        cargo: context.cargo_path().to_owned(),
        rustc: root.join("usr/bin/rustc"),
        linker,
        libraries: Some(libraries),
        sysroot: root.join("usr"),
        origin: format!("{origin}, Debian's rustc {}", release(&version)),
    })
}

/// What `rustc -vV` of the compiler below `root` says; an error if there is none or the linker
/// can't be built against its LLVM.
fn usable_version(context: &Context, root: &Path) -> Result<String> {
    let mut ask = context.command(root.join("usr/bin/rustc"));
    ask.env("LD_LIBRARY_PATH", library_path(root)?).arg("-vV");
    let version = process::output(&mut ask)?;
    let llvm = llvm_major(&version)?;
    anyhow::ensure!(
        llvm >= LLVM_MIN,
        "{COMPILER} {} has LLVM {llvm}, bpf-linker {LINKER_VERSION} needs {LLVM_MIN} or later",
        release(&version)
    );
    Ok(version)
}

/// `1.96.0` of what `rustc -vV` says.
fn release(verbose_version: &str) -> &str {
    let release = verbose_version
        .lines()
        .find_map(|line| line.strip_prefix("release:"));
    release.unwrap_or_default().trim()
}

fn unpack_compiler(context: &Context, apt: &Apt, activity: &Activity) -> Result<()> {
    // The compiler moves with Debian's security updates: old lists name an old one, or one that is
    // gone from the archive. Without a network they are still worth a try.
    if let Err(error) = apt.update(context, activity) {
        activity.say(format!("old package lists are used: {error:#}"));
    }
    context.cache.install("debian-rust", |root| {
        apt.fetch(context, &[COMPILER, SOURCE], is_own, root, activity)?;
        anyhow::ensure!(
            has_library_source(&root.join("usr")),
            "{SOURCE} brings no library source"
        );
        usable_version(context, root).map(drop)
    })?;
    Ok(())
}

/// Of another version than the installed one, perhaps: unpacked in any case.
fn is_own(package: &str) -> bool {
    [COMPILER, SOURCE].contains(&package)
        || package.starts_with("libstd-rust")
        || package.starts_with("libllvm")
}

fn build_linker(
    context: &Context,
    folder: &str,
    llvm: u32,
    libraries: &OsStr,
    activity: &Activity,
) -> Result<()> {
    activity.say(format!(
        "building bpf-linker {LINKER_VERSION} for LLVM {llvm}"
    ));
    let log = context.cache.log("bpf-linker")?;
    let build = context.cache.path("bpf-linker-target");
    context.cache.install(folder, |root| {
        let prefix = root.join("llvm");
        link_llvm(llvm, libraries, &prefix.join("lib"))?;
        let mut cargo = context.command(context.cargo_path());
        cargo.args([
            "install",
            "bpf-linker",
            "--locked",
            "--version",
            LINKER_VERSION,
        ]);
        cargo.args([
            "--no-default-features",
            "--features",
            &format!("llvm-{llvm}"),
        ]);
        cargo.arg("--root").arg(root);
        cargo
            .env("LLVM_PREFIX", &prefix)
            .env("CARGO_TARGET_DIR", &build);
        cargo
            .env("LD_LIBRARY_PATH", libraries)
            .env_remove("RUSTFLAGS");
        process::run_logged(cargo.current_dir(root), &log)
    })?;
    remove_folder(&build)
}

/// A prefix that looks like an LLVM installation to bpf-linker's build script.
fn link_llvm(llvm: u32, libraries: &OsStr, folder: &Path) -> Result<()> {
    let library = std::env::split_paths(libraries)
        .find_map(|directory| find_llvm(&directory, llvm))
        .with_context(|| format!("Debian's compiler came without libLLVM {llvm}"))?;
    let name = library.file_name().unwrap_or_default().to_owned();
    std::fs::create_dir_all(folder)?;
    std::os::unix::fs::symlink(&library, folder.join(&name))?;
    if name != "libLLVM.so" {
        std::os::unix::fs::symlink(&name, folder.join("libLLVM.so"))?;
    }
    Ok(())
}

fn find_llvm(folder: &Path, llvm: u32) -> Option<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir(folder)
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            path.file_name()
                .and_then(OsStr::to_str)
                .is_some_and(|name| is_llvm_library(name, llvm))
        })
        .collect();
    found.sort();
    found.pop()
}

/// `libLLVM.so.22.1` or, before LLVM 18, `libLLVM-17.so.1`.
fn is_llvm_library(name: &str, llvm: u32) -> bool {
    let new = format!("libLLVM.so.{llvm}");
    let old = format!("libLLVM-{llvm}.so");
    name.strip_prefix(&new)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        || name.starts_with(&old)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_llvm_library_is_known_by_either_naming() {
        assert!(is_llvm_library("libLLVM.so.22.1", 22));
        assert!(is_llvm_library("libLLVM.so.22", 22));
        assert!(is_llvm_library("libLLVM-17.so.1", 17));
        assert!(!is_llvm_library("libLLVM.so.221", 22));
        assert!(!is_llvm_library("libLLVM-C.so.22", 22));
    }
}
