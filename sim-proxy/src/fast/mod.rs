//! The fast path: plain HTTP/1.1 between a user and an instance, without Pingora's proxy in between.
//!
//! Pingora accepts connections, and carries all that is rare: whatever has more than one reading, names a protocol
//! of its own, or sends a body that isn't there yet. Such a request goes to the general path with every byte of it,
//! on the same connection, and the next one is for this path again. Nothing has been sent anywhere by then.
//!
//! What is common costs one read and one write on either side. No task, channel, header map or lock belongs to a
//! request; memory and idle connections to instances are the worker's own ([`buffers`], [`pool`]), one timer
//! serves all the deadlines of a connection ([`watchdog`]), and one task hears for all who wait that their instance is
//! stopped ([`waiting`]).

mod answer;
mod buffers;
mod chunks;
mod exchange;
mod hedge;
pub(crate) mod mirrored;
mod pool;
mod refuse;
mod request;
mod stop;
mod via;
mod waiting;
mod watchdog;
mod wire;

use crate::attempt::Attempt;
use crate::clock::{monotonic_ns, nanos};
use crate::config::ProxyConfig;
use crate::counters::{Ending, ErrorSide, RetryReason};
use crate::dispatch::Dispatch;
use crate::gateway::Gateway;
use crate::health::Failure;
use crate::http2::{self, Http2, Preface};
use crate::live::Outcome;
use crate::mirror::Copying;
use crate::retry::{failure_of_reset, may_go_again};
use crate::routes::Entry;
use crate::sticky::{self, SessionKey, Sticky};
use crate::workloads::Workloads;
use async_trait::async_trait;
use buffers::Buffer;
use bytes::BytesMut;
use exchange::{Answered, Broken, Question, Timeouts, Unanswered, User};
use hedge::Neither;
use pingora_core::apps::{HttpServerApp, ServerApp};
use pingora_core::protocols::{ALPN, Stream, http::ServerSession};
use pingora_core::server::ShutdownWatch;
use pingora_proxy::HttpProxy;
use request::{Framing, Head, Reader};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Context;
use std::time::Duration;
use stop::Stop;
use via::Via;
use waiting::Seat;
use watchdog::Watchdog;
use wire::{Cut, Got, Patience};

/// Longest head of a request, bytes.
const HEAD_BYTES_MAX: usize = 64 * 1_024;
/// Longest body that is read whole before the request goes on, and so can be sent twice, bytes.
const BODY_BYTES_MAX: u64 = 64 * 1_024;
/// How long a request may take to arrive, from its first byte, and how long a user may take nothing of an answer, ns.
const USER_PATIENCE_NS: u64 = 60_000_000_000;

/// Serves connections of users.
pub(crate) struct FastPath {
    workloads: Arc<Workloads>,
    general: Arc<HttpProxy<Gateway>>,
    timeouts: Timeouts,
    client_idle_ns: u64,
    client_idle_seconds: u64,
    sticky: Option<Sticky>,
}

/// What becomes of a connection.
enum Then {
    Close,
    /// The next request is for the general path.
    General,
    /// It is one of HTTP/2.
    Http2,
}

/// What becomes of it after a request.
#[derive(Clone, Copy, PartialEq, Eq)]
enum After {
    Keep,
    Close,
}

impl FastPath {
    pub(crate) fn new(
        config: &ProxyConfig,
        workloads: Arc<Workloads>,
        general: Arc<HttpProxy<Gateway>>,
    ) -> Self {
        Self {
            workloads,
            general,
            timeouts: Timeouts::new(&config.upstream, config.threads),
            client_idle_ns: nanos(config.client_idle_timeout),
            client_idle_seconds: config.client_idle_timeout.as_secs(),
            sticky: config.sticky.clone(),
        }
    }

    fn http2<'a>(&'a self, shutdown: &'a ShutdownWatch) -> Http2<'a> {
        Http2 {
            general: &self.general,
            counters: &self.workloads.outside,
            idle: Duration::from_secs(self.client_idle_seconds),
            shutdown,
        }
    }
}

