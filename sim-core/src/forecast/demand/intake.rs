//! The front door: raw samples, as they come, become samples of the grid.
//!
//! The grid has cells as long as the series' interval, aligned to the epoch. A gauge holds from its sample to
//! the next one, a counter grows evenly between two; a cell's sample is the mean over the time of it that is
//! known, weighted by time, and missing where less than half of it is. What else comes in:
//!
//! | what | becomes | counted as |
//! |---|---|---|
//! | a missing sample | the last one holds for 1.25 times the usual spacing, or for one interval; then nothing is known | `cells_missing` |
//! | a second sample of one moment | ignored: the first one counts | `duplicates` |
//! | a sample older than the last | ignored | `out_of_order` |
//! | a sample more than two weeks ahead | ignored | `far_ahead` |
//! | six of these in a row that agree with each other | the clock was set: the grid goes on there, at the same hour of the week | `clock_moves` |
//! | silence of more than two weeks | as if whole weeks of it had not been | `weeks_skipped` |
//! | a counter that falls | a restart: that span is not known, never negative | `resets` |
//! | NaN | ends what the last sample said, says nothing itself | `not_a_number` |
//! | ±∞ | the same | `infinite` |
//! | beyond ±10¹⁵ (a counter: by its growth) | the same | `huge` |
//! | below the series' lower bound | the same | `below_lower` |
//! | above the series' upper bound | taken as it is; forecasts stay below the bound | `above_upper` |
//!
//! Zeros and constants are samples like all others. How it fails: a gauge that is read once a cell at a random
//! moment of a bursty load is as noisy as it looks here.

use serde::{Deserialize, Serialize};

use super::{DAY_S, INTERVAL_MAX_S, INTERVAL_MIN_S, VALUE_MAX};
use crate::time::Time;

const MICROS: u64 = 1_000_000;
/// Times beyond this are read as this.
const TIME_MAX: u64 = u64::MAX / 4;
const DAYS_A_WEEK: u64 = 7;
/// Samples at most so many weeks ahead are believed at once.
const WEEKS_AHEAD: u64 = 2;
/// Samples at another time that agree with each other before the clock is taken to be set.
const CLOCK_CONFIRM: u32 = 6;
/// A spacing counts for at most so many times the usual one: a gap is no habit.
const SPACING_CLIP: u64 = 2;
/// Memory of the usual spacing, in samples.
const SPACING_MEMORY: u64 = 16;

/// What the values of a series are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SampleKind {
    /// A level, which holds until the next sample: utilisation, a rate, bytes in use.
    #[default]
    Gauge,
    /// A total that only grows. The series is its growth a second.
    Counter,
}

/// What came in, by kind, since the series began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Samples, good ones and others.
    pub samples: u64,
    /// Cells of the grid that were closed.
    pub cells: u64,
    /// Of them without a sample.
    pub cells_missing: u64,
    /// Second samples of one moment.
    pub duplicates: u64,
    /// Samples older than the last.
    pub out_of_order: u64,
    /// Samples too far ahead to be believed.
    pub far_ahead: u64,
    /// Times that the clock was set.
    pub clock_moves: u64,
    /// Weeks of silence left out.
    pub weeks_skipped: u64,
    /// Counters that fell.
    pub resets: u64,
    /// NaN.
    pub not_a_number: u64,
    /// ±∞.
    pub infinite: u64,
    /// Values beyond ±10¹⁵.
    pub huge: u64,
    /// Values below the lower bound.
    pub below_lower: u64,
    /// Values above the upper bound.
    pub above_upper: u64,
}

impl Counts {
    /// Each count with its name, for metrics.
    #[must_use]
    pub fn named(&self) -> [(&'static str, u64); 14] {
        [
            ("samples", self.samples),
            ("cells", self.cells),
            ("cells_missing", self.cells_missing),
            ("duplicates", self.duplicates),
            ("out_of_order", self.out_of_order),
            ("far_ahead", self.far_ahead),
            ("clock_moves", self.clock_moves),
            ("weeks_skipped", self.weeks_skipped),
            ("resets", self.resets),
            ("not_a_number", self.not_a_number),
            ("infinite", self.infinite),
            ("huge", self.huge),
            ("below_lower", self.below_lower),
            ("above_upper", self.above_upper),
        ]
    }
}

/// A sample that was taken; without a value it only says when.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct Taken {
    at: u64,
    value: Option<f64>,
}

/// Samples at another time than expected.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct Aside {
    at: u64,
    run: u32,
}

/// Makes samples of the grid out of raw ones. See the [module](self) for the rules. All times are
/// microseconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Intake {
    kind: SampleKind,
    lower: Option<f64>,
    upper: Option<f64>,
    interval: u64,
    /// Cells of a week.
    week: u64,
    last: Option<Taken>,
    spacing: Option<u64>,
    aside: Option<Aside>,
    /// Number of the open cell.
    cell: u64,
    /// What is known of time so far has been accounted for.
    covered_to: u64,
    /// Time of the open cell that is known, and its integral in value times seconds.
    known: u64,
    sum: f64,
    counts: Counts,
}

