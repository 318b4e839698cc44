//! What is remembered of the samples, and the features that regressions see.
//!
//! Everything here lives on the transformed scale (see [`super::DemandForecaster`]). Features are differences
//! from the last value, in units of the series' own spread: zero coefficients then mean "as now", and
//! one prior suits all series.

use alloc::{vec, vec::Vec};

use serde::{Deserialize, Serialize};

use super::lags::{LagSearch, Outcomes};

/// Number of features.
pub(super) const FEATURES: usize = 26;
pub(super) type Features = [f64; FEATURES];
/// Time-of-day slots learn no slower than this.
const PROFILE_RATE: f64 = 0.2;
const HOUR_RATE: f64 = 0.06;
/// Least spread, on the transformed scale.
const SPREAD_MIN: f64 = 1e-6;

/// Places of features that are also forecasts by themselves.
pub(super) const DAY_SAME: usize = 8;
pub(super) const ANALOG_SHAPE: usize = 20;
pub(super) const ANALOG_PERIOD: usize = 22;
pub(super) const ANALOG_LONG: usize = 24;

/// Averages, profiles, the last week, and the search over its lags.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct History {
    day: usize,
    hour: usize,
    horizon: usize,
    /// The latest samples, twice in a row: any run of them is one slice.
    ring: Vec<f32>,
    /// Steps since the first sample, that one included.
    steps: u64,
    observed: u64,
    last: f64,
    before: [f64; 2],
    fast: f64,
    medium: f64,
    slow: f64,
    daily: f64,
    simple: f64,
    spread: f64,
    lowest: f64,
    highest: f64,
    profile: Vec<f64>,
    visits: Vec<u16>,
    hourly: Vec<f64>,
    shape: LagSearch,
    period: LagSearch,
    long: LagSearch,
}

impl History {
    /// `day` and `hour` in steps; `knots` ascending, the last one being the horizon.
    pub(super) fn new(day: usize, hour: usize, knots: &[usize]) -> Self {
        let horizon = knots.last().copied().unwrap_or(1);
        let longest = 7 * day;
        let search = |memory: f64, absolute, needed, used| {
            LagSearch::new(longest, memory, absolute, needed, used, knots.len())
        };
        Self {
            day,
            hour,
            horizon,
            ring: vec![0.0; 2 * (longest + horizon + 4)],
            steps: 0,
            observed: 0,
            last: 0.0,
            before: [0.0; 2],
            fast: 0.0,
            medium: 0.0,
            slow: 0.0,
            daily: 0.0,
            simple: 0.0,
            spread: 0.0,
            lowest: f64::MAX,
            highest: f64::MIN,
            profile: vec![0.0; day],
            visits: vec![0; day],
            hourly: vec![0.0; hour],
            shape: search(12.0, false, 24, 12),
            period: search(2.0 * day as f64, true, day, 3),
            long: search(72.0, false, 72, 12),
        }
    }

    pub(super) fn reset(&mut self) {
        self.ring.fill(0.0);
        (self.steps, self.observed) = (0, 0);
        self.spread = 0.0;
        (self.lowest, self.highest) = (f64::MAX, f64::MIN);
        self.profile.fill(0.0);
        self.visits.fill(0);
        self.hourly.fill(0.0);
        self.shape.reset();
        self.period.reset();
        self.long.reset();
    }

    fn len(&self) -> usize {
        self.ring.len() / 2
    }

    /// Samples that the ring holds.
    pub(super) fn capacity(&self) -> usize {
        self.len()
    }

    /// Takes the sample of the next step; `knots` are the leads.
    pub(super) fn observe(&mut self, sample: Option<f64>, knots: &[usize]) {
        let slot = self.slot_next();
        if let Some(z) = sample {
            self.learn(z, slot);
        }
        let len = self.len();
        let at = (self.steps % len as u64) as usize;
        self.ring[at] = self.last as f32;
        self.ring[at + len] = self.last as f32;
        self.steps += 1;
        let known = usize::try_from(self.steps - 1).unwrap_or(usize::MAX);
        let longest = 7 * self.day;
        let before = &self.ring[at + len - longest..at + len];
        let newest = self.last as f32;
        for search in [&mut self.shape, &mut self.period, &mut self.long] {
            search.observe(newest, before, known, knots);
        }
    }

