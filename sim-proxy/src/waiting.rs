//! Who waits for an answer at this worker, so that those hear of it whose instance the kernel says is stopped or dead,
//! and those who have waited longer than nearly all do. On the fast path they are woken; the general one can't be told, so
//! the connection that it waits for is cut ([`crate::cut`]).
//!
//! A killed process resets its connections; one that is stopped or hangs, or whose machine is gone, says nothing at all.
//! A timer for each request would cost more than all else here. So each request that waits leaves its waker, and one
//! task of the worker looks at the flags of the instances that are waited for: a word each, every millisecond while
//! anybody waits; and at the clock, once for all.

use crate::clock::monotonic_ns;
use crate::counters::RetryReason;
use crate::cut::Cut;
use crate::live::InstanceLive;
use std::cell::RefCell;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Duration;

/// How soon a waiting request hears of it.
const LOOK: Duration = Duration::from_millis(1);
/// Looks until one that found nowhere else to go may try again.
const AGAIN: u32 = 50;
/// Looks after the last one has left before the looking ends: under load somebody is there all the time.
const LINGER: u32 = 200;

#[derive(Debug, Default)]
struct Room {
    /// By seat; empty ones are in `free`.
    seats: Vec<Option<Waiting>>,
    free: Vec<usize>,
    /// Someone looks.
    looking: bool,
}

#[derive(Debug)]
struct Waiting {
    live: Arc<InstanceLive>,
    whom: Whom,
    /// When it is overdue.
    due_ns: u64,
    is_overdue: bool,
    /// Looks since it has heard; it may have had nowhere else to go.
    told: u32,
}

/// Who is to hear of it.
#[derive(Debug)]
enum Whom {
    Task(Waker),
    Connection(Cut),
}

thread_local! {
    static ROOM: RefCell<Room> = RefCell::default();
}

/// A request that waits for an instance. Dropped, it waits no more.
#[derive(Debug)]
pub(crate) struct Seat {
    due_ns: u64,
    at: Option<usize>,
}

impl Seat {
    /// For a request that is overdue at `due_ns`, if that isn't `u64::MAX`; nothing is kept before it
    /// waits.
    pub(crate) fn new(due_ns: u64) -> Self {
        Self { due_ns, at: None }
    }

    /// Of a request that can't be woken: its connection is cut where that takes it elsewhere. `None`: there is nothing
    /// to look at.
    pub(crate) fn of_connection(live: &Arc<InstanceLive>, due_ns: u64, cut: Cut) -> Option<Self> {
        if due_ns == u64::MAX && !live.is_watched() {
            return None;
        }
        let at = Some(sit(live, due_ns, Whom::Connection(cut)));
        Some(Self { due_ns, at })
    }

    /// Why its connection was cut, if it was.
    pub(crate) fn left(&self) -> Option<RetryReason> {
        let at = self.at?;
        ROOM.with_borrow(|room| match &room.seats.get(at)?.as_ref()?.whom {
            Whom::Connection(cut) => cut.left(),
            Whom::Task(_) => None,
        })
    }

    /// Wakes the task of `context` when the kernel says that the instance is down, or when it is overdue. To be called
    /// each time that it is about to wait. True: it is overdue.
    pub(crate) fn wait(&mut self, live: &Arc<InstanceLive>, context: &Context<'_>) -> bool {
        if let Some(at) = self.at {
            let seated = |room: &Room| matches!(room.seats.get(at), Some(Some(waiting)) if waiting.is_overdue);
            return self.due_ns != u64::MAX && ROOM.with_borrow(seated);
        }
        // Else there is nothing to look at.
        if self.due_ns == u64::MAX && !live.is_watched() {
            return false;
        }
        let whom = Whom::Task(context.waker().clone());
        self.at = Some(sit(live, self.due_ns, whom));
        false
    }
}

/// Takes a seat.
fn sit(live: &Arc<InstanceLive>, due_ns: u64, whom: Whom) -> usize {
    ROOM.with_borrow_mut(|room| {
        let taken = Some(Waiting {
            live: live.clone(),
            whom,
            due_ns,
            is_overdue: false,
            told: 0,
        });
        let at = room.free.pop().unwrap_or(room.seats.len());
        match room.seats.get_mut(at) {
            Some(seat) => *seat = taken,
            None => room.seats.push(taken),
        }
        if !room.looking {
            room.looking = true;
            tokio::spawn(look());
        }
        at
    })
}

impl Drop for Seat {
    fn drop(&mut self) {
        let Some(at) = self.at else { return };
        let left = ROOM.try_with(|room| {
            let mut room = room.borrow_mut();
            room.free.push(at);
            room.seats.get_mut(at).and_then(Option::take)
        });
        // What is left is dropped here, outside of the room; at the end of the thread there is no room.
        drop(left);
    }
}

async fn look() {
    let mut empty = 0;
    let mut tick = tokio::time::interval(LOOK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let more = ROOM.with_borrow_mut(|room| {
            let waiting = room.seats.len() - room.free.len();
            empty = if waiting == 0 { empty + 1 } else { 0 };
            let now_ns = monotonic_ns();
            for one in room.seats.iter_mut().flatten() {
                one.is_overdue = now_ns >= one.due_ns;
                let is_down = one.live.is_down();
                if !one.is_overdue && !is_down {
                    one.told = 0;
                    continue;
                }
                if one.told.is_multiple_of(AGAIN) {
                    match &mut one.whom {
                        Whom::Task(waker) => waker.wake_by_ref(),
                        Whom::Connection(cut) if is_down => cut.leave(RetryReason::Down),
                        Whom::Connection(cut) => cut.leave(RetryReason::Late),
                    }
                }
                one.told = one.told.wrapping_add(1);
            }
            room.looking = empty < LINGER;
            room.looking
        });
        if !more {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seats() -> (usize, usize) {
        ROOM.with_borrow(|room| (room.seats.len(), room.free.len()))
    }

    #[tokio::test]
    async fn nobody_waits_for_an_instance_that_is_not_watched() {
        let live = Arc::new(InstanceLive::new(
            sim_core::name::InstanceId(1),
            ([127, 0, 0, 1], 80).into(),
        ));
        let mut seat = Seat::new(u64::MAX);
        assert!(!seat.wait(&live, &Context::from_waker(Waker::noop())));
        drop(seat);
        assert_eq!(seats(), (0, 0));
    }

    #[tokio::test]
    async fn who_is_overdue_is_woken_and_told_so() {
        let live = Arc::new(InstanceLive::new(
            sim_core::name::InstanceId(1),
            ([127, 0, 0, 1], 80).into(),
        ));
        let due_ns = monotonic_ns() + 20_000_000;
        let mut seat = Seat::new(due_ns);
        std::future::poll_fn(|context| {
            if seat.wait(&live, context) {
                return std::task::Poll::Ready(());
            }
            std::task::Poll::Pending
        })
        .await;
        assert!(monotonic_ns() >= due_ns);
        drop(seat);
        assert_eq!(seats(), (1, 1));
    }
}
