//! Instances that aren't reached at a port in the clear: over TLS, and at Unix sockets. The whole of `sim run` has to
//! know how: the node's readiness proof, and the proxy.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

/// What the workloads are told by, which are this program run again: the certificate and its key.
const CHAIN: &str = "SIM_TEST_CHAIN";
const KEY: &str = "SIM_TEST_KEY";
/// Where they listen, if not at a port.
const SOCKET: &str = "SIM_TEST_SOCKET";
/// With any value: this is a service.
const SERVE: &str = "SIM_TEST_SERVE";

/// No test of its own: the services behind the proxy. Each answers with its process id and where it listens.
#[test]
fn service() {
    if std::env::var_os(SERVE).is_none() {
        return;
    }
    let tls = std::env::var_os(CHAIN).map(|_| server_config());
    if let Some(path) = std::env::var_os(SOCKET) {
        let listener = UnixListener::bind(&path).expect("a free path");
        let name = PathBuf::from(path).display().to_string();
        for stream in listener.incoming() {
            serve(stream.expect("accepted"), tls.as_ref(), &name);
        }
    }
    let port = std::env::var("PORT").expect("a port").parse::<u16>();
    let address = SocketAddr::from(([127, 0, 0, 1], port.expect("a number")));
    let listener = TcpListener::bind(address).expect("a free port");
    for stream in listener.incoming() {
        serve(
            stream.expect("accepted"),
            tls.as_ref(),
            &address.to_string(),
        );
    }
}

fn server_config() -> Arc<ServerConfig> {
    let file = |name| std::env::var_os(name).expect("a file");
    let chain = CertificateDer::pem_file_iter(file(CHAIN)).expect("there");
    let chain = chain.collect::<Result<_, _>>().expect("certificates");
    let key = PrivateKeyDer::from_pem_file(file(KEY)).expect("a key");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider);
    let config = config.with_safe_default_protocol_versions().expect("known");
    let config = config.with_no_client_auth().with_single_cert(chain, key);
    Arc::new(config.expect("a pair"))
}

fn serve<S: Read + Write + Send + 'static>(
    mut stream: S,
    tls: Option<&Arc<ServerConfig>>,
    name: &str,
) {
    let (tls, name) = (tls.cloned(), name.to_owned());
    thread::spawn(move || match tls {
        None => while answer(&mut stream, &name).is_ok() {},
        Some(tls) => {
            let connection = ServerConnection::new(tls).expect("good settings");
            let mut stream = StreamOwned::new(connection, stream);
            while answer(&mut stream, &name).is_ok() {}
        }
    });
}

/// Reads to the end of a head, and answers.
fn answer(stream: &mut (impl Read + Write), name: &str) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let body = format!("{} {name}", std::process::id());
    let length = body.len();
    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{body}");
    stream.write_all(answer.as_bytes())?;
    stream.flush()
}

/// A run of everything, ended when dropped.
struct Run {
    child: Child,
    users: SocketAddr,
}

/// At an address of this process's own: a test beside it may be given the port that was free a moment ago.
fn free_address() -> SocketAddr {
    let [_, _, high, low] = std::process::id().to_be_bytes();
    let listener = TcpListener::bind((Ipv4Addr::new(127, high, low, 1), 0)).expect("a port");
    listener.local_addr().expect("an address")
}

