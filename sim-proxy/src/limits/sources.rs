//! What each source has: connections, and requests of late. A source is an IPv4 address, or the /64 of an IPv6 one:
//! whoever has an address there has all of them.
//!
//! The table has a fixed size and is shared by all workers, so that a limit is one limit. It is a set-associative
//! cache: the hash of a source, keyed anew by each process, names a set of [`WAYS`] places. A source keeps its place
//! while it has a connection; afterwards the place can be taken, first from whoever has nothing to be remembered. A
//! source that finds all places of its set held by connections is not limited, and counted as untracked: who comes with
//! many addresses can neither grow the table nor have it lock others out, and a limit by source is no limit to them
//! anyway.
//!
//! The rate is a token bucket, kept as the time at which it is full again (the generic cell rate algorithm of ATM,
//! ITU-T I.371): one word, and nothing has to be refilled.

use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicU64, Ordering};

/// Places that a source may have.
const WAYS: usize = 8;
/// All places; 16 bytes each.
const PLACES: usize = 64 * 1_024;

/// One source's place.
#[derive(Debug, Default)]
struct Place {
    /// Upper half: whose it is, 0 = nobody's. Lower half: its connections. One word, so that a place can't be taken from
    /// a source that has just come back.
    holder: AtomicU64,
    /// When its bucket is full again, ns.
    full_ns: AtomicU64,
}

const ONE_CONNECTION: u64 = 1;
const CONNECTIONS: u64 = 0xffff_ffff;

/// All sources.
#[derive(Debug)]
pub(super) struct Sources {
    /// Keyed by a secret, so that nobody can choose addresses that meet.
    hasher: RandomState,
    places: Box<[Place]>,
    connections_max: u64,
    untracked: AtomicU64,
}

/// A token bucket's measures.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rate {
    /// Time that earns a request, ns.
    step_ns: u64,
    /// Time that a full bucket lasts beyond one request, ns.
    ahead_ns: u64,
}

impl Rate {
    pub(super) fn new(per_second: u32, burst: u32) -> Option<Self> {
        let step_ns = 1_000_000_000_u64.checked_div(per_second.into())?;
        let ahead_ns = step_ns.saturating_mul(u64::from(burst).saturating_sub(1));
        Some(Self { step_ns, ahead_ns })
    }
}

/// Where a connection's source has its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct At(u32);

/// What becomes of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    At(At),
    /// There is no place to remember it at.
    Untracked,
    /// The source has as many as it may.
    Full,
}

impl Sources {
    /// At most `connections_max` for each, 0 = any number; requests go by `rate`.
    pub(super) fn new(connections_max: u64, rate: Option<Rate>) -> Self {
        Self::with_places(PLACES, connections_max, rate)
    }

    fn with_places(places: usize, connections_max: u64, rate: Option<Rate>) -> Self {
        let any = connections_max == 0;
        // Nothing to remember.
        let places = if any && rate.is_none() { 0 } else { places };
        Self {
            hasher: RandomState::new(),
            places: std::iter::repeat_with(Place::default)
                .take(places)
                .collect(),
            connections_max: if any { CONNECTIONS } else { connections_max },
            untracked: AtomicU64::default(),
        }
    }

    /// Connections that found no place.
    pub(super) fn untracked(&self) -> u64 {
        self.untracked.load(Ordering::Relaxed)
    }

    // Relaxed but where it is said: the words of a place say all there is to know and publish nothing else. A place that changes
    // hands between a look at its time and the claim lets its new holder have a request more or less, once.

    /// A connection from `client` at `now_ns`. To be followed by one [`Sources::leave`] if it has a place.
    pub(super) fn enter(&self, client: IpAddr, now_ns: u64) -> Entry {
        if self.places.is_empty() {
            return Entry::Untracked;
        }
        let (set, tag) = self.name(client);
        // A claim may be lost to another source each time; a handful of tries is plenty.
        for _ in 0..WAYS {
            if let Some(at) = self.find(set, tag) {
                match self.join(at, tag) {
                    Joined::In => return Entry::At(at),
                    Joined::Full => return Entry::Full,
                    Joined::Gone => continue,
                }
            }
            let Some((at, held)) = self.takeable(set, now_ns) else {
                break;
            };
            let place = self.place(at);
            let claim = tag << 32 | ONE_CONNECTION;
            // SeqCst, as in `find`: of two connections of a new source that claim a place each at once, at least one sees
            // the other's, and the first place in the set is the one that counts.
            let claimed =
                place
                    .holder
                    .compare_exchange(held, claim, Ordering::SeqCst, Ordering::Relaxed);
            if claimed.is_err() {
                continue;
            }
            if self.find(set, tag).is_some_and(|first| first != at) {
                self.leave(at);
                continue;
            }
            place.full_ns.store(0, Ordering::Relaxed);
            return Entry::At(at);
        }
        self.untracked.fetch_add(1, Ordering::Relaxed);
        Entry::Untracked
    }

