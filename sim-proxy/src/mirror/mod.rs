//! A mirror: a share of the requests is copied to an instance, and what it answers is thrown away.
//!
//! The copy is made when the user has the answer, into a queue of the worker that has a bound and never waits: what
//! doesn't fit is dropped, and counted. One task of the worker sends what is in it ([`queue`]). A copy is no attempt:
//! it knows neither picks nor retries, takes nothing from the budget, and says nothing of an instance's health or of
//! its latency to real users. What it sees is in counters of its own ([`counts`]).
//!
//! The table names the instance, or, where it doesn't, the configuration an address. Every copy carries a field that
//! says so; what carries it already is not copied again, or two proxies could send copies in a circle.

mod counts;
mod general;
mod queue;
mod witness;

pub(crate) use general::Taking;
pub(crate) use witness::Witness;

use crate::config::MirrorSettings;
use crate::exposition::Page;
use crate::routes::Routes;
use crate::snapshot::MirrorTo;
use crate::tickets::{Tickets, entropy};
use crate::tls::instances::InstanceTls;
use counts::{Counts, Dropped};
use queue::Copied;
use sim_core::name::InstanceId;
use sim_core::table::FULL_BP;
use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;

/// Longest body that is copied, bytes: as long as one that may be sent twice.
pub(crate) const BODY_BYTES_MAX: usize = 64 * 1_024;

/// The field that marks a copy.
const NAME: &[u8] = b"sim-mirror";
const MARK: &[u8] = b"Sim-Mirror: 1\r\n";

thread_local! {
    /// A sequence of its own: that of the picks must stay even whatever is copied.
    static DRAWS: RefCell<Tickets> = RefCell::new(Tickets::new(entropy()));
}

/// Copies requests.
#[derive(Debug)]
pub(crate) struct Mirror {
    settings: MirrorSettings,
    /// How long a connection may wait for the next copy.
    idle: Duration,
    /// What gets copies is spoken to as the workload's instances are.
    tls: Option<Arc<InstanceTls>>,
    counts: Counts,
}

/// A request that is to be copied, while it is answered.
#[derive(Debug)]
pub(crate) struct Copying {
    to: MirrorTo,
    served_by: Option<InstanceId>,
    /// What the user is answered, if that is to be compared.
    witness: Option<Witness>,
    is_whole: bool,
}

impl Copying {
    /// The head of the answer has come.
    pub(crate) fn answered(&mut self, by: InstanceId, status: u16) {
        self.served_by = Some(by);
        self.is_whole = false;
        if let Some(witness) = &mut self.witness {
            witness.answered(status);
        }
    }

    /// Content of the answer passed.
    pub(crate) fn saw(&mut self, content: &[u8]) {
        if let Some(witness) = &mut self.witness {
            witness.saw(content);
        }
    }

    /// All of the answer passed.
    pub(crate) fn passed(&mut self) {
        self.is_whole = true;
    }
}

impl Mirror {
    pub(crate) fn new(
        settings: MirrorSettings,
        idle: Duration,
        tls: Option<Arc<InstanceTls>>,
    ) -> Self {
        Self {
            settings,
            idle,
            tls,
            counts: Counts::default(),
        }
    }

    /// Whether a request of the fast path with this `head` is to be copied.
    #[inline]
    pub(crate) fn draw(&self, routes: &Routes, head: &[u8]) -> Option<Box<Copying>> {
        self.to(routes, |to| {
            let method = head.split(|&byte| byte == b' ').next()?;
            self.draw_for(to, method, || is_marked(head))
        })
    }

    /// What `of` makes of where copies go, if there is a mirror.
    #[inline]
    fn to<T>(&self, routes: &Routes, of: impl Fn(&MirrorTo) -> Option<T>) -> Option<T> {
        match routes.mirror(&of) {
            Some(made) => made,
            None => self.settings.fixed.as_ref().and_then(of),
        }
    }

    fn draw_for(
        &self,
        to: &MirrorTo,
        method: &[u8],
        is_marked: impl FnOnce() -> bool,
    ) -> Option<Box<Copying>> {
        if !self.settings.unsafe_methods && !is_safe(method) {
            return None;
        }
        let ticket = DRAWS.with_borrow_mut(Tickets::take);
        let point = (u128::from(ticket) * u128::from(FULL_BP)) >> 64;
        if point >= u128::from(to.share_bp) || is_marked() {
            return None;
        }
        Some(Box::new(Copying {
            to: to.clone(),
            served_by: None,
            witness: self.settings.compare.then(Witness::hashing),
            is_whole: false,
        }))
    }

