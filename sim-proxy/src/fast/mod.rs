//! The fast path: plain HTTP/1.1 between a user and an instance, without Pingora's proxy in between.
//!
//! Pingora accepts connections, and carries all that is rare: whatever has more than one reading, names a protocol
//! of its own, or sends a body that isn't there yet. Such a request goes to the general path with every byte of it,
//! on the same connection, and the next one is for this path again. Nothing has been sent anywhere by then.
//!
//! What is common costs one read and one write on either side. No task, channel, header map or lock belongs to a
//! request; memory and idle connections to instances are the worker's own ([`buffers`], [`pool`]), one timer
//! serves all the deadlines of a connection ([`watchdog`]), and one task hears for all who wait that their instance is
//! stopped ([`crate::waiting`]).

mod answer;
mod app;
mod buffers;
mod chunks;
mod exchange;
mod frames;
mod hedge;
#[cfg(any(test, feature = "fuzz"))]
pub mod invariants;
pub(crate) mod mirrored;
mod note;
mod pass;
mod pool;
mod refuse;
mod request;
mod stop;
mod tunnel;
mod via;
mod watchdog;
mod wire;

use crate::clock::{monotonic_ns, nanos};
use crate::config::{Protocol, ProxyConfig};
use crate::counters::{Counters, Ending, ErrorSide, RetryReason};
use crate::dispatch::Dispatch;
use crate::forwarded::ForwardSettings;
use crate::gateway::Gateway;
use crate::http2::{self, Http2, Preface};
use crate::limits::{Refusal, Visit};
use crate::mirror::Copying;
use crate::retry::may_go_again;
use crate::routes::{Entry, NoEntry};
use crate::sticky::{self, SessionKey, Sticky};
use crate::tls::accept::Door;
use crate::trace::TraceSettings;
use crate::waiting::Seat;
use crate::workloads::Workloads;
use buffers::Buffer;
use exchange::{Broken, Question, Timeouts, Unanswered, User};
use hedge::Neither;
use note::Note;
use pass::{aborted, gone};
use pingora_core::protocols::Stream;
use pingora_core::server::ShutdownWatch;
use pingora_proxy::HttpProxy;
use request::{Framing, Head, Reader};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Context;
use std::time::Duration;
use stop::Stop;
use via::Via;
use watchdog::Watchdog;
use wire::Got;

/// Serves connections of users.
pub(crate) struct FastPath {
    workloads: Arc<Workloads>,
    general: Arc<HttpProxy<Gateway>>,
    timeouts: Timeouts,
    client_idle_ns: u64,
    client_idle_seconds: u64,
    /// How long a user may take nothing of an answer.
    client_write_ns: u64,
    /// Idle connections are to be closed.
    idle: ShutdownWatch,
    sticky: Option<Sticky>,
    door: Option<Arc<Door>>,
    forward: ForwardSettings,
    trace: Option<TraceSettings>,
}

/// What becomes of a connection.
enum Then {
    Close,
    /// Without a word: what was sent is not whole, and must not look so.
    Cut,
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
    Cut,
}

