//! The proxies, with one worker each and an instance behind.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};
use bench::free_address;
use bench::peers::Peers;
use nix::unistd::Pid;
use sim_tests::world::process::Guarded;

use crate::configurations::{Behind, Users, envoy, grpc_instance, haproxy, instance, nginx};
use crate::processes::{OTHER_CPU, PROXY_CPU, await_answer, pin, pin_all, role, spawn};
use crate::sim;

/// Who is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Contender {
    Sim,
    Nginx,
    Haproxy,
    Envoy,
    /// The least program by `pingora-proxy`: what SIM would be without a path of its own.
    Pingora,
    /// Bytes passed on and nothing else: what no proxy can do without.
    Floor,
}

impl Contender {
    /// SIM is the first.
    pub(crate) const ALL: [Self; 6] = [
        Self::Sim,
        Self::Nginx,
        Self::Haproxy,
        Self::Envoy,
        Self::Pingora,
        Self::Floor,
    ];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Sim => "sim",
            Self::Nginx => "nginx",
            Self::Haproxy => "haproxy",
            Self::Envoy => "envoy",
            Self::Pingora => "naive_pingora",
            Self::Floor => "floor",
        }
    }
}

/// A proxy that runs, with an instance behind it. Dropped, both end.
#[derive(Debug)]
pub(crate) struct Running {
    /// Where users connect.
    pub(crate) address: SocketAddr,
    /// Where the instance is, if that is known.
    instance: Option<SocketAddr>,
    proxy: Pid,
    /// In the order of their end.
    _processes: Vec<Guarded>,
    _folder: tempfile::TempDir,
}

/// SIM between its start and its first answer.
#[derive(Debug)]
pub(crate) struct Begun {
    folder: tempfile::TempDir,
    address: SocketAddr,
    run: Guarded,
}

impl Begun {
    /// Once it answers at `path`.
    pub(crate) fn settled(self, path: &str) -> Result<Running> {
        let log = self.folder.path().join(sim::LOG);
        // Read before the folder goes.
        let said = || {
            format!(
                "sim says:\n{}",
                fs::read_to_string(&log).unwrap_or_default()
            )
        };
        let mut processes = vec![self.run];
        let waited = await_answer(&mut processes[0], self.address, path);
        waited.with_context(said)?;
        let proxy = role(processes[0].pid(), "proxy")?;
        let instance = fs::read_to_string(self.folder.path().join(sim::INSTANCE));
        let instance = instance.ok().and_then(|text| text.parse().ok());
        let addresses = (self.address, instance);
        Running::settle(self.folder, addresses, proxy, processes, path)
    }
}

impl Running {
    pub(crate) fn start(contender: Contender, peers: &Peers) -> Result<Self> {
        Self::start_for(contender, peers, Users::Http1)
    }

    /// All contenders, before one and the same instance: SIM's, which is sensed. What that costs the instance is no
    /// difference between proxies.
    pub(crate) fn all(peers: &Peers) -> Result<Vec<(Contender, Self)>> {
        let mut all: Vec<(Contender, Self)> = Vec::new();
        for contender in Contender::ALL {
            let instance = match all.first() {
                None => None,
                Some((_, sim)) => Some(sim.instance.context("SIM has no instance of ours")?),
            };
            let started = match instance {
                None => Self::start(contender, peers),
                Some(instance) => Self::before(contender, peers, instance),
            };
            all.push((contender, started.with_context(|| contender.name())?));
        }
        Ok(all)
    }

