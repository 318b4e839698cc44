//! Three servers on one machine.
//!
//! Each is a network namespace with an address of its own on a switch; load, proxy and control
//! plane live in the namespace in front of them. Without the privilege for that, servers are
//! loopback addresses.

pub mod cgroup;
pub mod leftovers;
pub mod namespace;
pub mod privilege;
pub mod process;
pub mod workspace;

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use anyhow::Result;

/// One server of the pool.
#[derive(Debug)]
pub struct Server {
    /// Its name.
    pub name: &'static str,
    /// Address that its instances listen on.
    pub address: IpAddr,
    /// CPUs it lends.
    pub cpus: f64,
    /// Memory it lends, in MiB.
    pub memory_mib: u64,
    /// Price of the whole server, per hour.
    pub price_per_hour: f64,
    /// Servers of one domain may fail together.
    pub failure_domain: &'static str,
    netns: Option<OwnedFd>,
}

impl Server {
    /// Its network namespace, if it has one of its own.
    #[must_use]
    pub fn netns(&self) -> Option<BorrowedFd<'_>> {
        self.netns.as_ref().map(|fd| fd.as_fd())
    }

    /// Path under which other processes can enter its namespace.
    #[must_use]
    pub fn netns_path(&self) -> Option<String> {
        self.netns.as_ref().map(process::descriptor_path)
    }
}

/// Servers, and the address in front of them.
#[derive(Debug)]
pub struct World {
    /// Where the proxy listens.
    pub front: IpAddr,
    /// The pool; the first is home to the workload.
    pub servers: Vec<Server>,
    /// Why servers are loopback addresses, where they are.
    pub shared_network: Option<String>,
}

impl World {
    /// Builds it, and moves this thread, and all that it makes from now on, into the namespace
    /// in front of the servers.
    ///
    /// # Errors
    /// Namespaces can be made but not connected.
    pub fn build() -> Result<Self> {
        match namespace::enter_new() {
            Ok(()) => {
                let mut world = Self::plan(|host| Ipv4Addr::new(10, 77, 0, host));
                for server in &mut world.servers {
                    server.netns = Some(namespace::create()?);
                }
                let peers: Vec<_> = world
                    .servers
                    .iter()
                    .filter_map(|s| Some((s.name, s.netns.as_ref()?, s.address.to_string())))
                    .collect();
                namespace::connect(&world.front.to_string(), &peers)?;
                Ok(world)
            }
            Err(error) => {
                let mut world = Self::plan(|host| Ipv4Addr::new(127, 77, 0, host));
                world.shared_network = Some(format!("{error:#}"));
                Ok(world)
            }
        }
    }

    /// Inodes of the namespaces made for this world.
    #[must_use]
    pub fn namespaces(&self) -> Vec<u64> {
        if self.shared_network.is_some() {
            return Vec::new();
        }
        let front = Some("/proc/thread-self/ns/net".to_owned());
        std::iter::once(front)
            .chain(self.servers.iter().map(Server::netns_path))
            .flatten()
            .filter_map(|path| leftovers::namespace_inode(&path))
            .collect()
    }

    /// Home is small and cheap; one server has room at a price, one lies between.
    fn plan(address: impl Fn(u8) -> Ipv4Addr) -> Self {
        let server = |name, host, cpus, memory_mib, price_per_hour, failure_domain| Server {
            name,
            address: IpAddr::V4(address(host)),
            cpus,
            memory_mib,
            price_per_hour,
            failure_domain,
            netns: None,
        };
        Self {
            front: IpAddr::V4(address(1)),
            servers: vec![
                server("a", 11, 0.30, 512, 0.10, "rack-1"),
                server("b", 12, 1.00, 2_048, 0.36, "rack-2"),
                server("c", 13, 0.70, 1_024, 0.20, "rack-3"),
            ],
            shared_network: None,
        }
    }
}
