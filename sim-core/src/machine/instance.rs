//! One instance as the core knows it.

use crate::address::Address;
use crate::capacity::Window;
use crate::event::{ResourceSample, Source};
use crate::name::{InstanceId, ServerName};
use crate::parity::Arm;
use crate::policy::Policy;
use crate::time::Time;
use core::time::Duration;
use serde::{Deserialize, Serialize};

/// Life of an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Its start was asked for.
    Asked,
    /// It gave its readiness proof.
    Ready,
    /// Its end was asked for.
    Stopping,
    /// It ended.
    Gone,
}

/// One instance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Instance {
    pub(crate) id: InstanceId,
    pub(crate) server: ServerName,
    pub(crate) cpus: f64,
    pub(crate) memory_bytes: u64,
    pub(crate) address: Option<Address>,
    pub(crate) state: State,
    pub(crate) asked_at: Time,
    pub(crate) resources_at: Option<Time>,
    /// CPU seconds used and time covered since the last tick.
    pub(crate) cpu_seconds: f64,
    pub(crate) covered: Duration,
    /// Throttled share, worst of the windows since the last tick.
    pub(crate) throttled: f64,
    /// First attempts since the last tick.
    pub(crate) tick: Arm,
    /// What was seen since the last window that was long enough, and how many requests of it were
    /// slower than the objective's bound, or failed.
    pub(crate) window: Window,
    pub(crate) slow: u64,
    /// The objective was broken in the last window that was long enough.
    pub(crate) violated: bool,
    /// First attempts since the last step of a move, for parity.
    pub(crate) arm: Arm,
    /// Utilisation of the quota in the last tick.
    pub(crate) utilisation: f64,
}

impl Instance {
    pub(crate) fn new(
        id: InstanceId,
        server: ServerName,
        cpus: f64,
        memory_bytes: u64,
        asked_at: Time,
    ) -> Self {
        Self {
            id,
            server,
            cpus,
            memory_bytes,
            address: None,
            state: State::Asked,
            asked_at,
            resources_at: None,
            cpu_seconds: 0.0,
            covered: Duration::ZERO,
            throttled: 0.0,
            tick: Arm::default(),
            window: Window::default(),
            slow: 0,
            violated: false,
            arm: Arm::default(),
            utilisation: 0.0,
        }
    }

    pub(crate) fn is_healthy(&self) -> bool {
        self.state == State::Ready
    }

    /// Its node reported its resources lately.
    pub(crate) fn is_seen(&self, now: Time, policy: &Policy) -> bool {
        let limit = Duration::from_millis(policy.stale_ms);
        self.resources_at.is_some_and(|at| now.since(at) <= limit)
    }

    pub(crate) fn take_resources(&mut self, now: Time, sample: &ResourceSample) {
        if sample.cpu_source == Source::Absent {
            // No signal is not a signal of zero.
            return;
        }
        self.resources_at = Some(now);
        self.cpu_seconds += sample.cpu_seconds;
        self.covered += sample.window;
        self.throttled = self.throttled.max(sample.throttled_ratio);
    }

    /// Closes the tick: seconds covered and throttled share. A request above `bound_micros` is slow.
    pub(crate) fn close_tick(&mut self, bound_micros: u64) -> (f64, f64) {
        let covered = core::mem::take(&mut self.covered).as_secs_f64();
        let cpu_seconds = core::mem::take(&mut self.cpu_seconds);
        let throttled = core::mem::take(&mut self.throttled);
        let tick = core::mem::take(&mut self.tick);
        // Also where this tick has no sample of resources: the CPU time comes with the next one.
        self.window.requests += tick.total();
        self.slow += tick.latency.count_above(bound_micros) + tick.failed;
        if covered > 0.0 {
            self.utilisation = cpu_seconds / (covered * self.cpus);
            self.window.cpu_seconds += cpu_seconds;
            self.window.quota_seconds += covered * self.cpus;
        }
        (covered, throttled)
    }

    /// What was seen since the last window, and its slow requests, once that are `requests_min` requests.
    pub(crate) fn close_window(&mut self, requests_min: u64) -> Option<(Window, u64)> {
        (self.window.requests >= requests_min).then(|| {
            (
                core::mem::take(&mut self.window),
                core::mem::take(&mut self.slow),
            )
        })
    }
}
