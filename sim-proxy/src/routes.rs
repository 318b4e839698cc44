//! Publication of snapshots, and how a request enters one.
//!
//! The control plane ends an instance once a report says: new table applied, nothing in flight
//! there. That report must not be sent while a worker that has loaded the *old* snapshot is about
//! to pick the instance. So both sides go through these steps:
//!
//! ```text
//! worker:  n = published; load snapshot; pick; in_flight += 1 (A); published == n? (B)
//! session: store snapshot; published += 1 (C); … in_flight += 0 for the report (D)
//! ```
//!
//! A and D both write `in_flight` (D adds 0 to it), so one of them reads what the other left, whatever else is
//! reordered. Either D reads A's: the report counts the attempt. Or A reads D's, by Acquire of a Release, so that C,
//! which is before D, is before B: B sees the new count, the worker takes its entry back and picks anew. When it reads
//! `published` again, that is Acquire of C's Release, and the snapshot it loads then is the new one.
//!
//! With a plain load as D all of it would have to be sequentially consistent, and no model checker for Rust knows that
//! order. `sim-proxy-models` runs this file through every interleaving.

use crate::attempt::Attempt;
use crate::clock::monotonic_ns;
use crate::config::EjectSettings;
use crate::health::{Failure, Standing};
use crate::live::InstanceLive;
use crate::overdue::Overdue;
use crate::pick::{
    How, Pick, has_last_resort, has_other, pick_in_turn, pick_of_session, pick_of_two, pick_other,
    pick_with_room,
};
use crate::policy::Policy;
use crate::snapshot::{MirrorTo, Snapshot, Upstream};
use crate::sticky::SessionKey;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{ArcSwap, Guard, Mutex, MutexGuard};
use crate::tickets::{take_second_ticket, take_ticket, take_turn};
use crossbeam_utils::CachePadded;
use sim_core::name::{InstanceId, WorkloadName};
use sim_core::table::{Version, WeightTable};
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::{Arc, PoisonError};

/// Why a table was not applied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Its stamp is lower than the present one's.
    #[error("table {offered} is older than {present}, which is in force")]
    Older {
        /// Stamp of the refused table.
        offered: Version,
        /// Stamp of the table in force.
        present: Version,
    },
    /// It is of another workload.
    #[error("table is of workload {0}, which this session is not about")]
    Foreign(WorkloadName),
}

/// What kind of attempt is to enter.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// Not there, if any other instance can be had: it has just failed this request.
    pub not: Option<InstanceId>,
    /// The request may be used to find out whether an ejected instance is back: it can be
    /// repeated if not.
    pub may_probe: bool,
    /// It is the request's first attempt.
    pub first: bool,
    /// The session that it belongs to, if sessions stay with an instance.
    pub session: Option<SessionKey>,
}

/// Why no attempt was entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoEntry {
    /// No instance is ready.
    NoInstance,
    /// Each that is in has as many attempts in flight as it may.
    Full,
}

/// The routes of one workload: the current snapshot and the instances known.
#[derive(Debug)]
pub struct Routes {
    /// No others have it.
    id: usize,
    workload: WorkloadName,
    eject: EjectSettings,
    policy: Policy,
    /// Attempts in flight that an instance may have.
    room: u64,
    current: CachePadded<ArcSwap<Snapshot>>,
    /// Snapshots published so far.
    published: CachePadded<AtomicU64>,
    /// The table names a mirror: without one no request looks for it.
    has_mirror: AtomicBool,
    /// Instances of the table, and those removed from it whose last counts are not reported yet.
    /// Never touched by a request.
    known: Mutex<Vec<Arc<InstanceLive>>>,
    overdue: Overdue,
    refused: AtomicU64,
    panic_picks: AtomicU64,
}

impl Routes {
    /// Without a table.
    #[must_use]
    pub fn new(workload: WorkloadName, eject: EjectSettings) -> Self {
        // Relaxed: a number that no others have, whatever the order.
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        Self {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            workload,
            eject,
            policy: Policy::Weighted,
            room: u64::MAX,
            current: CachePadded::new(ArcSwap::from_pointee(Snapshot::empty(monotonic_ns()))),
            published: CachePadded::default(),
            has_mirror: AtomicBool::default(),
            known: Mutex::default(),
            overdue: Overdue::default(),
            refused: AtomicU64::default(),
            panic_picks: AtomicU64::default(),
        }
    }