impl Intake {
    /// For a grid of `interval_s` (brought into the bounds of the forecaster's). Bounds that are not finite are none.
    #[must_use]
    pub fn new(kind: SampleKind, interval_s: u32, lower: Option<f64>, upper: Option<f64>) -> Self {
        let interval_s = interval_s.clamp(INTERVAL_MIN_S, INTERVAL_MAX_S);
        Self {
            kind,
            lower: lower.filter(|y| y.is_finite()),
            upper: upper.filter(|y| y.is_finite()),
            interval: u64::from(interval_s) * MICROS,
            week: DAYS_A_WEEK * u64::from(DAY_S / interval_s),
            last: None,
            spacing: None,
            aside: None,
            cell: 0,
            covered_to: 0,
            known: 0,
            sum: 0.0,
            counts: Counts::default(),
        }
    }

    /// What came in so far.
    #[must_use]
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// When the open cell began, in seconds since the Unix epoch.
    #[must_use]
    pub fn open_s(&self) -> i64 {
        (self.cell * self.interval / MICROS) as i64
    }

    /// Takes a sample. `emit` gets the sample of each cell that is closed by it, in order, `None` where one is
    /// missing.
    pub fn take(&mut self, at: Time, value: f64, emit: &mut impl FnMut(Option<f64>)) {
        let at = at.0.min(TIME_MAX);
        self.counts.samples += 1;
        let Some(last) = self.last else {
            self.begin(at, value);
            return;
        };
        let ahead = WEEKS_AHEAD * self.week * self.interval;
        if at == last.at {
            self.counts.duplicates += 1;
        } else if at < last.at {
            self.counts.out_of_order += 1;
            self.set_aside(at, value, emit);
        } else if at - last.at > ahead {
            self.counts.far_ahead += 1;
            self.set_aside(at, value, emit);
        } else {
            self.aside = None;
            self.follow(last, at, value, emit);
        }
    }

    /// Closes the cells for which samples are overdue at `now`. Needed only where forecasts are wanted while
    /// nothing comes in.
    pub fn advance(&mut self, now: Time, emit: &mut impl FnMut(Option<f64>)) {
        let Some(last) = self.last else { return };
        let due = now.0.min(TIME_MAX).saturating_sub(self.hold()) / self.interval;
        if due <= self.cell {
            return;
        }
        if self.kind == SampleKind::Gauge {
            let until = last.at + self.hold();
            self.cover(last.at, until.min(due * self.interval), last.value, emit);
        }
        self.close_before(due, emit);
    }

    fn begin(&mut self, at: u64, value: f64) {
        let value = self.admit(value);
        self.last = Some(Taken { at, value });
        self.aside = None;
        self.cell = at / self.interval;
        self.covered_to = at;
        (self.known, self.sum) = (0, 0.0);
    }

    /// How long a sample speaks for.
    fn hold(&self) -> u64 {
        let spacing = self.spacing.unwrap_or(self.interval);
        (spacing + spacing / 4).max(self.interval)
    }

    fn admit(&mut self, value: f64) -> Option<f64> {
        let counts = &mut self.counts;
        let is_gauge = self.kind == SampleKind::Gauge;
        let lower = if is_gauge { self.lower } else { Some(0.0) };
        let refused = if value.is_nan() {
            &mut counts.not_a_number
        } else if value.is_infinite() {
            &mut counts.infinite
        } else if is_gauge && value.abs() > VALUE_MAX {
            &mut counts.huge
        } else if lower.is_some_and(|lower| value < lower) {
            &mut counts.below_lower
        } else {
            if is_gauge && self.upper.is_some_and(|upper| value > upper) {
                counts.above_upper += 1;
            }
            return Some(value);
        };
        *refused += 1;
        None
    }

    /// The next sample, `last` being the one before.
    fn follow(&mut self, last: Taken, at: u64, value: f64, emit: &mut impl FnMut(Option<f64>)) {
        let value = self.admit(value);
        let gap = at - last.at;
        match self.kind {
            SampleKind::Gauge => {
                let until = at.min(last.at + self.hold());
                self.cover(last.at, until, last.value, emit);
            }
            SampleKind::Counter => {
                // The mean over a long gap says little of each of its cells.
                let near = gap <= self.hold().max(2 * self.interval);
                let rate = last
                    .value
                    .zip(value)
                    .and_then(|(a, b)| self.rate(a, b, gap));
                if near {
                    self.cover(last.at, at, rate, emit);
                }
            }
        }
        self.close_before(at / self.interval, emit);
        self.covered_to = self.covered_to.max(at);
        self.last = Some(Taken { at, value });
        let usual = self.spacing.unwrap_or(gap);
        let seen = gap.min(SPACING_CLIP * usual);
        let kept = usual - usual / SPACING_MEMORY;
        self.spacing = Some((kept + seen / SPACING_MEMORY).max(1));
    }

