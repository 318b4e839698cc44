//! The door for users over TLS.
//!
//! Pingora would shake hands before it tells us of a connection. It knows no tickets, so that each visit of a user
//! would cost a signature; writes a line for each scanner that comes by; and waits a minute. So its listener hands
//! over plain connections, and the handshake is made here, by Pingora's own acceptor.

use super::certificates::Certificates;
use super::pem::Fault;
use super::watch::{Reloads, Stamp, Watched, stamps};
use super::{TlsSettings, provider};
use crate::exposition::{Kind, Page};
use arc_swap::ArcSwap;
use pingora_core::listeners::tls::Acceptor;
use pingora_core::protocols::Stream;
use pingora_core::protocols::l4::stream::Stream as Plain;
use rustls::ServerConfig;
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};
use tokio::time::timeout;

/// How long a handshake may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Accepts users over TLS.
pub(crate) struct Door {
    /// The address of the listener; none: no other one is there, so that each connection is over TLS.
    listen: Option<SocketAddr>,
    acceptor: Acceptor,
    shown: Arc<Shown>,
    ends: [AtomicU64; 3],
}

/// How a handshake ended.
#[derive(Clone, Copy)]
enum End {
    Ok,
    Failed,
    Late,
}

impl End {
    const ALL: [(Self, &'static str); 3] = [
        (Self::Ok, "ok"),
        (Self::Failed, "failed"),
        (Self::Late, "late"),
    ];
}

impl std::fmt::Debug for Door {
    /// Rustls's settings hold keys of tickets, and say nothing of use.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Door").finish_non_exhaustive()
    }
}

impl Door {
    /// `alone`: there is no listener but this one.
    ///
    /// # Errors
    /// Where a certificate or key isn't good.
    pub(crate) fn new(settings: &TlsSettings, alone: bool) -> Result<Self, Fault> {
        let shown = Arc::new(Shown::new(settings)?);
        let failed = |error: rustls::Error| Fault::new("proxy.tls", &PathBuf::new(), error);
        let builder = ServerConfig::builder_with_provider(provider());
        let builder = builder
            .with_protocol_versions(&settings.version_min.and_newer())
            .map_err(failed)?;
        let resolver = shown.clone();
        let mut config = builder.with_no_client_auth().with_cert_resolver(resolver);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        // What a returning user was told is in its ticket: nothing is kept here, and nothing locked but the turn of
        // the tickets' keys, every six hours.
        config.ticketer = rustls::crypto::ring::Ticketer::new().map_err(failed)?;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        Ok(Self {
            listen: (!alone).then_some(settings.listen),
            acceptor: Acceptor::from_server_config(Arc::new(config)),
            shown,
            ends: Default::default(),
        })
    }

    /// Whether a connection came in here.
    pub(crate) fn is_for(&self, stream: &Stream) -> bool {
        let Some(listen) = self.listen else {
            return true;
        };
        let digest = stream.get_socket_digest();
        let local = digest.and_then(|digest| digest.local_addr()?.as_inet().copied());
        local.is_some_and(|local| {
            let every = listen.ip().is_unspecified();
            local.port() == listen.port() && (every || local.ip() == listen.ip())
        })
    }

    /// The connection after its handshake; none if that failed.
    pub(crate) async fn accept(&self, stream: Stream) -> Option<Stream> {
        // What Pingora's listeners hand over without TLS is nothing else.
        let plain = *stream.into_any().downcast::<Plain>().ok()?;
        let (end, stream) = match timeout(PATIENCE, self.acceptor.tls_handshake(plain)).await {
            Ok(Ok(stream)) => (End::Ok, Some(Box::new(stream) as Stream)),
            Ok(Err(error)) => {
                tracing::debug!(%error, "TLS handshake failed");
                (End::Failed, None)
            }
            Err(_) => (End::Late, None),
        };
        // Relaxed: a fact of its own.
        self.ends[end as usize].fetch_add(1, Ordering::Relaxed);
        stream
    }

    /// What to look at, and what to do when it has changed.
    pub(crate) fn watched(&self) -> Arc<dyn Watched> {
        self.shown.clone()
    }

    /// How often certificates were read again.
    pub(crate) fn reloads(&self) -> &Reloads {
        &self.shown.reloads
    }

    /// Its part of the metrics.
    pub(crate) fn render(&self, page: &mut Page) {
        page.family(
            "sim_proxy_tls_handshakes_total",
            Kind::Counter,
            "TLS handshakes with users, by how they ended: ok, failed, late (not within 10 s).",
        );
        for (end, name) in End::ALL {
            let count = self.ends[end as usize].load(Ordering::Relaxed);
            page.sample(&[("result", &name)], count);
        }
        page.family("sim_proxy_tls_unknown_names_total", Kind::Counter, "Users that asked for a name that no certificate is for, or for none: they got the first certificate, or by proxy.tls.strict_sni no connection.")
            .sample(&[], self.shown.unknown_names.load(Ordering::Relaxed));
        let certificates = self.shown.certificates.load();
        page.family("sim_proxy_tls_certificate_expiry_timestamp_seconds", Kind::Gauge, "When a certificate in force ends, in seconds since 1970, by its place in the configuration and its first name.");
        for (at, one) in certificates.all().iter().enumerate() {
            page.sample(&[("certificate", &at), ("name", &one.name)], one.not_after);
        }
    }
}

/// The certificates in force.
#[derive(Debug)]
struct Shown {
    settings: TlsSettings,
    certificates: ArcSwap<Certificates>,
    unknown_names: AtomicU64,
    reloads: Reloads,
    first_stamps: Vec<Stamp>,
}

impl Shown {
    fn new(settings: &TlsSettings) -> Result<Self, Fault> {
        let first_stamps = stamps(&paths(settings));
        let read = Certificates::read(settings)?;
        let shown = Self {
            settings: settings.clone(),
            certificates: ArcSwap::from_pointee(read),
            unknown_names: AtomicU64::new(0),
            reloads: Reloads::default(),
            first_stamps,
        };
        shown.note();
        Ok(shown)
    }

    fn note(&self) {
        let certificates = self.certificates.load();
        for note in certificates.notes(&self.settings, SystemTime::now()) {
            tracing::warn!("{note}");
        }
    }
}

fn paths(settings: &TlsSettings) -> Vec<PathBuf> {
    let files = settings.certificates.iter();
    files
        .flat_map(|files| [files.chain.clone(), files.key.clone()])
        .collect()
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let certificates = self.certificates.load();
        let found = certificates.find(hello.server_name(), hello.signature_schemes())?;
        if !found.named {
            // Relaxed: a fact of its own.
            self.unknown_names.fetch_add(1, Ordering::Relaxed);
            if self.settings.strict_sni {
                return None;
            }
        }
        Some(found.key)
    }
}

impl Watched for Shown {
    fn paths(&self) -> Vec<PathBuf> {
        paths(&self.settings)
    }

    fn first_stamps(&self) -> Vec<Stamp> {
        self.first_stamps.clone()
    }

    fn read_again(&self) -> Result<(), Fault> {
        // As a whole, or not at all.
        let read = Certificates::read(&self.settings)?;
        self.certificates.store(Arc::new(read));
        self.note();
        Ok(())
    }

    fn reloads(&self) -> &Reloads {
        &self.reloads
    }
}
