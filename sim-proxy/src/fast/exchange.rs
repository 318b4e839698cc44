//! One attempt of the fast path: a connection, a request, and the head of its answer.

use super::answer::{self, Answer, Passing, Rest};
use super::buffers::Buffer;
use super::pool::{self, PoolLimits};
use super::watchdog::Watchdog;
use super::wire::{self, Gone, Got, Stuck};
use crate::attempt::Target;
use crate::clock::{monotonic_ns, nanos};
use crate::config::UpstreamSettings;
use crate::counters::RetryReason;
use crate::dial::{Link, NoLink, dial, is_instance_at_fault};
use crate::health::Failure;
use crate::retry::failure_of_reset;
use crate::tls::instances::{Alpn, InstanceTls};
use pingora_core::protocols::Stream;
use std::task::Context;
use std::time::Duration;
use tokio::time::timeout;

/// The rest of an answer whose body is no longer than this is waited for.
const SHORT_BYTES: u64 = 16 * 1024;
/// So long.
const SHORT_WAIT_NS: u64 = 100_000_000;

/// Longest head of an answer, bytes.
pub(super) const ANSWER_HEAD_BYTES_MAX: usize = 64 * 1_024;

/// How long instances are waited for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timeouts {
    connect: Duration,
    pub(super) read_ns: u64,
    pub(super) write_ns: u64,
    pub(super) pool: PoolLimits,
}

impl Timeouts {
    pub(super) fn new(upstream: &UpstreamSettings, threads: usize) -> Self {
        Self {
            connect: upstream.connect_timeout,
            read_ns: nanos(upstream.read_timeout),
            write_ns: nanos(upstream.write_timeout),
            pool: PoolLimits {
                idle_ns: nanos(upstream.idle_timeout),
                count_max: upstream.idle_connections_max.div_ceil(threads.max(1)),
            },
        }
    }
}

/// Why there is no answer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Broken {
    /// What that says of the instance.
    pub(super) failure: Option<Failure>,
    pub(super) reason: RetryReason,
    /// On a connection that had served before.
    pub(super) reused: bool,
    /// It took too long.
    pub(super) late: bool,
}

/// How an attempt ended without an answer.
#[derive(Debug)]
pub(super) enum Unanswered {
    Broken(Broken),
    /// It has taken longer than nearly all do; it may be waited for again.
    Overdue(Box<Asked>),
    /// The instance has begun to answer, with an interim one that the user has not been sent. Where
    /// [`Question::raced`] alone.
    Begun(Box<Asked>),
    /// The user left.
    Gone,
}

impl From<Broken> for Unanswered {
    fn from(broken: Broken) -> Self {
        Self::Broken(broken)
    }
}

/// The connection to the user.
pub(super) struct User<'a> {
    pub(super) stream: &'a mut Stream,
    /// What it has sent beyond the request.
    pub(super) ahead: &'a mut Buffer,
}

/// What is asked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Question<'a> {
    /// The head as the instance gets it, and the whole body.
    pub(super) bytes: &'a [u8],
    pub(super) is_head: bool,
    pub(super) idempotent: bool,
    /// Fields that the answer gets besides.
    pub(super) answer_fields: &'a [u8],
    /// When it must have an answer, all tries together.
    pub(super) deadline_ns: u64,
    /// On a connection of its own: an idle one to this instance has just turned out to be stale.
    pub(super) fresh: bool,
    /// It asks for a WebSocket.
    pub(super) switches: bool,
    /// Another instance is asked as well, so nothing may go to the user before it is clear whose answer it gets.
    pub(super) raced: bool,
    /// Instances are asked over TLS.
    pub(super) tls: Option<&'a InstanceTls>,
}

/// A request that an instance has been sent.
#[derive(Debug)]
pub(super) struct Asked {
    instance: Link,
    /// It had served before.
    reused: bool,
    /// What was read of the answer.
    read: Buffer,
    /// The head of the answer as the user gets it.
    head: Buffer,
}

/// An answer whose head has come.
#[derive(Debug)]
pub(super) struct Answered {
    pub(super) instance: Link,
    /// It had served before.
    pub(super) reused: bool,
    pub(super) answer: Answer,
    /// What was read of it, the head included.
    pub(super) read: Buffer,
    /// The head as the user gets it.
    pub(super) head: Buffer,
    /// The user is told that the connection stays.
    pub(super) keep: bool,
}

