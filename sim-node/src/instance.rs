//! One instance: from the start command to its last process.

use crate::cgroup::{Detail, StatFiles, Usage};
use crate::cgroup_set::CgroupSet;
use crate::limits::{self, Limits};
use crate::listeners::Queue;
use crate::process_tree;
use crate::readiness::{self, Proof, Secure};
use crate::sense::Readings;
use anyhow::Context;
use nix::sys::signal::{Signal, kill};
use sim_api::v1;
use sim_core::address::Address;
use sim_core::name::InstanceId;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::process::Command;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// What an instance's own tasks tell the agent.
pub(crate) enum Fact {
    /// It gave its proof.
    Ready { instance: u64, create: Duration },
    /// It did not give its proof in time.
    NotReady { instance: u64, why: String },
    /// Its main process ended.
    Ended {
        instance: u64,
        cause: v1::instance_exited::Cause,
    },
    /// Nothing is left of it: no process, no cgroup.
    Gone {
        instance: u64,
        cause: v1::instance_exited::Cause,
        died_ns: u64,
    },
}

/// Connections at an instance's listening sockets.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct AcceptQueue {
    /// How many wait now.
    pub(crate) waiting: u64,
    /// How long all have waited, in seconds: what waited at each look, times the pause since the last.
    pub(crate) waited_seconds: f64,
    /// How many were dropped.
    pub(crate) dropped: u64,
}

impl AcceptQueue {
    /// Adds a look at its sockets, so long after the last.
    pub(crate) fn add(&mut self, queue: Queue, window: Duration) {
        self.waiting = queue.waiting;
        self.waited_seconds += queue.waiting as f64 * window.as_secs_f64();
        self.dropped += queue.dropped;
    }
}

/// What is replaced by the path of a socket: an instance that is told it listens there and at no port.
const SOCKET: &str = "{socket}";

/// A running instance.
pub(crate) struct Instance {
    pub(crate) workload: String,
    pub(crate) address: Address,
    pub(crate) pid: u32,
    pub(crate) limits: Limits,
    pub(crate) readings: Readings,
    files: StatFiles,
    /// Its cgroups, nested ones too.
    pub(crate) cgroups: CgroupSet,
    /// Connections that wait for it to accept them, since its start.
    pub(crate) accept_queue: AcceptQueue,
    /// Its limit.
    pub(crate) memory_bytes: u64,
    /// Control asked for its end.
    pub(crate) stopping: bool,
    /// It gave its proof, so long after its start.
    pub(crate) ready: Option<Duration>,
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for Instance {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
        if let Address::Unix(path) = &self.address {
            remove_socket(Path::new(&**path));
        }
    }
}

/// What [`Instance::start`] needs beside the command itself.
pub(crate) struct Place<'a> {
    pub(crate) address: IpAddr,
    /// Of the other instances here, which may not listen yet.
    pub(crate) taken: Vec<SocketAddr>,
    /// Where sockets of instances are.
    pub(crate) socket_dir: &'a Path,
    pub(crate) cgroup: String,
    pub(crate) hierarchy: Option<&'a crate::cgroup::Hierarchy>,
    pub(crate) launcher: &'a Path,
    /// Names the server in the environment of its instances.
    pub(crate) mark: &'a str,
    pub(crate) facts: mpsc::Sender<Fact>,
    /// How it is asked for its proof over TLS, if it speaks that.
    pub(crate) secure: Option<Arc<dyn Secure>>,
}

