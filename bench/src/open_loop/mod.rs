//! An open loop of requests, for latencies of some ten microseconds: arrivals come as a Poisson process, whatever
//! became of the ones before, and a latency counts from the moment its request was due (no coordinated omission).
//!
//! One thread with kept connections, an epoll and a timer of the kernel's: what it costs is the same for all that are
//! compared, and small. `sim_tests::load` is for the demonstration: it knows what each answer must be, and is slower.

mod answer;
mod connection;
mod shared;

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use nix::unistd::Pid;
use rustls::ClientConfig;
use sim_tests::load::arrivals::{Arrivals, Constant};

pub use shared::SharedPlan;

use connection::{Connection, Got};

/// Between two looks for requests that nobody answers.
const TICK: Duration = Duration::from_millis(20);
/// The timer's mark among the connections'.
const TIMER: u64 = u64::MAX;

/// What to send.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Whom to ask.
    pub target: SocketAddr,
    /// Requests a second.
    pub rate_hz: f64,
    /// Sent before, and not counted.
    pub warm: Duration,
    /// For so long.
    pub span: Duration,
    /// The same gives the same arrivals.
    pub seed: u64,
    /// Each of them, whole.
    pub request: Vec<u8>,
    /// Opened before the first; they take turns.
    pub connections: usize,
    /// More are opened where all wait for answers. With so many the next request waits here, on the clock.
    pub connections_max: usize,
    /// Who isn't answered after that has failed.
    pub patience: Duration,
    /// The core to stay on.
    pub cpu: Option<usize>,
    /// Over TLS, by this; none is in the clear.
    pub tls: Option<Arc<ClientConfig>>,
}

impl Plan {
    /// GETs of `path` for `span`, by 64 connections and up to a thousand.
    #[must_use]
    pub fn get(target: SocketAddr, path: &str, rate_hz: f64, span: Duration) -> Self {
        let request = format!("GET {path} HTTP/1.1\r\nHost: bench\r\nAccept: */*\r\n\r\n");
        Self {
            target,
            rate_hz,
            warm: Duration::from_millis(300),
            span,
            seed: 1,
            request: request.into_bytes(),
            connections: 64,
            connections_max: 1_024,
            patience: Duration::from_secs(10),
            cpu: None,
            tls: None,
        }
    }

    /// POSTs with a body of 64 bytes in two chunks, else the same.
    #[must_use]
    pub fn post_chunked(self, path: &str) -> Self {
        let piece = "x".repeat(32);
        let head =
            format!("POST {path} HTTP/1.1\r\nHost: bench\r\nTransfer-Encoding: chunked\r\n\r\n");
        let request = format!("{head}20\r\n{piece}\r\n20\r\n{piece}\r\n0\r\n\r\n");
        Self {
            request: request.into_bytes(),
            ..self
        }
    }

    /// Over TLS, trusting whom `users` trusts.
    #[must_use]
    pub fn over_tls(self, users: Arc<ClientConfig>) -> Self {
        Self {
            tls: Some(users),
            ..self
        }
    }

    /// Sends it, and waits for the end.
    ///
    /// # Errors
    /// See [`Plan::start`].
    pub fn run(self) -> Result<Taken> {
        let Ok(taken) = self.start()?.join() else {
            return Err(anyhow!("the load's thread panicked"));
        };
        taken
    }

    /// Sends it from a thread of its own.
    ///
    /// # Errors
    /// There is no thread; by it, that nobody listens, or the kernel refuses what is needed.
    pub fn start(self) -> Result<JoinHandle<Result<Taken>>> {
        std::thread::Builder::new()
            .name("open loop".to_owned())
            .spawn(move || Loop::new(self)?.run())
            .context("load thread")
    }
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Answered with this status.
    Status(u16),
    /// Refused, reset, closed before the end of its answer, or no HTTP; or a call of gRPC with another status than OK.
    Broken,
    /// Not answered in time.
    Late,
}

/// A request that was counted.
#[derive(Clone, Copy, Debug)]
pub struct Shot {
    /// When it was due, from the beginning.
    pub due: Duration,
    /// From then to the last byte of its answer.
    pub latency: Duration,
    /// How it ended.
    pub outcome: Outcome,
    /// The digits of the answer's field `X-Instance`; 0 where it has none.
    pub instance: u32,
}

