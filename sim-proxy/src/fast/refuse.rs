//! Requests that are answered here, and the end of their connections.

use super::wire::{self, Got};
use super::{Connection, USER_PATIENCE_NS};
use crate::clock::monotonic_ns;
use crate::counters::{Counters, Ending};
use crate::refusal;
use pingora_core::protocols::Stream;
use tokio::io::AsyncWriteExt as _;

/// How long a connection that is to be closed is read from, ns, and how much.
const LINGER_NS: u64 = 500_000_000;
const LINGER_BYTES_MAX: usize = 1_024 * 1_024;

impl Connection<'_> {
    /// Counts and answers a request that reaches no workload.
    pub(super) async fn refuse(&mut self, stream: &mut Stream, status: u16, is_head: bool) {
        let counters = &self.path.workloads.outside;
        counters.arrived();
        self.write_refusal(stream, counters, status, is_head, Ending::Refused)
            .await;
    }

    /// Ends a request with `status`, after which the connection is closed. A stop waits for the page.
    pub(super) async fn write_refusal(
        &mut self,
        stream: &mut Stream,
        counters: &Counters,
        status: u16,
        is_head: bool,
        ending: Ending,
    ) {
        let page = refusal::page(status, is_head);
        let watchdog = &mut self.watchdog;
        let written = wire::write(stream, page.as_bytes(), watchdog, USER_PATIENCE_NS).await;
        counters.ended(ending);
        match written {
            Ok(()) => self.linger(stream).await,
            Err(error) => tracing::debug!(?error, "user left before the error page"),
        }
    }

    /// Takes what the user is still sending: the kernel would answer it with a reset, which may overtake the page.
    async fn linger(&mut self, stream: &mut Stream) {
        if stream.shutdown().await.is_err() {
            return;
        }
        let deadline_ns = monotonic_ns().saturating_add(LINGER_NS);
        let mut taken = 0;
        while taken < LINGER_BYTES_MAX {
            self.arrived.consume(usize::MAX);
            let got = wire::fill(
                stream,
                &mut self.arrived,
                &mut self.watchdog,
                deadline_ns,
                |_| false,
            );
            if !matches!(got.await, Got::Bytes) {
                return;
            }
            taken += self.arrived.len();
        }
    }
}
