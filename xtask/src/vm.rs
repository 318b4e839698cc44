//! `cargo xtask vm-test`: the probes on another kernel than this machine's. Debian's runs under QEMU with a
//! pure cgroup version 2 hierarchy, and in it the privileged tests of `sim-ebpf` and `sim sense`.

mod initramfs;
mod machine;
mod modules;
mod report;

use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::build::{self, Profile, TestProgram};
use crate::context::{Context, find_program};
use crate::process;
use crate::progress::{Steps, seconds};
use crate::setup::{self, Guest};
use initramfs::Initramfs;
use machine::Machine;
use modules::Modules;
use report::Report;

/// The package whose tests need a kernel.
const PACKAGE: &str = "sim-ebpf";
const PRIVILEGED: &str = "privileged";
/// For the scratch disk, devices on files of it, and what the kernel says of listening sockets.
const MODULES: &[&str] = &["virtio_pci", "virtio_blk", "loop", "tcp_diag"];
/// Programs of this machine that the tests start; BusyBox's are smaller, and not what the tests were made with.
const PROGRAMS: &[&str] = &["env", "losetup", "setpriv", "sh", "unshare"];
/// Tests that can't hold under emulation, and why not.
const LEFT_OUT_EMULATED: &[(&str, &str)] = &[(
    "threads_that_wait_once_in_their_life_for_want_of_quota_blame_nobody",
    "so slow that the quota often ends between a thread's birth and its parent's way out, and a wait that has \
     begun before is nobody's for certain",
)];
/// What the guest may take for all but the test programs.
const BESIDES: Duration = Duration::from_secs(180);
const INIT: &str = include_str!("vm/init.sh");

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Only tests whose name contains one of these
    filter: Vec<String>,
    /// Debian package of the kernel; one without a version stands for the newest
    #[arg(
        long,
        value_name = "PACKAGE",
        default_value = "linux-image-cloud-amd64"
    )]
    kernel: String,
    /// Longest that a test program may take in the guest, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    limit: u64,
}

pub(crate) fn run(context: &Context, arguments: &Arguments) -> Result<()> {
    let begin = Instant::now();
    let mut steps = Steps::new("vm-test", 6);
    let guest = setup::guest(context, &mut steps, &arguments.kernel)?;
    let object = setup::kernel_side(context, &mut steps, Profile::Dev)?
        .context("no eBPF toolchain, so no object to load")?;
    println!("{}", steps.heading("programs and tests"));
    let mut tests = build::tests_of(context, Profile::Dev, PACKAGE)?;
    tests.retain(|test| test.name.starts_with(PRIVILEGED));
    let machine = steps.run("files of the guest", |_| {
        let machine = Machine::new(&context.target.join("vm"))?;
        let files = Initramfs::create(&machine.initramfs)?;
        let settings = settings(context, arguments, left_out(&machine));
        fill(context, files, &guest, &tests, &object, &settings)?;
        let how = if machine.emulated {
            "ok (no KVM: emulated)"
        } else {
            "ok (KVM)"
        };
        Ok((machine, how.to_owned()))
    })?;
    println!("{}", steps.heading("guest"));
    let mut report = Report::default();
    let programs = u32::try_from(tests.len())?;
    let limit = Duration::from_secs(arguments.limit) * programs + BESIDES;
    let ended = process::run_lines_within(&mut machine.command(context, &guest), limit, |line| {
        if report.hear(line) {
            println!("{line}");
        }
    });
    println!("{report}");
    for (test, reason) in left_out(&machine) {
        println!("vm-test: LEFT OUT: {test}: {reason}");
    }
    let mut failures = report.failures(arguments.filter.is_empty());
    if let Err(error) = ended {
        failures.push(format!("{error:#}"));
    }
    if !failures.is_empty() {
        bail!(
            "{}\n(the guest kernel's log: {})",
            failures.join("\n"),
            machine.log.display()
        );
    }
    println!("vm-test: ok, in {}", seconds(begin.elapsed()));
    Ok(())
}

/// Everything that the guest has: its userland, the modules of its kernel, the tests and SIM itself.
fn fill(
    context: &Context,
    mut files: Initramfs<impl Write>,
    guest: &Guest,
    tests: &[TestProgram],
    object: &Path,
    settings: &str,
) -> Result<()> {
    files.add(Path::new("init"), INIT.as_bytes())?;
    files.add(Path::new("settings.sh"), settings.as_bytes())?;
    files.add_copy(&guest.busybox(), Path::new("bin/busybox"))?;
    let modules = guest.modules();
    let dep = modules.join("modules.dep");
    let dep = std::fs::read_to_string(&dep).with_context(|| dep.display().to_string())?;
    for (at, module) in Modules::parse(&dep).in_order(MODULES)?.iter().enumerate() {
        let name = Path::new(module).file_name().unwrap_or_default();
        let to = format!("modules/{at:02}-{}", name.to_string_lossy());
        files.add_copy(&modules.join(module), Path::new(&to))?;
    }
    for name in PROGRAMS {
        let program = find_program(name).with_context(|| format!("no {name} here"))?;
        files.add_program(context, &program, &format!("bin/{name}"))?;
    }
    files.add_copy(object, Path::new("sim/sim-ebpf.o"))?;
    files.add_program(
        context,
        &Profile::Dev.folder(context).join("sim"),
        "sim/sim",
    )?;
    for test in tests {
        files.add_program(context, &test.path, &format!("tests/{}", test.name))?;
    }
    files.finish()?;
    Ok(())
}

fn left_out(machine: &Machine) -> &'static [(&'static str, &'static str)] {
    if machine.emulated {
        LEFT_OUT_EMULATED
    } else {
        &[]
    }
}

/// What `init.sh` wants to know.
fn settings(context: &Context, arguments: &Arguments, left_out: &[(&str, &str)]) -> String {
    let left_out = left_out.iter().map(|(test, _)| format!("--skip {test}"));
    let words: Vec<String> = left_out.chain(arguments.filter.iter().cloned()).collect();
    // CARGO_TARGET_TMPDIR, which is part of the tests' code.
    let scratch = context.target.join("tmp");
    format!(
        "scratch={}\narguments={}\nlimit={}\n",
        quoted(&scratch.to_string_lossy()),
        quoted(&words.join(" ")),
        arguments.limit
    )
}

/// One word of a shell, whatever is in it.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_is_one_word_of_the_shell() {
        let said = process::output(
            std::process::Command::new("sh")
                .args(["-c", &format!("printf %s {}", quoted("it's $HOME"))]),
        );
        assert_eq!(said.unwrap(), "it's $HOME");
    }
}
