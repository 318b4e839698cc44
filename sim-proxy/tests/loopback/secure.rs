//! Certificates of our own, and users that connect over TLS.

use hyper::Uri;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tower::util::BoxCloneSyncService;

/// The name that users ask for.
pub(crate) const NAME: &str = "web.example";

/// An authority, and what it has signed, in files.
pub(crate) struct Authority {
    directory: TempDir,
    certificate: CertificateDer<'static>,
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its key.
#[derive(Clone)]
pub(crate) struct Files {
    pub(crate) chain: PathBuf,
    pub(crate) key: PathBuf,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("signed");
        Self {
            directory: TempDir::new().expect("a directory"),
            certificate: certificate.der().clone(),
            pem: certificate.pem(),
            issuer: Issuer::new(params, key),
        }
    }

    /// A file with its own certificate.
    pub(crate) fn file(&self) -> PathBuf {
        self.write("ca.pem", &self.pem)
    }

    /// How an instance serves over TLS that shows `files`, asks for a certificate of `clients` if there are any, and
    /// speaks `alpn`.
    pub(crate) fn server(
        files: &Files,
        clients: Option<&Self>,
        alpn: &[&[u8]],
    ) -> Arc<ServerConfig> {
        Self::server_of(rustls::ALL_VERSIONS, files, clients, alpn)
    }

    /// The same in these versions alone.
    pub(crate) fn server_of(
        versions: &[&'static rustls::SupportedProtocolVersion],
        files: &Files,
        clients: Option<&Self>,
        alpn: &[&[u8]],
    ) -> Arc<ServerConfig> {
        let chain = CertificateDer::pem_file_iter(&files.chain).expect("there");
        let chain = chain.collect::<Result<_, _>>().expect("certificates");
        let key = PrivateKeyDer::from_pem_file(&files.key).expect("a key");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider.clone());
        let config = config.with_protocol_versions(versions).expect("known");
        let config = match clients {
            None => config.with_no_client_auth(),
            Some(clients) => {
                let roots = Arc::new(clients.roots());
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider);
                config.with_client_cert_verifier(verifier.build().expect("roots"))
            }
        };
        let mut config = config.with_single_cert(chain, key).expect("a pair");
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        Arc::new(config)
    }

    /// Files that are called `file`, of a new certificate; what was in them is gone.
    pub(crate) fn sign(&self, file: &str, names: &[&str]) -> Files {
        self.sign_until(file, names, 4096)
    }

    /// The same of one that has ended.
    pub(crate) fn sign_expired(&self, file: &str, names: &[&str]) -> Files {
        self.sign_until(file, names, 2020)
    }

    fn sign_until(&self, file: &str, names: &[&str], last_year: i32) -> Files {
        let names: Vec<_> = names.iter().map(|&name| name.to_owned()).collect();
        let mut params = CertificateParams::new(names).expect("names");
        params.not_after = rcgen::date_time_ymd(last_year, 1, 1);
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("signed");
        Files {
            chain: self.write(&format!("{file}.pem"), &certificate.pem()),
            key: self.write(&format!("{file}.key"), &key.serialize_pem()),
        }
    }

    pub(crate) fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.directory.path().join(name);
        std::fs::write(&path, text).expect("written");
        path
    }

    /// Whom its users trust.
    pub(crate) fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone()).expect("a certificate");
        roots
    }

    /// Users that trust it and know tickets of before.
    pub(crate) fn trusted(&self) -> ClientConfig {
        client_config(self.roots())
    }
}

fn client_config(roots: RootCertStore) -> ClientConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider);
    let config = config.with_safe_default_protocol_versions().expect("known");
    config.with_root_certificates(roots).with_no_client_auth()
}

/// Tests of these, by users in the clear and over TLS.
macro_rules! each_way {
    ($($test:ident)+) => {
        mod clear {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $test() {
                    super::$test(super::Way::Clear).await;
                }
            )+
        }

        mod over_tls {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $test() {
                    super::$test(super::Way::tls()).await;
                }
            )+
        }
    };
}
pub(crate) use each_way;

/// How users come.
pub(crate) enum Way {
    Clear,
    /// Over TLS, to a certificate for [`NAME`] of this authority.
    Tls(Box<Authority>),
}

impl Way {
    pub(crate) fn tls() -> Self {
        Self::Tls(Box::new(Authority::new()))
    }

    /// As the proxy is told them.
    pub(crate) fn files(&self) -> Option<String> {
        match self {
            Self::Clear => None,
            Self::Tls(authority) => Some(authority.sign("web", &[NAME]).setting()),
        }
    }
}

impl Files {
    /// As the proxy is told them.
    pub(crate) fn setting(&self) -> String {
        format!("{}={}", self.chain.display(), self.key.display())
    }
}

/// Connects to the address of a URI.
pub(crate) type Connector = BoxCloneSyncService<Uri, TokioIo<Wire>, io::Error>;

/// A connection of either kind.
pub(crate) struct Wire(Pin<Box<dyn Io>>);

impl Wire {
    pub(crate) fn new(io: impl AsyncRead + AsyncWrite + Send + 'static) -> Self {
        Self(Box::pin(io))
    }
}

trait Io: AsyncRead + AsyncWrite + Send {}
impl<T: AsyncRead + AsyncWrite + Send> Io for T {}

/// In the clear.
pub(crate) fn clear() -> Connector {
    Connector::new(tower::service_fn(|uri: Uri| async move {
        let stream = dial(&uri).await?;
        Ok(TokioIo::new(Wire(Box::pin(stream))))
    }))
}

/// Over TLS, asking for `name`, whatever the URI says.
pub(crate) fn over_tls(config: ClientConfig, name: &'static str) -> Connector {
    let connector = TlsConnector::from(Arc::new(config));
    Connector::new(tower::service_fn(move |uri: Uri| {
        let connector = connector.clone();
        async move {
            let name = ServerName::try_from(name).expect("a name");
            let stream = connector.connect(name, dial(&uri).await?).await?;
            Ok(TokioIo::new(Wire(Box::pin(stream))))
        }
    }))
}

async fn dial(uri: &Uri) -> io::Result<TcpStream> {
    let address: SocketAddr = uri
        .authority()
        .expect("a host")
        .as_str()
        .parse()
        .expect("an address");
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

impl Connection for Wire {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.0.as_mut().poll_read(context, buffer)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.0.as_mut().poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.as_mut().poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.as_mut().poll_shutdown(context)
    }
}
