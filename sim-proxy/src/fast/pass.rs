//! The way back: an answer on its way to the user, and the end of a request.

use super::exchange::Answered;
use super::wire::{self, Cut, Notes, Patience, Stuck};
use super::{After, Connection, pool};
use crate::attempt::Attempt;
use crate::clock::monotonic_ns;
use crate::counters::{Ending, ErrorSide};
use crate::dispatch::Dispatch;
use crate::drain::Stay;
use crate::errors::ErrorClass;
use crate::health::Failure;
use crate::live::Outcome;
use crate::retry::failure_of_reset;
use pingora_core::protocols::Stream;

impl Connection<'_> {
    /// Passes an answer on, whose head has come.
    pub(super) async fn pass(
        &mut self,
        stream: &mut Stream,
        dispatch: &Dispatch,
        mut attempt: Attempt,
        answered: Answered,
    ) -> After {
        if answered.answer.is_switch() {
            // Boxed, so that requests that don't come here are no larger for it.
            return Box::pin(self.tunnel(stream, dispatch, attempt, answered)).await;
        }
        let Answered {
            mut instance,
            reused,
            mut answer,
            mut read,
            mut head,
            keep,
        } = answered;
        let failed = answer.status >= 500;
        dispatch.answered(&attempt, answer.status, failed);
        self.note.answered(attempt.live().id(), answer.status);
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
            dispatch.attempt_failed(attempt, ErrorClass::Malformed, Some(Failure::BadAnswer));
            dispatch.counters.erred(ErrorSide::Upstream);
            self.write_failure(stream, &dispatch.counters, 502, false)
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
        let mut patience = Patience {
            read_ns: self.path.timeouts.read_ns,
            write_ns: self.path.client_write_ns,
            stay: Stay::new(attempt.entered_ns(), dispatch.stream_grace_ns),
            live: attempt.live(),
            whole: bodiless || answer.body.is_over(),
        };
        let watchdog = &mut self.watchdog;
        let written = wire::write_answer(stream, passing, watchdog, &mut patience).await;
        drop((read, head));
        match written {
            Ok(()) => {}
            Err(Stuck::Over) => {
                self.note.ending = Some(Ending::Drained);
                return drained(dispatch, attempt);
            }
            Err(Stuck::Broken | Stuck::Late) => return aborted(dispatch, attempt),
        }
        self.note.bytes_out = taken as u64;
        if !answer.body.is_over() {
            let pumped = wire::pump(
                &mut instance,
                stream,
                &mut self.arrived,
                &mut answer.body,
                &mut self.watchdog,
                patience,
                Notes {
                    copying: self.copying.as_deref_mut(),
                    passed: &mut self.note.bytes_out,
                },
            );
            match pumped.await {
                Ok(still_clean) => clean = still_clean,
                Err(Cut::User) => return aborted(dispatch, attempt),
                Err(Cut::Drained) => {
                    self.note.ending = Some(Ending::Drained);
                    return drained(dispatch, attempt);
                }
                Err(Cut::Late) => {
                    return cut_off(dispatch, attempt, ErrorClass::Timeout, Failure::BadAnswer);
                }
                Err(Cut::Malformed) => {
                    return cut_off(dispatch, attempt, ErrorClass::Malformed, Failure::BadAnswer);
                }
                Err(Cut::Instance) => {
                    let failure = failure_of_reset(reused);
                    return cut_off(dispatch, attempt, ErrorClass::Reset, failure);
                }
            }
        }
        if let Some(copying) = &mut self.copying {
            copying.passed();
        }
        let now_ns = monotonic_ns();
        self.since_ns = now_ns;
        if clean && answer.keep_alive {
            let material = instance.material();
            pool::keep(
                (attempt.live().id(), attempt.address(), material),
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
        self.note.ending = Some(ending);
        if keep { After::Keep } else { After::Close }
    }
}

/// The user left.
pub(super) fn aborted(dispatch: &Dispatch, mut attempt: Attempt) -> After {
    attempt.outlasted(monotonic_ns());
    attempt.end(Outcome::Aborted, None);
    gone(dispatch)
}

/// The same before there was an attempt.
pub(super) fn gone(dispatch: &Dispatch) -> After {
    dispatch.counters.erred(ErrorSide::Downstream);
    dispatch.counters.ended(Ending::Aborted);
    After::Close
}

/// The instance has had no weight for longer than an answer may go on there.
pub(super) fn drained(dispatch: &Dispatch, mut attempt: Attempt) -> After {
    attempt.end(Outcome::Aborted, None);
    dispatch.counters.ended(Ending::Drained);
    After::Cut
}

/// The instance broke off in the middle of its answer.
fn cut_off(dispatch: &Dispatch, attempt: Attempt, class: ErrorClass, failure: Failure) -> After {
    dispatch.attempt_failed(attempt, class, Some(failure));
    dispatch.counters.erred(ErrorSide::Upstream);
    dispatch.counters.ended(Ending::Failed);
    After::Cut
}
