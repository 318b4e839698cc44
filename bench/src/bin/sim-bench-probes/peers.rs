//! The others: Debian's bpftrace and libbpf-tools, and what loads them.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use bench::peers::Peers;
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

/// A program of theirs, and a tracefs where only the program sees it: not every machine has one mounted.
fn with_tracefs(peers: &Peers, program: &str) -> Result<Command> {
    const SCRIPT: &str = "test -e /sys/kernel/tracing/events || mount -t tracefs bench /sys/kernel/tracing; exec \"$0\" \"$@\"";
    let plain = peers.command(program)?;
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", SCRIPT]);
    command.arg(plain.get_program());
    command.envs(
        plain
            .get_envs()
            .filter_map(|(name, value)| Some((name, value?))),
    );
    Ok(command)
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
                let mut command = with_tracefs(peers, "bpftrace")?;
                command.args(["-e", PER_CGROUP]);
                command
            }
            Self::BpftraceRunqlat => {
                let mut command = with_tracefs(peers, "bpftrace")?;
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
