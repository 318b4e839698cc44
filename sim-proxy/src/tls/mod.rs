//! TLS: certificates and keys from files, checked as a whole before they are used and read again when they change.
//!
//! Rustls does the cryptography. What is here decides which certificate a user sees ([`certificates`]), accepts
//! ([`accept`]), speaks with instances ([`instances`]), and looks at the files ([`watch`]). Keys are in memory alone:
//! nothing here prints one.

pub(crate) mod accept;
mod certificates;
pub(crate) mod instances;
mod pem;
pub(crate) mod watch;

pub use certificates::{Certificates, is_name};
pub use instances::{IdentityFiles, InstanceTlsSettings, is_server_name};
pub use pem::Fault;

use rustls::SupportedProtocolVersion;
use rustls::crypto::CryptoProvider;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

/// How users are served over TLS.
#[derive(Clone, Debug)]
pub struct TlsSettings {
    /// Where they connect. Port 0 takes any free one.
    pub listen: SocketAddr,
    /// At least one. Who asks for a name that none has, or for none, gets the first that it can use.
    pub certificates: Vec<CertificateFiles>,
    /// Oldest version that is spoken.
    pub version_min: TlsVersion,
    /// Who asks for a name that no certificate has, or for none, gets no connection.
    pub strict_sni: bool,
}

/// One certificate and its key, in PEM.
#[derive(Clone, Debug)]
pub struct CertificateFiles {
    /// The certificate, and behind it those that it was signed with.
    pub chain: PathBuf,
    /// Its key, not encrypted.
    pub key: PathBuf,
    /// Names that it is for, `*.` in front of one for all below it; none: those in the certificate.
    pub names: Vec<String>,
}

/// A version of TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TlsVersion {
    /// 1.2 (RFC 5246).
    #[default]
    V12,
    /// 1.3 (RFC 8446).
    V13,
}

impl TlsVersion {
    /// It, and what is newer.
    fn and_newer(self) -> Vec<&'static SupportedProtocolVersion> {
        match self {
            Self::V12 => vec![&rustls::version::TLS13, &rustls::version::TLS12],
            Self::V13 => vec![&rustls::version::TLS13],
        }
    }
}

/// The provider of cryptography, named rather than taken from the process: no order of starting matters.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}