impl Shot {
    /// Anything but an answer of 200 to 299.
    #[must_use]
    pub fn failed(&self) -> bool {
        !matches!(self.outcome, Outcome::Status(200..=299))
    }
}

/// What became of a plan.
#[derive(Debug)]
pub struct Taken {
    /// When the first could have been due.
    pub begin: Instant,
    /// Requests of the whole plan, those that aren't counted too.
    pub sent: usize,
    /// All that were counted, in the order of their ends.
    pub shots: Vec<Shot>,
    /// Connections that the other side closed while they carried no request.
    pub closed_idle: usize,
}

impl Taken {
    /// Latencies in microseconds, sorted; failures took their time as well.
    #[must_use]
    pub fn latencies_us(&self) -> Vec<f64> {
        let shots = self.shots.iter();
        let mut all: Vec<f64> = shots.map(|shot| shot.latency.as_secs_f64() * 1e6).collect();
        all.sort_by(f64::total_cmp);
        all
    }

    /// How many failed.
    #[must_use]
    pub fn failed(&self) -> usize {
        self.shots.iter().filter(|shot| shot.failed()).count()
    }
}

struct Loop {
    plan: Plan,
    epoll: Epoll,
    timer: TimerFd,
    begin: Instant,
    /// By slot; none where it was closed.
    connections: Vec<Option<Connection>>,
    /// Slots without a request, the one that waited longest first.
    idle: VecDeque<usize>,
    /// Of all connections so far: tells an event of a connection from one of the slot's last.
    generation: u32,
    taken: Vec<Shot>,
    closed_idle: usize,
    sent: usize,
}

impl Loop {
    fn new(plan: Plan) -> Result<Self> {
        if let Some(cpu) = plan.cpu {
            let mut set = CpuSet::new();
            set.set(cpu)?;
            sched_setaffinity(Pid::from_raw(0), &set).context("the load's core")?;
        }
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?;
        epoll.add(&timer, EpollEvent::new(EpollFlags::EPOLLIN, TIMER))?;
        let expected = plan.rate_hz * plan.span.as_secs_f64();
        let mut new = Self {
            taken: Vec::with_capacity((expected * 1.2) as usize),
            plan,
            epoll,
            timer,
            begin: Instant::now(),
            connections: Vec::new(),
            idle: VecDeque::new(),
            generation: 0,
            closed_idle: 0,
            sent: 0,
        };
        for slot in 0..new.plan.connections {
            let connection = new
                .connect(slot)
                .with_context(|| new.plan.target.to_string())?;
            new.connections.push(Some(connection));
            new.idle.push_back(slot);
        }
        Ok(new)
    }

