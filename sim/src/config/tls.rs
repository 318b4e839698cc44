//! `[proxy.tls]`: certificates, and where users of TLS connect.

use super::ConfigError;
use super::validate::Rules;
use serde::Deserialize;
use sim_proxy::tls::{CertificateFiles, TlsSettings, TlsVersion, is_name};
use std::path::PathBuf;

/// `[proxy.tls]`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TlsTable {
    listen: String,
    pub(super) certificate: Vec<CertificateTable>,
    #[serde(default = "version_min")]
    version_min: String,
    #[serde(default)]
    strict_sni: bool,
}

/// `[[proxy.tls.certificate]]`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CertificateTable {
    pub(super) chain: PathBuf,
    pub(super) key: PathBuf,
    #[serde(default)]
    names: Vec<String>,
}

fn version_min() -> String {
    "1.2".into()
}

/// What the table says; the files are for [`super::Config::check_files`] to read.
pub(super) fn tls(rules: &Rules<'_>, table: TlsTable) -> Result<TlsSettings, ConfigError> {
    let address = "must be ip:port, such as \"0.0.0.0:443\"";
    let listen = rules.parsed("proxy.tls.listen", &table.listen, address)?;
    let version_min = match table.version_min.as_str() {
        "1.2" => TlsVersion::V12,
        "1.3" => TlsVersion::V13,
        other => {
            let allowed = "must be \"1.2\" or \"1.3\"";
            return Err(rules.broken("proxy.tls.version_min", format!("{other:?}"), allowed));
        }
    };
    if table.certificate.is_empty() {
        let allowed = "must hold at least one";
        return Err(rules.broken("proxy.tls.certificate", "[]", allowed));
    }
    let mut certificates = Vec::new();
    for (at, table) in table.certificate.into_iter().enumerate() {
        let lower = |name: String| name.to_ascii_lowercase();
        let names: Vec<_> = table.names.into_iter().map(lower).collect();
        if let Some(bad) = names.iter().find(|name| !is_name(name)) {
            let key = format!("proxy.tls.certificate[{at}].names");
            let allowed = "must be a name such as \"shop.example\" or \"*.shop.example\"";
            return Err(rules.broken(&key, format!("{bad:?}"), allowed));
        }
        certificates.push(CertificateFiles {
            chain: table.chain,
            key: table.key,
            names,
        });
    }
    Ok(TlsSettings {
        listen,
        certificates,
        version_min,
        strict_sni: table.strict_sni,
    })
}
