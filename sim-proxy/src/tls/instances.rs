//! TLS towards a workload's instances: who they have to prove to be, and what they are shown (mTLS).
//!
//! Instances are addresses that come and go, and hardly any certificate names one. So the configuration names the
//! authorities and the name that each certificate must be for, and there is no way to have one unchecked. Two connect
//! by the same material: Pingora's connector on the general path, which is handed the parts, and [`crate::dial`] for
//! all else. Nothing is resumed: a cache of sessions is a lock, and connections are kept rather than made anew.

use super::certificates::key_note;
use super::pem::{self, Fault, Identity};
use super::provider;
use super::watch::{Reloads, Stamp, Watched, stamps};
use crate::exposition::{Kind, Page};
use arc_swap::{ArcSwap, Guard};
use pingora_core::protocols::tls::CaType;
use pingora_core::utils::tls::{CertKey, WrappedX509, parse_x509};
use rustls::client::Resumption;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{AlertDescription, ClientConfig, RootCertStore};
use sim_core::name::WorkloadName;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Between two lines that say why instances can't be spoken to, ns.
const SAID_EVERY_NS: u64 = 10_000_000_000;

/// How a workload's instances are spoken to over TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstanceTlsSettings {
    /// Certificates in PEM; an instance's has to be signed by one of them.
    pub ca: PathBuf,
    /// What an instance's certificate has to be for: a name, which it is asked for as well (SNI), or an IP address.
    pub server_name: String,
    /// What instances are shown that ask for a certificate.
    pub identity: Option<IdentityFiles>,
}

/// A certificate and its key, in PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentityFiles {
    /// The certificate, and behind it those that it was signed with.
    pub certificate: PathBuf,
    /// Its key, not encrypted.
    pub key: PathBuf,
}

impl InstanceTlsSettings {
    /// Reads the files, as a start would.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn check(&self, workload: &WorkloadName) -> Result<(), Fault> {
        Material::read(&key_of(workload), self).map(|_| ())
    }

    /// What is allowed but rarely meant, in one line.
    #[must_use]
    pub fn note(&self, workload: &WorkloadName) -> Option<String> {
        let files = self.identity.as_ref()?;
        key_note(&key_of(workload), &files.key)
    }

    /// Secures a connection to an instance, by the files as they are now, to speak HTTP/1.1 on it.
    ///
    /// # Errors
    /// Where the files or the instance aren't good.
    pub async fn secure<S>(&self, workload: &WorkloadName, stream: S) -> io::Result<TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let material = Material::read(&key_of(workload), self).map_err(io::Error::other)?;
        let connector = TlsConnector::from(material.config(Alpn::Http1));
        connector.connect(material.name, stream).await
    }

    fn paths(&self) -> Vec<PathBuf> {
        let identity = self.identity.iter();
        let own = identity.flat_map(|files| [files.certificate.clone(), files.key.clone()]);
        std::iter::once(self.ca.clone()).chain(own).collect()
    }
}

/// Whether an instance's certificate can be for `name`.
#[must_use]
pub fn is_server_name(name: &str) -> bool {
    // No host's name has one (RFC 952), and on the general path another name would be asked for.
    !name.contains('_') && ServerName::try_from(name).is_ok()
}

/// The configuration key of a workload's table.
fn key_of(workload: &WorkloadName) -> String {
    format!("workload {workload}: tls")
}

/// What is in force for one workload.
pub(crate) struct InstanceTls {
    workload: WorkloadName,
    settings: InstanceTlsSettings,
    material: ArcSwap<Material>,
    reloads: Reloads,
    first_stamps: Vec<Stamp>,
    said_ns: AtomicU64,
}

impl std::fmt::Debug for InstanceTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("InstanceTls").field(&self.workload).finish()
    }
}

