//! What users notice when an instance dies, is stopped, or when the weights change: SIM and the others under the same
//! open loop, each with two instances, 95 to 5.

mod duo;
mod weights;
mod whole;

use std::net::SocketAddr;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use bench::open_loop::{Plan, SharedPlan, Shot, Taken};
use bench::peers::Peers;
use bench::round_to;
use bench::secure::Certificate;
use nix::sys::signal::{Signal, kill};
use serde_json::{Map, Value, json};

use crate::configurations::Users;
use crate::contender::Contender;
use crate::processes::OTHER_CPU;
use duo::Duo;
use whole::Whole;

/// Under this many requests a second one is killed, or stopped.
const KILL_HZ: f64 = 2_000.0;
const STOP_HZ: f64 = 500.0;
/// What happens, after the load's begin.
const BEFORE: Duration = Duration::from_secs(1);
/// Who was killed is started again after this; who was stopped goes on.
const DEAD: Duration = Duration::from_secs(3);
const STOPPED: Duration = Duration::from_secs(6);
/// And so long the load goes on.
const AFTER_DEAD: Duration = Duration::from_secs(12);
const AFTER_STOPPED: Duration = Duration::from_secs(2);
/// What a user notices.
const NOTICED: Duration = Duration::from_millis(100);

/// Who is compared: those with retries and checks of their own.
const COMPARED: [Contender; 4] = [
    Contender::Sim,
    Contender::Nginx,
    Contender::Haproxy,
    Contender::Envoy,
];

/// What is asked: a GET may be sent again, a POST and a call of gRPC only as long as no instance has seen it.
#[derive(Clone, Copy, Debug)]
enum Method {
    Get,
    ChunkedPost,
    /// By HTTP/1.1 over TLS.
    TlsGet,
    /// Over HTTP/2, several at a time on a connection.
    Http2Get,
    GrpcCall,
}

impl Method {
    /// With what its figures end.
    const ALL: [(Self, &'static str); 5] = [
        (Self::Get, ""),
        (Self::ChunkedPost, "_chunked_post"),
        (Self::TlsGet, "_tls"),
        (Self::Http2Get, "_http2"),
        (Self::GrpcCall, "_grpc"),
    ];

    fn users(self) -> Users {
        match self {
            Self::Get | Self::ChunkedPost => Users::Http1,
            Self::TlsGet => Users::Tls,
            Self::Http2Get => Users::Http2,
            Self::GrpcCall => Users::Grpc,
        }
    }

    /// Who is compared.
    fn contenders(self) -> &'static [Contender] {
        match self {
            Self::Get | Self::ChunkedPost => &COMPARED,
            Self::TlsGet => &COMPARED_OVER_TLS,
            Self::Http2Get | Self::GrpcCall => &COMPARED_BY_HTTP2,
        }
    }

    /// Asks at `clear`, or where users are served over TLS.
    fn plan(
        self,
        clear: SocketAddr,
        secure: Option<&(SocketAddr, Certificate)>,
        rate_hz: f64,
        span: Duration,
    ) -> Load {
        if let Some((target, certificate)) = secure {
            let plan = Plan::get(*target, "/", rate_hz, span);
            return plan.over_tls(certificate.users.clone()).into();
        }
        let target = clear;
        let plan = Plan::get(target, "/", rate_hz, span);
        let shared = SharedPlan::get(target, "/", rate_hz, span);
        match self {
            Self::Get | Self::TlsGet => plan.into(),
            Self::ChunkedPost => plan.post_chunked("/").into(),
            Self::Http2Get => Load::Shared(shared),
            Self::GrpcCall => Load::Shared(shared.calling("/bench.Echo/Call")),
        }
    }
}

/// What is sent, by whichever protocol.
enum Load {
    Own(Plan),
    /// Requests share connections.
    Shared(SharedPlan),
}

impl From<Plan> for Load {
    fn from(plan: Plan) -> Self {
        Self::Own(plan)
    }
}

/// Who of them is set up for TLS here.
const COMPARED_OVER_TLS: [Contender; 3] = [Contender::Sim, Contender::Nginx, Contender::Haproxy];

/// Who of them speaks HTTP/2 in clear text on either side.
const COMPARED_BY_HTTP2: [Contender; 2] = [Contender::Sim, Contender::Envoy];

