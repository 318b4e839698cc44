//! `cargo xtask setup`: everything a fresh machine lacks, step by step, and nothing twice.

mod apt;
mod debian_rust;
mod guest;
mod httpwg;
mod packages;
mod peers;
mod python;
pub(crate) mod toolchain;

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use crate::build::Profile;
use crate::context::{Context, REQUIRE_PRIVILEGED, privileged_required};
use crate::ebpf;
use crate::progress::{Activity, Steps};
use apt::Apt;
pub(crate) use guest::Guest;
pub(crate) use peers::Peers;

/// Steps that [`all`] takes.
pub(crate) const STEPS: usize = 4;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Only these parts, in this order
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Part>,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Part {
    /// Debian packages
    Packages,
    /// httpbin and gunicorn, the workload no one here wrote
    Httpbin,
    /// A compiler and linker for the kernel side
    Toolchain,
    /// The kernel side itself
    Object,
}

/// What setup made ready for the programs that run next.
pub(crate) struct Prepared {
    httpbin: PathBuf,
    object: Option<PathBuf>,
}

impl Prepared {
    /// Tells a child where everything is.
    pub(crate) fn tell(&self, command: &mut Command, context: &Context, profile: Profile) {
        command.env("SIM_BIN", profile.folder(context).join("sim"));
        command.env("SIM_HTTPBIN_VENV", &self.httpbin);
        match &self.object {
            Some(object) => command.env("SIM_EBPF_OBJECT", object),
            None => command.env_remove("SIM_EBPF_OBJECT"),
        };
    }
}

pub(crate) fn run(context: &Context, arguments: &Arguments) -> Result<()> {
    if arguments.only.is_empty() {
        let mut steps = Steps::new("setup", STEPS);
        return all(context, &mut steps, Profile::Dev).map(drop);
    }
    let apt = Apt::find(context);
    let mut steps = Steps::new("setup", arguments.only.len());
    for part in &arguments.only {
        match part {
            Part::Packages => packages(context, &mut steps, &apt)?,
            Part::Httpbin => drop(httpbin(context, &mut steps)?),
            Part::Toolchain => drop(toolchain(context, &mut steps, &apt)?),
            Part::Object => {
                let toolchain = toolchain::find(context, &apt, &Activity::default());
                drop(object(context, &mut steps, toolchain.ok(), Profile::Dev)?);
            }
        }
    }
    Ok(())
}

/// All of it, as the first [`STEPS`] of `steps`.
pub(crate) fn all(context: &Context, steps: &mut Steps, profile: Profile) -> Result<Prepared> {
    let apt = Apt::find(context);
    packages(context, steps, &apt)?;
    let httpbin = httpbin(context, steps)?;
    let toolchain = toolchain(context, steps, &apt)?;
    let object = object(context, steps, toolchain, profile)?;
    Ok(Prepared { httpbin, object })
}

/// The kernel side and what builds it, without the rest.
pub(crate) fn kernel_side(
    context: &Context,
    steps: &mut Steps,
    profile: Profile,
) -> Result<Option<PathBuf>> {
    let apt = Apt::find(context);
    let toolchain = toolchain(context, steps, &apt)?;
    object(context, steps, toolchain, profile)
}

/// What the benchmarks run beside SIM.
pub(crate) fn peers(context: &Context, steps: &mut Steps) -> Result<Peers> {
    let apt = Apt::find(context);
    steps.run("peers of the benchmark", |activity| {
        peers::install(context, &apt, activity)
    })
}

/// What the proxy benchmark runs beside SIM; two steps.
pub(crate) fn proxies(context: &Context, steps: &mut Steps) -> Result<Peers> {
    let peers = peers(context, steps)?;
    steps.run("Envoy", |activity| {
        let (folder, verdict) = python::install(context, &python::ENVOY, activity)?;
        let program = python::envoy_program(context, &folder)?;
        Ok((peers.with_envoy(program), verdict))
    })
}

/// A suite of HTTP/2's cases.
pub(crate) fn httpwg(context: &Context, steps: &mut Steps) -> Result<PathBuf> {
    steps.run("httpwg", |activity| httpwg::install(context, activity))
}

/// A machine to emulate, and the kernel of that package for it.
pub(crate) fn guest(context: &Context, steps: &mut Steps, kernel: &str) -> Result<Guest> {
    let apt = Apt::find(context);
    steps.run("virtual machine", |activity| {
        guest::install(context, &apt, kernel, activity)
    })
}

fn packages(context: &Context, steps: &mut Steps, apt: &Apt) -> Result<()> {
    steps.run("Debian packages", |activity| {
        packages::install(context, apt, activity).map(|verdict| ((), verdict))
    })
}

fn httpbin(context: &Context, steps: &mut Steps) -> Result<PathBuf> {
    steps.run("httpbin and gunicorn", |activity| {
        python::install(context, &python::HTTPBIN, activity)
    })
}

fn toolchain(
    context: &Context,
    steps: &mut Steps,
    apt: &Apt,
) -> Result<Option<toolchain::Toolchain>> {
    steps.run("eBPF toolchain", |activity| {
        match toolchain::find(context, apt, activity) {
            Ok(found) => {
                let verdict = format!("ok ({})", found.origin);
                Ok((Some(found), verdict))
            }
            Err(error) if toolchain::is_overridden() => Err(error),
            Err(error) if privileged_required() => {
                Err(error.context(format!("{REQUIRE_PRIVILEGED}=1 and no eBPF toolchain")))
            }
            Err(error) => {
                let reason = format!("{error:#}");
                let reason = reason.lines().next().unwrap_or_default();
                Ok((
                    None,
                    format!("not available: {reason}; cgroup and PSI files are read instead"),
                ))
            }
        }
    })
}

fn object(
    context: &Context,
    steps: &mut Steps,
    toolchain: Option<toolchain::Toolchain>,
    profile: Profile,
) -> Result<Option<PathBuf>> {
    steps.run("eBPF object", |activity| match toolchain {
        Some(toolchain) => {
            let (object, verdict) = ebpf::build(context, &toolchain, profile, activity)?;
            Ok((Some(object), verdict))
        }
        None => Ok((None, "not built: no eBPF toolchain".to_owned())),
    })
}
