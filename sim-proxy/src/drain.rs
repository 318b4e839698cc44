//! Drain: what becomes of the streams of an instance that gets no new requests.
//!
//! Picks leave an instance alone at once when it loses its weight, or its line in the table. What it is answering may
//! end. But a download, a WebSocket or a call of gRPC can go on for days, and would keep users where the weights say that
//! there are to be none (Istio's issue 13908). So each has a grace from the change of the table on, and is closed after
//! it. What has begun later, since nothing better was left, is not meant until the instance has no line in the table any
//! more: then it has a grace as well. Nor is a request that has no answer yet: it has a deadline of its own. And a
//! connection that waits for its next request has nothing to drain: weights hold for each request.
//!
//! A stream may be silent. So each of them is known here, to the worker that it belongs to, and one task of the worker
//! looks at all a few times in a second: two words each. On the fast path the stream's own task is woken; on the general
//! one Pingora can't be told, so the connection to the instance is shut down, and the request ends as if the instance had
//! closed it. Where its user takes nothing it ends later, but the instance has nothing to do with it any more: it is out
//! of flight there.

use crate::attempt::InFlight;
use crate::clock::monotonic_ns;
use crate::cut::Connection;
use crate::links::Links;
use crate::live::InstanceLive;
use crate::routes::{Refused, Routes};
use sim_core::table::WeightTable;
use std::cell::RefCell;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Duration;
use tokio::time::{MissedTickBehavior, interval};

/// So much later than it should a stream may end.
const LOOK: Duration = Duration::from_millis(100);
/// Looks after the last stream has ended before the looking ends.
const LINGER: u32 = 10;

/// Puts `table` in force. Instances that lose their weight by it drain from now on, and who gets some drains no more.
///
/// # Errors
/// As [`Routes::apply`].
pub(crate) fn apply(routes: &Routes, table: &WeightTable) -> Result<bool, Refused> {
    let before = Arc::clone(&routes.snapshot());
    let Some(after) = routes.publish(table)? else {
        return Ok(false);
    };
    // After the table is published: whoever entered by the one before had looked at the clock by then.
    let now_ns = monotonic_ns();
    for old in before.upstreams() {
        // One that listens elsewhere now is another one.
        let new = after.upstream(old.instance);
        let new = new.filter(|new| Arc::ptr_eq(&new.live, &old.live));
        // One that never had any weight serves when nothing else is left, and goes on with that.
        let leaves = new.is_none_or(|new| new.weight_bp == 0 && old.weight_bp > 0);
        if leaves && old.live.draining_since_ns() == 0 {
            old.live.drains_since(now_ns);
        }
        if new.is_none() {
            // What began while it had no weight has its grace from now on.
            old.live.is_gone_since(now_ns);
        }
    }
    for upstream in after.upstreams().iter().filter(|u| u.weight_bp > 0) {
        upstream.live.drains_no_more();
    }
    // Requests go by it: what takes longer comes now.
    after.complete();
    Ok(true)
}

/// Whether what was picked at `entered_ns` has stayed at `live` for longer than it may.
pub(crate) fn is_over(live: &InstanceLive, entered_ns: u64, grace_ns: u64, now_ns: u64) -> bool {
    let is_over =
        |since_ns: u64| since_ns > entered_ns && now_ns >= since_ns.saturating_add(grace_ns);
    is_over(live.draining_since_ns()) || is_over(live.gone_since_ns())
}

/// What tells apart the shared connections to an instance of what began before it drained, or was gone, and of what began
/// later: they must not end together.
pub(crate) fn era(live: &InstanceLive, entered_ns: u64) -> u64 {
    let before = |since_ns: u64| if since_ns > entered_ns { 0 } else { since_ns };
    before(live.draining_since_ns()).max(before(live.gone_since_ns()))
}

/// Who is to hear that the grace is over.
#[derive(Debug)]
enum Whom {
    Task(Waker),
    /// A connection of the stream's own.
    Connection(Connection),
    /// One of several streams.
    Shared(Connection, Arc<Links>),
}

#[derive(Debug)]
struct Stream {
    live: Arc<InstanceLive>,
    entered_ns: u64,
    grace_ns: u64,
    whom: Whom,
    /// Until it is over, if that is known here alone.
    in_flight: Option<InFlight>,
    is_over: bool,
}

impl Stream {
    fn look(&mut self, now_ns: u64) {
        if self.is_over || !is_over(&self.live, self.entered_ns, self.grace_ns, now_ns) {
            return;
        }
        self.is_over = true;
        match &self.whom {
            Whom::Task(waker) => waker.wake_by_ref(),
            Whom::Connection(connection) => connection.shut(),
            Whom::Shared(connection, links) => links.shut(connection),
        }
        self.in_flight = None;
    }
}

