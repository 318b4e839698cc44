//! Whom a request waits for, and how that ends before it is over.

use super::{Gateway, Request};
use crate::clock::monotonic_ns;
use crate::config::Protocol;
use crate::cut::Cut;
use crate::dispatch::Dispatch;
use crate::drain::{self, Stay};
use crate::waiting::Seat;
use http::header::UPGRADE;
use pingora_core::upstreams::peer::{HttpPeer, Peer as _};
use pingora_proxy::Session;

/// Whether a request may change the protocol: Pingora passes no other change on, and none to HTTP/2.
pub(super) fn may_switch(session: &Session, dispatch: &Dispatch) -> bool {
    let to = session.req_header().headers.get(UPGRADE);
    dispatch.protocol == Protocol::Http1
        && session.is_upgrade_req()
        && to.is_some_and(|to| to.as_bytes().eq_ignore_ascii_case(b"websocket"))
}

impl Gateway {
    /// Takes a seat for a request that changes nothing and has no body, and that waits at a connection which is its own.
    pub(super) fn seat(
        &self,
        session: &mut Session,
        peer: &HttpPeer,
        request: &Request,
    ) -> Option<Seat> {
        let is_own = peer
            .get_alpn()
            .is_none_or(|alpn| alpn.get_max_http_version() == 1);
        if !is_own || !session.req_header().method.is_safe() || !session.as_mut().is_body_empty() {
            return None;
        }
        let (attempt, connection) = (request.attempt.as_ref()?, request.connection.clone()?);
        let live = attempt.live();
        let dispatch = self.workloads.shared(request.place?)?;
        let cut = Cut::new(dispatch, live.id(), connection, request.tries);
        let late_ns = dispatch.routes.overdue().late_ns();
        Seat::of_connection(live, attempt.entered_ns().saturating_add(late_ns), cut)
    }

    /// Whether its connection to the instance, which it shares with others, was ended for those that had drained for too
    /// long: that says nothing of the instance. Each worker hears of it on its own.
    pub(super) fn is_cut_with_others(&self, request: &Request) -> bool {
        let (Some(attempt), Some(dispatch)) = (&request.attempt, self.dispatch(request)) else {
            return false;
        };
        let (entered_ns, grace_ns) = (attempt.entered_ns(), dispatch.stream_grace_ns);
        dispatch.protocol == Protocol::Http2
            && drain::is_over(attempt.live(), entered_ns, grace_ns, monotonic_ns())
    }

    /// From now on it is a stream, which may end before it is over.
    pub(super) fn streams(&self, request: &mut Request) {
        let Some(dispatch) = self.dispatch(request) else {
            return;
        };
        let links = (dispatch.protocol == Protocol::Http2).then_some(&self.links);
        let grace_ns = dispatch.stream_grace_ns;
        if let (Some(attempt), Some(connection)) = (&mut request.attempt, &request.connection) {
            let (in_flight, connection) = (attempt.lend(), connection.clone());
            let stay = Stay::new(attempt.entered_ns(), grace_ns);
            request.stay = Some(stay.ends_with(attempt.live(), in_flight, connection, links));
        }
    }
}
