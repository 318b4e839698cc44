//! Share of a service's CPU time that goes to the probes, while it does all that it can.
//!
//! The load is a closed loop (wrk): what is measured is a share of CPU time, not latency, and a closed
//! loop is what keeps a service at its capacity. All runs of the programs count against the service's
//! CPU time, also those for the load generator's and everybody else's switches.

use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::Signal;
use serde_json::{Map, Value, json};
use sim_tests::demo::settings::{CPUS, Programs};
use sim_tests::world::process::{Guarded, Placement};

use crate::cage::Cage;
use crate::counter::Counter;
use crate::peers::Tool;
use crate::settings::Settings;
use crate::spent::{self, Spent};
use bench::peers::Peers;
use bench::{median, round_to};

/// Length of one load, as wrk takes it.
const SECONDS: &str = "4";
const PATIENCE: Duration = Duration::from_secs(30);

const COUNTERS: [Counter; 4] = [
    Counter::Nobody,
    Counter::Sim,
    Counter::Tool(Tool::BpftracePerCgroup),
    Counter::Tool(Tool::LibbpfRunqlat),
];

/// What is loaded.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Service {
    /// The workload of the demonstration, held to its share of the CPU by a quota.
    HttpbinHeld,
    /// The same with all the CPUs to itself: its threads fight for Python's lock on two of them.
    Httpbin,
    /// As little work per request as there can be.
    NginxEcho,
}

impl Service {
    const fn name(self) -> &'static str {
        match self {
            Self::HttpbinHeld => "httpbin_quarter_cpu",
            Self::Httpbin => "httpbin",
            Self::NginxEcho => "nginx_echo",
        }
    }
}

/// One load with one counter.
#[derive(Clone, Debug, Default)]
struct Taken {
    requests: f64,
    cpu_ns: f64,
    bpf_ns: f64,
    bpf_runs: f64,
    groups: Vec<(&'static str, f64)>,
    programs: Vec<Spent>,
}

pub(crate) fn measure(settings: &Settings, peers: &Peers, empty_ns: f64) -> Result<Value> {
    let mut results = Map::new();
    for service in [Service::HttpbinHeld, Service::Httpbin, Service::NginxEcho] {
        let value =
            of_service(settings, peers, service, empty_ns).with_context(|| service.name())?;
        results.insert(service.name().to_owned(), value);
    }
    Ok(Value::Object(results))
}

fn of_service(
    settings: &Settings,
    peers: &Peers,
    service: Service,
    empty_ns: f64,
) -> Result<Value> {
    let cage = Cage::new(service.name())?;
    if service == Service::HttpbinHeld {
        cage.hold_to(CPUS)?;
    }
    let folder = tempfile::tempdir()?;
    let address = bench::free_address()?;
    let command = match service {
        Service::HttpbinHeld | Service::Httpbin => httpbin(address)?,
        Service::NginxEcho => nginx(peers, address, folder.path())?,
    };
    let _process = start(command, &cage, address)?;
    // What a service does only once: imports, first connections.
    load(peers, address)?;
    let mut taken = vec![Vec::new(); COUNTERS.len()];
    for round in 0..settings.rounds {
        for step in 0..COUNTERS.len() {
            let which = (round + step) % COUNTERS.len();
            let running = COUNTERS[which].start(settings, peers, &cage)?;
            let (before, groups) = (running.spent()?, running.groups());
            let cpu_before = cage.cpu_ns()?;
            let requests = load(peers, address)?;
            let cpu_ns = cage.cpu_ns()?.saturating_sub(cpu_before) as f64;
            let spent = spent::between(&before, &running.spent()?);
            let groups = running.groups().into_iter().zip(groups);
            taken[which].push(Taken {
                requests,
                cpu_ns,
                bpf_ns: spent.iter().map(|one| one.run_ns as f64).sum(),
                bpf_runs: spent.iter().map(|one| one.run_count as f64).sum(),
                programs: spent,
                groups: groups
                    .map(|((group, after), (_, before))| {
                        (group.name(), after.saturating_sub(before) as f64)
                    })
                    .collect(),
            });
        }
        let service = service.name();
        println!("{service}: round {} of {}", round + 1, settings.rounds);
    }
    Ok(report(&taken, empty_ns))
}

fn report(taken: &[Vec<Taken>], empty_ns: f64) -> Value {
    let of = |which: usize, figure: &dyn Fn(&Taken) -> f64| {
        let values: Vec<f64> = taken[which].iter().map(figure).collect();
        median(&values).unwrap_or_default()
    };
    let cpu_per_request = |t: &Taken| t.cpu_ns / t.requests.max(1.0);
    let alone = of(0, &cpu_per_request);
    let mut results = Map::new();
    for (which, counter) in COUNTERS.iter().enumerate() {
        let net = |t: &Taken| t.bpf_ns - t.bpf_runs * empty_ns;
        let mut value = json!({
            "requests": of(which, &|t| t.requests),
            "cpu_us_per_request": round_to(of(which, &cpu_per_request) / 1e3, 0.01),
            "cpu_per_request_ratio": round_to(of(which, &cpu_per_request) / alone, 0.001),
        });
        if *counter != Counter::Nobody {
            value["bpf_runs_per_request"] =
                round_to(of(which, &|t| t.bpf_runs / t.requests.max(1.0)), 0.1).into();
            value["bpf_net_ns_per_request"] =
                round_to(of(which, &|t| net(t) / t.requests.max(1.0)), 1.0).into();
            value["bpf_share_gross_percent"] =
                round_to(of(which, &|t| t.bpf_ns / t.cpu_ns * 100.0), 0.01).into();
            value["bpf_share_net_percent"] =
                round_to(of(which, &|t| net(t) / t.cpu_ns * 100.0), 0.01).into();
        }
        let first = taken[which].first();
        let names = first.map_or_else(Vec::new, |t| t.groups.iter().map(|g| g.0).collect());
        for (index, name) in names.into_iter().enumerate() {
            let share = |t: &Taken| {
                t.groups
                    .get(index)
                    .map_or(0.0, |(_, ns)| ns / t.cpu_ns * 100.0)
            };
            value["groups_gross_percent"][name] = round_to(of(which, &share), 0.001).into();
        }
        if *counter == Counter::Sim {
            value["programs"] = programs(&taken[which], empty_ns);
        }
        results.insert(counter.name().to_owned(), value);
    }
    Value::Object(results)
}

/// Runs per request, and nanoseconds per run, of each program that runs at least once in ten requests.
fn programs(taken: &[Taken], empty_ns: f64) -> Value {
    let mut results = Map::new();
    let names = taken.first().map_or(&[][..], |t| &t.programs);
    for name in names.iter().map(|spent| &spent.name) {
        let of = |figure: &dyn Fn(&Spent, &Taken) -> f64| {
            let one = |t: &Taken| {
                let spent = t.programs.iter().find(|spent| spent.name == *name)?;
                Some(figure(spent, t))
            };
            median(&taken.iter().filter_map(one).collect::<Vec<_>>()).unwrap_or_default()
        };
        let runs = of(&|spent, t| spent.run_count as f64 / t.requests.max(1.0));
        if runs >= 0.1 {
            let ns = of(&|spent, _| spent.run_ns as f64 / spent.run_count.max(1) as f64);
            results.insert(
                name.clone(),
                json!({
                    "runs_per_request": round_to(runs, 0.1),
                    "net_ns": round_to(ns - empty_ns, 1.0),
                }),
            );
        }
    }
    Value::Object(results)
}

fn httpbin(address: SocketAddr) -> Result<Command> {
    let words =
        Programs::locate()?.instance(&address.ip().to_string(), &address.port().to_string());
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]);
    Ok(command)
}

