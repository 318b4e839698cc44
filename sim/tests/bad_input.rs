//! Bad input gets one line that names file, key and what is allowed; exit code 2; nothing started.

#[path = "bad_input/workloads.rs"]
mod workloads;

use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output};

const GOOD: &str = r#"
data_dir = "DIR/data"
runtime_dir = "DIR/run"
cgroup = "sim-bad-input"

[proxy]
listen = "127.0.0.1:LISTEN"
admin = "127.0.0.1:ADMIN"

[[server]]
name = "a"
cpus = 1.0

[[workload]]
name = "web"
command = ["sleep", "60"]
cpus = 0.5
home = "a"
slo = { bound_ms = 100 }
"#;

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address").port()
}

fn good(dir: &Path) -> String {
    GOOD.replace("DIR", &dir.display().to_string())
        .replace("LISTEN", &free_port().to_string())
        .replace("ADMIN", &free_port().to_string())
}

fn run(dir: &Path, text: &str) -> Output {
    let path = dir.join("sim.toml");
    std::fs::write(&path, text).expect("written");
    let sim = env!("CARGO_BIN_EXE_sim");
    Command::new(sim)
        .args(["run", "--config"])
        .arg(&path)
        .output()
        .expect("run")
}

/// Runs `text` and checks how it is refused.
fn assert_refused(text: &str, dir: &Path, expected: &[&str]) {
    let output = run(dir, text);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert_eq!(said.lines().count(), 1, "one line: {said}");
    for part in expected.iter().chain(&["sim.toml"]) {
        assert!(said.contains(part), "{part:?} is missing: {said}");
    }
    assert!(output.stdout.is_empty());
    assert!(
        !dir.join("data").exists() && !dir.join("run").exists(),
        "something was started"
    );
}

