//! Two attempts at one request: the first has taken longer than nearly all do, so another instance is asked as well,
//! and whoever answers first has answered (Dean and Barroso 2013, "The Tail at Scale", hedged requests).
//!
//! The connection of whoever is left behind is closed, whatever was under way on it.

use super::exchange::{self, Answered, Asked, Broken, Question, Timeouts, Unanswered, User};
use super::watchdog::Watchdog;
use crate::attempt::{Attempt, Target};
use crate::clock::monotonic_ns;
use crate::dispatch::Dispatch;
use crate::errors::ErrorClass;
use crate::health::Failure;
use std::time::Duration;
use tokio::time::timeout;

/// Who answered.
pub(super) type Winner = (Attempt, Answered);

/// Why neither did.
pub(super) enum Neither {
    /// The last one that failed; both are counted.
    Broken(Broken),
    /// The user left.
    Gone(Attempt),
}

/// Waits for `first`, which is under way by `asked`, and asks the instance of `second`, which is another one.
pub(super) async fn race(
    (dispatch, timeouts): (&Dispatch, &Timeouts),
    (first, asked): (Attempt, Box<Asked>),
    second: Option<Attempt>,
    question: Question<'_>,
    keep: impl Fn() -> bool,
    user: &mut User<'_>,
    watchdog: &mut Watchdog,
) -> Result<Winner, Neither> {
    let Some(second) = second else {
        let hearing = asked.hear(question, &keep, |_| None, user, watchdog, timeouts);
        return settle(dispatch, first, Box::pin(hearing).await);
    };
    // Who it is, while it may become somebody's whose answer this is.
    let (live, entered_ns) = (second.live().clone(), second.entered_ns());
    let target = Target {
        instance: live.id(),
        address: live.address(),
        entered_ns,
    };
    let raced = Question {
        raced: true,
        ..question
    };
    // Boxed, so that requests that don't come here are no larger for it.
    let mut asking = Box::pin(async {
        let mut watchdog = Watchdog::new();
        let asked = exchange::send(target, raced, &mut watchdog, timeouts).await?;
        let heard = asked.hear_alone(raced, &keep, &mut watchdog, timeouts);
        heard.await
    });
    let mut hearing = Box::pin(asked.hear(raced, &keep, |_| None, user, watchdog, timeouts));
    let ended = tokio::select! {
        biased;
        heard = &mut hearing => Ended::First(heard),
        heard = &mut asking => Ended::Second(heard),
    };
    // Whose answer it is to be, and what has become of it so far.
    let (attempt, heard) = match ended {
        Ended::First(Err(Unanswered::Broken(broken))) => {
            dispatch.attempt_broken(first, broken.reason, broken.failure);
            (second, asking.await.map_err(Unanswered::Broken))
        }
        Ended::First(heard) => {
            drop(asking);
            dispatch.overtaken(second, monotonic_ns(), false);
            (first, heard)
        }
        // It was asked for speed; an error that is fast is no answer while the first may have one. But not for ever.
        Ended::Second(Ok(answered)) if answered.answer.status >= 500 => {
            let late_ns = dispatch.routes.overdue().late_ns();
            let late_ns = first.entered_ns().saturating_add(late_ns);
            let left = Duration::from_nanos(late_ns.saturating_sub(monotonic_ns()));
            match timeout(left, &mut hearing).await {
                Ok(Err(Unanswered::Broken(broken))) => {
                    dispatch.attempt_broken(first, broken.reason, broken.failure);
                    (second, Ok(answered))
                }
                Ok(heard) => {
                    dispatch.attempt_failed(
                        second,
                        ErrorClass::Status5xx,
                        Some(Failure::BadAnswer),
                    );
                    (first, heard)
                }
                Err(_) => {
                    dispatch.given_up(first, monotonic_ns());
                    (second, Ok(answered))
                }
            }
        }
        Ended::Second(Ok(answered)) => {
            dispatch.overtaken(first, monotonic_ns(), true);
            (second, Ok(answered))
        }
        Ended::Second(Err(broken)) => {
            dispatch.attempt_broken(second, broken.reason, broken.failure);
            (first, hearing.as_mut().await)
        }
    };
    drop(hearing);
    let heard = match heard {
        // The race is over: it goes on as if there had been none.
        Err(Unanswered::Begun(asked) | Unanswered::Overdue(asked)) => {
            let hearing = asked.hear(question, &keep, |_| None, user, watchdog, timeouts);
            Box::pin(hearing).await
        }
        heard => heard,
    };
    settle(dispatch, attempt, heard)
}

enum Ended {
    First(Result<Answered, Unanswered>),
    Second(Result<Answered, Broken>),
}

/// The end of the one that is left.
fn settle(
    dispatch: &Dispatch,
    attempt: Attempt,
    heard: Result<Answered, Unanswered>,
) -> Result<Winner, Neither> {
    match heard {
        Ok(answered) => Ok((attempt, answered)),
        Err(Unanswered::Broken(broken)) => {
            dispatch.attempt_broken(attempt, broken.reason, broken.failure);
            Err(Neither::Broken(broken))
        }
        Err(Unanswered::Gone | Unanswered::Overdue(_) | Unanswered::Begun(_)) => {
            Err(Neither::Gone(attempt))
        }
    }
}
