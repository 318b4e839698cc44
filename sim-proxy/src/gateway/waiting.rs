//! Whom a request waits for, and how that ends before it is over.

use super::{Gateway, Request};
use crate::config::Protocol;
use crate::cut::Cut;
use crate::drain::Stay;
use crate::waiting::Seat;
use pingora_core::upstreams::peer::{HttpPeer, Peer as _};
use pingora_proxy::Session;

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

    /// From now on it is a stream, which may end before it is over.
    pub(super) fn streams(&self, request: &mut Request) {
        if let (Some(attempt), Some(connection), Some(dispatch)) = (
            &request.attempt,
            &request.connection,
            self.dispatch(request),
        ) {
            let links = (dispatch.protocol == Protocol::Http2).then_some(&self.links);
            let stay = Stay::new(attempt.entered_ns(), dispatch.stream_grace_ns);
            request.stay = Some(stay.ends_with(attempt.live(), connection.clone(), links));
        }
    }
}
