//! `sim upgrade`: one proxy after the other serves, and users don't notice.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// What the workload is told by, which is this program run again.
const SERVE: &str = "SIM_TEST_SERVE";

/// No test of its own: the service behind the proxy.
#[test]
fn service() {
    if std::env::var_os(SERVE).is_none() {
        return;
    }
    let port = std::env::var("PORT").expect("a port").parse::<u16>();
    let address = SocketAddr::from(([127, 0, 0, 1], port.expect("a number")));
    let listener = TcpListener::bind(address).expect("a free port");
    for stream in listener.incoming() {
        let mut stream = stream.expect("accepted");
        thread::spawn(move || while answer(&mut stream).is_ok() {});
    }
}

/// Reads to the end of a head, and answers.
fn answer(stream: &mut TcpStream) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
}

/// At an address of this process's own: a test beside it may be given the port that was free a moment ago.
fn free_address() -> SocketAddr {
    let [_, _, high, low] = std::process::id().to_be_bytes();
    let listener = TcpListener::bind((Ipv4Addr::new(127, high, low, 1), 0)).expect("a port");
    listener.local_addr().expect("an address")
}

/// A run of everything, ended when dropped.
struct Run {
    child: Child,
    config: PathBuf,
    users: SocketAddr,
}

/// A configuration in `dir`, and where users are served by it.
fn configure(dir: &Path) -> (PathBuf, SocketAddr) {
    let (users, admin) = (free_address(), free_address());
    let service = std::env::current_exe().expect("this program");
    let text = format!(
        r#"
data_dir = "{dir}/data"
runtime_dir = "{dir}/run"
cgroup = "sim-test-upgrade-{pid}-{port}"

[proxy]
listen = "{users}"
admin = "{admin}"

[[server]]
name = "a"
cpus = 1.0

[[workload]]
name = "web"
command = ["{service}", "--exact", "service"]
environment = {{ {SERVE} = "1" }}
cpus = 0.5
home = "a"
standby = "none"
slo = {{ bound_ms = 100 }}
"#,
        dir = dir.display(),
        pid = std::process::id(),
        port = users.port(),
        service = service.display(),
    );
    let config = dir.join("sim.toml");
    std::fs::write(&config, text).expect("written");
    (config, users)
}

/// `sim`, by these words and that configuration.
fn sim(words: &[&str], config: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sim"));
    command.args(words).arg("--config").arg(config);
    command
}

impl Run {
    fn start(dir: &Path) -> Self {
        let (config, users) = configure(dir);
        let child = sim(&["run"], &config).spawn().expect("started");
        Self {
            child,
            config,
            users,
        }
    }

