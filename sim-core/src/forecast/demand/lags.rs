//! Which past moments looked like now: a search over all lags of up to a week.
//!
//! Every lag keeps a discounted distance between the latest samples and those that lag before them:
//! each sample multiplies it by a factor just below one and adds how far the two moments were apart
//! now. That is one multiplication and addition a lag and sample, over memory in a row. The lags
//! with the smallest distances are *analogs*: what followed them is what may follow now. With a
//! memory of an hour they are moments of the same shape, whenever these were; with a memory of
//! days they are the series' own periods, without naming any (a job each 3 hours, each 25 hours).
//!
//! Source: nearest neighbours in delay coordinates, E. N. Lorenz, "Atmospheric predictability as
//! revealed by naturally occurring analogues", J. Atmos. Sci. 26 (1969); J. D. Farmer & J. J. Sidorowich,
//! "Predicting chaotic time series", Phys. Rev. Lett. 59 (1987). The discounted distance over all
//! lags at once is what makes it cost the same at every sample.
//!
//! How it fails: in noise all lags are alike and the mean of the best is a noisy mean of the past; the
//! regression and the weights above it see that in the losses.

use alloc::{vec, vec::Vec};

use serde::{Deserialize, Serialize};

/// Analogs kept at each knot.
pub(super) const ANALOGS: usize = 12;
/// Outcomes kept together.
const OUTCOMES: usize = 2 * ANALOGS;
/// Lags looked at together when searching for the smallest.
const BLOCK: usize = 32;
const LANES: usize = 8;
/// Shorter lags are not looked at: a series that moves slowly resembles its last few samples
/// always, and they are features of their own.
const LAG_MIN: usize = 4;

/// One distance and its lag.
type Analog = (f32, u32);
const NONE: Analog = (f32::MAX, 0);

/// Distances of one memory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct LagSearch {
    /// Place `i` holds lag `len - i`, so that it runs in step with the samples' own order.
    distances: Vec<f32>,
    keep: f32,
    absolute: bool,
    /// Samples that must lie before a lag.
    needed: usize,
    /// How many analogs are averaged.
    used: usize,
    /// For each knot the best lags of at least its lead, best first.
    best: Vec<[Analog; ANALOGS]>,
}

impl LagSearch {
    /// Lags up to `longest`, a memory of `memory` samples. Absolute distances instead of squares
    /// let one large miss count less.
    pub(super) fn new(
        longest: usize,
        memory: f64,
        absolute: bool,
        needed: usize,
        used: usize,
        knots: usize,
    ) -> Self {
        Self {
            distances: vec![0.0; longest],
            keep: (1.0 - 1.0 / memory) as f32,
            absolute,
            needed,
            used: used.min(ANALOGS),
            best: vec![[NONE; ANALOGS]; knots],
        }
    }

    pub(super) fn reset(&mut self) {
        self.distances.fill(0.0);
        self.best.fill([NONE; ANALOGS]);
    }

    /// Takes the newest sample. `before` holds the `longest` samples before it, oldest first, of
    /// which the last `known` were seen; `knots` are the leads, ascending.
    pub(super) fn observe(&mut self, newest: f32, before: &[f32], known: usize, knots: &[usize]) {
        let longest = self.distances.len();
        let first = longest - known.min(longest);
        let pairs = self.distances[first..].iter_mut().zip(&before[first..]);
        let keep = self.keep;
        if self.absolute {
            for (d, b) in pairs {
                *d = *d * keep + (newest - b).abs();
            }
        } else {
            for (d, b) in pairs {
                let e = newest - b;
                *d = *d * keep + e * e;
            }
        }
        let mut from = longest - (known + 1).saturating_sub(self.needed).min(longest);
        let mut best = [NONE; ANALOGS];
        for (knot, kept) in knots.iter().zip(&mut self.best).rev() {
            // Places up to the lag that equals the lead.
            let to = longest + 1 - (*knot).max(LAG_MIN).min(longest);
            if from < to {
                search(
                    &self.distances[from..to],
                    longest - from,
                    &mut best[..self.used],
                );
                from = to;
            }
            *kept = best;
        }
    }

    /// Weighted mean of what came `lead` steps after the analogs, and of the analogs themselves.
    /// `back(n)` is the sample n steps ago.
    pub(super) fn follow(
        &self,
        knot: usize,
        lead: usize,
        back: impl Fn(usize) -> f64,
    ) -> Option<(f64, f64)> {
        let best = &self.best[knot][..self.used];
        let closest = f64::from(best[0].0) + 1e-12;
        let (mut then, mut now, mut total) = (0.0, 0.0, 0.0);
        for &(distance, lag) in best {
            let lag = lag as usize;
            if lag < lead {
                break;
            }
            let weight = closest / (f64::from(distance) + 1e-12);
            let weight = weight * weight;
            then += weight * back(lag - lead);
            now += weight * back(lag);
            total += weight;
        }
        (total > 0.0).then(|| (then / total, now / total))
    }
}

/// What came after the analogs, with weights, of several searches together.
#[derive(Clone, Debug)]
pub(super) struct Outcomes {
    values: [(f64, f64); OUTCOMES],
    count: usize,
}

impl Outcomes {
    pub(super) fn new() -> Self {
        Self {
            values: [(0.0, 0.0); OUTCOMES],
            count: 0,
        }
    }

