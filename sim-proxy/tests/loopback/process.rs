//! The proxy in a process of its own, as in production: this test program starts itself again.
//! (Pingora's pinned runtimes don't survive a second server in one process: its thread-local
//! handles outlive the threads.)

use crate::world::{PATIENCE, workload};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sim_core::name::{ProxyName, WorkloadName};
use sim_proxy::access_log::{AccessLogSettings, Destination};
use sim_proxy::config::{
    CheckKind, CheckSettings, HoldSettings, MirrorSettings, PROTOCOLS, Protocol, WorkloadSettings,
};
use sim_proxy::matching::Condition;
use sim_proxy::policy::POLICIES;
use sim_proxy::snapshot::MirrorTo;
use sim_proxy::sticky::Sticky;
use sim_proxy::tls::{
    CertificateFiles, IdentityFiles, InstanceTlsSettings, TlsSettings, TlsVersion,
};
use sim_proxy::trace::TraceSettings;
use sim_proxy::{Proxy, ProxyConfig};
use std::io::{BufRead, BufReader, Lines, Read, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::time::Duration;
use tokio::sync::oneshot;

const SOCKET: &str = "SIM_TEST_PROXY_CONTROL_SOCKET";
/// How long an answer is waited for; a minute unless told.
pub(crate) const READ_TIMEOUT_MS: &str = "SIM_TEST_PROXY_READ_TIMEOUT_MS";
/// `cookie:NAME`, `header:NAME` or `source`.
pub(crate) const STICKY: &str = "SIM_TEST_PROXY_STICKY";
/// Name of a policy.
pub(crate) const POLICY: &str = "SIM_TEST_PROXY_POLICY";
/// The workloads and what they ask for: `NAME;NAME=ROUTE|ROUTE`, a route as `HOST/PATH FIELD:VALUE` with `*` for any
/// host.
pub(crate) const WORKLOADS: &str = "SIM_TEST_PROXY_WORKLOADS";
/// `ADDRESS@BASIS_POINTS`, or nothing for the table's mirror, then any of `,compare` and `,unsafe`.
pub(crate) const MIRROR: &str = "SIM_TEST_PROXY_MIRROR";
/// `KEY=NUMBER`, by commas; times in milliseconds.
pub(crate) const LIMITS: &str = "SIM_TEST_PROXY_LIMITS";
/// What instances speak: `http1` or `h2`.
pub(crate) const PROTOCOL: &str = "SIM_TEST_PROXY_PROTOCOL";
/// Certificates for users over TLS: `CHAIN=KEY`, separated by commas.
pub(crate) const TLS: &str = "SIM_TEST_PROXY_TLS";
/// With any value: names that no certificate is for are refused.
pub(crate) const STRICT_SNI: &str = "SIM_TEST_PROXY_STRICT_SNI";
/// With any value: there is no listener but the one for TLS.
pub(crate) const TLS_ALONE: &str = "SIM_TEST_PROXY_TLS_ALONE";
/// How long an instance takes to get all of its weight back after an ejection.
pub(crate) const SLOW_START_MS: &str = "SIM_TEST_PROXY_SLOW_START_MS";
/// `http:PATH:MS`: a check of that path at this interval; two in a row count.
pub(crate) const CHECK: &str = "SIM_TEST_PROXY_CHECK";
/// `REQUESTS:MS`: how many requests may wait while no instance is ready, and how long; none unless told.
pub(crate) const HOLD: &str = "SIM_TEST_PROXY_HOLD";
/// See [`sim_proxy::config::HedgeSettings`]. None is sent to a second instance unless told: a machine that is busy
/// would decide how many requests an instance gets.
pub(crate) const HEDGE_QUANTILE: &str = "SIM_TEST_PROXY_HEDGE_QUANTILE";
pub(crate) const LATE_FACTOR: &str = "SIM_TEST_PROXY_LATE_FACTOR";
/// How long the first ejection of an instance is; half a second unless told.
pub(crate) const EJECT_MS: &str = "SIM_TEST_PROXY_EJECT_MS";
/// How long a user may take nothing of an answer.
pub(crate) const CLIENT_WRITE_MS: &str = "SIM_TEST_PROXY_CLIENT_WRITE_MS";
/// How long streams may go on at an instance that has lost its weight.
pub(crate) const STREAM_GRACE_MS: &str = "SIM_TEST_PROXY_STREAM_GRACE_MS";
/// Where a successor asks for the listeners.
pub(crate) const HANDOVER: &str = "SIM_TEST_PROXY_HANDOVER";
/// How long a relieved proxy may take to end, in milliseconds.
pub(crate) const UPGRADE_DRAIN_MS: &str = "SIM_TEST_PROXY_UPGRADE_DRAIN_MS";
/// Addresses as the proxy at [`HANDOVER`] told them, to be taken over from it.
pub(crate) const TAKE_OVER: &str = "SIM_TEST_PROXY_TAKE_OVER";
/// Networks whose word on who asked is taken, with commas.
pub(crate) const TRUSTED: &str = "SIM_TEST_PROXY_TRUSTED";
/// Share of the traces begun here that is sampled.
pub(crate) const TRACE: &str = "SIM_TEST_PROXY_TRACE";
/// How instances are spoken to over TLS: `CA,NAME`, then `,CERTIFICATE,KEY` for what they are shown.
pub(crate) const INSTANCE_TLS: &str = "SIM_TEST_PROXY_INSTANCE_TLS";
/// Path of the access log.
pub(crate) const ACCESS_LOG: &str = "SIM_TEST_PROXY_ACCESS_LOG";
/// Marks the line that tells the parent the addresses.
const ADDRESSES: &str = "addresses: ";

pub(crate) struct ProxyProcess {
    /// Of the admin, of users in the clear, over TLS.
    pub(crate) addresses: [Option<SocketAddr>; 3],
    /// The same as it told them.
    pub(crate) told: String,
    child: Child,
    /// Open to the end, or the proxy's last words would break it.
    _output: Lines<BufReader<ChildStdout>>,
}

impl ProxyProcess {
    /// With `settings`, by the names above.
    pub(crate) fn start(control_socket: &Path, settings: &[(&str, &str)]) -> Self {
        let mut child = Command::new(std::env::current_exe().expect("this program"))
            .args(["--exact", "process::proxy_process", "--nocapture"])
            .env(SOCKET, control_socket)
            .envs(settings.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a second run of this program");
        let mut output = BufReader::new(child.stdout.take().expect("piped")).lines();
        let line = output
            .by_ref()
            .map(|line| line.expect("text"))
            .find_map(|line| line.strip_prefix(ADDRESSES).map(str::to_owned))
            .expect("the proxy tells its addresses");
        Self {
            addresses: addresses_of(&line),
            told: line,
            child,
            _output: output,
        }
    }

    pub(crate) fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// Waits until it ends by itself.
    pub(crate) fn wait(mut self) -> ExitStatus {
        // Else `wait` would close it, and the proxy take that for a stop.
        let _input = self.child.stdin.take();
        self.child.wait().expect("it ends")
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).expect("it runs");
    }

    pub(crate) fn terminate(mut self) -> ExitStatus {
        // Else `wait` would close it, and the proxy take that for a second signal.
        let _input = self.child.stdin.take();
        kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM).expect("it runs");
        self.child.wait().expect("it ends")
    }
}

