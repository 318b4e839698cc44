//! Which instance gets a request: pure, no lock, no allocation, a few nanoseconds.
//!
//! By the table where its choice is healthy. Where it isn't, the others share its part in
//! proportion to their weights; with none of them left, a ready instance of weight 0 (a warm
//! shadow) takes over; with all ejected, the one that was to come back first is used, since a
//! request that may fail is better than one that must. An instance that is not ready is never
//! picked; one that comes back gets a part of its weight at first ([`crate::ramp`]); one that the kernel says is dead or stopped is treated as ejected for as long.

use crate::health::Standing;
use crate::policy::Policy;
use crate::snapshot::{Snapshot, Upstream};
use crate::sticky::{self, SessionKey};
use sim_core::name::InstanceId;

/// Why an instance was picked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// By its weight.
    Share,
    /// By its weight, but its ejection has just ended: one request may find out, see
    /// [`crate::health::Health::claim_probe`].
    Probe,
    /// It stood by, and nothing better was left.
    Spare,
    /// All are ejected.
    Panic,
}

/// A choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pick {
    /// Index into [`Snapshot::upstreams`].
    pub at: usize,
    /// Why.
    pub how: How,
}

/// Picks for a first attempt. `ticket` is a point in 0..2^64 that stands for 0..1, see
/// [`crate::tickets`]; `None` where no instance is ready.
#[must_use]
#[inline]
pub fn pick(snapshot: &Snapshot, ticket: u64, now_ns: u64) -> Option<Pick> {
    let at = snapshot.share_at(ticket);
    match snapshot.upstreams().get(at) {
        Some(upstream) if upstream.live.is_whole() => Some(Pick {
            at,
            how: How::Share,
        }),
        _ => {
            // The tickets that come here all lie in one share; the place inside it is as even as the
            // ticket was, and runs over the whole range again.
            let place = snapshot.place_in_share(ticket, at);
            pick_around(snapshot, place, at, now_ns)
        }
    }
}

/// The same for who takes its turn at `place` of the snapshot's schedule: within one request of the weights at any time.
/// `ticket` is drawn where the instance doesn't get all of its share.
#[must_use]
#[inline]
pub fn pick_in_turn(
    snapshot: &Snapshot,
    place: u32,
    ticket: impl FnOnce() -> u64,
    now_ns: u64,
) -> Option<Pick> {
    let at = snapshot.schedule().at(place).unwrap_or(usize::MAX);
    match snapshot.upstreams().get(at) {
        Some(upstream) if upstream.live.is_whole() => Some(Pick {
            at,
            how: How::Share,
        }),
        // Of one share: the point is one in it.
        _ => pick_around(snapshot, ticket(), at, now_ns),
    }
}

/// Picks for a first attempt where more than the weights counts: see [`crate::policy`]. `other_ticket` is a
/// second point.
#[must_use]
pub fn pick_of_two(
    snapshot: &Snapshot,
    policy: Policy,
    ticket: u64,
    other_ticket: u64,
    now_ns: u64,
) -> Option<Pick> {
    let first = pick(snapshot, ticket, now_ns)?;
    let second = pick(snapshot, other_ticket, now_ns)?;
    // Only between healthy ones that have a share there is a choice.
    if first.at == second.at || (first.how, second.how) != (How::Share, How::Share) {
        return Some(first);
    }
    let (one, other) = (
        snapshot.upstreams().get(first.at)?,
        snapshot.upstreams().get(second.at)?,
    );
    let better = policy.prefers(one, other, now_ns);
    Some(if better { second } else { first })
}

/// Picks the instance of a session: see [`sticky`]. `ticket` decides where none with a weight is in.
#[must_use]
pub fn pick_of_session(
    snapshot: &Snapshot,
    key: SessionKey,
    ticket: u64,
    now_ns: u64,
    not: Option<InstanceId>,
) -> Option<Pick> {
    sticky::pick(snapshot.upstreams(), key, now_ns, not)
        .or_else(|| pick_among(snapshot.upstreams(), ticket, now_ns, not))
}

/// Picks for a retry, or for a request that lost the probe of `not`: any ready instance but that.
#[must_use]
pub fn pick_other(snapshot: &Snapshot, ticket: u64, now_ns: u64, not: InstanceId) -> Option<Pick> {
    pick_among(snapshot.upstreams(), ticket, now_ns, Some(not))
}

