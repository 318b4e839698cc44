//! Life flags: the kernel's word on whether an instance can serve, for whoever picks instances.
//!
//! A node's probes write one word per instance at its death, its stop, and when its last process is gone.
//! The node [`Offer`]s its array to local processes, [`take`] maps it read-only, and from then on
//! [`LifeFlags::is_down`] costs one load: no system call, no message, nobody to wait for.

pub mod descriptors;
mod flags;
mod handover;

pub use flags::{Life, LifeFlags};
pub use handover::{Offer, Taken, take};