    /// Growth a second from total `a` to total `b`.
    fn rate(&mut self, a: f64, b: f64, gap: u64) -> Option<f64> {
        if b < a {
            self.counts.resets += 1;
            return None;
        }
        let rate = (b - a) / (gap as f64 / MICROS as f64);
        if rate > VALUE_MAX {
            self.counts.huge += 1;
            return None;
        }
        Some(rate)
    }

    /// A sample before the last one or far after it. Some that follow each other are a clock that was set.
    fn set_aside(&mut self, at: u64, value: f64, emit: &mut impl FnMut(Option<f64>)) {
        let ahead = WEEKS_AHEAD * self.week * self.interval;
        let run = match self.aside {
            Some(before) if at > before.at && at - before.at <= ahead => before.run + 1,
            _ => 1,
        };
        self.aside = Some(Aside { at, run });
        if run < CLOCK_CONFIRM {
            return;
        }
        self.counts.clock_moves += 1;
        self.close(emit);
        // So many cells on it is the same hour of the week as at the new time.
        let (from, to) = ((self.cell + 1) % self.week, at / self.interval % self.week);
        for _ in 0..(to + self.week - from) % self.week {
            self.close(emit);
        }
        self.begin(at, value);
    }

    /// From `from` to `until` the value was this, as far as that is not accounted for yet.
    fn cover(
        &mut self,
        from: u64,
        until: u64,
        value: Option<f64>,
        emit: &mut impl FnMut(Option<f64>),
    ) {
        // Cells may have been closed by the clock.
        let mut from = from.max(self.covered_to).max(self.cell * self.interval);
        while from < until {
            self.close_before(from / self.interval, emit);
            let end = until.min((self.cell + 1) * self.interval);
            if let Some(value) = value {
                let part = end - from;
                self.known += part;
                self.sum += value * (part as f64 / MICROS as f64);
            }
            from = end;
        }
        self.covered_to = self.covered_to.max(until);
    }

    /// Closes the cells before number `cell`.
    fn close_before(&mut self, cell: u64, emit: &mut impl FnMut(Option<f64>)) {
        if cell <= self.cell {
            return;
        }
        self.close(emit);
        let mut empty = cell - self.cell - 1;
        if empty > WEEKS_AHEAD * self.week {
            let weeks = empty / self.week - 1;
            self.counts.weeks_skipped += weeks;
            empty -= weeks * self.week;
        }
        for _ in 0..empty {
            self.close(emit);
        }
        self.cell = cell;
    }

    /// Ends the open cell. Its number is the caller's business.
    fn close(&mut self, emit: &mut impl FnMut(Option<f64>)) {
        let is_known = 2 * self.known >= self.interval;
        let mean = self.sum / (self.known as f64 / MICROS as f64);
        self.counts.cells += 1;
        self.counts.cells_missing += u64::from(!is_known);
        (self.known, self.sum) = (0, 0.0);
        emit(is_known.then_some(mean));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::{vec, vec::Vec};

    /// Samples at seconds, on a grid of a minute.
    fn run(kind: SampleKind, samples: &[(u64, f64)]) -> (Vec<Option<f64>>, Intake) {
        let mut intake = Intake::new(kind, 60, Some(0.0), None);
        let mut out = Vec::new();
        for &(at, value) in samples {
            intake.take(Time(at * MICROS), value, &mut |y| out.push(y));
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
    fn a_clock_set_back_is_followed_too() {
        let mut samples: Vec<_> = (1000..1010).map(|i| (i * 60, 5.0)).collect();
        samples.extend((500..520).map(|i| (i * 60, 6.0)));
        let (out, counts) = gauge(&samples);
        assert_eq!((counts.out_of_order, counts.clock_moves), (6, 1));
        let week = 7 * 1_440;
        assert_eq!(out[week - 500 + 5], Some(6.0));
    }

    #[test]
    fn a_long_silence_costs_two_weeks_of_cells_at_most() {
        let mut intake = Intake::new(SampleKind::Gauge, 60, None, None);
        let mut cells = 0;
        let mut emit = |_: Option<f64>| cells += 1;
        intake.take(Time(0), 1.0, &mut emit);
        intake.advance(Time(u64::MAX), &mut emit);
        assert!(intake.counts().weeks_skipped > 1_000_000);
        assert!(cells <= 3 * 7 * 1_440, "{cells}");
    }

    #[test]
    fn the_clock_closes_cells_whose_samples_are_overdue_and_only_those() {
        let mut intake = Intake::new(SampleKind::Gauge, 60, None, None);
        let mut out = Vec::new();
        for i in 0..5_u64 {
            intake.take(Time(i * 60 * MICROS), 3.0, &mut |y| out.push(y));
            intake.advance(Time((i * 60 + 59) * MICROS), &mut |y| out.push(y));
        }
        assert_eq!(out, [Some(3.0); 4]);
        intake.advance(Time(600 * MICROS), &mut |y| out.push(y));
        assert_eq!(out[4], Some(3.0));
        assert!(out.len() > 6 && out[5..].iter().all(Option::is_none));
        // A late one of a closed cell is not counted twice.
        let closed = out.len();
        intake.take(Time(290 * MICROS), 8.0, &mut |y| out.push(y));
        assert_eq!(out.len(), closed);
    }
}
