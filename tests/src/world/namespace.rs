//! Network namespaces without names: the kernel frees them, with everything in them, when the
//! last process and descriptor are gone, so not even `kill -9` leaves one behind.

use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, anyhow, ensure};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::Signal;

use super::process::{Placement, descriptor_path, place};

/// Moves this thread into a new namespace, and with it all threads and processes that it makes
/// from now on. Threads that exist already stay behind.
///
/// # Errors
/// No privilege.
pub fn enter_new() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNET).context("unshare(CLONE_NEWNET)")
}

/// Makes a namespace that lives as long as the descriptor and what runs in it.
///
/// # Errors
/// No privilege.
pub fn create() -> Result<OwnedFd> {
    std::thread::spawn(|| -> Result<OwnedFd> {
        unshare(CloneFlags::CLONE_NEWNET).context("unshare(CLONE_NEWNET)")?;
        Ok(File::open("/proc/thread-self/ns/net")
            .context("/proc/thread-self/ns/net")?
            .into())
    })
    .join()
    .map_err(|_| anyhow!("the thread that makes a namespace panicked"))?
}

/// A switch in this namespace, one port for each of `peers`: (name, namespace, its address).
///
/// # Errors
/// `ip` is missing or refuses.
pub fn connect(front_address: &str, peers: &[(&str, &OwnedFd, String)]) -> Result<()> {
    let mut front = format!(
        "link set lo up\n\
         link add bridge type bridge\n\
         addr add {front_address}/24 dev bridge\n\
         link set bridge up\n"
    );
    for (name, netns, _) in peers {
        let path = descriptor_path(netns);
        writeln!(
            front,
            "link add to-{name} type veth peer name eth0 netns {path}"
        )?;
        writeln!(front, "link set to-{name} master bridge up")?;
    }
    ip(None, &front)?;
    for (_, netns, address) in peers {
        let script = format!("link set lo up\naddr add {address}/24 dev eth0\nlink set eth0 up\n");
        ip(Some(netns), &script)?;
    }
    Ok(())
}

fn ip(netns: Option<&OwnedFd>, script: &str) -> Result<()> {
    let program = ["/usr/sbin/ip", "/sbin/ip", "/usr/bin/ip", "/bin/ip"]
        .into_iter()
        .find(|path| std::path::Path::new(path).exists())
        .unwrap_or("ip");
    let mut command = Command::new(program);
    command
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped());
    let netns = netns.map(|fd| fd.as_fd());
    place(
        &mut command,
        Placement {
            netns,
            cgroups: Vec::new(),
        },
        Signal::SIGKILL,
    );
    let mut child = command
        .spawn()
        .with_context(|| format!("{program} (package iproute2)"))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(script.as_bytes()).context("ip -batch")?;
    }
    let output = child.wait_with_output().context("ip -batch")?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "ip: {}", errors.trim());
    Ok(())
}