/// The streams of a worker.
#[derive(Debug, Default)]
struct Streams {
    /// By place; empty ones are in `free`.
    places: Vec<Option<Stream>>,
    free: Vec<usize>,
    /// Someone looks.
    looking: bool,
}

thread_local! {
    static STREAMS: RefCell<Streams> = RefCell::default();
}

/// A stream's place among those that are looked at, once it has one. Dropped, it is a stream no more.
#[derive(Debug)]
pub(crate) struct Stay {
    entered_ns: u64,
    grace_ns: u64,
    at: Option<usize>,
}

impl Stay {
    /// Of what was picked at `entered_ns`. Nothing is kept before it waits.
    pub(crate) fn new(entered_ns: u64, grace_ns: u64) -> Self {
        Self {
            entered_ns,
            grace_ns,
            at: None,
        }
    }

    /// Whether it has been at `live` for longer than it may; if not, the task of `context` is woken when it has. It must be
    /// the same task each time.
    pub(crate) fn ends(&mut self, live: &Arc<InstanceLive>, context: &Context<'_>) -> bool {
        if self.at.is_some() {
            return self.is_over();
        }
        self.sit(live, Whom::Task(context.waker().clone()), None);
        false
    }

    /// How long it may stay once its instance drains.
    pub(crate) fn grace_ns(&self) -> u64 {
        self.grace_ns
    }

    /// It is not looked at any more, but still in flight.
    pub(crate) fn into_in_flight(self) -> Option<InFlight> {
        let at = self.at?;
        STREAMS.with_borrow_mut(|streams| {
            let stream = streams.places.get_mut(at).and_then(Option::as_mut);
            stream.and_then(|stream| stream.in_flight.take())
        })
    }

    /// Ends it by its connection to the instance, which it shares with others if `links` are given. Then, or when this is
    /// dropped, it is out of flight.
    pub(crate) fn ends_with(
        mut self,
        live: &Arc<InstanceLive>,
        in_flight: Option<InFlight>,
        connection: Connection,
        links: Option<&Arc<Links>>,
    ) -> Self {
        let whom = match links {
            Some(links) => Whom::Shared(connection, links.clone()),
            None => Whom::Connection(connection),
        };
        self.sit(live, whom, in_flight);
        self
    }

    /// Whether it was ended.
    pub(crate) fn is_over(&self) -> bool {
        let Some(at) = self.at else { return false };
        STREAMS.with_borrow(|streams| {
            let stream = streams.places.get(at).and_then(Option::as_ref);
            stream.is_some_and(|stream| stream.is_over)
        })
    }

    fn sit(&mut self, live: &Arc<InstanceLive>, whom: Whom, in_flight: Option<InFlight>) {
        let stream = Some(Stream {
            live: live.clone(),
            entered_ns: self.entered_ns,
            grace_ns: self.grace_ns,
            whom,
            in_flight,
            is_over: false,
        });
        let at = STREAMS.with_borrow_mut(|streams| {
            let at = streams.free.pop().unwrap_or(streams.places.len());
            match streams.places.get_mut(at) {
                Some(place) => *place = stream,
                None => streams.places.push(stream),
            }
            if !streams.looking {
                streams.looking = true;
                tokio::spawn(look());
            }
            at
        });
        self.at = Some(at);
    }
}

impl Drop for Stay {
    fn drop(&mut self) {
        let Some(at) = self.at else { return };
        let left = STREAMS.try_with(|streams| {
            let mut streams = streams.borrow_mut();
            streams.free.push(at);
            streams.places.get_mut(at).and_then(Option::take)
        });
        // What is left is dropped here, outside of the list; at the end of the thread there is none.
        drop(left);
    }
}

