//! Quantiles of what followed the analogs, at all knots at once.
//!
//! Each knot has up to [`OUTCOMES`] weighted values. They are sorted by a network of comparisons
//! (Batcher's merge exchange, D. E. Knuth, *The Art of Computer Programming* 3, §5.2.2, algorithm M) that
//! does the same to every knot, so all go through it side by side. The last five bits of a value hold the
//! place its weight stands at; what that takes from its precision is far below what outcomes tell.

use super::lags::ANALOGS;
use super::lanes::{LANES, Lanes, least};

/// Outcomes kept together.
pub(super) const OUTCOMES: usize = 2 * ANALOGS;
/// Bits of a value that hold its place.
const PLACE: u32 = 31;
/// Room for places past the last one, so that halving needs no bounds.
const PADDED: usize = 32;
const PAIRS_MAX: usize = 160;

/// Which rows are compared, in order.
const NETWORK: ([(u8, u8); PAIRS_MAX], usize) = network();

const fn network() -> ([(u8, u8); PAIRS_MAX], usize) {
    let mut pairs = [(0, 0); PAIRS_MAX];
    let mut count = 0;
    let top = OUTCOMES.next_power_of_two() / 2;
    let mut p = top;
    while p > 0 {
        let (mut q, mut r, mut d) = (top, 0, p);
        loop {
            let mut i = 0;
            while i + d < OUTCOMES {
                if i & p == r {
                    pairs[count] = (i as u8, (i + d) as u8);
                    count += 1;
                }
                i += 1;
            }
            if q == p {
                break;
            }
            d = q - p;
            q /= 2;
            r = p;
        }
        p /= 2;
    }
    (pairs, count)
}

/// Values and weights of as many knots as are forecast at once.
#[derive(Clone, Debug)]
pub(super) struct Outcomes<const L: usize> {
    values: [[f32; L]; OUTCOMES],
    weights: [[f32; L]; OUTCOMES],
    counts: [usize; L],
}

impl<const L: usize> Outcomes<L> {
    pub(super) fn new() -> Self {
        Self {
            values: [[f32::MAX; L]; OUTCOMES],
            weights: [[0.0; L]; OUTCOMES],
            counts: [0; L],
        }
    }

    /// Adds one to a knot's.
    pub(super) fn add(&mut self, knot: usize, value: f32, weight: f32) {
        let count = &mut self.counts[knot];
        self.values[*count][knot] = value;
        self.weights[*count][knot] = weight;
        *count += 1;
    }

    /// Puts each knot's values into order.
    pub(super) fn sort(mut self) -> Sorted<L> {
        for (place, row) in (0..).zip(&mut self.values) {
            for value in row {
                *value = f32::from_bits(value.to_bits() & !PLACE | place);
            }
        }
        let (pairs, count) = &NETWORK;
        for &(a, b) in &pairs[..*count] {
            let (low, high) = (self.values[usize::from(a)], self.values[usize::from(b)]);
            for l in 0..L {
                self.values[usize::from(a)][l] = least(low[l], high[l]);
                self.values[usize::from(b)][l] = if high[l] < low[l] { low[l] } else { high[l] };
            }
        }
        let mut middles = [[f32::MAX; L]; OUTCOMES];
        let (mut total, mut sum) = ([0.0; L], [0.0; L]);
        let mut weights = [[0.0; L]; OUTCOMES];
        for (row, weights) in self.values.iter_mut().zip(&mut weights) {
            for l in 0..L {
                let bits = row[l].to_bits();
                weights[l] = self.weights[(bits & PLACE) as usize][l];
                row[l] = f32::from_bits(bits & !PLACE);
            }
        }
        for ((row, weights), middles) in self.values.iter_mut().zip(&weights).zip(&mut middles) {
            for l in 0..L {
                // Each value stands at the middle of its weight. Places without a value have none.
                let is_one = weights[l] > 0.0;
                row[l] = if is_one { row[l] } else { 0.0 };
                let middle = total[l] + 0.5 * weights[l];
                middles[l] = if is_one { middle } else { f32::MAX };
                total[l] += weights[l];
                sum[l] += weights[l] * row[l];
            }
        }
        let mut off = [0.0; L];
        for (row, weights) in self.values.iter().zip(&weights) {
            for l in 0..L {
                off[l] += weights[l] * (row[l] * total[l] - sum[l]).abs();
            }
        }
        for l in 0..L {
            let square = total[l] * total[l];
            off[l] = if square > 0.0 { off[l] / square } else { 0.0 };
        }
        Sorted {
            values: self.values,
            middles,
            total,
            off,
            counts: self.counts,
        }
    }
}

