//! What the access log is told of a request of the fast path.

use super::{After, Connection};
use crate::access_log::{Entry, Question};
use crate::attempt::Target;
use crate::clock::{monotonic_ns, wall_ns};
use crate::counters::{Counters, Ending};
use crate::dispatch::Dispatch;
use sim_core::name::{InstanceId, WorkloadName};
use std::net::IpAddr;

/// Gathered while the request is served: a handful of stores, also where nothing is logged.
#[derive(Clone, Copy, Debug)]
pub(super) struct Note {
    client: Option<IpAddr>,
    /// It is whole, and who serves it logs it.
    is_whole: bool,
    /// When it was first sent to an instance; 0: it was not.
    begun_ns: u64,
    pub(super) status: u16,
    pub(super) ending: Option<Ending>,
    /// What came of the user once the protocol had changed.
    pub(super) bytes_in: u64,
    /// Of the body of its answer.
    pub(super) bytes_out: u64,
    instance: Option<InstanceId>,
    tries: u8,
    pub(super) hedged: bool,
}

impl Note {
    /// Of a user at `client`.
    pub(super) fn of(client: Option<IpAddr>) -> Self {
        Self {
            client,
            is_whole: false,
            begun_ns: 0,
            status: 0,
            ending: None,
            bytes_in: 0,
            bytes_out: 0,
            instance: None,
            tries: 0,
            hedged: false,
        }
    }

    /// The next request is there.
    pub(super) fn begin(&mut self) {
        *self = Self::of(self.client);
        self.is_whole = true;
    }

    fn take(&mut self) -> Self {
        let next = Self::of(self.client);
        std::mem::replace(self, next)
    }

    pub(super) fn asked(&mut self, target: Target<'_>, tries: u8) {
        self.instance = Some(target.instance);
        self.tries = tries;
        if tries == 1 {
            self.begun_ns = target.entered_ns;
        }
    }

    pub(super) fn answered(&mut self, by: InstanceId, status: u16) {
        self.instance = Some(by);
        self.status = status;
    }
}

impl Connection<'_> {
    /// Logs a request that was whole, `question` as it went on, with `bytes_in` of a body.
    pub(super) fn log(
        &mut self,
        dispatch: &Dispatch,
        question: &[u8],
        bytes_in: u64,
        after: After,
    ) {
        let note = self.note.take();
        let Some(log) = &self.path.workloads.access_log else {
            return;
        };
        let bytes_in = bytes_in + note.bytes_in;
        let now_ns = monotonic_ns();
        let ending = note.ending.unwrap_or(match after {
            After::Cut => Ending::Failed,
            After::Keep | After::Close => Ending::Aborted,
        });
        let begun_ns = if note.begun_ns == 0 {
            now_ns
        } else {
            note.begun_ns
        };
        let duration_ns = now_ns.saturating_sub(begun_ns);
        if log.wants(ending, duration_ns) {
            let question = Question::of_head(question, log.with_query());
            let workload = Some(dispatch.routes.workload().clone());
            log.log(entry(
                note,
                question,
                workload,
                ending,
                duration_ns,
                bytes_in,
            ));
        }
    }

    /// What there is of a request that goes nowhere, if it may be logged and isn't by who serves it.
    pub(super) fn refused_question(&self) -> Option<Question> {
        let log = self.path.workloads.access_log.as_ref()?;
        let is_part = !self.note.is_whole;
        is_part.then(|| Question::of_head(&self.arrived, log.with_query()))
    }

    /// Logs such a request, that was counted by `counters`.
    pub(super) fn log_refused(&mut self, question: Option<Question>, counters: &Counters) {
        let (Some(log), Some(question)) = (&self.path.workloads.access_log, question) else {
            return;
        };
        let note = self.note.take();
        let now_ns = monotonic_ns();
        let duration_ns = now_ns.saturating_sub(self.begun_ns.unwrap_or(now_ns));
        let ending = note.ending.unwrap_or(Ending::Refused);
        if log.wants(ending, duration_ns) {
            let mut all = self.path.workloads.iter();
            let own = all.find(|dispatch| std::ptr::eq(&raw const dispatch.counters, counters));
            let workload = own.map(|dispatch| dispatch.routes.workload().clone());
            log.log(entry(note, question, workload, ending, duration_ns, 0));
        }
    }
}

fn entry(
    note: Note,
    question: Question,
    workload: Option<WorkloadName>,
    ending: Ending,
    duration_ns: u64,
    bytes_in: u64,
) -> Entry {
    Entry {
        ended_ns: wall_ns(),
        duration_ns,
        client: note.client,
        workload,
        question,
        protocol: "HTTP/1.1",
        status: note.status,
        ending,
        bytes_in,
        bytes_out: note.bytes_out,
        instance: note.instance,
        tries: note.tries + u8::from(note.hedged),
        hedged: note.hedged,
    }
}
