//! Points in 0..1 (as `u64`, 2^64 = 1) that fill it evenly however few are taken, and that no
//! client can fall in step with.
//!
//! Random points give 95:5 only in the long run (after 100 requests the 5 % may as well be 9).
//! A Weyl sequence (golden ratio) is even at once, but a client whose requests repeat with a
//! period that is a Fibonacci number meets almost the same point each time; the van der Corput
//! sequence fails already at period 2. Here points come in blocks of 8, one in each eighth, in an
//! order drawn anew for each block; in 8 such blocks each eighth's own eighths are met once each, in
//! an order drawn for each; and so once more (Owen 1995, "Randomly Permuted (t,m,s)-Nets and
//! (t,s)-Sequences", in base 8, three digits). What is left, 1/512, moves on by the golden ratio. So
//! any run of N points is even within O(log N), with at most one unfinished block on top, and the
//! points that a periodic client meets are random.

use crate::schedule::{Cursor, Schedule};
use std::cell::{Cell, RefCell};
use std::hash::{BuildHasher, RandomState};

/// Points of one block: a digit's values, a power of two.
const BASE: u64 = 8;
const DIGIT_BITS: u32 = BASE.trailing_zeros();
/// Digits that are drawn.
const DIGITS: u32 = 3;
/// 2^64 / golden ratio.
const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

/// One worker's sequence.
#[derive(Clone, Debug)]
pub struct Tickets {
    key: u64,
    next: u64,
    /// What decides the order of the first digit in this block; of the second in this block of blocks, for each first
    /// one; of the third, for each two before it. Drawn once for as long as they stay the same: it is a fifth of what a
    /// request costs otherwise.
    first: Order,
    second: [Order; BASE as usize],
    third: [Order; (BASE * BASE) as usize],
    /// What is left below the digits.
    place: u64,
}

impl Tickets {
    /// The sequence of `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let key = mix(mix(seed));
        let mut tickets = Self {
            key,
            next: 0,
            first: Order::default(),
            second: [Order::default(); _],
            third: [Order::default(); _],
            place: 0,
        };
        tickets.draw();
        // A start inside the block, so that workers started together don't agree on their first
        // picks: with few requests those are all there are.
        tickets.next = key % BASE;
        tickets
    }

    /// The next point.
    #[inline]
    pub fn take(&mut self) -> u64 {
        if self.next.is_multiple_of(BASE) {
            self.draw();
        }
        let values = self.next;
        self.next = self.next.wrapping_add(1);
        let mut point = self.first.of(values);
        let order = &self.second[(point % BASE) as usize];
        point = (point << DIGIT_BITS) | order.of(values >> DIGIT_BITS);
        let order = &self.third[(point % (BASE * BASE)) as usize];
        point = (point << DIGIT_BITS) | order.of(values >> (2 * DIGIT_BITS));
        (point << (64 - DIGITS * DIGIT_BITS)) | self.place
    }

    /// Draws the orders that begin with the next point: anew for each block, and for each part of it that is filled.
    fn draw(&mut self) {
        let order = |digit: u32, before: u64| {
            let block = self.next >> (digit * DIGIT_BITS);
            Order::new(mix(self.key ^ (block << (DIGITS * DIGIT_BITS)) ^ before))
        };
        self.first = order(1, 0);
        if self.next.is_multiple_of(BASE * BASE) {
            self.second = std::array::from_fn(|before| order(2, before as u64));
        }
        if self.next.is_multiple_of(BASE * BASE * BASE) {
            self.third = std::array::from_fn(|before| order(3, before as u64));
            let step = (self.next >> (3 * DIGIT_BITS)).wrapping_mul(GOLDEN);
            self.place = mix(self.key).wrapping_add(step) >> (DIGITS * DIGIT_BITS);
        }
    }
}

/// A permutation of 0..8 out of many.
#[derive(Clone, Copy, Debug, Default)]
#[repr(align(16))]
struct Order {
    odd: u32,
    add: u32,
    xor: u32,
}

