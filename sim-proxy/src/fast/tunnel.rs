//! A WebSocket: the protocol has changed (RFC 9110, section 7.8), and bytes pass both ways as they are.
//!
//! Pingora's proxy could carry it, and loses some: where the answer is there at once, it takes the end of the request,
//! which has no body, for the end of the WebSocket (its issue 946). And a quiet one holds no buffers here. Where it is
//! ended here, the user is told so in its own words, if what came from the instance ends with a frame.

use super::buffers::{Buffer, poll_read};
use super::exchange::Answered;
use super::frames::{Frames, GOING_AWAY};
use super::pass::{drained, gone};
use super::refuse::linger_at;
use super::{After, Connection, wire};
use crate::attempt::Attempt;
use crate::clock::monotonic_ns;
use crate::counters::{Ending, ErrorSide};
use crate::dispatch::Dispatch;
use crate::drain::Stay;
use crate::errors::ErrorClass;
use crate::live::Outcome;
use pingora_core::protocols::Stream;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite};

/// How long who is still sending is listened to when the other side has ended, so that it hears the last words, ns.
const LINGER_NS: u64 = 5_000_000_000;

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The instance closed its connection, in order.
    Instance,
    /// So did the user.
    User,
    /// The instance broke it off.
    Broken,
    /// The user did, or neither had anything to say for too long.
    Gone,
    /// It has gone on for as long as it may.
    Drained,
}

/// Which end of a flow is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Broken {
    Source,
    Sink,
}

/// One direction.
#[derive(Debug, Default)]
struct Flow {
    /// What has come and wasn't taken.
    left: Buffer,
    /// How much of that was taken after all.
    sent: usize,
    /// Bytes that were taken so far.
    passed: u64,
    /// Nothing more comes.
    ended: bool,
    /// What was taken may not have been sent.
    unflushed: bool,
    /// Of what has come, where that is followed.
    frames: Option<Frames>,
}

impl Flow {
    /// With bytes that have come already.
    fn of(left: Buffer) -> Self {
        Self {
            left,
            ..Self::default()
        }
    }

    /// Follows the frames, the first of which are in `begun`.
    fn following(mut self, begun: &[u8]) -> Self {
        self.frames.get_or_insert_default().saw(begun);
        self
    }

    /// The sink has had all that came, and a frame may begin.
    fn is_between(&self) -> bool {
        let between = self.frames.as_ref().is_some_and(Frames::is_between);
        between && self.left.is_empty()
    }

    /// Passes on what there is; done when `source` has ended and `sink` has all of it.
    fn poll(
        &mut self,
        source: &mut (impl AsyncRead + Unpin + ?Sized),
        sink: &mut (impl AsyncWrite + Unpin + ?Sized),
        context: &mut Context<'_>,
    ) -> Poll<Result<(), Broken>> {
        loop {
            while self.sent < self.left.len() {
                let written = Pin::new(&mut *sink).poll_write(context, &self.left[self.sent..]);
                match ready!(written) {
                    Ok(0) | Err(_) => return Poll::Ready(Err(Broken::Sink)),
                    Ok(count) => self.took(count),
                }
                self.sent = self.sent.min(self.left.len());
            }
            self.left.consume(self.sent);
            self.sent = 0;
            if self.ended {
                let flushed = ready!(Pin::new(&mut *sink).poll_flush(context));
                return Poll::Ready(flushed.map_err(|_| Broken::Sink));
            }
            let read = poll_read(Pin::new(&mut *source), context, |context, bytes| {
                if bytes.is_empty() {
                    self.ended = true;
                    return Ok(());
                }
                if let Some(frames) = &mut self.frames {
                    frames.saw(bytes);
                }
                let count = match Pin::new(&mut *sink).poll_write(context, bytes) {
                    Poll::Ready(Ok(count)) => count,
                    Poll::Ready(Err(_)) => return Err(Broken::Sink),
                    Poll::Pending => 0,
                };
                self.passed += count as u64;
                self.unflushed = true;
                if count < bytes.len() {
                    self.left.room().extend_from_slice(&bytes[count..]);
                }
                Ok(())
            });
            match read {
                Poll::Ready(Ok(passed)) => passed?,
                Poll::Ready(Err(_)) => return Poll::Ready(Err(Broken::Source)),
                Poll::Pending => {
                    // Whoever waits for the next piece wants the last one.
                    if self.unflushed {
                        match Pin::new(&mut *sink).poll_flush(context) {
                            Poll::Ready(Ok(())) => self.unflushed = false,
                            Poll::Ready(Err(_)) => return Poll::Ready(Err(Broken::Sink)),
                            Poll::Pending => {}
                        }
                    }
                    return Poll::Pending;
                }
            }
        }
    }

    fn took(&mut self, count: usize) {
        self.sent += count;
        self.passed += count as u64;
        self.unflushed = true;
    }
}