    /// The same, and requests go by `policy`.
    #[must_use]
    pub fn by(self, policy: Policy) -> Self {
        Self { policy, ..self }
    }

    /// Whose they are.
    #[must_use]
    pub fn workload(&self) -> &WorkloadName {
        &self.workload
    }

    /// The same, and an instance has at most `room` attempts in flight, 0 = any number.
    #[must_use]
    pub fn with_room(self, room: u64) -> Self {
        let room = if room == 0 { u64::MAX } else { room };
        Self { room, ..self }
    }

    /// The snapshot in force.
    #[must_use]
    pub fn snapshot(&self) -> Guard<Arc<Snapshot>> {
        self.current.load()
    }

    /// Instances of the table and those removed from it but not yet forgotten.
    #[must_use]
    pub fn known(&self) -> Vec<Arc<InstanceLive>> {
        self.lock_known().clone()
    }

    /// When a request is overdue.
    pub(crate) fn overdue(&self) -> &Overdue {
        &self.overdue
    }

    /// What `of` makes of where copies of requests go, by the table, if it says.
    #[inline]
    pub(crate) fn mirror<T>(&self, of: impl FnOnce(&MirrorTo) -> T) -> Option<T> {
        if !self.has_mirror.load(Ordering::Relaxed) {
            return None;
        }
        self.current.load().mirror().map(of)
    }

    /// Tables refused so far.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Picks of an ejected instance because all were.
    #[must_use]
    pub fn panic_picks(&self) -> u64 {
        self.panic_picks.load(Ordering::Relaxed)
    }

    fn lock_known(&self) -> MutexGuard<'_, Vec<Arc<InstanceLive>>> {
        // The list is whole between any two statements; a panic elsewhere takes nothing from it.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts `table` in force. `Ok(false)`: it was already.
    ///
    /// # Errors
    /// [`Refused`], and the present table stays.
    pub fn apply(&self, table: &WeightTable) -> Result<bool, Refused> {
        let snapshot = self.publish(table)?;
        if let Some(snapshot) = &snapshot {
            snapshot.complete();
        }
        Ok(snapshot.is_some())
    }

    /// The same as soon as can be; `None`: it was already. The snapshot is to be [completed](Snapshot::complete).
    ///
    /// # Errors
    /// As [`Routes::apply`].
    pub(crate) fn publish(&self, table: &WeightTable) -> Result<Option<Arc<Snapshot>>, Refused> {
        // Held to the end: two writers must not interleave the comparison and the store.
        let mut known = self.lock_known();
        let present = self.current.load().version();
        let offered = table.version();
        let refused = if *table.workload() != self.workload {
            Some(Refused::Foreign(table.workload().clone()))
        } else if offered < present {
            Some(Refused::Older { offered, present })
        } else {
            None
        };
        if let Some(refused) = refused {
            self.refused.fetch_add(1, Ordering::Relaxed);
            return Err(refused);
        }
        if offered == present && present != Version::default() {
            return Ok(None);
        }
        let snapshot = Snapshot::begin(table, monotonic_ns(), |share| {
            let (id, address) = (share.instance, &share.address);
            let found = known.iter().find(|live| live.id() == id);
            if let Some(live) = found.filter(|live| live.address() == address) {
                return live.clone();
            }
            // One that listens elsewhere is another one, whatever it is called.
            known.retain(|live| live.id() != id);
            let live = Arc::new(InstanceLive::new(id, address.clone()));
            known.push(live.clone());
            live
        });
        // Relaxed, here and where it is read: who looks finds what the snapshot says.
        self.has_mirror
            .store(snapshot.mirror().is_some(), Ordering::Relaxed);
        self.start_slowly(&self.current.load(), &snapshot);
        let snapshot = Arc::new(snapshot);
        self.current.store(snapshot.clone());
        // Release, after the store: step C of the module's protocol.
        self.published.fetch_add(1, Ordering::Release);
        Ok(Some(snapshot))
    }

    /// Instances that are ready in `next` and weren't in `present` begin with a part of their weight, if others were.
    fn start_slowly(&self, present: &Snapshot, next: &Snapshot) {
        if !present.upstreams().iter().any(|u| u.ready) {
            return;
        }
        let was_ready = |u: &Upstream| present.upstream(u.instance).is_some_and(|u| u.ready);
        for new in next.upstreams().iter().filter(|u| u.ready && !was_ready(u)) {
            let ramp = new.live.health().ramp();
            ramp.begin(next.applied_at_ns(), self.eject.slow_start_new);
        }
    }

