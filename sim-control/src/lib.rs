//! The control plane: feeds the pure core with what nodes and proxies report, and carries out what
//! it answers. No decision is taken here.
//!
//! [`run`] binds the socket that nodes, proxies and tools dial, restores the core from the store,
//! and then loops: one task owns the core, so there is no lock around it.

mod beginning;
mod driver;
mod registry;
mod service;
mod store;

pub use driver::{ControlConfig, ControlError, run};
pub use store::{Store, StoreError};
