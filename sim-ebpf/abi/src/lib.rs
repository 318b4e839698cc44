//! What the kernel programs and user space agree on: map values, map names' meaning, limits.
//!
//! Every type is `repr(C)`, a whole number of `u64`s (or of `u32`s for [`KernelOffsets`]) and free of
//! padding, so that both compilers lay it out alike and user space may read any bytes as one.
//!
//! All counters are cumulative and only grow. All durations are nanoseconds of `CLOCK_MONOTONIC`.
#![no_std]

mod counters;
mod histogram;
mod life;
mod offsets;
#[cfg(feature = "user")]
mod pod;

pub use counters::{
    BlockCounters, CgroupCounters, Connection, CpuCounters, HttpCounters, InFlight, LOSS_KINDS,
    Loss, MemoryCounters, Neighbour, NetCounters, TcpCounters,
};
pub use histogram::{HISTOGRAM_BUCKETS, Histogram, bucket_lower_ns, bucket_of};
pub use life::{LifeFlag, Watched};
pub use offsets::{BLOCK_OWNER_BIO, BLOCK_OWNER_ISSUER, KernelOffsets};

/// Cgroups that can be tracked at once unless the loader says otherwise.
pub const CGROUPS_MAX: u32 = 16_384;
/// Block requests of tracked cgroups that can be in flight at once.
pub const IN_FLIGHT_MAX: u32 = 16_384;
/// Tasks of tracked cgroups that live at once, where tasks can't have storage of their own.
pub const TASKS_MAX: u32 = 65_536;
/// CPU time that a task may owe its cgroup's counters: what they lack of it, at most, while it sleeps.
pub const OWED_MAX_NS: u64 = 500_000;
/// Switches that a task may owe, and as many waits; few enough for a byte.
pub const OWED_SWITCHES_MAX: u8 = 64;
/// Pairs of a waiting and a running cgroup that can be told apart at once.
pub const NEIGHBOURS_MAX: u32 = 4_096;
/// Death-flag slots unless the loader says otherwise.
pub const SLOTS_MAX: u32 = 1_024;
