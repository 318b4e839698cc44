//! The contract between node, proxy, control plane and tools, and its conversion to core types.
//!
//! Whatever crosses a process boundary is checked here once: past this crate the program holds
//! validated types alone.

mod convert;
pub mod socket;

pub use convert::{ConvertError, proxy_report, resource_report, standby_of};

/// Generated from `proto/sim.proto`.
#[allow(
    missing_docs,
    clippy::all,
    clippy::allow_attributes_without_reason,
    reason = "generated code; the contract is documented in the .proto file"
)]
pub mod v1 {
    tonic::include_proto!("sim.v1");
}
