//! A virtual machine of Debian's packages: QEMU, a kernel, and BusyBox to live on it. All of it is unpacked in
//! the cache, never installed: this machine's own kernel and boot loader hear nothing of it.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use super::apt::{Apt, library_path};
use crate::cache::{Stamp, stamp_matches, write_atomically};
use crate::context::Context;
use crate::process;
use crate::progress::Activity;

const TOOLS: &[&str] = &["qemu-system-x86", "busybox-static"];
const WHOLE: &str = ".whole";
/// Raised when what is done with the packages changes.
const EDITION: &str = "1";

/// What the packages brought.
pub(crate) struct Guest {
    tools: PathBuf,
    libraries: OsString,
    kernel: PathBuf,
    /// As `uname -r` says inside.
    pub(crate) release: String,
}

impl Guest {
    /// The emulator, told where its firmware is. It is killed with the thread that starts it, however that
    /// one ends.
    pub(crate) fn qemu(&self, context: &Context) -> Command {
        let mut command = context.command("setpriv");
        command.args(["--pdeathsig", "KILL"]);
        command.arg(self.tools.join("usr/bin/qemu-system-x86_64"));
        for firmware in ["usr/share/qemu", "usr/share/seabios"] {
            command.arg("-L").arg(self.tools.join(firmware));
        }
        command.env("LD_LIBRARY_PATH", &self.libraries);
        command
    }

    /// A static program that is a whole userland.
    pub(crate) fn busybox(&self) -> PathBuf {
        busybox(&self.tools)
    }

    /// The kernel itself.
    pub(crate) fn image(&self) -> PathBuf {
        self.kernel.join(format!("boot/vmlinuz-{}", self.release))
    }

    /// Its modules, and `modules.dep` that says which needs which.
    pub(crate) fn modules(&self) -> PathBuf {
        self.kernel.join("lib/modules").join(&self.release)
    }
}

pub(super) fn install(
    context: &Context,
    apt: &Apt,
    kernel: &str,
    activity: &Activity,
) -> Result<(Guest, String)> {
    ensure!(
        cfg!(target_arch = "x86_64"),
        "the virtual machine is an x86-64 one, and runs SIM as built here"
    );
    ensure!(
        apt.is_present(),
        "no apt-get here: the virtual machine is made of Debian's packages"
    );
    let _lock = context.cache.lock("guest", activity)?;
    let mut cached = true;
    let tools = cached_folder(context, "guest-tools", TOOLS, &mut cached, |root| {
        let is_own = |name: &str| TOOLS.contains(&name);
        let fetch = || apt.fetch(context, TOOLS, is_own, root, activity);
        with_fresh_lists(context, apt, activity, fetch)
    })?;
    let folder = format!("guest-{kernel}");
    let kernel = cached_folder(context, &folder, &[kernel], &mut cached, |root| {
        let fetch = || {
            apt.know(context, kernel, activity)?;
            let versioned = versioned(
                kernel,
                &apt.dependencies(context, kernel).unwrap_or_default(),
            );
            apt.fetch_alone(context, &BTreeSet::from([versioned]), root, activity)
        };
        with_fresh_lists(context, apt, activity, fetch)?;
        activity.say("depmod");
        let mut depmod = context.command(busybox(&tools));
        depmod.arg("depmod").arg("-b").arg(root).arg(release(root)?);
        process::output(&mut depmod).map(drop)
    })?;
    let guest = Guest {
        libraries: library_path(&tools)?,
        release: release(&kernel)?,
        tools,
        kernel,
    };
    let verdict = format!(
        "ok ({} {}, kernel {})",
        if cached { "cached" } else { "fetched" },
        TOOLS.join(", "),
        guest.release
    );
    Ok((guest, verdict))
}

fn busybox(tools: &Path) -> PathBuf {
    tools.join("bin/busybox")
}

/// The folder `name` of the cache, made by `make` unless it was made of these packages before.
fn cached_folder(
    context: &Context,
    name: &str,
    packages: &[&str],
    cached: &mut bool,
    make: impl FnOnce(&Path) -> Result<()>,
) -> Result<PathBuf> {
    let stamp = packages
        .iter()
        .fold(Stamp::new().add(EDITION.as_bytes()), |stamp, name| {
            stamp.add(name.as_bytes())
        })
        .finish();
    let folder = context.cache.path(name);
    if stamp_matches(&folder.join(WHOLE), &stamp) {
        return Ok(folder);
    }
    *cached = false;
    context.cache.install(name, |root| {
        make(root)?;
        write_atomically(&root.join(WHOLE), stamp.as_bytes())
    })
}

/// Old lists may name versions that are no longer offered.
fn with_fresh_lists(
    context: &Context,
    apt: &Apt,
    activity: &Activity,
    fetch: impl Fn() -> Result<()>,
) -> Result<()> {
    fetch().or_else(|_| {
        apt.update(context, activity)?;
        fetch()
    })
}

/// A name without a version is a package that is empty and depends on the kernel of the day.
fn versioned(package: &str, dependencies: &[String]) -> String {
    let kernel = dependencies
        .iter()
        .find(|name| name.starts_with("linux-image-"));
    kernel.map_or(package, String::as_str).to_owned()
}

/// The one kernel that was unpacked there.
fn release(kernel: &Path) -> Result<String> {
    let folder = kernel.join("lib/modules");
    let entries = std::fs::read_dir(&folder).with_context(|| folder.display().to_string())?;
    let mut names = entries
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<Result<Vec<String>>>()?;
    match (names.pop(), names.is_empty()) {
        (Some(release), true) => Ok(release),
        _ => bail!("{}: not one kernel", folder.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_of_the_day_is_found_and_one_with_a_version_is_itself() {
        let needs = |names: &[&str]| {
            names
                .iter()
                .map(|&name| name.to_owned())
                .collect::<Vec<_>>()
        };
        assert_eq!(
            versioned(
                "linux-image-cloud-amd64",
                &needs(&["linux-image-6.1.0-1-cloud-amd64"])
            ),
            "linux-image-6.1.0-1-cloud-amd64"
        );
        assert_eq!(
            versioned("linux-image-6.1.0-1-amd64", &needs(&["kmod", "linux-base"])),
            "linux-image-6.1.0-1-amd64"
        );
    }
}
