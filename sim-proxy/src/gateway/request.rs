//! What is known of one request of the general path.

use crate::attempt::{Attempt, InFlight};
use crate::clock::monotonic_ns;
use crate::cut::Connection;
use crate::drain::Stay;
use crate::limits::Refusal;
use crate::mirror::Taking;
use crate::sticky::SessionKey;
use crate::trace::Trace;
use crate::waiting::Seat;
use crate::workloads::Open;
use sim_core::name::InstanceId;
use std::time::Duration;

/// One request.
pub(crate) struct Request {
    /// Place of its workload, once that is found.
    pub(super) place: Option<usize>,
    /// Once it is counted as one that has arrived.
    pub(super) open: Option<Open>,
    pub(super) tries: u8,
    pub(super) attempt: Option<Attempt>,
    /// Who was asked last.
    pub(super) instance: Option<InstanceId>,
    /// While nothing of an answer has come to a request that may be asked elsewhere.
    pub(super) seat: Option<Seat>,
    /// Where it was asked.
    pub(super) connection: Option<Connection>,
    /// While it is a stream: its answer has begun, or it has no deadline.
    pub(super) stay: Option<Stay>,
    /// Until its attempt is counted, where its connection has gone before.
    pub(super) in_flight: Option<InFlight>,
    /// It was closed since its instance had no weight any more.
    pub(super) drained: bool,
    /// The next attempt goes elsewhere.
    pub(super) not: Option<InstanceId>,
    pub(super) session: Option<SessionKey>,
    /// The session is new: the user has to be told its cookie.
    pub(super) given: Option<[u8; 16]>,
    /// What is to be copied of it.
    pub(super) taking: Option<Box<Taking>>,
    /// Its trace, if traces are told.
    pub(super) trace: Option<Trace>,
    pub(super) refused: Option<Refusal>,
    /// When it must have an answer, all tries together; not for a call of gRPC, which brings its own, nor for a change of
    /// protocol.
    pub(super) deadline_ns: u64,
    /// When its body began, and what has come of it.
    pub(super) body: (u64, u64),
    /// The answer is one of gRPC: its end says how the call went.
    pub(super) call: bool,
    /// By that, it failed.
    pub(super) call_failed: bool,
    /// The caller's own deadline, if it is a call of gRPC.
    pub(super) deadline: Option<Duration>,
}

impl Request {
    pub(super) fn new() -> Self {
        Self {
            place: None,
            open: None,
            tries: 0,
            attempt: None,
            instance: None,
            seat: None,
            connection: None,
            stay: None,
            in_flight: None,
            drained: false,
            not: None,
            session: None,
            given: None,
            taking: None,
            trace: None,
            refused: None,
            deadline_ns: u64::MAX,
            body: (monotonic_ns(), 0),
            call: false,
            call_failed: false,
            deadline: None,
        }
    }

    /// Whether it was ended since its instance had no weight any more.
    pub(super) fn has_outstayed(&self) -> bool {
        self.stay.as_ref().is_some_and(Stay::is_over)
    }
}