#[async_trait]
impl ServerApp for FastPath {
    async fn process_new(
        self: &Arc<Self>,
        mut stream: Stream,
        shutdown: &ShutdownWatch,
    ) -> Option<Stream> {
        if matches!(stream.selected_alpn_proto(), Some(ALPN::H2)) {
            self.http2(shutdown).serve(stream).await;
            return None;
        }
        let client = stream.get_socket_digest();
        let client = client.and_then(|digest| Some(digest.peer_addr()?.as_inet()?.ip()));
        let mut connection = Connection {
            path: self,
            via: Via::of(client),
            source: client.map(SessionKey::of_address),
            stop: Stop::new(shutdown),
            watchdog: Watchdog::new(),
            arrived: Buffer::default(),
            since_ns: monotonic_ns(),
            begun_ns: None,
            is_new: true,
            copying: None,
        };
        loop {
            match connection.serve(&mut stream).await {
                Then::Close => return None,
                Then::Http2 => {
                    let Some(stream) = http2::rewound(stream, &connection.arrived) else {
                        self.workloads.outside.http2.ended(http2::End::Protocol);
                        return None;
                    };
                    drop(connection);
                    self.http2(shutdown).serve(stream).await;
                    return None;
                }
                Then::General => {
                    let prefix = BytesMut::from(&*connection.arrived);
                    connection.arrived = Buffer::default();
                    connection.begun_ns = None;
                    let mut session = ServerSession::new_http1(stream);
                    session.set_pipelined_prefix(prefix);
                    session.set_keepalive(Some(self.client_idle_seconds));
                    let reused = self.general.process_new_http(session, shutdown).await;
                    (stream, _) = reused?.consume();
                    connection.since_ns = monotonic_ns();
                }
            }
        }
    }

    async fn cleanup(&self) {
        self.general.http_cleanup().await;
    }
}

/// What the user is told of a request without an answer.
fn status_of(broken: Broken) -> u16 {
    if broken.late { 504 } else { 502 }
}

/// A user's connection between two requests.
struct Connection<'a> {
    path: &'a FastPath,
    via: Via,
    /// The session of all requests, where the user's address names it.
    source: Option<SessionKey>,
    stop: Stop,
    watchdog: Watchdog,
    /// What has come and is not answered.
    arrived: Buffer,
    /// When the last request was over.
    since_ns: u64,
    /// When the beginning of the present one was there, if it had to be waited for.
    begun_ns: Option<u64>,
    /// Nothing has been asked yet.
    is_new: bool,
    /// The present request, if it is to be copied.
    copying: Option<Box<Copying>>,
}

