//! What the first primary used, second by second: tells a machine that became dearer from a bad move.
//!
//! The demonstration runs on one machine, whose virtual CPUs may become half as fast for a few seconds.
//! A primary that its load has filled by three quarters is then full, whatever SIM does. So the
//! tail during a move is only excused where this is seen to have happened: the primary used up its
//! CPU share, and at the price of a request before the move it would not have.

use std::time::{Duration, Instant};

use anyhow::Result;
use serde::{Deserialize, Serialize};
use sim_core::time::Time;

use super::settings::CPUS;
use super::sim::answered;
use crate::load::request::HttpClient;

/// How often it is looked at.
const INTERVAL: Duration = Duration::from_secs(1);
/// Share of the quota at which requests begin to wait for the next period.
const FULL: f64 = 0.85;

/// A request costs this many times as much CPU as before the move, at least.
const DEARER: f64 = 1.2;

/// One look.
#[derive(Clone, Copy, Debug)]
struct Look {
    at: Time,
    cpu_seconds: f64,
    answered: u64,
}

/// The looks at one instance.
#[derive(Debug)]
pub struct PrimaryWatch {
    instance: u64,
    process_group: u32,
    looks: Vec<Look>,
    next: Instant,
}

/// A moment at which the primary was full for no reason but the price of a request.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct DearMoment {
    /// Its end.
    pub at: Time,
    /// CPU time a request before the move, in milliseconds.
    pub before_ms: f64,
    /// CPU time a request in it, in milliseconds.
    pub then_ms: f64,
    /// Share of the quota used in it.
    pub used: f64,
}

impl PrimaryWatch {
    /// Of the instance with that process group.
    #[must_use]
    pub fn new(instance: u64, process_group: u32) -> Self {
        Self {
            instance,
            process_group,
            looks: Vec::new(),
            next: Instant::now(),
        }
    }

    /// Looks, if it is time to. An instance that is gone is not looked at any more.
    ///
    /// # Errors
    /// The proxy serves no metrics.
    pub async fn look(
        &mut self,
        at: Time,
        client: &HttpClient,
        admin: std::net::SocketAddr,
    ) -> Result<()> {
        if Instant::now() < self.next {
            return Ok(());
        }
        self.next = Instant::now() + INTERVAL;
        let Ok(usage) = sim_node::process_group_usage(self.process_group) else {
            return Ok(());
        };
        if let Some(answered) = answered(client, admin, self.instance).await? {
            self.looks.push(Look {
                at,
                cpu_seconds: usage.cpu_micros as f64 / 1e6,
                answered,
            });
        }
        Ok(())
    }

    /// The worst such moment between `from` and `to`, if there was one.
    #[must_use]
    pub fn dear_moment(&self, from: Time, to: Time) -> Option<DearMoment> {
        let before: Vec<&Look> = self.looks.iter().filter(|look| look.at < from).collect();
        let (first, last) = (before.first()?, before.last()?);
        let (_, before_seconds, before_requests) = spent(first, last)?;
        let before_ms = before_seconds / before_requests * 1e3;
        let during = self
            .looks
            .windows(2)
            .filter(|w| w[0].at >= from && w[1].at <= to);
        during
            .filter_map(|w| {
                let (seconds, cpu_seconds, requests) = spent(&w[0], &w[1])?;
                let quota_seconds = seconds * CPUS;
                let moment = DearMoment {
                    at: w[1].at,
                    before_ms,
                    then_ms: cpu_seconds / requests * 1e3,
                    used: cpu_seconds / quota_seconds,
                };
                let at_old_price = requests * before_ms / 1e3 / quota_seconds;
                let dearer = moment.then_ms >= DEARER * before_ms;
                (dearer && moment.used >= FULL && at_old_price < FULL).then_some(moment)
            })
            .max_by(|a, b| a.then_ms.total_cmp(&b.then_ms))
    }
}

/// Seconds, CPU seconds and requests between two looks; none where one of them is nothing.
fn spent(from: &Look, to: &Look) -> Option<(f64, f64, f64)> {
    let seconds = to.at.since(from.at).as_secs_f64();
    let cpu_seconds = to.cpu_seconds - from.cpu_seconds;
    let requests = to.answered.saturating_sub(from.answered) as f64;
    (seconds > 0.0 && cpu_seconds > 0.0 && requests > 0.0).then_some((
        seconds,
        cpu_seconds,
        requests,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A look a second, at `(requests a second, CPU milliseconds a request)`.
    fn watch(seconds: &[(u64, f64)]) -> PrimaryWatch {
        let mut watch = PrimaryWatch::new(1, 1);
        let mut look = Look {
            at: Time(0),
            cpu_seconds: 0.0,
            answered: 0,
        };
        watch.looks.push(look);
        for &(requests, ms) in seconds {
            look.at = Time(look.at.0 + 1_000_000);
            look.cpu_seconds += requests as f64 * ms / 1e3;
            look.answered += requests;
            watch.looks.push(look);
        }
        watch
    }

    fn judge(during: (u64, f64)) -> Option<DearMoment> {
        let mut seconds = vec![(100, 1.0); 10];
        seconds.extend([(150, 1.05), during, (150, 1.0)]);
        watch(&seconds).dear_moment(Time(10_500_000), Time(u64::MAX))
    }

    #[test]
    fn a_full_primary_is_excused_by_a_dear_request_and_not_by_many_requests() {
        let moment = judge((150, 1.6)).expect("dear");
        assert_eq!(moment.at, Time(12_000_000));
        assert!((moment.before_ms - 1.0).abs() < 1e-6 && (moment.used - 0.96).abs() < 1e-6);
        assert_eq!(judge((240, 1.0)), None, "too many requests came");
        assert_eq!(judge((120, 1.6)), None, "dear, but not full");
        assert_eq!(judge((205, 1.1)), None, "full, but hardly dearer");
        assert_eq!(judge((150, 1.0)), None, "neither");
    }

    #[test]
    fn without_a_look_before_the_move_nothing_is_excused() {
        assert_eq!(
            watch(&[(150, 1.6)]).dear_moment(Time(0), Time(u64::MAX)),
            None
        );
    }
}
