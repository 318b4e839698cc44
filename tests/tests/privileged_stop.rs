//! An instance that is stopped by SIGSTOP takes connections and says nothing. Nobody is to notice.
#![allow(clippy::unwrap_used, reason = "a test's helpers are tests too")]

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sim_core::journal::Kind;
use sim_tests::demo::settings::Programs;
use sim_tests::demo::sim::Sim;
use sim_tests::load::request::client;
use sim_tests::world::privilege::{missing, or_skip};

const RATE_HZ: u32 = 500;
const BEFORE: Duration = Duration::from_secs(1);
const STOPPED: Duration = Duration::from_secs(6);
const AFTER: Duration = Duration::from_secs(2);
/// What a user notices.
const NOTICED: Duration = Duration::from_millis(100);

/// For what takes some seconds on a machine that has nothing else to do.
const PATIENCE: Duration = Duration::from_secs(120);

/// What an answer takes.
const WORK: Duration = Duration::from_millis(20);

const LISTEN: &str = "SIM_TEST_LISTEN";

/// No test of its own: what the test below runs as the workload. A thread for each connection.
#[test]
fn workload() {
    let Ok(address) = std::env::var(LISTEN) else {
        return;
    };
    let listener = TcpListener::bind(&address).unwrap();
    for stream in listener.incoming() {
        std::thread::spawn(move || {
            let mut stream = stream.unwrap();
            stream.set_nodelay(true).unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            while let Some(Ok(line)) = lines.next() {
                // Some ten are being answered at any moment.
                if line.is_empty() {
                    std::thread::sleep(WORK);
                }
                let answered = !line.is_empty()
                    || stream
                        .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                        .is_ok();
                if !answered {
                    return;
                }
            }
        });
    }
}

#[test]
fn who_is_stopped_in_the_middle_of_the_load_costs_nobody_a_request() {
    let programs = Programs::locate();
    let absent = programs.as_ref().err().map(|error| format!("{error:#}"));
    if !or_skip("who_is_stopped_in_the_middle", missing().or(absent)) {
        return;
    }
    let programs = programs.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let [listen, admin] = [free_address(), free_address()];
    let config = folder.path().join("sim.toml");
    std::fs::write(&config, configuration(folder.path(), listen, admin)).unwrap();
    std::fs::create_dir(folder.path().join("run")).unwrap();
    std::fs::create_dir(folder.path().join("data")).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let log = folder.path().join("sim.log");
        let mut sim = Sim::start(&programs.sim, &config, folder.path(), &log).unwrap();
        sim.ready(PATIENCE).await.unwrap();
        two_are_ready(&mut sim).await;
        sim.ready_in_proxy(admin, 2).await.unwrap();
        let primary = process_of(1, folder.path());

        let begin = Instant::now();
        let pauses = Pauses::watch(begin);
        let mut load = tokio::spawn(load(listen, begin));
        tokio::time::sleep(BEFORE).await;
        kill(primary, Signal::SIGSTOP).unwrap();
        tokio::time::sleep(STOPPED).await;
        // It may have been ended meanwhile: who doesn't answer is replaced.
        kill(primary, Signal::SIGCONT).ok();
        let took = (&mut load).await.unwrap();
        let pauses = pauses.end();
        // Not those that were under way while the machine itself paused.
        let is_explained = |due: Duration, took: Duration| {
            let meets = |(from, to): &(Duration, Duration)| *from < due + took && due < *to;
            pauses.iter().any(meets)
        };
        let late: Vec<_> = took
            .iter()
            .filter_map(|(due, took)| Some((*due, (*took)?)))
            .filter(|(due, took)| *took > NOTICED && !is_explained(*due, *took))
            .collect();
        let failed = took.iter().filter(|(_, took)| took.is_none()).count();
        println!(
            "stop: {} requests, {failed} failed, {} over {NOTICED:?}: {late:?}; the machine paused {pauses:?}",
            took.len(),
            late.len()
        );
        assert_eq!(failed, 0, "{}", sim.log_tail());
        assert!(late.len() <= 5, "{late:?}");
        assert!(sim.stop(), "sim run did not stop in time");
    });
}

/// Moments at which a thread that only sleeps was kept from the CPU: then whoever asks and whoever answers may have been.
struct Pauses {
    over: mpsc::Sender<()>,
    thread: JoinHandle<Vec<(Duration, Duration)>>,
}