    /// Queues a copy of a request of the fast path: `question` is what the instance got.
    pub(crate) fn offer_question(self: &Arc<Self>, copying: Copying, question: &[u8]) {
        let line = question.iter().position(|&byte| byte == b'\n');
        let (line, rest) = question.split_at(line.map_or(0, |at| at + 1));
        self.offer(copying, &[line, MARK, rest]);
    }

    /// Queues a copy whose bytes are `parts`, unless the mirror itself has served the request: what it says of it is
    /// known then.
    fn offer(self: &Arc<Self>, copying: Copying, parts: &[&[u8]]) {
        if copying.to.instance.is_some() && copying.to.instance == copying.served_by {
            return;
        }
        let expected = copying.witness.filter(|_| copying.is_whole);
        let expected = expected.map(|witness| witness.seen());
        queue::offer(parts, |bytes| Copied {
            mirror: self.clone(),
            address: copying.to.address,
            is_head: bytes.starts_with(b"HEAD "),
            is_repeatable: bytes
                .split(|&byte| byte == b' ')
                .next()
                .is_some_and(is_safe),
            expected,
            bytes,
        })
        .unwrap_or_else(|why| self.counts().dropped(why));
    }

    /// Writes what is known of copies to a page of metrics.
    pub(crate) fn export(&self, page: &mut Page) {
        counts::render(page, &self.counts);
    }

    fn counts(&self) -> &Counts {
        &self.counts
    }

    /// By which material connections have to be secured.
    fn material(&self) -> u64 {
        self.tls.as_ref().map_or(0, |tls| tls.material().id)
    }
}

/// Whether a request has no effect by its method (RFC 9110, section 9.2.1), so that a copy has none either.
fn is_safe(method: &[u8]) -> bool {
    matches!(method, b"GET" | b"HEAD" | b"OPTIONS")
}

/// Whether a head carries the mark.
fn is_marked(head: &[u8]) -> bool {
    head.split(|&byte| byte == b'\n').any(|line| {
        let named = line.get(..NAME.len()).zip(line.get(NAME.len()));
        named.is_some_and(|(name, &end)| end == b':' && name.eq_ignore_ascii_case(NAME))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::EjectSettings;
    use sim_core::name::WorkloadName;

    fn mirror(share_bp: u16, unsafe_methods: bool) -> (Mirror, Routes) {
        let settings = MirrorSettings {
            fixed: Some(MirrorTo {
                instance: None,
                address: ([127, 0, 0, 1], 1).into(),
                share_bp,
            }),
            unsafe_methods,
            ..MirrorSettings::default()
        };
        let name = WorkloadName::new("web").expect("valid");
        let routes = Routes::new(name, EjectSettings::default());
        let mirror = Mirror::new(settings, Duration::ZERO, None);
        (mirror, routes)
    }

    fn head(method: &str, fields: &str) -> Vec<u8> {
        format!("{method} / HTTP/1.1\r\nHost: a\r\n{fields}\r\n").into_bytes()
    }

    #[test]
    fn what_may_have_effects_is_copied_only_where_that_is_allowed() {
        let drawn = |unsafe_methods, method| {
            let (mirror, routes) = mirror(FULL_BP, unsafe_methods);
            mirror.draw(&routes, &head(method, "")).is_some()
        };
        for method in ["GET", "HEAD", "OPTIONS"] {
            assert!(drawn(false, method), "{method}");
        }
        for method in ["POST", "PUT", "DELETE", "PATCH"] {
            assert!(!drawn(false, method) && drawn(true, method), "{method}");
        }
    }

    #[test]
    fn a_copy_is_not_copied_again() {
        let (mirror, routes) = mirror(FULL_BP, false);
        let drawn = |fields| mirror.draw(&routes, &head("GET", fields)).is_some();
        assert!(!drawn("Sim-Mirror: 1\r\n"));
        assert!(!drawn("X: 1\r\nSIM-mirror:\r\n"));
        assert!(drawn("Sim-Mirrored: 1\r\n"));
        assert!(drawn("X: sim-mirror:\r\n"));
    }

    #[test]
    fn of_any_run_of_requests_the_share_is_copied() {
        let (mirror, routes) = mirror(500, false);
        let get = head("GET", "");
        let drawn = (0..2_000).filter(|_| mirror.draw(&routes, &get).is_some());
        // As even as the picks are: a handful off.
        assert!(drawn.count().abs_diff(100) <= 8);
    }
}
