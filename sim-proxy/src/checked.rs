//! What active checks say of an instance, as a pick reads it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// One instance's word from [`crate::check`].
#[derive(Debug, Default)]
pub(crate) struct Checked {
    is_out: AtomicBool,
    passed: AtomicU64,
    failed: AtomicU64,
    falls: AtomicU64,
}

// Counters are Relaxed, facts of their own; the flag is too on the request path, where a pick more or less is what retries
// are for. Who takes an instance out looks at the others after it wrote, as an ejection does: both by read-modify-writes
// that acquire and release, see `Health::eject_unless_last`.
impl Checked {
    /// Checks have taken it out.
    #[inline]
    pub(crate) fn is_out(&self) -> bool {
        self.is_out.load(Ordering::Relaxed)
    }

    /// The same for certain: not for the request path.
    pub(crate) fn is_out_now(&self) -> bool {
        self.is_out.fetch_or(false, Ordering::AcqRel)
    }

    /// Takes it out, unless `has_other` then says that no other is in. True: it did.
    pub(crate) fn take_out(&self, has_other: impl FnOnce() -> bool) -> bool {
        if self.is_out.swap(true, Ordering::AcqRel) {
            return false;
        }
        if !has_other() {
            self.is_out.store(false, Ordering::Release);
            return false;
        }
        self.falls.fetch_add(1, Ordering::Relaxed);
        true
    }

    /// Brings it back. True: it was out.
    pub(crate) fn bring_back(&self) -> bool {
        self.is_out.swap(false, Ordering::AcqRel)
    }

    pub(crate) fn count(&self, passed: bool) {
        let counter = if passed { &self.passed } else { &self.failed };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Checks passed, checks failed, and how often they took it out.
    pub(crate) fn counts(&self) -> [u64; 3] {
        [&self.passed, &self.failed, &self.falls].map(|counter| counter.load(Ordering::Relaxed))
    }
}
