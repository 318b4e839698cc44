//! The general request path, as Pingora's `ProxyHttp`: for all that the fast one ([`crate::fast`]) leaves to it.
//!
//! Of ours it takes no lock, makes no system call, waits for nothing and, on the way that goes
//! well, allocates nothing but the values of the fields that it adds; the boxed futures and the boxed
//! peer are the trait's.

mod begin;
mod logged;
mod peer;
mod request;
mod waiting;

pub(crate) use begin::noting_begin;
pub(crate) use request::Request;

use crate::attempt::Attempt;
use crate::clock::monotonic_ns;
use crate::config::{Protocol, ProxyConfig};
use crate::counters::{Counters, Ending, ErrorSide, RetryReason};
use crate::cut::Connection;
use crate::dispatch::Dispatch;
use crate::drain::{self, Stay};
use crate::errors::ErrorClass;
use crate::health::Failure;
use crate::limits::Refusal;
use crate::limits::general::{hurry, reached};
use crate::links::{Connect, Links};
use crate::live::Outcome;
use crate::mirror::Taking;
use crate::pick::How;
use crate::retry::{Exchange, is_instance_at_fault, is_stale, is_tls, judge, may_go_again};
use crate::routes::{Entry, NoEntry};
use crate::sticky::{self, Sticky};
use crate::tell::Teller;
use crate::waiting::Seat;
use crate::workloads::{Open, Workloads};
use crate::{grpc, http2, refusal};
use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderMap, Version};
use peer::peer;
use pingora_core::modules::http::HttpModules;
use pingora_core::protocols::Digest;
use pingora_core::upstreams::peer::{HttpPeer, PeerOptions};
use pingora_error::{BError, Error, ErrorSource, ErrorType, Result};
use pingora_http::{RequestHeader, ResponseHeader};
use pingora_proxy::{FailToProxy, ProxyHttp, ProxyWarnLogContext, Session};
use sim_core::name::InstanceId;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use waiting::may_switch;

/// Sends each request to an instance.
pub(crate) struct Gateway {
    workloads: Arc<Workloads>,
    client_idle_seconds: u64,
    client_write_timeout: Duration,
    sticky: Option<Sticky>,
    teller: Teller,
    http1_options: PeerOptions,
    http2_options: PeerOptions,
    /// Connections made by `http2_options`.
    links: Arc<Links>,
}

/// Requests at a time on one connection to an instance.
const STREAMS_MAX: usize = 100;
/// How often an instance is asked on a connection of HTTP/2 whether it is still there; 5 s later it isn't.
const PING_INTERVAL: Duration = Duration::from_secs(10);

impl Gateway {
    pub(crate) fn new(config: &ProxyConfig, workloads: Arc<Workloads>) -> Self {
        let mut peer_options = PeerOptions::new();
        peer_options.connection_timeout = Some(config.upstream.connect_timeout);
        peer_options.total_connection_timeout = Some(config.upstream.connect_timeout);
        peer_options.read_timeout = Some(config.upstream.read_timeout);
        peer_options.write_timeout = Some(config.upstream.write_timeout);
        peer_options.idle_timeout = Some(config.upstream.idle_timeout);
        let mut http2_options = peer_options.clone();
        http2_options.set_http_version(2, 2);
        http2_options.max_h2_streams = STREAMS_MAX;
        http2_options.h2_ping_interval = Some(PING_INTERVAL);
        let links = Arc::<Links>::default();
        http2_options.custom_l4 = Some(Arc::new(Connect(links.clone())));
        Self {
            workloads,
            client_idle_seconds: config.client_idle_timeout.as_secs(),
            client_write_timeout: config.client_write_timeout,
            sticky: config.sticky.clone(),
            teller: Teller::new(config),
            http1_options: peer_options,
            http2_options,
            links,
        }
    }

    /// The workload of a request.
    fn dispatch(&self, request: &Request) -> Option<&Dispatch> {
        self.workloads.at(request.place?)
    }

    /// What a request is counted by.
    fn counters(&self, request: &Request) -> &Counters {
        let dispatch = self.dispatch(request);
        dispatch.map_or(&self.workloads.outside, |dispatch| &dispatch.counters)
    }

