//! Numbers of a well-known package, for tests: `sim-core/tests/oracle` holds them and says how they were made.

use alloc::{borrow::ToOwned, collections::BTreeMap, string::String};

/// Two numbers that should be the same are off by less than this share.
const AGREEMENT: f64 = 1e-9;

/// Rows `name,index,value`.
pub(super) struct Oracle(BTreeMap<(String, u64), f64>);

impl Oracle {
    pub(super) fn read(text: &str) -> Self {
        let row = |line: &str| {
            let mut parts = line.split(',');
            let name = parts.next()?.to_owned();
            let index = parts.next()?.parse().ok()?;
            Some(((name, index), parts.next()?.parse().ok()?))
        };
        let rows = text.lines().skip(1);
        Self(rows.map(|line| row(line).expect("a row")).collect())
    }

    pub(super) fn find(&self, name: &str, index: u64) -> Option<f64> {
        self.0.get(&(name.to_owned(), index)).copied()
    }

    pub(super) fn get(&self, name: &str, index: u64) -> f64 {
        self.find(name, index).expect("a number of that name")
    }

    /// How many numbers go by that name.
    pub(super) fn len(&self, name: &str) -> usize {
        self.0.keys().filter(|(of, _)| of == name).count()
    }

    pub(super) fn agrees(&self, name: &str, index: u64, ours: f64) {
        let theirs = self.get(name, index);
        let off = (ours - theirs).abs() / theirs.abs().max(1e-3);
        assert!(
            off < AGREEMENT,
            "{name} {index}: {ours}, should be {theirs}"
        );
    }
}