/// What one reading of the files came to.
pub(crate) struct Material {
    /// No other has the same, of this workload or another: what connections are kept by.
    pub(crate) id: u64,
    /// For HTTP/1.1, and for HTTP/2.
    configs: [Arc<ClientConfig>; 2],
    pub(crate) name: ServerName<'static>,
    /// For Pingora.
    pub(crate) ca: Arc<CaType>,
    pub(crate) identity: Option<Arc<CertKey>>,
    /// When the certificate that instances are shown ends, seconds since 1970.
    not_after: Option<i64>,
}

/// The protocol that is agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Alpn {
    Http1,
    Http2,
}

impl Alpn {
    const ALL: [(Self, &'static [u8]); 2] = [(Self::Http1, b"http/1.1"), (Self::Http2, b"h2")];

    /// What it is called on the wire.
    pub(crate) fn name(self) -> &'static [u8] {
        Self::ALL[self as usize].1
    }
}

impl Material {
    fn read(key: &str, settings: &InstanceTlsSettings) -> Result<Self, Fault> {
        // Relaxed: only that no two are the same counts. 0 is of what isn't over TLS.
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let of_ca = format!("{key}.ca");
        let authorities = pem::read_certificates(&of_ca, &settings.ca)?;
        let mut roots = RootCertStore::empty();
        for authority in &authorities {
            let added = roots.add(authority.clone());
            added.map_err(|error| Fault::new(&of_ca, &settings.ca, error))?;
        }
        let ca = wrapped(&of_ca, &settings.ca, &authorities)?.into();
        let name = ServerName::try_from(settings.server_name.clone())
            .map_err(|error| Fault::new(&format!("{key}.server_name"), &PathBuf::new(), error))?;
        let identity = match &settings.identity {
            None => None,
            Some(files) => Some(read_identity(key, files)?),
        };
        let roots = Arc::new(roots);
        let config = |(_, alpn): (Alpn, &[u8])| {
            let builder = ClientConfig::builder_with_provider(provider());
            let builder = builder.with_safe_default_protocol_versions();
            let builder = builder.map(|builder| builder.with_root_certificates(roots.clone()));
            let config = builder.and_then(|builder| match &identity {
                None => Ok(builder.with_no_client_auth()),
                Some((identity, _)) => builder
                    .with_client_auth_cert(identity.key.cert.clone(), identity.private.clone_key()),
            });
            let mut config = config.map_err(|error| Fault::new(key, &PathBuf::new(), error))?;
            config.alpn_protocols = vec![alpn.to_vec()];
            config.resumption = Resumption::disabled();
            Ok(Arc::new(config))
        };
        let [http1, http2] = Alpn::ALL.map(config);
        let not_after = identity.as_ref().map(|(identity, _)| identity.not_after);
        Ok(Self {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            configs: [http1?, http2?],
            name,
            ca,
            identity: identity.map(|(_, pingoras)| pingoras),
            not_after,
        })
    }

