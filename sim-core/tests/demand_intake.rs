//! From raw samples to forecasts: whatever comes in, at whatever times, what comes out can be acted on, and a restart
//! in between changes nothing.

use proptest::prelude::*;
use sim_core::forecast::demand::{
    DemandConfig, DemandForecaster, DemandSeries, SampleKind, ScheduledEvent,
};
use sim_core::time::Time;

const SECOND: u64 = 1_000_000;
const HOUR: u64 = 3_600 * SECOND;

/// One thing that may happen to a stream of samples.
#[derive(Clone, Debug)]
enum Step {
    /// A sample so many milliseconds after the one before.
    Sample(u64, f64),
    /// The same moment again.
    Duplicate(f64),
    /// A sample of the past.
    Late(u64, f64),
    /// A sample at a wrong time.
    Astray(u64, f64),
    /// So many hours without a sample, told by the clock.
    Silence(u64),
    /// The counter starts again.
    Restart,
    /// Values come in another unit from now on.
    Unit(f64),
    /// The value stays for so many samples.
    Constant(f64, u32),
    /// The clock is set, this far.
    Clock(u64),
}

fn odd() -> impl Strategy<Value = f64> {
    let odd = vec![
        0.0,
        -0.0,
        -1.0,
        f64::NAN,
        f64::INFINITY,
        f64::NEG_INFINITY,
        f64::MAX,
        f64::MIN,
        5e-324,
        1e18,
        -1e18,
        1e15,
        1e-12,
    ];
    prop_oneof![4 => 0.0..500.0_f64, 1 => any::<f64>(), 2 => prop::sample::select(odd)]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        20 => (1_000_000..6_000_000_u64, 20.0..80.0_f64).prop_map(|(ms, y)| Step::Sample(ms, y)),
        6 => (1..20_000_000_u64, odd()).prop_map(|(ms, y)| Step::Sample(ms, y)),
        1 => odd().prop_map(Step::Duplicate),
        1 => (0..90_000_000_u64, odd()).prop_map(|(ms, y)| Step::Late(ms, y)),
        1 => (any::<u64>(), odd()).prop_map(|(at, y)| Step::Astray(at, y)),
        1 => (1..60_u64).prop_map(Step::Silence),
        1 => Just(Step::Restart),
        1 => prop::sample::select(vec![100.0, 1e3, 1024.0, 1e-3, 1e6, 1e-9]).prop_map(Step::Unit),
        1 => (odd(), 1..40_u32).prop_map(|(y, n)| Step::Constant(y, n)),
        1 => (0..1_u64 << 52).prop_map(Step::Clock),
    ]
}

/// Raw samples, and at which of them the clock is told too.
struct Stream {
    now: u64,
    unit: f64,
    total: f64,
    kind: SampleKind,
}

impl Stream {
    fn new(kind: SampleKind) -> Self {
        Self {
            now: 1_700_000_000 * SECOND,
            unit: 1.0,
            total: 1e9,
            kind,
        }
    }

    fn value(&mut self, y: f64) -> f64 {
        if self.kind == SampleKind::Counter && (0.0..1e6).contains(&y) {
            self.total += y * self.unit * 3_600.0;
            self.total
        } else {
            y * self.unit
        }
    }

    fn play(&mut self, step: &Step, series: &mut DemandSeries) {
        match *step {
            Step::Sample(ms, y) => {
                self.now += ms * 1_000;
                let value = self.value(y);
                series.take(Time(self.now), value);
            }
            Step::Duplicate(y) => series.take(Time(self.now), y),
            Step::Late(ms, y) => series.take(Time(self.now - ms * 1_000), y),
            Step::Astray(at, y) => series.take(Time(at), y),
            Step::Silence(hours) => {
                self.now += hours * HOUR;
                series.advance(Time(self.now));
            }
            Step::Restart => self.total = 0.0,
            Step::Unit(factor) => self.unit *= factor,
            Step::Constant(y, n) => {
                for _ in 0..n {
                    self.now += HOUR;
                    series.take(Time(self.now), y);
                }
            }
            Step::Clock(at) => self.now = at.max(1 << 40),
        }
    }
}

fn hourly(kind: SampleKind) -> DemandSeries {
    let config = DemandConfig {
        interval_s: 3_600,
        ..DemandConfig::default()
    };
    DemandSeries::new(kind, config)
}