    /// Drops the state of `instance` unless it stands in the table again.
    pub fn forget(&self, instance: InstanceId) {
        let mut known = self.lock_known();
        if self.current.load().upstream(instance).is_none() {
            known.retain(|live| live.id() != instance);
        }
    }

    /// Picks an instance and enters an attempt there; `None` where none is ready. A request
    /// waits for nothing here: the loop repeats only if a table came in between.
    #[must_use]
    #[inline]
    pub fn enter(&self, entry: Entry) -> Option<Attempt> {
        self.enter_by(entry.first, u64::MAX, |snapshot, now_ns| {
            self.choose(snapshot, entry, now_ns)
        })
    }

    /// Enters an attempt where `choose` says, if fewer than `room` are in flight there.
    #[inline]
    fn enter_by(
        &self,
        first: bool,
        room: u64,
        choose: impl Fn(&Snapshot, u64) -> Option<Pick>,
    ) -> Option<Attempt> {
        loop {
            // Acquire of C: who has seen this count loads no older snapshot.
            let published = self.published.load(Ordering::Acquire);
            let snapshot = self.current.load();
            let now_ns = monotonic_ns();
            let choice = choose(&snapshot, now_ns)?;
            let upstream = snapshot.upstreams().get(choice.at)?;
            // Entered from here on; dropping it is taking the entry back.
            let paced = self.policy.needs_latency();
            let attempt = Attempt::enter(upstream, choice.how, now_ns, first, paced);
            if attempt.ahead() >= room {
                continue;
            }
            // Relaxed: step B. What it must see is what step A, an Acquire, has made visible.
            if self.published.load(Ordering::Relaxed) == published {
                if choice.how == How::Panic {
                    self.panic_picks.fetch_add(1, Ordering::Relaxed);
                }
                upstream.live.picked(now_ns);
                return Some(attempt);
            }
        }
    }

    /// As [`Routes::enter`], where no instance gets more than it may have in flight: what is too much goes elsewhere.
    ///
    /// # Errors
    /// [`NoEntry`], where there is no elsewhere.
    pub fn admit(&self, entry: Entry) -> Result<Attempt, NoEntry> {
        let attempt = self.enter(entry).ok_or(NoEntry::NoInstance)?;
        if attempt.ahead() < self.room {
            return Ok(attempt);
        }
        drop(attempt);
        self.enter_with_room(entry).ok_or(NoEntry::Full)
    }

    #[cold]
    fn enter_with_room(&self, entry: Entry) -> Option<Attempt> {
        let (not, room) = (entry.not, self.room);
        self.enter_by(entry.first, room, |snapshot, now_ns| {
            pick_with_room(snapshot, take_ticket(), now_ns, not, room)
        })
    }

    fn choose(&self, snapshot: &Snapshot, entry: Entry, now_ns: u64) -> Option<Pick> {
        let choice = match (entry.session, entry.not) {
            (Some(session), not) => pick_of_session(snapshot, session, take_ticket(), now_ns, not)?,
            (None, Some(not)) => pick_other(snapshot, take_ticket(), now_ns, not)?,
            (None, None) if self.policy == Policy::Weighted => {
                let place = take_turn(self.id, snapshot.schedule());
                pick_in_turn(snapshot, place, take_ticket, now_ns)?
            }
            (None, None) => {
                let (ticket, second) = (take_ticket(), take_second_ticket());
                pick_of_two(snapshot, self.policy, ticket, second, now_ns)?
            }
        };
        if choice.how != How::Probe {
            return Some(choice);
        }
        let probed = snapshot.upstreams().get(choice.at)?;
        let health = probed.live.health();
        let may_probe = entry.may_probe || health.may_any_probe(now_ns);
        if may_probe && health.claim_probe(now_ns, &self.eject) {
            return Some(choice);
        }
        // Someone else probes. A fresh ticket, since this one lies in the share of the probed; and
        // with no other instance at all, that one has to do.
        let (ticket, not) = (take_ticket(), probed.instance);
        let other = match entry.session {
            Some(session) => pick_of_session(snapshot, session, ticket, now_ns, Some(not)),
            None => pick_other(snapshot, ticket, now_ns, not),
        };
        other.or(Some(Pick {
            how: How::Panic,
            ..choice
        }))
    }

