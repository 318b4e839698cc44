//! One attempt of the fast path: a connection, a request, and the head of its answer.

use super::answer::{self, Answer, Passing, Rest};
use super::buffers::Buffer;
use super::pool::{self, PoolLimits};
use super::waiting::Seat;
use super::watchdog::Watchdog;
use super::wire::{self, Gone, Got, Stuck};
use crate::attempt::Attempt;
use crate::clock::nanos;
use crate::config::UpstreamSettings;
use crate::counters::RetryReason;
use crate::health::Failure;
use crate::retry::failure_of_reset;
use pingora_core::protocols::Stream;
use std::io;
use std::task::Context;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Longest head of an answer, bytes.
const ANSWER_HEAD_BYTES_MAX: usize = 64 * 1_024;

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
    /// The user left.
    Gone,
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
    /// On a connection of its own: an idle one to this instance has just turned out to be stale.
    pub(super) fresh: bool,
}

/// An answer whose head has come.
#[derive(Debug)]
pub(super) struct Answered {
    pub(super) instance: TcpStream,
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

/// Asks the instance of `attempt`.
pub(super) async fn ask(
    attempt: &Attempt,
    question: Question<'_>,
    keep: impl Fn() -> bool,
    mut may_leave: impl FnMut() -> bool,
    user: &mut User<'_>,
    watchdog: &mut Watchdog,
    timeouts: &Timeouts,
) -> Result<Answered, Unanswered> {
    let now_ns = attempt.entered_ns();
    let to = (attempt.live().id(), attempt.address());
    let idle = if question.fresh {
        pool::forget(to);
        None
    } else {
        pool::take(to, timeouts.pool, now_ns, !question.idempotent)
    };
    let reused = idle.is_some();
    let mut instance = match idle {
        Some(instance) => instance,
        None => connect(attempt, timeouts).await?,
    };
    let broken = |late: bool| {
        let (failure, reason) = if late {
            (Failure::BadAnswer, RetryReason::Timeout)
        } else {
            (failure_of_reset(reused), RetryReason::Reset)
        };
        Unanswered::Broken(Broken {
            failure: Some(failure),
            reason,
            reused,
            late,
        })
    };
    let malformed = || {
        Unanswered::Broken(Broken {
            failure: Some(Failure::BadAnswer),
            reason: RetryReason::Malformed,
            reused,
            late: false,
        })
    };
    match wire::write(&mut instance, question.bytes, watchdog, timeouts.write_ns).await {
        Ok(()) => {}
        Err(Stuck::Late) => return Err(broken(true)),
        // It may have answered before it broke the connection.
        Err(Stuck::Broken) => {}
    }
    let (mut read, mut head) = (Buffer::default(), Buffer::default());
    let live = attempt.live();
    let mut seat = Seat::new(live);
    let mut elsewhere = |context: &Context<'_>| {
        seat.wait(context);
        live.is_down() && may_leave()
    };
    loop {
        let got = wire::listen(
            &mut instance,
            &mut read,
            user.stream,
            user.ahead,
            watchdog,
            timeouts.read_ns,
            &mut elsewhere,
        );
        match got.await {
            Ok(Got::Bytes) => {}
            Ok(Got::End) => return Err(broken(false)),
            Ok(Got::Late) => return Err(broken(true)),
            Ok(Got::Elsewhere) => return Err(down(reused)),
            Err(Gone) => return Err(Unanswered::Gone),
        }
        loop {
            let keep = keep();
            let passing = Passing {
                to_head: question.is_head,
                keep,
                fields: question.answer_fields,
            };
            match answer::read(&read, passing, head.room()) {
                answer::Seen::Part if read.len() > ANSWER_HEAD_BYTES_MAX => return Err(malformed()),
                answer::Seen::Part => break,
                // A change of protocol that nobody asked for.
                answer::Seen::Whole(answer) if answer.status == 101 => return Err(malformed()),
                answer::Seen::Whole(answer) if answer.status < 200 => {
                    wire::write(user.stream, &head, watchdog, timeouts.write_ns)
                        .await
                        .map_err(|_| Unanswered::Gone)?;
                    read.consume(answer.len);
                    if read.is_empty() {
                        break;
                    }
                }
                answer::Seen::Whole(answer) => {
                    return Ok(Answered {
                        instance,
                        reused,
                        keep: keep && !matches!(answer.body, Rest::Close),
                        answer,
                        read,
                        head,
                    });
                }
                answer::Seen::Malformed => return Err(malformed()),
            }
        }
    }
}

/// The kernel's flag speaks for itself: it keeps others away for as long as it stands, and no longer.
fn down(reused: bool) -> Unanswered {
    Unanswered::Broken(Broken {
        failure: None,
        reason: RetryReason::Down,
        reused,
        late: false,
    })
}

async fn connect(attempt: &Attempt, timeouts: &Timeouts) -> Result<TcpStream, Unanswered> {
    let connecting = TcpStream::connect(attempt.address());
    let (error, late) = match timeout(timeouts.connect, connecting).await {
        Ok(Ok(stream)) => {
            // Without it an answer may wait for an acknowledgement; the request goes out all the same.
            stream.set_nodelay(true).ok();
            return Ok(stream);
        }
        Ok(Err(error)) => (Some(error), false),
        Err(_) => (None, true),
    };
    let at_fault = error.is_none_or(|error| is_instance_at_fault(&error));
    Err(Unanswered::Broken(Broken {
        failure: at_fault.then_some(Failure::Connect),
        reason: RetryReason::Connect,
        reused: false,
        late,
    }))
}

/// True where failing to connect is the instance's failure. Running out of local ports or file descriptors is not,
/// and must not eject every instance in turn.
fn is_instance_at_fault(error: &io::Error) -> bool {
    use io::ErrorKind as K;
    matches!(
        error.kind(),
        K::ConnectionRefused
            | K::ConnectionReset
            | K::ConnectionAborted
            | K::TimedOut
            | K::HostUnreachable
            | K::NetworkUnreachable
    )
}
