//! How long an answer usually takes, from the workload's own latencies of late: who waits longer is better off asking
//! a second instance as well.
//!
//! Where two can't be asked at once, the first is given up instead, after many times as long (`late`): at the quantile
//! itself one in a hundred would be done twice for nothing.
//!
//! The quantile is of first attempts. One that is overtaken counts with the time that it had by then, so that the
//! tail isn't cut off where the hedging begins, and the moment doesn't creep forward.

mod moment;

pub(crate) use moment::Overdue;

use crate::clock::nanos;
use crate::config::HedgeSettings;
use crate::dispatch::Dispatch;
use crate::live::InstanceLive;
use crate::routes::Routes;
use crate::workloads::Workloads;
use async_trait::async_trait;
use pingora_core::server::ShutdownWatch;
use pingora_core::services::background::BackgroundService;
use sim_core::histogram::bucket_low_micros;
use sim_core::name::InstanceId;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::sleep;

/// Time between two looks.
const LOOK: Duration = Duration::from_secs(1);
/// Looks that are kept: a minute.
const LOOKS_MAX: usize = 60;
/// Answers that a quantile is taken of if so many came within a minute: of the last seconds alone, if they had as many.
const ANSWERS_WANTED: u64 = 1_000;
/// With fewer there is none: the highest of a few is no measure of what is late.
const ANSWERS_MIN: u64 = 100;

/// The service that keeps it up to date.
pub(crate) struct Follow {
    pub(crate) settings: HedgeSettings,
    pub(crate) workloads: Arc<Workloads>,
}

#[async_trait]
impl BackgroundService for Follow {
    async fn start(&self, mut stop: ShutdownWatch) {
        let follow = |of: &Arc<Dispatch>| (of.clone(), Follower::new(self.settings));
        let mut followers: Vec<_> = self.workloads.iter().map(follow).collect();
        loop {
            for (of, follower) in &mut followers {
                follower.look(&of.routes);
            }
            tokio::select! {
                _ = stop.wait_for(|&stop| stop) => return,
                () = sleep(LOOK) => {}
            }
        }
    }
}

/// Latencies counted by bucket, by instance.
type Reading = HashMap<InstanceId, Box<[u64]>>;

/// Follows the latencies.
#[derive(Debug)]
struct Follower {
    settings: HedgeSettings,
    /// The newest comes last.
    readings: VecDeque<Reading>,
}

impl Follower {
    fn new(settings: HedgeSettings) -> Self {
        Self {
            settings,
            readings: VecDeque::new(),
        }
    }

    /// To be called every [`LOOK`].
    fn look(&mut self, routes: &Routes) {
        let after_ns = self.next(&routes.known());
        routes.overdue().set(after_ns, self.settings.late_factor);
    }

    fn next(&mut self, instances: &[Arc<InstanceLive>]) -> Option<u64> {
        if self.settings.quantile == 0.0 {
            return None;
        }
        let now: Reading = instances
            .iter()
            .map(|live| (live.id(), live.latencies()))
            .collect();
        // The shortest time with enough answers.
        let mut counts = Vec::new();
        for then in self.readings.iter().rev() {
            counts = since(&now, then);
            if counts.iter().sum::<u64>() >= ANSWERS_WANTED {
                break;
            }
        }
        self.readings.push_back(now);
        if self.readings.len() > LOOKS_MAX {
            self.readings.pop_front();
        }
        let micros = quantile_micros(&counts, self.settings.quantile)?;
        Some((micros * 1_000).max(nanos(self.settings.floor)))
    }
}

/// What was counted between two readings, all instances together.
fn since(now: &Reading, then: &Reading) -> Vec<u64> {
    let mut sum = Vec::new();
    for (instance, counts) in now {
        sum.resize(counts.len(), 0);
        let before = then.get(instance);
        for (at, (sum, count)) in sum.iter_mut().zip(counts).enumerate() {
            let before = before.and_then(|before| before.get(at)).copied();
            *sum += count.saturating_sub(before.unwrap_or(0));
        }
    }
    sum
}

/// Upper end of the bucket that holds the quantile.
fn quantile_micros(counts: &[u64], quantile: f64) -> Option<u64> {
    let total: u64 = counts.iter().sum();
    if total < ANSWERS_MIN {
        return None;
    }
    let rank = (total as f64 * quantile).ceil() as u64;
    let mut below = 0;
    let bucket = counts.iter().position(|count| {
        below += count;
        below >= rank
    })?;
    Some(bucket_low_micros(bucket + 1))
}

#[cfg(test)]
mod false_ejections;

#[cfg(test)]
mod tests {
    use super::*;

    const SETTINGS: HedgeSettings = HedgeSettings {
        quantile: 0.99,
        floor: Duration::from_millis(2),
        late_factor: 10,
    };

    fn instances() -> [Arc<InstanceLive>; 2] {
        [1, 2].map(|id| Arc::new(InstanceLive::new(InstanceId(id))))
    }

    #[test]
    fn it_is_the_quantile_of_all_instances_of_late_and_no_less_than_the_floor() {
        let (both, mut follower) = (instances(), Follower::new(SETTINGS));
        assert_eq!(follower.next(&both), None);
        for n in 0..1_000 {
            both[n % 2].record_latency(if n < 980 { 500 } else { 30_000 });
        }
        let after_ns = follower.next(&both).expect("enough");
        assert!((30_000_000..31_000_000).contains(&after_ns), "{after_ns}");
        // Later all are fast.
        (0..1_000).for_each(|_| both[0].record_latency(500));
        assert_eq!(follower.next(&both), Some(2_000_000));
    }

    #[test]
    fn few_answers_are_gathered_for_a_minute_and_too_few_say_nothing() {
        let (both, mut follower) = (instances(), Follower::new(SETTINGS));
        follower.next(&both);
        for _ in 0..9 {
            (0..11).for_each(|_| both[0].record_latency(5_000));
            assert_eq!(follower.next(&both), None);
        }
        (0..11).for_each(|_| both[1].record_latency(5_000));
        assert!(follower.next(&both).is_some_and(|ns| ns > 5_000_000));
        for _ in 0..LOOKS_MAX {
            follower.next(&both);
        }
        assert_eq!(follower.next(&both), None, "forgotten");
    }

    #[test]
    fn an_instance_that_left_takes_nothing_away() {
        let (both, mut follower) = (instances(), Follower::new(SETTINGS));
        follower.next(&both);
        (0..500).for_each(|_| both[0].record_latency(5_000));
        follower.next(&both);
        (0..200).for_each(|_| both[1].record_latency(5_000));
        assert!(follower.next(&both[1..]).is_some_and(|ns| ns > 5_000_000));
    }

    #[test]
    fn it_can_be_switched_off() {
        let off = HedgeSettings {
            quantile: 0.0,
            ..SETTINGS
        };
        let (both, mut follower) = (instances(), Follower::new(off));
        follower.next(&both);
        (0..5_000).for_each(|_| both[0].record_latency(5_000));
        assert_eq!(follower.next(&both), None);
    }
}
