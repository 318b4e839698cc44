//! A demonstration that is ended at any moment leaves nothing behind.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rand::{RngExt as _, SeedableRng as _};
use rand_pcg::Pcg64;
use sim_node::cgroup::Hierarchy;
use sim_tests::demo::settings::Programs;
use sim_tests::world::{leftovers, privilege};

/// Name of the runs started here; another test process may do the same at the same time.
fn name() -> String {
    format!("sim-interrupted-{}", std::process::id())
}

/// Named cgroups, folders, processes, namespaces and pinned maps that a run could leave.
#[derive(Debug, PartialEq, Eq)]
struct Traces {
    named: Vec<String>,
    namespace_mounts: BTreeSet<String>,
    pinned: BTreeSet<String>,
}

impl Traces {
    fn read(hierarchy: &Hierarchy) -> Self {
        let own = name();
        let sweep = format!("{own}-sweep");
        let mut named = leftovers::find(hierarchy, &[&own, &sweep], "", &[]);
        let temporary = fs::read_dir(std::env::temp_dir()).unwrap().flatten();
        named.extend(temporary.filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            name.starts_with(&own).then(|| format!("folder {name}"))
        }));
        for process in fs::read_dir("/proc").unwrap().flatten() {
            let environment = fs::read(process.path().join("environ")).unwrap_or_default();
            let mark = format!("{}=", leftovers::MARK);
            if String::from_utf8_lossy(&environment)
                .split('\0')
                .any(|entry| entry.starts_with(&mark) && entry.contains(&own))
            {
                let command = fs::read(process.path().join("cmdline")).unwrap_or_default();
                named.push(String::from_utf8_lossy(&command).replace('\0', " "));
            }
        }
        let mounted = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let of_kind = |kind: &str| -> BTreeSet<String> {
            let lines = mounted
                .lines()
                .filter(|line| line.contains(&format!(" - {kind} ")));
            lines
                .filter_map(|line| Some(line.split(' ').nth(4)?.to_owned()))
                .collect()
        };
        let mut pinned = of_kind("bpf");
        for mount in pinned.clone() {
            list(Path::new(&mount), &mut pinned);
        }
        Self {
            named,
            namespace_mounts: of_kind("nsfs"),
            pinned,
        }
    }
}

fn list(folder: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        found.insert(entry.path().display().to_string());
        if entry.path().is_dir() {
            list(&entry.path(), found);
        }
    }
}

fn start(sweep: bool) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sim-demo"));
    command.args(["--headless", "--name", &name()]);
    if !sweep {
        // What comes after the sweep, sooner.
        command.args(["--capacity", "300"]);
    }
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command.spawn().unwrap()
}

fn end(mut child: Child, signal: Signal) -> ExitStatus {
    kill(Pid::from_raw(child.id().cast_signed()), signal).unwrap();
    child.wait().unwrap()
}

/// Traces are gone at once after a polite end, and within `patience` after another.
fn settle(hierarchy: &Hierarchy, before: &Traces, patience: Duration) -> Result<(), Traces> {
    let deadline = Instant::now() + patience;
    loop {
        let now = Traces::read(hierarchy);
        if now == *before {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(now);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_demonstration_ended_at_any_moment_leaves_nothing() {
    let missing =
        privilege::missing().or_else(|| Programs::locate().err().map(|error| format!("{error:#}")));
    if !privilege::or_skip("a demonstration ended at any moment", missing) {
        return;
    }
    let hierarchy = Hierarchy::detect().unwrap();
    let before = Traces::read(&hierarchy);
    assert_eq!(before.named, Vec::<String>::new());
    let mut random = Pcg64::seed_from_u64(20);
    for round in 0..20 {
        // The first rounds end in set-up and sweep, the others mostly after it.
        let sweep = round < 6;
        let moment = Duration::from_secs_f64(14.0 * random.random::<f64>().powi(2));
        let signal = match round {
            9 | 19 => Signal::SIGKILL,
            _ if random.random() => Signal::SIGINT,
            _ => Signal::SIGTERM,
        };
        let child = start(sweep);
        std::thread::sleep(moment);
        let status = end(child, signal);
        let what = format!("round {round}: {signal} after {moment:?}, sweep {sweep}: {status}");
        if signal == Signal::SIGKILL {
            // The next start finds what this one left, and its end leaves nothing.
            let child = start(false);
            std::thread::sleep(Duration::from_secs(14));
            let status = end(child, Signal::SIGTERM);
            assert_eq!(status.code(), Some(130), "the start after {what}");
        } else {
            // In its first milliseconds, before it holds anything, the signal itself ends it.
            let ended = status.code() == Some(130) || status.signal() == Some(signal as i32);
            assert!(ended, "{what}");
        }
        let patience = Duration::from_secs(30);
        if let Err(left) = settle(&hierarchy, &before, patience) {
            panic!("{what} left {left:#?}");
        }
    }
}