/// All rows.
pub(crate) fn measure(peers: &Peers) -> Result<Map<String, Value>> {
    let mut results = Map::new();
    for (method, suffix) in Method::ALL {
        let (kills, stops) = rows(peers, method)?;
        for (key, of) in [
            ("kill_failed", &kills["sim"]["failed"]),
            (
                "kill_last_pick_after_death_ms",
                &kills["sim"]["last_pick_after_death_ms"],
            ),
            (
                "kill_back_after_restart_ms",
                &kills["sim"]["back_after_restart_ms"],
            ),
            ("stop_requests_over_100_ms", &stops["sim"]["over_100_ms"]),
            ("stop_failed", &stops["sim"]["failed"]),
        ] {
            results.insert(format!("{key}{suffix}"), of.clone());
        }
        results.insert(format!("kill_at_2000_rps{suffix}"), kills);
        results.insert(format!("stop_6_s_at_500_rps{suffix}"), stops);
    }
    results.append(&mut weights::measure(peers)?);
    Ok(results)
}

/// A death and a stop of each.
fn rows(peers: &Peers, method: Method) -> Result<(Value, Value)> {
    let (mut kills, mut stops) = (json!({}), json!({}));
    for &contender in method.contenders() {
        let name = contender.name();
        let row = match contender {
            Contender::Sim => Whole::start(method)?.kill(method),
            _ => kill_one(contender, peers, method),
        };
        kills[name] = row.with_context(|| format!("kill, {name}"))?;
        println!("kill: {method:?}: {name}: {}", kills[name]);
        let row = match contender {
            Contender::Sim => Whole::start(method)?.stop(method),
            _ => stop_one(contender, peers, method),
        };
        stops[name] = row.with_context(|| format!("stop, {name}"))?;
        println!("stop: {method:?}: {name}: {}", stops[name]);
    }
    Ok((kills, stops))
}

/// Begins a load whose first second has passed when this returns.
fn begin(load: Load) -> Result<(Instant, JoinHandle<Result<Taken>>)> {
    let cpu = Some(OTHER_CPU);
    let load = match load {
        Load::Own(plan) => {
            let plan = Plan {
                warm: Duration::ZERO,
                cpu,
                connections_max: 8_192,
                ..plan
            };
            plan.start()?
        }
        Load::Shared(plan) => SharedPlan { cpu, ..plan }.start()?,
    };
    std::thread::sleep(BEFORE);
    Ok((Instant::now(), load))
}

fn finish(load: JoinHandle<Result<Taken>>) -> Result<Taken> {
    load.join()
        .map_err(|_| anyhow!("the load's thread panicked"))?
}

fn noticed(shots: &[Shot]) -> Value {
    let slowest = shots.iter().map(|shot| shot.latency).max();
    json!({
        "requests": shots.len(),
        "failed": shots.iter().filter(|shot| shot.failed()).count(),
        "over_100_ms": shots.iter().filter(|shot| shot.latency > NOTICED).count(),
        "slowest_ms": milliseconds(slowest.unwrap_or_default()),
    })
}

fn milliseconds(span: Duration) -> f64 {
    round_to(span.as_secs_f64() * 1e3, 0.01)
}

/// Kills the one with most of the weight, and starts it again.
fn kill_one(contender: Contender, peers: &Peers, method: Method) -> Result<Value> {
    let mut duo = Duo::start(contender, peers, method.users())?;
    let span = BEFORE + DEAD + AFTER_DEAD;
    let (_, load) = begin(duo.plan(method, KILL_HZ, span))?;
    duo.kill_first();
    std::thread::sleep(DEAD);
    duo.restart_first(peers)?;
    let restarted = Instant::now();
    let taken = finish(load)?;
    let mut row = noticed(&taken.shots);
    row["back_after_restart_ms"] =
        back(&taken, restarted).map_or(Value::Null, |back| milliseconds(back).into());
    Ok(row)
}

/// From `restarted` to when the first has most of the requests of a tenth of a second again.
fn back(taken: &Taken, restarted: Instant) -> Option<Duration> {
    let restarted = restarted.saturating_duration_since(taken.begin);
    let mut after: Vec<&Shot> = taken
        .shots
        .iter()
        .filter(|shot| shot.due >= restarted)
        .collect();
    after.sort_by_key(|shot| shot.due);
    let tenth = (KILL_HZ / 10.0) as usize;
    let window = after.windows(tenth).find(|window| {
        let own = window.iter().filter(|shot| shot.instance == 1).count();
        2 * own > window.len()
    })?;
    Some(window[0].due - restarted)
}

/// Stops the one with most of the weight for a while.
fn stop_one(contender: Contender, peers: &Peers, method: Method) -> Result<Value> {
    let duo = Duo::start(contender, peers, method.users())?;
    let span = BEFORE + STOPPED + AFTER_STOPPED;
    let (_, load) = begin(duo.plan(method, STOP_HZ, span))?;
    kill(duo.first()?, Signal::SIGSTOP)?;
    std::thread::sleep(STOPPED);
    kill(duo.first()?, Signal::SIGCONT)?;
    Ok(noticed(&finish(load)?.shots))
}
