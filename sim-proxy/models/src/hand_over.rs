//! Publication: a table takes an instance's traffic away, and its report says when the last request has left.

use crate::attempt::Attempt;
use crate::routes::Routes;
use crate::world::{FIRST, ONE, TWO, routes, table};
use loom::thread;
use sim_core::name::InstanceId;
use std::sync::Arc;

fn in_flight(routes: &Routes, instance: InstanceId) -> u64 {
    let known = routes.known();
    let live = known.iter().find(|live| live.id() == instance);
    live.map_or(0, |live| live.totals().in_flight)
}

fn enter(routes: &Arc<Routes>) -> thread::JoinHandle<Attempt> {
    let routes = routes.clone();
    thread::spawn(move || routes.enter(FIRST).expect("one is ready"))
}

/// `workers` requests enter while a table takes the first instance's traffic away: if the report that follows says that
/// it has none in flight, none of them is there or comes there.
pub fn reported_empty_is_empty(workers: usize) {
    let routes = Arc::new(routes(&[(ONE, 10_000)]));
    let entering: Vec<_> = (0..workers).map(|_| enter(&routes)).collect();
    routes.apply(&table(2, &[(TWO, 10_000)])).expect("newer");
    let reported = in_flight(&routes, ONE);
    let attempts: Vec<Attempt> = entering
        .into_iter()
        .map(|entering| entering.join().expect("no panic"))
        .collect();
    let there = attempts.iter().filter(|attempt| attempt.live().id() == ONE);
    let there = there.count() as u64;
    assert!(reported >= there, "{reported} reported, {there} there");
    drop(attempts);
    // Who took its entry back has left no trace.
    assert_eq!((in_flight(&routes, ONE), in_flight(&routes, TWO)), (0, 0));
}

/// A request that enters after `apply` has returned goes by that table, whichever thread it is on.
pub fn a_table_is_obeyed_once_it_is_applied() {
    let routes = Arc::new(routes(&[(ONE, 10_000)]));
    let writer = {
        let routes = routes.clone();
        thread::spawn(move || routes.apply(&table(2, &[(TWO, 10_000)])).map(drop))
    };
    // Before, during or after; what it comes to is for the other models to say.
    drop(routes.enter(FIRST));
    writer.join().expect("no panic").expect("newer");
    let attempt = routes.enter(FIRST).expect("one is ready");
    assert_eq!(attempt.live().id(), TWO);
}

/// Two sessions apply a table each: the newer one stands, in whatever order they come.
pub fn the_newer_table_stands() {
    let routes = Arc::new(routes(&[(ONE, 10_000)]));
    let older = {
        let routes = routes.clone();
        thread::spawn(move || routes.apply(&table(2, &[(ONE, 10_000)])).is_ok())
    };
    routes.apply(&table(3, &[(TWO, 10_000)])).expect("newest");
    let was_first = older.join().expect("no panic");
    assert_eq!(routes.refused(), u64::from(!was_first));
    assert_eq!(routes.snapshot().version().generation, 3);
    assert!(routes.snapshot().upstream(ONE).is_none());
}

/// An instance is forgotten while a table brings it back: whoever is in the table is known, by the same state.
pub fn whoever_is_in_the_table_is_known() {
    let routes = Arc::new(routes(&[(ONE, 10_000)]));
    routes.apply(&table(2, &[(TWO, 10_000)])).expect("newer");
    let writer = {
        let routes = routes.clone();
        thread::spawn(move || routes.apply(&table(3, &[(ONE, 10_000)])).map(drop))
    };
    routes.forget(ONE);
    writer.join().expect("no panic").expect("newest");
    let snapshot = routes.snapshot();
    let upstream = snapshot.upstream(ONE).expect("in the table");
    let known = routes.known();
    assert!(known.iter().any(|live| Arc::ptr_eq(live, &upstream.live)));
}
