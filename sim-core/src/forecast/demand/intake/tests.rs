//! What becomes of each kind of sample.

use super::*;
use alloc::{vec, vec::Vec};

/// Samples at seconds, on a grid of a minute.
fn run(kind: SampleKind, samples: &[(u64, f64)]) -> (Vec<Option<f64>>, Intake) {
    let mut intake = Intake::new(kind, 60, Some(0.0), None);
    let mut out = Vec::new();
    for &(at, value) in samples {
        intake.take(Time(at * MICROS), value, &mut |cell: Cell| {
            out.push(cell.sample);
        });
    }
    (out, intake)
}

fn gauge(samples: &[(u64, f64)]) -> (Vec<Option<f64>>, Counts) {
    let (out, intake) = run(SampleKind::Gauge, samples);
    (out, *intake.counts())
}

#[test]
fn samples_on_the_grid_pass_as_they_are_and_gaps_stay_gaps() {
    let (out, counts) = gauge(&[(600, 1.0), (660, 2.0), (780, 3.0), (840, 4.0), (900, 0.0)]);
    assert_eq!(out, [Some(1.0), Some(2.0), None, Some(3.0), Some(4.0)]);
    assert_eq!((counts.cells, counts.cells_missing), (5, 1));
}

#[test]
fn irregular_samples_are_weighted_by_the_time_they_hold() {
    // 10 for 15 s, 50 for 45 s, then a cell of 50 and 20 in halves.
    let (out, _) = gauge(&[(0, 10.0), (15, 50.0), (60, 50.0), (90, 20.0), (120, 1.0)]);
    assert_eq!(out[0], Some(40.0));
    assert_eq!(out[1], Some(35.0));
}

#[test]
fn samples_rarer_than_the_grid_hold_until_the_next_one() {
    let samples: Vec<_> = (0..10).map(|i| (i * 180, 7.0 + i as f64)).collect();
    let (out, _) = gauge(&samples);
    // The first spacing is not known beforehand.
    assert_eq!(out[3..9], [8.0, 8.0, 8.0, 9.0, 9.0, 9.0].map(Some));
}

#[test]
fn duplicates_and_old_samples_change_nothing_but_their_counts() {
    let clean = [(0, 1.0), (60, 2.0), (120, 3.0), (180, 4.0)];
    let dirty = [
        (0, 1.0),
        (60, 2.0),
        (60, 9.0),
        (120, 3.0),
        (30, 9.0),
        (180, 4.0),
    ];
    let ((clean, _), (dirty, counts)) = (gauge(&clean), gauge(&dirty));
    assert_eq!(clean, dirty);
    assert_eq!((counts.duplicates, counts.out_of_order), (1, 1));
}

#[test]
fn what_is_no_number_ends_what_was_known() {
    let mut samples = vec![(0, 1.0), (60, 2.0)];
    for (i, value) in [f64::NAN, f64::INFINITY, 1e18, -1e18, -3.0]
        .into_iter()
        .enumerate()
    {
        samples.push((120 + 60 * i as u64, value));
    }
    samples.extend([(420, 5.0), (480, 6.0)]);
    let (out, counts) = gauge(&samples);
    let missing = [None; 5];
    assert_eq!(out[..2], [Some(1.0), Some(2.0)]);
    assert_eq!(out[2..7], missing);
    assert_eq!(out[7], Some(5.0));
    let kinds = (
        counts.not_a_number,
        counts.infinite,
        counts.huge,
        counts.below_lower,
    );
    assert_eq!(kinds, (1, 1, 2, 1));
}

#[test]
fn a_counter_gives_its_growth_a_second_and_a_restart_is_a_gap() {
    let samples = [
        (0, 1e12),
        (60, 1e12 + 600.0),
        (120, 1e12 + 1800.0),
        (180, 60.0),
        (240, 660.0),
        (300, 660.0),
    ];
    let (out, intake) = run(SampleKind::Counter, &samples);
    assert_eq!(out, [Some(10.0), Some(20.0), None, Some(10.0), Some(0.0)]);
    assert_eq!(intake.counts().resets, 1);
}

#[test]
fn one_wrong_time_is_ignored_and_a_clock_that_was_set_is_followed() {
    let year = 365 * 86_400;
    let mut samples: Vec<_> = (0..10).map(|i| (i * 60, 5.0)).collect();
    samples.push((year, 9.0));
    samples.extend((10..20).map(|i| (i * 60, 5.0)));
    let (out, counts) = gauge(&samples);
    assert_eq!(out, [Some(5.0); 19]);
    assert_eq!((counts.far_ahead, counts.clock_moves), (1, 0));

    samples.extend((0..30).map(|i| (year + i * 60, 6.0)));
    let (out, counts) = gauge(&samples);
    assert_eq!(counts.clock_moves, 1);
    // A year is 52 weeks and a day; the sample that confirmed the clock is in its fifth minute.
    let place = 1_440 + 5;
    assert_eq!(out[20..place], vec![None; place - 20]);
    assert_eq!(out[place], Some(6.0));
    assert_eq!(out.len(), 1_440 + 29);
}

#[test]
fn a_clock_set_back_is_followed_if_that_is_more_than_a_day() {
    let mut samples: Vec<_> = (5_000..5_010).map(|i| (i * 60, 5.0)).collect();
    samples.extend((500..520).map(|i| (i * 60, 6.0)));
    let (out, counts) = gauge(&samples);
    assert_eq!((counts.out_of_order, counts.clock_moves), (6, 1));
    let week = 7 * 1_440;
    assert_eq!(out[week - 4_500 + 5], Some(6.0));
}