#[test]
fn what_a_file_gets_wrong_is_named() {
    let dir = tempfile::tempdir().expect("dir");
    let good = good(dir.path());
    let server = "[[server]]\nname = \"a\"\ncpus = 1.0\n";
    let tls =
        |keys: &str, certificates: &str| format!("[proxy.tls]\n{keys}\n{certificates}\n[[server]]");
    let one = "[[proxy.tls.certificate]]\nchain = \"/no/such.pem\"\nkey = \"/no/such.key\"";
    let listen = good.lines().find(|line| line.starts_with("listen"));
    let listen = listen.expect("a line").to_owned();
    let clear = listen.split('"').nth(1).expect("an address");
    let without_listen = good.replace(&format!("{listen}\n"), "");
    let (before, rest) = good.split_once("[proxy]").expect("a table");
    let (_, behind) = rest.split_once("[[server]]").expect("tables");
    let without_proxy = format!("{before}[[server]]{behind}");
    let cases = [
        (
            good.replace("cgroup =", "cgruop ="),
            vec![":4:", "unknown field `cgruop`", "`cgroup`"],
        ),
        (
            good.replace("[[server]]", "policy = \"fastest\"\n[[server]]"),
            vec![
                "proxy.policy = \"fastest\"",
                "weighted, least-request, peak-ewma",
            ],
        ),
        (
            good.replace("home =", "protocol = \"h3\"\nhome ="),
            vec!["workload.protocol = \"h3\"", "http1, h2"],
        ),
        (
            good.replace("[[server]]", "upgrade_drain_s = 0.5\n[[server]]"),
            vec!["proxy.upgrade_drain_s = 0.5", "1 to 86400"],
        ),
        (
            good.replace("[[server]]", "stream_grace_s = -1\n[[server]]"),
            vec!["proxy.stream_grace_s = -1", "0 to 86400"],
        ),
        (
            good.replace("[[server]]", "hedge = { quantile = 1.0 }\n[[server]]"),
            vec!["proxy.hedge.quantile = 1", "0.5 to 0.9999"],
        ),
        (
            good.replace("[[server]]", "hedge = { floor_ms = 0 }\n[[server]]"),
            vec!["proxy.hedge.floor_ms = 0", "1 to 60000"],
        ),
        (
            good.replace("[[server]]", "slow_start_s = -1\n[[server]]"),
            vec!["proxy.slow_start_s = -1", "0 to 3600"],
        ),
        (
            good.replace("[[server]]", "hold = { requests_max = 0 }\n[[server]]"),
            vec!["proxy.hold.requests_max = 0", "1 to 1000000"],
        ),
        (
            good.replace("[[server]]", "hold = { wait_ms = 600001 }\n[[server]]"),
            vec!["proxy.hold.wait_ms = 600001", "1 to 600000"],
        ),
        (
            good.replace("[[server]]", "check = { by = \"ping\" }\n[[server]]"),
            vec!["proxy.check.by = \"ping\"", "http, tcp, grpc"],
        ),
        (
            good.replace(
                "[[server]]",
                "check = { by = \"tcp\", path = \"/\" }\n[[server]]",
            ),
            vec!["proxy.check.path = \"/\"", "must not be there"],
        ),
        (
            good.replace(
                "[[server]]",
                "check = { by = \"http\", path = \"a b\" }\n[[server]]",
            ),
            vec!["proxy.check.path = \"a b\"", "must begin with /"],
        ),
        (
            good.replace(
                "[[server]]",
                "check = { by = \"http\", status = 99 }\n[[server]]",
            ),
            vec!["proxy.check.status = 99", "200 to 599"],
        ),
        (
            good.replace(
                "[[server]]",
                "check = { by = \"grpc\", fall = 0 }\n[[server]]",
            ),
            vec!["proxy.check.fall = 0", "1 to 100"],
        ),
        (
            good.replace(
                "[[server]]",
                "check = { by = \"tcp\", interval_ms = 1 }\n[[server]]",
            ),
            vec!["proxy.check.interval_ms = 1", "10 to 600000"],
        ),
        (
            good.replace("[[server]]", "hedge = { late_factor = 1 }\n[[server]]"),
            vec!["proxy.hedge.late_factor = 1", "2 to 1000"],
        ),
        (
            good.replace("[[server]]", "sticky = { by = \"user\" }\n[[server]]"),
            vec!["proxy.sticky.by = \"user\"", "cookie, header, source"],
        ),
        (
            good.replace("[[server]]", "sticky = { by = \"cookie\" }\n[[server]]"),
            vec!["proxy.sticky.name = (none)", "must be there"],
        ),
        (
            good.replace(
                "[[server]]",
                "sticky = { by = \"header\", name = \"a b\" }\n[[server]]",
            ),
            vec!["proxy.sticky.name = \"a b\"", "1 to 128"],
        ),
        (
            good.replace(
                "[[server]]",
                "sticky = { by = \"source\", name = \"a\" }\n[[server]]",
            ),
            vec!["proxy.sticky.name = \"a\"", "must not be there"],
        ),
        (
            good.replace(
                server,
                &format!("[proxy.mirror]\nto = \"127.0.0.1:1\"\n{server}"),
            ),
            vec!["proxy.mirror.to", "proxy.mirror.percent"],
        ),
        (
            good.replace(server, &format!("[proxy.mirror]\npercent = 1\n{server}")),
            vec!["proxy.mirror.percent = 1", "proxy.mirror.to"],
        ),
        (
            good.replace(
                server,
                &format!("[proxy.mirror]\nto = \"127.0.0.1:1\"\npercent = 101\n{server}"),
            ),
            vec!["proxy.mirror.percent = 101", "0.01 to 100"],
        ),
        (
            good.replace(
                server,
                &format!("[proxy.mirror]\nto = \"here\"\npercent = 1\n{server}"),
            ),
            vec!["proxy.mirror.to = \"here\"", "ip:port"],
        ),
        (
            good.replace(server, &format!("[proxy.mirror]\ntimeout_ms = 0\n{server}")),
            vec!["proxy.mirror.timeout_ms = 0", "1 to 60000"],
        ),
        (
            good.replace("[[server]]", "limits = { headers = 0 }\n[[server]]"),
            vec!["proxy.limits.headers = 0", "1 to 256"],
        ),
        (
            good.replace(server, ""),
            vec!["server = 0 tables", "one [[server]] or more"],
        ),
        (
            without_proxy,
            vec!["proxy: must be there", "a table [proxy]"],
        ),
        (
            without_listen.clone(),
            vec!["proxy.listen = (none)", "or proxy.tls.listen"],
        ),
        (
            good.replace("[[server]]", &tls("listen = \"443\"", one)),
            vec!["proxy.tls.listen = \"443\"", "ip:port"],
        ),
        (
            good.replace("[[server]]", &tls(&format!("listen = \"{clear}\""), one)),
            vec!["proxy.tls.listen", "must differ from proxy.listen"],
        ),
        (
            without_listen.replace("[[server]]", &tls("listen = \"127.0.0.1:0\"", one)),
            vec!["proxy.tls.certificate[0].chain: /no/such.pem: can't be read"],
        ),
        (
            good.replace(
                "[[server]]",
                "limits = { header_timeout_s = 0 }\n[[server]]",
            ),
            vec!["proxy.limits.header_timeout_s = 0", "0.1 to 3600"],
        ),
        (
            good.replace("[[server]]", "limits = { connections = 0 }\n[[server]]"),
            vec!["proxy.limits.connections = 0", "1 to 100000000"],
        ),
        (
            good.replace("[[server]]", "limits = { header_bytes = 1023 }\n[[server]]"),
            vec!["proxy.limits.header_bytes = 1023", "1024 to 524288"],
        ),
        (
            good.replace(
                "[[server]]",
                "limits = { body_timeout_s = 3601 }\n[[server]]",
            ),
            vec!["proxy.limits.body_timeout_s = 3601", "0.1 to 3600"],
        ),
        (
            good.replace(
                "[[server]]",
                "limits = { body_bytes_per_second = 1000000001 }\n[[server]]",
            ),
            vec![
                "proxy.limits.body_bytes_per_second = 1000000001",
                "0 to 1000000000",
            ],
        ),
        (
            good.replace(
                "[[server]]",
                "limits = { connections_per_source = 100000001 }\n[[server]]",
            ),
            vec![
                "proxy.limits.connections_per_source = 100000001",
                "0 to 100000000",
            ],
        ),
        (
            good.replace(
                "[[server]]",
                "limits = { requests_per_second = 1000001 }\n[[server]]",
            ),
            vec!["proxy.limits.requests_per_second = 1000001", "0 to 1000000"],
        ),
        (
            good.replace(
                "[[server]]",
                "limits = { upstream_concurrency = 100000001 }\n[[server]]",
            ),
            vec![
                "proxy.limits.upstream_concurrency = 100000001",
                "0 to 100000000",
            ],
        ),
        (
            good.replace(
                "[[server]]",
                "limits = { request_timeout_s = 0.001 }\n[[server]]",
            ),
            vec!["proxy.limits.request_timeout_s = 0.001", "0.01 to 3600"],
        ),
        (
            good.replace(
                "[[server]]",
                "limits = { body_replay_bytes = 1048577 }\n[[server]]",
            ),
            vec!["proxy.limits.body_replay_bytes = 1048577", "0 to 1048576"],
        ),
        (
            good.replace(
                "[[server]]",
                "limits = { idle_timeout_s = 0.5 }\n[[server]]",
            ),
            vec!["proxy.limits.idle_timeout_s = 0.5", "1 to 3600"],
        ),
        (
            good.replace("[[server]]", "limits = { connection = 1 }\n[[server]]"),
            vec!["connection", "connections_per_source"],
        ),
        (
            good.replace("[[server]]", "limits = { requests_burst = 0 }\n[[server]]"),
            vec!["proxy.limits.requests_burst = 0", "1 to 1000000"],
        ),
        (
            good.replace(
                "[[server]]",
                &tls("listen = \"127.0.0.1:0\"\nversion_min = \"1.1\"", one),
            ),
            vec!["proxy.tls.version_min = \"1.1\"", "\"1.2\" or \"1.3\""],
        ),
        (
            good.replace(
                "[[server]]",
                &tls("listen = \"127.0.0.1:0\"", "certificate = []"),
            ),
            vec!["proxy.tls.certificate = []", "at least one"],
        ),
        (
            good.replace(
                "[[server]]",
                &tls(
                    "listen = \"127.0.0.1:0\"",
                    &format!("{one}\nnames = [\"a..b\"]"),
                ),
            ),
            vec![
                "proxy.tls.certificate[0].names = \"a..b\"",
                "*.shop.example",
            ],
        ),
        (
            good.replace(
                "[[server]]",
                "trusted_proxies = [\"::1\", \"10.0.0.1/8\"]\n[[server]]",
            ),
            vec!["proxy.trusted_proxies = \"10.0.0.1/8\"", "\"10.0.0.0/8\""],
        ),
        (
            good.replace("[[server]]", "trace = { sample = 1.5 }\n[[server]]"),
            vec!["proxy.trace.sample = 1.5", "0 to 1"],
        ),
        (
            good.replace("[[server]]", "access_log = { path = \"log\" }\n[[server]]"),
            vec!["proxy.access_log.path = \"log\"", "absolute path"],
        ),
        (
            good.replace(
                "[[server]]",
                "access_log = { path = \"/no/such/log\" }\n[[server]]",
            ),
            vec!["proxy.access_log.path: /no/such/log", "can't be written"],
        ),
        (
            good.replace(
                "[[server]]",
                "access_log = { path = \"stdout\", sample = 2 }\n[[server]]",
            ),
            vec!["proxy.access_log.sample = 2", "0 to 1"],
        ),
        (
            good.replace("bound_ms = 100", "bound_ms = 0"),
            vec!["slo.bound_ms", "above 0"],
        ),
        (
            good.replace(server, &server.repeat(2)),
            vec!["server.name", "\"a\"", "twice"],
        ),
        (
            good.replace("\"sleep\"", "\"no-such-program\""),
            vec!["workload.command", "no-such-program", "PATH"],
        ),
        (
            good.replace("cpus = 0.5", "cpus = \"half\""),
            vec![":17:", "workload[0].cpus: ", "expected a number"],
        ),
    ];
    for (text, expected) in cases {
        assert_refused(&text, dir.path(), &expected);
    }
}