impl Instance {
    /// Starts the process in its cgroup, and the tasks that wait for its proof and its end.
    pub(crate) fn start(start: &v1::StartInstance, place: &Place<'_>) -> anyhow::Result<Self> {
        let address = if listens_at_socket(start) {
            socket(place.socket_dir, InstanceId(start.instance))?
        } else {
            free_address(place.address, &place.taken)
                .with_context(|| format!("no free port on {}", place.address))?
                .into()
        };
        let limits = Limits::new(
            place.hierarchy,
            &place.cgroup,
            start.cpus,
            start.memory_bytes,
        )
        .with_context(|| format!("cgroup {}", place.cgroup))?;
        match Self::spawn(start, place, &address, &limits) {
            Ok((pid, tasks)) => Ok(Self {
                address,
                pid,
                limits,
                workload: start.workload.clone(),
                readings: Readings::first(None, None),
                files: StatFiles::kept_open(),
                accept_queue: AcceptQueue::default(),
                cgroups: CgroupSet::default(),
                memory_bytes: start.memory_bytes,
                stopping: false,
                ready: None,
                tasks,
            }),
            Err(error) => {
                limits.destroy(0).context("after a failed start")?;
                Err(error)
            }
        }
    }

    fn spawn(
        start: &v1::StartInstance,
        place: &Place<'_>,
        address: &Address,
        limits: &Limits,
    ) -> anyhow::Result<(u32, Vec<JoinHandle<()>>)> {
        let began = Instant::now();
        let fill = |text: &String| match address {
            Address::Inet(address) => text
                .replace("{address}", &address.ip().to_string())
                .replace("{port}", &address.port().to_string()),
            Address::Unix(path) => text.replace(SOCKET, path),
        };
        let mut command = Command::new(place.launcher);
        command.arg("launch");
        for dir in limits.dirs() {
            command.arg("--cgroup").arg(dir);
        }
        if let Limits::DutyCycle { .. } = limits {
            // No cgroup by which what a killed node left could be found, and nobody to hold it.
            command.arg("--parent").arg(std::process::id().to_string());
        }
        command.arg("--").args(start.command.iter().map(fill));
        // A common convention among services; what the operator sets goes before it.
        if let Some(address) = address.as_inet() {
            command.env("PORT", address.port().to_string());
        }
        command.envs(
            start
                .environment
                .iter()
                .map(|e| (e.name.clone(), fill(&e.value))),
        );
        command.env("SIM_WORKLOAD", &start.workload);
        command.env("SIM_INSTANCE", start.instance.to_string());
        command.env(process_tree::MARK, place.mark);
        // An own process group, so that the terminal's Ctrl-C reaches the node alone, which then
        // ends its instances in order.
        command
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        let mut child = command.spawn().context("can't start the launcher")?;
        let pid = child.id().context("the launcher has no pid")?;

        let (facts, instance) = (place.facts.clone(), start.instance);
        let mut tasks = vec![tokio::spawn(async move {
            use v1::instance_exited::Cause;
            let cause = match child.wait().await {
                Ok(status) => match (status.code(), status.signal()) {
                    (Some(code), _) => Cause::Code(code),
                    (None, Some(signal)) => Cause::Signal(signal),
                    (None, None) => Cause::NotStarted("ended without a status".into()),
                },
                Err(error) => Cause::NotStarted(format!("can't be waited for: {error}")),
            };
            tell(&facts, Fact::Ended { instance, cause }).await;
        })];
        if let Limits::DutyCycle { cpus } = limits {
            tasks.push(tokio::spawn(limits::hold_to_duty_cycle(pid, *cpus)));
        }
        let proof = Proof {
            path: start.readiness_path.clone(),
            successes: start.readiness_successes.max(1),
            interval: Duration::from_micros(start.readiness_interval_micros),
            timeout: Duration::from_micros(start.readiness_timeout_micros),
            secure: place.secure.clone(),
        };
        let (facts, address) = (place.facts.clone(), address.clone());
        tasks.push(tokio::spawn(async move {
            let fact = match readiness::prove(&address, &proof).await {
                Ok(()) => Fact::Ready {
                    instance,
                    create: began.elapsed(),
                },
                Err(why) => Fact::NotReady { instance, why },
            };
            tell(&facts, fact).await;
        }));
        Ok((pid, tasks))
    }

    /// What it used since its start, by files; `None` where none can be read.
    pub(crate) fn usage(&mut self, detail: Detail) -> Option<Usage> {
        self.limits.usage(self.pid, detail, &mut self.files).ok()
    }

