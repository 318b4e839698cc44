//! In-flight counts: what is reported of an instance that has none is complete.

use crate::live::Outcome;
use crate::world::{FIRST, ONE, START_NS, routes};
use loom::thread;
use std::sync::Arc;

/// Attempts end while a report is made: if it says that none is in flight, their ends and latencies are in it.
pub fn a_report_of_none_has_all_ends(attempts: usize) {
    let routes = Arc::new(routes(&[(ONE, 10_000)]));
    let ending: Vec<_> = (0..attempts)
        .map(|_| {
            let mut attempt = routes.enter(FIRST).expect("one is ready");
            thread::spawn(move || attempt.end(Outcome::Ok, Some(START_NS)))
        })
        .collect();
    let live = routes.known().remove(0);
    let totals = live.totals();
    if totals.in_flight == 0 {
        assert_eq!(totals.first.ok, attempts as u64);
        assert_eq!(totals.latency.iter().sum::<u64>(), attempts as u64);
    }
    for ending in ending {
        ending.join().expect("no panic");
    }
    let totals = live.totals();
    assert_eq!((totals.in_flight, totals.first.ok), (0, attempts as u64));
    assert_eq!(totals.last_pick_ns, START_NS);
}
