//! h2spec before a real `sim proxy` with a real instance behind it, in the clear and over TLS: a suite of 146 cases of
//! HTTP/2 that others have written. No registry has its program, so it is named. Run it by
//! `cargo xtask conformance --h2spec PROGRAM`.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a suite's verdict goes to the terminal"
)]

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use bench::control::Control;
use bench::free_address;
use bench::secure::Certificate;
use bytes::Bytes;
use clap::Parser;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use nix::sys::signal::Signal;
use sim_core::name::{InstanceId, WorkloadName};
use sim_core::table::{Share, Version, WeightTable};
use sim_tests::world::process::{Guarded, Placement};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;

const WORKLOAD: &str = "web";
const NAME: &str = "web.example";
const PATIENCE: Duration = Duration::from_secs(60);
/// Cases that there are, and those of them that have to pass in the clear: one expects HTTP/2's words where HTTP/1.1 is
/// served too, and says so.
const CASES: u32 = 146;
const IN_THE_CLEAR: u32 = 145;

#[derive(Parser)]
#[command(version, about)]
struct Arguments {
    /// Where h2spec is
    program: PathBuf,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Runtime::new().context("a runtime");
    match runtime.and_then(|runtime| runtime.block_on(run(&arguments.program))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("h2spec: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(h2spec: &Path) -> Result<()> {
    let proxy = Proxy::start().await?;
    for (way, at, options, passed_min) in [
        ("in the clear", proxy.clear, &[][..], IN_THE_CLEAR),
        ("over TLS", proxy.secure, &["--tls", "--insecure"], CASES),
    ] {
        let mut command = Command::new(h2spec);
        command.args(options).args(["--host", &at.ip().to_string()]);
        command.args(["--port", &at.port().to_string()]);
        let output = command.output().await.context("h2spec")?;
        let said = String::from_utf8_lossy(&output.stdout);
        let (passed, cases) = passed(&said).with_context(|| format!("no summary: {said}"))?;
        println!("h2spec: {passed} of {cases} cases passed {way}");
        ensure!(
            cases >= CASES && passed >= passed_min,
            "{passed_min} of {CASES} have to pass {way}: {said}"
        );
    }
    Ok(())
}

/// Of "146 tests, 145 passed, 0 skipped, 1 failed": how many passed, of how many.
fn passed(said: &str) -> Option<(u32, u32)> {
    let summary = said.lines().rfind(|line| line.contains(" tests, "))?;
    let mut counts = summary
        .split(", ")
        .map(|part| part.split(' ').next()?.parse().ok());
    let (cases, passed) = (counts.next()??, counts.next()??);
    Some((passed, cases))
}

/// A proxy with one instance; it ends with this.
struct Proxy {
    clear: SocketAddr,
    secure: SocketAddr,
    _process: Guarded,
    _control: Control,
    _folder: TempDir,
}

impl Proxy {
    async fn start() -> Result<Self> {
        let program = std::env::var_os("SIM_BIN");
        let program = program.context("SIM_BIN is not set; cargo xtask sets it")?;
        let folder = TempDir::new()?;
        let at = folder.path();
        let [clear, secure, admin] = [free_address()?, free_address()?, free_address()?];
        Certificate::of(at, [NAME.to_owned()])?;
        fs::create_dir(at.join("run"))?;
        let config = at.join("sim.toml");
        fs::write(&config, configuration(at, clear, secure, admin))?;
        let table = table(instance().await?)?;
        let control = Control::start(&at.join("run/control.sock"), [&table])?;
        let log = at.join("proxy.log");
        let mut command = std::process::Command::new(program);
        command.arg("proxy").arg("--config").arg(&config);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(fs::File::create(&log)?);
        let placement = Placement {
            netns: None,
            cgroups: Vec::new(),
        };
        let grace = Duration::from_secs(10);
        let mut process = Guarded::spawn("sim proxy", command, placement, Signal::SIGTERM, grace)?;
        let deadline = Instant::now() + PATIENCE;
        while !is_ready(admin).await {
            if let Some(end) = process.ended() {
                bail!("{end}: {}", fs::read_to_string(&log).unwrap_or_default());
            }
            ensure!(Instant::now() < deadline, "the proxy is not ready");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(Self {
            clear,
            secure,
            _process: process,
            _control: control,
            _folder: folder,
        })
    }
}

/// As the suite wants one: it reads a body to its end, and answers with more than five bytes.
async fn instance() -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = service_fn(|request: Request<Incoming>| async {
                request.into_body().collect().await?;
                let answer = Full::<Bytes>::from("an answer of some length");
                hyper::Result::Ok(Response::new(answer))
            });
            let served = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            // A request that is broken off breaks its connection.
            tokio::spawn(async move { served.await.unwrap_or_default() });
        }
    });
    Ok(address)
}

fn table(instance: SocketAddr) -> Result<WeightTable> {
    let version = Version {
        epoch: 1,
        generation: 1,
    };
    let only = Share {
        instance: InstanceId(1),
        address: instance.into(),
        weight_bp: 10_000,
        ready: true,
    };
    let name = WorkloadName::new(WORKLOAD).context("a name")?;
    WeightTable::new(name, version, vec![only]).context("a table")
}

async fn is_ready(admin: SocketAddr) -> bool {
    let asked = async {
        let mut stream = TcpStream::connect(admin).await?;
        let request = b"GET /ready HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n\r\n";
        stream.write_all(request).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        std::io::Result::Ok(answer.starts_with(b"HTTP/1.1 200 "))
    };
    asked.await.unwrap_or(false)
}

/// The instance it names is none of ours: who serves is said by the control plane.
fn configuration(at: &Path, clear: SocketAddr, secure: SocketAddr, admin: SocketAddr) -> String {
    let at = at.display();
    format!(
        r#"
data_dir = "{at}/state"
runtime_dir = "{at}/run"
[proxy]
listen = "{clear}"
admin = "{admin}"
[proxy.tls]
listen = "{secure}"
[[proxy.tls.certificate]]
chain = "{at}/chain.pem"
key = "{at}/key.pem"
[[server]]
name = "one"
cpus = 1.0
memory_mib = 1024
[[workload]]
name = "{WORKLOAD}"
home = "one"
cpus = 1.0
command = ["/bin/true"]
slo = {{ bound_ms = 100 }}
"#
    )
}

#[cfg(test)]
mod tests {
    use super::passed;

    #[test]
    fn the_summary_is_the_last_line_that_counts_tests() {
        let said =
            "      146 tests, nonsense\n146 tests, 145 passed, 0 skipped, 1 failed\nFailures:\n";
        assert_eq!(passed(said), Some((145, 146)));
        assert_eq!(passed("Error: connection refused\n"), None);
    }
}
