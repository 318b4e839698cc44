//! Another proxy with two instances behind it.

use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use bench::free_address;
use bench::peers::Peers;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sim_tests::world::process::Guarded;

use crate::configurations::{Behind, Users, envoy, haproxy, instance, nginx};
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
    pub(super) fn start(contender: Contender, peers: &Peers) -> Result<Self> {
        Self::weighted(contender, peers, [95, 5])
    }

    pub(super) fn weighted(contender: Contender, peers: &Peers, weights: [u32; 2]) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let at = folder.path();
        let (users, first, second) = (free_address()?, free_address()?, free_address()?);
        let behind = Behind {
            instances: vec![(first, weights[0]), (second, weights[1])],
            try_timeout_s: 2,
            users: Users::Http1,
            may_reload: true,
        };
        let instances = [(first, 1), (second, 2)].map(|(address, number)| -> Result<Guarded> {
            let command = instance(peers, at, &address.to_string(), number)?;
            let mut process = spawn("instance", command)?;
            await_answer(&mut process, address, "/")?;
            pin_all(process.pid(), OTHER_CPU)?;
            Ok(process)
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
        let command = instance(peers, self.folder.path(), &address.to_string(), 1)?;
        let mut process = spawn("instance", command)?;
        await_answer(&mut process, address, "/")?;
        pin_all(process.pid(), OTHER_CPU)?;
        self.first = Some(process);
        Ok(())
    }
}
