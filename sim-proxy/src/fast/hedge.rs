//! Two attempts at one request: the first has taken longer than nearly all do, so another instance is asked as well,
//! and whoever answers first has answered (Dean and Barroso 2013, "The Tail at Scale", hedged requests).

use super::exchange::{self, Answered, Asked, Broken, Question, Timeouts, Unanswered, User};
use super::watchdog::Watchdog;
use crate::attempt::Attempt;
use crate::clock::monotonic_ns;
use crate::dispatch::Dispatch;
use crate::health::Failure;

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
    (first, asked): (Attempt, Asked),
    second: Attempt,
    question: Question<'_>,
    keep: impl Fn() -> bool,
    user: &mut User<'_>,
    watchdog: &mut Watchdog,
) -> Result<Winner, Neither> {
    let target = second.target();
    // Boxed, so that requests that don't come here are no larger for it.
    let mut asking = Box::pin(async {
        let mut watchdog = Watchdog::new();
        let asked = exchange::send(target, question, &mut watchdog, timeouts).await?;
        let heard = asked.hear_alone(question, &keep, &mut watchdog, timeouts);
        heard.await
    });
    let mut hearing = Box::pin(asked.hear(question, &keep, |_| None, user, watchdog, timeouts));
    let ended = tokio::select! {
        biased;
        heard = &mut hearing => Ended::First(heard),
        heard = &mut asking => Ended::Second(heard),
    };
    match ended {
        Ended::First(Ok(answered)) => {
            drop(asking);
            dispatch.overtaken(second, monotonic_ns(), false);
            Ok((first, answered))
        }
        // It was asked for speed; an error that is fast is no answer while the first may have one.
        Ended::Second(Ok(answered)) if answered.answer.status >= 500 => {
            dispatch.attempt_failed(second, Some(Failure::BadAnswer));
            settle(dispatch, first, hearing.await)
        }
        Ended::Second(Ok(answered)) => {
            dispatch.overtaken(first, monotonic_ns(), true);
            Ok((second, answered))
        }
        Ended::First(Err(Unanswered::Broken(broken))) => {
            dispatch.attempt_failed(first, broken.failure);
            settle(dispatch, second, asking.await)
        }
        Ended::Second(Err(Unanswered::Broken(broken))) => {
            dispatch.attempt_failed(second, broken.failure);
            settle(dispatch, first, hearing.await)
        }
        Ended::First(Err(_)) => {
            drop(asking);
            dispatch.overtaken(second, monotonic_ns(), false);
            Err(Neither::Gone(first))
        }
        Ended::Second(Err(_)) => Err(Neither::Gone(second)),
    }
}

enum Ended {
    First(Result<Answered, Unanswered>),
    Second(Result<Answered, Unanswered>),
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
            dispatch.attempt_failed(attempt, broken.failure);
            Err(Neither::Broken(broken))
        }
        Err(Unanswered::Gone | Unanswered::Overdue(_)) => Err(Neither::Gone(attempt)),
    }
}
