//! What goes wrong in the middle of a move, in a small world.

mod world;

use sim_core::event::Event;
use sim_core::journal::Kind;
use sim_core::machine::Phase;
use sim_core::name::InstanceId;
use sim_core::policy::Policy;
use sim_core::time::Time;
use sim_core::workload::Standby;
use world::{World, workload};

/// Capacity of the first instance at 80 % is 200/s.
fn ramp(at: f64) -> f64 {
    let season = 1.0 + 0.08 * (at / 20.0 * std::f64::consts::TAU).sin();
    (125.0 + (at - 130.0).max(0.0) * 0.9).min(240.0) * season
}

/// Runs along the ramp until a record of `kind` is written.
fn ramp_until(world: &mut World, kind: Kind) {
    let mut at = 0.0;
    while world.count(kind) == 0 {
        world.step(ramp(at));
        at += 0.2;
        assert!(at < 330.0, "no {kind:?}:\n{}", world.story());
    }
}

#[test]
fn a_standby_that_is_too_small_for_the_forecast_is_replaced_by_a_larger_one() {
    let mut world = World::new(1, Policy::default());
    // Asked for once demand is known: it is as large as that needs.
    let steady = 80.0;
    world.run(steady as u32, ramp);
    assert_eq!(world.count(Kind::Steady), 1, "{}", world.story());
    world.standby(Standby::Always);
    world.run(260, |at| ramp(at + steady));
    world.assert_no_refusal();
    let replaced = world
        .records
        .iter()
        .find(|r| r.reason.contains("too small"));
    assert_eq!(
        replaced.map(|r| r.kind),
        Some(Kind::Draining),
        "{}",
        world.story()
    );
    let primary = &world.running[&world.primary()];
    assert!(primary.cpus > 0.25 * 1.1, "{}", world.story());
    assert!(world.count(Kind::Trigger) < 8, "{}", world.story());
}

#[test]
fn the_old_primary_stays_until_the_proxy_has_taken_the_last_table_over() {
    let mut world = World::new(2, Policy::default());
    ramp_until(&mut world, Kind::Draining);
    world.deaf = true;
    let timeout_seconds = Policy::default().drain_timeout_ms as u32 / 1_000;
    world.run(3 * timeout_seconds, |_| 200.0);
    assert_eq!(world.running.len(), 2, "{}", world.story());
    assert_eq!(world.count(Kind::Baking), 0);
    world.deaf = false;
    world.run_until(Kind::Reclaimed, 20, 200.0);
}

/// The primary right after a move, and the one before it.
fn new_and_old(world: &World) -> (InstanceId, InstanceId) {
    let old = world.running.keys().copied().min().expect("two run");
    assert_ne!(world.primary(), old);
    (world.primary(), old)
}

#[test]
fn an_undo_gives_the_old_primary_no_more_than_it_carries() {
    let mut world = World::new(3, Policy::default());
    ramp_until(&mut world, Kind::Draining);
    let (new, old) = new_and_old(&world);
    world.run(6, |_| 300.0);
    world.failing.insert(new, 0.2);
    world.run_until(Kind::StepBack, 20, 300.0);
    let held = world.records.last().map(|r| r.reason.clone()).unwrap();
    assert!(
        held.contains("undo") && held.contains("both are held"),
        "{held}"
    );
    assert_eq!(world.primary(), old);
    for _ in 0..300 {
        world.step(300.0);
        let given = world.weight(old);
        assert!(
            (1_000..8_000).contains(&given),
            "{given}\n{}",
            world.story()
        );
    }
    world.assert_no_refusal();
}

#[test]
fn an_undo_gives_everything_back_to_an_old_primary_that_carries_it() {
    let mut world = World::new(3, Policy::default());
    ramp_until(&mut world, Kind::Draining);
    let (new, old) = new_and_old(&world);
    world.failing.insert(new, 0.2);
    world.run_until(Kind::Abort, 20, 120.0);
    assert_eq!((world.primary(), world.weight(old)), (old, 10_000));
    world.run_until(Kind::Reclaimed, 40, 120.0);
    assert!(!world.running.contains_key(&new));
    world.assert_no_refusal();
}

#[test]
fn a_shadow_that_nobody_sees_gets_no_more_traffic_until_it_is_seen_again() {
    let mut world = World::new(4, Policy::default());
    ramp_until(&mut world, Kind::Parity);
    let shadow = world.shadow();
    world.silent = Some(shadow);
    world.run_until(Kind::Frozen, 10, 200.0);
    let given = world.weight(shadow);
    world.run(30, |_| 200.0);
    assert_eq!(world.weight(shadow), given, "{}", world.story());
    world.silent = None;
    world.run_until(Kind::Reclaimed, 60, 200.0);
    world.assert_no_refusal();
}

#[test]
fn a_shadow_that_is_never_seen_again_is_given_up() {
    let mut world = World::new(4, Policy::default());
    ramp_until(&mut world, Kind::Parity);
    let (primary, shadow) = (world.primary(), world.shadow());
    world.silent = Some(shadow);
    let timeout_seconds = Policy::default().phase_timeout_ms as u32 / 1_000;
    world.run_until(Kind::Abort, timeout_seconds + 10, 150.0);
    assert_eq!(world.weight(primary), 10_000);
    world.run_until(Kind::Reclaimed, 40, 150.0);
    assert!(!world.running.contains_key(&shadow));
    world.assert_no_refusal();
}

#[test]
fn a_shadow_that_is_ready_while_nothing_is_seen_waits_for_the_thaw() {
    let mut world = World::new(5, Policy::default());
    ramp_until(&mut world, Kind::Creating);
    let shadow = world.shadow();
    world.mute = true;
    world.run_until(Kind::Frozen, 10, 190.0);
    world.run(5, |_| 190.0);
    assert!(world.running[&shadow].ready);
    world.mute = false;
    world.run_until(Kind::Reclaimed, 90, 190.0);
    assert_eq!(world.primary(), shadow);
    world.assert_no_refusal();
}

#[test]
fn time_that_steps_back_stands_still() {
    let mut world = World::new(6, Policy::default());
    world.run(5, |_| 100.0);
    let before = world.core.clone();
    let event = Event::SetStandby {
        workload: workload(),
        standby: Standby::None,
    };
    let outcome = world.core.step(Time(1), event.clone());
    assert_eq!(outcome.records[0].at, world.now);
    // A restored core knows the time as well.
    let snapshot = serde_json::to_value(&before).unwrap();
    let mut restored: sim_core::machine::Core = serde_json::from_value(snapshot).unwrap();
    assert_eq!(restored.step(Time(1), event).records[0].at, world.now);
}

#[test]
fn another_step_length_starts_the_forecast_anew() {
    let mut world = World::new(7, Policy::default());
    world.run(120, |_| 120.0);
    assert_eq!(world.core.status()[0].phase, Phase::Steady);
    let servers = Vec::new();
    assert!(world.core.status()[0].calibrated);
    let policy = Policy {
        step_ms: 500,
        ..Policy::default()
    };
    world.core.reconfigure(policy, servers, Vec::new());
    assert!(!world.core.status()[0].calibrated);
}
