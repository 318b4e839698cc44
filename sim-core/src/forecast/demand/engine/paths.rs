//! Knots' leads, and the largest up to some of them: whether a threshold is crossed, and when.

use alloc::vec::Vec;

use super::super::history::window::{self, WINDOW, Window};
use super::super::joint::{Now, PEAK_LEVELS};
use super::super::lanes::{LANES, Lanes};
use super::super::outcomes::Outcomes;
use super::{Common, Engine, Ingredients, KNOTS_MAX};
use crate::forecast::output::ForecastStep;

/// Leads spread evenly by their logarithms, from 1 to the horizon.
pub(super) fn leads(horizon: usize) -> Vec<usize> {
    let step = libm::log(horizon as f64) / (KNOTS_MAX - 1) as f64;
    let mut leads: Vec<usize> = (0..KNOTS_MAX)
        .map(|i| libm::round(libm::exp(step * i as f64)) as usize)
        .collect();
    leads.dedup();
    leads
}

/// How far forecasts at a lead are thinned out. Neighbouring ones say nearly the same of far targets; that they
/// are learned from more seldom makes regressions steadier and costs nothing in quality. With a sample an hour or fewer
/// there is nothing to be left out.
pub(super) fn thinning(lead: usize, hour: usize) -> u32 {
    match lead {
        _ if hour == 1 => 0,
        0..6 => 0,
        6..12 => 1,
        _ => 2,
    }
}

/// Whether the largest up to a knot is forecast: at every second one, and at the last.
pub(super) fn has_joint(knot: usize, knots: usize) -> bool {
    knot > 0 && (knot.is_multiple_of(2) || knot + 1 == knots)
}

/// What was forecast at a knot, relative to the last value.
#[derive(Clone, Copy)]
pub(super) struct Spoken {
    pub(super) issued: Lanes,
    pub(super) spread: f32,
    /// Of the target.
    pub(super) hour: u8,
}

impl Engine {
    /// Learns from the windows that end with the sample `z`.
    pub(super) fn score_peaks(&mut self, step: u64, z: f32) {
        let day = self.day as f32;
        let horizon = self.presents.len() as u64;
        let (mut peak, mut reach) = (z, 0);
        for knot in &mut self.knots {
            let lead = knot.ahead.lead;
            let Some(from) = step.checked_sub(lead as u64) else {
                break;
            };
            let (place, each) = (knot.place(from), knot.each());
            let (Some(joint), Some(place)) = (&mut knot.joint, place) else {
                continue;
            };
            peak = peak.max(self.history.peak_lately(reach, lead - 1));
            reach = lead - 1;
            let present = &self.presents[(from % horizon) as usize];
            if present.filed {
                let above = peak - present.z as f32;
                joint.learn(place, above, (present.unit, present.state), day, each);
            }
        }
    }

    /// Files forecasts of the largest up to those knots that have `spoken` for their own steps. What the others said
    /// last is a few steps old at most.
    pub(super) fn file_peaks(
        &mut self,
        step: u64,
        common: &Common,
        spoken: &[Option<Spoken>; KNOTS_MAX],
    ) {
        let z = self.history.last() as f32;
        let mut outcomes = Outcomes::<KNOTS_MAX>::new();
        let mut windows = [[0.0; WINDOW]; KNOTS_MAX];
        let mut largest = [f32::MIN; LANES];
        let mut steps = [largest; KNOTS_MAX];
        let knots = self.knots.len();
        for (j, spoken) in spoken[..knots].iter().enumerate() {
            if let Some(spoken) = spoken {
                self.knots[j].heard = spoken.issued.map(|q| z + q);
            }
            let knot = &self.knots[j];
            larger(&mut largest, &knot.heard.map(|q| q - z));
            steps[j] = largest;
            if knot.joint.is_some() && spoken.is_some() {
                let add = |value, weight| outcomes.add(j, value, weight);
                windows[j] = self.window(j, &largest, add);
            }
        }
        let sorted = outcomes.sort();
        for (j, spoken) in spoken[..knots].iter().enumerate() {
            let place = self.knots[j].place(step);
            let (Some(spoken), Some(place)) = (spoken, place) else {
                continue;
            };
            let quantiles = sorted.quantiles(j, &PEAK_LEVELS);
            let now = self.now(common, spoken, windows[j], &steps[j], quantiles);
            if let Some(joint) = &mut self.knots[j].joint {
                joint.file(place, &now);
            }
        }
    }

    fn window(&self, knot: usize, largest: &Lanes, add: impl FnMut(f32, f32)) -> Window {
        let steps = [largest[2], largest[3]];
        let mut window = self.history.window(knot, self.leads[knot], steps, add);
        if !self.ingredients.has(Ingredients::ANALOGS) {
            window[window::ANALOGS].fill(0.0);
        }
        window
    }

    fn now(
        &self,
        common: &Common,
        spoken: &Spoken,
        features: Window,
        largest: &Lanes,
        analogs: Option<(Lanes, f32)>,
    ) -> Now {
        let (low, high) = self.history.range();
        let z = self.history.last();
        Now {
            unit: common.unit,
            spread: spoken.spread,
            state: common.state,
            hour: spoken.hour,
            features,
            analogs: analogs.map_or([0.0; LANES], |(q, _)| q),
            steps: spread_levels(largest),
            range: ((low - z) as f32, (high - z) as f32),
        }
    }

