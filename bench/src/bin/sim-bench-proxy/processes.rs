//! Processes: begun, awaited, kept on a core.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use sim_tests::world::process::{Guarded, Placement};

/// The core of the proxy, and that of all others.
pub(crate) const PROXY_CPU: usize = 0;
pub(crate) const OTHER_CPU: usize = 1;
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) fn spawn(name: &'static str, mut command: Command) -> Result<Guarded> {
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let placement = Placement {
        netns: None,
        cgroups: Vec::new(),
    };
    Ok(Guarded::spawn(
        name,
        command,
        placement,
        Signal::SIGTERM,
        Duration::from_secs(10),
    )?)
}

/// Waits for a good answer.
pub(crate) fn await_answer(process: &mut Guarded, address: SocketAddr, path: &str) -> Result<()> {
    use std::io::{Read as _, Write as _};
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Ok(mut stream) = TcpStream::connect(address) {
            stream.set_read_timeout(Some(Duration::from_secs(1)))?;
            let request =
                format!("GET {path} HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n");
            let asked = stream.write_all(request.as_bytes());
            let mut answer = Vec::new();
            // It may not be ready yet.
            let read = asked.and_then(|()| stream.read_to_end(&mut answer));
            if read.is_ok() && answer.starts_with(b"HTTP/1.1 2") {
                return Ok(());
            }
        }
        if let Some(end) = process.ended() {
            bail!("{end}");
        }
        ensure!(Instant::now() < deadline, "no good answer on {address}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The process that `sim run` started for a role.
pub(crate) fn role(run: Pid, role: &str) -> Result<Pid> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let children = fs::read_to_string(format!("/proc/{run}/task/{run}/children"))?;
        for child in children.split_whitespace() {
            let words = fs::read(format!("/proc/{child}/cmdline")).unwrap_or_default();
            if words
                .split(|&byte| byte == 0)
                .any(|word| word == role.as_bytes())
            {
                return Ok(Pid::from_raw(child.parse()?));
            }
        }
        ensure!(Instant::now() < deadline, "no {role} below {run}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Keeps a process and all below it on one core.
pub(crate) fn pin_all(pid: Pid, cpu: usize) -> Result<()> {
    pin(pid, cpu)?;
    for thread in threads(pid)? {
        let children = fs::read_to_string(format!("/proc/{pid}/task/{thread}/children"))?;
        for child in children.split_whitespace() {
            pin_all(Pid::from_raw(child.parse()?), cpu)?;
        }
    }
    Ok(())
}

fn threads(pid: Pid) -> Result<Vec<i32>> {
    let folder = format!("/proc/{pid}/task");
    let entries = fs::read_dir(&folder).with_context(|| folder.clone())?;
    let mut threads = Vec::new();
    for entry in entries {
        threads.extend(entry?.file_name().to_string_lossy().parse::<i32>().ok());
    }
    Ok(threads)
}

/// Keeps all threads of a process on one core.
pub(crate) fn pin(pid: Pid, cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    for thread in threads(pid)? {
        sched_setaffinity(Pid::from_raw(thread), &set)?;
    }
    Ok(())
}
