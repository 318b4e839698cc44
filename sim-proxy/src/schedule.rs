//! The order in which instances get their turns, so that each worker's requests follow the weights to within one.
//!
//! Points of a low-discrepancy sequence ([`crate::tickets`]) hit a share as often as they should within a few requests,
//! whatever the weights are. Who knows the weights can do better: an instance of weight w has its k-th turn after
//! request (k − 1)/w and no later than k/w. An order that keeps to all these windows is off by less than one request at
//! any time, for every instance (Baruah, Cohen, Plaxton and Varvel 1996, "Proportionate Progress", section 3), and there
//! is one for any weights: always the turn that is due first.
//!
//! That one would be the same each time, and a client whose requests repeat with its period would always meet the same
//! instance. So turns are moved at random, as far as each stays inside its window, and there are several periods of
//! the weights, each in an order of its own. A worker begins with one of them at random.

use crate::sync::SCHEDULE_SLOTS;
use crate::tickets::mix;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::atomic::{AtomicU64, Ordering};

/// Periods at least, so that workers that begin together don't agree.
const PERIODS_MIN: usize = 2;
/// Moves that are tried, per turn.
const MOVES: usize = 4;

/// Turns of the instances of one table.
#[derive(Debug)]
pub struct Schedule {
    /// No other has it.
    id: u64,
    /// Whose turn it is, by place among the weights. Whole periods.
    turns: Box<[u32]>,
    /// Turns after which every instance has had exactly its share.
    period: u32,
}

/// A turn of instance `of`: it may be at any place from `from` to before `to`.
#[derive(Clone, Copy, Debug)]
struct Turn {
    of: u32,
    from: u32,
    to: u32,
}

impl Schedule {
    /// Nobody has a turn.
    pub(crate) fn empty() -> Self {
        Self::new(&[], 0)
    }

    /// By `weights`, in an order that `seed` decides.
    pub(crate) fn new(weights: &[u16], seed: u64) -> Self {
        // Relaxed: a number that no other has, whatever the order.
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        let sum: u32 = weights.iter().map(|&weight| u32::from(weight)).sum();
        let common = weights
            .iter()
            .fold(0, |common, &weight| gcd(common, weight.into()));
        let period = sum.checked_div(common).unwrap_or(0);
        let periods = SCHEDULE_SLOTS.div_ceil(period.max(1) as usize);
        let one = due_first(weights, common, period);
        let mut turns = one.repeat(periods.max(PERIODS_MIN));
        shuffle(&mut turns, period as usize, seed);
        Self {
            id,
            turns: turns.iter().map(|turn| turn.of).collect(),
            period,
        }
    }

    /// Whose turn it is at `place`; `None` past the end.
    #[must_use]
    #[inline]
    pub fn at(&self, place: u32) -> Option<usize> {
        self.turns.get(place as usize).map(|&of| of as usize)
    }
}

/// Where a worker is in a schedule.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cursor {
    /// Of which schedule.
    of: u64,
    next: u32,
}

impl Cursor {
    /// The next place in `schedule`. `draw` gives a random number, where the worker begins.
    #[inline]
    pub fn take(&mut self, schedule: &Schedule, draw: impl FnOnce() -> u64) -> u32 {
        if self.of != schedule.id || self.next as usize >= schedule.turns.len() {
            let begun = self.of == schedule.id;
            self.of = schedule.id;
            self.next = if begun { 0 } else { schedule.begin(draw()) };
        }
        let place = self.next;
        self.next += 1;
        place
    }
}

impl Schedule {
    /// The beginning of a period, where nobody is ahead.
    #[cold]
    fn begin(&self, drawn: u64) -> u32 {
        let periods = (self.turns.len() as u32)
            .checked_div(self.period)
            .unwrap_or(0);
        let which = (u128::from(drawn) * u128::from(periods)) >> 64;
        which as u32 * self.period
    }
}

fn gcd(one: u32, other: u32) -> u32 {
    if other == 0 {
        one
    } else {
        gcd(other, one % other)
    }
}

/// The turns of one period, each time the one that is due first of those that may come.
fn due_first(weights: &[u16], common: u32, period: u32) -> Vec<Turn> {
    // By when they may come, and by when they are due.
    let (mut coming, mut due) = (BinaryHeap::new(), BinaryHeap::new());
    let window = |of: u32, nth: u32| {
        let turns = u32::from(weights[of as usize]) / common;
        let turn = Turn {
            of,
            from: nth * period / turns,
            to: ((nth + 1) * period).div_ceil(turns),
        };
        (nth < turns).then_some(turn)
    };
    let first = (0..weights.len() as u32).filter(|&of| weights[of as usize] > 0);
    for of in first {
        coming.push(Reverse((0, of, 0)));
    }
    let mut turns = Vec::with_capacity(period as usize);
    for place in 0..period {
        while let Some(&Reverse((from, of, nth))) = coming.peek()
            && from <= place
        {
            coming.pop();
            if let Some(turn) = window(of, nth) {
                due.push(Reverse((turn.to, of, nth)));
            }
        }
        let Some(Reverse((_, of, nth))) = due.pop() else {
            break;
        };
        turns.extend(window(of, nth));
        if let Some(next) = window(of, nth + 1) {
            coming.push(Reverse((next.from, of, nth + 1)));
        }
    }
    turns
}

/// Moves turns at random inside their windows, if those in between, which move up by one, stay inside theirs.
fn shuffle(turns: &mut [Turn], period: usize, seed: u64) {
    let below = |drawn: u64, bound: u32| ((drawn >> 32) * u64::from(bound)) >> 32;
    for (number, turns) in turns.chunks_mut(period.max(1)).enumerate() {
        let key = mix(seed ^ mix(number as u64));
        for trial in 0..(turns.len() * MOVES) as u64 {
            let drawn = mix(key.wrapping_add(trial));
            let one = below(drawn, turns.len() as u32) as usize;
            let Turn { from, to, .. } = turns[one];
            let other = from as usize + below(drawn << 32, to - from) as usize;
            if one < other {
                let between = &mut turns[one..=other];
                let mut at = one as u32..;
                if between[1..].iter().all(|turn| at.next() >= Some(turn.from)) {
                    between.rotate_left(1);
                }
            } else {
                let between = &mut turns[other..=one];
                let mut at = other as u32 + 1..;
                let others = between.len() - 1;
                if between[..others]
                    .iter()
                    .all(|turn| at.next() < Some(turn.to))
                {
                    between.rotate_right(1);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
