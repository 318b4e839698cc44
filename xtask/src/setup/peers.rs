//! What the benchmarks compare with and what loads them: unpacked in the cache, never installed, so
//! that no service of theirs starts here.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Result, ensure};

use super::apt::{Apt, library_path};
use crate::cache::{Stamp, write_atomically};
use crate::context::Context;
use crate::progress::Activity;

/// `nginx-light` has the modules, `nginx` the program.
const PACKAGES: &[&str] = &[
    "bpftrace",
    "haproxy",
    "libbpf-tools",
    "nghttp2-client",
    "nginx",
    "nginx-light",
    "wrk",
];
const WHOLE: &str = ".whole";

/// Programs of those packages.
pub(crate) struct Peers {
    root: PathBuf,
    libraries: OsString,
    envoy: Option<PathBuf>,
}

impl Peers {
    /// The same, with Envoy.
    pub(super) fn with_envoy(self, program: PathBuf) -> Self {
        Self {
            envoy: Some(program),
            ..self
        }
    }

    /// Tells a child where they are.
    pub(crate) fn tell(&self, command: &mut Command) {
        command.env("SIM_PEERS", &self.root);
        command.env("SIM_PEERS_LIBRARIES", &self.libraries);
        match &self.envoy {
            Some(envoy) => command.env("SIM_PEERS_ENVOY", envoy),
            None => command.env_remove("SIM_PEERS_ENVOY"),
        };
    }
}

pub(super) fn install(
    context: &Context,
    apt: &Apt,
    activity: &Activity,
) -> Result<(Peers, String)> {
    ensure!(
        apt.is_present(),
        "no apt-get here: the peers are Debian's packages"
    );
    let _lock = context.cache.lock("peers", activity)?;
    let stamp = PACKAGES
        .iter()
        .fold(Stamp::new(), |stamp, name| stamp.add(name.as_bytes()))
        .finish();
    let root = context.cache.path("peers");
    let cached = crate::cache::stamp_matches(&root.join(WHOLE), &stamp);
    if !cached {
        context.cache.install("peers", |root| {
            apt.fetch(
                context,
                PACKAGES,
                |name| PACKAGES.contains(&name),
                root,
                activity,
            )?;
            write_atomically(&root.join(WHOLE), stamp.as_bytes())
        })?;
    }
    let libraries = library_path(&root)?;
    let verdict = format!(
        "ok ({} {})",
        if cached { "cached" } else { "fetched" },
        PACKAGES.join(", ")
    );
    let envoy = None;
    Ok((
        Peers {
            root,
            libraries,
            envoy,
        },
        verdict,
    ))
}
