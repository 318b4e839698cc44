//! What is remembered of the samples, and the features that regressions see.
//!
//! Everything here lives on the transformed scale (see [`super::DemandForecaster`]). Features are differences
//! from the last value, in units of the series' own spread: zero coefficients then mean "as now", and
//! one prior suits all series. Those of the present are the same at every lead and made once a sample.

pub(super) mod window;

use alloc::{vec, vec::Vec};

use serde::{Deserialize, Serialize};

use super::lags::{ANALOGS, BLOCK, LagSearch, Recall};

/// Features of the present, and of a lead.
pub(super) const COMMON: usize = 12;
pub(super) const OWN: usize = 12;
/// Both.
pub(super) const FEATURES: usize = 24;
pub(super) type Features = [f32; FEATURES];
/// Time-of-day slots learn no slower than this.
const PROFILE_RATE: f64 = 0.2;
const HOUR_RATE: f64 = 0.06;
/// Least spread, on the transformed scale.
const SPREAD_MIN: f64 = 1e-6;

/// Places of features that are also forecasts by themselves.
pub(super) const DAILY: usize = 4;
pub(super) const DAY_SAME: usize = COMMON + 1;
pub(super) const ANALOG_SHAPE: usize = COMMON + 7;
pub(super) const ANALOG_LONG: usize = COMMON + 9;

/// Averages, profiles, the last week, and the search over its lags.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct History {
    day: usize,
    hour: usize,
    /// The latest samples, oldest first, up to `end`. When there is no more room behind it, the last `capacity`
    /// go to the front: any run of them is one slice. Before the first of all lies a block of zeros.
    samples: Vec<f32>,
    end: usize,
    capacity: usize,
    /// Steps since the first sample, that one included.
    steps: u64,
    /// Slots of the day and of the hour that the last step fell into.
    slot_now: usize,
    minute_now: u32,
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
    profile: Vec<f32>,
    /// Visits of each slot, as far as they matter.
    visits: Vec<u8>,
    hourly: Vec<f32>,
    search: LagSearch,
}

/// Lags of a day and more are smoothed over so many samples to both sides.
fn radius(day: usize) -> usize {
    1 + day / 144
}

impl History {
    /// `day` and `hour` in steps; `knots` ascending, the last one being the horizon.
    pub(super) fn new(day: usize, hour: usize, knots: &[usize]) -> Self {
        let longest = 7 * day;
        let recall = |memory: f64, needed, used| Recall {
            memory,
            needed,
            used,
        };
        let recalls = [recall(12.0, 24, ANALOGS), recall(72.0, 72, ANALOGS)];
        let capacity = longest + radius(day) + 2;
        Self {
            day,
            hour,
            samples: vec![0.0; BLOCK + capacity + capacity / 16],
            end: BLOCK,
            capacity,
            steps: 0,
            slot_now: 0,
            minute_now: 0,
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
            search: LagSearch::new(longest, knots.len(), recalls),
        }
    }

    /// Forgets all but the samples themselves: they may be told again, from [`Self::told`] on.
    pub(super) fn reset(&mut self) {
        (self.steps, self.observed) = (0, 0);
        self.spread = 0.0;
        (self.lowest, self.highest) = (f64::MAX, f64::MIN);
        self.profile.fill(0.0);
        self.visits.fill(0);
        self.hourly.fill(0.0);
        self.search.reset();
    }

    /// All samples so far, a gap holding the value before it; `None` once some were dropped.
    pub(super) fn told(&mut self) -> Option<&mut [f32]> {
        let count = usize::try_from(self.steps).ok()?;
        (count <= self.capacity).then(|| &mut self.samples[self.end - count..self.end])
    }

    /// Goes back to before the first of [`Self::told`]. Each of them must then be observed again, in order.
    pub(super) fn rewind(&mut self) {
        let count = usize::try_from(self.steps).unwrap_or(usize::MAX);
        self.end -= count.min(self.end);
        self.reset();
    }