impl Drop for ProxyProcess {
    fn drop(&mut self) {
        // The end of its input is its stop signal.
        drop(self.child.stdin.take());
        let status = self.child.wait().expect("it ends");
        assert!(
            status.success() || std::thread::panicking(),
            "the proxy ended with {status}"
        );
    }
}

fn addresses_of(line: &str) -> [Option<SocketAddr>; 3] {
    let mut addresses = line
        .split(' ')
        .map(|address| (address != "-").then(|| address.parse().expect("an address")));
    std::array::from_fn(|_| addresses.next().expect("three addresses"))
}

fn mirror_settings(text: &str) -> MirrorSettings {
    let mut words = text.split(',');
    let fixed = words.next().and_then(|word| word.split_once('@'));
    let fixed = fixed.map(|(address, share_bp)| MirrorTo {
        instance: None,
        address: address.parse().expect("an address"),
        share_bp: share_bp.parse().expect("a number"),
    });
    let words: Vec<_> = words.collect();
    MirrorSettings {
        fixed,
        compare: words.contains(&"compare"),
        unsafe_methods: words.contains(&"unsafe"),
        timeout: 10 * PATIENCE,
    }
}

#[test]
/// No test of its own: what the other tests run as the proxy, told by the environment.
fn proxy_process() {
    let Ok(socket) = std::env::var(SOCKET) else {
        return;
    };
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let name = ProxyName::new("p1").expect("valid");
    let mut config = ProxyConfig::new(name, vec![workload().into()], any, any, socket.into());
    config.threads = 2;
    // This process or the one that started it may be stopped for a while. Only who is refused can't be connected to, and
    // what is kept stays for as long as a test.
    config.upstream.connect_timeout = PATIENCE;
    config.upstream.idle_timeout = 10 * PATIENCE;
    config.hedge.quantile = 0.0;
    config.report_interval = Duration::from_millis(50);
    if let Ok(read_timeout) = std::env::var(READ_TIMEOUT_MS) {
        let read_timeout = read_timeout.parse().expect("a number");
        config.upstream.read_timeout = Duration::from_millis(read_timeout);
    }
    if let Ok(slow_start) = std::env::var(SLOW_START_MS) {
        config.eject.slow_start = Duration::from_millis(slow_start.parse().expect("a number"));
    }
    if let Ok(ejection) = std::env::var(EJECT_MS) {
        config.eject.base = Duration::from_millis(ejection.parse().expect("a number"));
        config.eject.max = config.eject.max.max(config.eject.base);
    }
    if let Ok(patience) = std::env::var(CLIENT_WRITE_MS) {
        config.client_write_timeout = Duration::from_millis(patience.parse().expect("a number"));
    }
    if let Ok(grace) = std::env::var(STREAM_GRACE_MS) {
        config.stream_grace = Duration::from_millis(grace.parse().expect("a number"));
    }
    if let Ok(check) = std::env::var(CHECK) {
        let (kind, ms) = check.rsplit_once(':').expect("an interval");
        let path = kind.strip_prefix("http:").expect("a path");
        let interval = Duration::from_millis(ms.parse().expect("a number"));
        config.check = Some(CheckSettings {
            kind: CheckKind::Http {
                path: path.into(),
                status: 200,
            },
            interval,
            timeout: 10 * interval,
            rise: 2,
            fall: 2,
        });
    }
    if let Ok(hold) = std::env::var(HOLD) {
        let (requests, ms) = hold.split_once(':').expect("two numbers");
        config.hold = Some(HoldSettings {
            requests_max: requests.parse().expect("a number"),
            wait_max: Duration::from_millis(ms.parse().expect("a number")),
        });
    }
    if let Ok(quantile) = std::env::var(HEDGE_QUANTILE) {
        config.hedge.quantile = quantile.parse().expect("a number");
    }
    if let Ok(factor) = std::env::var(LATE_FACTOR) {
        config.hedge.late_factor = factor.parse().expect("a number");
    }
    config.sticky = std::env::var(STICKY)
        .ok()
        .map(|sticky| match sticky.split_once(':') {
            Some(("cookie", name)) => Sticky::Cookie(name.into()),
            Some(("header", name)) => Sticky::Header(name.into()),
            _ => Sticky::Source,
        });
    if let Ok(mirror) = std::env::var(MIRROR) {
        config.mirror = mirror_settings(&mirror);
    }
    if let Ok(policy) = std::env::var(POLICY) {
        let known = POLICIES.iter().find(|(_, name)| *name == policy);
        config.policy = known.expect("a policy").0;
    }
    if let Ok(workloads) = std::env::var(WORKLOADS) {
        config.workloads = workloads.split(';').map(workload_of).collect();
    }
    if let Ok(limits) = std::env::var(LIMITS) {
        crate::limits::set(&mut config, &limits);
    }
    let log = std::env::var(ACCESS_LOG).ok();
    config.access_log = log.map(|path| AccessLogSettings {
        to: Destination::File(path.into()),
        sample: 1.0,
        always_failed: true,
        slow: None,
        query: false,
    });
    if let Ok(protocol) = std::env::var(PROTOCOL) {
        let known = PROTOCOLS.iter().find(|(_, name)| *name == protocol);
        for workload in &mut config.workloads {
            workload.protocol = known.expect("a protocol").0;
        }
    }
    if let Ok(tls) = std::env::var(INSTANCE_TLS) {
        for workload in &mut config.workloads {
            workload.tls = Some(instance_tls(&tls));
        }
    }
    config.tls = std::env::var(TLS).ok().map(|files| TlsSettings {
        listen: any,
        certificates: files.split(',').map(certificate_files).collect(),
        version_min: TlsVersion::V12,
        strict_sni: std::env::var_os(STRICT_SNI).is_some(),
    });
    if std::env::var_os(TLS_ALONE).is_some() {
        config.listen = None;
    }
    if let Ok(trusted) = std::env::var(TRUSTED) {
        let networks = trusted.split(',').map(str::parse);
        config.forward.trusted = networks.collect::<Result<_, _>>().expect("networks");
    }
    config.trace = std::env::var(TRACE).ok().map(|sample| TraceSettings {
        sample: sample.parse().expect("a share"),
    });
    config.handover_socket = std::env::var_os(HANDOVER).map(Into::into);
    if let Ok(drain) = std::env::var(UPGRADE_DRAIN_MS) {
        config.upgrade_drain_timeout = Duration::from_millis(drain.parse().expect("a number"));
    }
    let proxy = if let Ok(addresses) = std::env::var(TAKE_OVER) {
        let [admin, users, secure] = addresses_of(&addresses);
        config.admin = admin.expect("one of the admin");
        config.listen = users;
        if let (Some(tls), Some(secure)) = (&mut config.tls, secure) {
            tls.listen = secure;
        }
        Proxy::take_over(config).expect("a proxy to relieve")
    } else {
        Proxy::bind(config).expect("free ports")
    };
    let or_none = |address: Option<SocketAddr>| address.map_or("-".into(), |a| a.to_string());
    let [users, secure] = [proxy.listen_address(), proxy.tls_address()].map(or_none);
    let admin = proxy.admin_address();
    // The test harness has written "test … " before, without an end of line.
    writeln!(std::io::stdout(), "\n{ADDRESSES}{admin} {users} {secure}")
        .expect("a parent that reads");
    let (gone, parent_gone) = oneshot::channel::<()>();
    std::thread::spawn(move || {
        std::io::stdin().read_to_end(&mut vec![]).expect("a pipe");
        // Nobody listens any more if SIGTERM came first.
        gone.send(()).unwrap_or_default();
    });
    proxy.run(async { parent_gone.await.unwrap_or_default() });
}