    /// One of the others, before an instance that runs already.
    fn before(contender: Contender, peers: &Peers, instance: SocketAddr) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let (at, address) = (folder.path(), free_address()?);
        let command = command(contender, peers, at, address, instance, Users::Http1)?;
        let proxy = spawn("proxy", command)?;
        let pid = proxy.pid();
        Self::settle(folder, (address, Some(instance)), pid, vec![proxy], "/")
    }

    /// The instance of this one, without a proxy.
    pub(crate) fn without_proxy(&self) -> Result<Self> {
        let address = self.instance.context("SIM has no instance of ours")?;
        Ok(Self {
            address,
            instance: Some(address),
            proxy: self.proxy,
            _processes: Vec::new(),
            _folder: tempfile::tempdir()?,
        })
    }

    /// For users who speak something else.
    pub(crate) fn start_for(contender: Contender, peers: &Peers, users: Users) -> Result<Self> {
        if contender == Contender::Sim {
            return Self::sim(&sim::Setting {
                grpc: users == Users::Grpc,
                ..sim::Setting::own()?
            });
        }
        let folder = tempfile::tempdir()?;
        let (at, address, upstream) = (folder.path(), free_address()?, free_address()?);
        let listen = upstream.to_string();
        let instance = match users {
            Users::Http1 | Users::Tls | Users::Http2 => instance(peers, at, &listen, 1)?,
            Users::Grpc => grpc_instance(&listen)?,
        };
        let instance = spawn("instance", instance)?;
        let proxy = spawn(
            "proxy",
            command(contender, peers, at, address, upstream, users)?,
        )?;
        let addresses = (address, Some(upstream));
        let pid = proxy.pid();
        Self::settle(folder, addresses, pid, vec![proxy, instance], "/")
    }

    /// The whole of SIM.
    pub(crate) fn sim(setting: &sim::Setting) -> Result<Self> {
        Self::begin_sim(setting)?.settled("/")
    }

    /// The whole of SIM, that may not serve yet.
    pub(crate) fn begin_sim(setting: &sim::Setting) -> Result<Begun> {
        let folder = tempfile::tempdir()?;
        let address = free_address()?;
        let run = sim::start(setting, folder.path(), address)?;
        Ok(Begun {
            folder,
            address,
            run,
        })
    }

    /// Waits until it serves, and puts everything on its core.
    fn settle(
        folder: tempfile::TempDir,
        (address, instance): (SocketAddr, Option<SocketAddr>),
        proxy: Pid,
        mut processes: Vec<Guarded>,
        path: &str,
    ) -> Result<Self> {
        for process in &mut processes {
            await_answer(process, address, path)?;
        }
        for process in &processes {
            pin_all(process.pid(), OTHER_CPU)?;
        }
        pin(proxy, PROXY_CPU)?;
        Ok(Self {
            address,
            instance,
            proxy,
            _processes: processes,
            _folder: folder,
        })
    }

    /// CPU time of the proxy's threads so far.
    pub(crate) fn cpu_ns(&self) -> Result<u64> {
        bench::cpu_ns(self.proxy.as_raw())
    }

    /// Memory that the proxy holds, bytes.
    pub(crate) fn resident_bytes(&self) -> Result<u64> {
        let text = fs::read_to_string(format!("/proc/{}/status", self.proxy))?;
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kibibytes = line.and_then(|rest| rest.trim().split(' ').next()?.parse::<u64>().ok());
        Ok(kibibytes.context("no VmRSS")? * 1024)
    }
}

/// One of the others than SIM.
fn command(
    contender: Contender,
    peers: &Peers,
    at: &Path,
    address: SocketAddr,
    upstream: SocketAddr,
    users: Users,
) -> Result<Command> {
    let behind = Behind::one(upstream, users);
    match contender {
        Contender::Sim | Contender::Nginx => nginx(peers, at, address, &behind),
        Contender::Haproxy => haproxy(peers, at, address, &behind),
        Contender::Envoy => envoy(peers, at, address, &behind),
        Contender::Pingora => own("sim-bench-pingora", at, address, upstream),
        Contender::Floor => own("sim-bench-floor", at, address, upstream),
    }
}

/// A program of this package.
fn own(name: &str, at: &Path, address: SocketAddr, upstream: SocketAddr) -> Result<Command> {
    let own = std::env::current_exe()?;
    let mut command = Command::new(own.with_file_name(name));
    command.arg(address.to_string()).arg(upstream.to_string());
    // It writes nothing there, but nothing else is its own either.
    command.current_dir(at);
    Ok(command)
}
