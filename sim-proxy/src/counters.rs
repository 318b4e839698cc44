//! Counters of one workload as a whole, or of requests that reached none. They only rise; readers take differences.

use crate::errors::ErrorClass;
use crate::http2::Counts as Http2Counts;
use crate::limits::Refusals;
use crossbeam_utils::CachePadded;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// How a request ended for the user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// Whole answer below 500.
    Ok,
    /// Answer of 500 or above, none, or a broken one.
    Failed,
    /// Answered here, and sent nowhere: see [`crate::limits::Refusal`].
    Refused,
    /// The user left before the end.
    Aborted,
    /// Closed here, since its instance had no weight for longer than streams are left there: see [`crate::drain`].
    Drained,
}

impl Ending {
    pub(crate) const ALL: [(Self, &'static str); 5] = [
        (Self::Ok, "ok"),
        (Self::Failed, "failed"),
        (Self::Refused, "refused"),
        (Self::Aborted, "aborted"),
        (Self::Drained, "drained"),
    ];
}

/// Why a request got a second attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RetryReason {
    /// No connection; nothing was sent.
    Connect,
    /// The connection broke before an answer.
    Reset,
    /// No answer in time.
    Timeout,
    /// The answer was no HTTP.
    Malformed,
    /// The kernel said that the instance is stopped or dead, while its answer was waited for.
    Down,
    /// The instance said that it did nothing with it.
    Refused,
    /// No answer in the time that nearly all take; the first attempt goes on.
    Hedge,
    /// No answer in many times that; the first attempt was given up.
    Late,
    /// No TLS with the instance; nothing was sent.
    Tls,
}

impl RetryReason {
    pub(crate) const ALL: [(Self, &'static str); 9] = [
        (Self::Connect, "connect"),
        (Self::Reset, "reset"),
        (Self::Timeout, "timeout"),
        (Self::Malformed, "malformed"),
        (Self::Down, "down"),
        (Self::Refused, "refused"),
        (Self::Hedge, "hedge"),
        (Self::Late, "late"),
        (Self::Tls, "tls"),
    ];
}

impl RetryReason {
    /// Nobody has acted on the request, so it doesn't matter what it is.
    pub(crate) fn is_untouched(self) -> bool {
        matches!(self, Self::Connect | Self::Refused | Self::Tls)
    }
}

impl From<RetryReason> for ErrorClass {
    fn from(reason: RetryReason) -> Self {
        match reason {
            RetryReason::Connect => Self::Connect,
            RetryReason::Reset => Self::Reset,
            RetryReason::Timeout => Self::Timeout,
            RetryReason::Malformed => Self::Malformed,
            RetryReason::Down => Self::Down,
            RetryReason::Hedge | RetryReason::Late => Self::Late,
            RetryReason::Refused => Self::Refused,
            RetryReason::Tls => Self::Tls,
        }
    }
}

/// Where the error of a failed or aborted request came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ErrorSide {
    Upstream,
    Downstream,
    Internal,
}

impl ErrorSide {
    pub(crate) const ALL: [(Self, &'static str); 3] = [
        (Self::Upstream, "upstream"),
        (Self::Downstream, "downstream"),
        (Self::Internal, "internal"),
    ];
}

// All Relaxed: each counter is a fact of its own. `finished` alone is waited for, at the end of
// the process, and publishes nothing.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    arrivals: CachePadded<AtomicU64>,
    endings: CachePadded<[AtomicU64; 5]>,
    retries: [AtomicU64; 9],
    errors: [AtomicU64; 3],
    /// By reason; [`Counters::refused`] counts both these and the end.
    pub(crate) refusals: Refusals,
    pub(crate) no_instance: AtomicU64,
    pub(crate) budget_exhausted: AtomicU64,
    /// Requests whose time was over before they had an answer.
    pub(crate) overtime: AtomicU64,
    pub(crate) control_connected: AtomicBool,
    pub(crate) control_sessions: AtomicU64,
    pub(crate) tables_malformed: AtomicU64,
    pub(crate) http2: Http2Counts,
}

impl Counters {
    pub(crate) fn arrived(&self) {
        self.arrivals.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn ended(&self, ending: Ending) {
        self.endings[ending as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a request that has no other end.
    pub(crate) fn cut(&self) {
        self.erred(ErrorSide::Internal);
        self.ended(Ending::Failed);
    }

    /// For [`Counters::refused`] alone, which counts why as well.
    pub(crate) fn ended_refused(&self) {
        self.ended(Ending::Refused);
    }

    pub(crate) fn retried(&self, reason: RetryReason) {
        self.retries[reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn erred(&self, side: ErrorSide) {
        self.errors[side as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn arrivals(&self) -> u64 {
        self.arrivals.load(Ordering::Relaxed)
    }

    pub(crate) fn endings(&self, ending: Ending) -> u64 {
        self.endings[ending as usize].load(Ordering::Relaxed)
    }

    pub(crate) fn retries(&self, reason: RetryReason) -> u64 {
        self.retries[reason as usize].load(Ordering::Relaxed)
    }

    pub(crate) fn errors(&self, side: ErrorSide) -> u64 {
        self.errors[side as usize].load(Ordering::Relaxed)
    }

    /// Requests in flight. Ends are read first, so that it may show too many but never too few.
    pub(crate) fn in_flight(&self) -> u64 {
        let ended: u64 = Ending::ALL
            .iter()
            .map(|&(ending, _)| self.endings(ending))
            .sum();
        self.arrivals().saturating_sub(ended)
    }
}