    /// Ends the present attempt as failed. `failure` is what that says of its instance.
    fn attempt_failed(
        &self,
        request: &mut Request,
        class: ErrorClass,
        failure: Option<Failure>,
    ) -> Option<InstanceId> {
        let attempt = request.attempt.take()?;
        Some(
            self.dispatch(request)?
                .attempt_failed(attempt, class, failure),
        )
    }

    /// Whether `error` is that the time of a request is over, which is counted.
    fn is_over(&self, request: &Request, error: &Error) -> bool {
        let dispatch = self.dispatch(request);
        let is_overtime = |dispatch: &Dispatch| dispatch.is_overtime(request.deadline_ns);
        reached(error) && dispatch.is_some_and(is_overtime)
    }

    /// Over TLS an instance that is to be spoken to in HTTP/2 may not know it.
    fn is_downgraded(&self, request: &Request, upstream_request: &RequestHeader) -> bool {
        let dispatch = self.dispatch(request);
        upstream_request.version != Version::HTTP_2
            && dispatch.is_some_and(|dispatch| dispatch.protocol == Protocol::Http2)
    }

    fn has_next(&self, request: &Request, not: Option<InstanceId>, stale: bool) -> bool {
        let pair = self.dispatch(request).zip(not);
        pair.is_some_and(|(dispatch, not)| dispatch.routes.has_next(not, stale))
    }

    fn may_retry(&self, request: &Request, reason: RetryReason) -> bool {
        let dispatch = self.dispatch(request);
        dispatch.is_some_and(|dispatch| dispatch.may_retry(request.tries, reason))
    }
}

#[async_trait]
impl ProxyHttp for Gateway {
    type CTX = Request;

    fn new_ctx(&self) -> Request {
        begin::note();
        Request::new()
    }

    /// No compression module: bodies pass as they are.
    fn init_downstream_modules(&self, _modules: &mut HttpModules) {}

    async fn request_filter(&self, session: &mut Session, request: &mut Request) -> Result<bool> {
        let found = self.find_workload(session, request);
        request.open = Some(Open::new(self.workloads.clone(), request.place));
        if let Err(refusal) = found {
            request.refused = Some(refusal);
            refusal::write(session, refusal.status()).await?;
            return Ok(true);
        }
        session.set_read_timeout(Some(self.workloads.limits.settings.body_timeout));
        // Pingora's own default is to wait for ever for a user who takes nothing.
        session.set_write_timeout(Some(self.client_write_timeout));
        self.find_session(session, request);
        request.trace = self.teller.trace(session);
        // Pingora's own default is to keep an idle connection for ever.
        if session.get_keepalive() == Some(0) {
            session.set_keepalive(Some(self.client_idle_seconds));
        }
        Ok(false)
    }

    async fn upstream_peer(
        &self,
        session: &mut Session,
        request: &mut Request,
    ) -> Result<Box<HttpPeer>> {
        let Some(dispatch) = self.dispatch(request) else {
            return Err(Error::new_in(ErrorType::HTTPStatus(404)));
        };
        let entry = Entry {
            not: request.not.take(),
            may_probe: session.req_header().method.is_idempotent(),
            first: request.tries == 0,
            session: request.session,
        };
        request.tries += 1;
        let mut admitted = dispatch.routes.admit(entry);
        if let Err(NoEntry::NoInstance) = admitted {
            let held = dispatch.hold.wait(|| dispatch.admit_again(entry)).await;
            admitted = held.unwrap_or(admitted);
        }
        let attempt = match admitted {
            Ok(attempt) => attempt,
            Err(none) => {
                if none == NoEntry::NoInstance {
                    let no_instance = &dispatch.counters.no_instance;
                    no_instance.fetch_add(1, Ordering::Relaxed);
                } else if entry.first {
                    request.refused = Some(Refusal::Overload);
                }
                return Err(Error::new_in(ErrorType::HTTPStatus(503)));
            }
        };
        let options = match dispatch.protocol {
            Protocol::Http1 => &self.http1_options,
            Protocol::Http2 => &self.http2_options,
        };
        let mut peer = peer(&attempt, options, dispatch.tls.as_deref())?;
        peer.group_key ^= drain::era(attempt.live(), attempt.entered_ns());
        if grpc::is_call(session) {
            // A stream may have nothing to say for long. Whoever hangs doesn't answer the pings.
            request.deadline = grpc::deadline(&session.req_header().headers);
            peer.options.read_timeout = request.deadline;
        } else if !may_switch(session, dispatch) {
            let limits = &self.workloads.limits;
            let now_ns = attempt.entered_ns();
            if entry.first {
                request.deadline_ns = limits.answer_deadline_ns(now_ns);
            }
            let left_ns = request.deadline_ns.saturating_sub(now_ns);
            hurry(&mut peer.options, Duration::from_nanos(left_ns));
        }
        request.instance = Some(attempt.live().id());
        request.attempt = Some(attempt);
        Ok(Box::new(peer))
    }

