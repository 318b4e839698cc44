//! Children that can't outlive us, placed in a namespace and in cgroups before they run.

#![allow(
    unsafe_code,
    reason = "what a child does between fork and exec can only be said in CommandExt::pre_exec"
)]

use std::fs::File;
use std::io::Error;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

/// Where a child runs.
#[derive(Debug, Default)]
pub struct Placement<'a> {
    /// Network namespace; ours if none.
    pub netns: Option<BorrowedFd<'a>>,
    /// `cgroup.procs` files, open for writing, of the cgroups it joins.
    pub cgroups: Vec<File>,
}

/// Makes the child lead a process group of its own and get `death_signal` when the thread that
/// spawns it ends. Spawn from the main thread.
pub fn place(command: &mut Command, placement: Placement<'_>, death_signal: Signal) {
    // The child must own what it uses: the borrow may be over when the command is spawned.
    let netns = placement.netns.map(|fd| fd.try_clone_to_owned());
    let cgroups = placement.cgroups;
    let parent = nix::unistd::getpid();
    command.process_group(0);
    let prepare = move || -> Result<(), Error> {
        prctl::set_pdeathsig(death_signal)?;
        if nix::unistd::getppid() != parent {
            // The parent died before the line above.
            return Err(Errno::ESRCH.into());
        }
        match &netns {
            None => {}
            Some(Ok(fd)) => setns(fd, CloneFlags::CLONE_NEWNET)?,
            Some(Err(_)) => return Err(Errno::EBADF.into()),
        }
        for procs in &cgroups {
            join(procs)?;
        }
        Ok(())
    };
    // SAFETY: between fork and exec only async-signal-safe calls are allowed; `prepare` makes
    // four system calls (prctl, getppid, setns, write) on descriptors opened before, and
    // neither allocates nor takes a lock.
    unsafe { command.pre_exec(prepare) };
}

fn join(procs: &File) -> Result<(), Error> {
    // "0" is the writer itself.
    match nix::unistd::write(procs, b"0") {
        Ok(1) => Ok(()),
        Ok(_) => Err(Errno::EIO.into()),
        Err(error) => Err(error.into()),
    }
}

/// Path under which another process can open a descriptor of ours.
#[must_use]
pub fn descriptor_path(fd: &OwnedFd) -> String {
    format!("/proc/{}/fd/{}", std::process::id(), fd.as_raw_fd())
}

/// A child that is ended when this is dropped: asked by its own signal, then killed with its
/// process group.
#[derive(Debug)]
pub struct Guarded {
    child: Child,
    stop_signal: Signal,
    grace: Duration,
    name: &'static str,
}

impl Guarded {
    /// Spawns, placed.
    ///
    /// # Errors
    /// It could not be started.
    pub fn spawn(
        name: &'static str,
        mut command: Command,
        placement: Placement<'_>,
        stop_signal: Signal,
        grace: Duration,
    ) -> Result<Self, Error> {
        place(&mut command, placement, stop_signal);
        Ok(Self {
            child: command.spawn()?,
            stop_signal,
            grace,
            name,
        })
    }

    /// Its process id, which is that of its group as well.
    #[must_use]
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// Its captured output, once.
    pub fn stdout(&mut self) -> Option<std::process::ChildStdout> {
        self.child.stdout.take()
    }

    /// One line on how it ended, if it did.
    pub fn ended(&mut self) -> Option<String> {
        match self.child.try_wait() {
            Ok(None) => None,
            Ok(Some(status)) => Some(format!("{}: {status}", self.name)),
            Err(error) => Some(format!("{}: {error}", self.name)),
        }
    }

    /// Asks it to end, waits, and kills what is left of its group after the grace. Says whether
    /// it ended in time.
    pub fn stop(&mut self) -> bool {
        if self.ended().is_none() {
            match kill(self.pid(), self.stop_signal) {
                // It ended just now.
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(_) => return false,
            }
        }
        let deadline = Instant::now() + self.grace;
        let in_time = loop {
            if self.ended().is_some() {
                break true;
            }
            if Instant::now() >= deadline {
                break false;
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        if !in_time {
            // ESRCH is what is hoped for; anything else shows as a leftover.
            killpg(self.pid(), Signal::SIGKILL).ok();
            drop(self.child.wait());
        }
        in_time
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        self.stop();
    }
}
