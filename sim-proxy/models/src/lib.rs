//! Loom models of the proxy's protocols between threads.
//!
//! What is modelled is production's own source: the modules below are the very files of `sim-proxy`, compiled once
//! more with loom's primitives in place of std's (both get them from their `crate::sync`). Loom then runs each model
//! in every interleaving, with every value that the memory model lets a load return.
//!
//! Its limits: sequential consistency is taken for acquire and release, so no protocol here may need more; values that
//! appear out of thin air (load buffering) are not explored; and no more than a few switches are forced on a thread
//! (`LOOM_MAX_PREEMPTIONS`), which is where nearly all errors show (Musuvathi and Qadeer 2007).
// The tests of the modules below are for std's primitives, and run in sim-proxy.
#![cfg(not(test))]
#![allow(
    dead_code,
    unreachable_pub,
    reason = "a model needs a part of each module; sim-proxy's own build finds what nobody needs"
)]

pub mod ejection;
pub mod hand_over;
pub mod in_flight;
mod world;

mod clock;
mod overdue;
mod sync;
mod tickets;

// rustfmt would look for these files' tests beside this one. It formats them where they belong.

#[rustfmt::skip]
#[path = "../../src/attempt.rs"]
pub mod attempt;
#[rustfmt::skip]
#[path = "../../src/config/eject.rs"]
pub mod config;
#[rustfmt::skip]
#[path = "../../src/checked.rs"]
mod checked;
#[rustfmt::skip]
#[path = "../../src/errors.rs"]
mod errors;
#[rustfmt::skip]
#[path = "../../src/health.rs"]
pub mod health;
#[rustfmt::skip]
#[path = "../../src/live.rs"]
pub mod live;
#[rustfmt::skip]
#[path = "../../src/pace.rs"]
mod pace;
#[rustfmt::skip]
#[path = "../../src/pick.rs"]
pub mod pick;
#[rustfmt::skip]
#[path = "../../src/policy.rs"]
pub mod policy;
#[rustfmt::skip]
#[path = "../../src/quantiles.rs"]
mod quantiles;
#[rustfmt::skip]
#[path = "../../src/ramp.rs"]
mod ramp;
#[rustfmt::skip]
#[path = "../../src/routes.rs"]
pub mod routes;
#[rustfmt::skip]
#[path = "../../src/schedule.rs"]
mod schedule;
#[rustfmt::skip]
#[path = "../../src/snapshot.rs"]
pub mod snapshot;
#[rustfmt::skip]
#[path = "../../src/sticky.rs"]
pub mod sticky;
