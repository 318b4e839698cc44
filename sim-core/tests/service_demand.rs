//! Costs of requests are learned from what instances used, and neither saturation nor a move of SIM's own teaches
//! a ceiling that isn't there.

use proptest::prelude::*;
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;
use sim_core::forecast::ForecastStep;
use sim_core::forecast::service::{Load, Sample, ServiceModel};

const WINDOW: f64 = 15.0;
const BASE: f64 = 0.15;
const COST: f64 = 0.004;

/// A service of 4 ms a request and 0.15 CPUs of base load, at reference speed, on a server with a limit.
struct World {
    random: Pcg64,
    speed: f64,
    cpus: f64,
    flags: bool,
}

impl World {
    fn new(flags: bool) -> Self {
        Self {
            random: Pcg64::seed_from_u64(7),
            speed: 1.0,
            cpus: 2.0,
            flags,
        }
    }

    /// CPU seconds that are offered in a window, and requests in it.
    fn offered(&mut self, rate: f64) -> (f64, f64) {
        let requests = rate * WINDOW;
        let noise: f64 = (0..12).map(|_| self.random.random::<f64>() - 0.5).sum();
        let cost = COST * (requests + 1.5 * noise * requests.sqrt());
        ((BASE * WINDOW + cost) / self.speed, requests)
    }

    fn sample(&mut self, rate: f64) -> Sample {
        let (wanted, requests) = self.offered(rate);
        let limit = self.cpus * WINDOW;
        let is_saturated = wanted >= 0.97 * limit;
        Sample {
            seconds: WINDOW,
            requests,
            used: wanted.min(limit),
            speed: self.speed,
            load: if is_saturated && self.flags {
                Load::Saturated
            } else {
                Load::Free
            },
        }
    }
}

/// Rates between 50 and 250 a second.
fn wave(i: u32) -> f64 {
    150.0 + 100.0 * (f64::from(i) * 0.05).sin()
}

fn learned(world: &mut World, windows: u32) -> ServiceModel {
    let mut model = ServiceModel::new();
    for i in 0..windows {
        model.observe(&world.sample(wave(i)));
    }
    model
}

fn demand_at(model: &ServiceModel, rate: f64) -> f64 {
    model.predict(rate, 0.0, 1.0).expect("known").mean
}

#[test]
fn base_load_and_cost_are_told_apart_and_the_band_holds_what_it_promises() {
    let mut world = World::new(true);
    let mut model = learned(&mut world, 400);
    let (base, cost) = model.costs().expect("known");
    assert!((base / BASE - 1.0).abs() < 0.15, "{base}");
    assert!((cost / COST - 1.0).abs() < 0.03, "{cost}");
    for i in 0..4000 {
        model.observe(&world.sample(wave(i)));
    }
    let coverage = model.coverage_90().expect("compared");
    assert!((0.85..=0.96).contains(&coverage), "{coverage}");
}

#[test]
fn saturation_teaches_no_false_ceiling_when_it_is_flagged_and_does_when_it_is_not() {
    // Twice what the server carries, for an hour.
    let storm = 900.0;
    let truth = BASE + COST * storm;
    let after = |flags: bool| {
        let mut world = World::new(flags);
        let mut model = learned(&mut world, 400);
        for _ in 0..240 {
            model.observe(&world.sample(storm));
        }
        model
    };
    let flagged = after(true);
    let asked = demand_at(&flagged, storm);
    assert!((asked / truth - 1.0).abs() < 0.1, "{asked} for {truth}");
    assert_eq!(flagged.counts().censored, 240);
    let blind = demand_at(&after(false), storm);
    assert!(
        blind < 0.65 * truth,
        "a saturated server looks like enough: {blind} for {truth}"
    );
}

#[test]
fn a_service_that_is_saturated_more_often_than_not_is_not_underrated() {
    let mut world = World::new(true);
    let mut model = ServiceModel::new();
    for i in 0..600 {
        let rate = if i % 3 == 0 { 200.0 } else { 700.0 };
        model.observe(&world.sample(rate));
    }
    let asked = demand_at(&model, 700.0);
    let truth = BASE + COST * 700.0;
    assert!(
        asked > 0.97 * truth && asked < 1.4 * truth,
        "{asked} for {truth}"
    );
}

#[test]
fn lower_bounds_raise_what_was_believed_too_low() {
    // Requests became three times as costly, and the server is saturated since.
    let mut world = World::new(true);
    let mut model = learned(&mut world, 400);
    let before = demand_at(&model, 300.0);
    for _ in 0..100 {
        model.observe(&Sample {
            seconds: WINDOW,
            requests: 300.0 * WINDOW,
            used: 2.0 * WINDOW,
            speed: 1.0,
            load: Load::Saturated,
        });
    }
    let after = demand_at(&model, 300.0);
    assert!(before < 1.5 && after >= 1.9, "{before} {after}");
}