    /// Ends a connection. What its source has asked is remembered for as long as the place isn't needed.
    pub(super) fn leave(&self, at: At) {
        self.place(at)
            .holder
            .fetch_sub(ONE_CONNECTION, Ordering::Relaxed);
    }

    /// Where `client` has its place, of which a connection is open.
    pub(super) fn at(&self, client: IpAddr) -> Option<At> {
        if self.places.is_empty() {
            return None;
        }
        let (set, tag) = self.name(client);
        self.find(set, tag)
    }

    /// Whether a request may go at `now_ns` by `rate`, which it is charged for.
    pub(super) fn may_ask(&self, at: At, rate: Rate, now_ns: u64) -> bool {
        let Rate { step_ns, ahead_ns } = rate;
        let charge = |full_ns: u64| {
            let full_ns = full_ns.max(now_ns);
            (full_ns - now_ns <= ahead_ns).then(|| full_ns.saturating_add(step_ns))
        };
        let full_ns = &self.place(at).full_ns;
        full_ns
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, charge)
            .is_ok()
    }

    /// The set of a source and its tag there, never 0. Two sources of a set with one tag, one pair in four thousand
    /// million, are one source.
    fn name(&self, client: IpAddr) -> (usize, u64) {
        let hash = self.hasher.hash_one(network(client));
        let set = hash as usize % (self.places.len() / WAYS).max(1);
        (set * WAYS, (hash >> 32).max(1))
    }

    fn find(&self, set: usize, tag: u64) -> Option<At> {
        let ways = self.places.get(set..set + WAYS)?;
        let way = ways
            .iter()
            .position(|place| place.holder.load(Ordering::SeqCst) >> 32 == tag)?;
        Some(At((set + way) as u32))
    }

    fn join(&self, at: At, tag: u64) -> Joined {
        let mut full = false;
        let one_more = |held: u64| {
            full = held >> 32 == tag && held & CONNECTIONS >= self.connections_max;
            (held >> 32 == tag && !full).then_some(held + ONE_CONNECTION)
        };
        let holder = &self.place(at).holder;
        match holder.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more) {
            Ok(_) => Joined::In,
            Err(_) if full => Joined::Full,
            Err(_) => Joined::Gone,
        }
    }

    /// The place of a set that is missed least, and its holder: one without connections, whose bucket is full or will
    /// be soonest.
    fn takeable(&self, set: usize, now_ns: u64) -> Option<(At, u64)> {
        let ways = self.places.get(set..set + WAYS)?;
        let free = ways.iter().enumerate().filter_map(|(way, place)| {
            let held = place.holder.load(Ordering::Relaxed);
            let due_ns = place.full_ns.load(Ordering::Relaxed).max(now_ns);
            (held & CONNECTIONS == 0).then_some((due_ns, way, held))
        });
        let (_, way, held) = free.min()?;
        Some((At((set + way) as u32), held))
    }

    fn place(&self, at: At) -> &Place {
        &self.places[at.0 as usize]
    }
}

enum Joined {
    In,
    Full,
    /// The place is another's by now.
    Gone,
}