    fn learn(&mut self, z: f64, slot: usize) {
        self.observed += 1;
        if self.observed == 1 {
            self.last = z;
            self.before = [z; 2];
            for average in [
                &mut self.fast,
                &mut self.medium,
                &mut self.slow,
                &mut self.daily,
                &mut self.simple,
            ] {
                *average = z;
            }
        }
        self.lowest = self.lowest.min(z);
        self.highest = self.highest.max(z);
        self.before = [self.last, self.before[0]];
        let warm = 1.0 / self.observed as f64;
        let day = self.day as f64;
        // A minute's series is smoothed over more samples, since each of them tells less.
        let medium = if self.hour > 12 {
            (self.hour as f64 * 0.5).min(18.0)
        } else {
            6.0
        };
        for (average, memory) in [
            (&mut self.fast, 3.0),
            (&mut self.medium, medium),
            (&mut self.slow, (day / 8.0).max(8.0)),
            (&mut self.daily, 1.5 * day),
            (&mut self.simple, 5.0),
        ] {
            *average += warm.max(1.0 / memory) * (z - *average);
        }
        if self.hour > 1 {
            let place = &mut self.hourly[(self.steps % self.hour as u64) as usize];
            *place += warm.max(HOUR_RATE) * (z - self.medium - *place);
        }
        let off = (z - self.slow).abs();
        self.spread = (self.spread + warm.max(0.5 / day) * (off - self.spread)).max(SPREAD_MIN);
        let visits = self.visits[slot].saturating_add(1);
        self.visits[slot] = visits;
        let rate = (1.0 / f64::from(visits)).max(PROFILE_RATE);
        self.profile[slot] += rate * (z - self.profile[slot]);
        self.last = z;
    }

    pub(super) fn observed(&self) -> u64 {
        self.observed
    }

    /// Number of the last step.
    pub(super) fn step(&self) -> u64 {
        self.steps.saturating_sub(1)
    }

    /// Slot of the day that the next step falls into, and whether it was seen before.
    fn slot_next(&self) -> usize {
        (self.steps % self.day as u64) as usize
    }

    /// Slot of the day `lead` steps after the last one.
    pub(super) fn slot(&self, lead: usize) -> usize {
        ((self.step() + lead as u64) % self.day as u64) as usize
    }

    /// Whether the slot of the next step has been seen.
    pub(super) fn is_next_slot_new(&self) -> bool {
        self.visits[self.slot_next()] == 0
    }

    pub(super) fn last(&self) -> f64 {
        self.last
    }

    pub(super) fn simple(&self) -> f64 {
        self.simple
    }

    pub(super) fn daily(&self) -> f64 {
        self.daily
    }

    pub(super) fn spread(&self) -> f64 {
        self.spread
    }

    /// Distance of the last value from the one before, and from the medium average.
    pub(super) fn moves(&self) -> (f64, f64) {
        (self.last - self.before[0], self.last - self.medium)
    }

    /// No forecast goes further beyond what was ever seen than half the range of it.
    pub(super) fn range(&self) -> (f64, f64) {
        let reach = 0.5 * (self.highest - self.lowest) + 0.05;
        (self.lowest - reach, self.highest + reach)
    }

    fn back(&self, steps: usize) -> f64 {
        let len = self.len();
        let at = (self.step() % len as u64) as usize;
        f64::from(self.ring[at + len - steps])
    }

    /// Whether there are more than `steps` samples.
    fn older_than(&self, steps: usize) -> bool {
        self.steps > steps as u64
    }

    /// The mean over `radius` steps to both sides of the one `steps` ago.
    fn around(&self, steps: usize, radius: usize) -> Option<f64> {
        if !self.older_than(steps + radius) || steps + radius >= self.len() {
            return None;
        }
        let radius = radius.min(steps);
        let sum: f64 = (steps - radius..=steps + radius)
            .map(|i| self.back(i))
            .sum();
        Some(sum / (2 * radius + 1) as f64)
    }

