//! A unit that changes under a series: kilobytes become bytes, per cent become shares.
//!
//! A sample that lies a unit's factor (100, 1000, 1024, their squares and cubes up to 10⁹, or the inverse) away from
//! the last twelve is suspect, if these were positive and within a factor of three of each other. Six suspect
//! samples in a row whose median lies within a factor of 1.5 of such a factor are another unit: what was learned before
//! them is taken over to it, and they are told again.
//! Nothing is held back meanwhile: the forecaster learns from suspect samples at once, as from any leap.
//!
//! Load that is switched on and off (a nightly batch) looks the same. It is told from units by three rules:
//!
//! * A value within what was ever seen, in the present unit, is never suspect, nor is one within two configured bounds.
//! * A change that undoes an earlier one takes it back, with the bounds that it widened. From then on leaps by that
//!   factor are load: it is watched no more.
//! * Values that aren't positive say nothing of units and widen nothing.
//!
//! How it fails: the first leap of such a load is followed as a change of the unit, and its time until the leap back is
//! remembered in the wrong one. Forecasts are right then too, since they are always in the unit of the newest samples;
//! they only take the old shape along. After a glitch as large as a changed unit, or a change that was taken back, a
//! true one is learned as load.

use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use super::DemandForecaster;

/// Samples that a new one is compared with.
const REFERENCE: usize = 12;
/// They must lie within this factor of each other.
const STEADY: f64 = 3.0;
/// Nearer than by this factor nothing is suspect.
const LEAP: f64 = 10.0;
/// Suspect samples that make another unit.
const CONFIRM: usize = 6;
/// A suspect sample may be off the unit's factor by this factor, the median of them by that.
const NEAR: f64 = 2.0;
const NEAR_MEDIAN: f64 = 1.5;
/// Missing samples among suspect ones at most.
const MISSING_MAX: usize = 6;
const FACTORS: [f64; 7] = [
    100.0,
    1e3,
    1024.0,
    1e6,
    1024.0 * 1024.0,
    1e9,
    1024.0 * 1024.0 * 1024.0,
];
/// Factors this near to each other can't be told apart: 1000 and 1024, and their powers.
const ALIKE: f64 = 1.1;
/// Bounds of all changes together.
const UNIT_MAX: f64 = 1e100;
/// Bounds of the forecaster's scale.
pub(super) const SCALE_MIN: f64 = 1e-15;
pub(super) const SCALE_MAX: f64 = 1e15;

/// What a sample looks like.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Verdict {
    /// The unit is what it was.
    Usual,
    /// It may be another unit.
    Suspect,
    /// It is another unit: old values times this are new ones. The suspect samples are
    /// [`UnitWatch::suspects`], this one being the last.
    Changed(f64),
}

/// Looks for changes of the unit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct UnitWatch {
    recent: Vec<f64>,
    suspects: Vec<Option<f64>>,
    unit: f64,
    changes: u64,
    /// What was configured, in the first unit.
    lower: Option<f64>,
    upper: Option<f64>,
    /// Least and most positive value ever seen, in the present unit.
    seen: Option<(f64, f64)>,
    /// By the place in [`FACTORS`]: the latest change by it or its inverse.
    followed: [Option<f64>; FACTORS.len()],
    /// Leaps by it turned out to be load.
    is_load: [bool; FACTORS.len()],
}

/// Whether leaps by the one can't be told from leaps by the other, up or down.
fn is_alike(a: f64, b: f64) -> bool {
    let size = |factor: f64| libm::fabs(libm::log(factor));
    libm::fabs(size(a) - size(b)) < libm::log(ALIKE)
}

/// The factor nearest to `ratio`, if it is within `near` of it.
fn factor_near(ratio: f64, near: f64) -> Option<f64> {
    let off = |factor: f64| libm::fabs(libm::log(ratio / factor));
    FACTORS
        .into_iter()
        .flat_map(|factor| [factor, 1.0 / factor])
        .min_by(|a, b| off(*a).total_cmp(&off(*b)))
        .filter(|factor| off(*factor) <= libm::log(near))
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = [0.0; REFERENCE];
    let sorted = &mut sorted[..values.len()];
    sorted.copy_from_slice(values);
    sorted.sort_unstable_by(f64::total_cmp);
    sorted.get(values.len() / 2).copied().unwrap_or(0.0)
}

impl UnitWatch {
    /// `lower` and `upper`: bounds of the series, as far as it has any.
    pub(super) fn new(lower: Option<f64>, upper: Option<f64>) -> Self {
        Self {
            recent: Vec::with_capacity(REFERENCE),
            suspects: Vec::with_capacity(CONFIRM + MISSING_MAX + 1),
            unit: 1.0,
            changes: 0,
            lower,
            upper,
            seen: None,
            followed: [None; FACTORS.len()],
            is_load: [false; FACTORS.len()],
        }
    }

    /// How many of today's units were one at the beginning, and how often that changed.
    pub(super) fn unit(&self) -> (f64, u64) {
        (self.unit, self.changes)
    }

