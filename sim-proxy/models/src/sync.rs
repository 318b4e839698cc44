//! Loom's primitives, by the names that production has for std's.
//!
//! `std::sync::Arc` stays as it is: its count is std's, and only adds interleavings.

pub(crate) use loom::sync::{Mutex, MutexGuard, atomic};

use atomic::{AtomicUsize, Ordering};
use std::ops::Deref;
use std::sync::{Arc, PoisonError};

/// One is enough: a thousand counters per instance would be a thousand places to switch threads.
pub(crate) const LATENCY_BUCKETS: usize = 1;
/// As few as there are.
pub(crate) const SCHEDULE_SLOTS: usize = 1;

/// In place of arc-swap's. A load is an acquire and a store a release of one word, as there (its orderings are stronger,
/// for its own sake). What isn't modelled is when arc-swap frees what was replaced: here everything lives to the end.
#[derive(Debug)]
pub struct ArcSwap<T> {
    current: AtomicUsize,
    /// Not loom's, so that it orders nothing: no thread is switched while it is held.
    ever: std::sync::Mutex<Vec<Arc<T>>>,
}

/// What was loaded.
#[derive(Debug)]
pub struct Guard<T>(T);

impl<T> Deref for Guard<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T> ArcSwap<T> {
    pub(crate) fn from_pointee(value: T) -> Self {
        Self {
            current: AtomicUsize::new(0),
            ever: std::sync::Mutex::new(vec![Arc::new(value)]),
        }
    }

    pub(crate) fn load(&self) -> Guard<Arc<T>> {
        let at = self.current.load(Ordering::Acquire);
        let ever = self.ever.lock().unwrap_or_else(PoisonError::into_inner);
        Guard(Arc::clone(&ever[at]))
    }

    pub(crate) fn store(&self, value: Arc<T>) {
        let at = {
            let mut ever = self.ever.lock().unwrap_or_else(PoisonError::into_inner);
            ever.push(value);
            ever.len() - 1
        };
        self.current.swap(at, Ordering::AcqRel);
    }
}