#[test]
fn late_samples_in_order_and_an_hour_twice_cost_no_more_than_themselves() {
    // A buffer is flushed; the clock is set back by an hour; time goes on.
    for back in [20, 60, 1_439] {
        let mut samples: Vec<_> = (5_000..5_010).map(|i| (i * 60, 5.0)).collect();
        let late = back.min(60);
        samples.extend((5_009 - back..5_009 - back + late).map(|i| (i * 60, 6.0)));
        samples.extend((5_010..5_020).map(|i| (i * 60, 5.0)));
        let (out, counts) = gauge(&samples);
        assert_eq!(out, [Some(5.0); 19], "{back}");
        assert_eq!((counts.out_of_order, counts.clock_moves), (late, 0));
    }
}

#[test]
fn cells_say_when_they_began_however_the_clock_was_set() {
    let week = 7 * 1_440 * 60;
    let mut intake = Intake::new(SampleKind::Gauge, 60, None, None);
    let mut starts = Vec::new();
    let (early, late) = (10 * week, 40 * week + 1_800);
    let times = (0..10).map(|i| early + i * 60);
    let times = times.chain((0..10).map(|i| late + i * 60));
    let times = times.chain((0..10).map(|i| early - week - 1_800 + i * 60));
    for at in times {
        intake.take(Time(at * MICROS), 1.0, &mut |cell: Cell| {
            starts.push(cell.start_s as u64);
        });
    }
    assert_eq!(intake.counts().clock_moves, 2);
    assert_eq!(intake.counts().weeks_skipped, 30);
    assert_eq!(
        starts[..10],
        Vec::from_iter((0..10).map(|i| early + i * 60))
    );
    // Up to the sample that confirmed the clock.
    assert_eq!(starts[10], late - 1_200);
    for (before, after) in starts.iter().zip(&starts[1..]) {
        // Grid and clock never disagree about the hour of the week.
        assert_eq!((before + 60) % week, after % week);
    }
    assert_eq!(starts.last(), Some(&(early - week - 1_800 + 8 * 60)));
    assert_eq!(intake.open_s() as u64, early - week - 1_800 + 9 * 60);
}

#[test]
fn a_long_silence_told_by_the_clock_costs_two_weeks_of_cells_at_most() {
    let mut intake = Intake::new(SampleKind::Gauge, 60, None, None);
    let mut cells = 0;
    let mut emit = |_: Cell| cells += 1;
    intake.take(Time(0), 1.0, &mut emit);
    for _ in 0..3 {
        intake.advance(Time(u64::MAX), &mut emit);
    }
    assert_eq!(intake.counts().now_far_ahead, 3);
    assert!(cells <= 2 * 7 * 1_440, "{cells}");
}

#[test]
fn samples_go_on_after_a_clock_that_was_far_ahead() {
    let year = 365 * 86_400;
    let mut intake = Intake::new(SampleKind::Gauge, 60, None, None);
    let mut out = Vec::new();
    for i in 0..30_u64 {
        intake.take(Time(i * 60 * MICROS), 3.0, &mut |cell: Cell| {
            out.push((cell.start_s, cell.sample));
        });
        if i == 9 {
            intake.advance(Time(year * MICROS), &mut |cell: Cell| {
                out.push((cell.start_s, cell.sample));
            });
        }
    }
    let counts = *intake.counts();
    assert_eq!((counts.overtaken, counts.clock_moves), (6, 1));
    let resumed: Vec<_> = (15..29).map(|i| (i * 60, Some(3.0))).collect();
    assert_eq!(out[out.len() - 14..], resumed);
    // The wrong clock is not believed again, before it is right.
    let before = intake.counts().cells;
    let mut none = |_: Cell| {};
    intake.advance(Time(year * MICROS), &mut none);
    assert_eq!(intake.counts().cells, before);
    intake.advance(Time(3_600 * MICROS), &mut none);
    assert!(intake.counts().cells > before + 20);
}

#[test]
fn samples_that_the_clock_has_overtaken_by_less_than_a_day_are_counted() {
    let mut intake = Intake::new(SampleKind::Gauge, 60, None, None);
    let mut out = Vec::new();
    let mut emit = |cell: Cell| out.push(cell.sample);
    for i in 0..100_u64 {
        intake.take(Time(i * 60 * MICROS), 3.0, &mut emit);
        if i == 9 {
            intake.advance(Time(3_600 * MICROS), &mut emit);
        }
    }
    assert!(intake.counts().overtaken > 40);
    assert_eq!(intake.counts().clock_moves, 0);
    // Once time has passed the clock, cells are filled again.
    assert_eq!(out.len(), 99);
    assert_eq!(out[60..], [Some(3.0); 39]);
}

#[test]
fn the_clock_closes_cells_whose_samples_are_overdue_and_only_those() {
    let mut intake = Intake::new(SampleKind::Gauge, 60, None, None);
    let mut out = Vec::new();
    for i in 0..5_u64 {
        intake.take(Time(i * 60 * MICROS), 3.0, &mut |cell: Cell| {
            out.push(cell.sample);
        });
        intake.advance(Time((i * 60 + 59) * MICROS), &mut |cell: Cell| {
            out.push(cell.sample);
        });
    }
    assert_eq!(out, [Some(3.0); 4]);
    intake.advance(Time(600 * MICROS), &mut |cell: Cell| out.push(cell.sample));
    assert_eq!(out[4], Some(3.0));
    assert!(out.len() > 6 && out[5..].iter().all(Option::is_none));
    // A late one of a closed cell is not counted twice.
    let closed = out.len();
    intake.take(Time(290 * MICROS), 8.0, &mut |cell: Cell| {
        out.push(cell.sample);
    });
    assert_eq!(out.len(), closed);
}
