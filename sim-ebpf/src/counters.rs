//! What one cgroup did, in one struct.

use crate::Log2Histogram;
use sim_ebpf_abi::{
    BlockCounters, CgroupCounters, CpuCounters, HttpCounters, LOSS_KINDS, Loss, MemoryCounters,
    NetCounters, TcpCounters,
};

/// Facts of one cgroup (its own tasks and sockets, nested cgroups not included), summed over CPUs.
///
/// Cumulative since [`Probes::track`](crate::Probes::track), or the difference of two readings
/// ([`Counters::since`]). The fields of a group that isn't active stay 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Time that its tasks ran.
    pub on_cpu_ns: u64,
    /// Times that a task of it left a CPU.
    pub switches: u64,
    /// Times that a task of it left another CPU than the time before.
    pub migrations: u64,
    /// Sum of the waits in `run_queue_hist`.
    pub run_queue_delay_ns: u64,
    /// Number of the waits in `run_queue_hist`.
    pub run_queue_waits: u64,
    /// From runnable (woken or preempted) to running, while there was quota. A wait counts when the
    /// turn it led to ends.
    pub run_queue_hist: Log2Histogram,
    /// Sum of the waits that began because the own quota, or an ancestor's, was used up. They are not
    /// in `run_queue_hist`.
    pub throttled_ns: u64,
    /// Number of those waits.
    pub throttled_waits: u64,

    /// Bytes read from block devices.
    pub block_read_bytes: u64,
    /// Bytes written to block devices.
    pub block_write_bytes: u64,
    /// Completed reads.
    pub block_read_ops: u64,
    /// Completed writes.
    pub block_write_ops: u64,
    /// Completed flushes, discards and other operations.
    pub block_other_ops: u64,
    /// Operations that failed; included in the operations above.
    pub block_errors: u64,
    /// Sum of the latencies in `block_hist`.
    pub block_latency_ns: u64,
    /// From issue to the device to completion.
    pub block_hist: Log2Histogram,
    /// Sum of the delays in `block_queue_hist`.
    pub block_queue_ns: u64,
    /// From the request's allocation to its issue; empty where the kernel doesn't stamp requests.
    pub block_queue_hist: Log2Histogram,

    /// Bytes received, IP headers included.
    pub net_rx_bytes: u64,
    /// Bytes sent, IP headers included.
    pub net_tx_bytes: u64,
    /// Packets received, as on the wire.
    pub net_rx_packets: u64,
    /// Packets sent, as on the wire.
    pub net_tx_packets: u64,
    /// Smoothed round-trip time of the socket at each TCP packet sent with data.
    pub rtt_hist: Log2Histogram,
    /// TCP segments sent again.
    pub retransmits: u64,
    /// TCP connections made from here.
    pub connects: u64,
    /// TCP connections from here that were refused or timed out.
    pub connect_failures: u64,
    /// TCP connections made to here, accepted by the service or not yet.
    pub accepts: u64,
    /// TCP resets received.
    pub resets_received: u64,
    /// TCP resets sent.
    pub resets_sent: u64,

    /// Clear-text HTTP/1 request heads that came to its sockets.
    pub http_requests: u64,
    /// Final responses by the first digit of their status, 1xx to 5xx.
    pub http_responses: [u64; 5],
    /// Sum of the times in `http_hist`.
    pub http_service_ns: u64,
    /// From a request's first packet to the first packet of its final response.
    pub http_hist: Log2Histogram,

    /// Time that its tasks spent freeing memory instead of running (direct reclaim).
    pub reclaim_ns: u64,
    /// Number of those times.
    pub reclaims: u64,
}