#[test]
fn a_move_to_a_server_of_half_the_speed_is_foretold_and_changes_no_cost() {
    let mut world = World::new(true);
    let mut model = learned(&mut world, 400);
    let costs = model.costs().expect("known");
    let foretold = model.predict(100.0, 0.0, 0.5).expect("known");
    let (low, high) = (foretold.quantile(0.005), foretold.quantile(0.995));

    model.moved();
    world.speed = 0.5;
    world.cpus = 4.0;
    let first = world.sample(100.0);
    let used = first.used / WINDOW;
    assert!((low..=high).contains(&used), "{used} not in {low}..{high}");
    for i in 0..400 {
        model.observe(&world.sample(wave(i)));
    }
    let after = model.costs().expect("known");
    assert!(
        (after.1 / costs.1 - 1.0).abs() < 0.03,
        "{costs:?} {after:?}"
    );
    assert_eq!(model.counts().shifts, 0);
}

#[test]
fn windows_of_a_move_are_left_out() {
    let mut world = World::new(true);
    let mut model = learned(&mut world, 400);
    let before = model.costs();
    for _ in 0..50 {
        // Caches are cold: three times the cost.
        let cold = world.sample(100.0);
        model.observe(&Sample {
            used: 3.0 * cold.used,
            load: Load::Settling,
            ..cold
        });
    }
    assert_eq!(model.costs(), before);
    assert_eq!(model.counts().settling, 50);
}

#[test]
fn a_new_version_of_the_service_is_noticed_and_relearned() {
    let mut world = World::new(true);
    let mut model = learned(&mut world, 400);
    for i in 0..100 {
        let sample = world.sample(wave(i) * 0.8);
        model.observe(&Sample {
            used: 0.5 * sample.used,
            ..sample
        });
    }
    let asked = demand_at(&model, 150.0);
    let truth = 0.5 * (BASE + COST * 150.0);
    assert!((asked / truth - 1.0).abs() < 0.05, "{asked} for {truth}");
    assert!(model.counts().shifts >= 1);
}

#[test]
fn a_forecast_of_the_rate_becomes_one_of_cpus_whose_bands_hold() {
    let mut world = World::new(true);
    let model = learned(&mut world, 400);
    // A rate that is normal with a deviation of 20 around 200.
    let z = [-1.645, -1.2816, 0.0, 1.2816, 1.645, 2.3263, 3.0902];
    let rate = ForecastStep {
        mean: 200.0,
        quantiles: z.map(|z| 200.0 + 20.0 * z),
    };
    let cpus = model.carry(&rate, 1.0).expect("known");
    assert!(cpus.quantiles.windows(2).all(|w| w[0] < w[1]), "{cpus:?}");
    let (mut inside, mut above) = (0, 0);
    for _ in 0..4000 {
        let noise: f64 = (0..12).map(|_| world.random.random::<f64>() - 0.5).sum();
        let used = world.offered(200.0 + 20.0 * noise).0 / WINDOW;
        inside += i32::from((cpus.quantiles[0]..=cpus.quantiles[4]).contains(&used));
        above += i32::from(used > cpus.quantiles[5]);
    }
    let share = f64::from(inside) / 4000.0;
    assert!((share - 0.9).abs() < 0.04, "{share}");
    assert!(above < 80, "{above}");
    let wide = model.predict(200.0, 400.0, 1.0).expect("known");
    assert!((wide.quantile(0.95) / cpus.quantiles[4] - 1.0).abs() < 0.02);
}

#[test]
fn where_the_rate_never_changed_another_rate_is_foretold_with_less_confidence() {
    let mut world = World::new(true);
    let mut model = ServiceModel::new();
    for _ in 0..400 {
        model.observe(&world.sample(150.0));
    }
    let relative = |rate: f64| {
        let p = model.predict(rate, 0.0, 1.0).expect("known");
        p.variance.sqrt() / p.mean
    };
    assert!(relative(600.0) > 2.0 * relative(150.0));
}

proptest! {
    #[test]
    fn nothing_makes_a_model_say_what_is_no_number(
        samples in prop::collection::vec((any::<f64>(), any::<f64>(), any::<f64>(), 0..4_u8), 0..200),
        honest in prop::collection::vec((1.0..1e6_f64, 0.0..1e9_f64, 0.0..1e12_f64, 0..4_u8), 0..200),
    ) {
        let mut model = ServiceModel::new();
        for (seconds, requests, used, kind) in samples.into_iter().chain(honest) {
            let load = [Load::Free, Load::Free, Load::Saturated, Load::Settling][usize::from(kind)];
            model.observe(&Sample { seconds, requests, used, speed: 1.0, load });
        }
        if let Some(p) = model.predict(123.0, 45.0, 0.7) {
            prop_assert!(p.mean.is_finite() && p.mean >= 0.0, "{p:?}");
            prop_assert!(p.variance.is_finite() && p.variance >= 0.0, "{p:?}");
        }
        let bytes = postcard::to_allocvec(&model).expect("state is bytes");
        let again: ServiceModel = postcard::from_bytes(&bytes).expect("bytes are state");
        prop_assert_eq!(model, again);
    }
}
