//! Per-cgroup truth from the kernel: loads SIM's eBPF programs, reads what they added up.
//!
//! [`Probes`] is the whole surface. A caller tracks the cgroups of its instances, reads their
//! [`Counters`] on its own tick, and watches main processes for death:
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use sim_ebpf::{Probes, ProbesConfig};
//!
//! let mut probes = Probes::load(&ProbesConfig::new("/usr/lib/sim/sim-ebpf.o"))?;
//! for group in probes.status() {
//!     tracing::info!("{group}");
//! }
//! let id = sim_ebpf::cgroup_id("/sys/fs/cgroup/sim/web-1")?;
//! probes.track(id)?;
//! let before = probes.read(id)?;
//! // ... one tick later:
//! probes.settle();
//! let spent = probes.read(id)?.since(&before);
//! tracing::info!(spent.on_cpu_ns, p99_ns = spent.run_queue_hist.quantile_ns(0.99));
//! # Ok(())
//! # }
//! ```
//!
//! What it needs: root, or `CAP_BPF` and `CAP_PERFMON` (tracing programs), `CAP_NET_ADMIN` (packet
//! programs) and, for [`Probes::cost`] only, `CAP_SYS_ADMIN`. What the kernel refuses is no error but a
//! [`GroupStatus`] with the reason, and [`Group::fallback`] names the file that has the signal instead.
//!
//! Nothing is pinned: programs, links and maps go with the process that loaded them.
//!
//! The kernel side is `programs/` (built by `cargo xtask ebpf`), the types that both share are `abi/`.
//! A new signal goes through all three in this order: a counter in `abi/src/counters.rs`, a program in the
//! file of its group in `programs/src/`, its line in `group.rs` (and in `offsets.rs` if it reads a kernel
//! struct), its field in [`Counters`] (the compiler asks for it), and a test in `tests/privileged.rs` that
//! holds it against an independent source.

mod btf;
mod cgroup;
mod cgroups;
mod cost;
mod counters;
mod empty;
mod error;
mod freeze;
mod group;
mod histogram;
mod kernel_log;
mod life;
mod load;
mod offsets;
mod probes;

pub use cgroup::{cgroup_id, cgroup2_mount};
pub use cost::{Cost, ProgramCost};
pub use counters::{Counters, Losses};
pub use empty::EmptyPrograms;
pub use error::{LoadError, ReadError, TrackError, WatchError};
pub use group::{Group, GroupState, GroupStatus};
pub use histogram::Log2Histogram;
pub use load::{BlockOwner, ProbesConfig};
pub use probes::{NeighbourWait, Probes};
pub use sim_ebpf_abi::{Histogram as RawHistogram, OWED_MAX_NS, OWED_SWITCHES_MAX};
pub use sim_life::{Life, LifeFlags};
