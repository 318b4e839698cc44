//! What SIM does for a request beside passing it on, a given number of times, for callgrind to count.
//!
//! The modules below are production's own files, compiled without the rest of `sim-proxy`, so that an optimised build of
//! them takes seconds. `cargo xtask bench instructions` runs this twice and takes the difference.
#![cfg(not(test))]
#![allow(
    dead_code,
    unreachable_pub,
    reason = "a part of each module is measured; sim-proxy's own build finds what nobody needs"
)]

mod clock;
mod flags;
mod overdue;

// rustfmt would look for these files' tests beside this one. It formats them where they belong.
#[rustfmt::skip]
#[path = "../../src/attempt.rs"]
mod attempt;
#[rustfmt::skip]
#[path = "../../src/config/eject.rs"]
mod config;
#[rustfmt::skip]
#[path = "../../src/checked.rs"]
mod checked;
#[rustfmt::skip]
#[path = "../../src/errors.rs"]
mod errors;
#[rustfmt::skip]
#[path = "../../src/health.rs"]
mod health;
#[rustfmt::skip]
#[path = "../../src/live.rs"]
mod live;
#[rustfmt::skip]
#[path = "../../src/pace.rs"]
mod pace;
#[rustfmt::skip]
#[path = "../../src/pick.rs"]
mod pick;
#[rustfmt::skip]
#[path = "../../src/policy.rs"]
mod policy;
#[rustfmt::skip]
#[path = "../../src/quantiles.rs"]
mod quantiles;
#[rustfmt::skip]
#[path = "../../src/ramp.rs"]
mod ramp;
#[rustfmt::skip]
#[path = "../../src/routes.rs"]
mod routes;
#[rustfmt::skip]
#[path = "../../src/schedule.rs"]
mod schedule;
#[rustfmt::skip]
#[path = "../../src/snapshot.rs"]
mod snapshot;
#[rustfmt::skip]
#[path = "../../src/sticky.rs"]
mod sticky;
#[rustfmt::skip]
#[path = "../../src/sync.rs"]
mod sync;
#[rustfmt::skip]
#[path = "../../src/tickets.rs"]
mod tickets;

use anyhow::{Context as _, Result, bail, ensure};
use clock::monotonic_ns;
use config::EjectSettings;
use live::Outcome;
use policy::{POLICIES, Policy};
use routes::{Entry, Routes};
use sim_core::name::{InstanceId, WorkloadName};
use sim_core::table::{Share, Version, WeightTable};
use std::hint::black_box;
use std::sync::Arc;
use sticky::SessionKey;

/// The policy's name for requests that stay by a header field.
const STICKY: &str = "sticky";
/// And for requests that are not asked for at all: what remains is what the others have to be compared with.
const NONE: &str = "none";

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut next = || arguments.next().context("POLICY REQUESTS");
    let (policy, requests) = (next()?, next()?.parse::<u64>().context("REQUESTS")?);
    let known = POLICIES.iter().find(|(_, name)| *name == policy);
    let session = (policy == STICKY).then_some(b"a session's name");
    let policy = match (known, session) {
        (Some((policy, _)), _) => *policy,
        (None, Some(_)) => Policy::Weighted,
        (None, None) if policy == NONE => return nothing(requests),
        (None, None) => bail!("{policy}: no such policy"),
    };
    let routes = Routes::new(WorkloadName::new("web")?, EjectSettings::default()).by(policy);
    let share = |(id, weight_bp)| Share {
        instance: InstanceId(id),
        address: ([127, 0, 0, 1], 8_080).into(),
        weight_bp,
        ready: true,
    };
    let version = Version {
        epoch: 1,
        generation: 1,
    };
    let shares = [(1, 9_500), (2, 500)].map(share);
    let table = WeightTable::new(WorkloadName::new("web")?, version, shares.to_vec())?;
    routes.apply(&table)?;
    let flags = Arc::new(flags::new().context("no array of life flags")?);
    for live in routes.known() {
        live.watch(flags.clone());
    }
    for _ in 0..requests {
        let session = session.map(|name| SessionKey::of(black_box(name)));
        one(&routes, session);
    }
    let counted: u64 = routes.known().iter().map(|l| l.totals().first.ok).sum();
    ensure!(counted == requests, "{counted} requests counted");
    Ok(())
}

/// The loop and the clock.
fn nothing(requests: u64) -> Result<()> {
    for _ in 0..requests {
        black_box((monotonic_ns(), monotonic_ns()));
    }
    Ok(())
}

/// What the fast path does for a GET that is answered, in its order.
#[inline]
fn one(routes: &Routes, session: Option<SessionKey>) {
    let entry = Entry {
        not: None,
        may_probe: true,
        first: true,
        session,
    };
    let Some(mut attempt) = routes.enter(entry) else {
        return;
    };
    black_box(routes.overdue().after_ns());
    // Looked at once while the answer is waited for.
    if attempt.live().is_down() {
        return;
    }
    routes.attempt_succeeded(&attempt);
    attempt.end(Outcome::Ok, Some(monotonic_ns()));
}
