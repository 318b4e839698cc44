//! Services with few users, services that don't come up, and runs that end and begin again.

mod world;

use sim_core::event::Event;
use sim_core::journal::Kind;
use sim_core::machine::Phase;
use sim_core::name::ServerName;
use sim_core::policy::Policy;
use sim_core::workload::Standby;
use world::{World, name};

#[test]
fn few_requests_a_second_teach_capacity_too() {
    let mut world = World::new(1, Policy::default());
    world.run(20, |_| 3.0);
    let learning = world.core.status()[0].waits_for.clone();
    let learning = learning.expect("says what it waits for");
    assert!(learning.contains("of 200 requests"), "{learning}");
    world.run_until(Kind::Steady, 240, 3.0);
    let status = &world.core.status()[0];
    assert_eq!(status.waits_for, None);
    let capacity = status.capacity_rps.expect("known")[1];
    assert!((150.0..250.0).contains(&capacity), "{capacity}");
}

#[test]
fn a_standby_is_warmed_by_few_requests_and_takes_over() {
    let mut world = World::new(2, Policy::default());
    world.standby(Standby::Always);
    world.run_until(Kind::StandbyWarm, 900, 4.0);
    assert_eq!(world.count(Kind::Parity), 1, "{}", world.story());
    assert_eq!(world.count(Kind::Abort), 0, "{}", world.story());
    assert!(world.weight(world.shadow()) <= 500);
    let cpus = world.running[&world.shadow()].cpus;
    assert!(cpus >= 0.25, "{cpus}: less than the first one has");
    let (primary, heir) = (world.primary(), world.shadow());
    world.kill(primary);
    assert_eq!(world.count(Kind::Failover), 1);
    assert_eq!((world.primary(), world.weight(heir)), (heir, 10_000));
    world.assert_no_refusal();
}

#[test]
fn a_standby_that_nearly_nobody_asks_stands_by_unproven() {
    let mut world = World::new(3, Policy::default());
    world.standby(Standby::Always);
    world.run_until(Kind::StandbyWarm, 1_300, 0.3);
    let reason = world.records.last().map(|r| r.reason.clone());
    let reason = reason.expect("a record");
    assert!(reason.contains("unproven"), "{reason}");
    world.run(600, |_| 0.3);
    assert_eq!(world.count(Kind::Abort), 0, "{}", world.story());
    assert_eq!(world.count(Kind::StandbyWarm), 1, "{}", world.story());
    let shadow = world.shadow();
    assert!(world.running.contains_key(&shadow));
}

#[test]
fn a_service_that_dies_at_its_start_is_tried_again_ever_more_rarely_up_to_a_limit() {
    let mut world = World::new(4, Policy::default());
    let mut starts = Vec::new();
    for _ in 0..5 * 600 {
        world.step(10.0);
        let first = world.running.keys().next().copied();
        if let Some(instance) = first {
            starts.push(world.now.as_secs_f64());
            world.kill(instance);
        }
    }
    let pauses: Vec<f64> = starts.windows(2).map(|w| w[1] - w[0]).collect();
    assert!(pauses[1] < 6.0, "{pauses:?}");
    assert!(pauses.windows(2).all(|w| w[1] >= w[0] - 1.0), "{pauses:?}");
    let last = pauses.last().copied().unwrap_or(0.0);
    assert!((59.0..62.0).contains(&last), "{pauses:?}");
    let reason = world
        .records
        .iter()
        .rev()
        .find(|r| r.kind == Kind::Baseline);
    let reason = reason.map(|r| r.reason.clone()).unwrap_or_default();
    assert!(reason.contains("died at their start"), "{reason}");
    // One that lives makes all of that forgotten.
    world.run(70, |_| 10.0);
    let primary = world.primary();
    world.kill(primary);
    let down = world.now.as_secs_f64();
    world.run_until(Kind::Baseline, 10, 10.0);
    assert!(world.now.as_secs_f64() - down < 3.0, "{}", world.story());
}

#[test]
fn a_run_that_is_ended_leaves_no_deaths_and_goes_on_with_what_it_learned() {
    let mut world = World::new(5, Policy::default());
    world.run_until(Kind::Steady, 300, 100.0);
    world.standby(Standby::Always);
    world.run_until(Kind::StandbyWarm, 300, 100.0);
    let known = world.core.status()[0].capacity_rps;
    assert!(known.is_some());
    world.feed(Event::Closing);
    let said = world.records.last().map(|r| (r.kind, r.reason.clone()));
    let (kind, reason) = said.expect("a record");
    assert_eq!(kind, Kind::Operator);
    assert!(reason.contains("SIM ends"), "{reason}");
    // The nodes end their instances and go; ticks go on meanwhile.
    let begun = world.records.len();
    world.running.clear();
    for _ in 0..100 {
        world.step(0.0);
    }
    assert_eq!(world.records.len(), begun, "{}", world.story());
    assert_eq!(
        world
            .core
            .table(&world::workload())
            .map(|t| t.shares().len()),
        Some(0)
    );

    world.core.take_lead(2);
    let up = |world: &mut World, server| {
        let server = name(ServerName::new(server));
        world.feed(Event::ServerUp {
            server,
            running: Vec::new(),
        });
    };
    up(&mut world, "b");
    up(&mut world, "c");
    world.run(3, |_| 0.0);
    assert!(
        world.running.is_empty(),
        "home is only late: {}",
        world.story()
    );
    up(&mut world, "a");
    world.run_until(Kind::StandbyWarm, 120, 100.0);
    assert_eq!(world.running[&world.primary()].server.as_str(), "a");
    let after: Vec<Kind> = world.kinds()[begun..].to_vec();
    assert_eq!(
        after[..2],
        [Kind::Baseline, Kind::Ready],
        "{}",
        world.story()
    );
    assert!(!after.contains(&Kind::Died) && !after.contains(&Kind::Frozen));
    assert_eq!(world.core.status()[0].phase, Phase::Steady);
    world.assert_no_refusal();
}

#[test]
fn a_standby_that_stands_by_unproven_proves_itself_before_it_takes_over() {
    let mut world = World::new(6, Policy::default());
    world.standby(Standby::Always);
    world.run_until(Kind::StandbyWarm, 1_300, 0.3);
    let quiet = world.records.len();
    // Up to three quarters of what the primary carries, and on.
    for at in 0..5 * 400 {
        world.step((f64::from(at) / 5.0).min(300.0));
        if world.count(Kind::Ramp) > 0 {
            break;
        }
    }
    let then: Vec<Kind> = world.kinds()[quiet..].to_vec();
    let at = |kind| then.iter().position(|k| *k == kind);
    let (Some(warming), Some(parity), Some(ramp)) =
        (at(Kind::Warming), at(Kind::Parity), at(Kind::Ramp))
    else {
        panic!("{}", world.story());
    };
    assert!(warming < parity && parity < ramp, "{}", world.story());
}

#[test]
fn a_proof_that_began_with_few_requests_is_not_late_because_more_come() {
    let mut world = World::new(7, Policy::default());
    world.standby(Standby::Always);
    world.run_until(Kind::Warming, 60, 4.0);
    // Longer than a proof may take where there are requests enough.
    world.run(150, |_| 4.0);
    assert_eq!(world.count(Kind::Parity), 0, "{}", world.story());
    world.run_until(Kind::StandbyWarm, 60, 60.0);
    assert_eq!(world.count(Kind::Abort), 0, "{}", world.story());
}