impl Counters {
    /// What happened since `earlier`, a previous reading of the same cgroup. Never negative.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        self.zip(earlier, u64::saturating_sub, Log2Histogram::since)
    }

    /// Both together, as for the nested cgroups of one instance.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        self.zip(other, u64::saturating_add, Log2Histogram::plus)
    }

    /// Completed block operations of every kind.
    #[must_use]
    pub fn block_ops(&self) -> u64 {
        self.block_read_ops
            .saturating_add(self.block_write_ops)
            .saturating_add(self.block_other_ops)
    }

    fn zip(
        &self,
        other: &Self,
        count: fn(u64, u64) -> u64,
        histogram: fn(&Log2Histogram, &Log2Histogram) -> Log2Histogram,
    ) -> Self {
        Self {
            on_cpu_ns: count(self.on_cpu_ns, other.on_cpu_ns),
            switches: count(self.switches, other.switches),
            migrations: count(self.migrations, other.migrations),
            run_queue_delay_ns: count(self.run_queue_delay_ns, other.run_queue_delay_ns),
            run_queue_waits: count(self.run_queue_waits, other.run_queue_waits),
            run_queue_hist: histogram(&self.run_queue_hist, &other.run_queue_hist),
            throttled_ns: count(self.throttled_ns, other.throttled_ns),
            throttled_waits: count(self.throttled_waits, other.throttled_waits),
            block_read_bytes: count(self.block_read_bytes, other.block_read_bytes),
            block_write_bytes: count(self.block_write_bytes, other.block_write_bytes),
            block_read_ops: count(self.block_read_ops, other.block_read_ops),
            block_write_ops: count(self.block_write_ops, other.block_write_ops),
            block_other_ops: count(self.block_other_ops, other.block_other_ops),
            block_errors: count(self.block_errors, other.block_errors),
            block_latency_ns: count(self.block_latency_ns, other.block_latency_ns),
            block_hist: histogram(&self.block_hist, &other.block_hist),
            block_queue_ns: count(self.block_queue_ns, other.block_queue_ns),
            block_queue_hist: histogram(&self.block_queue_hist, &other.block_queue_hist),
            net_rx_bytes: count(self.net_rx_bytes, other.net_rx_bytes),
            net_tx_bytes: count(self.net_tx_bytes, other.net_tx_bytes),
            net_rx_packets: count(self.net_rx_packets, other.net_rx_packets),
            net_tx_packets: count(self.net_tx_packets, other.net_tx_packets),
            rtt_hist: histogram(&self.rtt_hist, &other.rtt_hist),
            retransmits: count(self.retransmits, other.retransmits),
            connects: count(self.connects, other.connects),
            connect_failures: count(self.connect_failures, other.connect_failures),
            accepts: count(self.accepts, other.accepts),
            resets_received: count(self.resets_received, other.resets_received),
            resets_sent: count(self.resets_sent, other.resets_sent),
            http_requests: count(self.http_requests, other.http_requests),
            http_responses: std::array::from_fn(|class| {
                count(self.http_responses[class], other.http_responses[class])
            }),
            http_service_ns: count(self.http_service_ns, other.http_service_ns),
            http_hist: histogram(&self.http_hist, &other.http_hist),
            reclaim_ns: count(self.reclaim_ns, other.reclaim_ns),
            reclaims: count(self.reclaims, other.reclaims),
        }
    }

    /// Adds what one CPU counted.
    pub(crate) fn add(&mut self, kernel: &CgroupCounters) {
        *self = self.plus(&kernel.into());
    }
}

impl From<&CgroupCounters> for Counters {
    fn from(kernel: &CgroupCounters) -> Self {
        // Destructured, so that a counter added to the kernel side can't be forgotten here.
        let CgroupCounters {
            cpu,
            block,
            net,
            tcp,
            http,
            memory,
            tracked_ns: _,
        } = *kernel;
        let CpuCounters {
            on_cpu_ns,
            switches,
            migrations,
            run_queue_ns,
            run_queue_waits,
            throttled_ns,
            throttled_waits,
            run_queue,
        } = cpu;
        let BlockCounters {
            read_bytes,
            write_bytes,
            read_ops,
            write_ops,
            other_ops,
            errors,
            latency_ns,
            latency,
            queue_ns,
            queue,
        } = block;
        let NetCounters {
            rx_bytes,
            tx_bytes,
            rx_packets,
            tx_packets,
            rtt,
        } = net;
        let TcpCounters {
            retransmits,
            connects,
            connect_failures,
            accepts,
            resets_received,
            resets_sent,
        } = tcp;
        let HttpCounters {
            requests,
            responses,
            service_ns,
            service,
        } = http;
        let MemoryCounters {
            reclaim_ns,
            reclaims,
        } = memory;
        Self {
            on_cpu_ns,
            switches,
            migrations,
            run_queue_delay_ns: run_queue_ns,
            run_queue_waits,
            run_queue_hist: run_queue.into(),
            throttled_ns,
            throttled_waits,
            block_read_bytes: read_bytes,
            block_write_bytes: write_bytes,
            block_read_ops: read_ops,
            block_write_ops: write_ops,
            block_other_ops: other_ops,
            block_errors: errors,
            block_latency_ns: latency_ns,
            block_hist: latency.into(),
            block_queue_ns: queue_ns,
            block_queue_hist: queue.into(),
            net_rx_bytes: rx_bytes,
            net_tx_bytes: tx_bytes,
            net_rx_packets: rx_packets,
            net_tx_packets: tx_packets,
            rtt_hist: rtt.into(),
            retransmits,
            connects,
            connect_failures,
            accepts,
            resets_received,
            resets_sent,
            http_requests: requests,
            http_responses: responses,
            http_service_ns: service_ns,
            http_hist: service.into(),
            reclaim_ns,
            reclaims,
        }
    }
}