#[test]
fn an_address_in_use_is_named() {
    let dir = tempfile::tempdir().expect("dir");
    let holder = TcpListener::bind("127.0.0.1:0").expect("a port");
    let taken = holder.local_addr().expect("an address");
    let good = good(dir.path());
    let listen = good
        .lines()
        .find(|l| l.starts_with("listen"))
        .expect("a line")
        .to_owned();
    let text = good.replace(&listen, &format!("listen = \"{taken}\""));
    assert_refused(
        &text,
        dir.path(),
        &["proxy.listen", &taken.to_string(), "in use", "free"],
    );
}

#[test]
fn a_namespace_that_is_not_there_is_named() {
    let dir = tempfile::tempdir().expect("dir");
    let text =
        good(dir.path()).replace("cpus = 1.0\n", "cpus = 1.0\nnetns = \"/run/netns/none\"\n");
    let expected = ["server[0].netns", "/run/netns/none", "can't be opened"];
    assert_refused(&text, dir.path(), &expected);
}

#[test]
fn a_control_socket_in_use_is_named() {
    let dir = tempfile::tempdir().expect("dir");
    let taken = dir.path().join("taken");
    std::fs::create_dir(&taken).expect("made");
    let socket = taken.join("control.sock");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).expect("bound");
    let text = good(dir.path()).replace("/run\"", "/taken\"");
    let expected = ["runtime_dir", "another control plane", "control.sock"];
    assert_refused(&text, dir.path(), &expected);
}

#[test]
fn a_missing_file_is_named() {
    let output = Command::new(env!("CARGO_BIN_EXE_sim"))
        .args(["run", "--config", "/no/such/sim.toml"])
        .output()
        .expect("run");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("/no/such/sim.toml: can't be read"), "{said}");
}

#[test]
fn asking_a_control_plane_that_is_not_there_names_the_socket() {
    for verb in [
        vec!["status"],
        vec!["journal"],
        vec!["standby", "web", "always"],
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_sim"))
            .args(&verb)
            .args(["--socket", "/no/such/control.sock"])
            .output()
            .expect("run");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(
            said.contains("/no/such/control.sock: no control plane answers here"),
            "{said}"
        );
    }
}
