//! A certificate and its key, read and checked.

use super::provider;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use std::fmt::Display;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// No certificate or key is longer, bytes.
const FILE_BYTES_MAX: u64 = 4 << 20;
/// Others may read the file.
const READABLE_BY_OTHERS: u32 = 0o004;

/// What is wrong with a file, in one line without its content.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {}: {problem}", path.display())]
pub struct Fault {
    /// The configuration key that names it.
    pub key: String,
    /// The file.
    pub path: PathBuf,
    /// What is wrong.
    pub problem: String,
}

impl Fault {
    pub(super) fn new(key: &str, path: &Path, problem: impl Display) -> Self {
        Self {
            key: key.to_owned(),
            path: path.to_owned(),
            problem: problem.to_string(),
        }
    }
}

/// A certificate with its key, and what it says of itself.
pub(super) struct Identity {
    pub(super) key: Arc<CertifiedKey>,
    /// The key as it was read.
    pub(super) private: PrivateKeyDer<'static>,
    /// Names of hosts that it is for, in lower case.
    pub(super) names: Vec<String>,
    /// When it ends, seconds since 1970.
    pub(super) not_after: i64,
}

/// Reads a chain and a key, each by the configuration key that names it and its path.
pub(super) fn read_identity(
    (of_chain, chain): (&str, &Path),
    (of_key, key): (&str, &Path),
) -> Result<Identity, Fault> {
    let certificates = read_certificates(of_chain, chain)?;
    let bytes = read(of_key, key)?;
    let private = PrivateKeyDer::from_pem_slice(&bytes).map_err(|error| match error {
        pem::Error::NoItemsFound => {
            Fault::new(of_key, key, "holds no PEM key, or an encrypted one")
        }
        error => Fault::new(of_key, key, error),
    })?;
    let (names, not_after) = describe(&certificates[0])
        .ok_or_else(|| Fault::new(of_chain, chain, "its first certificate is malformed"))?;
    let certified = CertifiedKey::from_der(certificates, private.clone_key(), &provider());
    let certified = certified.map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => {
            let problem = format!("is not the key of the certificate in {}", chain.display());
            Fault::new(of_key, key, problem)
        }
        error => Fault::new(of_key, key, error),
    })?;
    Ok(Identity {
        key: Arc::new(certified),
        private,
        names,
        not_after,
    })
}

/// The certificates of a file, at least one.
pub(super) fn read_certificates(
    key: &str,
    path: &Path,
) -> Result<Vec<CertificateDer<'static>>, Fault> {
    let bytes = read(key, path)?;
    let certificates = CertificateDer::pem_slice_iter(&bytes).collect::<Result<Vec<_>, _>>();
    let certificates = certificates.map_err(|error| Fault::new(key, path, error))?;
    if certificates.is_empty() {
        return Err(Fault::new(key, path, "holds no PEM certificate"));
    }
    Ok(certificates)
}

fn read(key: &str, path: &Path) -> Result<Vec<u8>, Fault> {
    let unreadable = |error| Fault::new(key, path, format_args!("can't be read: {error}"));
    let metadata = std::fs::metadata(path).map_err(unreadable)?;
    // To read from a pipe would wait.
    if !metadata.is_file() || metadata.len() > FILE_BYTES_MAX {
        return Err(Fault::new(key, path, "is no file of at most 4 MiB"));
    }
    std::fs::read(path).map_err(unreadable)
}

/// Whether `certificate` can be taken apart.
pub(super) fn is_certificate(certificate: &CertificateDer<'_>) -> bool {
    X509Certificate::from_der(certificate).is_ok()
}

/// Names and end of a certificate.
fn describe(certificate: &CertificateDer<'_>) -> Option<(Vec<String>, i64)> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let alternative = certificate.subject_alternative_name().ok()?;
    let names = alternative.map_or(&[][..], |extension| &extension.value.general_names);
    let names = names.iter().filter_map(|name| match name {
        GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
        _ => None,
    });
    Some((
        names.collect(),
        certificate.validity().not_after.timestamp(),
    ))
}

/// Whether every user of the machine may read `path`.
pub(super) fn is_readable_by_others(path: &Path) -> bool {
    std::fs::metadata(path)
        .is_ok_and(|metadata| metadata.permissions().mode() & READABLE_BY_OTHERS != 0)
}
