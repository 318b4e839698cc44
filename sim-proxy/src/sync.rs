//! What the protocols between threads are made of: std's atomics and locks, and arc-swap's pointer.
//!
//! The modules with such a protocol take them from here. Package `sim-proxy-models` compiles the same modules, and
//! gives them loom's in their place.

pub(crate) use arc_swap::{ArcSwap, Guard};
pub(crate) use sim_core::histogram::BUCKETS as LATENCY_BUCKETS;
pub(crate) use std::sync::{Mutex, MutexGuard, atomic};

/// Turns of a schedule at least: a client must not come round to the same ones soon.
pub(crate) const SCHEDULE_SLOTS: usize = 4_096;
