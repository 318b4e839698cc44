//! apt-get, asked as little as possible: its lists are fetched at most once in a run, and only
//! when something is missing from them.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::cache::remove_folder;
use crate::context::{Context, find_program, is_root};
use crate::process;
use crate::progress::Activity;

pub(crate) struct Apt {
    present: bool,
    updated: Cell<bool>,
    /// Options that point apt at package lists of our own, where root's are out of reach.
    options: RefCell<Vec<String>>,
}

impl Apt {
    pub(super) fn find(context: &Context) -> Self {
        let programs = ["apt-get", "apt-cache", "dpkg-query", "dpkg-deb"];
        let lists = private_lists(context);
        // Lists of our own, once fetched, are used again.
        let options = if !is_root() && lists.is_dir() {
            private_options(&lists)
        } else {
            Vec::new()
        };
        Self {
            present: programs.iter().all(|name| find_program(name).is_some()),
            updated: Cell::new(false),
            options: RefCell::new(options),
        }
    }

    pub(super) fn is_present(&self) -> bool {
        self.present
    }

    fn command(&self, context: &Context, program: &str) -> Command {
        let mut command = context.command(program);
        command.args(self.options.borrow().iter());
        command
            .env("LC_ALL", "C")
            .env("DEBIAN_FRONTEND", "noninteractive");
        command
    }

    /// Fetches the package lists, unless this run has done so.
    pub(super) fn update(&self, context: &Context, activity: &Activity) -> Result<()> {
        if self.updated.replace(true) {
            return Ok(());
        }
        activity.say("apt-get update");
        if !is_root() {
            let lists = private_lists(context);
            std::fs::create_dir_all(lists.join("lists/partial"))?;
            std::fs::create_dir_all(lists.join("archives/partial"))?;
            self.options.replace(private_options(&lists));
        }
        let log = context.cache.log("apt")?;
        process::run_logged(
            self.command(context, "apt-get").args(["update", "-q"]),
            &log,
        )
    }

    /// Installs packages into the system; root only.
    pub(super) fn install(
        &self,
        context: &Context,
        packages: &[&str],
        activity: &Activity,
    ) -> Result<()> {
        let log = context.cache.log("apt")?;
        let install = || {
            activity.say(format!("apt-get install {}", packages.join(" ")));
            let mut command = self.command(context, "apt-get");
            command.args(["install", "-q", "-y", "--no-install-recommends"]);
            command
                .args(["-o", "DPkg::Lock::Timeout=300"])
                .args(packages);
            process::run_logged(&mut command, &log)
        };
        // Old lists may name versions that are no longer offered.
        install().or_else(|_| self.update(context, activity).and_then(|()| install()))
    }

    /// The packages that the candidate version of `package` depends on; none if it is unknown
    /// (a virtual package, say).
    pub(super) fn dependencies(&self, context: &Context, package: &str) -> Option<Vec<String>> {
        let mut command = self.command(context, "apt-cache");
        command.args(["show", "--no-all-versions", package]);
        let text = process::output(&mut command).ok()?;
        text.contains("Package:").then(|| depends_field(&text))
    }

    /// True when dpkg has the package installed.
    fn is_installed(&self, context: &Context, package: &str) -> bool {
        let mut command = context.command("dpkg-query");
        command.args(["--show", "--showformat", "${db:Status-Status}\n", package]);
        process::output(&mut command).is_ok_and(|text| text.lines().any(|line| line == "installed"))
    }

    /// Makes sure that `package` is known, by fetching the lists if it is not.
    pub(super) fn know(&self, context: &Context, package: &str, activity: &Activity) -> Result<()> {
        if !self.present {
            bail!("no apt-get here");
        }
        if self.dependencies(context, package).is_none() {
            self.update(context, activity)?;
        }
        if self.dependencies(context, package).is_none() {
            bail!("apt knows no package {package}");
        }
        Ok(())
    }

    /// Fetches packages and all that they need, and unpacks them below `root` without installing them, as
    /// any user. Left out is what dpkg has installed already, unless `is_own` wants it in any case.
    pub(super) fn fetch(
        &self,
        context: &Context,
        wanted: &[&str],
        is_own: impl Fn(&str) -> bool,
        root: &Path,
        activity: &Activity,
    ) -> Result<()> {
        for package in wanted {
            self.know(context, package, activity)?;
        }
        activity.say("asking apt what is needed");
        let packages = self.closure(context, wanted, is_own);
        self.fetch_alone(context, &packages, root, activity)
    }

