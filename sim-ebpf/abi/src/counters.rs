//! Map values.

use crate::Histogram;

/// All facts of one tracked cgroup on one CPU: value of the per-CPU `CGROUPS` hash, keyed by cgroup id.
///
/// One value for all groups, so that tracking and reading a cgroup take one system call each.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CgroupCounters {
    /// From the scheduler.
    pub cpu: CpuCounters,
    /// From the block layer.
    pub block: BlockCounters,
    /// From TCP.
    pub tcp: TcpCounters,
    /// From packets.
    pub net: NetCounters,
    /// From clear-text HTTP/1. Beside the sums of `net`: a packet with a head counts in both.
    pub http: HttpCounters,
    /// From reclaim.
    pub memory: MemoryCounters,
    /// Since when the cgroup is tracked, on the monotonic clock. No counter: the same on each CPU.
    pub tracked_ns: u64,
}

/// What the scheduler says.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuCounters {
    /// Time that tasks of the cgroup ran.
    pub on_cpu_ns: u64,
    /// Times that a task of the cgroup left the CPU.
    pub switches: u64,
    /// Times that a task of the cgroup left another CPU than the time before.
    pub migrations: u64,
    /// Sum of the waits in `run_queue`.
    pub run_queue_ns: u64,
    /// Number of the waits in `run_queue`.
    pub run_queue_waits: u64,
    /// Sum of the waits that began because the own quota, or an ancestor's, was used up. They are
    /// in none of the three around this.
    pub throttled_ns: u64,
    /// Number of those waits.
    pub throttled_waits: u64,
    /// From runnable (woken or preempted) to running, while there was quota.
    pub run_queue: Histogram,
}

/// Block I/O, counted on the CPU that completed it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockCounters {
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub write_bytes: u64,
    /// Completed reads.
    pub read_ops: u64,
    /// Completed writes.
    pub write_ops: u64,
    /// Completed flushes, discards and whatever else is neither read nor write.
    pub other_ops: u64,
    /// Operations that ended in an error; they are in the counts above, their bytes are not.
    pub errors: u64,
    /// Sum of the latencies in `latency`.
    pub latency_ns: u64,
    /// From issue to the device to completion.
    pub latency: Histogram,
    /// Sum of the delays in `queue`.
    pub queue_ns: u64,
    /// From the request's allocation to its issue, where the kernel stamps requests.
    pub queue: Histogram,
}

/// Packets of the cgroup's sockets.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetCounters {
    /// Smoothed round-trip time of the socket, taken at each TCP packet sent with data.
    pub rtt: Histogram,
    /// Bytes received, IP headers included.
    pub rx_bytes: u64,
    /// Bytes sent, IP headers included.
    pub tx_bytes: u64,
    /// Packets received, counted as on the wire (before receive offload joined them).
    pub rx_packets: u64,
    /// Packets sent, counted as on the wire (after segmentation offload will have split them).
    pub tx_packets: u64,
}

/// TCP events of the cgroup's sockets.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpCounters {
    /// Segments sent again, loss probes included.
    pub retransmits: u64,
    /// Connections made from here.
    pub connects: u64,
    /// Connections from here that were refused or timed out.
    pub connect_failures: u64,
    /// Connections made to here: the handshake is complete, the service may not have accepted yet.
    pub accepts: u64,
    /// Resets received.
    pub resets_received: u64,
    /// Resets sent.
    pub resets_sent: u64,
}

/// Clear-text HTTP/1 requests to server sockets of the cgroup.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HttpCounters {
    /// Request heads that came.
    pub requests: u64,
    /// Final responses by the first digit of their status: 1xx (101 only), 2xx, 3xx, 4xx, 5xx.
    pub responses: [u64; 5],
    /// Sum of the times in `service`.
    pub service_ns: u64,
    /// From a request's first packet to the first packet of its final response.
    pub service: Histogram,
}

/// What lack of memory costs.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryCounters {
    /// Time that tasks of the cgroup spent freeing memory instead of running: direct reclaim, for the
    /// whole machine or for a limit.
    pub reclaim_ns: u64,
    /// Number of those times.
    pub reclaims: u64,
}

/// Who held the CPU while a task of a cgroup waited: key of the `NEIGHBOURS` hash. The value is the
/// waits in nanoseconds, all CPUs together.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Neighbour {
    /// The cgroup that waited.
    pub waiting: u64,
    /// The cgroup whose task was on the CPU just before the wait ended there.
    pub running: u64,
}

/// An HTTP/1 connection to a server socket; value of the `CONNECTIONS` socket storage.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Connection {
    /// The cgroup that the socket is charged to, for good: nearer than the packet's way to it.
    pub cgroup_id: u64,
    /// When the request came that is served; 0 while none is.
    pub since_ns: u64,
    /// TCP sequence number of the latest request head: the same again is a retransmission.
    pub request_seq: u32,
    /// Requests that came and have no response yet.
    pub pending: u32,
}

/// A block request until its completion; shared by all CPUs, keyed by the request's address.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InFlight {
    /// When it was made; 0 where the kernel doesn't stamp requests.
    pub queued_ns: u64,
    /// When it was handed to the device; 0 until then.
    pub issued_ns: u64,
    /// Whom it is charged to; 0 is nobody that is tracked.
    pub cgroup_id: u64,
}

/// A fact that a program had to drop; index into the per-CPU `LOSSES` array.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// No room for what is known of a task: its present turn and the wait before it aren't counted.
    TaskStorage = 0,
    /// The in-flight table was full: this block request isn't counted.
    InFlight = 1,
    /// No memory for a socket's state: this HTTP request isn't counted.
    Connection = 2,
    /// The table of neighbours was full: this wait has no name beside it.
    Neighbour = 3,
}

/// Entries of the `LOSSES` array; more than there are kinds, so that a new kind needs no new layout.
pub const LOSS_KINDS: usize = 8;
