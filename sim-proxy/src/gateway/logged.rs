//! What the access log is told of a request of the general path.

use super::{Gateway, Request};
use crate::access_log::{Entry, Question};
use crate::clock::{monotonic_ns, wall_ns};
use crate::counters::Ending;
use crate::trace::{self, Trace};
use http::{HeaderValue, Version};
use pingora_proxy::Session;

impl Gateway {
    /// Leaves an entry for a request that is over.
    pub(super) fn log(&self, session: &Session, request: &Request, ending: Ending) {
        let Some(log) = &self.workloads.access_log else {
            return;
        };
        let duration_ns = monotonic_ns().saturating_sub(request.body.0);
        if !log.wants(ending, duration_ns) {
            return;
        }
        let (asked, answered) = (session.req_header(), session.response_written());
        let field = |name: &str| asked.headers.get(name).map(HeaderValue::as_bytes);
        let authority = || asked.uri.authority().map(|host| host.as_str().as_bytes());
        // The trace that went on, which may have begun here.
        let traceparent = request.trace.as_ref().map(Trace::traceparent);
        let traceparent = traceparent.as_ref().map(|text| &text[..]);
        let question = Question::new(
            asked.method.as_str().as_bytes(),
            field("host").or_else(authority).unwrap_or_default(),
            asked.raw_path(),
            traceparent
                .or_else(|| field(trace::PARENT))
                .unwrap_or_default(),
            log.with_query(),
        );
        let client = session.client_addr().and_then(|client| client.as_inet());
        let dispatch = self.dispatch(request);
        log.log(Entry {
            ended_ns: wall_ns(),
            duration_ns,
            client: client.map(std::net::SocketAddr::ip),
            workload: dispatch.map(|dispatch| dispatch.routes.workload().clone()),
            question,
            protocol: match asked.version {
                Version::HTTP_10 => "HTTP/1.0",
                Version::HTTP_2 => "HTTP/2",
                _ => "HTTP/1.1",
            },
            status: answered.map_or(0, |answer| answer.status.as_u16()),
            ending,
            bytes_in: session.as_ref().body_bytes_read() as u64,
            bytes_out: session.as_ref().body_bytes_sent() as u64,
            instance: request.instance,
            tries: request.tries,
            hedged: false,
        });
    }
}
