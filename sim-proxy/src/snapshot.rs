//! One table joined with the live state of its instances: all that a pick needs, immutable and
//! published as a whole behind one pointer (see [`crate::routes`]).

use crate::live::InstanceLive;
use crate::schedule::Schedule;
use crate::tickets::entropy;
use sim_core::address::Address;
use sim_core::name::InstanceId;
use sim_core::table::{FULL_BP, Share, Version, WeightTable};
use std::sync::Arc;

/// One line of the table.
#[derive(Clone, Debug)]
pub struct Upstream {
    /// Which instance.
    pub instance: InstanceId,
    /// Its share of first attempts, in basis points.
    pub weight_bp: u16,
    /// Proven ready; otherwise nothing is ever sent there.
    pub ready: bool,
    /// Its live state.
    pub live: Arc<InstanceLive>,
}

/// Where copies of requests go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MirrorTo {
    /// Which instance; none where it is none of the table's.
    pub instance: Option<InstanceId>,
    /// Where it listens.
    pub address: Address,
    /// Share of the requests that are copied, in basis points.
    pub share_bp: u16,
}

/// An immutable view of the routes.
#[derive(Debug)]
pub struct Snapshot {
    version: Version,
    applied_at_ns: u64,
    upstreams: Box<[Upstream]>,
    mirror: Option<MirrorTo>,
    /// `upstreams`' weights summed up to and with each; apart from them, so that a pick among 16
    /// reads one cache line.
    shares_upto: Box<[u32]>,
    /// Whose turn it is.
    schedule: Schedule,
}

impl Snapshot {
    /// No table yet.
    #[must_use]
    pub fn empty(now_ns: u64) -> Self {
        Self {
            version: Version::default(),
            applied_at_ns: now_ns,
            upstreams: Box::default(),
            mirror: None,
            shares_upto: Box::default(),
            schedule: Schedule::empty(),
        }
    }

    /// `table` with the state that `live` finds or makes for the instance of each line.
    pub fn new(
        table: &WeightTable,
        now_ns: u64,
        live: impl FnMut(&Share) -> Arc<InstanceLive>,
    ) -> Self {
        let snapshot = Self::begin(table, now_ns, live);
        snapshot.complete();
        snapshot
    }

    /// The same that is good for the first requests, and is to be [completed](Self::complete) in a few milliseconds.
    pub(crate) fn begin(
        table: &WeightTable,
        now_ns: u64,
        mut live: impl FnMut(&Share) -> Arc<InstanceLive>,
    ) -> Self {
        let upstreams: Box<[Upstream]> = table
            .shares()
            .iter()
            .map(|share| Upstream {
                instance: share.instance,
                weight_bp: share.weight_bp,
                ready: share.ready,
                live: live(share),
            })
            .collect();
        let shares_upto = upstreams
            .iter()
            .scan(0, |sum, upstream| {
                *sum += u32::from(upstream.weight_bp);
                Some(*sum)
            })
            .collect();
        let mirror = table.mirror().and_then(|mirror| {
            let to = upstreams.iter().find(|u| u.instance == mirror.instance)?;
            Some(MirrorTo {
                instance: Some(mirror.instance),
                address: to.live.address().clone(),
                share_bp: mirror.share_bp,
            })
        });
        let weights: Vec<u16> = upstreams.iter().map(|u| u.weight_bp).collect();
        Self {
            schedule: Schedule::new(&weights, entropy()),
            version: table.version(),
            mirror,
            applied_at_ns: now_ns,
            upstreams,
            shares_upto,
        }
    }

    /// Makes what [`Snapshot::begin`] has left for later.
    pub(crate) fn complete(&self) {
        self.schedule.complete();
    }

    /// Stamp of the table.
    #[must_use]
    pub fn version(&self) -> Version {
        self.version
    }

    /// When the table came, `CLOCK_MONOTONIC` ns.
    #[must_use]
    pub fn applied_at_ns(&self) -> u64 {
        self.applied_at_ns
    }

    /// Its instances.
    #[must_use]
    #[inline]
    pub fn upstreams(&self) -> &[Upstream] {
        &self.upstreams
    }

    /// Where copies of requests go, by the table.
    #[must_use]
    pub fn mirror(&self) -> Option<&MirrorTo> {
        self.mirror.as_ref()
    }

    /// Line of `instance`.
    #[must_use]
    pub fn upstream(&self, instance: InstanceId) -> Option<&Upstream> {
        self.upstreams.iter().find(|u| u.instance == instance)
    }

    /// Turns by the weights.
    #[must_use]
    #[inline]
    pub fn schedule(&self) -> &Schedule {
        &self.schedule
    }

    /// Index of the instance whose share holds the point `ticket` (2^64 = 1). Past the end where
    /// no instance has a weight.
    #[must_use]
    #[inline]
    pub(crate) fn share_at(&self, ticket: u64) -> usize {
        let point = ((u128::from(ticket) * u128::from(FULL_BP)) >> 64) as u32;
        // Counting instead of searching: no branch to mispredict, and it vectorises.
        self.shares_upto
            .iter()
            .map(|&upto| usize::from(upto <= point))
            .sum()
    }

    /// Where in the share of instance `at` the point `ticket` lies, 0..2^64 from its start to its
    /// end; `ticket` itself where there is no such share.
    #[must_use]
    pub(crate) fn place_in_share(&self, ticket: u64, at: usize) -> u64 {
        let Some(upstream) = self.upstreams.get(at).filter(|u| u.weight_bp > 0) else {
            return ticket;
        };
        let width = u128::from(upstream.weight_bp);
        let start = u128::from(self.shares_upto[at]) - width;
        let point = u128::from(ticket) * u128::from(FULL_BP);
        (point.saturating_sub(start << 64) / width) as u64
    }
}
