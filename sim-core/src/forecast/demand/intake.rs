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
//! | a sample older than the last | ignored, for a day at most: buffers are flushed, clocks are set back by an hour | `out_of_order` |
//! | a sample more than two weeks ahead | ignored | `far_ahead` |
//! | a sample of a cell that [`Intake::advance`] has closed, by more than it holds | fills no cell; the next one goes on from it | `overtaken` |
//! | six in a row that agree with each other, two weeks ahead, or a day behind the last one or the open cell | the clock was set: the grid goes on there, at the same hour of the week | `clock_moves` |
//! | silence of more than two weeks | the same, and as if whole weeks of it had not been | `weeks_skipped` |
//! | a `now` more than two weeks after the last sample | read as two weeks; where samples have shown it to be wrong, ignored until it is within a day | `now_far_ahead` |
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
/// Samples at most so far behind are late: the clock was not set.
const LATE_MAX: u64 = DAY_S as u64 * MICROS;
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
    /// Samples of cells that had been closed by the clock.
    pub overtaken: u64,
    /// Times that the clock was told to be too far ahead of the samples to be believed.
    pub now_far_ahead: u64,
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
    pub fn named(&self) -> [(&'static str, u64); 16] {
        [
            ("samples", self.samples),
            ("cells", self.cells),
            ("cells_missing", self.cells_missing),
            ("duplicates", self.duplicates),
            ("out_of_order", self.out_of_order),
            ("far_ahead", self.far_ahead),
            ("overtaken", self.overtaken),
            ("now_far_ahead", self.now_far_ahead),
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

/// A cell of the grid that was closed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cell {
    /// When it began, in seconds since the Unix epoch.
    pub start_s: i64,
    /// Its mean, if that is known.
    pub sample: Option<f64>,
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
    /// Samples have shown that the clock is told wrong.
    is_now_wrong: bool,
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
            is_now_wrong: false,
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

    /// Takes a sample. `emit` gets each cell that is closed by it, in order.
    pub fn take(&mut self, at: Time, value: f64, emit: &mut impl FnMut(Cell)) {
        let at = at.0.min(TIME_MAX);
        self.counts.samples += 1;
        let Some(last) = self.last else {
            self.begin(at, value);
            return;
        };
        let open = self.cell * self.interval;
        if at == last.at {
            self.counts.duplicates += 1;
        } else if at < last.at {
            self.counts.out_of_order += 1;
            if last.at - at >= LATE_MAX && self.set_aside(at) {
                self.move_clock(at, value, emit);
            }
        } else if at - last.at > self.believed() {
            self.counts.far_ahead += 1;
            if self.set_aside(at) {
                self.move_clock(at, value, emit);
            }
        } else {
            let is_overtaken = at + self.hold() < open;
            self.counts.overtaken += u64::from(is_overtaken);
            if !is_overtaken || open - at < LATE_MAX {
                self.aside = None;
            } else if self.set_aside(at) {
                self.is_now_wrong = true;
                self.move_clock(at, value, emit);
                return;
            }
            self.follow(last, at, value, emit);
        }
    }

    /// Closes the cells for which samples are overdue at `now`. Needed only where forecasts are wanted while
    /// nothing comes in.
    pub fn advance(&mut self, now: Time, emit: &mut impl FnMut(Cell)) {
        let Some(last) = self.last else { return };
        let latest = last.at + self.believed();
        let is_far = now.0 > latest;
        self.is_now_wrong &= now.0 > last.at + LATE_MAX;
        self.counts.now_far_ahead += u64::from(is_far || self.is_now_wrong);
        if self.is_now_wrong {
            return;
        }
        let due = now.0.min(latest).saturating_sub(self.hold()) / self.interval;
        if due <= self.cell {
            return;
        }
        if self.kind == SampleKind::Gauge {
            let until = last.at + self.hold();
            self.cover(last.at, until.min(due * self.interval), last.value, emit);
        }
        self.close_before(due, emit);
    }

    /// How far ahead of the last one samples are believed at once.
    fn believed(&self) -> u64 {
        WEEKS_AHEAD * self.week * self.interval
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
    fn follow(&mut self, last: Taken, at: u64, value: f64, emit: &mut impl FnMut(Cell)) {
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

    /// Notes a sample far from where the grid is. Says whether so many have followed each other by now that the
    /// clock must have been set.
    fn set_aside(&mut self, at: u64) -> bool {
        let run = match self.aside {
            Some(before) if at > before.at && at - before.at <= self.believed() => before.run + 1,
            _ => 1,
        };
        self.aside = Some(Aside { at, run });
        run >= CLOCK_CONFIRM
    }

    /// The grid goes on with this sample.
    fn move_clock(&mut self, at: u64, value: f64, emit: &mut impl FnMut(Cell)) {
        self.counts.clock_moves += 1;
        self.close(self.cell as i64, emit);
        // So many cells on it is the same hour of the week as at the new time.
        let (from, to) = (self.cell + 1, at / self.interval);
        let empty = (to % self.week + self.week - from % self.week) % self.week;
        self.counts.weeks_skipped += to.saturating_sub(from) / self.week;
        for back in (1..=empty as i64).rev() {
            self.close(to as i64 - back, emit);
        }
        self.begin(at, value);
    }

    /// From `from` to `until` the value was this, as far as that is not accounted for yet.
    fn cover(&mut self, from: u64, until: u64, value: Option<f64>, emit: &mut impl FnMut(Cell)) {
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
    fn close_before(&mut self, cell: u64, emit: &mut impl FnMut(Cell)) {
        if cell <= self.cell {
            return;
        }
        for number in self.cell..cell {
            self.close(number as i64, emit);
        }
        self.cell = cell;
    }

    /// Ends the open cell as the one of this number. What is open then is the caller's business.
    fn close(&mut self, number: i64, emit: &mut impl FnMut(Cell)) {
        let is_known = 2 * self.known >= self.interval;
        let mean = self.sum / (self.known as f64 / MICROS as f64);
        self.counts.cells += 1;
        self.counts.cells_missing += u64::from(!is_known);
        (self.known, self.sum) = (0, 0.0);
        emit(Cell {
            start_s: number * (self.interval / MICROS) as i64,
            sample: is_known.then_some(mean),
        });
    }
}

#[cfg(test)]
mod tests;
