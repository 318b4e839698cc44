//! How the proxy speaks with a workload's instances.

use super::ConfigError;
use super::validate::Rules;
use sim_proxy::config::{PROTOCOLS, Protocol};

/// `workload.protocol`.
pub(super) fn protocol(rules: &Rules<'_>, name: &str) -> Result<Protocol, ConfigError> {
    let known = PROTOCOLS.iter().find(|(_, known)| *known == name);
    known.map(|&(protocol, _)| protocol).ok_or_else(|| {
        let names: Vec<_> = PROTOCOLS.iter().map(|(_, name)| *name).collect();
        let allowed = format!("must be one of {}", names.join(", "));
        rules.broken("workload.protocol", format!("{name:?}"), &allowed)
    })
}