impl Order {
    fn new(drawn: u64) -> Self {
        let [odd, add, xor] = [0, 16, 32].map(|bits| (drawn >> bits) as u32);
        Self {
            odd: odd | 1,
            add,
            xor,
        }
    }

    /// Where `value` goes, of which the lowest digit counts.
    #[inline]
    fn of(self, value: u64) -> u64 {
        let place = (value as u32).wrapping_mul(self.odd).wrapping_add(self.add) ^ self.xor;
        u64::from(place) % BASE
    }
}

/// Finaliser of SplitMix64 (Steele, Lea, Flood 2014).
pub(crate) fn mix(value: u64) -> u64 {
    let z = value.wrapping_add(GOLDEN);
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// A number that differs from process to process and from call to call.
pub(crate) fn entropy() -> u64 {
    RandomState::new().hash_one(GOLDEN)
}

thread_local! {
    static TICKETS: RefCell<Tickets> = RefCell::new(Tickets::new(entropy()));
    static SECONDS: RefCell<Tickets> = RefCell::new(Tickets::new(entropy()));
}

/// The next place in `schedule` for this thread. `owner` is whose schedule it is: a number of its own, and small.
#[inline]
pub fn take_turn(owner: usize, schedule: &Schedule) -> u32 {
    thread_local! {
        static CURSORS: RefCell<Vec<Cursor>> = const { RefCell::new(Vec::new()) };
    }
    CURSORS.with_borrow_mut(|cursors| {
        if owner >= cursors.len() {
            cursors.resize(owner + 1, Cursor::default());
        }
        cursors[owner].take(schedule, draw)
    })
}

/// A random number of this thread's own. No secret: who sees one can tell the next.
pub(crate) fn draw() -> u64 {
    thread_local! {
        static NEXT: Cell<u64> = Cell::new(entropy());
    }
    mix(NEXT.replace(NEXT.get().wrapping_add(1)))
}

/// The next point of another sequence of this thread, for second choices: every other point of one sequence wouldn't be
/// even.
#[must_use]
pub fn take_second_ticket() -> u64 {
    SECONDS.with_borrow_mut(Tickets::take)
}

/// The next point of this thread's own sequence.
#[must_use]
#[inline]
pub fn take_ticket() -> u64 {
    TICKETS.with_borrow_mut(Tickets::take)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn is_below(ticket: u64, share: f64) -> bool {
        (ticket as f64) < share * 2f64.powi(64)
    }

    proptest! {
        #[test]
        fn every_prefix_is_even(seed: u64, share in 0.0..=1.0f64) {
            let mut tickets = Tickets::new(seed);
            let mut hits = 0.0;
            for n in 1..=20_000 {
                hits += f64::from(u8::from(is_below(tickets.take(), share)));
                let off: f64 = hits - f64::from(n) * share;
                // A quarter of a block either way at its start and at its end, and the golden
                // ratio's own discrepancy, which grows by the logarithm and stays under 4 here.
                prop_assert!(off.abs() <= 8.0, "{off} after {n}");
            }
        }

        #[test]
        fn a_periodic_client_meets_its_share(seed: u64, share in 0.05..=0.95f64, period in 1usize..400) {
            let mut tickets = Tickets::new(seed);
            let taken = 4_000;
            let hits = (0..taken * period)
                .map(|_| tickets.take())
                .step_by(period)
                .filter(|&t| is_below(t, share))
                .count() as f64;
            let n = taken as f64;
            // No worse than fair coins: 6 standard deviations.
            let bound = 6.0 * (n * share * (1.0 - share)).sqrt();
            prop_assert!((hits - n * share).abs() < bound, "{hits} of {n} at {share}");
        }

        #[test]
        fn a_periodic_client_is_not_stuck_on_one_instance(seed: u64, period in 1usize..400) {
            let mut tickets = Tickets::new(seed);
            let mut run = 0;
            for ticket in (0..2_000 * period).map(|_| tickets.take()).step_by(period) {
                run = if is_below(ticket, 0.5) { 0 } else { run + 1 };
                // A fair coin gives such a run once in 2^40 tosses.
                prop_assert!(run < 40);
            }
        }
    }
}
