//! One instance started by hand, for the sweep: same command, same quota, no SIM.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, killpg};
use sim_node::cgroup::Hierarchy;
use tokio::task::JoinHandle;

use super::settings::{CPUS, Programs};
use crate::load::request::{HttpClient, get};
use crate::world::Server;
use crate::world::cgroup::CpuCap;
use crate::world::leftovers::MARK;
use crate::world::process::{Guarded, Placement};

/// A running instance. Fields drop in order: the process before its cgroup.
#[derive(Debug)]
pub struct Instance {
    process: Guarded,
    cap: Cap,
    /// Where it listens.
    pub address: SocketAddr,
    /// Why it is held to its share of the CPU by stopping it now and then, where it is.
    pub no_cgroup: Option<String>,
}

/// What holds it to its share.
#[derive(Debug)]
enum Cap {
    Cgroup { _cap: CpuCap },
    DutyCycle(JoinHandle<()>),
}

impl Instance {
    /// Starts it on `server` in a cgroup of that name. `folder` is the run's own.
    ///
    /// # Errors
    /// It could not be started.
    pub fn start(
        programs: &Programs,
        server: &Server,
        hierarchy: &Hierarchy,
        cgroup: &str,
        folder: &Path,
    ) -> Result<Self> {
        let port = if server.netns().is_some() {
            8_000
        } else {
            free_port(server)?
        };
        let address = SocketAddr::new(server.address, port);
        let words = programs.instance(&address.ip().to_string(), &port.to_string());
        let (cgroup, no_cgroup) = match CpuCap::create(hierarchy, cgroup, CPUS) {
            Ok(cgroup) => (Some(cgroup), None),
            Err(error) => (None, Some(format!("{error:#}"))),
        };
        let cgroups = cgroup
            .as_ref()
            .map_or_else(|| Ok(Vec::new()), CpuCap::procs)?;
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).env(MARK, folder);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let placement = Placement {
            netns: server.netns(),
            cgroups,
        };
        // SIGQUIT is gunicorn's quick end; its workers leave when it does.
        let process = Guarded::spawn(
            "gunicorn",
            command,
            placement,
            Signal::SIGQUIT,
            Duration::from_secs(3),
        )
        .with_context(|| words[0].clone())?;
        let cap = cgroup.map_or_else(
            || {
                let group = process.pid().as_raw().cast_unsigned();
                Cap::DutyCycle(tokio::spawn(sim_node::hold_to_duty_cycle(group, CPUS)))
            },
            |cap| Cap::Cgroup { _cap: cap },
        );
        Ok(Self {
            process,
            cap,
            address,
            no_cgroup,
        })
    }

    /// Waits for its first good answers.
    ///
    /// # Errors
    /// It ended, or did not answer in time.
    pub async fn ready(&mut self, client: &HttpClient) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let error = match get(client, self.address, "/status/200").await {
                Ok(_) => return Ok(()),
                Err(error) => error,
            };
            if let Some(end) = self.process.ended() {
                bail!("{end}");
            }
            if Instant::now() > deadline {
                return Err(error.context("httpbin is not ready after 30 s"));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        if let Cap::DutyCycle(holder) = &self.cap {
            holder.abort();
            // Stopped, it would not hear that it shall end. ESRCH: it has ended.
            killpg(self.process.pid(), Signal::SIGCONT).ok();
        }
    }
}

fn free_port(server: &Server) -> Result<u16> {
    let listener = std::net::TcpListener::bind((server.address, 0)).context("a free port")?;
    Ok(listener.local_addr()?.port())
}