impl FastPath {
    pub(crate) fn new(
        config: &ProxyConfig,
        workloads: Arc<Workloads>,
        general: Arc<HttpProxy<Gateway>>,
        door: Option<Arc<Door>>,
        idle: ShutdownWatch,
    ) -> Self {
        Self {
            idle,
            workloads,
            door,
            general,
            timeouts: Timeouts::new(&config.upstream, config.threads),
            client_idle_ns: nanos(config.client_idle_timeout),
            client_idle_seconds: config.client_idle_timeout.as_secs(),
            client_write_ns: nanos(config.client_write_timeout),
            sticky: config.sticky.clone(),
            forward: config.forward.clone(),
            trace: config.trace,
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
    /// What the request that has arrived, and isn't over, is counted by.
    open: Option<&'a Counters>,
    visit: &'a Visit<'a>,
    note: Note,
}

impl Drop for Connection<'_> {
    /// With a request that isn't over: by a panic, or the end of its runtime.
    fn drop(&mut self) {
        if let Some(counters) = self.open {
            counters.cut();
        }
    }
}

impl<'a> Connection<'a> {
    /// Serves requests while they are for the fast path.
    async fn serve(&mut self, stream: &mut Stream) -> Then {
        let limits = &self.path.workloads.limits;
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
                        trace: self.path.trace,
                    };
                    let seen = match preface {
                        Preface::Whole => return Then::Http2,
                        Preface::Part => request::Seen::Part,
                        Preface::No => request::read(&self.arrived, reader, question.room()),
                    };
                    match seen {
                        request::Seen::Whole(head) => {
                            let Some(refusal) = limits.head(head.len, head.fields) else {
                                break head;
                            };
                            return self.refuse(stream, refusal, head.is_head).await;
                        }
                        request::Seen::Part => {
                            if let Some(refusal) = limits.head(self.arrived.len(), 0) {
                                return self.refuse(stream, refusal, false).await;
                            }
                        }
                        request::Seen::Other => return Then::General,
                        request::Seen::Crowded => {
                            return self.refuse(stream, Refusal::Headers, false).await;
                        }
                        request::Seen::Faulty(fault) => {
                            tracing::debug!(%fault, "request refused");
                            return self.refuse(stream, Refusal::Malformed, false).await;
                        }
                    }
                }
                question = Buffer::default();
                let deadline_ns = if self.arrived.is_empty() {
                    self.since_ns.saturating_add(self.path.client_idle_ns)
                } else {
                    // From its first byte, or a byte a minute would hold the connection for ever.
                    limits.head_deadline_ns(*self.begun_ns.get_or_insert_with(monotonic_ns))
                };
                match self.receive(stream, deadline_ns).await {
                    Got::Bytes => {}
                    Got::Late if !self.arrived.is_empty() => {
                        return self.refuse(stream, Refusal::HeaderTimeout, false).await;
                    }
                    Got::End | Got::Late | Got::Elsewhere(_) => return Then::Close,
                }
            };
            let path = self.path;
            let dispatch = match path.workloads.of(head.found) {
                Ok(dispatch) => dispatch,
                Err(refusal) => return self.refuse(stream, refusal, head.is_head).await,
            };
            if dispatch.protocol != Protocol::Http1 {
                return Then::General;
            }
            let counters = &dispatch.counters;
            let length = match head.body {
                Framing::Length(length) if length <= limits.settings.body_replay_bytes as u64 => {
                    head.len + length as usize
                }
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
                            let refusal = Refusal::Malformed;
                            let is_head = head.is_head;
                            return self.refuse_of(stream, counters, refusal, is_head).await;
                        }
                    }
                }
            };
            self.arrived(counters);
            if !self.visit.may_ask() {
                let refusal = Refusal::Rate;
                return self
                    .refuse_arrived(stream, counters, refusal, head.is_head)
                    .await;
            }
            // What is there already is not waited for.
            let mut begun_ns = None;
            while self.arrived.len() < length {
                let begun_ns = *begun_ns.get_or_insert_with(monotonic_ns);
                let come = (self.arrived.len() - head.len) as u64;
                let deadline_ns = limits.body_deadline_ns(begun_ns, come);
                match self.receive(stream, deadline_ns).await {
                    Got::Bytes => {}
                    Got::Late => {
                        let refusal = Refusal::BodyTimeout;
                        return self
                            .refuse_arrived(stream, counters, refusal, head.is_head)
                            .await;
                    }
                    Got::End | Got::Elsewhere(_) => {
                        self.open = None;
                        counters.erred(ErrorSide::Downstream);
                        counters.ended(Ending::Aborted);
                        self.note.ending = Some(Ending::Aborted);
                        let question = self.refused_question();
                        self.log_refused(question, counters);
                        return Then::Close;
                    }
                }
            }
            question
                .room()
                .extend_from_slice(&self.arrived[head.len..length]);
            self.arrived.consume(length);
            self.begun_ns = None;
            if head.switches {
                question.fit();
            } else {
                self.copying = dispatch.mirror.draw(&dispatch.routes, &question);
            }
            let bytes_in = (length - head.len) as u64;
            self.note.begin();
            let after = self.answer(stream, dispatch, head, &question).await;
            self.open = None;
            self.log(dispatch, &question, bytes_in, after);
            if let Some(copying) = self.copying.take() {
                dispatch.mirror.offer_question(*copying, &question);
            }
            match after {
                After::Keep => {}
                After::Close => return Then::Close,
                After::Cut => return Then::Cut,
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
    async fn receive(&mut self, stream: &mut Stream, deadline_ns: u64) -> Got {
        let (idle, stop) = (self.arrived.is_empty(), &mut self.stop);
        let (arrived, watchdog) = (&mut self.arrived, &mut self.watchdog);
        let stops = |context: &mut Context<'_>| idle && stop.closes_idle(context);
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
            switches: head.switches,
            answer_fields: &answer_fields,
            deadline_ns: u64::MAX,
            fresh: false,
            raced: false,
            tls: dispatch.tls.as_deref(),
        };
        loop {
            let entry = Entry {
                not: not.take(),
                may_probe: head.idempotent,
                first: tries == 0,
                session,
            };
            tries += 1;
            let mut admitted = dispatch.routes.admit(entry);
            if let Err(NoEntry::NoInstance) = admitted {
                let waiting = Box::pin(dispatch.hold.wait(|| dispatch.admit_again(entry)));
                match wire::while_here(stream, &mut self.arrived, waiting).await {
                    Ok(held) => admitted = held.unwrap_or(admitted),
                    Err(_) => return gone(dispatch),
                }
            }
            let attempt = match admitted {
                Ok(attempt) => attempt,
                Err(NoEntry::Full) if tries == 1 => {
                    let (refusal, is_head) = (Refusal::Overload, head.is_head);
                    self.refuse_arrived(stream, counters, refusal, is_head)
                        .await;
                    return After::Close;
                }
                Err(none) => {
                    if none == NoEntry::NoInstance {
                        counters.no_instance.fetch_add(1, Ordering::Relaxed);
                    }
                    counters.erred(ErrorSide::Internal);
                    self.write_failure(stream, counters, 503, head.is_head)
                        .await;
                    return After::Close;
                }
            };
            self.note.asked(attempt.target(), tries);
            if tries == 1 {
                let limits = &self.path.workloads.limits;
                question.deadline_ns = limits.answer_deadline_ns(attempt.entered_ns());
            }
            // Whoever is told that the connection closes asks no more on it. Who has asked already has its answer first.
            let has_asked = !self.arrived.is_empty();
            let keep = || head.keep_alive && (has_asked || !self.stop.is_on());
            let live = attempt.live().id();
            // Asked once for each reason, and paid for: a request that may not go is better off waiting.
            let (mut refused, mut paid) = (None, false);
            let mut may_leave = |reason| {
                if !paid
                    && refused != Some(reason)
                    && head.idempotent
                    && dispatch.routes.has_room_beside(live)
                {
                    paid = dispatch.may_retry(tries, reason);
                    refused = (!paid).then_some(reason);
                }
                paid.then_some(reason)
            };
            let overdue = dispatch.routes.overdue();
            // A session may be known to its instance alone: another one might answer sooner, but not the same.
            // Two WebSockets at once are two to the application.
            let (due_reason, after_ns) = match (head.safe && !head.switches, session) {
                (true, None) => (RetryReason::Hedge, overdue.after_ns()),
                (true, Some(_)) => (RetryReason::Late, overdue.late_ns()),
                (false, _) => (RetryReason::Late, u64::MAX),
            };
            let due_ns = attempt.entered_ns().saturating_add(after_ns);
            let mut user = User {
                stream,
                ahead: &mut self.arrived,
            };
            let (watchdog, timeouts) = (&mut self.watchdog, &self.path.timeouts);
            let heard = match exchange::send(attempt.target(), question, watchdog, timeouts).await {
                Ok(asked) => {
                    let mut seat = Seat::new(due_ns);
                    let elsewhere = |context: &Context<'_>| {
                        let is_overdue = seat.wait(attempt.live(), context);
                        if attempt.live().is_down() {
                            may_leave(RetryReason::Down)
                        } else if is_overdue {
                            may_leave(due_reason)
                        } else {
                            None
                        }
                    };
                    let heard =
                        asked.hear(question, keep, elsewhere, &mut user, watchdog, timeouts);
                    heard.await
                }
                Err(broken) => Err(broken.into()),
            };
            match heard {
                Ok(answered) => {
                    return self.pass(stream, dispatch, attempt, answered).await;
                }
                Err(Unanswered::Gone) => {
                    return aborted(dispatch, attempt);
                }
                Err(Unanswered::Overdue(asked) | Unanswered::Begun(asked)) => {
                    let entry = Entry {
                        not: Some(live),
                        may_probe: true,
                        first: false,
                        session,
                    };
                    // There is none if a table has come in between.
                    let second = dispatch.routes.enter(entry);
                    self.note.hedged = second.is_some();
                    let raced = hedge::race(
                        (dispatch, timeouts),
                        (attempt, asked),
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
                        Err(Neither::Broken(broken)) => {
                            if broken.late {
                                dispatch.is_overtime(question.deadline_ns);
                            }
                            status_of(broken)
                        }
                    };
                    counters.erred(ErrorSide::Upstream);
                    self.write_failure(stream, counters, status, head.is_head)
                        .await;
                    return After::Close;
                }
                Err(Unanswered::Broken(broken)) => {
                    let over = broken.late && dispatch.is_overtime(question.deadline_ns);
                    // What is left of the time may have been too little for anybody.
                    let failure = broken.failure.filter(|_| !over || tries == 1);
                    let failed_on = dispatch.attempt_broken(attempt, broken.reason, failure);
                    let stale = broken.reused && broken.reason == RetryReason::Reset;
                    let elsewhere = dispatch.routes.has_next(failed_on, stale);
                    not = elsewhere.then_some(failed_on);
                    question.fresh = broken.reused && !elsewhere;
                    let repeatable = head.idempotent || broken.reason.is_untouched();
                    let possible =
                        may_go_again(broken.reason, repeatable, broken.reused, elsewhere);
                    // Whoever left a stopped instance has paid for it.
                    if !over && (paid || possible && dispatch.may_retry(tries, broken.reason)) {
                        continue;
                    }
                    counters.erred(ErrorSide::Upstream);
                    let status = status_of(broken);
                    self.write_failure(stream, counters, status, head.is_head)
                        .await;
                    return After::Close;
                }
            }
        }
    }
}
