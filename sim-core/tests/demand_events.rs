//! What is known beforehand is foreseen: with the schedule, events are no surprise and days without one are none either.

use sim_core::forecast::LEVELS;
use sim_core::forecast::demand::{DemandConfig, DemandForecaster, ScheduledEvent};

const INTERVAL: u32 = 900;
const DAY: u64 = 96;
/// Steps ahead that are looked at: two hours.
const LEAD: usize = 8;

fn mixed(x: u64) -> u64 {
    let x = (x + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// First step of the event of a day, on about every second day, at any hour from 8 to 20.
fn event_of(day: u64) -> Option<u64> {
    let x = mixed(day);
    x.is_multiple_of(2).then(|| day * DAY + 32 + (x >> 8) % 48)
}

fn is_event(t: u64) -> bool {
    event_of(t / DAY).is_some_and(|start| (start..start + 8).contains(&t))
}

/// A day's wave with noise; three times as much for the two hours of an event.
fn value(t: u64) -> f64 {
    let day = (std::f64::consts::TAU * (t % DAY) as f64 / DAY as f64).cos();
    let noise = (mixed(t) >> 40) as f64 / 16_777_216.0;
    let base = 100.0 - 30.0 * day + 10.0 * noise;
    if is_event(t) { 3.0 * base } else { base }
}

fn pinball(y: f64, quantiles: &[f64; 7]) -> f64 {
    let loss = |(q, level): (&f64, f64)| (level * (y - q)).max((level - 1.0) * (y - q));
    quantiles.iter().zip(LEVELS).map(loss).sum()
}

/// A forecaster that has seen nothing but, perhaps, the schedule.
fn forecaster(with_events: bool) -> DemandForecaster {
    let mut f = DemandForecaster::new(DemandConfig {
        interval_s: INTERVAL,
        horizon_steps: 12,
        ..DemandConfig::default()
    });
    let clock = |t: u64| 1_700_000_100 + t as i64 * i64::from(INTERVAL);
    f.set_clock(clock(0));
    if with_events {
        for day in 0..35 {
            if let Some(start) = event_of(day) {
                let event = ScheduledEvent {
                    start_s: clock(start),
                    end_s: clock(start + 8),
                    intensity: 1.0,
                    kind: 3,
                    every_s: None,
                };
                f.schedule(event).expect("there is room");
            }
        }
    }
    f
}

/// Loss two hours ahead at targets within events and at others, after two weeks.
fn losses(with_events: bool) -> [f64; 2] {
    let mut f = forecaster(with_events);
    let (mut sums, mut counts) = ([0.0; 2], [0.0; 2]);
    for t in 0..35 * DAY {
        f.observe(Some(value(t)));
        if t >= 14 * DAY {
            let target = t + LEAD as u64;
            let place = usize::from(!is_event(target));
            sums[place] += pinball(value(target), &f.forecast(LEAD).quantiles);
            counts[place] += 1.0;
        }
    }
    [sums[0] / counts[0], sums[1] / counts[1]]
}

#[test]
fn a_schedule_foretells_events_and_the_days_without_one() {
    let (with, without) = (losses(true), losses(false));
    assert!(with[0] < 0.3 * without[0], "within: {with:?} {without:?}");
    assert!(with[1] < 0.9 * without[1], "outside: {with:?} {without:?}");
}

/// Mean chance of a crossing within two hours, an hour before events.
fn foretold(with_events: bool) -> f64 {
    // Nothing but events exceeds this.
    let threshold = 200.0;
    let mut f = forecaster(with_events);
    let (mut sum, mut count) = (0.0, 0.0);
    for t in 0..35 * DAY {
        f.observe(Some(value(t)));
        if t < 14 * DAY || event_of(t / DAY) != Some(t + 5) {
            continue;
        }
        sum += f.probability_of_any_above(threshold, LEAD);
        count += 1.0;
        let (mut most, mut all, mut before) = (0.0_f64, 0.0, 0.0);
        let by_step: Vec<f64> = (1..=f.horizon())
            .map(|step| f.probability_of_any_above(threshold, step))
            .collect();
        for (step, &any) in (1..).zip(&by_step).filter(|_| with_events) {
            let alone = f.forecast(step).probability_above(threshold);
            (most, all) = (most.max(alone), all + alone);
            assert!(
                most <= any && any <= all && before <= any,
                "{t}: {by_step:?}"
            );
            before = any;
        }
        for level in [0.01, 0.3, 0.8] {
            let first = by_step.iter().position(|&any| any >= level);
            assert_eq!(f.first_crossing(threshold, level), first.map(|i| i + 1));
        }
    }
    sum / count
}

#[test]
fn crossings_that_a_schedule_foretells_are_expected_and_agree_with_the_steps() {
    let (with, without) = (foretold(true), foretold(false));
    assert!(with > 0.8 && without < 0.3, "{with} {without}");
}

#[test]
fn a_restart_keeps_the_schedule_and_what_was_learned_of_it() {
    let event = |start: u64| ScheduledEvent {
        start_s: start as i64 * i64::from(INTERVAL),
        end_s: (start as i64 + 8) * i64::from(INTERVAL),
        intensity: 1.0,
        kind: 0,
        every_s: Some(86_400),
    };
    let mut whole = DemandForecaster::new(DemandConfig {
        interval_s: INTERVAL,
        horizon_steps: 12,
        ..DemandConfig::default()
    });
    whole.set_clock(0);
    whole.schedule(event(40)).expect("there is room");
    let sample = |t: u64| {
        if (40..48).contains(&(t % DAY)) {
            300.0
        } else {
            100.0
        }
    };
    for t in 0..4 * DAY + 35 {
        whole.observe(Some(sample(t)));
    }
    let bytes = postcard::to_allocvec(&whole).expect("state is bytes");
    let mut parts: DemandForecaster = postcard::from_bytes(&bytes).expect("bytes are state");
    for t in 4 * DAY + 35..6 * DAY {
        whole.observe(Some(sample(t)));
        parts.observe(Some(sample(t)));
    }
    assert!(whole == parts);
}

#[test]
fn with_a_schedule_samples_and_forecasts_allocate_nothing_either() {
    let mut f = DemandForecaster::new(DemandConfig {
        interval_s: INTERVAL,
        horizon_steps: 12,
        ..DemandConfig::default()
    });
    f.set_clock(0);
    let daily = ScheduledEvent {
        start_s: 36_000,
        end_s: 43_200,
        intensity: 1.0,
        kind: 0,
        every_s: Some(86_400),
    };
    f.schedule(daily).expect("there is room");
    let mut sum = 0.0;
    let counted = allocation_counter::measure(|| {
        for t in 0..4 * DAY {
            // Grows, so that the scale is chosen anew.
            f.observe((t % 11 != 4).then_some((t * t) as f64 * value(t)));
            sum += (1..=12).map(|step| f.forecast(step).mean).sum::<f64>();
        }
    });
    assert!(sum.is_finite());
    assert_eq!(counted.count_total, 0, "{counted:?}");
}
