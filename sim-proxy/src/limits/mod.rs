//! What one user may take of the proxy, so that none takes it from the others. Both paths of a request ask here.
//!
//! Nothing here takes a lock or grows with what arrives. Each refusal is counted by its reason.

pub(crate) mod general;
mod settings;
mod sources;

pub use settings::{BODY_REPLAY_BYTES_MAX, HEADER_BYTES_MAX, HEADERS_MAX, LimitSettings};

use crate::clock::{monotonic_ns, nanos};
use crate::counters::Counters;
use crossbeam_utils::CachePadded;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use pingora_error::{Error, ErrorType, Result};
use sources::{At, Entry, Rate, Sources};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};

/// Why a request is refused here. None of them has been sent anywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// It isn't HTTP, or has two readings.
    Malformed,
    /// Its head is too long.
    HeaderBytes,
    /// It has too many fields.
    Headers,
    /// Its head doesn't come in time.
    HeaderTimeout,
    /// Its body doesn't come in time.
    BodyTimeout,
    /// Its source has asked too often of late.
    Rate,
    /// It is no workload's.
    NoWorkload,
    /// Its path has two readings, and what is matched by it may be another's.
    DotSegment,
    /// Each instance has as many as it may.
    Overload,
}

impl Refusal {
    pub(crate) const ALL: [(Self, &'static str); 9] = [
        (Self::Malformed, "malformed"),
        (Self::HeaderBytes, "header_bytes"),
        (Self::Headers, "headers"),
        (Self::HeaderTimeout, "header_timeout"),
        (Self::BodyTimeout, "body_timeout"),
        (Self::Rate, "requests_per_second"),
        (Self::NoWorkload, "no_workload"),
        (Self::DotSegment, "dot_segment"),
        (Self::Overload, "upstream_concurrency"),
    ];

    /// What the user is told.
    pub(crate) fn status(self) -> u16 {
        match self {
            Self::Malformed | Self::DotSegment => 400,
            Self::NoWorkload => 404,
            Self::HeaderBytes | Self::Headers => 431,
            Self::HeaderTimeout | Self::BodyTimeout => 408,
            Self::Rate => 429,
            Self::Overload => 503,
        }
    }

    /// The user is too slow, rather than wrong.
    pub(crate) fn is_late(self) -> bool {
        matches!(self, Self::HeaderTimeout | Self::BodyTimeout)
    }
}

/// Refusals so far, by reason; together they are the requests that ended as refused.
#[derive(Debug, Default)]
pub(crate) struct Refusals([AtomicU64; Refusal::ALL.len()]);

impl Refusals {
    // Relaxed in both: each is a fact of its own, and only rises.
    pub(crate) fn note(&self, refusal: Refusal) {
        self.0[refusal as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn count(&self, refusal: Refusal) -> u64 {
        self.0[refusal as usize].load(Ordering::Relaxed)
    }
}

/// Why a connection is closed as soon as it has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Crowd {
    /// There are as many as there may be.
    All,
    /// Its source has as many as it may.
    Source,
}

impl Crowd {
    pub(crate) const ALL: [(Self, &'static str); 2] = [
        (Self::All, "connections"),
        (Self::Source, "connections_per_source"),
    ];
}

/// A user's connection, counted until it is dropped.
#[derive(Debug)]
pub(crate) struct Visit<'a> {
    limits: &'a Limits,
    source: Option<At>,
}

impl Visit<'_> {
    /// Whether its source may ask for something now, which it is charged for.
    pub(crate) fn may_ask(&self) -> bool {
        self.limits.may_ask(self.source)
    }
}

impl Drop for Visit<'_> {
    fn drop(&mut self) {
        if let Some(source) = self.source {
            self.limits.sources.leave(source);
        }
        self.limits.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The limits of a proxy.
#[derive(Debug)]
pub(crate) struct Limits {
    pub(crate) settings: LimitSettings,
    header_timeout_ns: u64,
    body_timeout_ns: u64,
    request_timeout_ns: u64,
    connections_max: u64,
    // Relaxed, as are the two below: a count, and nothing is published by it.
    connections: CachePadded<AtomicU64>,
    crowds: [AtomicU64; 2],
    rate: Option<Rate>,
    sources: Sources,
}

impl Limits {
    pub(crate) fn new(settings: LimitSettings) -> Self {
        let connections_max = settings.connections.unwrap_or_else(connections_max);
        let of_source = settings.connections_per_source;
        let of_source = of_source.unwrap_or(connections_max.div_ceil(2));
        let burst = settings.requests_burst;
        let burst = burst.unwrap_or(settings.requests_per_second);
        let rate = Rate::new(settings.requests_per_second, burst);
        Self {
            settings,
            header_timeout_ns: nanos(settings.header_timeout),
            body_timeout_ns: nanos(settings.body_timeout),
            request_timeout_ns: nanos(settings.request_timeout),
            connections_max,
            connections: CachePadded::default(),
            crowds: Default::default(),
            rate,
            sources: Sources::new(of_source, rate),
        }
    }

    /// A connection from `client`; `None`: it is to be closed at once, and is counted.
    pub(crate) fn enter(&self, client: Option<IpAddr>) -> Option<Visit<'_>> {
        // Dropping it takes it back.
        let open = self.connections.fetch_add(1, Ordering::Relaxed);
        let mut visit = Visit {
            limits: self,
            source: None,
        };
        let crowd = if open >= self.connections_max {
            Crowd::All
        } else {
            let entry = client.map(|client| self.sources.enter(client, monotonic_ns()));
            match entry {
                Some(Entry::Full) => Crowd::Source,
                Some(Entry::At(source)) => {
                    visit.source = Some(source);
                    return Some(visit);
                }
                Some(Entry::Untracked) | None => return Some(visit),
            }
        };
        self.crowds[crowd as usize].fetch_add(1, Ordering::Relaxed);
        None
    }

    /// Whether a request from `client`, of which a connection is open, may go.
    pub(crate) fn may_ask_from(&self, client: Option<IpAddr>) -> bool {
        if self.rate.is_none() {
            return true;
        }
        self.may_ask(client.and_then(|client| self.sources.at(client)))
    }

    fn may_ask(&self, source: Option<At>) -> bool {
        match (self.rate, source) {
            (Some(rate), Some(source)) => self.sources.may_ask(source, rate, monotonic_ns()),
            _ => true,
        }
    }

    /// Until when the head of an answer must have come to a request that was there at `from_ns`, however often it is
    /// tried.
    pub(crate) fn answer_deadline_ns(&self, from_ns: u64) -> u64 {
        from_ns.saturating_add(self.request_timeout_ns)
    }

    /// Connections open now.
    pub(crate) fn connections(&self) -> u64 {
        self.connections.load(Ordering::Relaxed)
    }

    /// Connections closed as soon as they had come.
    pub(crate) fn crowded(&self, crowd: Crowd) -> u64 {
        self.crowds[crowd as usize].load(Ordering::Relaxed)
    }

    /// Connections whose source there was no place to remember for.
    pub(crate) fn untracked(&self) -> u64 {
        self.sources.untracked()
    }

    /// What is wrong with the size of a head.
    pub(crate) fn head(&self, bytes: usize, fields: usize) -> Option<Refusal> {
        if bytes > self.settings.header_bytes {
            Some(Refusal::HeaderBytes)
        } else if fields > self.settings.headers {
            Some(Refusal::Headers)
        } else {
            None
        }
    }

    /// Until when a head must be there whose first byte came at `begun_ns`.
    pub(crate) fn head_deadline_ns(&self, begun_ns: u64) -> u64 {
        begun_ns.saturating_add(self.header_timeout_ns)
    }

    /// Until when more of a body must have come that began at `begun_ns` and of which `bytes` are there: whoever sends
    /// at the lowest rate allowed is never late.
    pub(crate) fn body_deadline_ns(&self, begun_ns: u64, bytes: u64) -> u64 {
        let earned = match u64::from(self.settings.body_bytes_per_second) {
            0 => u64::MAX,
            rate => bytes.saturating_mul(1_000_000_000) / rate,
        };
        begun_ns
            .saturating_add(self.body_timeout_ns)
            .saturating_add(earned)
    }

    /// The same for a body that passes in pieces: each is waited for no longer than the time-out, which is for who
    /// reads it; this is the sum.
    pub(crate) fn body_in_time(&self, begun_ns: u64, bytes: u64, now_ns: u64) -> Result<()> {
        if now_ns > self.body_deadline_ns(begun_ns, bytes) {
            return Err(Error::new_down(ErrorType::ReadTimedout));
        }
        Ok(())
    }
}

/// Connections unless told: three quarters of the files that the process may open, as a request takes another one. The
/// process may open as many as it can be allowed from here on; HAProxy does the same.
fn connections_max() -> u64 {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((1_024, 1_024));
    let raised = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    let files = raised.map_or(soft, |()| hard);
    (files - files / 4).max(1)
}

impl Counters {
    /// Counts the end of a request that went nowhere.
    pub(crate) fn refused(&self, refusal: Refusal) {
        self.refusals.note(refusal);
        self.ended_refused();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn a_body_earns_time_by_what_has_come() {
        let limits = Limits::new(LimitSettings {
            body_timeout: std::time::Duration::from_secs(20),
            body_bytes_per_second: 500,
            ..LimitSettings::default()
        });
        assert_eq!(limits.body_deadline_ns(SECOND, 0), 21 * SECOND);
        assert_eq!(limits.body_deadline_ns(SECOND, 5_000), 31 * SECOND);
        assert!(limits.body_in_time(0, 500, 21 * SECOND).is_ok());
        assert!(limits.body_in_time(0, 499, 21 * SECOND).is_err());
        let unpaced = LimitSettings {
            body_bytes_per_second: 0,
            ..LimitSettings::default()
        };
        assert_eq!(Limits::new(unpaced).body_deadline_ns(SECOND, 1), u64::MAX);
    }

    #[test]
    fn each_reason_has_a_place_of_its_own() {
        for (at, (refusal, _)) in Refusal::ALL.into_iter().enumerate() {
            assert_eq!(refusal as usize, at);
        }
    }
}