/// Sends a question to an instance.
pub(super) async fn send(
    target: Target<'_>,
    question: Question<'_>,
    watchdog: &mut Watchdog,
    timeouts: &Timeouts,
) -> Result<Asked, Broken> {
    let material = question.tls.map_or(0, |tls| tls.material().id);
    let to = (target.instance, target.address, material);
    let idle = if question.fresh {
        pool::forget(to);
        None
    } else {
        pool::take(to, timeouts.pool, target.entered_ns, !question.idempotent)
    };
    let reused = idle.is_some();
    let mut instance = match idle {
        Some(instance) => instance,
        None => connect(target, question, timeouts).await?,
    };
    let written = wire::write_until(
        &mut instance,
        question.bytes,
        watchdog,
        timeouts.write_ns,
        question.deadline_ns,
    );
    match written.await {
        // It may have answered before it broke the connection.
        Ok(()) | Err(Stuck::Broken) => {}
        Err(Stuck::Late | Stuck::Over) => return Err(late(reused)),
    }
    Ok(Asked {
        instance,
        reused,
        read: Buffer::default(),
        head: Buffer::default(),
    })
}

impl Asked {
    /// Waits for the head of the answer, without the user: who waits for another attempt as well hears of its leaving
    /// there. What comes before the answer is dropped.
    pub(super) async fn hear_alone(
        mut self,
        question: Question<'_>,
        keep: impl Fn() -> bool,
        watchdog: &mut Watchdog,
        timeouts: &Timeouts,
    ) -> Result<Answered, Broken> {
        loop {
            let (read, patience_ns) = (&mut self.read, timeouts.read_ns);
            let got = wire::listen(
                &mut self.instance,
                read,
                None,
                watchdog,
                patience_ns,
                question.deadline_ns,
                |_| None,
            );
            match got.await {
                Ok(Got::Bytes) => {}
                Ok(Got::Late) => return Err(late(self.reused)),
                // Nobody looks for the user here.
                Ok(Got::End | Got::Elsewhere(_)) | Err(Gone) => {
                    return Err(self.broken_off(question));
                }
            }
            while let Some((answer, keep)) = self.head(question, &keep)? {
                if answer.status >= 200 {
                    return Ok(self.answered(answer, keep));
                }
                self.read.consume(answer.len);
            }
        }
    }

