//! The word that says when a request is overdue.

use crate::sync::atomic::{AtomicU64, Ordering};

/// When a request is overdue, as the request path reads it.
#[derive(Debug)]
pub(crate) struct Overdue {
    /// Time from the pick, ns; `u64::MAX` = never.
    after_ns: AtomicU64,
    /// The same until it is late.
    late_ns: AtomicU64,
}

impl Default for Overdue {
    fn default() -> Self {
        Self {
            after_ns: AtomicU64::new(u64::MAX),
            late_ns: AtomicU64::new(u64::MAX),
        }
    }
}

// Relaxed: a fact of its own; a request that reads the one before is hedged a little sooner or later.
impl Overdue {
    /// Time from a pick until its request is overdue, ns; `u64::MAX` = it never is.
    pub(crate) fn after_ns(&self) -> u64 {
        self.after_ns.load(Ordering::Relaxed)
    }

    /// Time from a pick until its request is late, ns; `u64::MAX` = it never is.
    pub(crate) fn late_ns(&self) -> u64 {
        self.late_ns.load(Ordering::Relaxed)
    }

    /// Time until it is overdue; `None` = it never is.
    pub(crate) fn known_ns(&self) -> Option<u64> {
        Some(self.after_ns()).filter(|&after_ns| after_ns != u64::MAX)
    }

    pub(super) fn set(&self, after_ns: Option<u64>, late_factor: u32) {
        let late_ns = after_ns.map(|ns| ns.saturating_mul(u64::from(late_factor)));
        self.after_ns
            .store(after_ns.unwrap_or(u64::MAX), Ordering::Relaxed);
        self.late_ns
            .store(late_ns.unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}
