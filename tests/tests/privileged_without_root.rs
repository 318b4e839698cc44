//! The demonstration also runs for a user who may only read: no namespaces, no cgroups, no
//! probes. Root is needed only to become that user.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};
use sim_tests::demo::settings::Programs;
use sim_tests::world::privilege;

const NOBODY: &str = "65534";
/// Longest wait for the next line: half a minute passes until the baseline is known.
const PATIENCE: Duration = Duration::from_secs(120);

fn missing() -> Option<String> {
    if !geteuid().is_root() {
        return Some("only root can become nobody".to_owned());
    }
    let version = Command::new("setpriv").arg("--version").output();
    match version {
        Ok(output) if output.status.success() => {}
        _ => return Some("no setpriv, which util-linux brings".to_owned()),
    }
    Programs::locate().err().map(|error| format!("{error:#}"))
}

#[test]
fn the_demonstration_runs_without_root() {
    if !privilege::or_skip("a demonstration without root", missing()) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    let mut command = Command::new("setpriv");
    command.args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups"]);
    // The programs may lie in root's home. This lets nobody read, and do nothing else.
    command.args(["--inh-caps=-all,+dac_read_search"]);
    command.args(["--ambient-caps=-all,+dac_read_search"]);
    command.args(["--bounding-set=-all,+dac_read_search"]);
    command.arg(env!("CARGO_BIN_EXE_sim-demo"));
    command.args(["--headless", "--seed", "4", "--name", "sim-without-root"]);
    command.env("TMPDIR", folder.path());
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut demo = command.spawn().unwrap();
    let pid = Pid::from_raw(demo.id().cast_signed());

    let (lines, heard) = mpsc::channel();
    let output = BufReader::new(demo.stdout.take().unwrap());
    std::thread::spawn(move || {
        for line in output.lines().map_while(Result::ok) {
            println!("{line}");
            if lines.send(line).is_err() {
                return;
            }
        }
    });
    let mut said = Vec::new();
    let over = loop {
        match heard.recv_timeout(PATIENCE) {
            Ok(line) => said.push(line),
            Err(RecvTimeoutError::Disconnected) => break true,
            Err(RecvTimeoutError::Timeout) => break false,
        }
    };
    if !over {
        kill(pid, Signal::SIGKILL).unwrap();
    }
    let code = demo.wait().unwrap().code();
    assert!(over, "it hangs: {said:#?}");

    let with = |words: &[&str]| {
        let all = |line: &&String| words.iter().all(|word| line.contains(word));
        said.iter().filter(all).count()
    };
    assert_eq!(with(&["world", "loopback addresses"]), 1);
    assert_eq!(with(&["sweep", "stopping it now and then"]), 1);
    assert_eq!(
        with(&["  probe "]),
        1,
        "one line on what is not seen: {said:#?}"
    );
    assert_eq!(with(&["  probe ", "not permitted", "/proc"]), 1);
    // 3: every promise was kept but the tail's, which a noisy machine can break.
    assert!(matches!(code, Some(0 | 3)), "{code:?}");
}
