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
//!
//! All of that takes a millisecond and more where the weights have no common divisor, and a table is to be in force sooner.
//! So the first turns of some periods come first, and the others when the table is in force. Turns are moved on their own
//! side of that border alone, so that it makes no difference which of the two is read.

use crate::sync::SCHEDULE_SLOTS;
use crate::tickets::mix;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// Periods at least, so that workers that begin together don't agree.
const PERIODS_MIN: usize = 2;
/// Turns that are there at once for whoever begins. Each worker has some milliseconds until it needs the others.
const FIRST: u32 = 512;
/// Moves that are tried, per turn.
const MOVES: usize = 4;

/// Turns of the instances of one table.
#[derive(Debug)]
pub struct Schedule {
    /// No other has it.
    id: u64,
    seed: u64,
    weights: Box<[u16]>,
    /// The greatest common divisor of the weights.
    common: u32,
    /// Turns after which every instance has had exactly its share.
    period: u32,
    /// How many of them there are, and how many turns that makes.
    periods: u32,
    len: u32,
    /// Whose turn it is at first, by place among the weights: some periods, or the first [`FIRST`] turns of two.
    first: Box<[u32]>,
    /// The same of all periods, once it is there.
    all: OnceLock<Box<[u32]>>,
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

    /// By `weights`, in an order that `seed` decides. To be [completed](Self::complete).
    pub(crate) fn new(weights: &[u16], seed: u64) -> Self {
        // Relaxed: a number that no other has, whatever the order.
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        let sum: u32 = weights.iter().map(|&weight| u32::from(weight)).sum();
        let common = weights
            .iter()
            .fold(0, |common, &weight| gcd(common, weight.into()));
        let period = sum.checked_div(common).unwrap_or(0);
        let periods = SCHEDULE_SLOTS
            .div_ceil(period.max(1) as usize)
            .max(PERIODS_MIN);
        let mut schedule = Self {
            id,
            seed,
            weights: weights.into(),
            common,
            period,
            periods: periods as u32,
            len: period * periods as u32,
            first: Box::default(),
            all: OnceLock::new(),
        };
        schedule.first = schedule.turns(schedule.first_periods(), schedule.first_turns());
        schedule
    }

    /// Makes what isn't there yet.
    pub(crate) fn complete(&self) {
        self.all
            .get_or_init(|| self.turns(self.periods, self.period));
    }

    /// Periods that a worker may begin with at first.
    fn begun_periods(&self) -> u32 {
        let fitting = FIRST.checked_div(self.period).unwrap_or(0);
        fitting.max(PERIODS_MIN as u32).min(self.periods)
    }

    /// Periods that are there at first: whoever begins has [`FIRST`] turns.
    fn first_periods(&self) -> u32 {
        let more = match self.period {
            1..=FIRST => FIRST.div_ceil(self.period),
            _ => 0,
        };
        (self.begun_periods() + more).min(self.periods)
    }

    fn first_turns(&self) -> u32 {
        self.period.min(FIRST)
    }

    /// Whose turn it is in these periods, up to and without turn `upto` of each.
    fn turns(&self, periods: u32, upto: u32) -> Box<[u32]> {
        let one = due_first(&self.weights, self.common, self.period, upto);
        let mut all = Vec::with_capacity(one.len() * periods as usize);
        let mut turns = one.clone();
        let border = (FIRST as usize).min(one.len());
        for number in 0..periods {
            turns.copy_from_slice(&one);
            let key = mix(self.seed ^ mix(number.into()));
            let (first, others) = turns.split_at_mut(border);
            shuffle(first, 0, key);
            shuffle(others, FIRST, mix(key));
            all.extend(turns.iter().map(|turn| turn.of));
        }
        all.into_boxed_slice()
    }

    /// Whose turn it is at `place`; `None` past the end, and where that isn't known yet.
    #[must_use]
    #[inline]
    pub fn at(&self, place: u32) -> Option<usize> {
        let of = match self.all.get() {
            Some(all) => all.get(place as usize).copied(),
            None => self.at_first(place),
        };
        of.map(|of| of as usize)
    }

    #[cold]
    fn at_first(&self, place: u32) -> Option<u32> {
        let (number, turn) = (
            place.checked_div(self.period)?,
            place.checked_rem(self.period)?,
        );
        let turns = self.first_turns();
        let at = number * turns + turn;
        let there = number < self.first_periods() && turn < turns;
        self.first.get(at as usize).copied().filter(|_| there)
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
        if self.of != schedule.id || self.next >= schedule.len {
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
        let periods = match self.all.get() {
            Some(_) => self.periods,
            None => self.begun_periods(),
        };
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

/// The turns of one period up to and without turn `upto`, each time the one that is due first of those that may come.
fn due_first(weights: &[u16], common: u32, period: u32, upto: u32) -> Vec<Turn> {
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
    let mut turns = Vec::with_capacity(upto as usize);
    for place in 0..upto {
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

/// Moves turns, the first of which is at place `begin`, at random inside their windows and among themselves. Two change
/// places if each is in its window there; else one moves, if those in between, which move up by one, stay in theirs.
fn shuffle(turns: &mut [Turn], begin: u32, key: u64) {
    let below = |drawn: u64, bound: u32| ((drawn >> 32) * u64::from(bound)) >> 32;
    let end = begin + turns.len() as u32;
    for trial in 0..(turns.len() * MOVES) as u64 {
        let drawn = mix(key.wrapping_add(trial));
        let one = below(drawn, end - begin) as usize;
        let Turn { from, to, .. } = turns[one];
        let (from, to) = (from.max(begin), to.min(end));
        let other = from + below(drawn << 32, to - from) as u32;
        let (at, other) = (begin + one as u32, (other - begin) as usize);
        if (turns[other].from..turns[other].to).contains(&at) {
            turns.swap(one, other);
        } else if one < other {
            let between = &mut turns[one..=other];
            let mut place = at..;
            if between[1..]
                .iter()
                .all(|turn| place.next() >= Some(turn.from))
            {
                between.rotate_left(1);
            }
        } else {
            let between = &mut turns[other..=one];
            let mut place = begin + other as u32 + 1..;
            let others = between.len() - 1;
            if between[..others]
                .iter()
                .all(|turn| place.next() < Some(turn.to))
            {
                between.rotate_right(1);
            }
        }
    }
}

#[cfg(test)]
mod tests;