fn workload_of(text: &str) -> WorkloadSettings {
    let (name, routes) = text.split_once('=').unwrap_or((text, ""));
    let routes = routes.split('|').filter(|route| !route.is_empty());
    WorkloadSettings {
        name: WorkloadName::new(name).expect("valid"),
        conditions: routes.map(condition_of).collect(),
        protocol: Protocol::Http1,
        tls: None,
    }
}

fn instance_tls(text: &str) -> InstanceTlsSettings {
    let words: Vec<_> = text.split(',').collect();
    let (ca, server_name, files) = match words[..] {
        [ca, name] => (ca, name, None),
        [ca, name, certificate, key] => (ca, name, Some((certificate, key))),
        _ => panic!("two words or four: {text}"),
    };
    InstanceTlsSettings {
        ca: ca.into(),
        server_name: server_name.to_owned(),
        identity: files.map(|(certificate, key)| IdentityFiles {
            certificate: certificate.into(),
            key: key.into(),
        }),
    }
}

fn condition_of(text: &str) -> Condition {
    let mut words = text.split(' ');
    let (host, path) = words
        .next()
        .and_then(|target| target.split_once('/'))
        .expect("a host and a path");
    let host = Some(host).filter(|host| *host != "*");
    let fields = words.map(|word| word.split_once(':').expect("a field"));
    Condition::new(host, Some(&format!("/{path}")), fields).expect("valid")
}

fn certificate_files(files: &str) -> CertificateFiles {
    let (chain, key) = files.split_once('=').expect("two files");
    CertificateFiles {
        chain: chain.into(),
        key: key.into(),
        names: Vec::new(),
    }
}