    /// Waits for the head of the answer.
    ///
    /// # Errors
    /// [`Unanswered::Overdue`] and [`Unanswered::Begun`] give the request back: it may be waited for again.
    pub(super) async fn hear(
        mut self,
        question: Question<'_>,
        keep: impl Fn() -> bool,
        mut elsewhere: impl FnMut(&Context<'_>) -> Option<RetryReason>,
        user: &mut User<'_>,
        watchdog: &mut Watchdog,
        timeouts: &Timeouts,
    ) -> Result<Answered, Unanswered> {
        // Who has had part of an answer has it from this instance.
        let mut begun = false;
        loop {
            while let Some((answer, keep)) = self.head(question, &keep)? {
                if answer.is_final() {
                    let may_go_again = question.idempotent && !begun && !question.raced;
                    if may_go_again && self.lacks_little(&answer) {
                        self.hear_out(&answer, question, user, watchdog, timeouts)
                            .await?;
                    }
                    return Ok(self.answered(answer, keep));
                }
                if question.raced {
                    return Err(Unanswered::Begun(Box::new(self)));
                }
                begun = true;
                wire::write(user.stream, &self.head, watchdog, timeouts.write_ns)
                    .await
                    .map_err(|_| Unanswered::Gone)?;
                self.read.consume(answer.len);
            }
            let got = wire::listen(
                &mut self.instance,
                &mut self.read,
                Some((user.stream, user.ahead)),
                watchdog,
                timeouts.read_ns,
                question.deadline_ns,
                |context| if begun { None } else { elsewhere(context) },
            );
            let got = got.await;
            if matches!(got, Ok(Got::Elsewhere(RetryReason::Hedge))) {
                return Err(Unanswered::Overdue(Box::new(self)));
            }
            self.judge(got, question)?;
        }
    }

    /// A part of a short body has not come with its head.
    fn lacks_little(&self, answer: &Answer) -> bool {
        let Rest::Length(length) = answer.body else {
            return false;
        };
        length <= SHORT_BYTES && self.read.len() < answer.len + length as usize
    }

    /// Waits a moment for the rest of a short answer. Many servers send its head and its body one after the other, and where
    /// one dies in between nobody need notice: nothing has gone to the user.
    async fn hear_out(
        &mut self,
        answer: &Answer,
        question: Question<'_>,
        user: &mut User<'_>,
        watchdog: &mut Watchdog,
        timeouts: &Timeouts,
    ) -> Result<(), Unanswered> {
        let until_ns = wire::after(monotonic_ns(), SHORT_WAIT_NS).min(question.deadline_ns);
        while self.lacks_little(answer) {
            let got = wire::listen(
                &mut self.instance,
                &mut self.read,
                Some((user.stream, user.ahead)),
                watchdog,
                timeouts.read_ns,
                until_ns,
                // It has begun to answer: nobody else would be quicker.
                |_| None,
            );
            match got.await {
                // The rest passes as it comes.
                Ok(Got::Late) => return Ok(()),
                got => self.judge(got, question)?,
            }
        }
        Ok(())
    }

    fn judge(&mut self, got: Result<Got, Gone>, question: Question<'_>) -> Result<(), Unanswered> {
        match got {
            Ok(Got::Bytes) => Ok(()),
            Ok(Got::End) => Err(self.broken_off(question).into()),
            Ok(Got::Late) => Err(late(self.reused).into()),
            Ok(Got::Elsewhere(reason)) => {
                // The kernel's flag speaks for itself: it keeps others away for as long as it stands, and no longer.
                let failure = (reason == RetryReason::Late).then_some(Failure::Overtaken);
                Err(broken(failure, reason, self.reused).into())
            }
            Err(Gone) => Err(Unanswered::Gone),
        }
    }

    fn broken_off(&mut self, question: Question<'_>) -> Broken {
        if let Some(tls) = question.tls
            && !self.reused
            && self.instance.is_refused()
        {
            tls.say(monotonic_ns(), &"it takes no certificate of ours");
            return broken(Some(Failure::Connect), RetryReason::Tls, false);
        }
        let failure = failure_of_reset(self.reused);
        broken(Some(failure), RetryReason::Reset, self.reused)
    }

    /// The next head in what was read, if it is whole, and whether the user is told to keep the connection.
    fn head(
        &mut self,
        question: Question<'_>,
        keep: &impl Fn() -> bool,
    ) -> Result<Option<(Answer, bool)>, Broken> {
        if self.read.is_empty() {
            return Ok(None);
        }
        let keep = keep();
        let passing = Passing {
            to_head: question.is_head,
            keep,
            fields: question.answer_fields,
        };
        match answer::read(&self.read, passing, self.head.room()) {
            answer::Seen::Part if self.read.len() <= ANSWER_HEAD_BYTES_MAX => Ok(None),
            // A change of protocol that nobody asked for is none.
            answer::Seen::Whole(answer) if !answer.is_switch() || question.switches => {
                Ok(Some((answer, keep)))
            }
            answer::Seen::Part | answer::Seen::Whole(_) | answer::Seen::Malformed => Err(broken(
                Some(Failure::BadAnswer),
                RetryReason::Malformed,
                self.reused,
            )),
        }
    }

    fn answered(self, answer: Answer, keep: bool) -> Answered {
        Answered {
            instance: self.instance,
            reused: self.reused,
            keep: keep && !matches!(answer.body, Rest::Close),
            answer,
            read: self.read,
            head: self.head,
        }
    }
}

fn late(reused: bool) -> Broken {
    Broken {
        failure: Some(Failure::BadAnswer),
        reason: RetryReason::Timeout,
        reused,
        late: true,
    }
}

fn broken(failure: Option<Failure>, reason: RetryReason, reused: bool) -> Broken {
    Broken {
        failure,
        reason,
        reused,
        late: false,
    }
}

async fn connect(
    target: Target<'_>,
    question: Question<'_>,
    timeouts: &Timeouts,
) -> Result<Link, Broken> {
    let connecting = dial(target.address, question.tls, Alpn::Http1);
    let left = Duration::from_nanos(question.deadline_ns.saturating_sub(target.entered_ns));
    let (error, late) = match timeout(timeouts.connect.min(left), connecting).await {
        Ok(Ok(link)) => return Ok(link),
        Ok(Err(NoLink::Tls(error))) => {
            if let Some(tls) = question.tls {
                tls.say(monotonic_ns(), &error);
            }
            return Err(broken(Some(Failure::Connect), RetryReason::Tls, false));
        }
        Ok(Err(NoLink::Connect(error))) => (Some(error), false),
        Err(_) => (None, true),
    };
    let at_fault = error.is_none_or(|error| is_instance_at_fault(&error, target.address));
    Err(Broken {
        failure: at_fault.then_some(Failure::Connect),
        reason: RetryReason::Connect,
        reused: false,
        late,
    })
}
