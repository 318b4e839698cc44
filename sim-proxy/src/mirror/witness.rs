//! What of an answer is compared: its status, how long it is, and a hash of what it says.

use std::fmt;
use xxhash_rust::xxh3::Xxh3;

/// Bytes of an answer that are hashed: enough to tell two pages apart, and a bound on what a long download costs.
const HASHED_BYTES_MAX: u64 = 256 * 1_024;

/// Sees an answer pass.
#[derive(Default)]
pub(crate) struct Witness {
    status: u16,
    size: u64,
    /// XXH3, where hashes are wanted.
    hash: Option<Box<Xxh3>>,
}

/// What was seen of a whole answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) status: u16,
    /// Bytes of its content.
    pub(crate) size: u64,
    pub(crate) hash: u64,
}

impl fmt::Debug for Witness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.seen().fmt(f)
    }
}

impl Witness {
    /// One that hashes what it sees.
    pub(crate) fn hashing() -> Self {
        Self {
            hash: Some(Box::default()),
            ..Self::default()
        }
    }

    /// An answer begins: what was seen of one before is forgotten.
    pub(crate) fn answered(&mut self, status: u16) {
        self.status = status;
        self.size = 0;
        if let Some(hash) = &mut self.hash {
            hash.reset();
        }
    }

    pub(crate) fn saw(&mut self, content: &[u8]) {
        let left = HASHED_BYTES_MAX.saturating_sub(self.size);
        self.size += content.len() as u64;
        if let Some(hash) = &mut self.hash {
            let hashed = usize::try_from(left).unwrap_or(usize::MAX);
            hash.update(&content[..content.len().min(hashed)]);
        }
    }

    pub(crate) fn seen(&self) -> Seen {
        Seen {
            status: self.status,
            size: self.size,
            hash: self.hash.as_ref().map_or(0, |hash| hash.digest()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(pieces: &[&[u8]]) -> Seen {
        let mut witness = Witness::hashing();
        witness.answered(500);
        witness.saw(b"of an attempt that failed");
        witness.answered(200);
        for piece in pieces {
            witness.saw(piece);
        }
        witness.seen()
    }

    #[test]
    fn how_an_answer_is_cut_makes_no_difference_and_what_it_says_does() {
        assert_eq!(seen(&[b"abc", b"", b"def"]), seen(&[b"abcdef"]));
        assert_ne!(seen(&[b"abcdef"]).hash, seen(&[b"abcdeg"]).hash);
        assert_eq!(seen(&[b"abcdef"]).size, 6);
    }

    #[test]
    fn of_a_long_answer_all_is_counted_and_the_beginning_is_hashed() {
        let long = vec![1; HASHED_BYTES_MAX as usize];
        let (one, other) = (seen(&[&long, b"a"]), seen(&[&long, b"bc"]));
        assert_eq!(one.hash, other.hash);
        assert_eq!(other.size, one.size + 1);
    }
}