    /// The whole of what its cgroup used; `None` without one.
    pub(crate) fn cgroup_usage(&mut self) -> Option<Usage> {
        match self.limits {
            Limits::Cgroup(_) => self.usage(Detail::Whole),
            Limits::DutyCycle { .. } => None,
        }
    }

    /// The kernel killed for want of memory here since the last sample.
    pub(crate) fn is_out_of_memory(&mut self) -> bool {
        let killed = self.usage(Detail::Sample).map_or(0, |u| u.oom_kills);
        killed > self.readings.oom_kills()
    }

    /// Asks the main process to end; SIGKILL follows by [`Limits::destroy`] after the grace.
    pub(crate) fn ask_to_end(&mut self) {
        self.stopping = true;
        match kill(limits::group_of(self.pid), Signal::SIGTERM) {
            Ok(()) | Err(nix::errno::Errno::ESRCH) => {}
            Err(error) => tracing::warn!("can't ask pid {} to end: {}", self.pid, error.desc()),
        }
        if matches!(self.limits, Limits::DutyCycle { .. }) {
            // One that is stopped by its duty cycle would not hear.
            match nix::sys::signal::killpg(limits::group_of(self.pid), Signal::SIGCONT) {
                Ok(()) | Err(nix::errno::Errno::ESRCH) => {}
                Err(error) => tracing::warn!("can't continue {}: {}", self.pid, error.desc()),
            }
        }
    }
}

async fn tell(facts: &mpsc::Sender<Fact>, fact: Fact) {
    if facts.send(fact).await.is_err() {
        tracing::debug!("the agent is gone");
    }
}

/// Whether an instance is told a socket.
fn listens_at_socket(start: &v1::StartInstance) -> bool {
    let values = start.environment.iter().map(|variable| &variable.value);
    let mut texts = start.command.iter().chain(values);
    texts.any(|text| text.contains(SOCKET))
}

/// The socket of an instance, which is nobody's: whoever was called so before is gone.
fn socket(dir: &Path, instance: InstanceId) -> anyhow::Result<Address> {
    let path = dir.join(format!("{instance}.sock"));
    remove_socket(&path);
    let text = path
        .to_str()
        .context("its socket has a path that is no text")?;
    Address::unix(text).with_context(|| format!("its socket {}", path.display()))
}

fn remove_socket(path: &Path) {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            tracing::warn!("{} can't be removed: {error}", path.display());
        }
        _ => {}
    }
}

/// An address with a port that nobody listens on and none of `taken`. Another process may take it before the
/// instance does; the instance then fails to start, and control places it anew.
fn free_address(address: IpAddr, taken: &[SocketAddr]) -> std::io::Result<SocketAddr> {
    // Held until one is found, or the kernel would offer the same again.
    let mut held = Vec::new();
    loop {
        let listener = TcpListener::bind((address, 0))?;
        let found = listener.local_addr()?;
        if !taken.contains(&found) {
            return Ok(found);
        }
        held.push(listener);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_where_nothing_is_left_of_the_one_before() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("i7.sock");
        std::fs::write(&path, "").expect("written");
        let address = socket(dir.path(), InstanceId(7)).expect("an address");
        assert_eq!(address.to_string(), format!("unix:{}", path.display()));
        assert!(!path.exists());
        let deep = dir.path().join("a".repeat(100));
        let error = socket(&deep, InstanceId(7)).expect_err("too long");
        assert!(
            format!("{error:#}").contains("at most 107 bytes"),
            "{error:#}"
        );
    }

    #[test]
    fn no_port_is_given_twice() {
        let address = IpAddr::from([127, 0, 0, 1]);
        let mut taken = Vec::new();
        // Of some 28 000: by chance alone two of so many would be the same.
        for _ in 0..1_000 {
            let found = free_address(address, &taken).expect("free");
            assert!(!taken.contains(&found));
            taken.push(found);
        }
    }
}
