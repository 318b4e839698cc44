//! Which past moments looked like now: a search over all lags of up to a week.
//!
//! Every lag keeps a discounted distance between the latest samples and those that lag before them:
//! each sample multiplies it by a factor just below one and adds how far the two moments were apart
//! now. That is one multiplication and addition a lag and sample, over memory in a row. The lags
//! with the smallest distances are *analogs*: what followed them is what may follow now. With a
//! memory of a dozen samples they are moments of the same shape, whenever these were; with one of six dozen
//! they are mostly the series' own periods, without naming any (a job each 3 hours, each 25 hours). A third
//! memory of two days was no better (.4241 without it for .4244 of quantile loss on the first split).
//!
//! Source: nearest neighbours in delay coordinates, E. N. Lorenz, "Atmospheric predictability as
//! revealed by naturally occurring analogues", J. Atmos. Sci. 26 (1969); J. D. Farmer & J. J. Sidorowich,
//! "Predicting chaotic time series", Phys. Rev. Lett. 59 (1987). The discounted distance over all
//! lags at once is what makes it cost the same at every sample.
//!
//! Cost: the memories are brought up to date in one pass, block by block. The lags that were best a
//! sample ago are still good, so the worst of them now is a bound that nearly every block lies above.
//!
//! How it fails: in noise all lags are alike and the mean of the best is a noisy mean of the past; the
//! regression and the weights above it see that in the losses.

mod peaks;

use alloc::{vec, vec::Vec};

use serde::{Deserialize, Serialize};

use super::lanes::{dot, least};
pub(super) use peaks::largest;

/// Analogs kept at each knot.
pub(super) const ANALOGS: usize = 12;
/// Lags looked at together.
pub(super) const BLOCK: usize = 32;
const WIDTH: usize = 8;
/// Shorter lags are not looked at: a series that moves slowly resembles its last few samples
/// always, and they are features of their own.
const LAG_MIN: usize = 4;
/// Keeps a distance of nothing from weighing without bound.
const GRAIN: f32 = 1e-12;

/// One distance and its lag.
type Analog = (f32, u32);
const NONE: Analog = (f32::MAX, 0);

/// What makes one memory different from another.
#[derive(Clone, Copy, Debug)]
pub(super) struct Recall {
    /// Samples.
    pub(super) memory: f64,
    /// Samples that must lie before a lag.
    pub(super) needed: usize,
    /// How many analogs are used, at most [`ANALOGS`].
    pub(super) used: usize,
}

/// Distances of one memory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Memory {
    /// Place `i` holds lag `len - i`, so that it runs in step with the samples' own order.
    distances: Vec<f32>,
    keep: f32,
    needed: usize,
    used: usize,
    /// For each knot the best lags of at least its lead.
    found: Vec<Found>,
}

/// The best lags, best first, and how much each weighs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct Found {
    count: u8,
    lags: [u16; ANALOGS],
    weights: [f32; ANALOGS],
}

impl Found {
    const NONE: Self = Self {
        count: 0,
        lags: [0; ANALOGS],
        weights: [0.0; ANALOGS],
    };

    /// Weights go with the reciprocal of the distance, that of the closest being one.
    fn new(best: &[Analog; ANALOGS]) -> Self {
        let closest = best[0].0 + GRAIN;
        Self {
            count: best.iter().filter(|b| b.1 > 0).count() as u8,
            lags: best.map(|b| b.1 as u16),
            weights: best.map(|b| {
                if b.1 > 0 {
                    closest / (b.0 + GRAIN)
                } else {
                    0.0
                }
            }),
        }
    }

    fn lags(&self) -> &[u16] {
        &self.lags[..usize::from(self.count)]
    }

    /// Mean over what stands so many steps after the analogs, as a distance from the newest sample;
    /// each one goes to `add`, with its weight.
    fn mean(&self, after: usize, recent: &[f32], mut add: impl FnMut(f32, f32)) -> f32 {
        let newest = recent.len() - 1;
        let mut values = [0.0; ANALOGS];
        for ((value, &lag), &weight) in values.iter_mut().zip(self.lags()).zip(&self.weights) {
            *value = recent[newest + after - usize::from(lag)] - recent[newest];
            add(*value, weight);
        }
        let squares = self.weights.map(|w| w * w);
        let total = dot(&squares, &[1.0; ANALOGS]);
        if total > 0.0 {
            dot(&squares, &values) / total
        } else {
            0.0
        }
    }
}

/// The search, over two memories: a short and a long look at the shape.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct LagSearch {
    longest: usize,
    /// The same as whole blocks.
    places: usize,
    shape: Memory,
    long: Memory,
}

impl Memory {
    fn new(places: usize, knots: usize, recall: Recall) -> Self {
        Self {
            distances: vec![0.0; places],
            keep: (1.0 - 1.0 / recall.memory) as f32,
            needed: recall.needed,
            used: recall.used.min(ANALOGS),
            found: vec![Found::NONE; knots],
        }
    }

    fn reset(&mut self) {
        self.distances.fill(0.0);
        self.found.fill(Found::NONE);
    }