    /// For connections that speak `alpn`.
    pub(crate) fn config(&self, alpn: Alpn) -> Arc<ClientConfig> {
        self.configs[alpn as usize].clone()
    }
}

/// The identity, and Pingora's form of it.
fn read_identity(key: &str, files: &IdentityFiles) -> Result<(Identity, Arc<CertKey>), Fault> {
    let (of_certificate, of_key) = (format!("{key}.certificate"), format!("{key}.key"));
    let identity =
        pem::read_identity((&of_certificate, &files.certificate), (&of_key, &files.key))?;
    // Pingora takes both apart once more, and panics where it can't.
    wrapped(&of_certificate, &files.certificate, &identity.key.cert)?;
    let private = identity.private.secret_der().to_vec();
    rustls::pki_types::PrivateKeyDer::try_from(private.clone())
        .map_err(|error| Fault::new(&of_key, &files.key, error))?;
    let chain = identity.key.cert.iter().map(|one| one.to_vec()).collect();
    let pingoras = Arc::new(CertKey::new(chain, private));
    Ok((identity, pingoras))
}

/// Pingora's form of certificates, which it panics without.
fn wrapped(
    key: &str,
    path: &Path,
    certificates: &[CertificateDer<'_>],
) -> Result<Vec<WrappedX509>, Fault> {
    let wrapped = certificates.iter().map(|one| {
        if !pem::is_certificate(one) {
            return Err(Fault::new(key, path, "holds a malformed certificate"));
        }
        Ok(WrappedX509::new(one.to_vec(), parse_x509))
    });
    wrapped.collect()
}

impl InstanceTls {
    /// # Errors
    /// Where a certificate or key isn't good.
    pub(crate) fn new(
        workload: &WorkloadName,
        settings: &InstanceTlsSettings,
    ) -> Result<Self, Fault> {
        let first_stamps = stamps(&settings.paths());
        let read = Material::read(&key_of(workload), settings)?;
        let secured = Self {
            workload: workload.clone(),
            settings: settings.clone(),
            material: ArcSwap::from_pointee(read),
            reloads: Reloads::default(),
            first_stamps,
            said_ns: AtomicU64::new(0),
        };
        secured.note();
        Ok(secured)
    }

    /// What is in force.
    pub(crate) fn material(&self) -> Guard<Arc<Material>> {
        self.material.load()
    }

    fn note(&self) {
        if let Some(note) = self.settings.note(&self.workload) {
            tracing::warn!("{note}");
        }
    }

    /// Says why an instance can't be spoken to, now and then: each time is counted, and there may be thousands.
    pub(crate) fn say(&self, now_ns: u64, why: &dyn std::fmt::Display) {
        // Relaxed: two lines at once do no harm, and nothing hangs on it.
        let said_ns = self.said_ns.load(Ordering::Relaxed);
        if said_ns == 0 || now_ns.saturating_sub(said_ns) >= SAID_EVERY_NS {
            self.said_ns.store(now_ns, Ordering::Relaxed);
            tracing::warn!(
                "{}: an instance can't be spoken to: {why}",
                key_of(&self.workload)
            );
        }
    }

    /// Its part of the metrics.
    pub(crate) fn render(&self, page: &mut Page) {
        Reloads::render(page, &[("upstream", &self.reloads)]);
        if let Some(not_after) = self.material().not_after {
            page.family("sim_proxy_tls_client_certificate_expiry_timestamp_seconds", Kind::Gauge, "When the certificate that instances are shown (workload.tls.certificate) ends, in seconds since 1970.")
                .sample(&[], not_after);
        }
    }
}

impl Watched for InstanceTls {
    fn paths(&self) -> Vec<PathBuf> {
        self.settings.paths()
    }

    fn first_stamps(&self) -> Vec<Stamp> {
        self.first_stamps.clone()
    }

    fn read_again(&self) -> Result<(), Fault> {
        let read = Material::read(&key_of(&self.workload), &self.settings)?;
        self.material.store(Arc::new(read));
        self.note();
        Ok(())
    }

    fn reloads(&self) -> &Reloads {
        &self.reloads
    }
}

/// Whether `error` says that the instance doesn't take the certificate that it was shown, or none. With TLS 1.3 that
/// comes when the handshake seems to be over. The instance's service has seen nothing of a request then.
pub(crate) fn is_refusal(error: &rustls::Error) -> bool {
    let rustls::Error::AlertReceived(alert) = error else {
        return false;
    };
    REFUSALS.contains(alert)
}

/// The alerts that say so.
const REFUSALS: [AlertDescription; 9] = {
    use AlertDescription as A;
    [
        A::HandshakeFailure,
        A::BadCertificate,
        A::UnsupportedCertificate,
        A::CertificateRevoked,
        A::CertificateExpired,
        A::CertificateUnknown,
        A::UnknownCA,
        A::AccessDenied,
        A::CertificateRequired,
    ]
};

/// The same by the words of `error`: HTTP/2's library keeps nothing else of it.
pub(crate) fn is_said_to_be_refused(error: &io::Error) -> bool {
    let said = error.to_string();
    let words = |alert| rustls::Error::AlertReceived(alert).to_string();
    REFUSALS.into_iter().any(|alert| said == words(alert))
}

/// The same of what reading came to.
pub(crate) fn is_refused(error: &io::Error) -> bool {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
    inner.is_some_and(is_refusal)
}
