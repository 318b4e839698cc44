//! What went wrong at an instance, by kind: each kind has a cause of its own.

use crossbeam_utils::CachePadded;
use std::sync::atomic::{AtomicU64, Ordering};

/// A kind of error of an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ErrorClass {
    /// No connection.
    Connect,
    /// The connection broke before the end of the answer.
    Reset,
    /// Nothing came, or nothing was taken, for as long as the time-outs say.
    Timeout,
    /// No HTTP, or HTTP with two readings.
    Malformed,
    /// It was stopped or dead, as the kernel says, while its answer was waited for.
    Down,
    /// It said that it did nothing with the request.
    Refused,
    /// Given up after many times as long as nearly all take.
    Late,
    /// An answer of 500 and above, or a call that failed.
    Status5xx,
    /// An answer of 400 to 499: most often the user's own.
    Status4xx,
    /// A connection, but no TLS: its certificate isn't good, or it takes none of ours.
    Tls,
}

impl ErrorClass {
    pub(crate) const ALL: [(Self, &'static str); 10] = [
        (Self::Connect, "connect"),
        (Self::Reset, "reset"),
        (Self::Timeout, "timeout"),
        (Self::Malformed, "malformed"),
        (Self::Down, "down"),
        (Self::Refused, "refused"),
        (Self::Late, "late"),
        (Self::Status5xx, "5xx"),
        (Self::Status4xx, "4xx"),
        (Self::Tls, "tls"),
    ];

    /// Of an answer with `status`, if it is one.
    pub(crate) fn of_status(status: u16) -> Option<Self> {
        match status {
            500.. => Some(Self::Status5xx),
            400..=499 => Some(Self::Status4xx),
            _ => None,
        }
    }
}

/// Errors of one instance so far. They only rise.
#[derive(Debug, Default)]
pub(crate) struct Errors(CachePadded<[AtomicU64; ErrorClass::ALL.len()]>);

// Relaxed: counters of their own.
impl Errors {
    pub(crate) fn count(&self, class: ErrorClass) {
        self.0[class as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn of(&self, class: ErrorClass) -> u64 {
        self.0[class as usize].load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_class_has_a_place_of_its_own() {
        let errors = Errors::default();
        for (times, (class, _)) in ErrorClass::ALL.into_iter().enumerate() {
            (0..times).for_each(|_| errors.count(class));
        }
        for (times, (class, _)) in ErrorClass::ALL.into_iter().enumerate() {
            assert_eq!(errors.of(class), times as u64);
        }
        assert_eq!(ErrorClass::of_status(399), None);
        assert_eq!(ErrorClass::of_status(404), Some(ErrorClass::Status4xx));
        assert_eq!(ErrorClass::of_status(503), Some(ErrorClass::Status5xx));
    }
}
