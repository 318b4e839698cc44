//! Requests that are answered here, and the end of their connections.

use super::buffers::Buffer;
use super::watchdog::Watchdog;
use super::wire::{self, Got};
use super::{Connection, Then};
use crate::clock::monotonic_ns;
use crate::counters::{Counters, Ending, ErrorSide};
use crate::limits::Refusal;
use crate::refusal;
use pingora_core::protocols::Stream;
use tokio::io::{AsyncRead, AsyncWrite};

/// How long the last bytes of a connection may take to be gone, ns.
const GOODBYE_NS: u64 = 500_000_000;
/// How long a connection that is to be closed is read from, ns, and how much.
const LINGER_NS: u64 = 500_000_000;
const LINGER_BYTES_MAX: usize = 1_024 * 1_024;

impl<'a> Connection<'a> {
    /// Counts a request. From here on a stop waits for it.
    pub(super) fn arrived(&mut self, counters: &'a Counters) {
        counters.arrived();
        self.open = Some(counters);
    }

    /// Counts and answers a request that reaches no workload.
    pub(super) async fn refuse(
        &mut self,
        stream: &mut Stream,
        refusal: Refusal,
        is_head: bool,
    ) -> Then {
        let outside = &self.path.workloads.outside;
        self.refuse_of(stream, outside, refusal, is_head).await
    }

    /// Counts and answers a request that one workload has nothing of, by `counters`.
    pub(super) async fn refuse_of(
        &mut self,
        stream: &mut Stream,
        counters: &'a Counters,
        refusal: Refusal,
        is_head: bool,
    ) -> Then {
        self.arrived(counters);
        self.refuse_arrived(stream, counters, refusal, is_head)
            .await
    }

    /// The same for one that is counted already.
    pub(super) async fn refuse_arrived(
        &mut self,
        stream: &mut Stream,
        counters: &Counters,
        refusal: Refusal,
        is_head: bool,
    ) -> Then {
        // What is there of it is gone afterwards.
        let question = self.refused_question();
        self.note.ending = Some(Ending::Refused);
        if refusal.is_late() {
            counters.erred(ErrorSide::Downstream);
        }
        self.write_page(stream, refusal.status(), is_head, || {
            counters.refused(refusal);
        })
        .await;
        self.log_refused(question, counters);
        Then::Close
    }

    /// Ends a request as failed with `status`, after which the connection is closed.
    pub(super) async fn write_failure(
        &mut self,
        stream: &mut Stream,
        counters: &Counters,
        status: u16,
        is_head: bool,
    ) {
        self.note.ending = Some(Ending::Failed);
        let count = || counters.ended(Ending::Failed);
        self.write_page(stream, status, is_head, count).await;
    }

    /// Ends a request with `status`, after which the connection is closed. A stop waits for the page: `count` says that
    /// it is over.
    async fn write_page(
        &mut self,
        stream: &mut Stream,
        status: u16,
        is_head: bool,
        count: impl FnOnce(),
    ) {
        self.note.status = status;
        let page = refusal::page(status, is_head);
        let body = page.split_once("\r\n\r\n");
        self.note.bytes_out = body.map_or(0, |(_, body)| body.len() as u64);
        let (watchdog, write_ns) = (&mut self.watchdog, self.path.client_write_ns);
        let written = wire::write(stream, page.as_bytes(), watchdog, write_ns).await;
        count();
        self.open = None;
        match written {
            Ok(()) => self.linger(stream).await,
            Err(error) => tracing::debug!(?error, "user left before the error page"),
        }
    }

    /// Over TLS, that nothing more comes: an answer may end so, and one that was cut off must not look the same.
    pub(super) async fn say_goodbye(&mut self, stream: &mut Stream) {
        if stream.get_ssl().is_some() {
            wire::end(stream, &mut self.watchdog, GOODBYE_NS).await;
        }
    }

    /// Takes what the user is still sending: the kernel would answer it with a reset, which may overtake the page.
    pub(super) async fn linger(&mut self, stream: &mut Stream) {
        let bounds = (LINGER_NS, LINGER_BYTES_MAX);
        linger_at(stream, &mut self.arrived, &mut self.watchdog, bounds).await;
    }
}

/// Says at `io` that nothing more comes, and takes what is still sent there, for no longer and no more than that.
pub(super) async fn linger_at(
    io: &mut (impl AsyncRead + AsyncWrite + Unpin + ?Sized),
    taken_up: &mut Buffer,
    watchdog: &mut Watchdog,
    (longest_ns, bytes_max): (u64, usize),
) {
    if !wire::end(io, watchdog, GOODBYE_NS).await {
        return;
    }
    let deadline_ns = monotonic_ns().saturating_add(longest_ns);
    let mut taken = 0;
    while taken < bytes_max {
        taken_up.consume(usize::MAX);
        let got = wire::fill(io, taken_up, watchdog, deadline_ns, |_| false);
        if !matches!(got.await, Got::Bytes) {
            return;
        }
        taken += taken_up.len();
    }
}
