//! Servers of the pool.

use crate::name::ServerName;
use alloc::string::String;
use core::net::IpAddr;
use serde::{Deserialize, Serialize};

/// What a server offers. One `cpu` is one second of CPU time a second at reference speed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ServerSpec {
    /// Its name.
    pub name: ServerName,
    /// Address that its instances listen on.
    pub address: IpAddr,
    /// CPUs it lends to the pool, > 0; fractions are a cap by its parent cgroup.
    pub cpus: f64,
    /// Memory it lends to the pool, in bytes.
    pub memory_bytes: u64,
    /// Price of the whole server, per hour, in any one currency; >= 0.
    pub price_per_hour: f64,
    /// Servers of one failure domain may fail together.
    pub failure_domain: String,
}
