//! The world in which SIM is shown and tested end to end: servers made of network namespaces, a
//! workload that no one here wrote, an open-loop load that accounts for every request, and the
//! demonstration that puts them together and judges the outcome.
//!
//! Nothing here is needed at run time, and nothing here tells the control plane what it is
//! supposed to find out by itself: the demand law, the seed and the measured capacity stay on
//! this side.

pub mod clock;
pub mod demand;
pub mod demo;
pub mod director;
pub mod load;
pub mod sweep;
pub mod world;