/// Picks where the pick by weight has as many requests as it may: one that is in and has fewer than `room` in flight.
#[must_use]
pub fn pick_with_room(
    snapshot: &Snapshot,
    ticket: u64,
    now_ns: u64,
    not: Option<InstanceId>,
    room: u64,
) -> Option<Pick> {
    let fits = |u: &Upstream| {
        let usable = u.ready && Some(u.instance) != not && u.live.in_flight() < room;
        u32::from(usable && u.live.standing(now_ns) == Standing::In)
    };
    let by_weight = |u: &Upstream| fits(u) * u32::from(u.weight_bp);
    if let Some(at) = choose(snapshot.upstreams(), ticket, by_weight) {
        return Some(Pick {
            at,
            how: How::Share,
        });
    }
    let at = choose(snapshot.upstreams(), ticket, fits)?;
    Some(Pick {
        at,
        how: How::Spare,
    })
}

/// True where a ready instance other than `not` is healthy.
#[must_use]
pub fn has_other(snapshot: &Snapshot, not: InstanceId) -> bool {
    let healthy = |u: &Upstream| u.ready && u.instance != not && u.live.is_in();
    snapshot.upstreams().iter().any(healthy)
}

/// True where a ready instance other than `not` may answer, though it is ejected: only the kernel's word is certain.
#[must_use]
pub fn has_last_resort(snapshot: &Snapshot, not: InstanceId) -> bool {
    let may_answer = |u: &Upstream| u.ready && u.instance != not && !u.live.is_down();
    snapshot.upstreams().iter().any(may_answer)
}

/// Picks where `at`, whose share is met at `place` (2^64 = 1), doesn't get all of it.
#[cold]
fn pick_around(snapshot: &Snapshot, place: u64, at: usize, now_ns: u64) -> Option<Pick> {
    let upstreams = snapshot.upstreams();
    let met = upstreams.get(at);
    match met.map(|met| (met, met.live.standing(now_ns))) {
        Some((_, Standing::ProbeDue)) => Some(Pick {
            at,
            how: How::Probe,
        }),
        Some((met, Standing::In)) => {
            let part = met.live.health().ramp().part(now_ns);
            let own = Pick {
                at,
                how: How::Share,
            };
            if place <= part {
                return Some(own);
            }
            // So does what is held back.
            let rest = u128::from(place - part) << 64;
            let rest = (rest / (u128::from(u64::MAX - part) + 1)) as u64;
            let other = pick_among(upstreams, rest, now_ns, Some(met.instance));
            other
                .filter(|pick| matches!(pick.how, How::Share | How::Spare))
                .or(Some(own))
        }
        Some((_, Standing::Out)) | None => pick_among(upstreams, place, now_ns, None),
    }
}

fn pick_among(
    upstreams: &[Upstream],
    ticket: u64,
    now_ns: u64,
    not: Option<InstanceId>,
) -> Option<Pick> {
    let usable = |u: &Upstream| u.ready && Some(u.instance) != not;
    let stands =
        |u: &Upstream, standing| u32::from(usable(u) && u.live.standing(now_ns) == standing);
    let by_weight = |u: &Upstream| {
        if u.weight_bp == 0 {
            return 0;
        }
        let part = u128::from(u.live.health().ramp().part(now_ns));
        let weight = (part * u128::from(u.weight_bp)) >> 64;
        stands(u, Standing::In) * (weight as u32 + 1)
    };
    if let Some(at) = choose(upstreams, ticket, by_weight) {
        return Some(Pick {
            at,
            how: How::Share,
        });
    }
    if let Some(at) = choose(upstreams, ticket, |u| stands(u, Standing::In)) {
        return Some(Pick {
            at,
            how: How::Spare,
        });
    }
    // A second attempt, or one that just lost a probe, is no probe.
    if not.is_none()
        && let Some(at) = choose(upstreams, ticket, |u| stands(u, Standing::ProbeDue))
    {
        return Some(Pick {
            at,
            how: How::Probe,
        });
    }
    let (at, _) = upstreams
        .iter()
        .enumerate()
        .filter(|(_, u)| usable(u))
        .min_by_key(|(_, u)| {
            let health = u.live.health();
            let is_out = health.checked().is_out();
            (u.live.is_down(), is_out, health.out_until_ns())
        })?;
    Some(Pick {
        at,
        how: How::Panic,
    })
}

/// The index whose part of the summed `weight`s holds the point `ticket`.
fn choose(upstreams: &[Upstream], ticket: u64, weight: impl Fn(&Upstream) -> u32) -> Option<usize> {
    let total: u32 = upstreams.iter().map(&weight).sum();
    let mut point = ((u128::from(ticket) * u128::from(total)) >> 64) as u32;
    // Health may change between the two passes; the last candidate then stands in.
    let mut last = None;
    for (at, upstream) in upstreams.iter().enumerate() {
        let part = weight(upstream);
        if part == 0 {
            continue;
        }
        if point < part {
            return Some(at);
        }
        point -= part;
        last = Some(at);
    }
    last
}

#[cfg(test)]
mod tests;
