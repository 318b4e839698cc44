//! A clock that stands still but when it is set: each interleaving must see the same time.

use std::cell::Cell;
use std::time::Duration;

thread_local! {
    // Of the test: loom runs all threads of a model on one of the system's.
    static NOW_NS: Cell<u64> = const { Cell::new(0) };
}

pub(crate) fn monotonic_ns() -> u64 {
    NOW_NS.get()
}

pub(crate) fn set_ns(now_ns: u64) {
    NOW_NS.set(now_ns);
}

pub(crate) fn nanos(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}
