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
use crate::quantiles::LOOKS_MAX;
use crate::routes::Routes;
use crate::window::Window;
use crate::workloads::Workloads;
use async_trait::async_trait;
use pingora_core::server::ShutdownWatch;
use pingora_core::services::background::BackgroundService;
use sim_core::histogram::LatencyHistogram;
use sim_core::name::InstanceId;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::sleep;

/// Time between two looks.
const LOOK: Duration = Duration::from_secs(1);
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

/// Follows the latencies.
#[derive(Debug)]
struct Follower {
    settings: HedgeSettings,
    windows: HashMap<InstanceId, Window>,
}

impl Follower {
    fn new(settings: HedgeSettings) -> Self {
        Self {
            settings,
            windows: HashMap::new(),
        }
    }

    /// To be called every [`LOOK`].
    fn look(&mut self, routes: &Routes) {
        let after_ns = self.next(&routes.known());
        routes.overdue().set(after_ns, self.settings.late_factor);
    }

    fn next(&mut self, instances: &[Arc<InstanceLive>]) -> Option<u64> {
        self.windows
            .retain(|id, _| instances.iter().any(|live| live.id() == *id));
        for live in instances {
            self.windows.entry(live.id()).or_default().look(live);
        }
        if self.settings.quantile == 0.0 {
            return None;
        }
        // The shortest time with enough answers, all instances together.
        let mut counts = LatencyHistogram::default();
        for ago in 0..LOOKS_MAX {
            let all = self.windows.values().filter_map(|window| window.ago(ago));
            all.for_each(|one| counts.merge(one));
            if counts.count() >= ANSWERS_WANTED {
                break;
            }
        }
        if counts.count() < ANSWERS_MIN {
            return None;
        }
        let micros = counts.quantile_micros(self.settings.quantile)?;
        Some((micros * 1_000).max(nanos(self.settings.floor)))
    }
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
        [1, 2].map(|id| {
            Arc::new(InstanceLive::new(
                InstanceId(id),
                ([127, 0, 0, 1], 80).into(),
            ))
        })
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
