//! How the proxy speaks with a workload's instances.

use super::validate::Rules;
use super::{ConfigError, Workload};
use serde::Deserialize;
use sim_core::name::WorkloadName;
use sim_node::{Io, Secure, Securing};
use sim_proxy::config::{PROTOCOLS, Protocol};
use sim_proxy::tls::{IdentityFiles, InstanceTlsSettings, is_server_name};
use std::path::PathBuf;
use std::sync::Arc;

/// A node secures its connections for the readiness proof as the proxy does its own.
#[derive(Clone, Debug)]
struct Secured {
    workload: WorkloadName,
    tls: InstanceTlsSettings,
}

impl Secure for Secured {
    fn secure(&self, stream: Box<dyn Io>) -> Securing {
        let Self { workload, tls } = self.clone();
        Box::pin(async move {
            let secured = tls.secure(&workload, stream).await?;
            Ok(Box::new(secured) as Box<dyn Io>)
        })
    }
}

/// For a node, if the workload's instances speak TLS.
pub(super) fn secured(workload: &Workload) -> Option<(String, Arc<dyn Secure>)> {
    let secured = Secured {
        workload: workload.spec.name.clone(),
        tls: workload.tls.clone()?,
    };
    let secured: Arc<dyn Secure> = Arc::new(secured);
    Some((workload.spec.name.to_string(), secured))
}

/// `[workload.tls]`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct InstanceTlsTable {
    pub(super) ca: PathBuf,
    server_name: String,
    pub(super) certificate: Option<PathBuf>,
    pub(super) key: Option<PathBuf>,
}

/// What the table says; the files are for [`super::Config::check_files`] to read.
pub(super) fn tls(
    rules: &Rules<'_>,
    table: InstanceTlsTable,
) -> Result<InstanceTlsSettings, ConfigError> {
    let InstanceTlsTable {
        ca,
        server_name,
        certificate,
        key,
    } = table;
    if !is_server_name(&server_name) {
        let allowed = "must be a name such as \"web.internal\", or an IP address";
        let found = format!("{server_name:?}");
        return Err(rules.broken("workload.tls.server_name", found, allowed));
    }
    let alone = |key: &str, found: &PathBuf, other: &str| {
        let allowed = format!("must come with workload.tls.{other}");
        let key = format!("workload.tls.{key}");
        Err(rules.broken(&key, format!("{found:?}"), &allowed))
    };
    let identity = match (certificate, key) {
        (None, None) => None,
        (Some(certificate), Some(key)) => Some(IdentityFiles { certificate, key }),
        (Some(certificate), None) => return alone("certificate", &certificate, "key"),
        (None, Some(key)) => return alone("key", &key, "certificate"),
    };
    Ok(InstanceTlsSettings {
        ca,
        server_name,
        identity,
    })
}

/// `workload.protocol`.
pub(super) fn protocol(rules: &Rules<'_>, name: &str) -> Result<Protocol, ConfigError> {
    let known = PROTOCOLS.iter().find(|(_, known)| *known == name);
    known.map(|&(protocol, _)| protocol).ok_or_else(|| {
        let names: Vec<_> = PROTOCOLS.iter().map(|(_, name)| *name).collect();
        let allowed = format!("must be one of {}", names.join(", "));
        rules.broken("workload.protocol", format!("{name:?}"), &allowed)
    })
}
