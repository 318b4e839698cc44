//! What the demonstration runs, and under which objective.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::sweep::Objective;

/// Name of the workload.
pub const WORKLOAD: &str = "httpbin";
/// CPUs of the first instance.
pub const CPUS: f64 = 0.25;
/// Memory of an instance.
pub const MEMORY_MIB: u64 = 256;
/// The objective: 99 % of requests within 150 ms.
pub const OBJECTIVE: Objective = Objective {
    quantile: 0.99,
    bound_ms: 150.0,
};
/// Longest run of one demonstration, from its first line to its verdict.
pub const RUN_SECONDS_MAX: u64 = 240;
/// What the supervisor gets to stop everything it started.
pub const STOP_GRACE: Duration = Duration::from_secs(20);

/// Programs that the demonstration is made of.
#[derive(Clone, Debug)]
pub struct Programs {
    /// The binary on show.
    pub sim: PathBuf,
    /// `gunicorn`, with httpbin beside it.
    pub gunicorn: PathBuf,
}

impl Programs {
    /// From `SIM_BIN` (else `sim` beside this program) and `SIM_HTTPBIN_VENV`.
    ///
    /// # Errors
    /// Names the variable and the file that is missing.
    pub fn locate() -> Result<Self> {
        let beside = || {
            let own = std::env::current_exe().context("path of this program")?;
            // A test's program lies one folder deeper.
            let mut folders = own
                .ancestors()
                .skip(1)
                .take(2)
                .map(|folder| folder.join("sim"));
            folders
                .find(|path| path.is_file())
                .context("SIM_BIN is not set and no `sim` lies beside this program")
        };
        let sim = variable("SIM_BIN").map_or_else(beside, |value| Ok(PathBuf::from(value)))?;
        let venv = variable("SIM_HTTPBIN_VENV").context(
            "SIM_HTTPBIN_VENV is not set: the folder of a Python environment with httpbin and \
             gunicorn; `cargo xtask demo` makes one and sets it",
        )?;
        let gunicorn = Path::new(&venv).join("bin/gunicorn");
        ensure!(
            gunicorn.is_file(),
            "SIM_HTTPBIN_VENV: no file {}",
            gunicorn.display()
        );
        Ok(Self { sim, gunicorn })
    }

    /// Command line of an instance.
    #[must_use]
    pub fn instance(&self, address: &str, port: &str) -> Vec<String> {
        let listen = format!("{address}:{port}");
        let gunicorn = self.gunicorn.display().to_string();
        let arguments = [
            "--bind",
            &listen,
            "--worker-class",
            "gthread",
            "--threads",
            "8",
            "--keep-alive",
            "75",
            "--log-level",
            "warning",
            "--no-control-socket",
            "httpbin:app",
        ];
        std::iter::once(gunicorn)
            .chain(arguments.map(str::to_owned))
            .collect()
    }
}

fn variable(name: &str) -> Option<OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}