fn check(series: &DemandSeries) {
    let f = series.forecaster();
    for step in 1..=f.horizon() {
        let forecast = f.forecast(step);
        let quantiles = forecast.quantiles;
        assert!(
            forecast.mean.is_finite() && quantiles.iter().all(|q| q.is_finite()),
            "{forecast:?}"
        );
        assert!(quantiles.windows(2).all(|w| w[0] <= w[1]), "{forecast:?}");
    }
    for threshold in [-1.0, 0.0, 50.0, 1e18] {
        let p = f.probability_of_any_above(threshold, 6);
        assert!((0.0..=1.0).contains(&p), "{threshold}: {p}");
    }
    let counts = series.counts();
    assert!(counts.cells_missing <= counts.cells);
    let (unit, _) = series.unit();
    assert!(unit.is_finite() && unit > 0.0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_stream_gives_forecasts_that_can_be_acted_on(
        steps in prop::collection::vec(step(), 0..200),
        is_counter in any::<bool>(),
    ) {
        let kind = if is_counter { SampleKind::Counter } else { SampleKind::Gauge };
        let (mut stream, mut series) = (Stream::new(kind), hourly(kind));
        for (i, step) in steps.iter().enumerate() {
            stream.play(step, &mut series);
            if i % 11 == 0 {
                check(&series);
            }
        }
        check(&series);
        if is_counter {
            // No growth is below zero, whatever the totals did.
            prop_assert!((1..=6).all(|step| series.forecaster().forecast(step).quantiles[0] >= 0.0));
        }
    }

    #[test]
    fn a_restart_between_any_two_samples_changes_no_bit(
        steps in prop::collection::vec(step(), 1..150),
        split in 0..150_usize,
    ) {
        let mut whole = hourly(SampleKind::Gauge);
        let mut stream = Stream::new(SampleKind::Gauge);
        for step in &steps {
            stream.play(step, &mut whole);
        }
        let mut parts = hourly(SampleKind::Gauge);
        let mut stream = Stream::new(SampleKind::Gauge);
        for (i, step) in steps.iter().enumerate() {
            if i == split % steps.len() {
                let bytes = postcard::to_allocvec(&parts).expect("state is bytes");
                parts = postcard::from_bytes(&bytes).expect("bytes are state");
            }
            stream.play(step, &mut parts);
        }
        let bytes = |series: &DemandSeries| postcard::to_allocvec(series).expect("state is bytes");
        prop_assert_eq!(bytes(&whole), bytes(&parts));
        let bits = |series: &DemandSeries| -> Vec<[u64; 7]> {
            (1..=6).map(|step| series.forecaster().forecast(step).quantiles.map(f64::to_bits)).collect()
        };
        prop_assert_eq!(bits(&whole), bits(&parts));
    }
}

/// A day's wave, deterministic, with a ripple.
fn wave(hour: u64) -> f64 {
    let day = (std::f64::consts::TAU * (hour % 24) as f64 / 24.0).cos();
    100.0 + 40.0 * day + (hour * 31 % 7) as f64
}

fn feed(series: &mut DemandSeries, hours: std::ops::Range<u64>, unit: f64) {
    for hour in hours {
        series.take(Time(hour * HOUR), wave(hour) * unit);
    }
}

/// Worst error of the median over the next six hours, in old units; `hour` is that of the next sample.
fn error(series: &DemandSeries, hour: u64, unit: f64) -> f64 {
    (1..=6)
        .map(|step| {
            // The last sample's own cell is closed by the next one.
            let truth = wave(hour - 2 + step);
            (series.forecaster().forecast(step as usize).quantiles[2] / unit - truth).abs()
        })
        .fold(0.0, f64::max)
}

#[test]
fn a_change_of_the_unit_takes_what_was_learned_along() {
    let start = 24 * 1_000;
    let change = start + 24 * 20;
    for unit in [1e3, 1024.0, 1e-2, 1e6] {
        let mut series = hourly(SampleKind::Gauge);
        feed(&mut series, start..change, 1.0);
        let before = error(&series, change, 1.0);
        feed(&mut series, change..change + 8, unit);
        let (found, changes) = series.unit();
        assert_eq!(changes, 1, "{unit}");
        assert!((found / unit - 1.0).abs() < 0.08, "{unit}: {found}");
        let after = error(&series, change + 8, unit);
        // 1000 for 1024 is off by 2.4 %.
        assert!(after < 2.0 * before + 5.0, "{unit}: {before} {after}");
    }
}

#[test]
fn samples_of_another_unit_are_forecast_in_it_before_it_is_recognised() {
    let start = 24 * 1_000;
    let change = start + 24 * 20;
    let mut series = hourly(SampleKind::Gauge);
    feed(&mut series, start..change, 1.0);
    feed(&mut series, change..change + 4, 1e3);
    assert_eq!(series.unit(), (1.0, 0));
    let upper = series.forecaster().forecast(1).quantiles[4];
    assert!(upper > 30_000.0, "{upper}");
}

#[test]
fn a_glitch_of_any_kind_leaves_forecasts_as_they_would_be_with_a_gap() {
    let start = 24 * 1_000;
    let end = start + 24 * 20;
    let glitch = end - 5;
    let with = |value: Option<f64>| {
        let mut series = DemandSeries::new(
            SampleKind::Gauge,
            DemandConfig {
                interval_s: 3_600,
                lower: Some(0.0),
                ..DemandConfig::default()
            },
        );
        feed(&mut series, start..glitch, 1.0);
        if let Some(value) = value {
            series.take(Time(glitch * HOUR), value);
        }
        feed(&mut series, glitch + 1..end, 1.0);
        (1..=6)
            .map(|step| series.forecaster().forecast(step).quantiles[2])
            .collect::<Vec<_>>()
    };
    let gap = with(None);
    for value in [
        f64::NAN,
        f64::INFINITY,
        f64::NEG_INFINITY,
        1e18,
        -1e18,
        -5.0,
    ] {
        assert_eq!(with(Some(value)), gap, "{value}");
    }
}

#[test]
fn a_series_that_begins_with_zeros_is_forecast_in_numbers_when_values_come() {
    let mut series = hourly(SampleKind::Gauge);
    for hour in 0..200_u64 {
        let value = if hour < 50 { 0.0 } else { 1e12 };
        series.take(Time(hour * HOUR), value);
        check(&series);
        if hour == 54 {
            let upper = series.forecaster().forecast(1).quantiles[4];
            assert!(upper > 1e11, "{upper}");
        }
    }
    let median = series.forecaster().forecast(1).quantiles[2];
    assert!((median / 1e12 - 1.0).abs() < 0.1, "{median}");
}

const HALF: u64 = HOUR / 2;

/// A nightly batch: eight hours of a day at a hundred times the rest.
fn batch(half: u64) -> f64 {
    let ripple = 1.0 + 0.01 * (half * 31 % 7) as f64;
    ripple * if half % 48 < 16 { 60.0 } else { 0.6 }
}

#[test]
fn a_nightly_batch_of_a_hundred_times_the_load_stays_a_pattern() {
    let percent = (Some(0.0), Some(100.0));
    for (lower, upper) in [percent, (None, Some(100.0)), (None, None)] {
        let config = DemandConfig {
            interval_s: 1_800,
            lower,
            upper,
            ..DemandConfig::default()
        };
        let mut plain = DemandForecaster::new(config.clone());
        let mut series = DemandSeries::new(SampleKind::Gauge, config);
        // Five days, from noon to an hour before a batch; the last sample's own cell is closed by the next one.
        let start = 48 * 1_000 + 24;
        let end = 48 * 1_005 + 46;
        for half in start..=end {
            series.take(Time(half * HALF), batch(half));
            if half < end {
                plain.observe(Some(batch(half)));
            }
        }
        let (unit, changes) = series.unit();
        assert_eq!(unit, 1.0);
        assert_eq!(changes, if lower.is_some() { 0 } else { 2 });
        for step in 1..=8 {
            let [ours, bare] = [series.forecaster(), &plain].map(|f| f.forecast(step));
            let truth = batch(end - 1 + step as u64);
            let off = (ours.quantiles[2] - truth).abs();
            let bare = (bare.quantiles[2] - truth).abs();
            assert!(off <= bare + 6.0, "{upper:?} {step}: {off} {bare}");
            assert!(upper.is_none_or(|upper| ours.quantiles[6] <= upper));
        }
        if lower.is_some() {
            assert_eq!(series.forecaster().forecast(6), plain.forecast(6));
        }
    }
}

/// Ratio of what is forecast two hours ahead for an event to what is forecast without a schedule.
fn foreseen(is_scheduled: bool) -> f64 {
    let config = DemandConfig {
        interval_s: 1_800,
        ..DemandConfig::default()
    };
    let mut series = DemandSeries::new(SampleKind::Gauge, config);
    // Two hours at any hour of each day.
    let first_of = |day: u64| day * 48 + 10 + (day.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 33) % 30;
    // After two weeks the clock is set nine weeks ahead.
    let (start, set, on, end) = (1_000, 1_014, 1_077, 1_087);
    if is_scheduled {
        for day in (start..set).chain(on..end + 1) {
            let start_s = (first_of(day) * HALF / SECOND) as i64;
            let event = ScheduledEvent {
                start_s,
                end_s: start_s + 7_200,
                intensity: 1.0,
                kind: 0,
                every_s: None,
            };
            series.schedule(event).expect("there is room");
        }
    }
    let last = first_of(end) - 2;
    for half in (start * 48..set * 48).chain(on * 48..=last) {
        let first = first_of(half / 48);
        let is_on = (first..first + 4).contains(&half);
        let base = 100.0 + (half * 31 % 7) as f64;
        series.take(Time(half * HALF), base * if is_on { 3.0 } else { 1.0 });
    }
    assert_eq!(series.counts().clock_moves, 1);
    // The sample of `last` is closed by the next one: four steps on from the one before it.
    series.forecaster().forecast(4).quantiles[2] / 103.0
}

#[test]
fn what_is_scheduled_is_foreseen_from_raw_samples_after_the_clock_was_set_too() {
    let (with, without) = (foreseen(true), foreseen(false));
    assert!(with > 2.0 && without < 1.5, "{with} {without}");
}
