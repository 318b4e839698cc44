//! Active checks: instances are asked whether they are well, also while no user does.
//!
//! They take an instance out that fails some in a row, and bring it back after as many that it passes; an ejected one
//! too, before its time, if the check was answered by the service itself. The last one that is in stays in, whatever
//! they say. A service of its own asks; no request waits for it.

mod ask;

use crate::config::CheckSettings;
use crate::dispatch::Dispatch;
use crate::live::InstanceLive;
use crate::tickets::entropy;
use crate::workloads::Workloads;
use async_trait::async_trait;
use pingora_core::server::ShutdownWatch;
use pingora_core::services::background::BackgroundService;
use sim_core::address::Address;
use sim_core::name::InstanceId;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{sleep, timeout};

/// Between two looks for instances that have come or gone.
const LOOK: Duration = Duration::from_millis(100);

/// Checks the instances of all workloads.
pub(crate) struct Checks {
    pub(crate) settings: CheckSettings,
    pub(crate) workloads: Arc<Workloads>,
}

/// One that is checked: its workload's place, and where it listens.
type Checked = (usize, InstanceId, Address);

#[async_trait]
impl BackgroundService for Checks {
    async fn start(&self, mut stop: ShutdownWatch) {
        // Their end is the set's.
        let mut tasks = JoinSet::new();
        let mut running: HashMap<Checked, AbortHandle> = HashMap::new();
        loop {
            let mut wanted = HashMap::new();
            for (place, dispatch) in self.workloads.iter().enumerate() {
                let snapshot = dispatch.routes.snapshot();
                for upstream in snapshot.upstreams().iter().filter(|u| u.ready) {
                    let one = (place, upstream.instance, upstream.live.address().clone());
                    wanted.insert(one, (dispatch.clone(), upstream.live.clone()));
                }
            }
            running.retain(|one, task| {
                let stays = wanted.contains_key(one);
                if !stays {
                    task.abort();
                }
                stays
            });
            for (one, (dispatch, live)) in wanted {
                running.entry(one).or_insert_with(|| {
                    let settings = self.settings.clone();
                    tasks.spawn(follow(settings, dispatch, live))
                });
            }
            while tasks.try_join_next().is_some() {}
            tokio::select! {
                _ = stop.wait_for(|&stop| stop) => return,
                () = sleep(LOOK) => {}
            }
        }
    }
}

/// Part of an interval, so that neither proxies nor instances are in step.
fn jittered(interval: Duration, from: f64, to: f64) -> Duration {
    let drawn = entropy() as f64 / u64::MAX as f64;
    interval.mul_f64(from + (to - from) * drawn)
}

/// Checks one instance for as long as it is in the table.
async fn follow(settings: CheckSettings, dispatch: Arc<Dispatch>, live: Arc<InstanceLive>) {
    sleep(jittered(settings.interval, 0.0, 1.0)).await;
    let mut row = Row::default();
    loop {
        let asking = ask::ask(&settings.kind, live.address(), &dispatch);
        let asked = timeout(settings.timeout, asking).await;
        let failure = match asked {
            Ok(Ok(())) => None,
            Ok(Err(failure)) => Some(failure.to_string()),
            Err(_) => Some("no answer in time".to_owned()),
        };
        live.checked().count(failure.is_none());
        match row.next(&settings, failure.is_none(), dispatch.routes.is_out(&live)) {
            Verdict::Out => dispatch
                .routes
                .check_fell(&live, &failure.unwrap_or_default()),
            Verdict::Back => dispatch
                .routes
                .check_rose(&live, settings.kind.is_answered()),
            Verdict::Nothing => {}
        }
        sleep(jittered(settings.interval, 0.9, 1.1)).await;
    }
}

/// What a check leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Nothing,
    Out,
    Back,
}

/// Checks in a row.
#[derive(Debug, Default)]
struct Row {
    /// Passed while the instance is out.
    passed: u32,
    failed: u32,
}

impl Row {
    fn next(&mut self, settings: &CheckSettings, passed: bool, is_out: bool) -> Verdict {
        if !passed {
            self.passed = 0;
            self.failed = self.failed.saturating_add(1);
            // Again at each further one: there may be another by then.
            if self.failed >= settings.fall {
                return Verdict::Out;
            }
            return Verdict::Nothing;
        }
        self.failed = 0;
        // What was passed before it went out says nothing of now.
        self.passed = if is_out { self.passed + 1 } else { 0 };
        if self.passed < settings.rise {
            return Verdict::Nothing;
        }
        self.passed = 0;
        if is_out {
            Verdict::Back
        } else {
            Verdict::Nothing
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::CheckKind;

    #[test]
    fn some_in_a_row_take_it_out_and_some_bring_it_back() {
        let settings = CheckSettings {
            kind: CheckKind::Tcp,
            interval: Duration::from_secs(1),
            timeout: Duration::from_secs(1),
            rise: 2,
            fall: 3,
        };
        let mut row = Row::default();
        let mut next = |passed, is_out| row.next(&settings, passed, is_out);
        for _ in 0..2 {
            assert_eq!(next(false, false), Verdict::Nothing);
            assert_eq!(next(false, false), Verdict::Nothing);
            assert_eq!(next(true, false), Verdict::Nothing);
        }
        assert_eq!(next(false, false), Verdict::Nothing);
        assert_eq!(next(false, false), Verdict::Nothing);
        assert_eq!(next(false, false), Verdict::Out);
        // It was the last one that time.
        assert_eq!(next(false, false), Verdict::Out);
        assert_eq!(next(true, true), Verdict::Nothing);
        assert_eq!(next(false, true), Verdict::Nothing);
        assert_eq!(next(true, true), Verdict::Nothing);
        assert_eq!(next(true, true), Verdict::Back);
        assert_eq!(next(true, false), Verdict::Nothing);
    }
}
