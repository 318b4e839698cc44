//! The others: Debian's bpftrace and libbpf-tools, and what loads them.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::Signal;
use sim_tests::world::process::{Guarded, Placement};

use crate::spent;

/// The same result per cgroup as the CPU group's main part (no neighbours, no quota, no migrations):
/// on-CPU time, switches, histogram of the run-queue delay.
const PER_CGROUP: &str = "
tracepoint:sched:sched_wakeup, tracepoint:sched:sched_wakeup_new { @runnable[args->pid] = nsecs; }
tracepoint:sched:sched_switch {
  if (args->prev_pid) {
    @switches[cgroup] = count();
    $begin = @begin[cpu];
    if ($begin) { @on_cpu[cgroup] = sum(nsecs - $begin); }
    $waited = @waited[args->prev_pid];
    if ($waited) { @delay[cgroup] = hist($waited); delete(@waited[args->prev_pid]); }
    if (args->prev_state == 0) { @runnable[args->prev_pid] = nsecs; }
  }
  @begin[cpu] = nsecs;
  $since = @runnable[args->next_pid];
  if ($since) { @waited[args->next_pid] = nsecs - $since; delete(@runnable[args->next_pid]); }
}
interval:s:600 { exit(); }
";

/// bpftrace's own `runqlat.bt` (which includes a kernel header that not every machine has).
const RUNQLAT: &str = "
tracepoint:sched:sched_wakeup, tracepoint:sched:sched_wakeup_new { @qtime[args->pid] = nsecs; }
tracepoint:sched:sched_switch {
  if (args->prev_state == 0) { @qtime[args->prev_pid] = nsecs; }
  $ns = @qtime[args->next_pid];
  if ($ns) { @usecs = hist((nsecs - $ns) / 1000); }
  delete(@qtime[args->next_pid]);
}
interval:s:600 { exit(); }
";

/// Where the peers' packages are unpacked.
#[derive(Clone, Debug)]
pub(crate) struct Peers {
    root: PathBuf,
    libraries: OsString,
}

impl Peers {
    pub(crate) fn locate() -> Result<Self> {
        let variable = |name| {
            std::env::var_os(name)
                .with_context(|| format!("{name} is not set; `cargo xtask bench probes` sets it"))
        };
        Ok(Self {
            root: variable("SIM_PEERS")?.into(),
            libraries: variable("SIM_PEERS_LIBRARIES")?,
        })
    }

    /// A program of theirs, with its libraries.
    pub(crate) fn command(&self, program: &str) -> Result<Command> {
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

    /// The same, and a tracefs where only the program sees it: not every machine has one mounted.
    fn with_tracefs(&self, program: &str) -> Result<Command> {
        const SCRIPT: &str = "test -e /sys/kernel/tracing/events || mount -t tracefs bench /sys/kernel/tracing; exec \"$0\" \"$@\"";
        let plain = self.command(program)?;
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", SCRIPT]);
        command.arg(plain.get_program());
        command.env("LD_LIBRARY_PATH", &self.libraries);
        Ok(command)
    }

    /// What it says of itself.
    pub(crate) fn version(&self, program: &str, option: &str) -> String {
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

/// A tool of theirs that looks at the scheduler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tool {
    /// What [`PER_CGROUP`] says.
    BpftracePerCgroup,
    /// Histogram of the run-queue delay of the whole machine.
    BpftraceRunqlat,
    /// The same by libbpf-tools.
    LibbpfRunqlat,
    /// Histogram of on-CPU times of the whole machine by libbpf-tools.
    LibbpfCpudist,
}

impl Tool {
    pub(crate) const ALL: [Self; 4] = [
        Self::BpftracePerCgroup,
        Self::BpftraceRunqlat,
        Self::LibbpfRunqlat,
        Self::LibbpfCpudist,
    ];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::BpftracePerCgroup => "bpftrace_per_cgroup",
            Self::BpftraceRunqlat => "bpftrace_runqlat",
            Self::LibbpfRunqlat => "libbpf_tools_runqlat",
            Self::LibbpfCpudist => "libbpf_tools_cpudist",
        }
    }

    /// Starts it and waits until its programs run.
    pub(crate) fn start(self, peers: &Peers) -> Result<Guarded> {
        let mut command = match self {
            Self::BpftracePerCgroup => {
                let mut command = peers.with_tracefs("bpftrace")?;
                command.args(["-e", PER_CGROUP]);
                command
            }
            Self::BpftraceRunqlat => {
                let mut command = peers.with_tracefs("bpftrace")?;
                command.args(["-e", RUNQLAT]);
                command
            }
            Self::LibbpfRunqlat => {
                let mut command = peers.command("runqlat")?;
                command.args(["600", "1"]);
                command
            }
            Self::LibbpfCpudist => {
                let mut command = peers.command("cpudist")?;
                command.args(["600", "1"]);
                command
            }
        };
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let mut tool = Guarded::spawn(
            self.name(),
            command,
            Placement::default(),
            Signal::SIGINT,
            Duration::from_secs(5),
        )
        .context(self.name())?;
        let pid = tool.pid().as_raw().cast_unsigned();
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            if let Some(end) = tool.ended() {
                bail!("{}: {end}", self.name());
            }
            let programs = spent::of_process(pid).unwrap_or_default();
            let running = programs.values().filter(|one| one.run_count > 0).count();
            // The switch and, but for cpudist, the wakeup.
            if running >= if self == Self::LibbpfCpudist { 1 } else { 2 } {
                return Ok(tool);
            }
            if Instant::now() > deadline {
                bail!(
                    "{}: its programs don't run after a minute: {programs:?}",
                    self.name()
                );
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}
