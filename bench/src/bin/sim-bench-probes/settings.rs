//! What is measured, and where everything is.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use sim_ebpf::ProbesConfig;

/// From the command line and from what `cargo xtask bench probes` sets.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) rounds: usize,
    pub(crate) object: PathBuf,
}

impl Settings {
    pub(crate) fn new(rounds: usize) -> Result<Self> {
        let object = std::env::var_os("SIM_EBPF_OBJECT")
            .context("SIM_EBPF_OBJECT is not set; `cargo xtask bench probes` sets it")?;
        Ok(Self {
            rounds: rounds.max(1),
            object: object.into(),
        })
    }

    /// The probes as a node loads them, but that this program measures for all.
    pub(crate) fn probes(&self) -> ProbesConfig {
        let mut config = ProbesConfig::new(&self.object);
        config.measure_cost = false;
        config
    }
}
