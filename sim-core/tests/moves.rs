//! Whole moves of the decision core, in a small world.

mod world;

use sim_core::command::Command;
use sim_core::event::Event;
use sim_core::journal::Kind;
use sim_core::machine::{Core, Phase};
use sim_core::policy::Policy;
use sim_core::workload::Standby;
use world::World;

/// Capacity of the first instance at 80 % is 200/s.
fn ramp(at: f64) -> f64 {
    let season = 1.0 + 0.08 * (at / 20.0 * std::f64::consts::TAU).sin();
    let trend = 125.0 + (at - 130.0).max(0.0) * 0.9;
    trend.min(240.0) * season
}

fn position(kinds: &[Kind], kind: Kind) -> usize {
    kinds
        .iter()
        .position(|&k| k == kind)
        .unwrap_or_else(|| panic!("no {kind:?} in {kinds:?}"))
}

#[test]
fn a_forecast_moves_the_service_before_it_saturates() {
    for seed in 1..=5 {
        let mut world = World::new(seed, Policy::default());
        world.run(330, ramp);
        world.assert_no_refusal();
        let kinds = world.kinds();
        let order = [
            Kind::Baseline,
            Kind::Ready,
            Kind::Steady,
            Kind::Trigger,
            Kind::Placement,
            Kind::Creating,
            Kind::Warming,
            Kind::Parity,
            Kind::Ramp,
            Kind::Draining,
            Kind::Baking,
            Kind::Reclaimed,
        ];
        let positions: Vec<usize> = order.iter().map(|&k| position(&kinds, k)).collect();
        assert!(positions.is_sorted(), "seed {seed}: {kinds:?}");
        let trigger = &world.records[position(&kinds, Kind::Trigger)];
        assert!(trigger.reason.contains("forecast"), "{}", trigger.reason);
        assert_eq!(
            world.count(Kind::Reclaimed),
            1,
            "one move, no thrash:\n{}",
            world.story()
        );
        assert_eq!(world.running.len(), 1);
        let server = &world.running.values().next().expect("one").server;
        assert_eq!(server.as_str(), "b", "the cheaper of the two that fit");
    }
}

#[test]
fn nothing_moves_under_constant_load() {
    for seed in 1..=10 {
        let mut world = World::new(seed, Policy::default());
        world.run(300, |at| {
            120.0 * (1.0 + 0.06 * (at / 20.0 * std::f64::consts::TAU).sin())
        });
        world.assert_no_refusal();
        assert_eq!(
            world.kinds(),
            [Kind::Baseline, Kind::Ready, Kind::Steady],
            "seed {seed}"
        );
    }
}

#[test]
fn without_a_forecast_only_real_saturation_moves_it() {
    let mut world = World::new(
        1,
        Policy {
            forecast: false,
            ..Policy::default()
        },
    );
    world.run(150, |_| 160.0);
    assert_eq!(world.count(Kind::Trigger), 0);
    world.run_until(Kind::Trigger, 20, 260.0);
    let trigger = world.records.last_mut().map(|r| r.reason.clone());
    assert!(
        world
            .records
            .iter()
            .any(|r| r.reason.contains("reactive floor")),
        "{trigger:?}"
    );
}

#[test]
fn a_share_is_never_given_ahead_of_proof() {
    let mut world = World::new(3, Policy::default());
    let mut at = 0.0;
    while world.count(Kind::Parity) == 0 && at < 300.0 {
        world.step(ramp(at));
        at += 0.2;
        let shadow = world.core.status()[0].shadow;
        let given = shadow.map_or(0, |id| world.weight(id));
        assert!(
            given <= 500 || world.count(Kind::Parity) > 0,
            "{given} bp before parity"
        );
    }
    assert_eq!(world.count(Kind::Parity), 1);
}

#[test]
fn a_worse_shadow_is_given_up_and_the_primary_gets_all_back() {
    let mut world = World::new(4, Policy::default());
    let mut at = 0.0;
    while world.count(Kind::Creating) == 0 {
        world.step(ramp(at));
        at += 0.2;
        assert!(at < 300.0);
    }
    let (primary, shadow) = (world.primary(), world.shadow());
    world.slow.insert(shadow, 5.0);
    world.run_until(Kind::Abort, 60, 150.0);
    assert_eq!(world.weight(primary), 10_000);
    world.run_until(Kind::Reclaimed, 40, 150.0);
    assert!(!world.running.contains_key(&shadow) && world.running.contains_key(&primary));
    world.assert_no_refusal();
}

/// A standby is warm; then the primary dies.
#[test]
fn a_warm_standby_takes_over_at_once_and_the_next_one_is_built() {
    let mut world = World::new(5, Policy::default());
    world.run(120, |_| 120.0);
    world.standby(Standby::Always);
    world.run_until(Kind::StandbyWarm, 60, 120.0);
    let (primary, shadow) = (world.primary(), world.shadow());
    world.kill(primary);
    assert_eq!(world.count(Kind::Failover), 1, "in the same step");
    assert_eq!(world.primary(), shadow);
    assert_eq!(world.weight(shadow), 10_000);
    let fenced = |c: &Command| matches!(c, Command::Stop { instance, .. } if *instance == primary);
    assert!(world.commands.iter().any(fenced), "the dead one is fenced");
    world.run_until(Kind::StandbyWarm, 90, 120.0);
    world.assert_no_refusal();
}