    /// The bounds, widened by the unit if need be, never narrowed: a bound that is too far out does no harm.
    pub(super) fn bounds(&self) -> (Option<f64>, Option<f64>) {
        let unit = self.unit;
        (
            self.lower.map(|lower| lower.min(lower * unit)),
            self.upper.map(|upper| upper.max(upper * unit)),
        )
    }

    /// The latest samples of what is suspect.
    pub(super) fn suspects(&self) -> &[Option<f64>] {
        &self.suspects
    }

    /// Takes the next sample.
    pub(super) fn observe(&mut self, sample: Option<f64>) -> Verdict {
        let is_open = !self.suspects.is_empty();
        let is_suspect = match sample {
            None => is_open && self.suspects.iter().filter(|y| y.is_none()).count() < MISSING_MAX,
            Some(y) => {
                (is_open || self.is_leap(y)) && self.ratio_is_near(y) && !self.is_ordinary(y)
            }
        };
        if !is_suspect {
            self.clear();
            if let Some(y) = sample {
                self.remember(y);
            }
            return Verdict::Usual;
        }
        self.suspects.push(sample);
        let mut values = [0.0; CONFIRM];
        let mut n = 0;
        for y in self.suspects.iter().flatten() {
            values[n] = *y;
            n += 1;
        }
        if n < CONFIRM {
            return Verdict::Suspect;
        }
        let ratio = median(&values) / median(&self.recent);
        let Some(factor) = factor_near(ratio, NEAR_MEDIAN) else {
            self.clear();
            return Verdict::Usual;
        };
        let factor = self.follow(factor);
        self.unit = (self.unit * factor).clamp(1.0 / UNIT_MAX, UNIT_MAX);
        self.changes += 1;
        Verdict::Changed(factor)
    }

    /// Notes a change by `factor`, and gives the exact one if it undoes an earlier change.
    fn follow(&mut self, factor: f64) -> f64 {
        let alike = |i: &usize| is_alike(FACTORS[*i], factor);
        let is_up = factor > 1.0;
        let earlier = (0..FACTORS.len())
            .filter(alike)
            .find_map(|i| self.followed[i].filter(|earlier| (*earlier > 1.0) != is_up));
        let factor = earlier.map_or(factor, |earlier| 1.0 / earlier);
        for i in (0..FACTORS.len()).filter(alike) {
            self.followed[i] = Some(factor);
            self.is_load[i] |= earlier.is_some();
        }
        self.seen = self.seen.map(|(least, most)| {
            if earlier.is_some() {
                // It was one unit all the time.
                (least.min(least * factor), most.max(most * factor))
            } else {
                (least * factor, most * factor)
            }
        });
        factor
    }

    /// Nothing is suspect any more: suspect samples are samples like others.
    pub(super) fn clear(&mut self) {
        for i in 0..self.suspects.len() {
            if let Some(y) = self.suspects[i] {
                self.remember(y);
            }
        }
        self.suspects.clear();
    }

    /// Another unit is in force: only samples in it are compared with.
    pub(super) fn settle(&mut self) {
        self.recent.clear();
        self.clear();
    }

    fn remember(&mut self, y: f64) {
        if self.recent.len() == REFERENCE {
            self.recent.remove(0);
        }
        self.recent.push(y);
        if y > 0.0 {
            let (least, most) = self.seen.unwrap_or((y, y));
            self.seen = Some((least.min(y), most.max(y)));
        }
    }

    /// `y` is within what was seen (by and large) or may be: a value of the present unit like others.
    fn is_ordinary(&self, y: f64) -> bool {
        let was_seen = self
            .seen
            .is_some_and(|(least, most)| (least / NEAR_MEDIAN..=most * NEAR_MEDIAN).contains(&y));
        let is_bounded = self
            .lower
            .zip(self.upper)
            .is_some_and(|(lower, upper)| (lower * self.unit..=upper * self.unit).contains(&y));
        was_seen || is_bounded
    }

    /// The samples before were steady, and `y` is far from all of them.
    fn is_leap(&self, y: f64) -> bool {
        let least = self.recent.iter().copied().fold(f64::MAX, f64::min);
        let most = self.recent.iter().copied().fold(0.0, f64::max);
        let is_steady = self.recent.len() == REFERENCE && least > 0.0 && most <= STEADY * least;
        is_steady && !(least / LEAP..=most * LEAP).contains(&y)
    }

    fn ratio_is_near(&self, y: f64) -> bool {
        let factor = factor_near(y / median(&self.recent), NEAR);
        let is_load = |factor: f64| {
            let mut factors = FACTORS.into_iter().zip(self.is_load);
            factors.any(|(load, is_load)| is_load && is_alike(load, factor))
        };
        y > 0.0 && factor.is_some_and(|factor| !is_load(factor))
    }
}