    fn connect(&mut self, slot: usize) -> io::Result<Connection> {
        self.generation = self.generation.wrapping_add(1);
        let connection =
            Connection::open(self.plan.target, self.generation, self.plan.tls.as_ref())?;
        let mark = u64::from(self.generation) << 32 | slot as u64;
        let interest = EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP, mark);
        self.epoll.add(connection.stream(), interest)?;
        Ok(connection)
    }

    fn run(mut self) -> Result<Taken> {
        self.begin = Instant::now();
        let end = self.plan.warm + self.plan.span;
        let mut arrivals = Arrivals::new(Constant(self.plan.rate_hz), self.plan.seed)
            .map(Duration::from_secs_f64)
            .take_while(|due| *due < end)
            .peekable();
        let mut waiting: VecDeque<Duration> = VecDeque::new();
        let mut events = [EpollEvent::empty(); 128];
        let mut scratch = vec![0; 64 * 1024];
        let mut looked = Duration::ZERO;
        loop {
            let now = self.begin.elapsed();
            while let Some(due) = arrivals.next_if(|due| *due <= now) {
                waiting.push_back(due);
            }
            while let Some(&due) = waiting.front() {
                let Some(slot) = self.free_slot() else { break };
                waiting.pop_front();
                self.send(slot, due);
            }
            if now > looked + TICK {
                looked = now;
                self.give_up(now);
                while let Some(due) = waiting.pop_front_if(|due| now > *due + self.plan.patience) {
                    self.record(due, now, Outcome::Late, 0);
                }
            }
            let next = arrivals.peek().copied();
            let all_idle = self.idle.len() == self.connections.len();
            if next.is_none() && waiting.is_empty() && all_idle {
                break;
            }
            let timeout = match next {
                Some(due) if !self.arm(due)? => EpollTimeout::ZERO,
                _ => EpollTimeout::try_from(TICK).unwrap_or(EpollTimeout::ZERO),
            };
            let count = match self.epoll.wait(&mut events, timeout) {
                Err(nix::errno::Errno::EINTR) => 0,
                other => other.context("epoll")?,
            };
            for event in &events[..count] {
                if event.data() == TIMER {
                    // Read, or it would stay ready; it may have been armed anew meanwhile.
                    self.timer.wait().unwrap_or_default();
                } else {
                    self.receive(event.data(), &mut scratch);
                }
            }
        }
        Ok(Taken {
            begin: self.begin,
            sent: self.sent,
            shots: self.taken,
            closed_idle: self.closed_idle,
        })
    }

    /// Sets the timer; false where `due` is now.
    fn arm(&self, due: Duration) -> Result<bool> {
        let left = due.saturating_sub(self.begin.elapsed());
        if left < Duration::from_micros(2) {
            return Ok(false);
        }
        let once = Expiration::OneShot(left.into());
        self.timer
            .set(once, TimerSetTimeFlags::empty())
            .context("timer")?;
        Ok(true)
    }

    fn free_slot(&mut self) -> Option<usize> {
        if let Some(slot) = self.idle.pop_front() {
            return Some(slot);
        }
        (self.connections.len() < self.plan.connections_max).then(|| {
            self.connections.push(None);
            self.connections.len() - 1
        })
    }

    fn send(&mut self, slot: usize, due: Duration) {
        // One that was closed meanwhile is noticed at the latest by the write.
        for fresh in [false, true] {
            let there = match self.connections[slot].take() {
                Some(connection) if !fresh => Some(connection),
                _ => self.connect(slot).ok(),
            };
            let Some(mut connection) = there else { break };
            if connection.send(&self.plan.request, due) {
                self.connections[slot] = Some(connection);
                return;
            }
            self.closed_idle += usize::from(!fresh);
        }
        self.idle.push_back(slot);
        self.record(due, self.begin.elapsed(), Outcome::Broken, 0);
    }

    fn receive(&mut self, mark: u64, scratch: &mut [u8]) {
        let slot = (mark & u64::from(u32::MAX)) as usize;
        let Some(Some(connection)) = self.connections.get_mut(slot) else {
            return;
        };
        if u64::from(connection.generation()) != mark >> 32 {
            return;
        }
        let due = connection.due();
        let (outcome, instance, keep) = match connection.receive(scratch) {
            Got::Part => return,
            Got::Whole(answer) => (
                Outcome::Status(answer.status),
                answer.instance,
                !answer.close,
            ),
            Got::End => (Outcome::Broken, 0, false),
        };
        if !keep {
            self.connections[slot] = None;
        }
        match due {
            Some(due) => {
                let now = self.begin.elapsed();
                self.idle.push_back(slot);
                self.record(due, now, outcome, instance);
            }
            None => self.closed_idle += 1,
        }
    }

    /// Ends the requests that have waited too long, and their connections.
    fn give_up(&mut self, now: Duration) {
        for slot in 0..self.connections.len() {
            let due = self.connections[slot].as_ref().and_then(Connection::due);
            if let Some(due) = due.filter(|due| now > *due + self.plan.patience) {
                self.connections[slot] = None;
                self.idle.push_back(slot);
                self.record(due, now, Outcome::Late, 0);
            }
        }
    }

    fn record(&mut self, due: Duration, now: Duration, outcome: Outcome, instance: u32) {
        self.sent += 1;
        let Some(due) = due.checked_sub(self.plan.warm) else {
            return;
        };
        self.taken.push(Shot {
            due,
            latency: now.saturating_sub(due + self.plan.warm),
            outcome,
            instance,
        });
    }
}

#[cfg(test)]
mod tests;