    /// The sample that would be taken next after [`Self::rewind`].
    pub(super) fn upcoming(&self) -> f32 {
        self.samples[self.end]
    }

    /// Samples that are held.
    pub(super) fn capacity(&self) -> usize {
        self.capacity
    }

    /// Takes the sample of the next step; `knots` are the leads.
    pub(super) fn observe(&mut self, sample: Option<f64>, knots: &[usize]) {
        let slot = self.slot_next();
        if let Some(z) = sample {
            self.learn(z, slot);
        }
        if self.end == self.samples.len() {
            let from = self.end - self.capacity;
            self.samples.copy_within(from.., BLOCK);
            self.end = BLOCK + self.capacity;
        }
        let newest = self.last as f32;
        self.samples[self.end] = newest;
        self.end += 1;
        self.slot_now = slot;
        self.minute_now = (self.steps % self.hour as u64) as u32;
        self.steps += 1;
        let known = usize::try_from(self.steps - 1).unwrap_or(usize::MAX);
        let before = self.end - 1 - self.search.needs(known);
        let before = &self.samples[before..self.end - 1];
        self.search.observe(newest, before, known, knots);
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
            *place += (warm.max(HOUR_RATE) * (z - self.medium - f64::from(*place))) as f32;
        }
        let off = (z - self.slow).abs();
        self.spread = (self.spread + warm.max(0.5 / day) * (off - self.spread)).max(SPREAD_MIN);
        let visits = self.visits[slot].saturating_add(1);
        self.visits[slot] = visits;
        let rate = (1.0 / f64::from(visits)).max(PROFILE_RATE);
        self.profile[slot] += (rate * (z - f64::from(self.profile[slot]))) as f32;
        self.last = z;
    }

    pub(super) fn observed(&self) -> u64 {
        self.observed
    }

    /// Number of the last step.
    pub(super) fn step(&self) -> u64 {
        self.steps.saturating_sub(1)
    }

    /// Slot of the day that the next step falls into.
    fn slot_next(&self) -> usize {
        (self.steps % self.day as u64) as usize
    }

    /// Slot of the day `lead` steps after the last one; leads are a day at most.
    pub(super) fn slot(&self, lead: usize) -> usize {
        let slot = self.slot_now + lead;
        if slot < self.day {
            slot
        } else {
            slot - self.day
        }
    }

    /// Whether the slot of the next step was never seen.
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

    /// The sample so many steps ago, as a distance from the newest.
    fn back(&self, steps: usize) -> f32 {
        self.samples[self.end - 1 - steps] - self.samples[self.end - 1]
    }

    /// The value `steps` steps ago.
    pub(super) fn ago(&self, steps: usize) -> Option<f64> {
        let is_held = self.older_than(steps) && steps < self.capacity;
        is_held.then(|| f64::from(self.samples[self.end - 1 - steps]))
    }

    /// Whether there are more than `steps` samples.
    fn older_than(&self, steps: usize) -> bool {
        self.steps > steps as u64
    }

    /// The mean over `radius` steps to both sides of the one `steps` ago, as a distance from the newest.
    fn around(&self, steps: usize, radius: usize) -> Option<f32> {
        if !self.older_than(steps + radius) || steps + radius >= self.capacity {
            return None;
        }
        let radius = radius.min(steps);
        let (newest, at) = (self.samples[self.end - 1], self.end - 1 - steps);
        let sum = self.samples[at - radius..=at + radius]
            .iter()
            .fold(0.0, |sum, z| sum + (z - newest));
        Some(sum / (2 * radius + 1) as f32)
    }

    /// The value a week before the target, smoothed a little, or a medium average: as a distance from the newest.
    pub(super) fn week_ago(&self, lead: usize) -> f32 {
        let week = 7 * self.day;
        let found = if self.older_than(week) {
            self.around(week - lead, 1)
        } else {
            None
        };
        found.unwrap_or((self.medium - self.last) as f32)
    }

    /// The day's profile at the target, with today's distance from it fading over two hours; `fade` is [`Self::fade`].
    pub(super) fn by_profile(&self, lead: usize, fade: f64) -> f64 {
        if !self.older_than(self.day) {
            return self.slow;
        }
        let profile = |lead: usize| f64::from(self.profile[self.slot(lead)]);
        profile(lead) + fade * (self.fast - profile(0))
    }

    /// How much of today's distance from the profile is left after `lead` steps.
    pub(super) fn fade(&self, lead: usize) -> f64 {
        libm::exp(-0.5 * lead as f64 / self.hour as f64)
    }

    fn scale(&self) -> f32 {
        (1.0 / self.spread.max(SPREAD_MIN)) as f32
    }

    fn profile_at(&self, lead: usize) -> f32 {
        let slot = self.slot(lead);
        if self.older_than(self.day) && self.visits[slot] > 0 {
            self.profile[slot] - self.last as f32
        } else {
            0.0
        }
    }

    fn hourly_at(&self, lead: usize) -> f32 {
        if self.hour > 1 && self.older_than(6 * self.hour) {
            self.hourly[((self.minute_now + lead as u32) % self.hour as u32) as usize]
        } else {
            0.0
        }
    }

    /// What the regressions see of the present.
    pub(super) fn present(&self) -> [f32; COMMON] {
        let z = self.last;
        let day = self.day;
        let from = |value: f64| (value - z) as f32;
        let has_day = self.older_than(day);
        let around = |steps: usize| self.around(steps, radius(self.day)).unwrap_or(0.0);
        let mut x = [
            from(self.before[0]),
            from(self.fast),
            from(self.medium),
            from(self.slow),
            from(self.daily),
            self.spread as f32,
            from(self.before[1]),
            if has_day { around(day) } else { 0.0 },
            self.profile_at(0),
            if self.older_than(7 * day) {
                around(7 * day)
            } else {
                0.0
            },
            if has_day { self.back(day) } else { 0.0 },
            self.hourly_at(0),
        ];
        let scale = self.scale();
        for value in &mut x {
            *value *= scale;
        }
        x
    }

    /// What the analogs of a knot looked like.
    pub(super) fn analogs(&self, knot: usize) -> [f32; 2] {
        self.search.now(knot, &self.samples[..self.end])
    }

    /// What the regressions see when they look `lead` steps ahead from the present. `knot` is the place
    /// of the first knot at or after it, `now` its analogs; what followed each of them goes to `add`, with its
    /// weight.
    pub(super) fn features(
        &self,
        present: &[f32; COMMON],
        lead: usize,
        knot: usize,
        now: &[f32; 2],
        add: impl FnMut(f32, f32),
    ) -> Features {
        let day = self.day;
        let radius = radius(self.day);
        let to_day = day - lead.min(day);
        let to_hour = (lead as u32).div_ceil(self.hour as u32) as usize * self.hour - lead;
        let has_day = self.older_than(day);
        let around = |steps: usize| self.around(steps, radius).unwrap_or(0.0);
        let then = self.search.then(knot, lead, &self.samples[..self.end], add);
        let own = [
            if has_day { around(to_day) } else { 0.0 },
            if has_day { self.back(to_day) } else { 0.0 },
            self.profile_at(lead),
            if self.older_than(7 * day) {
                around(7 * day - lead.min(day))
            } else {
                0.0
            },
            if self.older_than(2 * day) {
                around(2 * day - lead % day)
            } else {
                0.0
            },
            if self.hour > 1 && self.older_than(2 * self.hour) {
                self.back(to_hour)
            } else {
                0.0
            },
            self.hourly_at(lead),
            then[0],
            now[0],
            then[1],
            now[1],
            (self.last - self.slow).abs() as f32,
        ];
        let scale = self.scale();
        let mut x = [0.0; FEATURES];
        x[..COMMON].copy_from_slice(present);
        for (x, value) in x[COMMON..].iter_mut().zip(own) {
            *x = value * scale;
        }
        x
    }
}
