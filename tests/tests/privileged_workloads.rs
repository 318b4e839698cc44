//! Two workloads behind one proxy, told apart by their routes: each has its own life.
#![allow(clippy::unwrap_used, reason = "a test's helpers are tests too")]

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sim_core::journal::Kind;
use sim_tests::demo::settings::Programs;
use sim_tests::demo::sim::Sim;
use sim_tests::load::request::{HttpClient, client, get};
use sim_tests::world::privilege::{missing, or_skip};

const LISTEN: &str = "SIM_TEST_LISTEN";
/// For what takes some seconds on a machine that has nothing else to do.
const PATIENCE: Duration = Duration::from_secs(120);

/// No test of its own: what the test below runs as both workloads. It answers with the name of its workload.
#[test]
fn workload() {
    let Ok(address) = std::env::var(LISTEN) else {
        return;
    };
    let name = std::env::var("SIM_WORKLOAD").unwrap();
    let answer = format!(
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{name}",
        name.len()
    );
    for stream in TcpListener::bind(&address).unwrap().incoming() {
        let answer = answer.clone();
        std::thread::spawn(move || {
            let mut stream = stream.unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            while let Some(Ok(line)) = lines.next() {
                if line.is_empty() && stream.write_all(answer.as_bytes()).is_err() {
                    return;
                }
            }
        });
    }
}

#[test]
fn the_death_of_one_workload_s_primary_is_nothing_to_the_other() {
    let programs = Programs::locate();
    let absent = programs.as_ref().err().map(|error| format!("{error:#}"));
    if !or_skip("the_death_of_one_workload_s_primary", missing().or(absent)) {
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
        // Both primaries, and what stands by for one of them.
        ready(&mut sim, 3).await;
        sim.ready_in_proxy(admin, 3).await.unwrap();
        let users = client();
        all_go_to_their_own(&users, listen, 50).await;

        let status = sim.status().await.unwrap();
        let other = status.primary("api").unwrap();
        let dies = status.primary("web").unwrap();
        let pid = status.instance(dies).unwrap().pid;
        kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
        all_go_to_their_own(&users, listen, 200).await;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status = sim.status().await.unwrap();
            assert_eq!(status.primary("api"), Some(other));
            if status.primary("web").is_some_and(|primary| primary != dies) {
                break;
            }
            assert!(Instant::now() < deadline, "{}", sim.log_tail());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        all_go_to_their_own(&users, listen, 50).await;
        assert!(sim.stop(), "sim run did not stop in time");
    });
}

/// Each request is answered, by whom its path says.
async fn all_go_to_their_own(users: &HttpClient, listen: SocketAddr, rounds: u32) {
    for _ in 0..rounds {
        for (path, workload) in [
            ("/", "web"),
            ("/api", "api"),
            ("/api/x?y", "api"),
            ("/apis", "web"),
        ] {
            let body = get(users, listen, path).await.unwrap();
            assert_eq!(body, workload, "{path}");
        }
    }
}

/// Waits for so many proofs of readiness.
async fn ready(sim: &mut Sim, proofs: u32) {
    let mut journal = sim.journal().unwrap();
    let deadline = Instant::now() + PATIENCE;
    let mut seen = 0;
    while seen < proofs {
        assert!(Instant::now() < deadline, "{}", sim.log_tail());
        let next = tokio::time::timeout(Duration::from_secs(1), journal.next()).await;
        sim.alive().unwrap();
        if next.is_ok_and(|entry| entry.unwrap().record.kind == Kind::Ready) {
            seen += 1;
        }
    }
}

fn configuration(folder: &Path, listen: SocketAddr, admin: SocketAddr) -> String {
    let own = std::env::current_exe().unwrap();
    let workload = |name: &str, standby: &str, route: &str| {
        format!(
            "[[workload]]\nname = \"{name}\"\nhome = \"a\"\ncpus = 0.4\nmemory_mib = 64\nstandby = \"{standby}\"\n\
             command = [{own:?}, \"--exact\", \"workload\", \"--nocapture\"]\n\
             environment = {{ {LISTEN} = \"{{address}}:{{port}}\" }}\n\
             slo = {{ bound_ms = 100 }}\n{route}\n"
        )
    };
    format!(
        "runtime_dir = {run:?}\ndata_dir = {data:?}\ncgroup = \"sim-test-workloads-{pid}\"\n\
         [proxy]\nlisten = \"{listen}\"\nadmin = \"{admin}\"\n\
         [[server]]\nname = \"a\"\ncpus = 1.0\n\
         [[server]]\nname = \"b\"\ncpus = 1.0\n{web}{api}",
        run = folder.join("run"),
        data = folder.join("data"),
        pid = std::process::id(),
        web = workload("web", "always", ""),
        api = workload("api", "none", "route = [{ path = \"/api\" }]"),
    )
}

fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
}
