//! `cargo xtask ebpf`: the kernel side, built by its own compiler for its own target.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::build::Profile;
use crate::cache::{stamp_matches, write_atomically};
use crate::context::Context;
use crate::process;
use crate::progress::{Activity, Steps};
use crate::setup::{self, toolchain::Toolchain};

const PROGRAMS: &str = "sim-ebpf/programs";
const ABI: &str = "sim-ebpf/abi";
const BINARY: &str = "sim-ebpf-programs";
const TARGET: &str = "bpfel-unknown-none";
/// Its file name beside the `sim` binary.
const OBJECT: &str = "sim-ebpf.o";

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Which binary to put the object beside
    #[arg(long, value_enum, default_value_t = Profile::Dev)]
    profile: Profile,
}

pub(crate) fn run(context: &Context, arguments: &Arguments) -> Result<()> {
    let mut steps = Steps::new("ebpf", 2);
    match setup::kernel_side(context, &mut steps, arguments.profile)? {
        Some(object) => {
            println!("ebpf: {}", object.display());
            Ok(())
        }
        None => bail!("no eBPF toolchain, so no object"),
    }
}

/// Builds the object if its inputs changed, and puts it beside the binary.
pub(crate) fn build(
    context: &Context,
    toolchain: &Toolchain,
    profile: Profile,
    activity: &Activity,
) -> Result<(PathBuf, String)> {
    let _lock = context.cache.lock("ebpf-object", activity)?;
    let flags = flags(context, toolchain);
    // Taken before the build: an edit while it runs makes the next run build again.
    let stamp = toolchain
        .stamp(context)?
        .add(flags.as_bytes())
        .add_folder(&context.root.join(PROGRAMS))?
        .add_folder(&context.root.join(ABI))?
        .finish();
    let products = context.target.join("ebpf");
    let built = products.join(OBJECT);
    let stamp_file = products.join("stamp");
    let mut verdict = "ok (unchanged)";
    if !(stamp_matches(&stamp_file, &stamp) && built.is_file()) {
        activity.say("compiling");
        copy(&compile(context, toolchain, &flags, &products)?, &built)?;
        write_atomically(&stamp_file, stamp.as_bytes())?;
        verdict = "ok (built)";
    }
    let object = profile.folder(context).join(OBJECT);
    copy(&built, &object)?;
    Ok((object, verdict.to_owned()))
}

/// Leaves an equal file alone, so that its time tells of the last real change.
fn copy(from: &Path, to: &Path) -> Result<()> {
    let content = std::fs::read(from).with_context(|| from.display().to_string())?;
    if std::fs::read(to).is_ok_and(|old| old == content) {
        return Ok(());
    }
    write_atomically(to, &content)
}

fn compile(
    context: &Context,
    toolchain: &Toolchain,
    flags: &str,
    products: &Path,
) -> Result<PathBuf> {
    let log = context.cache.log("ebpf")?;
    let mut cargo = context.command(&toolchain.cargo);
    toolchain.apply(&mut cargo);
    cargo.current_dir(context.root.join(PROGRAMS));
    cargo.args([
        "build",
        "--release",
        "--bin",
        BINARY,
        "--target",
        TARGET,
        "-Zbuild-std=core",
    ]);
    cargo.env("CARGO_TARGET_DIR", products);
    cargo
        .env("CARGO_ENCODED_RUSTFLAGS", flags)
        .env_remove("RUSTFLAGS");
    // Not among the flags, which are part of symbol names: the same object wherever it is built.
    cargo.env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", &toolchain.linker);
    process::run_logged(&mut cargo, &log).context("the kernel side does not compile")?;
    Ok(products.join(TARGET).join("release").join(BINARY))
}

/// Compiler flags, in cargo's encoding (separated by 0x1f). Paths of this machine are mapped to
/// fixed names.
fn flags(context: &Context, toolchain: &Toolchain) -> String {
    let variable = |name| std::env::var_os(name).map(PathBuf::from);
    let cargo_home = variable("CARGO_HOME")
        .or_else(|| Some(variable("HOME")?.join(".cargo")))
        .unwrap_or_default();
    let remap = |from: &Path, to: &str| format!("--remap-path-prefix={}={to}", from.display());
    let architecture = std::env::consts::ARCH;
    [
        "-Clink-arg=--btf".to_owned(),
        "-Cdebuginfo=2".to_owned(),
        format!("--cfg=bpf_target_arch=\"{architecture}\""),
        remap(&context.root, "/sim"),
        remap(&cargo_home.join("registry/src"), "/registry"),
        remap(&toolchain.sysroot, "/rustc"),
    ]
    .join("\x1f")
}
