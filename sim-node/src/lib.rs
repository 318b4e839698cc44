//! The agent of one server: it senses, and it runs instances. It decides nothing.
//!
//! [`run`] keeps a session to the control plane, starts and stops instances as it is told, reads
//! the kernel's counters on its own tick and reports them. When the session is lost, instances
//! run on; when it is back, control learns what still runs.

mod agent;
mod budget;
pub mod cgroup;
mod cgroup_set;
mod exporter;
pub mod host;
mod instance;
mod launch;
mod limits;
mod listeners;
mod metrics;
mod probes;
mod process_tree;
mod readiness;
mod sense;
mod session;
mod signals;
mod stat_files;
mod usage;

pub use agent::{NodeConfig, NodeError, run};
pub use launch::launch;
pub use limits::hold_to_duty_cycle;
pub use listeners::Queue;
pub use process_tree::usage as process_group_usage;
pub use readiness::{Io, Secure, Securing};
pub use signals::{Quality, Signal};