    /// Fetches these packages, without what they need, and unpacks them below `root`.
    pub(super) fn fetch_alone(
        &self,
        context: &Context,
        packages: &BTreeSet<String>,
        root: &Path,
        activity: &Activity,
    ) -> Result<()> {
        let archives = root.join(".archives");
        std::fs::create_dir_all(&archives)?;
        activity.say(format!("downloading {} package(s)", packages.len()));
        self.download(context, packages, &archives)?;
        activity.say(format!("unpacking {} package(s)", packages.len()));
        for entry in std::fs::read_dir(&archives)? {
            unpack(context, &entry?.path(), root)?;
        }
        remove_folder(&archives)
    }

    fn closure(
        &self,
        context: &Context,
        wanted: &[&str],
        is_own: impl Fn(&str) -> bool,
    ) -> BTreeSet<String> {
        let mut waiting: Vec<String> = wanted.iter().map(|&name| name.to_owned()).collect();
        let mut chosen = BTreeSet::new();
        while let Some(package) = waiting.pop() {
            if chosen.contains(&package)
                || (!is_own(&package) && self.is_installed(context, &package))
            {
                continue;
            }
            // An unknown name is virtual, such as libc-dev: what provides it links Rust programs
            // and so is there, or the packages step has said what is missing.
            if let Some(dependencies) = self.dependencies(context, &package) {
                waiting.extend(dependencies);
                chosen.insert(package);
            }
        }
        chosen
    }

    /// Downloads packages into `folder`, as any user.
    fn download(
        &self,
        context: &Context,
        packages: &BTreeSet<String>,
        folder: &Path,
    ) -> Result<()> {
        let log = context.cache.log("apt")?;
        let mut command = self.command(context, "apt-get");
        // Root's download would otherwise be handed to a user who may not write to the folder.
        command
            .args(["download", "-q", "-o", "APT::Sandbox::User=root"])
            .args(packages);
        process::run_logged(command.current_dir(folder), &log)
    }
}

fn private_lists(context: &Context) -> PathBuf {
    context.cache.path("apt")
}

fn private_options(lists: &Path) -> Vec<String> {
    let at = |name: &str, folder: &str| format!("{name}={}", lists.join(folder).display());
    [
        at("Dir::State::Lists", "lists"),
        at("Dir::Cache", ""),
        "Debug::NoLocking=1".to_owned(),
    ]
    .into_iter()
    .flat_map(|option| ["-o".to_owned(), option])
    .collect()
}

/// Unpacks one package below `root`, without installing it.
fn unpack(context: &Context, package: &Path, root: &Path) -> Result<()> {
    let mut command = context.command("dpkg-deb");
    command.arg("--extract").arg(package).arg(root);
    process::output(&mut command).map(drop).context("unpack")
}

/// The multiarch folders of the unpacked packages.
pub(super) fn library_path(root: &Path) -> Result<OsString> {
    let mut folders = Vec::new();
    for parent in [root.join("usr/lib"), root.join("lib")] {
        let Ok(entries) = std::fs::read_dir(&parent) else {
            continue;
        };
        for entry in entries {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if path.is_dir() && name.contains("-linux-") {
                folders.push(path);
            }
        }
    }
    std::env::join_paths(folders).context("library path")
}

/// Names in the `Depends:` field: the first of alternatives, without versions and qualifiers.
fn depends_field(show: &str) -> Vec<String> {
    show.lines()
        .filter_map(|line| {
            line.strip_prefix("Depends:")
                .or_else(|| line.strip_prefix("Pre-Depends:"))
        })
        .flat_map(|field| field.split(','))
        .filter_map(|entry| entry.split('|').next()?.split_whitespace().next())
        .map(|name| name.split(':').next().unwrap_or(name).to_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_from_the_depends_field() {
        let show = "Package: rustc-web\nVersion: 2\nDepends: libc6 (>= 2.34), gcc | clang, \
                    python3:any, libstd-rust-web-dev (= 1.0+dfsg1-1)\nConflicts: rustup\n";
        assert_eq!(
            depends_field(show),
            ["libc6", "gcc", "python3", "libstd-rust-web-dev"]
        );
        assert!(depends_field("Package: x\n").is_empty());
    }

    #[test]
    fn only_multiarch_folders_are_on_the_library_path() {
        let root = std::env::temp_dir().join(format!("xtask-libraries-{}", std::process::id()));
        std::fs::create_dir_all(root.join("usr/lib/x86_64-linux-gnu")).unwrap();
        std::fs::create_dir_all(root.join("usr/lib/rustlib")).unwrap();
        let path = library_path(&root).unwrap();
        assert_eq!(PathBuf::from(path), root.join("usr/lib/x86_64-linux-gnu"));
        remove_folder(&root).unwrap();
    }
}
