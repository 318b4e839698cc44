//! What both ways of a request share, the general one ([`crate::gateway`]) and the fast one ([`crate::fast`]):
//! where it may go, and whether it may go again.

use crate::attempt::Attempt;
use crate::budget::RetryBudget;
use crate::clock::{monotonic_ns, nanos};
use crate::config::{Protocol, ProxyConfig, WorkloadSettings};
use crate::counters::{Counters, RetryReason};
use crate::errors::ErrorClass;
use crate::health::Failure;
use crate::hold::Hold;
use crate::live::Outcome;
use crate::mirror::Mirror;
use crate::routes::{Entry, NoEntry, Routes};
use crate::tls::instances::InstanceTls;
use sim_core::name::InstanceId;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// One for a workload: the budget is all its requests'.
#[derive(Debug)]
pub(crate) struct Dispatch {
    pub(crate) routes: Routes,
    pub(crate) counters: Counters,
    pub(crate) mirror: Arc<Mirror>,
    /// What the instances speak.
    pub(crate) protocol: Protocol,
    /// How they are spoken to over TLS; none: in the clear.
    pub(crate) tls: Option<Arc<InstanceTls>>,
    /// Where requests wait while no instance is ready.
    pub(crate) hold: Hold,
    /// How long a stream may go on at an instance that gets no new requests.
    pub(crate) stream_grace_ns: u64,
    budget: RetryBudget,
    attempts_max: u8,
}

impl Dispatch {
    pub(crate) fn new(
        config: &ProxyConfig,
        routes: Routes,
        workload: &WorkloadSettings,
        tls: Option<Arc<InstanceTls>>,
    ) -> Self {
        let retry = config.retry;
        let mirror = Mirror::new(
            config.mirror.clone(),
            config.upstream.idle_timeout,
            tls.clone(),
        );
        Self {
            routes,
            counters: Counters::default(),
            mirror: Arc::new(mirror),
            protocol: workload.protocol,
            tls,
            hold: Hold::new(config.hold),
            stream_grace_ns: nanos(config.stream_grace),
            budget: RetryBudget::new(retry),
            attempts_max: retry.attempts_max,
        }
    }

    /// Lets a request that waits in, or not; `None`: no instance is ready.
    pub(crate) fn admit_again(&self, entry: Entry) -> Option<Result<Attempt, NoEntry>> {
        match self.routes.admit(entry) {
            Err(NoEntry::NoInstance) => None,
            admitted => Some(admitted),
        }
    }

    /// Notes the status of an answer. At its head, not its end: a long download must not keep a recovered instance
    /// out. `failed`: it is none that the instance should give.
    pub(crate) fn answered(&self, attempt: &Attempt, status: u16, failed: bool) {
        let class = if failed {
            Some(ErrorClass::Status5xx)
        } else {
            ErrorClass::of_status(status)
        };
        if let Some(class) = class {
            attempt.live().errors().count(class);
        }
        if failed {
            self.routes.attempt_failed(attempt, Failure::BadAnswer);
        } else {
            self.routes.attempt_succeeded(attempt);
        }
    }

    /// Ends an attempt as failed. `failure` is what that says of its instance, whose id it gives.
    pub(crate) fn attempt_failed(
        &self,
        mut attempt: Attempt,
        class: ErrorClass,
        failure: Option<Failure>,
    ) -> InstanceId {
        attempt.live().errors().count(class);
        attempt.end(Outcome::Failed, None);
        if let Some(failure) = failure {
            self.routes.attempt_failed(&attempt, failure);
        }
        attempt.live().id()
    }

    /// Ends an attempt that another one overtook or is made for, or, if it `is_late` not, that came to nothing since the
    /// one before it had an end after all.
    pub(crate) fn overtaken(&self, mut attempt: Attempt, now_ns: u64, is_late: bool) {
        if is_late {
            attempt.outlasted(now_ns);
            self.routes.attempt_failed(&attempt, Failure::Overtaken);
        }
        attempt.end_overtaken(now_ns, is_late);
    }

    /// Ends an attempt that took too long for another's answer, an error, to wait for it any longer.
    pub(crate) fn given_up(&self, mut attempt: Attempt, now_ns: u64) {
        attempt.live().errors().count(ErrorClass::Late);
        attempt.outlasted(now_ns);
        attempt.end_overtaken(now_ns, true);
    }

    /// Ends an attempt for the reason that another one may be made.
    pub(crate) fn attempt_broken(
        &self,
        attempt: Attempt,
        reason: RetryReason,
        failure: Option<Failure>,
    ) -> InstanceId {
        if reason != RetryReason::Late {
            return self.attempt_failed(attempt, reason.into(), failure);
        }
        attempt.live().errors().count(ErrorClass::Late);
        let instance = attempt.live().id();
        self.overtaken(attempt, monotonic_ns(), true);
        instance
    }

    /// Whether the time of a request that is late was over at `deadline_ns`, and counts it.
    pub(crate) fn is_overtime(&self, deadline_ns: u64) -> bool {
        let over = monotonic_ns() >= deadline_ns;
        if over {
            self.counters.overtime.fetch_add(1, Ordering::Relaxed);
        }
        over
    }

    /// Whether a request of which `tries` were made may have another.
    pub(crate) fn may_retry(&self, tries: u8, reason: RetryReason) -> bool {
        // What nobody could be connected for was never sent: it doesn't count, once.
        let unsent = reason == RetryReason::Connect && self.attempts_max > 1;
        if tries >= self.attempts_max + u8::from(unsent) {
            return false;
        }
        // A hedge is for speed: its first attempt may still have an answer.
        let is_spare = reason == RetryReason::Hedge;
        let arrivals = self.counters.arrivals();
        if !self.budget.take(arrivals, monotonic_ns(), is_spare) {
            self.counters
                .budget_exhausted
                .fetch_add(1, Ordering::Relaxed);
            return false;
        }
        self.counters.retried(reason);
        true
    }
}
