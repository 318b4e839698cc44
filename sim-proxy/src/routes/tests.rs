use super::*;
use crate::live::Outcome;
use sim_core::table::Share;
use std::sync::atomic::AtomicBool;

fn name() -> WorkloadName {
    WorkloadName::new("web").expect("valid")
}

fn table(epoch: u64, generation: u64, weights: &[(u64, u16)]) -> WeightTable {
    let shares = weights
        .iter()
        .map(|&(id, weight_bp)| Share {
            instance: InstanceId(id),
            address: ([127, 0, 0, 1], 1_000 + id as u16).into(),
            weight_bp,
            ready: true,
        })
        .collect();
    WeightTable::new(name(), Version { epoch, generation }, shares).expect("a table")
}

fn routes() -> Routes {
    Routes::new(name(), EjectSettings::default())
}

const FIRST: Entry = Entry {
    not: None,
    may_probe: true,
    first: true,
    session: None,
};

#[test]
fn an_older_table_never_overwrites_a_newer_one() {
    let routes = routes();
    assert_eq!(routes.apply(&table(2, 1, &[(1, 10_000)])), Ok(true));
    assert_eq!(routes.apply(&table(2, 1, &[(1, 10_000)])), Ok(false));
    for older in [table(1, 99, &[(2, 10_000)]), table(2, 0, &[(2, 10_000)])] {
        assert!(matches!(routes.apply(&older), Err(Refused::Older { .. })));
    }
    assert_eq!(routes.refused(), 2);
    assert!(routes.snapshot().upstream(InstanceId(1)).is_some());
}

#[test]
fn a_table_of_another_workload_is_refused() {
    let other = WorkloadName::new("other").expect("valid");
    let table = WeightTable::new(
        other,
        Version {
            epoch: 9,
            generation: 9,
        },
        vec![],
    );
    assert!(matches!(
        routes().apply(&table.expect("a table")),
        Err(Refused::Foreign(_))
    ));
}

#[test]
fn state_is_carried_over_by_id_and_dropped_only_when_asked() {
    let routes = routes();
    routes
        .apply(&table(1, 1, &[(1, 10_000), (2, 0)]))
        .expect("applied");
    let attempt = routes.enter(FIRST).expect("an instance");
    attempt.live().ended(true, Outcome::Ok);
    routes.apply(&table(1, 2, &[(2, 10_000)])).expect("applied");
    let removed = routes.known().into_iter().find(|l| l.id() == InstanceId(1));
    assert_eq!(removed.expect("still known").totals().in_flight, 1);
    routes
        .apply(&table(1, 3, &[(1, 10_000), (2, 0)]))
        .expect("applied");
    routes.forget(InstanceId(1));
    let totals = routes
        .snapshot()
        .upstream(InstanceId(1))
        .expect("listed")
        .live
        .totals();
    assert_eq!((totals.in_flight, totals.first.ok), (1, 1));
    drop(attempt);
    routes.apply(&table(1, 4, &[(2, 10_000)])).expect("applied");
    routes.forget(InstanceId(1));
    assert_eq!(routes.known().len(), 1);
}

#[test]
fn the_last_healthy_instance_is_never_ejected() {
    let routes = routes();
    routes
        .apply(&table(1, 1, &[(1, 10_000), (2, 0)]))
        .expect("applied");
    let first = routes.enter(FIRST).expect("an instance");
    assert_eq!(first.live().id(), InstanceId(1));
    routes.attempt_failed(&first, Failure::Connect);
    assert!(!first.live().health().is_in());
    let second = routes.enter(FIRST).expect("the spare");
    assert_eq!(
        (second.live().id(), second.how()),
        (InstanceId(2), How::Spare)
    );
    routes.attempt_failed(&second, Failure::Connect);
    assert!(second.live().health().is_in());
}

#[test]
fn no_table_means_no_instance() {
    assert!(routes().enter(FIRST).is_none());
    let routes = routes();
    routes
        .apply(&table(1, 1, &[]))
        .expect("an empty table is a table");
    assert!(routes.enter(FIRST).is_none());
}

/// The protocol of the module: once a table without instance 1 is published and in_flight was
/// read as 0, no worker enters there any more.
#[test]
fn a_drained_instance_stays_drained() {
    let routes = Arc::new(routes());
    let stop = Arc::new(AtomicBool::new(false));
    routes.apply(&table(1, 0, &[(1, 10_000)])).expect("applied");
    let workers: Vec<_> = (0..2)
        .map(|_| {
            let (routes, stop) = (routes.clone(), stop.clone());
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    drop(routes.enter(FIRST));
                }
            })
        })
        .collect();
    for round in 0..2_000 {
        let (out, into) = if round % 2 == 0 { (1, 2) } else { (2, 1) };
        let live = routes
            .snapshot()
            .upstream(InstanceId(out))
            .expect("listed")
            .live
            .clone();
        routes
            .apply(&table(2, round, &[(into, 10_000)]))
            .expect("applied");
        while live.totals().in_flight > 0 {
            std::hint::spin_loop();
        }
        let last_pick_ns = live.totals().last_pick_ns;
        for _ in 0..50 {
            assert_eq!(live.totals().last_pick_ns, last_pick_ns);
        }
        routes.forget(InstanceId(out));
    }
    stop.store(true, Ordering::Relaxed);
    for worker in workers {
        worker.join().expect("no panic");
    }
}

#[test]
fn no_instance_gets_more_than_it_may_have_while_many_ask() {
    let routes = Arc::new(routes().with_room(3));
    routes
        .apply(&table(1, 1, &[(1, 9_000), (2, 1_000), (3, 0)]))
        .expect("applied");
    let workers: Vec<_> = (0..4)
        .map(|_| {
            let routes = routes.clone();
            std::thread::spawn(move || {
                let mut entered = Vec::new();
                for _ in 0..5 {
                    entered.extend(routes.admit(FIRST));
                }
                entered
            })
        })
        .collect();
    let mut ends: Vec<_> = workers
        .into_iter()
        .flat_map(|worker| worker.join().expect("no panic"))
        .collect();
    assert!(ends.len() <= 9, "{}", ends.len());
    // Who met another that was just being turned away may have been turned away as well.
    let last = loop {
        match routes.admit(FIRST) {
            Ok(attempt) => ends.push(attempt),
            Err(none) => break none,
        }
    };
    assert_eq!(last, NoEntry::Full);
    let known = routes.known();
    let in_flight: Vec<_> = known.iter().map(|live| live.totals().in_flight).collect();
    assert_eq!(in_flight, [3, 3, 3]);
    assert!(!routes.has_room_beside(InstanceId(1)));
    drop(ends);
    assert!(routes.has_room_beside(InstanceId(1)));
    assert!(routes.admit(FIRST).is_ok());
}
