//! Steps towards a decision, each sent to one node or to the proxies.

use crate::name::{InstanceId, ServerName, WorkloadName};
use crate::table::WeightTable;
use core::time::Duration;
use serde::{Deserialize, Serialize};

/// One step. Repeating a command changes nothing more.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Command {
    /// Start a copy of a workload.
    Start {
        /// Id of the new instance.
        instance: InstanceId,
        /// Of which workload.
        workload: WorkloadName,
        /// On which server.
        server: ServerName,
        /// Its CPU quota, in CPUs.
        cpus: f64,
    },
    /// End an instance and everything in its cgroup, and give its resources back.
    Stop {
        /// Which.
        instance: InstanceId,
        /// On which server.
        server: ServerName,
        /// Time between SIGTERM and SIGKILL.
        grace: Duration,
    },
    /// Serve by this table from now on.
    Publish(WeightTable),
}