    /// True where a healthy instance other than `not` could take a retry.
    #[must_use]
    pub fn has_other(&self, not: InstanceId) -> bool {
        has_other(&self.current.load(), not)
    }

    /// True where a request that failed at `not` has another instance to go to: a healthy one, or else one that is
    /// ejected, since a request that may fail is better than one that has. Not so where it failed on a connection that
    /// was `stale`: then the same instance may do by a fresh one, unless the kernel says that it is gone.
    #[must_use]
    pub fn has_next(&self, not: InstanceId, stale: bool) -> bool {
        let snapshot = self.current.load();
        let is_gone = || snapshot.upstream(not).is_none_or(|u| u.live.is_down());
        has_other(&snapshot, not) || (!stale || is_gone()) && has_last_resort(&snapshot, not)
    }

    /// As [`Routes::has_other`], for certain: not for the request path.
    fn has_other_now(&self, not: InstanceId) -> bool {
        let stays = |u: &Upstream| u.ready && u.instance != not && u.live.is_in_now();
        self.current.load().upstreams().iter().any(stays)
    }

    /// As [`Routes::has_other`], and that one has room for it.
    #[must_use]
    pub fn has_room_beside(&self, not: InstanceId) -> bool {
        let snapshot = self.current.load();
        let fits = |u: &Upstream| {
            let usable = u.ready && u.instance != not && u.live.is_in();
            usable && u.live.in_flight() < self.room
        };
        snapshot.upstreams().iter().any(fits)
    }

    /// Notes that an attempt failed, and ejects the instance where that is due and it isn't the
    /// last healthy one.
    pub fn attempt_failed(&self, attempt: &Attempt, failure: Failure) {
        let (health, now_ns) = (attempt.live().health(), monotonic_ns());
        let instance = attempt.live().id();
        let ejected = match attempt.how() {
            How::Probe => health.probe_failed(now_ns, &self.eject),
            How::Panic => false,
            How::Share | How::Spare => {
                health.failed(failure, now_ns, &self.eject)
                    && health.standing(now_ns) == Standing::In
                    && self.has_other(instance)
                    && health
                        .eject_unless_last(now_ns, &self.eject, || self.has_other_now(instance))
            }
        };
        if ejected {
            let for_ms = health.out_until_ns().saturating_sub(now_ns) / 1_000_000;
            tracing::warn!(%instance, ?failure, for_ms, "ejected");
        }
    }

    /// Whether an instance is ejected, or taken out by its checks.
    pub(crate) fn is_out(&self, live: &InstanceLive) -> bool {
        !live.health().is_in() || live.checked().is_out()
    }

    /// Notes that an instance has failed its checks, and takes it out unless it is the last one that is in.
    pub(crate) fn check_fell(&self, live: &InstanceLive, why: &str) {
        let instance = live.id();
        if self.has_other(instance) && live.checked().take_out(|| self.has_other_now(instance)) {
            tracing::warn!(%instance, why, "taken out by its checks");
        }
    }

    /// Notes that an instance has passed its checks, and brings it back. `is_answered`: that is proof enough to end an
    /// ejection before its time.
    pub(crate) fn check_rose(&self, live: &InstanceLive, is_answered: bool) {
        let (health, now_ns) = (live.health(), monotonic_ns());
        let ended = is_answered && health.may_return_early() && health.succeeded(true, now_ns);
        if live.checked().bring_back() || ended {
            health.ramp().begin(now_ns, self.eject.slow_start);
            tracing::info!(instance = %live.id(), "back by its checks");
        }
    }

    /// Notes that an attempt got a good answer.
    pub fn attempt_succeeded(&self, attempt: &Attempt) {
        let sent_while_out = matches!(attempt.how(), How::Probe | How::Panic);
        // Only the end of an ejection has a time.
        let now_ns = if sent_while_out { monotonic_ns() } else { 0 };
        let health = attempt.live().health();
        if health.succeeded(sent_while_out, now_ns) {
            health.ramp().begin(now_ns, self.eject.slow_start);
            tracing::info!(instance = %attempt.live().id(), "back after ejection");
        }
    }
}

#[cfg(test)]
mod tests;