impl Pauses {
    /// Of a quarter of what a user notices, and more.
    fn watch(begin: Instant) -> Self {
        const STEP: Duration = Duration::from_millis(5);
        let (over, is_over) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let (mut pauses, mut last) = (Vec::new(), begin.elapsed());
            while is_over.recv_timeout(STEP) == Err(RecvTimeoutError::Timeout) {
                let now = begin.elapsed();
                if now - last > STEP + NOTICED / 4 {
                    pauses.push((last, now));
                }
                last = now;
            }
            pauses
        });
        Self { over, thread }
    }

    fn end(self) -> Vec<(Duration, Duration)> {
        drop(self.over);
        self.thread.join().unwrap()
    }
}

fn configuration(folder: &Path, listen: SocketAddr, admin: SocketAddr) -> String {
    let own = std::env::current_exe().unwrap();
    format!(
        "runtime_dir = {run:?}\ndata_dir = {data:?}\ncgroup = \"sim-test-stop-{pid}\"\n\
         [proxy]\nlisten = \"{listen}\"\nadmin = \"{admin}\"\n\
         [[server]]\nname = \"a\"\ncpus = 1.0\n\
         [[server]]\nname = \"b\"\ncpus = 1.0\n\
         [[workload]]\nname = \"web\"\nhome = \"a\"\ncpus = 1.0\nstandby = \"always\"\n\
         command = [{own:?}, \"--exact\", \"workload\", \"--nocapture\"]\n\
         environment = {{ {LISTEN} = \"{{address}}:{{port}}\" }}\n\
         slo = {{ bound_ms = 100 }}\n",
        run = folder.join("run"),
        data = folder.join("data"),
        pid = std::process::id(),
    )
}

/// Waits for the proofs of the primary and of what stands by.
async fn two_are_ready(sim: &mut Sim) {
    let mut journal = sim.journal().unwrap();
    let deadline = Instant::now() + PATIENCE;
    let mut ready = 0;
    while ready < 2 {
        assert!(Instant::now() < deadline, "{}", sim.log_tail());
        let next = tokio::time::timeout(Duration::from_secs(1), journal.next()).await;
        sim.alive().unwrap();
        if next.is_ok_and(|entry| entry.unwrap().record.kind == Kind::Ready) {
            ready += 1;
        }
    }
}

/// Requests at a fixed rate, whatever becomes of the ones before; when each was due, and how long it took from then on,
/// `None` if it failed.
async fn load(target: SocketAddr, begin: Instant) -> Vec<(Duration, Option<Duration>)> {
    let client = client();
    let uri: hyper::Uri = format!("http://{target}/").parse().unwrap();
    let count = RATE_HZ * (BEFORE + STOPPED + AFTER).as_secs() as u32;
    let mut requests = Vec::new();
    for number in 0..count {
        let due = begin + Duration::from_secs(1) / RATE_HZ * number;
        tokio::time::sleep_until(due.into()).await;
        let request = hyper::Request::get(uri.clone())
            .body(Default::default())
            .unwrap();
        let asked = client.request(request);
        let answered = tokio::spawn(async move {
            let answer = asked.await.ok()?;
            let good = answer.status().is_success();
            http_body_util::BodyExt::collect(answer.into_body())
                .await
                .ok()?;
            good.then(|| due.elapsed())
        });
        requests.push((due - begin, answered));
    }
    let mut took = Vec::new();
    for (due, request) in requests {
        took.push((due, request.await.unwrap()));
    }
    took
}

/// The process that runs as `instance` of the run in `folder`.
fn process_of(instance: u64, folder: &Path) -> Pid {
    let (instance, folder) = (
        format!("SIM_INSTANCE={instance}"),
        folder.display().to_string(),
    );
    for entry in std::fs::read_dir("/proc").unwrap() {
        let entry = entry.unwrap();
        let Ok(pid) = entry.file_name().to_string_lossy().parse() else {
            continue;
        };
        let environment = std::fs::read(entry.path().join("environ")).unwrap_or_default();
        let has = |wanted: &str| {
            environment
                .split(|&byte| byte == 0)
                .any(|one| one == wanted.as_bytes())
        };
        let command = std::fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default();
        if has(&instance) && command.contains("workload") && is_below(pid, &folder) {
            return Pid::from_raw(pid);
        }
    }
    panic!("no {instance}");
}

/// Whether an ancestor of `pid` was started with a path in `folder`.
fn is_below(mut pid: i32, folder: &str) -> bool {
    while pid > 1 {
        let command = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        if command.contains(folder) {
            return true;
        }
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"));
        pid = parent
            .and_then(|ppid| ppid.trim().parse().ok())
            .unwrap_or(0);
    }
    false
}

fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
}
