//! Other proxies, and gunicorn, as processes on loopback, before and behind ours. `cargo xtask` says where they are.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::time::sleep;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Nginx,
    Haproxy,
    Envoy,
    Gunicorn,
}

/// One that runs; it ends with this.
pub(super) struct Peer {
    pub(super) address: SocketAddr,
    child: Child,
    folder: TempDir,
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it ends");
    }
}

impl Peer {
    /// In front of `behind`; gunicorn is the last.
    pub(super) async fn start(kind: Kind, behind: SocketAddr) -> Self {
        let folder = TempDir::new().expect("a folder");
        // Free now; nobody else here asks for a certain one.
        let free = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = free.local_addr().expect("bound");
        drop(free);
        let mut command = match kind {
            Kind::Nginx => nginx(folder.path(), address, behind),
            Kind::Haproxy => haproxy(folder.path(), address, behind),
            Kind::Envoy => envoy(folder.path(), address, behind),
            Kind::Gunicorn => gunicorn(folder.path(), address),
        };
        let log = fs::File::create(folder.path().join("log")).expect("a file");
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a descriptor"))
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("{kind:?}: {error}"));
        let mut peer = Self {
            address,
            child,
            folder,
        };
        while TcpStream::connect(address).await.is_err() {
            let ended = peer.child.try_wait().expect("a child");
            let log = || fs::read_to_string(peer.folder.path().join("log"));
            assert!(ended.is_none(), "{kind:?} {ended:?}: {:?}", log());
            sleep(Duration::from_millis(20)).await;
        }
        peer
    }

    /// Request lines that gunicorn's application has seen.
    pub(super) fn seen(&self) -> Vec<String> {
        let seen = fs::read_to_string(self.folder.path().join("seen")).unwrap_or_default();
        seen.lines().map(str::to_owned).collect()
    }
}

/// Where each of them is. Without one nothing is compared, which is said, or a failure where nothing may be left out.
pub(super) fn are_there() -> bool {
    has(&[
        "SIM_PEERS",
        "SIM_PEERS_LIBRARIES",
        "SIM_PEERS_ENVOY",
        "SIM_HTTPBIN_VENV",
    ])
}

/// The same of whatever these variables name.
pub(super) fn has(names: &[&str]) -> bool {
    let missing = names.iter().find(|name| std::env::var_os(name).is_none());
    let Some(missing) = missing else { return true };
    let is_required = std::env::var_os("SIM_REQUIRE_PRIVILEGED").is_some_and(|value| value == "1");
    assert!(
        !is_required,
        "{missing} is not set: `cargo xtask test` sets it"
    );
    println!("SKIPPED: {missing} is not set: `cargo xtask test` sets it");
    false
}

fn variable(name: &str) -> PathBuf {
    let value = std::env::var_os(name);
    let value = value.unwrap_or_else(|| panic!("{name} is not set: `cargo xtask conformance`"));
    value.into()
}

fn debian(program: &str) -> Command {
    let mut command = Command::new(variable("SIM_PEERS").join("usr/sbin").join(program));
    command.env("LD_LIBRARY_PATH", variable("SIM_PEERS_LIBRARIES"));
    command
}

fn written(at: &Path, name: &str, text: &str) -> PathBuf {
    let file = at.join(name);
    fs::write(&file, text).expect("written");
    file
}

fn nginx(at: &Path, address: SocketAddr, behind: SocketAddr) -> Command {
    let temp = |kind| format!("{kind}_temp_path {}/{kind}; ", at.display());
    let temp: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(temp)
        .concat();
    let text = format!(
        "daemon off; master_process off; error_log stderr crit; pid {at}/pid; events {{}} \
         http {{ access_log off; {temp} upstream u {{ server {behind}; keepalive 16; }} \
         server {{ listen {address}; location / {{ proxy_pass http://u; proxy_http_version 1.1; \
         proxy_set_header Connection ''; proxy_set_header Host $host; }} }} }}",
        at = at.display(),
    );
    let mut command = debian("nginx");
    command.args(["-e", "stderr", "-p"]).arg(at);
    command.arg("-c").arg(written(at, "nginx.conf", &text));
    command
}

fn haproxy(at: &Path, address: SocketAddr, behind: SocketAddr) -> Command {
    let text = format!(
        "global\n  nbthread 1\n\
         defaults\n  mode http\n  timeout connect 5s\n  timeout client 60s\n  timeout server 60s\n  http-reuse always\n\
         frontend f\n  bind {address}\n  default_backend b\n\
         backend b\n  server s {behind}\n"
    );
    let mut command = debian("haproxy");
    let file = written(at, "haproxy.cfg", &text);
    command.arg("-db").arg("-f").arg(file);
    command
}

fn envoy(at: &Path, address: SocketAddr, behind: SocketAddr) -> Command {
    let socket = |address: SocketAddr| {
        format!(
            "{{ socket_address: {{ address: {}, port_value: {} }} }}",
            address.ip(),
            address.port()
        )
    };
    let text = format!(
        r#"
static_resources:
  listeners:
  - address: {users}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: users
          codec_type: HTTP1
          route_config:
            virtual_hosts: [ {{ name: all, domains: ["*"], routes: [
              {{ match: {{ prefix: "/" }}, route: {{ cluster: last }} }} ] }} ]
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {{ "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }}
  clusters:
  - name: last
    type: STATIC
    connect_timeout: 5s
    load_assignment:
      cluster_name: last
      endpoints: [ {{ lb_endpoints: [ {{ endpoint: {{ address: {behind} }} }} ] }} ]
"#,
        users = socket(address),
        behind = socket(behind),
    );
    let mut command = Command::new(variable("SIM_PEERS_ENVOY"));
    command.args(["--concurrency", "1", "--log-level", "error"]);
    command.args(["--disable-hot-restart", "-c"]);
    command.arg(written(at, "envoy.yaml", &text));
    command
}

fn gunicorn(at: &Path, address: SocketAddr) -> Command {
    let text = "\
def app(environ, start_response):
    environ['wsgi.input'].read()
    with open('seen', 'a') as seen:
        seen.write(environ['REQUEST_METHOD'] + ' ' + environ['RAW_URI'] + '\\n')
    start_response('200 OK', [('Content-Length', '2')])
    return [b'ok']
";
    written(at, "recorder.py", text);
    let mut command = Command::new(variable("SIM_HTTPBIN_VENV").join("bin/gunicorn"));
    command.current_dir(at);
    command.args(["--worker-class", "gthread", "--threads", "4", "--bind"]);
    command.arg(address.to_string()).arg("recorder:app");
    command
}