async fn look() {
    let mut empty = 0;
    let mut tick = interval(LOOK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let more = STREAMS.with_borrow_mut(|streams| {
            let none = streams.places.len() == streams.free.len();
            empty = if none { empty + 1 } else { 0 };
            let now_ns = monotonic_ns();
            for stream in streams.places.iter_mut().flatten() {
                stream.look(now_ns);
            }
            streams.looking = empty < LINGER;
            streams.looking
        });
        if !more {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::EjectSettings;
    use sim_core::name::{InstanceId, WorkloadName};
    use sim_core::table::{Share, Version};

    fn name() -> WorkloadName {
        WorkloadName::new("web").expect("valid")
    }

    fn put(routes: &Routes, generation: u64, lines: &[(u64, u16)]) {
        put_at(1, routes, generation, lines);
    }

    fn put_at(port: u16, routes: &Routes, generation: u64, lines: &[(u64, u16)]) {
        let shares = lines.iter().map(|&(id, weight_bp)| Share {
            instance: InstanceId(id),
            address: ([127, 0, 0, 1], port).into(),
            weight_bp,
            ready: true,
        });
        let version = Version {
            epoch: 1,
            generation,
        };
        let table = WeightTable::new(name(), version, shares.collect()).expect("a table");
        assert_eq!(apply(routes, &table), Ok(true));
    }

    fn live(routes: &Routes, id: u64) -> Arc<InstanceLive> {
        let mut known = routes.known().into_iter();
        known.find(|live| live.id().0 == id).expect("known")
    }

    #[test]
    fn who_loses_its_weight_or_its_line_drains_until_it_has_some_again() {
        let routes = Routes::new(name(), EjectSettings::default());
        put(&routes, 1, &[(1, 10_000), (2, 0)]);
        let [first, second] = [1, 2].map(|id| live(&routes, id));
        let drains = |live: &InstanceLive| live.draining_since_ns() > 0;
        assert!(
            !drains(&first) && !drains(&second),
            "a warm shadow is no leaver"
        );
        put(&routes, 2, &[(1, 0), (2, 10_000)]);
        assert!(drains(&first) && !drains(&second));
        let since_ns = first.draining_since_ns();
        assert_eq!(first.gone_since_ns(), 0);
        put(&routes, 3, &[(2, 10_000)]);
        assert_eq!(first.draining_since_ns(), since_ns, "it has not begun anew");
        assert!(first.gone_since_ns() > since_ns);
        put(&routes, 4, &[(1, 1), (2, 9_999)]);
        assert!(!drains(&first) && !drains(&second));
        put(&routes, 5, &[(1, 10_000)]);
        assert!(drains(&second));
    }

    #[test]
    fn who_listens_elsewhere_is_another_one_and_drains_where_it_was() {
        let routes = Routes::new(name(), EjectSettings::default());
        put_at(1, &routes, 1, &[(1, 10_000)]);
        let before = live(&routes, 1);
        put_at(2, &routes, 2, &[(1, 10_000)]);
        assert!(before.draining_since_ns() > 0);
        let now = routes.snapshot().upstreams()[0].live.clone();
        assert_eq!(now.draining_since_ns(), 0);
    }

    #[test]
    fn only_what_began_before_the_change_ends_and_only_after_its_grace() {
        let live = InstanceLive::new(InstanceId(1), ([127, 0, 0, 1], 1).into());
        assert!(!is_over(&live, 5, 10, u64::MAX));
        assert_eq!(era(&live, 5), 0);
        live.drains_since(100);
        assert!(!is_over(&live, 99, 10, 109));
        assert!(is_over(&live, 99, 10, 110));
        assert!(!is_over(&live, 100, 10, u64::MAX));
        assert!(!is_over(&live, 99, u64::MAX, u64::MAX - 1));
        assert_ne!(era(&live, 99), era(&live, 100));
        assert_eq!(era(&live, 101), era(&live, 100));
        // Who came when it had no weight goes when it has no line.
        live.is_gone_since(200);
        assert!(!is_over(&live, 150, 10, 209) && is_over(&live, 150, 10, 210));
        assert!(is_over(&live, 99, 10, 110), "its grace has not begun anew");
        assert!(!is_over(&live, 200, 10, u64::MAX));
        let eras = [99, 150, 250].map(|entered_ns| era(&live, entered_ns));
        assert_eq!(eras, [0, 100, 200]);
        live.drains_no_more();
        assert!(!is_over(&live, 99, 10, u64::MAX));
        assert_eq!(era(&live, 250), 0);
    }

    #[tokio::test]
    async fn a_silent_stream_is_woken_when_its_grace_is_over_and_leaves_nothing() {
        let live = Arc::new(InstanceLive::new(InstanceId(1), ([127, 0, 0, 1], 1).into()));
        let mut stay = Stay::new(monotonic_ns(), 20_000_000);
        live.drains_since(monotonic_ns());
        std::future::poll_fn(|context| match stay.ends(&live, context) {
            true => std::task::Poll::Ready(()),
            false => std::task::Poll::Pending,
        })
        .await;
        assert!(monotonic_ns() >= live.draining_since_ns() + 20_000_000);
        drop(stay);
        let places = STREAMS.with_borrow(|streams| (streams.places.len(), streams.free.len()));
        assert_eq!(places, (1, 1));
        assert_eq!(Arc::strong_count(&live), 1);
    }
}
