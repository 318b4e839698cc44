//! Another proxy with two instances behind it.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use bench::free_address;
use bench::peers::Peers;
use bench::secure::Certificate;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sim_tests::world::process::Guarded;

use super::{Load, Method};
use crate::configurations::{Behind, Users, envoy, grpc_instance, haproxy, instance, nginx};
use crate::contender::Contender;
use crate::processes::{OTHER_CPU, PROXY_CPU, await_answer, pin_all, spawn};

/// Dropped, all end.
pub(super) struct Duo {
    /// Where users connect.
    pub(super) users: SocketAddr,
    pub(super) behind: Behind,
    pub(super) proxy: Guarded,
    /// The first may be dead.
    first: Option<Guarded>,
    _second: Guarded,
    pub(super) folder: tempfile::TempDir,
}

impl Duo {
    /// With 95 to 5.
    pub(super) fn start(contender: Contender, peers: &Peers, users: Users) -> Result<Self> {
        Self::weighted(contender, peers, users, [95, 5])
    }

    pub(super) fn weighted(
        contender: Contender,
        peers: &Peers,
        speaking: Users,
        weights: [u32; 2],
    ) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let at = folder.path();
        let (users, first, second) = (free_address()?, free_address()?, free_address()?);
        let secure = match speaking {
            Users::Tls => Some((free_address()?, Certificate::new(at)?)),
            Users::Http1 | Users::Http2 | Users::Grpc => None,
        };
        let behind = Behind {
            instances: vec![(first, weights[0]), (second, weights[1])],
            try_timeout_s: 2,
            users: speaking,
            may_reload: true,
            secure,
        };
        let instances = [(first, 1), (second, 2)].map(|(address, number)| -> Result<Guarded> {
            start_instance(peers, at, speaking, address, number)
        });
        let [first, second] = instances;
        let command = match contender {
            Contender::Haproxy => haproxy(peers, at, users, &behind)?,
            Contender::Envoy => envoy(peers, at, users, &behind)?,
            _ => nginx(peers, at, users, &behind)?,
        };
        let mut proxy = spawn("proxy", command)?;
        await_answer(&mut proxy, users, "/")?;
        pin_all(proxy.pid(), PROXY_CPU)?;
        Ok(Self {
            users,
            behind,
            proxy,
            first: Some(first?),
            _second: second?,
            folder,
        })
    }

    /// The load of its users.
    pub(super) fn plan(&self, method: Method, rate_hz: f64, span: Duration) -> Load {
        method.plan(self.users, self.behind.secure.as_ref(), rate_hz, span)
    }

    pub(super) fn first(&self) -> Result<Pid> {
        let first = self.first.as_ref().context("the first is dead")?;
        Ok(first.pid())
    }

    pub(super) fn kill_first(&mut self) {
        if let Some(first) = self.first.take() {
            // One that has ended already is as dead.
            kill(first.pid(), Signal::SIGKILL).ok();
        }
    }

    /// At the same address.
    pub(super) fn restart_first(&mut self, peers: &Peers) -> Result<()> {
        let address = self.behind.instances[0].0;
        let at = self.folder.path();
        let process = start_instance(peers, at, self.behind.users, address, 1)?;
        self.first = Some(process);
        Ok(())
    }
}

fn start_instance(
    peers: &Peers,
    at: &Path,
    users: Users,
    address: SocketAddr,
    number: u64,
) -> Result<Guarded> {
    let listen = address.to_string();
    let command = match users {
        Users::Http1 | Users::Tls | Users::Http2 => instance(peers, at, &listen, number)?,
        Users::Grpc => {
            let mut command = grpc_instance(&listen)?;
            command.env("SIM_INSTANCE", number.to_string());
            command
        }
    };
    let mut process = spawn("instance", command)?;
    await_answer(&mut process, address, "/")?;
    pin_all(process.pid(), OTHER_CPU)?;
    Ok(process)
}