#[test]
fn a_standby_is_built_right_after_a_move_though_moves_have_to_pause() {
    let mut world = World::new(
        11,
        Policy {
            move_pause_ms: 600_000,
            ..Policy::default()
        },
    );
    let mut at = 0.0;
    while world.count(Kind::Reclaimed) == 0 {
        world.step(ramp(at));
        at += 0.2;
        assert!(at < 400.0, "{}", world.story());
    }
    world.standby(Standby::Always);
    world.run_until(Kind::StandbyWarm, 60, ramp(at));
    world.assert_no_refusal();
}

#[test]
fn a_primary_that_dies_without_a_standby_is_started_anew() {
    let mut world = World::new(6, Policy::default());
    world.run(60, |_| 120.0);
    let first = world.primary();
    world.kill(first);
    assert!(
        world.table.as_ref().is_some_and(|t| t.shares().is_empty()),
        "nothing serves"
    );
    world.run_until(Kind::Ready, 30, 120.0);
    assert_ne!(world.primary(), first);
    assert_eq!(world.weight(world.primary()), 10_000);
    world.assert_no_refusal();
}

/// Kills primary, shadow or the retiring one in every phase of a move: someone healthy always
/// serves everything within a while, and no rule is broken.
#[test]
fn any_death_in_any_phase_leaves_the_service_served() {
    let phases = [
        Phase::Creating,
        Phase::Warming,
        Phase::Shifting,
        Phase::Draining,
        Phase::Baking,
    ];
    for phase in phases {
        for victim in 0..3 {
            let mut world = World::new(7, Policy::default());
            let mut at = 0.0;
            while world.core.status()[0].phase != phase {
                world.step(ramp(at));
                at += 0.2;
                assert!(at < 400.0, "{phase:?} is never reached");
            }
            let status = world.core.status().remove(0);
            let ids = [status.primary, status.shadow, status.retiring];
            let Some(id) = ids[victim] else { continue };
            world.kill(id);
            world.run(60, |_| 150.0);
            let table = world.table.clone().expect("a table");
            let served: u32 = table
                .shares()
                .iter()
                .filter(|s| world.running.get(&s.instance).is_some_and(|r| r.ready))
                .map(|s| u32::from(s.weight_bp))
                .sum();
            assert_eq!(
                served,
                10_000,
                "{phase:?}, victim {victim}: {:?}",
                world.kinds()
            );
            world.assert_no_refusal();
        }
    }
}

#[test]
fn missing_telemetry_freezes_planned_moves_until_it_is_back() {
    let mut world = World::new(8, Policy::default());
    world.run(95, ramp);
    world.mute = true;
    world.run(60, |_| 300.0);
    assert_eq!(world.count(Kind::Frozen), 1);
    assert_eq!(world.count(Kind::Trigger), 0, "{:?}", world.kinds());
    world.mute = false;
    world.run(5, |_| 120.0);
    assert_eq!(world.count(Kind::Thawed), 1);
    world.assert_no_refusal();
}

#[test]
fn a_snapshot_and_the_inputs_since_give_the_same_commands_bit_for_bit() {
    let mut world = World::new(9, Policy::default());
    world.run(100, ramp);
    let snapshot = serde_json::to_value(&world.core).expect("snapshot");
    let (inputs, commands) = (world.inputs.len(), world.commands.len());
    world.run(150, |at| ramp(at + 100.0));
    let mut restored: Core = serde_json::from_value(snapshot).expect("restored");
    let mut replayed = Vec::new();
    for (at, event) in &world.inputs[inputs..] {
        replayed.extend(restored.step(*at, event.clone()).commands);
    }
    assert!(!replayed.is_empty());
    // The world carries a command out inside the step that gave it, so order may differ by
    // nesting; what was commanded may not.
    let text = |c: &Command| format!("{c:?}");
    let mut expected: Vec<String> = world.commands[commands..].iter().map(text).collect();
    let mut found: Vec<String> = replayed.iter().map(text).collect();
    expected.sort();
    found.sort();
    assert_eq!(found, expected);
    assert_eq!(restored, world.core);
}

#[test]
fn a_node_that_comes_back_without_an_instance_tells_of_its_death() {
    let mut world = World::new(10, Policy::default());
    world.run(30, |_| 120.0);
    let primary = world.primary();
    let server = world.running.remove(&primary).expect("running").server;
    world.feed(Event::ServerDown(server.clone()));
    world.feed(Event::ServerUp {
        server,
        running: Vec::new(),
    });
    assert_eq!(world.count(Kind::Died), 1);
    world.run_until(Kind::Ready, 30, 120.0);
    world.assert_no_refusal();
}