    /// What knot `j` says now.
    fn speak(&self, common: &Common, j: usize) -> Spoken {
        let knot = &self.knots[j];
        let mut outcomes = Outcomes::<1>::new();
        let add = |value, weight| outcomes.add(0, value, weight);
        let x = self.features(common, knot.ahead.lead, j, add);
        let value = knot.regression.predict(&x);
        let said = self.moment(&knot.ahead, common, &x, value, &outcomes.sort(), 0);
        let reading = self.reading(j, common, &said);
        let views = said.moment.views(reading.spread);
        Spoken {
            issued: self.settle(knot.tracker.combine(&views, &self.hours)),
            spread: reading.spread,
            hour: said.moment.bins[0],
        }
    }

    /// Chance that any of the next `steps` exceeds `threshold`: that of the largest up to the knots, and never less
    /// than over fewer steps.
    pub(in super::super) fn exceeds(&self, threshold: f64, steps: usize) -> f64 {
        let mut before = self.start(threshold);
        for next in self.chances(threshold) {
            if steps <= before.0 {
                break;
            }
            let next = (next.0, next.1.max(before.1));
            if steps < next.0 {
                let mut between = self.between(threshold, before, next);
                let found = between.nth(steps - before.0 - 1);
                return found.map_or(next.1, |(_, chance)| chance);
            }
            before = next;
        }
        before.1
    }

    /// The first step by which `threshold` is exceeded with a chance of `level` or more.
    pub(in super::super) fn first_crossing(&self, threshold: f64, level: f64) -> Option<usize> {
        let mut before = self.start(threshold);
        if before.1 >= level {
            return Some(before.0);
        }
        for next in self.chances(threshold) {
            let next = (next.0, next.1.max(before.1));
            if next.1 >= level {
                let mut between = self.between(threshold, before, next);
                let found = between.find(|&(_, chance)| chance >= level);
                return Some(found.map_or(next.0, |(step, _)| step));
            }
            before = next;
        }
        None
    }

    /// Steps after one knot and before the next, with the chance of a crossing up to each. Whether there is one between
    /// the knots is known; when it is, the steps' own chances tell.
    fn between(
        &self,
        threshold: f64,
        before: (usize, f64),
        next: (usize, f64),
    ) -> impl Iterator<Item = (usize, f64)> {
        let alone = move |step: usize| {
            let step = ForecastStep {
                mean: 0.0,
                quantiles: self.quantiles(step),
            };
            step.probability_above(threshold)
        };
        // As if steps crossed independently of each other: the chance that none has yet.
        let calm = |calm: f64, step: usize| calm * (1.0 - alone(step));
        let total = 1.0 - (before.0 + 1..=next.0).fold(1.0, calm);
        let mut none = 1.0;
        (before.0 + 1..next.0).map(move |step| {
            none *= 1.0 - alone(step);
            (
                step,
                before.1 + (next.1 - before.1) * ((1.0 - none) / total),
            )
        })
    }

    /// The first step and the chance that it exceeds `threshold`.
    fn start(&self, threshold: f64) -> (usize, f64) {
        let next = ForecastStep {
            mean: 0.0,
            quantiles: self.quantiles(1),
        };
        (1, next.probability_above(threshold))
    }

    /// Leads, and the chance that any step up to each exceeds `threshold`.
    fn chances(&self, threshold: f64) -> impl Iterator<Item = (usize, f64)> {
        let threshold = (threshold - self.history.last()) as f32;
        let common = self.common();
        let mut largest = [f32::MIN; LANES];
        self.knots.iter().enumerate().filter_map(move |(j, knot)| {
            let spoken = self.speak(&common, j);
            larger(&mut largest, &spoken.issued);
            let joint = knot.joint.as_ref()?;
            let mut outcomes = Outcomes::<1>::new();
            let add = |value, weight| outcomes.add(0, value, weight);
            let window = self.window(j, &largest, add);
            let quantiles = outcomes.sort().quantiles(0, &PEAK_LEVELS);
            let now = self.now(&common, &spoken, window, &largest, quantiles);
            Some((knot.ahead.lead, joint.exceeds(&now, threshold)))
        })
    }
}

/// The larger of each two.
fn larger(largest: &mut Lanes, others: &Lanes) {
    for (largest, &other) in largest.iter_mut().zip(others) {
        *largest = if other > *largest { other } else { *largest };
    }
}

/// Quantiles at the levels of the largest from those at the levels of a step. Between the median and 90 % the
/// logarithm of the chance is linear.
fn spread_levels(q: &Lanes) -> Lanes {
    let between = |part: f32| q[2] + part * (q[3] - q[2]);
    [
        q[0],
        q[1],
        q[2],
        between(0.3174),
        between(0.5693),
        q[3],
        q[4],
        q[5],
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knots_run_from_the_next_step_to_the_horizon() {
        assert_eq!(leads(72), [1, 2, 3, 6, 12, 21, 39, 72]);
        assert_eq!(leads(360), [1, 2, 5, 12, 29, 67, 155, 360]);
        assert_eq!(leads(6), [1, 2, 3, 4, 5, 6]);
        assert_eq!(leads(1), [1]);
    }
}
