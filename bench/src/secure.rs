//! A certificate for a run, and users who trust it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::{ClientConfig, RootCertStore};

/// The name it is for.
pub const NAME: &str = "bench";

/// A certificate that signed itself, in files of PEM.
#[derive(Clone, Debug)]
pub struct Certificate {
    /// The certificate.
    pub chain: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// Both, one after the other, as HAProxy reads them.
    pub both: PathBuf,
    /// Who trusts it, and nobody else.
    pub users: Arc<ClientConfig>,
}

impl Certificate {
    /// Makes one for [`NAME`]; its files are below `at`: `chain.pem`, `key.pem`, and `both.pem`.
    ///
    /// # Errors
    /// A file can't be written.
    pub fn new(at: &Path) -> Result<Self> {
        Self::of(at, [NAME.to_owned()])
    }

    /// Makes one for `names`, else the same.
    ///
    /// # Errors
    /// A name is none, or a file can't be written.
    pub fn of(at: &Path, names: impl Into<Vec<String>>) -> Result<Self> {
        let CertifiedKey { cert, signing_key } =
            generate_simple_self_signed(names).context("a certificate")?;
        let [chain, key, both] = ["chain.pem", "key.pem", "both.pem"].map(|name| at.join(name));
        for (file, text) in [
            (&chain, cert.pem()),
            (&key, signing_key.serialize_pem()),
            (
                &both,
                format!("{}{}", cert.pem(), signing_key.serialize_pem()),
            ),
        ] {
            fs::write(file, text).with_context(|| file.display().to_string())?;
        }
        let mut roots = RootCertStore::empty();
        roots.add(cert.der().clone()).context("the certificate")?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let users = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .context("versions of TLS")?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self {
            chain,
            key,
            both,
            users: Arc::new(users),
        })
    }
}