    /// Adds those of one search.
    pub(super) fn add(
        &mut self,
        search: &LagSearch,
        knot: usize,
        lead: usize,
        back: impl Fn(usize) -> f64,
    ) {
        let best = &search.best[knot][..search.used];
        let closest = f64::from(best[0].0) + 1e-12;
        for &(distance, lag) in best {
            let lag = lag as usize;
            if lag < lead || self.count == OUTCOMES {
                break;
            }
            let value = back(lag - lead);
            self.values[self.count] = (value, closest / (f64::from(distance) + 1e-12));
            self.count += 1;
        }
    }

    /// Weighted quantiles and mean absolute distance from the mean; `None` for fewer than three.
    pub(super) fn quantiles<const N: usize>(
        &mut self,
        levels: &[f64; N],
    ) -> Option<([f64; N], f64)> {
        let values = &mut self.values[..self.count];
        if values.len() < 3 {
            return None;
        }
        values.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
        let (mut total, mut sum) = (0.0, 0.0);
        for (value, weight) in &*values {
            total += weight;
            sum += weight * value;
        }
        let mean = sum / total;
        let off = values
            .iter()
            .map(|(value, weight)| weight * (value - mean).abs())
            .sum::<f64>()
            / total;
        // Each value stands at the middle of its weight; quantiles are linear between.
        let mut quantiles = [values[values.len() - 1].0; N];
        let (mut before, mut place) = (0.0, (0.0, values[0].0));
        let mut next = 0;
        for &(value, weight) in &*values {
            let middle = before + 0.5 * weight;
            while next < N && levels[next] * total <= middle {
                let width = middle - place.0;
                let part = if width > 0.0 {
                    (levels[next] * total - place.0) / width
                } else {
                    1.0
                };
                quantiles[next] = place.1 + part * (value - place.1);
                next += 1;
            }
            place = (middle, value);
            before += weight;
        }
        Some((quantiles, off))
    }
}

/// Puts the smallest distances into `best`, which is sorted; `lag` is that of the first place.
fn search(distances: &[f32], lag: usize, best: &mut [Analog]) {
    let last = best.len() - 1;
    let mut lag = lag;
    for block in distances.chunks(BLOCK) {
        // Nearly every block holds nothing new: few comparisons for all of it.
        let mut lanes = [f32::MAX; LANES];
        for part in block.chunks(LANES) {
            for (lane, &d) in lanes.iter_mut().zip(part) {
                *lane = if d < *lane { d } else { *lane };
            }
        }
        let smallest = lanes
            .into_iter()
            .fold(f32::MAX, |a, b| if b < a { b } else { a });
        if smallest < best[last].0 {
            for (i, &d) in block.iter().enumerate() {
                if d < best[last].0 {
                    let mut at = last;
                    while at > 0 && best[at - 1].0 > d {
                        best[at] = best[at - 1];
                        at -= 1;
                    }
                    best[at] = (d, (lag - i) as u32);
                }
            }
        }
        lag = lag.saturating_sub(block.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unnamed_period_is_found_and_followed() {
        let period = 37;
        let value = |t: usize| {
            if t % period < 3 {
                10.0
            } else {
                (t % period % 5) as f64
            }
        };
        let mut s = LagSearch::new(200, 60.0, true, 1, 3, 2);
        let knots = [1, 20];
        let mut samples: Vec<f32> = vec![0.0; 200];
        for t in 0..400 {
            s.observe(value(t) as f32, &samples[samples.len() - 200..], t, &knots);
            samples.push(value(t) as f32);
        }
        let back = |n: usize| value(399 - n);
        for (knot, lead) in [(0, 1), (1, 20)] {
            let (then, now) = s.follow(knot, lead, back).unwrap();
            assert!((then - value(399 + lead)).abs() < 1e-9, "{then}");
            assert!((now - value(399)).abs() < 1e-9);
            assert!(
                s.best[knot][..3]
                    .iter()
                    .all(|b| (b.1 as usize).is_multiple_of(period))
            );
        }
    }

    #[test]
    fn quantiles_of_outcomes_lie_between_them_and_follow_the_weights() {
        let mut o = Outcomes::new();
        for (i, value) in [3.0, 1.0, 2.0].into_iter().enumerate() {
            o.values[i] = (value, 1.0);
        }
        o.count = 2;
        assert_eq!(o.quantiles(&[0.5]), None);
        o.count = 3;
        let (q, off) = o.quantiles(&[0.01, 0.5, 0.99]).unwrap();
        assert!((q[1] - 2.0).abs() < 1e-12 && q[0] >= 1.0 - 1e-12 && q[2] <= 3.0);
        assert!((off - 2.0 / 3.0).abs() < 1e-12);
    }

    #[test]
    fn without_samples_there_is_no_analog() {
        let mut s = LagSearch::new(50, 12.0, false, 24, 12, 1);
        let before = [0.0; 50];
        for known in 0..26 {
            s.observe(1.0, &before, known, &[1]);
        }
        assert_eq!(s.follow(0, 1, |_| 0.0), None);
        s.observe(1.0, &before, 28, &[1]);
        assert!(s.follow(0, 1, |_| 0.0).is_some());
    }
}