    /// The value a week before the target, smoothed a little.
    pub(super) fn week_ago(&self, lead: usize) -> Option<f64> {
        self.older_than(7 * self.day)
            .then(|| self.around(7 * self.day - lead, 1))?
    }

    /// The day's profile at the target, with today's distance from it fading over two hours.
    pub(super) fn by_profile(&self, lead: usize) -> f64 {
        if !self.older_than(self.day) {
            return self.slow;
        }
        let hours = lead as f64 / self.hour as f64;
        let fade = libm::exp(-0.5 * hours);
        self.profile[self.slot(lead)] + fade * (self.fast - self.profile[self.slot(0)])
    }

    /// The medium average, which stands in where there is no week yet.
    pub(super) fn medium(&self) -> f64 {
        self.medium
    }

    /// What the regressions see of the present when they look `lead` steps ahead. `knot` is the
    /// place of the first knot at or after it.
    pub(super) fn features(&self, lead: usize, knot: usize) -> Features {
        let z = self.last;
        let day = self.day;
        let from = |value: Option<f64>| value.map_or(0.0, |v| v - z);
        let radius = 1 + day / 144;
        let to_day = lead.div_ceil(day) * day - lead;
        let to_hour = lead.div_ceil(self.hour) * self.hour - lead;
        let has_day = self.older_than(day);
        let has_week = self.older_than(7 * day);
        let has_hours = self.hour > 1 && self.older_than(6 * self.hour);
        let if_day = |value: Option<f64>| if has_day { from(value) } else { 0.0 };
        let if_week = |value: Option<f64>| if has_week { from(value) } else { 0.0 };
        let profile = |slot: usize| {
            if has_day && self.visits[slot] > 0 {
                self.profile[slot] - z
            } else {
                0.0
            }
        };
        let hourly = |lead: usize| {
            if has_hours {
                self.hourly[((self.step() + lead as u64) % self.hour as u64) as usize]
            } else {
                0.0
            }
        };
        let [shape, period, long] = [&self.shape, &self.period, &self.long].map(|search| {
            search
                .follow(knot, lead, |n| self.back(n))
                .map_or((0.0, 0.0), |(then, now)| (then - z, now - z))
        });
        let mut x = [
            self.before[0] - z,
            self.fast - z,
            self.medium - z,
            self.slow - z,
            self.daily - z,
            self.spread,
            self.before[1] - z,
            if_day(self.around(to_day, radius)),
            if_day((to_day < self.len() && self.older_than(to_day)).then(|| self.back(to_day))),
            if_day(self.around(day, radius)),
            profile(self.slot(lead)),
            profile(self.slot(0)),
            if_week(self.around(7 * day - lead.min(7 * day), radius)),
            if_week(self.around(7 * day, radius)),
            if self.older_than(2 * day) {
                from(self.around(2 * day - lead % day, radius))
            } else {
                0.0
            },
            if_day(has_day.then(|| self.back(day))),
            if self.hour > 1 && self.older_than(2 * self.hour) {
                self.back(to_hour) - z
            } else {
                0.0
            },
            hourly(lead),
            hourly(0),
            (z - self.slow).abs(),
            shape.0,
            shape.1,
            period.0,
            period.1,
            long.0,
            long.1,
        ];
        let scale = 1.0 / self.spread.max(SPREAD_MIN);
        for value in &mut x {
            *value *= scale;
        }
        x
    }

    /// Quantiles of what followed the analogs of a shape, and how far they are apart.
    pub(super) fn outcomes<const N: usize>(
        &self,
        lead: usize,
        knot: usize,
        levels: &[f64; N],
    ) -> ([f64; N], f64) {
        let mut outcomes = Outcomes::new();
        for search in [&self.shape, &self.long] {
            outcomes.add(search, knot, lead, |n| self.back(n));
        }
        outcomes.quantiles(levels).unwrap_or(([self.last; N], 0.0))
    }

    pub(super) fn horizon(&self) -> usize {
        self.horizon
    }
}
