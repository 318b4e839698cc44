//! Ejection: who counts as out, who may find out whether it is back, and that somebody stays.

use crate::attempt::Attempt;
use crate::clock::set_ns;
use crate::config::EjectSettings;
use crate::health::{Failure, Health, Standing};
use crate::pick::How;
use crate::routes::Routes;
use crate::world::{FIRST, ONE, START_NS, TWO, routes};
use loom::thread;
use sim_core::name::InstanceId;
use std::sync::Arc;

const HALF: [(InstanceId, u16); 2] = [(ONE, 5_000), (TWO, 5_000)];

fn attempt_at(routes: &Routes, other: InstanceId) -> Attempt {
    let entry = crate::routes::Entry {
        not: Some(other),
        ..FIRST
    };
    routes.enter(entry).expect("one is ready")
}

/// A request fails at each of two instances at the same moment: not both are taken out.
pub fn the_last_one_stays() {
    let routes = Arc::new(routes(&HALF));
    let (one, two) = (attempt_at(&routes, TWO), attempt_at(&routes, ONE));
    assert_eq!((one.live().id(), two.live().id()), (ONE, TWO));
    let failing = {
        let routes = routes.clone();
        thread::spawn(move || routes.attempt_failed(&two, Failure::Connect))
    };
    routes.attempt_failed(&one, Failure::Connect);
    failing.join().expect("no panic");
    let known = routes.known();
    let is_in = known.iter().filter(|live| live.health().is_in()).count();
    assert!(is_in >= 1, "both are out");
    // Each ejection counts once, and one that was taken back not at all.
    let ejections: u64 = known.iter().map(|live| live.health().ejections()).sum();
    assert_eq!(ejections, 2 - is_in as u64);
}

/// Requests that fail at one death are one ejection of the first length.
pub fn a_burst_of_failures_is_one_ejection() {
    let (health, settings) = (Arc::new(Health::default()), EjectSettings::default());
    let fail = move |health: &Health| {
        health.failed(Failure::Connect, START_NS, &settings) && health.eject(START_NS, &settings)
    };
    let failing: Vec<_> = (0..2)
        .map(|_| {
            let health = health.clone();
            thread::spawn(move || fail(&health))
        })
        .collect();
    let mut ejected = u64::from(fail(&health));
    for failing in failing {
        ejected += u64::from(failing.join().expect("no panic"));
    }
    assert_eq!((ejected, health.ejections()), (1, 1));
    let base_ns = settings.base.as_nanos() as u64;
    assert_eq!(health.out_until_ns(), START_NS + base_ns);
}

/// Two requests come when an ejection is over: one is the probe, the other goes elsewhere.
pub fn one_request_probes() {
    let routes = Arc::new(routes(&HALF));
    let failed = attempt_at(&routes, TWO);
    routes.attempt_failed(&failed, Failure::Connect);
    let health = failed.live().health();
    assert_eq!(health.standing(START_NS), Standing::Out);
    set_ns(health.out_until_ns());
    let other = {
        let routes = routes.clone();
        thread::spawn(move || routes.enter(FIRST).expect("one is ready"))
    };
    let own = routes.enter(FIRST).expect("one is ready");
    let other = other.join().expect("no panic");
    let mut went = [own, other].map(|attempt| (attempt.live().id(), attempt.how()));
    went.sort_by_key(|(instance, _)| *instance);
    assert_eq!(went, [(ONE, How::Probe), (TWO, How::Share)]);
}

/// The probe gets a good answer while a request from before the ejection fails late: the instance is in, or out for a
/// second offence, and never out for ever or in with a count that is wrong.
pub fn a_good_probe_and_a_late_failure_agree() {
    let (health, settings) = (Arc::new(Health::default()), EjectSettings::default());
    assert!(health.eject(START_NS, &settings));
    let now_ns = health.out_until_ns();
    assert!(health.claim_probe(now_ns, &settings));
    let late = {
        let health = health.clone();
        thread::spawn(move || {
            // As `Routes::attempt_failed` does it.
            health.failed(Failure::Connect, now_ns, &settings)
                && health.standing(now_ns) == Standing::In
                && health.eject(now_ns, &settings)
        })
    };
    assert!(health.succeeded(true, now_ns));
    let again = late.join().expect("no panic");
    assert_eq!(health.ejections(), 1 + u64::from(again));
    assert_eq!(health.is_in(), !again);
    assert!(health.out_until_ns() <= now_ns + settings.max.as_nanos() as u64);
}