impl Connection<'_> {
    /// Passes bytes both ways, once the instance has said that it speaks WebSocket.
    pub(super) async fn tunnel(
        &mut self,
        stream: &mut Stream,
        dispatch: &Dispatch,
        mut attempt: Attempt,
        answered: Answered,
    ) -> After {
        let answered_ns = monotonic_ns();
        let Answered {
            mut instance,
            answer,
            mut read,
            mut head,
            ..
        } = answered;
        dispatch.answered(&attempt, answer.status, false);
        self.note.answered(attempt.live().id(), answer.status);
        read.consume(answer.len);
        let head_bytes = head.len() as u64;
        head.room().extend_from_slice(&read);
        let mut down = Flow::of(head).following(&read);
        drop(read);
        let mut up = Flow::of(std::mem::take(&mut self.arrived));
        let mut stay = Stay::new(attempt.entered_ns(), dispatch.stream_grace_ns);
        let (watchdog, patience_ns) = (&mut self.watchdog, self.path.timeouts.read_ns);
        let (mut passed, mut moved_ns) = (0, answered_ns);
        let end = poll_fn(|context| {
            match down.poll(&mut instance, stream, context) {
                Poll::Ready(Ok(())) => return Poll::Ready(End::Instance),
                Poll::Ready(Err(Broken::Source)) => return Poll::Ready(End::Broken),
                Poll::Ready(Err(Broken::Sink)) => return Poll::Ready(End::Gone),
                Poll::Pending => {}
            }
            match up.poll(stream, &mut instance, context) {
                Poll::Ready(Ok(())) => return Poll::Ready(End::User),
                Poll::Ready(Err(Broken::Source)) => return Poll::Ready(End::Gone),
                Poll::Ready(Err(Broken::Sink)) => return Poll::Ready(End::Broken),
                Poll::Pending => {}
            }
            if passed != down.passed + up.passed {
                passed = down.passed + up.passed;
                moved_ns = monotonic_ns();
            }
            if stay.ends(attempt.live(), context) {
                return Poll::Ready(End::Drained);
            }
            if watchdog.is_over(wire::after(moved_ns, patience_ns), context) {
                return Poll::Ready(End::Gone);
            }
            Poll::Pending
        })
        .await;
        self.note.bytes_in = up.passed;
        self.note.bytes_out = down.passed.saturating_sub(head_bytes);
        match end {
            // It may have been killed: that looks the same.
            End::Instance if attempt.live().is_down() => {
                self.broke(dispatch, attempt, ErrorClass::Down)
            }
            End::Instance | End::User => {
                // How long it went on says nothing of how fast the instance is.
                attempt.end(Outcome::Ok, Some(answered_ns));
                drop(attempt);
                dispatch.counters.ended(Ending::Ok);
                self.note.ending = Some(Ending::Ok);
                self.open = None;
                // Whoever is still sending must not be answered by a reset, which may overtake the last that was said.
                drop((down, up));
                let (bounds, watchdog) = ((LINGER_NS, usize::MAX), &mut self.watchdog);
                if end == End::Instance {
                    linger_at(stream, &mut self.arrived, watchdog, bounds).await;
                } else {
                    linger_at(&mut instance, &mut Buffer::default(), watchdog, bounds).await;
                }
                After::Close
            }
            End::Broken => self.broke(dispatch, attempt, ErrorClass::Reset),
            End::Gone => {
                attempt.end(Outcome::Aborted, None);
                gone(dispatch)
            }
            End::Drained => {
                self.note.ending = Some(Ending::Drained);
                let after = drained(dispatch, attempt);
                self.open = None;
                let may_say = down.is_between();
                drop((down, up, instance));
                let watchdog = &mut self.watchdog;
                if !may_say
                    || wire::write(stream, GOING_AWAY, watchdog, LINGER_NS)
                        .await
                        .is_err()
                {
                    return after;
                }
                // It says the same, and closes.
                let bounds = (LINGER_NS, usize::MAX);
                linger_at(stream, &mut self.arrived, watchdog, bounds).await;
                After::Close
            }
        }
    }

    /// The instance broke it off. That says little of its health: to reset a WebSocket is a common way to end it.
    fn broke(&mut self, dispatch: &Dispatch, attempt: Attempt, class: ErrorClass) -> After {
        dispatch.attempt_failed(attempt, class, None);
        dispatch.counters.erred(ErrorSide::Upstream);
        dispatch.counters.ended(Ending::Failed);
        self.note.ending = Some(Ending::Failed);
        After::Cut
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    async fn run(
        flow: &mut Flow,
        mut source: impl AsyncRead + Unpin,
        mut sink: impl AsyncWrite + Unpin,
    ) -> Result<(), Broken> {
        poll_fn(|context| flow.poll(&mut source, &mut sink, context)).await
    }

    #[tokio::test]
    async fn all_that_came_passes_in_order_through_a_narrow_way_and_no_memory_is_held() {
        let bytes: Vec<u8> = (0..200_000).map(|n| (n * 7 % 251) as u8).collect();
        let (early, late) = bytes.split_at(1_000);
        let mut left = Buffer::default();
        left.room().extend_from_slice(early);
        let mut flow = Flow::of(left);
        let (mut here, source) = duplex(50_000);
        let (sink, mut there) = duplex(300);
        let (sent, passed, come) = tokio::join!(
            async {
                here.write_all(late).await.expect("sent");
                drop(here);
            },
            run(&mut flow, source, sink),
            async {
                let mut come = Vec::new();
                there.read_to_end(&mut come).await.expect("read");
                come
            },
        );
        assert_eq!((sent, passed), ((), Ok(())));
        assert!(come == bytes);
        assert_eq!(flow.passed, bytes.len() as u64);
        assert!(flow.left.is_empty());
    }

    #[tokio::test]
    async fn it_is_told_which_end_is_broken() {
        let (mut here, source) = duplex(10);
        let (sink, there) = duplex(10);
        drop(there);
        here.write_all(b"x").await.expect("sent");
        let mut flow = Flow::default();
        assert_eq!(run(&mut flow, source, sink).await, Err(Broken::Sink));
    }
}