    async fn connected_to_upstream(
        &self,
        session: &mut Session,
        _reused: bool,
        peer: &HttpPeer,
        fd: RawFd,
        digest: Option<&Digest>,
        request: &mut Request,
    ) -> Result<()> {
        let attempt = request.attempt.as_ref();
        request.connection =
            attempt.and_then(|attempt| Connection::of(fd, attempt.address(), digest));
        request.seat = self.seat(session, peer, request);
        request.stay = None;
        let switches = self.dispatch(request);
        let switches = switches.is_some_and(|dispatch| may_switch(session, dispatch));
        if grpc::is_call(session) || switches {
            // They may be silent for as long as they like, and have no deadline.
            self.streams(request);
        }
        Ok(())
    }

    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        upstream_request: &mut RequestHeader,
        request: &mut Request,
    ) -> Result<()> {
        if session.is_http2() {
            http2::join_cookies(upstream_request)?;
        }
        if self.is_downgraded(request, upstream_request) {
            let why = "the instance doesn't speak HTTP/2";
            return Err(Error::explain(ErrorType::TLSHandshakeFailure, why).into_up());
        }
        let trace = request.trace.as_ref();
        self.teller.tell(session, trace, upstream_request)?;
        if let Some(taking) = &mut request.taking {
            taking.again();
        } else if request.tries == 1
            && let Some(dispatch) = self.dispatch(request)
            // Copies speak HTTP/1.1.
            && dispatch.protocol == Protocol::Http1
        {
            request.taking = Taking::begin(&dispatch.mirror, &dispatch.routes, upstream_request);
        }
        Ok(())
    }

    async fn request_body_filter(
        &self,
        session: &mut Session,
        body: &mut Option<Bytes>,
        end_of_stream: bool,
        request: &mut Request,
    ) -> Result<()> {
        if let Some(taking) = &mut request.taking {
            taking.took(body.as_ref(), end_of_stream);
        }
        // Who talks both ways sends when there is something to say.
        if session.response_written().is_some() || session.is_http2() {
            return Ok(());
        }
        let (begun_ns, bytes) = &mut request.body;
        *bytes += body.as_ref().map_or(0, |piece| piece.len() as u64);
        let limits = &self.workloads.limits;
        limits.body_in_time(*begun_ns, *bytes, monotonic_ns())
    }

    fn upstream_response_body_filter(
        &self,
        session: &mut Session,
        body: &mut Option<Bytes>,
        end_of_stream: bool,
        request: &mut Request,
    ) -> Result<Option<Duration>> {
        if end_of_stream && request.has_outstayed() && !session.was_upgraded() {
            // Without a length it would look whole.
            return Err(Error::new_up(ErrorType::ConnectionClosed));
        }
        if let Some(taking) = &mut request.taking {
            taking.copying.saw(body.as_deref().unwrap_or_default());
            if end_of_stream {
                taking.copying.passed();
            }
        }
        Ok(None)
    }

    async fn upstream_response_filter(
        &self,
        _session: &mut Session,
        answer: &mut ResponseHeader,
        request: &mut Request,
    ) -> Result<()> {
        if request.seat.as_ref().and_then(Seat::left).is_some() {
            // What has come in that moment may be a part of it.
            return Err(Error::new_up(ErrorType::ConnectionClosed));
        }
        request.seat = None;
        if !answer.status.is_informational() && request.stay.is_none() {
            self.streams(request);
        }
        let (Some(attempt), Some(dispatch)) = (&request.attempt, self.dispatch(request)) else {
            return Ok(());
        };
        let call = grpc::is_grpc(&answer.headers);
        let said = grpc::status_in(&answer.headers).filter(|_| call);
        let call_failed = said.is_some_and(grpc::is_failure);
        if answer.status.is_server_error() || call_failed {
            dispatch.answered(attempt, answer.status.as_u16(), true);
        } else if call && said.is_none() && attempt.how() == How::Share {
            // The end will tell. Who only asks whether the instance is back doesn't wait for it.
        } else if !answer.status.is_informational() {
            dispatch.answered(attempt, answer.status.as_u16(), false);
        }
        if let Some(taking) = &mut request.taking
            && !answer.status.is_informational()
        {
            let by = attempt.live().id();
            taking.copying.answered(by, answer.status.as_u16());
        }
        if let (Some(Sticky::Cookie(name)), Some(given)) = (&self.sticky, &request.given)
            && !answer.status.is_informational()
        {
            answer.append_header("Set-Cookie", sticky::set_cookie_value(name, given))?;
        }
        (request.call, request.call_failed) = (call, call_failed);
        Ok(())
    }

    fn upstream_response_trailer_filter(
        &self,
        _session: &mut Session,
        trailers: &mut HeaderMap,
        request: &mut Request,
    ) -> Result<()> {
        let said = grpc::status_in(trailers).filter(|_| request.call);
        let (Some(attempt), Some(dispatch), Some(said)) =
            (&request.attempt, self.dispatch(request), said)
        else {
            return Ok(());
        };
        let call_failed = grpc::is_failure(said);
        dispatch.answered(attempt, 200, call_failed);
        request.call_failed = call_failed;
        Ok(())
    }

    fn fail_to_connect(
        &self,
        _session: &mut Session,
        _peer: &HttpPeer,
        request: &mut Request,
        mut error: BError,
    ) -> BError {
        let at_fault = |attempt: &Attempt| is_instance_at_fault(&error, attempt.address());
        let at_fault = request.attempt.as_ref().is_some_and(at_fault);
        let failure = at_fault.then_some(Failure::Connect);
        let stale = is_stale(&error);
        let reason = if stale {
            RetryReason::Reset
        } else if is_tls(&error) {
            let dispatch = self.dispatch(request);
            if let Some(tls) = dispatch.and_then(|dispatch| dispatch.tls.as_ref()) {
                tls.say(monotonic_ns(), &error);
            }
            RetryReason::Tls
        } else {
            RetryReason::Connect
        };
        request.not = self.attempt_failed(request, reason.into(), failure);
        let elsewhere = self.has_next(request, request.not, stale);
        request.not = request.not.filter(|_| elsewhere);
        let over = self.is_over(request, &error);
        let possible = !over && may_go_again(reason, true, stale, elsewhere);
        error.set_retry(possible && self.may_retry(request, reason));
        error
    }

    /// Replaces Pingora's own policy, whose two checks are in [`Exchange`].
    fn error_while_proxy(
        &self,
        _peer: &HttpPeer,
        session: &mut Session,
        mut error: BError,
        request: &mut Request,
        reused: bool,
    ) -> BError {
        let left = request.seat.take().and_then(|seat| seat.left());
        let cut_with_others = self.is_cut_with_others(request);
        if request.has_outstayed() || cut_with_others && request.stay.is_some() {
            request.drained = true;
            error.set_retry(false);
            return error;
        }
        // Their connection is gone: nothing of it may be looked at any more. It is out of flight when its outcome is counted,
        // at the end of this.
        let in_flight = request.stay.take().and_then(Stay::into_in_flight);
        request.connection = None;
        if error.esource() != &ErrorSource::Upstream {
            // It is counted in the end.
            request.in_flight = in_flight;
            error.set_retry(false);
            return error;
        }
        if let Some(reason) = left
            && let Some(attempt) = request.attempt.take()
            && let Some(dispatch) = self.dispatch(request)
        {
            // It is paid for; if there is nobody else any more, the same instance has to do.
            let failure = (reason == RetryReason::Late).then_some(Failure::Overtaken);
            request.not = Some(dispatch.attempt_broken(attempt, reason, failure));
            error.set_retry(session.response_written().is_none());
            return error;
        }
        let kept = self.workloads.limits.settings.body_replay_bytes;
        let exchange = Exchange {
            idempotent: session.req_header().method.is_idempotent(),
            body_lost: session.as_ref().retry_buffer_truncated()
                || session.as_ref().body_bytes_read() > kept,
            answer_begun: session.response_written().is_some(),
        };
        let (mut failure, reason) = judge(&error, reused);
        if reason == RetryReason::Timeout && request.deadline.is_some() {
            // The caller's own haste says nothing of the instance.
            failure = None;
        }
        let over = !exchange.answer_begun && self.is_over(request, &error);
        // What is left of the time may have been too little for anybody.
        let failure = failure.filter(|_| !cut_with_others && (!over || request.tries == 1));
        if reason == RetryReason::Tls
            && let Some(tls) = self.dispatch(request).and_then(|own| own.tls.as_ref())
        {
            tls.say(monotonic_ns(), &error);
        }
        let repeatable = exchange.is_repeatable(reason.is_untouched());
        let failed_on = self.attempt_failed(request, reason.into(), failure);
        let stale = reused && reason == RetryReason::Reset;
        let elsewhere = self.has_next(request, failed_on, stale);
        let possible = !over && may_go_again(reason, repeatable, reused, elsewhere);
        request.not = failed_on.filter(|_| elsewhere);
        error.set_retry(possible && self.may_retry(request, reason));
        error
    }

    async fn fail_to_proxy(
        &self,
        session: &mut Session,
        error: &Error,
        _request: &mut Request,
    ) -> FailToProxy {
        let error_code = refusal::status_of(error);
        if error_code > 0
            && let Err(error) = refusal::write(session, error_code).await
        {
            tracing::debug!(%error, "user left before the error page");
        }
        FailToProxy {
            error_code,
            can_reuse_downstream: false,
        }
    }

    async fn logging(&self, session: &mut Session, error: Option<&Error>, request: &mut Request) {
        if request.open.is_none() {
            request.open = Some(Open::new(self.workloads.clone(), request.place));
        }
        let status = session
            .response_written()
            .map_or(0, |answer| answer.status.as_u16());
        // An upgraded connection has no other end than that of the instance's.
        request.drained |= session.was_upgraded() && request.has_outstayed();
        let ending = match error.map(side_of) {
            _ if request.drained => Ending::Drained,
            Some(_) if request.refused.is_some() => Ending::Refused,
            None if request.attempt.is_none() => {
                request.refused.get_or_insert(Refusal::Malformed);
                Ending::Refused
            }
            None if status < 500 && !request.call_failed => Ending::Ok,
            None => Ending::Failed,
            Some(side) => {
                self.counters(request).erred(side);
                match side {
                    ErrorSide::Downstream if status == 400 || status == 408 => {
                        let late = status == 408;
                        let why = if late {
                            Refusal::BodyTimeout
                        } else {
                            Refusal::Malformed
                        };
                        request.refused.get_or_insert(why);
                        Ending::Refused
                    }
                    ErrorSide::Downstream => {
                        http2::note_reset();
                        Ending::Aborted
                    }
                    ErrorSide::Upstream | ErrorSide::Internal => Ending::Failed,
                }
            }
        };
        request.seat = None;
        if let Some(mut attempt) = request.attempt.take() {
            let answered = error.is_none() && !request.drained;
            let answered = answered.then(monotonic_ns);
            let outcome = match ending {
                Ending::Ok => Outcome::Ok,
                Ending::Failed => Outcome::Failed,
                Ending::Refused | Ending::Aborted | Ending::Drained => Outcome::Aborted,
            };
            attempt.end(outcome, answered);
        }
        // After that: it takes the attempt out of flight.
        request.stay = None;
        request.in_flight = None;
        self.log(session, request, ending);
        if let Some(open) = &mut request.open {
            open.close();
        }
        match (ending, request.refused) {
            (Ending::Refused, Some(refusal)) => self.counters(request).refused(refusal),
            _ => self.counters(request).ended(ending),
        }
        if let Some(taking) = request.taking.take()
            && let Some(dispatch) = self.dispatch(request)
        {
            taking.offer(&dispatch.mirror);
        }
    }

    /// Counted by cause and instance instead: at a death there would be one line per request.
    fn suppress_error_log(&self, _: &Session, _: &Request, _: &Error) -> bool {
        true
    }

    fn suppress_proxy_warn_log(
        &self,
        _: &Session,
        _: &Request,
        _: &Error,
        _: ProxyWarnLogContext,
    ) -> bool {
        true
    }
}

fn side_of(error: &Error) -> ErrorSide {
    match error.esource() {
        ErrorSource::Upstream => ErrorSide::Upstream,
        ErrorSource::Downstream => ErrorSide::Downstream,
        ErrorSource::Internal | ErrorSource::Unset => ErrorSide::Internal,
    }
}