/// Values in order, each with the weight that lies below it.
#[derive(Clone, Debug)]
pub(super) struct Sorted<const L: usize> {
    values: [[f32; L]; OUTCOMES],
    middles: [[f32; L]; OUTCOMES],
    total: [f32; L],
    off: [f32; L],
    counts: [usize; L],
}

impl<const L: usize> Sorted<L> {
    /// Weighted quantiles of a knot's values, linear between them, and their mean distance from their
    /// mean; `None` for fewer than three.
    pub(super) fn quantiles(&self, knot: usize, levels: &Lanes) -> Option<(Lanes, f32)> {
        let count = self.counts[knot];
        if count < 3 {
            return None;
        }
        let mut middles = [f32::MAX; PADDED];
        for (to, from) in middles.iter_mut().zip(&self.middles) {
            *to = from[knot];
        }
        let mut values = [0.0; OUTCOMES];
        for (to, from) in values.iter_mut().zip(&self.values) {
            *to = from[knot];
        }
        let total = self.total[knot];
        let mut quantiles = [0.0; LANES];
        for (quantile, level) in quantiles.iter_mut().zip(levels) {
            let target = level * total;
            let mut place = 0;
            for step in [16, 8, 4, 2, 1] {
                place += if middles[place + step - 1] < target {
                    step
                } else {
                    0
                };
            }
            // Before the first and after the last one, these are the quantile.
            let next = place.min(count - 1);
            let before = next.saturating_sub(usize::from(place == next));
            let (low, high) = (middles[before], middles[next]);
            let part = if high > low {
                (target - low) / (high - low)
            } else {
                1.0
            };
            *quantile = values[before] + part * (values[next] - values[before]);
        }
        Some((quantiles, self.off[knot]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_of_outcomes_lie_between_them_and_follow_the_weights() {
        let mut o = Outcomes::<LANES>::new();
        for value in [3.0, 1.0] {
            o.add(5, value, 1.0);
        }
        let levels = [0.01, 0.5, 0.99, 0.5, 0.5, 0.5, 0.5, 0.5];
        assert_eq!(o.clone().sort().quantiles(5, &levels), None);
        o.add(5, 2.0, 1.0);
        let (q, off) = o.sort().quantiles(5, &levels).unwrap();
        assert!(
            (q[1] - 2.0).abs() < 1e-5 && (q[0] - 1.0).abs() < 1e-5 && (q[2] - 3.0).abs() < 1e-5
        );
        assert!((off - 2.0 / 3.0).abs() < 1e-5);
    }

    #[test]
    fn every_knot_is_sorted_by_itself() {
        let mut o = Outcomes::<LANES>::new();
        for knot in 0..LANES {
            for i in 0..OUTCOMES - knot {
                let value = ((i * 7 + knot * 5) % 24) as f32 - 11.0;
                o.add(knot, value, 0.5 + (i % 3) as f32);
            }
        }
        let weight: f32 = (0..OUTCOMES).map(|i| 0.5 + (i % 3) as f32).sum();
        let sorted = o.sort();
        assert!((sorted.total[0] - weight).abs() < 1e-4);
        for knot in 0..LANES {
            let count = sorted.counts[knot];
            assert!((1..count).all(|i| sorted.values[i - 1][knot] <= sorted.values[i][knot]));
            assert!((1..count).all(|i| sorted.middles[i - 1][knot] < sorted.middles[i][knot]));
        }
    }
}