impl DemandForecaster {
    /// Takes what was learned over to another unit, in which old values are `factor` times as large. Bounds are widened
    /// if need be, never narrowed: a bound that is too far out does no harm.
    ///
    /// A factor that is not positive and finite changes nothing.
    pub fn change_unit(&mut self, factor: f64) {
        if !(factor > 0.0 && factor.is_finite()) {
            return;
        }
        self.scale = (self.scale * factor).clamp(SCALE_MIN, SCALE_MAX);
        if let Some(upper) = &mut self.config.upper {
            *upper = upper.max(*upper * factor);
        }
        if let Some(lower) = &mut self.config.lower {
            *lower = lower.min(*lower * factor);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watch(values: impl IntoIterator<Item = f64>) -> (UnitWatch, Vec<Verdict>) {
        watch_within(None, None, values)
    }

    fn watch_within(
        lower: Option<f64>,
        upper: Option<f64>,
        values: impl IntoIterator<Item = f64>,
    ) -> (UnitWatch, Vec<Verdict>) {
        let mut watch = UnitWatch::new(lower, upper);
        let verdicts = values
            .into_iter()
            .map(|y| {
                let verdict = watch.observe(Some(y));
                if let Verdict::Changed(_) = verdict {
                    watch.settle();
                }
                verdict
            })
            .collect();
        (watch, verdicts)
    }

    #[test]
    fn each_unit_is_told_by_its_factor_there_and_back() {
        for factor in FACTORS {
            let wave = |t: u32| 50.0 + f64::from(t % 7);
            let values = (0..60).map(|t| {
                if (20..40).contains(&t) {
                    wave(t) * factor
                } else {
                    wave(t)
                }
            });
            let (watch, verdicts) = watch(values);
            let Verdict::Changed(found) = verdicts[25] else {
                panic!("{factor}: {verdicts:?}");
            };
            // 1000 and 1024 are told apart only where the series is that quiet.
            assert!((found / factor - 1.0).abs() < 0.08, "{factor}: {found}");
            assert!(
                matches!(verdicts[45], Verdict::Changed(_)),
                "{factor}: {verdicts:?}"
            );
            assert!((watch.unit().0 - 1.0).abs() < 1e-9, "{factor}");
            assert_eq!(watch.unit().1, 2);
        }
    }

    #[test]
    fn load_switched_on_and_off_is_taken_for_a_unit_once_at_most() {
        for factor in FACTORS
            .into_iter()
            .flat_map(|factor| [factor, 1.0 / factor])
        {
            let values = (0..600_u32).map(|t| {
                let wave = 50.0 + f64::from(t % 7);
                if t / 20 % 2 == 1 { wave * factor } else { wave }
            });
            let (watch, verdicts) = watch_within(None, Some(1e5), values);
            assert_eq!(watch.unit().1, 2, "{factor}");
            assert!((watch.unit().0 - 1.0).abs() < 1e-9, "{factor}");
            // What was widened is as it was.
            assert!(watch.bounds().1.is_some_and(|upper| upper < 1e5 * 1.001));
            // Nothing is kept back for a suspicion any more.
            assert!(verdicts[60..].iter().all(|v| *v == Verdict::Usual));
        }
    }

    #[test]
    fn what_lies_within_two_bounds_or_was_seen_before_is_no_unit() {
        let switched = |t: u32| if t / 20 % 2 == 1 { 60.0 } else { 0.6 };
        let (bounded, verdicts) = watch_within(Some(0.0), Some(100.0), (0..200).map(switched));
        assert_eq!(bounded.unit(), (1.0, 0));
        assert!(verdicts.iter().all(|v| *v == Verdict::Usual));
        // Some steps up, none of them a unit's; then down at once.
        let stairs = (0..60_u32).map(|t| [0.6, 3.0, 15.0, 60.0][(t / 5).min(3) as usize]);
        let (seen, _) = watch(stairs.chain((0..20).map(|_| 0.6)));
        assert_eq!(seen.unit(), (1.0, 0));
        // Out of the bounds is a unit.
        let leap = (0..60).map(|t| if t < 30 { 60.0 } else { 60_000.0 });
        let (beyond, _) = watch_within(Some(0.0), Some(100.0), leap);
        assert_eq!(beyond.unit(), (1_000.0, 1));
        assert_eq!(beyond.bounds(), (Some(0.0), Some(100_000.0)));
    }

    #[test]
    fn spikes_doublings_and_leaps_by_no_units_factor_are_none() {
        let steady = |t: u32| 50.0 + f64::from(t % 7);
        for (factor, length) in [(2.0, 30), (20.0, 30), (300.0, 30), (1000.0, 5), (100.0, 1)] {
            let values = (0..80).map(|t| {
                steady(t)
                    * if (20..20 + length).contains(&t) {
                        factor
                    } else {
                        1.0
                    }
            });
            let (watch, _) = watch(values);
            assert_eq!(watch.unit(), (1.0, 0), "{factor} for {length}");
        }
    }

    #[test]
    fn zeros_and_negatives_are_never_suspect() {
        let (_, verdicts) = watch((0..100).map(|t| [0.0, -5.0, 1e6, 1.0][t % 4]));
        assert!(verdicts.iter().all(|v| *v == Verdict::Usual));
    }
}