impl Run {
    fn start(dir: &Path) -> Self {
        let (users, admin) = (free_address(), free_address());
        let service = std::env::current_exe().expect("this program");
        let key = rcgen::KeyPair::generate().expect("a key");
        let params = rcgen::CertificateParams::new(vec!["web.internal".to_owned()]);
        let certificate = params.expect("a name").self_signed(&key).expect("signed");
        let [chain, key_file] = ["web.pem", "web.key"].map(|name| dir.join(name));
        std::fs::write(&chain, certificate.pem()).expect("written");
        std::fs::write(&key_file, key.serialize_pem()).expect("written");
        let workload = |name: &str, rest: &str| {
            format!(
                "[[workload]]\nname = \"{name}\"\ncommand = [\"{}\", \"--exact\", \"service\"]\n\
                 cpus = 0.3\nmemory_mib = 64\nhome = \"a\"\nstandby = \"none\"\nslo = {{ bound_ms = 100 }}\n\
                 route = [{{ path = \"/{name}\" }}]\n{rest}\n",
                service.display()
            )
        };
        let tls = format!(
            "tls = {{ ca = \"{}\", server_name = \"web.internal\" }}",
            chain.display()
        );
        let files = format!(
            "{CHAIN} = \"{}\", {KEY} = \"{}\"",
            chain.display(),
            key_file.display()
        );
        let environment = |more: &str| format!("environment = {{ {SERVE} = \"1\", {more} }}");
        let socket = format!("{SOCKET} = \"{{socket}}\"");
        let text = [
            format!(
                "data_dir = \"{dir}/data\"\nruntime_dir = \"{dir}/run\"\ncgroup = \"sim-test-instances-{pid}\"\n\
                 [proxy]\nlisten = \"{users}\"\nadmin = \"{admin}\"\n[[server]]\nname = \"a\"\ncpus = 1.0",
                dir = dir.display(),
                pid = std::process::id(),
            ),
            workload("tls", &format!("{tls}\n{}", environment(&files))),
            workload("socket", &environment(&socket)),
            workload(
                "both",
                &format!("{tls}\n{}", environment(&format!("{files}, {socket}"))),
            ),
        ];
        let config = dir.join("sim.toml");
        std::fs::write(&config, text.join("\n")).expect("written");
        let child = Command::new(env!("CARGO_BIN_EXE_sim"))
            .args(["run", "--config"])
            .arg(&config)
            .spawn()
            .expect("started");
        Self { child, users }
    }

    /// The process that answers for `path`, and where it listens.
    fn ask(&self, path: &str) -> Option<(i32, String)> {
        let mut stream = TcpStream::connect(self.users).ok()?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        let (pid, place) = body.split_once(' ')?;
        let pid = pid.parse().ok()?;
        head.starts_with("HTTP/1.1 200")
            .then(|| (pid, place.to_owned()))
    }

    /// The same, once it is one for which `wanted` holds.
    fn wait(&self, path: &str, wanted: impl Fn(&(i32, String)) -> bool) -> (i32, String) {
        for _ in 0..4_000 {
            if let Some(found) = self.ask(path).filter(&wanted) {
                return found;
            }
            thread::sleep(Duration::from_millis(50));
        }
        panic!("{path} is not served within 200 s");
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        // Gone already where a test has found that.
        kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM).ok();
        self.child.wait().expect("it ends");
    }
}

#[test]
fn instances_over_tls_and_at_sockets_get_ready_serve_and_come_back_after_their_death() {
    let dir = tempfile::tempdir().expect("dir");
    let run = Run::start(dir.path());
    let sockets = dir.path().join("run").display().to_string();
    run.wait("/tls", |(_, place)| place.starts_with("127.0.0.1:"));
    for path in ["/both", "/socket"] {
        let (pid, place) = run.wait(path, |_| true);
        assert!(
            place.starts_with(&sockets) && place.ends_with(".sock"),
            "{place}"
        );
        assert!(Path::new(&place).exists());
        kill(Pid::from_raw(pid), Signal::SIGKILL).expect("it runs");
        let (other, elsewhere) = run.wait(path, |(found, _)| *found != pid);
        assert_ne!((pid, &place), (other, &elsewhere));
        assert!(!Path::new(&place).exists(), "nobody's socket is left");
    }
    drop(run);
    let left = std::fs::read_dir(dir.path().join("run")).expect("there");
    let left: Vec<_> = left.flatten().map(|file| file.file_name()).collect();
    let sockets = left
        .iter()
        .filter(|name| name.to_string_lossy().starts_with('i'));
    assert_eq!(sockets.count(), 0, "{left:?}");
}
