//! The configuration file that the demonstration hands to `sim run`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde::Serialize;

use super::settings::{CPUS, MEMORY_MIB, OBJECTIVE, Programs, WORKLOAD};
use crate::world::World;

#[derive(Serialize)]
struct File {
    data_dir: String,
    runtime_dir: String,
    cgroup: String,
    proxy: Proxy,
    server: Vec<Server>,
    workload: Vec<Workload>,
    policy: Policy,
}

#[derive(Serialize)]
struct Proxy {
    listen: SocketAddr,
    admin: SocketAddr,
}

#[derive(Serialize)]
struct Server {
    name: &'static str,
    address: String,
    cpus: f64,
    memory_mib: u64,
    price_per_hour: f64,
    failure_domain: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    netns: Option<String>,
}

#[derive(Serialize)]
struct Workload {
    name: &'static str,
    command: Vec<String>,
    cpus: f64,
    memory_mib: u64,
    home: &'static str,
    standby: &'static str,
    slo_minute_price: f64,
    environment: BTreeMap<&'static str, &'static str>,
    slo: Slo,
    readiness: Readiness,
}

#[derive(Serialize)]
struct Slo {
    quantile: f64,
    bound_ms: u64,
    window_s: u64,
    error_budget: f64,
}

#[derive(Serialize)]
struct Readiness {
    path: &'static str,
    successes: u32,
    interval_ms: u64,
    timeout_ms: u64,
}

#[derive(Serialize)]
struct Policy {
    forecast: bool,
    step_ms: u64,
    horizon_steps: u32,
    saturated_ticks: u32,
    lead_margin_ms: u64,
    utilisation_usable: f64,
    utilisation_target: f64,
}

/// Where the proxy listens.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    /// For users.
    pub listen: SocketAddr,
    /// For metrics.
    pub admin: SocketAddr,
}

impl Addresses {
    /// Fixed ports in a namespace of our own, free ones on a shared loopback.
    ///
    /// # Errors
    /// No port is free.
    pub fn choose(world: &World) -> Result<Self> {
        let loopback = std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
        if world.shared_network.is_none() {
            return Ok(Self {
                listen: SocketAddr::new(world.front, 8_080),
                admin: SocketAddr::new(loopback, 9_901),
            });
        }
        let free = |address| -> Result<SocketAddr> {
            Ok(std::net::TcpListener::bind((address, 0))
                .context("a free port")?
                .local_addr()?)
        };
        Ok(Self {
            listen: free(world.front)?,
            admin: free(loopback)?,
        })
    }
}

/// The file's text. `folder` is the run's own.
///
/// # Errors
/// A path is not UTF-8.
pub fn render(
    world: &World,
    programs: &Programs,
    addresses: Addresses,
    folder: &Path,
    cgroup: &str,
    forecast: bool,
) -> Result<String> {
    let inside = |name: &str| -> Result<String> {
        let path = folder.join(name);
        Ok(path
            .to_str()
            .with_context(|| format!("{} is not UTF-8", path.display()))?
            .to_owned())
    };
    let servers = world.servers.iter().map(|server| Server {
        name: server.name,
        address: server.address.to_string(),
        cpus: server.cpus,
        memory_mib: server.memory_mib,
        price_per_hour: server.price_per_hour,
        failure_domain: server.failure_domain,
        netns: server.netns_path(),
    });
    let home = world
        .servers
        .first()
        .context("a world without servers")?
        .name;
    let file = File {
        data_dir: inside("data")?,
        runtime_dir: inside("run")?,
        cgroup: cgroup.to_owned(),
        proxy: Proxy {
            listen: addresses.listen,
            admin: addresses.admin,
        },
        server: servers.collect(),
        workload: vec![Workload {
            name: WORKLOAD,
            command: programs.instance("{address}", "{port}"),
            cpus: CPUS,
            memory_mib: MEMORY_MIB,
            home,
            standby: "predicted",
            slo_minute_price: 0.03,
            environment: BTreeMap::from([("PYTHONUNBUFFERED", "1")]),
            slo: Slo {
                quantile: OBJECTIVE.quantile,
                bound_ms: OBJECTIVE.bound_ms as u64,
                window_s: 60,
                error_budget: 0.001,
            },
            readiness: Readiness {
                path: "/status/200",
                successes: 5,
                interval_ms: 100,
                timeout_ms: 30_000,
            },
        }],
        // Half-second steps: a service that is moved within a minute is looked at closely.
        policy: Policy {
            forecast,
            step_ms: 500,
            horizon_steps: 120,
            saturated_ticks: 6,
            // A quota of milliseconds queues early, and a noisy machine makes requests dearer.
            lead_margin_ms: 20_000,
            utilisation_usable: 0.70,
            // Room for a trend that goes on after the move.
            utilisation_target: 0.45,
        },
    };
    toml::to_string(&file).context("configuration")
}