impl Connection<'_> {
    /// Serves requests while they are for the fast path.
    async fn serve(&mut self, stream: &mut Stream) -> Then {
        loop {
            // Memory for the head as the instance gets it; it goes back before the next request is waited for.
            let mut question = Buffer::default();
            let head = loop {
                // Some end a body with an empty line (RFC 9112, section 2.2).
                while self.arrived.starts_with(b"\r\n") {
                    self.arrived.consume(2);
                }
                if !self.arrived.is_empty() {
                    let preface = self.preface();
                    let reader = Reader {
                        via: &self.via,
                        sticky: self.path.sticky.as_ref(),
                        matcher: self.path.workloads.matcher(),
                    };
                    let seen = match preface {
                        Preface::Whole => return Then::Http2,
                        Preface::Part => request::Seen::Part,
                        Preface::No => request::read(&self.arrived, reader, question.room()),
                    };
                    match seen {
                        request::Seen::Whole(head) if head.len <= HEAD_BYTES_MAX => break head,
                        request::Seen::Part if self.arrived.len() <= HEAD_BYTES_MAX => {}
                        request::Seen::Other => return Then::General,
                        request::Seen::Faulty(fault) => {
                            tracing::debug!(%fault, "request refused");
                            self.refuse(stream, 400, false).await;
                            return Then::Close;
                        }
                        request::Seen::Whole(_) | request::Seen::Part => {
                            self.refuse(stream, 431, false).await;
                            return Then::Close;
                        }
                    }
                }
                question = Buffer::default();
                match self.receive(stream).await {
                    Got::Bytes => {}
                    Got::Late if !self.arrived.is_empty() => {
                        self.path.workloads.outside.erred(ErrorSide::Downstream);
                        self.refuse(stream, 408, false).await;
                        return Then::Close;
                    }
                    Got::End | Got::Late | Got::Elsewhere(_) => return Then::Close,
                }
            };
            let path = self.path;
            let dispatch = match path.workloads.of(head.found) {
                Ok(dispatch) => dispatch,
                Err(status) => {
                    self.refuse(stream, status, head.is_head).await;
                    return Then::Close;
                }
            };
            let counters = &dispatch.counters;
            let length = match head.body {
                Framing::Length(length) if length <= BODY_BYTES_MAX => head.len + length as usize,
                Framing::Length(_) => return Then::General,
                Framing::Chunked => {
                    let mut chunks = chunks::Chunks::default();
                    match chunks.take(&self.arrived[head.len..]) {
                        // Where fields behind the body end up differs too much between instances.
                        Ok(length) if chunks.is_over() && !chunks.has_trailers() => {
                            head.len + length
                        }
                        // To wait for the rest would break who answers to the first part of it.
                        Ok(_) => return Then::General,
                        Err(_) => {
                            counters.arrived();
                            let ending = Ending::Refused;
                            self.write_refusal(stream, counters, 400, head.is_head, ending)
                                .await;
                            return Then::Close;
                        }
                    }
                }
            };
            // From here on a stop waits for it.
            counters.arrived();
            while self.arrived.len() < length {
                match self.receive(stream).await {
                    Got::Bytes => {}
                    Got::Late => {
                        counters.erred(ErrorSide::Downstream);
                        self.write_refusal(stream, counters, 408, head.is_head, Ending::Refused)
                            .await;
                        return Then::Close;
                    }
                    Got::End | Got::Elsewhere(_) => {
                        counters.erred(ErrorSide::Downstream);
                        counters.ended(Ending::Aborted);
                        return Then::Close;
                    }
                }
            }
            question
                .room()
                .extend_from_slice(&self.arrived[head.len..length]);
            self.arrived.consume(length);
            self.begun_ns = None;
            self.copying = dispatch.mirror.draw(&dispatch.routes, &question);
            let after = self.answer(stream, dispatch, head, &question).await;
            if let Some(copying) = self.copying.take() {
                dispatch.mirror.offer_question(*copying, &question);
            }
            if after == After::Close {
                return Then::Close;
            }
        }
    }

    /// Whether HTTP/2 begins here: at the start of a connection alone.
    fn preface(&mut self) -> Preface {
        if !self.is_new {
            return Preface::No;
        }
        let preface = http2::preface(&self.arrived);
        self.is_new = preface == Preface::Part;
        preface
    }

    /// Reads more of a request, or waits for one.
    async fn receive(&mut self, stream: &mut Stream) -> Got {
        let deadline_ns = if self.arrived.is_empty() {
            self.since_ns.saturating_add(self.path.client_idle_ns)
        } else {
            // From its first byte, or a byte a minute would hold the connection for ever.
            let begun_ns = *self.begun_ns.get_or_insert_with(monotonic_ns);
            begun_ns.saturating_add(USER_PATIENCE_NS)
        };
        let (idle, stop) = (self.arrived.is_empty(), &mut self.stop);
        let (arrived, watchdog) = (&mut self.arrived, &mut self.watchdog);
        let stops = |context: &mut Context<'_>| idle && stop.has_come(context);
        wire::fill(stream, arrived, watchdog, deadline_ns, stops).await
    }

    /// Sends a whole request to an instance, and the answer back.
    async fn answer(
        &mut self,
        stream: &mut Stream,
        dispatch: &Dispatch,
        head: Head,
        question: &[u8],
    ) -> After {
        let counters = &dispatch.counters;
        let (mut tries, mut not) = (0, None);
        let mut answer_fields = Buffer::default();
        let session = match (&self.path.sticky, head.session) {
            (Some(Sticky::Source), _) => self.source,
            (Some(Sticky::Cookie(name)), None) => {
                let new = sticky::new_session();
                sticky::write_set_cookie(name, &new, answer_fields.room());
                Some(SessionKey::of(&new))
            }
            (_, named) => named,
        };
        let mut question = Question {
            bytes: question,
            is_head: head.is_head,
            idempotent: head.idempotent,
            answer_fields: &answer_fields,
            fresh: false,
        };
        loop {
            let entry = Entry {
                not: not.take(),
                may_probe: head.idempotent,
                first: tries == 0,
                session,
            };
            tries += 1;
            let Some(attempt) = dispatch.routes.enter(entry) else {
                counters.no_instance.fetch_add(1, Ordering::Relaxed);
                counters.erred(ErrorSide::Internal);
                self.write_refusal(stream, counters, 503, head.is_head, Ending::Failed)
                    .await;
                return After::Close;
            };
            // Whoever is told that the connection closes asks no more on it.
            let keep = || head.keep_alive && !self.stop.is_on();
            let live = attempt.live().id();
            // Asked once, and paid for: a request that may not go is better off waiting.
            let (mut allowed, mut paid) = (true, false);
            let mut may_leave = |reason| {
                if !paid && allowed && head.idempotent && dispatch.routes.has_other(live) {
                    paid = dispatch.may_retry(tries, reason);
                    allowed = paid;
                }
                paid.then_some(reason)
            };
            let due_ns = if head.idempotent {
                attempt
                    .entered_ns()
                    .saturating_add(dispatch.routes.overdue().after_ns())
            } else {
                u64::MAX
            };
            let mut user = User {
                stream,
                ahead: &mut self.arrived,
            };
            let (watchdog, timeouts) = (&mut self.watchdog, &self.path.timeouts);
            let heard = match exchange::send(attempt.target(), question, watchdog, timeouts).await {
                Ok(asked) => {
                    let mut seat = Seat::new(attempt.live(), due_ns);
                    let elsewhere = |context: &Context<'_>| {
                        let is_overdue = seat.wait(context);
                        if attempt.live().is_down() {
                            may_leave(RetryReason::Down)
                        } else if is_overdue {
                            may_leave(RetryReason::Hedge)
                        } else {
                            None
                        }
                    };
                    let heard =
                        asked.hear(question, keep, elsewhere, &mut user, watchdog, timeouts);
                    heard.await
                }
                Err(error) => Err(error),
            };
            match heard {
                Ok(answered) => {
                    return self.pass(stream, dispatch, attempt, answered).await;
                }
                Err(Unanswered::Gone) => {
                    return aborted(dispatch, attempt);
                }
                Err(Unanswered::Overdue(asked)) => {
                    let entry = Entry {
                        not: Some(live),
                        may_probe: true,
                        first: false,
                        session,
                    };
                    let Some(second) = dispatch.routes.enter(entry) else {
                        // The table has become empty meanwhile.
                        return aborted(dispatch, attempt);
                    };
                    let raced = hedge::race(
                        (dispatch, timeouts),
                        (attempt, *asked),
                        second,
                        question,
                        keep,
                        &mut user,
                        watchdog,
                    );
                    let status = match raced.await {
                        Ok((attempt, answered)) => {
                            return self.pass(stream, dispatch, attempt, answered).await;
                        }
                        Err(Neither::Gone(attempt)) => return aborted(dispatch, attempt),
                        Err(Neither::Broken(broken)) => status_of(broken),
                    };
                    counters.erred(ErrorSide::Upstream);
                    self.write_refusal(stream, counters, status, head.is_head, Ending::Failed)
                        .await;
                    return After::Close;
                }
                Err(Unanswered::Broken(broken)) => {
                    let failed_on = dispatch.attempt_failed(attempt, broken.failure);
                    let elsewhere = dispatch.routes.has_other(failed_on);
                    not = elsewhere.then_some(failed_on);
                    question.fresh = broken.reused && !elsewhere;
                    let possible =
                        may_go_again(broken.reason, head.idempotent, broken.reused, elsewhere);
                    // Whoever left a stopped instance has paid for it.
                    if paid || possible && dispatch.may_retry(tries, broken.reason) {
                        continue;
                    }
                    counters.erred(ErrorSide::Upstream);
                    let status = status_of(broken);
                    self.write_refusal(stream, counters, status, head.is_head, Ending::Failed)
                        .await;
                    return After::Close;
                }
            }
        }
    }

    /// Passes an answer on, whose head has come.
    async fn pass(
        &mut self,
        stream: &mut Stream,
        dispatch: &Dispatch,
        mut attempt: Attempt,
        answered: Answered,
    ) -> After {
        let Answered {
            mut instance,
            reused,
            mut answer,
            mut read,
            mut head,
            keep,
        } = answered;
        // At the head of the answer, not its end: a long download must not keep a recovered instance out.
        let failed = answer.status >= 500;
        if failed {
            dispatch.routes.attempt_failed(&attempt, Failure::BadAnswer);
        } else {
            dispatch.routes.attempt_succeeded(&attempt);
        }
        let bodiless = answer.body.is_over();
        let body = &read[answer.len..];
        let taken = match &mut self.copying {
            None => answer.body.take(body),
            Some(copying) => {
                copying.answered(attempt.live().id(), answer.status);
                answer.body.take_to(body, |content| copying.saw(content))
            }
        };
        let Ok(taken) = taken else {
            dispatch.attempt_failed(attempt, Some(Failure::BadAnswer));
            dispatch.counters.erred(ErrorSide::Upstream);
            self.write_refusal(stream, &dispatch.counters, 502, false, Ending::Failed)
                .await;
            return After::Close;
        };
        let mut clean = taken == body.len();
        let end = answer.len + taken;
        // In front of the body that has come, if there is room for it: it passes in one write, uncopied.
        let passing = match read.replace_head(answer.len, &head) {
            Some(start) => &read[start..end],
            None => {
                head.room().extend_from_slice(&read[answer.len..end]);
                &head
            }
        };
        let watchdog = &mut self.watchdog;
        let written = wire::write(stream, passing, watchdog, USER_PATIENCE_NS).await;
        drop((read, head));
        if written.is_err() {
            return aborted(dispatch, attempt);
        }
        if !answer.body.is_over() {
            let pumped = wire::pump(
                &mut instance,
                stream,
                &mut self.arrived,
                &mut answer.body,
                &mut self.watchdog,
                Patience {
                    read_ns: self.path.timeouts.read_ns,
                    write_ns: USER_PATIENCE_NS,
                },
                self.copying.as_deref_mut(),
            );
            match pumped.await {
                Ok(still_clean) => clean = still_clean,
                Err(Cut::User) => return aborted(dispatch, attempt),
                Err(Cut::Late | Cut::Malformed) => {
                    return cut_off(dispatch, attempt, Failure::BadAnswer);
                }
                Err(Cut::Instance) => return cut_off(dispatch, attempt, failure_of_reset(reused)),
            }
        }
        if let Some(copying) = &mut self.copying {
            copying.passed();
        }
        let now_ns = monotonic_ns();
        self.since_ns = now_ns;
        if clean && answer.keep_alive {
            pool::keep(
                (attempt.live().id(), attempt.address()),
                instance,
                self.path.timeouts.pool,
                now_ns,
                bodiless,
            );
        }
        let (outcome, ending) = if failed {
            (Outcome::Failed, Ending::Failed)
        } else {
            (Outcome::Ok, Ending::Ok)
        };
        attempt.end(outcome, Some(now_ns));
        dispatch.counters.ended(ending);
        if keep { After::Keep } else { After::Close }
    }
}

/// The user left.
fn aborted(dispatch: &Dispatch, mut attempt: Attempt) -> After {
    attempt.outlasted(monotonic_ns());
    attempt.end(Outcome::Aborted, None);
    dispatch.counters.erred(ErrorSide::Downstream);
    dispatch.counters.ended(Ending::Aborted);
    After::Close
}

/// The instance broke off in the middle of its answer.
fn cut_off(dispatch: &Dispatch, attempt: Attempt, failure: Failure) -> After {
    dispatch.attempt_failed(attempt, Some(failure));
    dispatch.counters.erred(ErrorSide::Upstream);
    dispatch.counters.ended(Ending::Failed);
    After::Close
}