    fn upgrade(&self) -> Output {
        sim(&["upgrade"], &self.config).output().expect("run")
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

fn end(child: &mut Child) {
    // Gone already where a test has found that.
    kill(pid(child), Signal::SIGTERM).ok();
    child.wait().expect("it ends");
}

fn pid(child: &Child) -> Pid {
    Pid::from_raw(child.id() as i32)
}

/// One role alone, ended when dropped.
struct Role(Child);

impl Role {
    fn start(words: &[&str], config: &Path) -> Self {
        Self(sim(words, config).spawn().expect("started"))
    }
}

impl Drop for Role {
    fn drop(&mut self) {
        end(&mut self.0);
    }
}

/// The cgroup of a configuration. Nodes share it, and none of them takes it away: that is for `sim run`, where there is one.
struct Group(String);

impl Group {
    fn of(config: &Path) -> Self {
        let text = std::fs::read_to_string(config).expect("readable");
        let name = text.split("cgroup = \"").nth(1);
        let name = name.and_then(|rest| rest.split('"').next());
        Self(name.expect("a cgroup").to_owned())
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // In whatever hierarchies it is; without root it is in none.
        let hierarchies = std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten();
        let places = hierarchies
            .flatten()
            .map(|entry| entry.path().join(&self.0));
        for place in places.chain([Path::new("/sys/fs/cgroup").join(&self.0)]) {
            std::fs::remove_dir(place).ok();
        }
    }
}

/// Asks on one connection, which the present proxy has answered on when this returns, until it is told that this was the
/// last time.
fn ask_until_told(users: SocketAddr) -> JoinHandle<()> {
    let mut stream = TcpStream::connect(users).expect("connected");
    assert_eq!(ask(&mut stream), Ok(true));
    thread::spawn(move || {
        while ask(&mut stream).expect("an answer") {
            thread::sleep(Duration::from_millis(10));
        }
    })
}

/// One request; whether the connection stays, or what came instead of an answer.
fn ask(stream: &mut TcpStream) -> Result<bool, String> {
    let failed = |error: std::io::Error| error.to_string();
    stream
        .write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        .map_err(failed)?;
    let mut answer = Vec::new();
    let mut piece = [0; 1_024];
    while !answer.ends_with(b"\r\n\r\nok") {
        let count = stream.read(&mut piece).map_err(failed)?;
        if count == 0 {
            return Err(String::from_utf8_lossy(&answer).into_owned());
        }
        answer.extend_from_slice(&piece[..count]);
    }
    let answer = String::from_utf8_lossy(&answer);
    Ok(!answer.contains("Connection: close"))
}

fn wait_until_served(users: SocketAddr) {
    for _ in 0..4_000 {
        match TcpStream::connect(users).map(|mut stream| ask(&mut stream)) {
            Ok(Ok(_)) => return,
            Ok(Err(_)) => {}
            Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionRefused),
        }
        thread::sleep(Duration::from_millis(50));
    }
    panic!("not served within 200 s");
}

#[test]
fn users_do_not_notice_upgrades_and_a_new_proxy_that_can_not_start_changes_nothing() {
    let dir = tempfile::tempdir().expect("dir");
    let run = Run::start(dir.path());
    wait_until_served(run.users);
    let (stop, asked) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
    let users: Vec<_> = (0..4)
        .map(|_| {
            let (stop, asked, to) = (stop.clone(), asked.clone(), run.users);
            thread::spawn(move || {
                let mut kept = None;
                while !stop.load(Ordering::SeqCst) {
                    let connect = || TcpStream::connect(to).expect("not refused");
                    let mut stream = kept.take().unwrap_or_else(connect);
                    let keeps = ask(&mut stream).expect("an answer");
                    kept = keeps.then_some(stream);
                    asked.fetch_add(1, Ordering::SeqCst);
                }
            })
        })
        .collect();
    let mut names = Vec::new();
    for _ in 0..3 {
        let output = run.upgrade();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{output:?}");
        assert!(said.starts_with("proxy ") && said.contains(" serves in place of "));
        names.push(said.split(' ').nth(1).expect("a process").to_owned());
        let until = asked.load(Ordering::SeqCst) + 100;
        while asked.load(Ordering::SeqCst) < until {
            thread::sleep(Duration::from_millis(5));
        }
    }
    names.dedup();
    assert_eq!(names.len(), 3);
    // One that can't listen where it is told to: the one that serves goes on.
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let taken = taken.local_addr().map(|address| (taken, address));
    let (_taken, address) = taken.expect("an address");
    let good = std::fs::read_to_string(&run.config).expect("text");
    let listen = |address: SocketAddr| format!("listen = \"{address}\"");
    let bad = good.replace(&listen(run.users), &listen(address));
    std::fs::write(&run.config, bad).expect("written");
    let refused = run.upgrade();
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(
        said.contains("the new proxy ended (exit status: 2); the proxy before serves on"),
        "{said}"
    );
    std::fs::write(&run.config, good).expect("written");
    assert!(run.upgrade().status.success());
    stop.store(true, Ordering::SeqCst);
    for user in users {
        user.join().expect("every request was answered");
    }
}

#[test]
fn an_upgrade_of_what_does_not_run_names_the_socket() {
    let dir = tempfile::tempdir().expect("dir");
    let config = dir.path().join("sim.toml");
    let text = format!(
        "runtime_dir = \"{}\"\n[proxy]\nlisten = \"127.0.0.1:1\"\n[[server]]\nname = \"a\"\ncpus = 1.0\n\
         [[workload]]\nname = \"web\"\ncommand = [\"true\"]\ncpus = 0.5\nhome = \"a\"\nslo = {{ bound_ms = 1 }}\n",
        dir.path().display()
    );
    std::fs::write(&config, text).expect("written");
    let output = sim(&["upgrade"], &config).output().expect("run");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(
        said.contains("run.sock: no `sim run` answers here"),
        "{said}"
    );
}

#[test]
fn a_hangup_is_an_upgrade() {
    let dir = tempfile::tempdir().expect("dir");
    let run = Run::start(dir.path());
    wait_until_served(run.users);
    for _ in 0..2 {
        let asking = ask_until_told(run.users);
        kill(pid(&run.child), Signal::SIGHUP).expect("it runs");
        asking.join().expect("every request was answered");
    }
    let mut stream = TcpStream::connect(run.users).expect("connected");
    assert_eq!(ask(&mut stream), Ok(true));
}

#[test]
fn a_proxy_takes_over_from_another_where_there_is_no_run() {
    let dir = tempfile::tempdir().expect("dir");
    let (config, users) = configure(dir.path());
    let _group = Group::of(&config);
    let _control = Role::start(&["control"], &config);
    let _node = Role::start(&["node", "--server", "a"], &config);
    let mut present = Role::start(&["proxy", "--take-over-or-first"], &config);
    wait_until_served(users);
    for option in ["--take-over", "--take-over-or-first"] {
        let asking = ask_until_told(users);
        let successor = Role::start(&["proxy", option], &config);
        asking.join().expect("every request was answered");
        let mut relieved = std::mem::replace(&mut present, successor);
        // By itself: its last connection has gone.
        let status = relieved.0.wait().expect("it ends");
        assert!(status.success(), "{status}");
        let mut stream = TcpStream::connect(users).expect("connected");
        assert_eq!(ask(&mut stream), Ok(true));
    }
}

#[test]
fn a_proxy_that_has_nobody_to_take_over_from_says_so() {
    let dir = tempfile::tempdir().expect("dir");
    let (config, _) = configure(dir.path());
    let output = sim(&["proxy", "--take-over"], &config).output();
    let output = output.expect("run");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{said}");
    let socket = dir.path().join("run/proxy.sock");
    assert!(said.contains(&*socket.to_string_lossy()), "{said}");
    assert_eq!(said.trim_end().lines().count(), 1, "{said}");
}
