//! What the general path tells an instance of a request: who asked, and its trace.

use crate::config::ProxyConfig;
use crate::forwarded::{self, ForwardSettings, Hop};
use crate::trace::{self, Trace, TraceSettings};
use http::header::{HOST, HeaderValue};
use pingora_core::protocols::http::authority::{RawTargetAuthority, raw_target_authority};
use pingora_error::Result;
use pingora_http::RequestHeader;
use pingora_proxy::Session;

pub(crate) struct Teller {
    forward: ForwardSettings,
    trace: Option<TraceSettings>,
}

impl Teller {
    pub(crate) fn new(config: &ProxyConfig) -> Self {
        Self {
            forward: config.forward.clone(),
            trace: config.trace,
        }
    }

    /// The trace of a request, if traces are told. It is the same in each of its attempts.
    pub(crate) fn trace(&self, session: &Session) -> Option<Trace> {
        let parents = session.req_header().headers.get_all(trace::PARENT);
        let parents = parents.iter().map(HeaderValue::as_bytes);
        self.trace.map(|settings| Trace::of(settings, parents))
    }

    /// Tells the instance of them.
    pub(crate) fn tell(
        &self,
        session: &Session,
        trace: Option<&Trace>,
        upstream_request: &mut RequestHeader,
    ) -> Result<()> {
        if let Some(trace) = trace {
            upstream_request.insert_header(trace::PARENT, &trace.traceparent()[..])?;
            if !trace.has_state() {
                upstream_request.remove_header(trace::STATE);
            }
        }
        let digest = session.digest();
        let Some(client) = session.client_addr().and_then(|a| a.as_inet()) else {
            return Ok(());
        };
        let hop = Hop {
            client: client.ip(),
            is_tls: digest.is_some_and(|digest| digest.ssl_digest.is_some()),
            host: target_of(session.req_header()).0,
        };
        forwarded::tell(&self.forward, hop, upstream_request)
    }
}

/// Authority and path of a request; where its target names one, it is the authority that goes on (and no other may stand
/// in `Host`: Pingora sees to that).
pub(crate) fn target_of(head: &RequestHeader) -> (&[u8], &[u8]) {
    let (named, path) = match raw_target_authority(head.raw_path()) {
        RawTargetAuthority::Absolute {
            authority,
            path_and_query,
            ..
        } => (Some(authority), path_and_query),
        RawTargetAuthority::None | RawTargetAuthority::AmbiguousAuthority => {
            (None, head.raw_path())
        }
    };
    // HTTP/2's `:authority`.
    let named = named.or_else(|| Some(head.uri.authority()?.as_str().as_bytes()));
    let host = || Some(head.headers.get(HOST)?.as_bytes());
    (named.or_else(host).unwrap_or_default(), path)
}
