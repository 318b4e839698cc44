//! A unit that changes under a series: kilobytes become bytes, per cent become shares.
//!
//! A sample that lies a unit's factor (100, 1000, 1024, their squares and cubes up to 10⁹, or the inverse) away from
//! the last twelve is suspect, if these were positive and within a factor of three of each other. Six suspect
//! samples in a row whose median lies within a factor of 1.5 of such a factor are another unit: what was learned before
//! them is taken over to it, and they are told again.
//! Nothing is held back meanwhile: the forecaster learns from suspect samples at once, as from any leap.
//!
//! How it fails: demand that truly rises a hundredfold from one sample to the next looks the same. Forecasts are
//! right then too, since they are always in the unit of the newest samples; they only take the old shape along.

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
    pub(super) fn new() -> Self {
        Self {
            recent: Vec::with_capacity(REFERENCE),
            suspects: Vec::with_capacity(CONFIRM + MISSING_MAX + 1),
            unit: 1.0,
            changes: 0,
        }
    }

    /// How many of today's units were one at the beginning, and how often that changed.
    pub(super) fn unit(&self) -> (f64, u64) {
        (self.unit, self.changes)
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
            Some(y) => (is_open || self.is_leap(y)) && self.ratio_is_near(y),
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
        self.unit = (self.unit * factor).clamp(1.0 / UNIT_MAX, UNIT_MAX);
        self.changes += 1;
        Verdict::Changed(factor)
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
    }

    /// The samples before were steady, and `y` is far from all of them.
    fn is_leap(&self, y: f64) -> bool {
        let least = self.recent.iter().copied().fold(f64::MAX, f64::min);
        let most = self.recent.iter().copied().fold(0.0, f64::max);
        let is_steady = self.recent.len() == REFERENCE && least > 0.0 && most <= STEADY * least;
        is_steady && !(least / LEAP..=most * LEAP).contains(&y)
    }

    fn ratio_is_near(&self, y: f64) -> bool {
        y > 0.0 && factor_near(y / median(&self.recent), NEAR).is_some()
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
        let mut watch = UnitWatch::new();
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
            assert!((watch.unit().0 - 1.0).abs() < 0.1);
            assert_eq!(watch.unit().1, 2);
        }
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
