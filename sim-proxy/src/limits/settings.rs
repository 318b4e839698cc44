//! `[proxy.limits]`, validated.

use std::time::Duration;

/// Fields of a head that Pingora takes.
pub const HEADERS_MAX: usize = 256;

/// Longest head that may be allowed, bytes.
pub const HEADER_BYTES_MAX: usize = 512 * 1_024;

/// Largest body that may be kept for another try, bytes.
pub const BODY_REPLAY_BYTES_MAX: usize = 1_024 * 1_024;

/// What one user may take of the proxy.
#[derive(Clone, Copy, Debug)]
pub struct LimitSettings {
    /// Longest head of a request, bytes; up to [`HEADER_BYTES_MAX`].
    pub header_bytes: usize,
    /// Most fields of a head; up to [`HEADERS_MAX`].
    pub headers: usize,
    /// How long a head may take to arrive, from its first byte.
    pub header_timeout: Duration,
    /// How long the next piece of a body is waited for.
    pub body_timeout: Duration,
    /// Lowest rate of a body over all that has come of it, once `body_timeout` is over; 0 = any.
    pub body_bytes_per_second: u32,
    /// Connections open at once; none: as many as the process's files allow.
    pub connections: Option<u64>,
    /// Of one source (an IPv4 address, or the /64 of an IPv6 one); none: half of all, 0 = any number.
    pub connections_per_source: Option<u64>,
    /// Requests of one source; 0 = any number.
    pub requests_per_second: u32,
    /// How many of them at once; none: those of a second.
    pub requests_burst: Option<u32>,
    /// Attempts in flight at one instance; 0 = any number.
    pub upstream_concurrency: u64,
    /// How long the head of an answer may take over all tries, from when the request is there.
    pub request_timeout: Duration,
    /// Longest body that is kept, so that the request can be sent again; up to [`BODY_REPLAY_BYTES_MAX`].
    pub body_replay_bytes: usize,
}

impl Default for LimitSettings {
    /// Of the first two: nginx and HAProxy take heads of 32 and 16 KiB, Apache and HAProxy 100 fields. The lowest rate is
    /// Apache's.
    fn default() -> Self {
        Self {
            header_bytes: 64 * 1_024,
            headers: 100,
            header_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(60),
            body_bytes_per_second: 500,
            connections: None,
            connections_per_source: None,
            requests_per_second: 0,
            requests_burst: None,
            upstream_concurrency: 10_000,
            request_timeout: Duration::from_secs(60),
            body_replay_bytes: 64 * 1_024,
        }
    }
}