    /// No lag that was best a sample ago is now worse than this. `after` is the distance that is added
    /// to a lag now.
    fn bound(&self, after: impl Fn(usize) -> f32) -> f32 {
        let mut bound = 0.0;
        let last = self.found.last().map_or(&[][..], Found::lags);
        if last.len() < self.used {
            return f32::MAX;
        }
        for &lag in last {
            let lag = usize::from(lag);
            let d = self.distances[self.distances.len() - lag] * self.keep + after(lag);
            bound = if d > bound { d } else { bound };
        }
        bound
    }

    /// First place whose lag has enough samples before it.
    fn from(&self, known: usize, longest: usize) -> usize {
        self.distances.len() - (known + 1).saturating_sub(self.needed).min(longest)
    }
}

/// The smallest distances so far, best first.
struct Search {
    best: [Analog; ANALOGS],
    last: usize,
    /// Places before this one are not yet lags.
    from: usize,
    bound: f32,
}

impl Search {
    fn new(memory: &Memory, bound: f32, from: usize) -> Self {
        Self {
            best: [NONE; ANALOGS],
            last: memory.used - 1,
            from,
            bound,
        }
    }

    /// Takes what is small enough of a block; the first of its distances stands at `place` of `places`.
    fn take_block(&mut self, block: &[f32], place: usize, places: usize) {
        for (i, part) in block.chunks(WIDTH).enumerate() {
            let mut is_near = false;
            for &d in part {
                is_near |= d <= self.bound;
            }
            if is_near {
                self.take(part, place + WIDTH * i, places);
            }
        }
    }

    /// Takes what is small enough of these distances, however many they are.
    fn take(&mut self, distances: &[f32], place: usize, places: usize) {
        for (place, &d) in (place..).zip(distances) {
            if d <= self.bound && d < self.best[self.last].0 && place >= self.from {
                let mut at = self.last;
                while at > 0 && self.best[at - 1].0 > d {
                    self.best[at] = self.best[at - 1];
                    at -= 1;
                }
                self.best[at] = (d, (places - place) as u32);
            }
        }
    }
}

fn smallest(block: &[f32; BLOCK]) -> f32 {
    let mut lanes = [f32::MAX; WIDTH];
    for part in block.chunks_exact(WIDTH) {
        for (lane, &d) in lanes.iter_mut().zip(part) {
            *lane = least(*lane, d);
        }
    }
    let [a, b, c, d, e, f, g, h] = lanes;
    let four = [least(a, e), least(b, f), least(c, g), least(d, h)];
    least(least(four[0], four[2]), least(four[1], four[3]))
}

impl LagSearch {
    /// Lags up to `longest`.
    pub(super) fn new(longest: usize, knots: usize, [shape, long]: [Recall; 2]) -> Self {
        let places = longest.next_multiple_of(BLOCK);
        Self {
            longest,
            places,
            shape: Memory::new(places, knots, shape),
            long: Memory::new(places, knots, long),
        }
    }

    /// How many samples [`Self::observe`] looks at, of `known` ones: all lags that there are, in whole blocks.
    pub(super) fn needs(&self, known: usize) -> usize {
        let first = self.places - known.min(self.longest);
        self.places - first / BLOCK * BLOCK
    }

    pub(super) fn reset(&mut self) {
        for memory in [&mut self.shape, &mut self.long] {
            memory.reset();
        }
    }

    /// Takes the newest sample. `before` holds the samples before it, oldest first, as many as
    /// [`Self::needs`], of which the last `known` were seen; `knots` are the leads, ascending.
    pub(super) fn observe(&mut self, newest: f32, before: &[f32], known: usize, knots: &[usize]) {
        let (longest, places) = (self.longest, self.places);
        let square = |lag: usize| {
            let away = newest - before[before.len() - lag];
            away * away
        };
        let (shape, long) = (&mut self.shape, &mut self.long);
        let start =
            |memory: &Memory, bound: f32| Search::new(memory, bound, memory.from(known, longest));
        let mut searches = [
            start(shape, shape.bound(square)),
            start(long, long.bound(square)),
        ];
        let keeps = [shape.keep, long.keep];
        let first = places - known.min(longest);
        // Blocks from this one on hold lags shorter than the last knot's lead.
        let last_lead = knots.last().copied().unwrap_or(1).max(LAG_MIN);
        let end = places + 1 - last_lead.min(longest);
        let begin = places - before.len();
        let blocks = before.chunks_exact(BLOCK);
        let blocks = blocks
            .zip(shape.distances[begin..].chunks_exact_mut(BLOCK))
            .zip(long.distances[begin..].chunks_exact_mut(BLOCK));
        for (b, ((before, shape), long)) in blocks.enumerate() {
            let at = begin + b * BLOCK;
            let (Ok(before), Ok(shape), Ok(long)) = (
                <&[f32; BLOCK]>::try_from(before),
                <&mut [f32; BLOCK]>::try_from(shape),
                <&mut [f32; BLOCK]>::try_from(long),
            ) else {
                return;
            };
            advance(newest, before, [&mut *shape, &mut *long], keeps);
            if at < first {
                for distances in [&mut *shape, &mut *long] {
                    distances[..first - at].fill(0.0);
                }
            }
            let until = end.saturating_sub(at).min(BLOCK);
            for (search, distances) in searches.iter_mut().zip([&*shape, &*long]) {
                if smallest(distances) <= search.bound {
                    search.take_block(&distances[..until], at, places);
                }
            }
        }
        for (search, memory) in searches.iter_mut().zip([shape, long]) {
            search.bound = f32::MAX;
            let mut from = end;
            for (knot, found) in knots.iter().zip(&mut memory.found).rev() {
                // Places up to the lag that equals the lead.
                let to = places + 1 - (*knot).max(LAG_MIN).min(longest);
                search.take(&memory.distances[from..to], from, places);
                from = to;
                *found = Found::new(&search.best);
            }
        }
    }

