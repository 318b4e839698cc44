//! Debian packages: asked for by what they bring, so that a machine that has it otherwise is fine.

use anyhow::Result;

use super::apt::Apt;
use super::python;
use crate::context::{Context, find_program, is_root};
use crate::progress::Activity;

/// What must be there, the package that brings it, and what for.
const NEEDS: &[(&str, &str)] = &[
    ("cc", "gcc"),                // links every Rust program
    ("c++", "g++"),               // bpf-linker's LLVM binding
    ("make", "make"),             // C libraries below pingora
    ("cmake", "cmake"),           // the same
    ("pkg-config", "pkg-config"), // the same
    ("ip", "iproute2"),           // network namespaces of the demo
    ("nsenter", "util-linux"),    // programs inside them
    ("python3", "python3"),       // httpbin
    ("nft", "nftables"),          // lost packets in a test
    ("losetup", "mount"),         // a slow disk in a test
    ("valgrind", "valgrind"),     // instructions of a request
];

/// Installs what is missing; says so where it may not.
pub(super) fn install(context: &Context, apt: &Apt, activity: &Activity) -> Result<String> {
    let mut missing: Vec<&str> = NEEDS
        .iter()
        .filter(|(program, _)| find_program(program).is_none())
        .map(|(_, package)| *package)
        .collect();
    if python::interpreter(context).is_err() {
        missing.push("python3-venv");
    }
    if missing.is_empty() {
        return Ok("ok (all there)".to_owned());
    }
    let list = missing.join(" ");
    if !is_root() || !apt.is_present() {
        let reason = if apt.is_present() {
            "not root"
        } else {
            "no apt-get here"
        };
        return Ok(format!("not installed ({reason}), please install: {list}"));
    }
    apt.install(context, &missing, activity)?;
    Ok(format!("ok (installed {list})"))
}
