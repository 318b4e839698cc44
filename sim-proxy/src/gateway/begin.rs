//! The beginning of a request: that there is one, whose it is, and which session's.

use super::{Gateway, Request};
use crate::framing;
use crate::limits::Refusal;
use crate::sticky::{self, SessionKey, Sticky};
use crate::tell::target_of;
use pingora_proxy::Session;
use std::cell::Cell;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::pin;

thread_local! {
    /// A request has begun since this was last set.
    static BEGUN: Cell<bool> = const { Cell::new(false) };
}

/// The outcome of `general`, a request that is left to Pingora, and whether Pingora took it up: what its parser doesn't
/// take it answers without a word to anybody.
pub(crate) async fn noting_begin<T>(general: impl Future<Output = T>) -> (T, bool) {
    let (mut general, mut begun) = (pin!(general), false);
    poll_fn(|context| {
        // Nothing else of this thread runs within a poll.
        BEGUN.set(false);
        let polled = general.as_mut().poll(context);
        begun |= BEGUN.get();
        polled.map(|outcome| (outcome, begun))
    })
    .await
}

/// Notes that a request has begun.
pub(super) fn note() {
    BEGUN.set(true);
}

impl Gateway {
    /// Which session a request belongs to.
    pub(super) fn find_session(&self, session: &Session, request: &mut Request) {
        let Some(sticky) = &self.sticky else { return };
        if *sticky == Sticky::Source {
            let client = session.client_addr().and_then(|client| client.as_inet());
            request.session = client.map(|client| SessionKey::of_address(client.ip()));
            return;
        }
        let mut fields = session.req_header().headers.iter();
        request.session =
            fields.find_map(|(name, value)| sticky.named_by(name.as_str(), value.as_bytes()));
        if request.session.is_none() && matches!(sticky, Sticky::Cookie(_)) {
            let given = sticky::new_session();
            request.session = Some(SessionKey::of(&given));
            request.given = Some(given);
        }
    }

    /// Finds the workload of a request.
    ///
    /// # Errors
    /// Why it is refused.
    pub(super) fn find_workload(
        &self,
        session: &Session,
        request: &mut Request,
    ) -> Result<(), Refusal> {
        if let Some(fault) = framing::fault(session) {
            tracing::debug!(%fault, "request refused");
            return Err(Refusal::Malformed);
        }
        let (head, limits) = (session.req_header(), &self.workloads.limits);
        let http1 = session.as_http1();
        let bytes = http1.map_or(0, |http1| http1.get_headers_raw_bytes().len());
        if let Some(refusal) = limits.head(bytes, head.headers.len()) {
            return Err(refusal);
        }
        let (authority, path) = target_of(head);
        let has = |name: &str, value: &[u8]| {
            let mut values = head.headers.get_all(name).iter();
            values.any(|found| found.as_bytes() == value)
        };
        let found = self.workloads.matcher().find(authority, path, has);
        request.place = Some(self.workloads.place(found)?);
        let client = session.client_addr().and_then(|client| client.as_inet());
        let may_ask = limits.may_ask_from(client.map(SocketAddr::ip));
        may_ask.then_some(()).ok_or(Refusal::Rate)
    }
}