/// One worker that answers without looking at a file.
fn nginx(peers: &Peers, address: SocketAddr, folder: &Path) -> Result<Command> {
    let at = folder.display();
    let configuration = format!(
        "daemon off; master_process off; worker_processes 1; error_log stderr error; pid {at}/pid;\n\
         events {{ worker_connections 256; }}\n\
         http {{ access_log off; keepalive_requests 1000000000; client_body_temp_path {at}/body;\n\
         proxy_temp_path {at}/proxy; fastcgi_temp_path {at}/fastcgi; uwsgi_temp_path {at}/uwsgi; scgi_temp_path {at}/scgi;\n\
         server {{ listen {address}; location / {{ return 200 'echo'; }} }} }}\n"
    );
    let file = folder.join("nginx.conf");
    std::fs::write(&file, configuration)?;
    let mut command = peers.command("nginx")?;
    command.arg("-c").arg(&file).arg("-p").arg(folder);
    command.args(["-e", "stderr"]);
    Ok(command)
}

fn start(mut command: Command, cage: &Cage, address: SocketAddr) -> Result<Guarded> {
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let placement = Placement {
        netns: None,
        cgroups: cage.procs()?,
    };
    let mut process = Guarded::spawn(
        "service",
        command,
        placement,
        Signal::SIGQUIT,
        Duration::from_secs(5),
    )?;
    let deadline = Instant::now() + PATIENCE;
    while TcpStream::connect(address).is_err() {
        if let Some(end) = process.ended() {
            bail!("{end}");
        }
        if Instant::now() > deadline {
            bail!("it doesn't listen on {address}");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(process)
}

/// Loads it; the number of good answers.
fn load(peers: &Peers, address: SocketAddr) -> Result<f64> {
    bench::load::load(
        peers,
        &format!("http://{address}/status/200"),
        SECONDS,
        None,
    )
}
