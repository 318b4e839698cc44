//! Which server a shadow goes to: filter, then score.
//!
//! The score is what the shadow will cost there an hour, raised by how full the server gets (a
//! full server is a worse neighbour and has no room for the next surprise). Lower is better.

use crate::journal::Candidate;
use crate::name::ServerName;
use crate::server::ServerSpec;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

/// How much the square of the server's utilisation after the move raises the price.
const CROWDING: f64 = 1.0;
/// Added to every price, so that among servers that cost nothing the emptiest wins.
const PRICE_MIN: f64 = 1e-6;

/// What is asked of a server.
#[derive(Clone, Debug, PartialEq)]
pub struct Ask<'a> {
    /// CPUs that the forecast's upper quantile will use.
    pub load_cpus: f64,
    /// Quota wanted, so that `load_cpus` is the target utilisation of it.
    pub cpus: f64,
    /// Smallest quota that makes a move worth while.
    pub cpus_min: f64,
    /// Memory wanted, in bytes.
    pub memory_bytes: u64,
    /// Where the primary is.
    pub primary: Option<&'a ServerSpec>,
}

/// A server as it stands.
#[derive(Clone, Debug, PartialEq)]
pub struct Offer<'a> {
    /// What it is.
    pub spec: &'a ServerSpec,
    /// Its node is connected.
    pub up: bool,
    /// An instance failed to come up there lately.
    pub failed_start: bool,
    /// CPUs not promised to any instance.
    pub cpus_free: f64,
    /// Memory not promised to any instance, in bytes.
    pub memory_free_bytes: u64,
}

/// The chosen server and quota, if one fits, and every candidate with its score or refusal,
/// best first.
#[must_use]
pub fn place(ask: &Ask<'_>, offers: &[Offer<'_>]) -> (Option<(ServerName, f64)>, Vec<Candidate>) {
    let mut candidates: Vec<Candidate> = offers.iter().map(|offer| score(ask, offer)).collect();
    candidates.sort_by(|a, b| {
        let key = |c: &Candidate| c.score.unwrap_or(f64::INFINITY);
        key(a)
            .total_cmp(&key(b))
            .then_with(|| a.server.cmp(&b.server))
    });
    let best = candidates.first().filter(|c| c.score.is_some());
    (best.map(|c| (c.server.clone(), c.cpus)), candidates)
}

fn score(ask: &Ask<'_>, offer: &Offer<'_>) -> Candidate {
    let spec = offer.spec;
    let cpus = ask.cpus.min(offer.cpus_free);
    // Finite even where no CPU is left: the journal is read by tools that know no infinity.
    let utilisation = ask.load_cpus / cpus.max(0.001);
    let (score, why) = match refusal(ask, offer) {
        Some(why) => (None, why),
        None => {
            let share = spec.price_per_hour * cpus / spec.cpus;
            let crowded = (spec.cpus - offer.cpus_free + ask.load_cpus) / spec.cpus;
            let score = (share + PRICE_MIN) * (1.0 + CROWDING * crowded * crowded);
            let tight = if cpus < ask.cpus {
                ", less than asked"
            } else {
                ""
            };
            let why = format!(
                "{share:.3}/h for {cpus:.2} CPUs{tight}; {:.0} % utilised at the horizon, server {:.0} % full",
                utilisation * 100.0,
                crowded * 100.0
            );
            (Some(score), why)
        }
    };
    Candidate {
        server: spec.name.clone(),
        score,
        cpus,
        utilisation,
        why,
    }
}

fn refusal(ask: &Ask<'_>, offer: &Offer<'_>) -> Option<String> {
    let spec = offer.spec;
    if let Some(primary) = ask.primary {
        if primary.name == spec.name {
            return Some("holds the primary".into());
        }
        if primary.failure_domain == spec.failure_domain {
            return Some(format!(
                "same failure domain as the primary ({})",
                spec.failure_domain
            ));
        }
    }
    if !offer.up {
        return Some("its node is not connected".into());
    }
    if offer.failed_start {
        return Some("an instance failed to come up there lately".into());
    }
    if offer.memory_free_bytes < ask.memory_bytes {
        return Some(format!(
            "{} MiB of memory free, {} asked",
            offer.memory_free_bytes >> 20,
            ask.memory_bytes >> 20
        ));
    }
    (offer.cpus_free < ask.cpus_min).then(|| {
        format!(
            "{:.2} CPUs free, at least {:.2} asked",
            offer.cpus_free, ask.cpus_min
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::net::{IpAddr, Ipv4Addr};

    fn server(name: &str, cpus: f64, price_per_hour: f64) -> ServerSpec {
        ServerSpec {
            name: ServerName::new(name).expect("valid"),
            address: IpAddr::V4(Ipv4Addr::LOCALHOST),
            cpus,
            memory_bytes: 1 << 30,
            price_per_hour,
            failure_domain: name.into(),
        }
    }

    fn offer(spec: &ServerSpec) -> Offer<'_> {
        Offer {
            spec,
            up: true,
            failed_start: false,
            cpus_free: spec.cpus,
            memory_free_bytes: spec.memory_bytes,
        }
    }

    fn ask(primary: &ServerSpec) -> Ask<'_> {
        Ask {
            load_cpus: 0.3,
            cpus: 0.5,
            cpus_min: 0.3,
            memory_bytes: 1 << 20,
            primary: Some(primary),
        }
    }

    #[test]
    fn the_cheapest_that_fits_wins_and_every_refusal_says_why() {
        let home = server("home", 1.0, 0.01);
        let cheap = server("cheap", 1.0, 0.1);
        let dear = server("dear", 1.0, 0.4);
        let tiny = server("tiny", 0.2, 0.01);
        let gone = server("gone", 8.0, 0.01);
        let mut offers: Vec<_> = [&home, &dear, &cheap, &tiny].map(offer).into();
        offers.push(Offer {
            up: false,
            ..offer(&gone)
        });
        let (chosen, candidates) = place(&ask(&home), &offers);
        assert_eq!(chosen.map(|(s, _)| s), Some(cheap.name.clone()));
        assert_eq!(candidates[0].server, cheap.name);
        for refused in &candidates[2..] {
            assert!(
                refused.score.is_none() && !refused.why.is_empty(),
                "{refused:?}"
            );
        }
    }

    #[test]
    fn the_primarys_failure_domain_is_refused() {
        let home = server("home", 1.0, 0.01);
        let other = ServerSpec {
            failure_domain: "home".into(),
            ..server("other", 4.0, 0.01)
        };
        let (chosen, candidates) = place(&ask(&home), &[offer(&other)]);
        assert_eq!(chosen, None);
        assert!(candidates[0].why.contains("failure domain"));
    }

    #[test]
    fn a_crowded_server_loses_to_an_empty_one_of_the_same_price_also_where_that_is_nothing() {
        let home = server("home", 1.0, 0.01);
        for price_per_hour in [0.2, 0.0] {
            let (a, b) = (
                server("a", 2.0, price_per_hour),
                server("b", 2.0, price_per_hour),
            );
            let crowded = Offer {
                cpus_free: 0.7,
                ..offer(&a)
            };
            let (chosen, _) = place(&ask(&home), &[crowded, offer(&b)]);
            assert_eq!(chosen.map(|(s, _)| s), Some(b.name), "{price_per_hour}");
        }
    }
}