/// The part of an address that tells one source from another.
fn network(client: IpAddr) -> IpAddr {
    match client.to_canonical() {
        IpAddr::V6(address) => {
            let prefix = address.to_bits() & !u128::from(u64::MAX);
            Ipv6Addr::from_bits(prefix).into()
        }
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;
    use std::sync::Arc;

    const SECOND: u64 = 1_000_000_000;

    fn client(number: u32) -> IpAddr {
        std::net::Ipv4Addr::from_bits(0x0a00_0000 + number).into()
    }

    fn at(entry: Entry) -> At {
        match entry {
            Entry::At(at) => at,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_source_has_no_more_connections_than_it_may() {
        let sources = Sources::new(2, None);
        let first = at(sources.enter(client(1), 1));
        assert_eq!(sources.enter(client(1), 1), Entry::At(first));
        assert_eq!(sources.enter(client(1), 1), Entry::Full);
        assert_ne!(at(sources.enter(client(2), 1)), first);
        sources.leave(first);
        assert_eq!(sources.enter(client(1), 1), Entry::At(first));
        assert_eq!(sources.enter(client(1), 1), Entry::Full);
    }

    #[test]
    fn all_addresses_of_a_network_are_one_source() {
        let address = |text: &str| text.parse::<IpAddr>().expect("an address");
        for (one, other, same) in [
            ("2001:db8::1", "2001:db8::ffff:1", true),
            ("2001:db8::1", "2001:db8:0:1::1", false),
            ("::ffff:10.0.0.1", "10.0.0.1", true),
            ("10.0.0.1", "10.0.0.2", false),
        ] {
            assert_eq!(network(address(one)) == network(address(other)), same);
        }
    }

    #[test]
    fn a_bucket_lets_its_burst_go_and_then_its_rate() {
        let rate = Rate::new(10, 5).expect("a rate");
        let sources = Sources::new(0, Some(rate));
        let one = at(sources.enter(client(1), SECOND));
        let asked = |now_ns| {
            std::iter::repeat_with(|| sources.may_ask(one, rate, now_ns))
                .take_while(|&may| may)
                .count()
        };
        assert_eq!(asked(SECOND), 5);
        assert_eq!(asked(SECOND + SECOND / 10), 1);
        assert_eq!(asked(SECOND + SECOND / 5), 1);
        // A minute is no more credit than the burst.
        assert_eq!(asked(61 * SECOND), 5);
        let other = at(sources.enter(client(2), SECOND));
        assert!(sources.may_ask(other, rate, SECOND));
    }

    #[test]
    fn who_comes_back_finds_the_bucket_as_it_was() {
        let rate = Rate::new(1, 1).expect("a rate");
        let sources = Sources::new(0, Some(rate));
        let one = at(sources.enter(client(1), SECOND));
        assert!(sources.may_ask(one, rate, SECOND));
        sources.leave(one);
        let again = at(sources.enter(client(1), SECOND + 1));
        assert!(!sources.may_ask(again, rate, SECOND + 1));
    }

    #[test]
    fn many_addresses_neither_grow_the_table_nor_lock_others_out() {
        let rate = Rate::new(1, 1).expect("a rate");
        let sources = Sources::with_places(64, 1, Some(rate));
        let held: Vec<_> = (0..10_000)
            .map(|number| sources.enter(client(number), 1))
            .filter(|entry| matches!(entry, Entry::At(_)))
            .collect();
        assert_eq!(held.len(), 64);
        assert_eq!(sources.untracked(), 10_000 - 64);
        assert_eq!(sources.enter(client(20_000), 1), Entry::Untracked);
        // Once they have left, whoever comes has a place at once, though their buckets are empty.
        for entry in held {
            assert!(sources.may_ask(at(entry), rate, 1));
            sources.leave(at(entry));
        }
        let own = at(sources.enter(client(20_000), 1));
        assert!(sources.may_ask(own, rate, 1));
        assert_eq!(sources.at(client(20_000)), Some(own));
    }

    #[test]
    fn places_are_spread_over_the_whole_table() {
        let sources = Sources::new(1, None);
        let places: HashSet<_> = (0..8_192)
            .map(|number| at(sources.enter(client(number), 1)).0)
            .collect();
        assert_eq!(places.len(), 8_192);
        let upper = places.iter().filter(|&&at| at >= PLACES as u32 / 2).count();
        assert!((3_500..4_700).contains(&upper), "{upper}");
    }

    #[test]
    fn workers_that_enter_at_once_are_all_counted() {
        let sources = Arc::new(Sources::with_places(8, 1_000, None));
        let workers: Vec<_> = (0..4)
            .map(|worker| {
                let sources = sources.clone();
                std::thread::spawn(move || {
                    for turn in 0..2_000 {
                        let one = at(sources.enter(client(1), 1));
                        // Others come and go at the other places.
                        if let Entry::At(other) =
                            sources.enter(client(10 + worker * 5_000 + turn), 1)
                        {
                            sources.leave(other);
                        }
                        sources.leave(one);
                    }
                })
            })
            .collect();
        for worker in workers {
            worker.join().expect("no panic");
        }
        for place in &sources.places {
            assert_eq!(place.holder.load(Ordering::Relaxed) & CONNECTIONS, 0);
        }
    }
}
