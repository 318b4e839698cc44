//! Everything that can happen to the core, as one closed set.

use crate::address::Address;
use crate::histogram::LatencyHistogram;
use crate::name::{InstanceId, ProxyName, ServerName, WorkloadName};
use crate::table::Version;
use crate::workload::Standby;
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;
use serde::{Deserialize, Serialize};

/// Where a signal was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// eBPF programs in the kernel.
    Kernel,
    /// Files of the cgroup and PSI file systems.
    CgroupFiles,
    /// Not to be had on this node.
    Absent,
}

/// What one instance used in one window, as its node saw it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ResourceSample {
    /// Length of the window.
    pub window: Duration,
    /// CPU seconds used in the window.
    pub cpu_seconds: f64,
    /// Where `cpu_seconds` was read.
    pub cpu_source: Source,
    /// Seconds that threads waited on a run queue, summed over threads.
    pub run_queue_seconds: f64,
    /// Share of the window in which the own quota held the instance back, 0..=1.
    pub throttled_ratio: f64,
    /// Resident memory charged to the instance, in bytes.
    pub memory_bytes: u64,
    /// Block I/O in the window, in bytes, both directions.
    pub block_bytes: u64,
    /// 95th percentile of block latency in the window, in seconds; 0 without I/O.
    pub block_latency_p95_seconds: f64,
    /// Network bytes received and sent in the window.
    pub network_bytes: u64,
    /// Median smoothed TCP round trip in the window, in seconds; 0 without packets.
    pub rtt_p50_seconds: f64,
}

/// What one proxy saw of one instance since its last report. Counts are of first attempts alone
/// unless said otherwise, since retries go where the trouble isn't and would censor it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InstanceTraffic {
    /// Which instance.
    pub instance: InstanceId,
    /// First attempts that got an answer below 500.
    pub ok: u64,
    /// First attempts that got an answer of 500 or above, or none.
    pub failed: u64,
    /// Latencies of first attempts with an answer.
    pub latency: LatencyHistogram,
    /// Requests in flight now, retries included.
    pub in_flight: u64,
    /// Ejected by the proxy now.
    pub ejected: bool,
}

/// What one proxy saw of one workload since its last report.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrafficSample {
    /// Time that the report covers.
    pub window: Duration,
    /// Requests that arrived from users.
    pub arrivals: u64,
    /// Table that the proxy serves by.
    pub applied: Version,
    /// By instance.
    pub instances: Vec<InstanceTraffic>,
}

/// Why an instance ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExitCause {
    /// It returned this code.
    Code(i32),
    /// This signal ended it.
    Signal(i32),
    /// It could not be started; says why.
    NotStarted(String),
    /// The node is gone and the instance's fate unknown.
    NodeLost,
    /// The kernel killed it at its memory limit, in bytes.
    OutOfMemory(u64),
}

/// One fact for the core.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Event {
    /// The end of a step. Drivers send one each `Policy::step_ms`.
    Tick,
    /// A server's node is connected.
    ServerUp {
        /// Which server.
        server: ServerName,
        /// Instances that run there.
        running: Vec<InstanceId>,
    },
    /// A server's node is gone.
    ServerDown(ServerName),
    /// The process runs.
    Started {
        /// Which.
        instance: InstanceId,
        /// Where it will listen.
        address: Address,
    },
    /// The instance gave its readiness proof.
    Ready {
        /// Which.
        instance: InstanceId,
        /// From the start command to the proof.
        create: Duration,
    },
    /// The instance ended, asked to or not.
    Exited {
        /// Which.
        instance: InstanceId,
        /// How.
        cause: ExitCause,
        /// Asked for by a command.
        expected: bool,
    },
    /// Resources used.
    Resources {
        /// By which instance.
        instance: InstanceId,
        /// What.
        sample: ResourceSample,
    },
    /// Traffic seen.
    Traffic {
        /// By which proxy.
        proxy: ProxyName,
        /// Of which workload.
        workload: WorkloadName,
        /// What.
        sample: TrafficSample,
    },
    /// A proxy's session ended. It goes on serving by its last table.
    ProxyDown(ProxyName),
    /// The operator changed a workload's standby.
    SetStandby {
        /// Which workload.
        workload: WorkloadName,
        /// To what.
        standby: Standby,
    },
    /// The operator ends the whole run: its nodes end every instance from now on. Nothing is started
    /// until a control plane takes the lead anew.
    Closing,
}