/// Facts that the programs had to drop, since load.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Losses {
    /// Waits missing from the run-queue histogram: no memory for the task's timestamp.
    pub run_queue_waits: u64,
    /// Block requests not counted: more than the in-flight table holds.
    pub block_requests: u64,
    /// HTTP requests not counted: no memory for the connection's state.
    pub http_requests: u64,
    /// Waits for the CPU whose neighbour isn't named: more pairs than the table holds.
    pub neighbours: u64,
}

impl Losses {
    /// All kinds together.
    #[must_use]
    pub fn total(&self) -> u64 {
        [
            self.run_queue_waits,
            self.block_requests,
            self.http_requests,
            self.neighbours,
        ]
        .into_iter()
        .fold(0, u64::saturating_add)
    }

    pub(crate) fn from_kinds(kinds: &[u64; LOSS_KINDS]) -> Self {
        Self {
            run_queue_waits: kinds[Loss::TaskStorage as usize],
            block_requests: kinds[Loss::InFlight as usize],
            http_requests: kinds[Loss::Connection as usize],
            neighbours: kinds[Loss::Neighbour as usize],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sim_ebpf_abi::Histogram;

    #[test]
    fn every_kernel_counter_reaches_its_field_and_any_bytes_decode() {
        let histogram = Histogram {
            buckets: [u64::MAX; 32],
        };
        let mut all = Counters::default();
        let cpu = CpuCounters {
            on_cpu_ns: u64::MAX,
            switches: 1,
            migrations: 15,
            run_queue_ns: 2,
            run_queue_waits: 3,
            throttled_ns: 16,
            throttled_waits: 17,
            run_queue: histogram,
        };
        let block = BlockCounters {
            read_bytes: u64::MAX,
            write_bytes: 4,
            read_ops: 5,
            write_ops: 6,
            other_ops: 7,
            errors: 8,
            latency_ns: 9,
            latency: histogram,
            queue_ns: 18,
            queue: histogram,
        };
        let net = NetCounters {
            rx_bytes: 10,
            tx_bytes: 11,
            rx_packets: 12,
            tx_packets: 13,
            rtt: histogram,
        };
        let one_cpu = CgroupCounters {
            cpu,
            block,
            net,
            tcp: TcpCounters {
                retransmits: 14,
                connects: 28,
                connect_failures: 29,
                accepts: 30,
                resets_received: 31,
                resets_sent: 32,
            },
            http: HttpCounters {
                requests: 19,
                responses: [20, 21, 22, 23, 24],
                service_ns: 25,
                service: histogram,
            },
            memory: MemoryCounters {
                reclaim_ns: 26,
                reclaims: 27,
            },
            tracked_ns: 33,
        };
        all.add(&one_cpu);
        all.add(&one_cpu);
        assert_eq!(all.on_cpu_ns, u64::MAX);
        assert_eq!(all.block_read_bytes, u64::MAX);
        assert_eq!(
            (all.switches, all.run_queue_delay_ns, all.run_queue_waits),
            (2, 4, 6)
        );
        assert_eq!(
            (
                all.block_write_bytes,
                all.block_ops(),
                all.block_errors,
                all.block_latency_ns
            ),
            (8, 36, 16, 18)
        );
        assert_eq!(
            (
                all.net_rx_bytes,
                all.net_tx_bytes,
                all.net_rx_packets,
                all.net_tx_packets
            ),
            (20, 22, 24, 26)
        );
        assert_eq!(all.retransmits, 28);
        assert_eq!(
            (
                all.connects,
                all.connect_failures,
                all.accepts,
                all.resets_received,
                all.resets_sent
            ),
            (56, 58, 60, 62, 64)
        );
        assert_eq!(
            (all.migrations, all.throttled_ns, all.throttled_waits),
            (30, 32, 34)
        );
        assert_eq!(all.block_queue_ns, 36);
        assert_eq!(
            (all.http_requests, all.http_responses, all.http_service_ns),
            (38, [40, 42, 44, 46, 48], 50)
        );
        assert_eq!((all.reclaim_ns, all.reclaims), (52, 54));
        assert_eq!(all.since(&all), Counters::default());
        assert_eq!(Counters::default().since(&all), Counters::default());
        assert_eq!(Counters::default().plus(&all), all);
    }
}