    /// Means over a knot's analogs, by the short and by the long memory, as distances from the newest sample, with
    /// which `recent` ends.
    pub(super) fn now(&self, knot: usize, recent: &[f32]) -> [f32; 2] {
        [&self.shape, &self.long].map(|m| m.found[knot].mean(0, recent, |_, _| ()))
    }

    /// The same of what followed them `lead` steps on, which is not more than the knot's. What followed each one
    /// goes to `add`, with its weight.
    pub(super) fn then(
        &self,
        knot: usize,
        lead: usize,
        recent: &[f32],
        mut add: impl FnMut(f32, f32),
    ) -> [f32; 2] {
        [&self.shape, &self.long].map(|m| m.found[knot].mean(lead, recent, &mut add))
    }
}

/// Brings a block of distances up to date.
fn advance(
    newest: f32,
    before: &[f32; BLOCK],
    [shape, long]: [&mut [f32; BLOCK]; 2],
    keeps: [f32; 2],
) {
    for i in 0..BLOCK {
        let e = newest - before[i];
        let square = e * e;
        shape[i] = shape[i] * keeps[0] + square;
        long[i] = long[i] * keeps[1] + square;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECALL: Recall = Recall {
        memory: 60.0,
        needed: 1,
        used: 3,
    };

    fn search(longest: usize, knots: usize) -> LagSearch {
        let long = Recall {
            needed: 24,
            used: ANALOGS,
            ..RECALL
        };
        LagSearch::new(longest, knots, [RECALL, long])
    }

    #[test]
    fn an_unnamed_period_is_found_and_followed() {
        let period = 37_usize;
        let value = |t: usize| {
            if t % period < 3 {
                10.0
            } else {
                (t % period % 5) as f32
            }
        };
        let mut s = search(200, 2);
        let knots = [1, 20];
        let mut samples: Vec<f32> = vec![0.0; BLOCK];
        for t in 0..400 {
            s.observe(value(t), &samples[samples.len() - s.needs(t)..], t, &knots);
            samples.push(value(t));
        }
        for (knot, lead) in [(0, 1), (1, 20)] {
            let then = s.then(knot, lead, &samples, |_, _| ())[0];
            let moved = value(399 + lead) - value(399);
            assert!((then - moved).abs() < 1e-6, "{then}");
            assert!(s.now(knot, &samples)[0].abs() < 1e-6);
            let lags = s.shape.found[knot].lags();
            assert!(lags.len() == 3 && lags.iter().all(|lag| lag.is_multiple_of(37)));
        }
    }

    #[test]
    fn the_bound_leaves_out_nothing_that_a_full_search_finds() {
        let (longest, knots) = (150, [1, 2, 7, 30]);
        let mut s = search(longest, knots.len());
        let mut samples: Vec<f32> = vec![0.0; BLOCK];
        let mut seed = 5_u64;
        for t in 0..600 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let y = (t % 11) as f32 + (seed >> 40) as f32 / 16_777_216.0;
            s.observe(y, &samples[samples.len() - s.needs(t)..], t, &knots);
            samples.push(y);
            for (lead, found) in knots.iter().zip(&s.long.found) {
                let known = (t + 1).saturating_sub(24).min(longest);
                let mut all: Vec<f32> = ((*lead).max(LAG_MIN)..=known)
                    .map(|lag| s.long.distances[s.places - lag])
                    .collect();
                all.sort_unstable_by(f32::total_cmp);
                all.truncate(ANALOGS);
                let distances = found.lags().iter();
                let found = distances.map(|&lag| s.long.distances[s.places - usize::from(lag)]);
                assert!(found.eq(all), "{t}");
            }
        }
    }

    #[test]
    fn without_samples_there_is_no_analog() {
        let mut s = search(50, 1);
        let before = [0.0; 64];
        for known in 0..26 {
            s.observe(1.0, &before[..s.needs(known)], known, &[1]);
        }
        assert!(s.long.found[0].lags().is_empty());
        assert_eq!(s.then(0, 1, &[0.0; 60], |_, _| ())[1], 0.0);
        s.observe(1.0, &before[..s.needs(28)], 28, &[1]);
        assert!(!s.long.found[0].lags().is_empty());
    }
}
