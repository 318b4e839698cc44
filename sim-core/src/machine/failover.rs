//! Ends: asked for or not. The proxies have already acted; here roles, fences and records follow.

use super::instance::State;
use super::outbox::Outbox;
use super::workload::{Phase, Workload};
use crate::command::Command;
use crate::event::ExitCause;
use crate::journal::Kind;
use crate::name::InstanceId;
use crate::policy::Policy;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

/// A primary that served for so long has not failed at its start.
pub(super) const LIFE: Duration = Duration::from_secs(60);
/// Pause before a service that is down is started again, doubled for each failed life in a row.
const RESTART_PAUSE: Duration = Duration::from_secs(1);
const RESTART_PAUSE_MAX: Duration = Duration::from_secs(60);

fn describe(cause: &ExitCause) -> String {
    match cause {
        ExitCause::Code(code) => format!("exit code {code}"),
        ExitCause::Signal(signal) => format!("signal {signal}"),
        ExitCause::OutOfMemory(limit_bytes) => format!(
            "killed by the kernel: more memory wanted than its limit of {} MiB (workload.memory_mib)",
            limit_bytes >> 20
        ),
        ExitCause::NotStarted(why) => why.clone(),
        ExitCause::NodeLost => "its server is gone or has forgotten it".into(),
    }
}

impl Workload {
    pub(crate) fn exited(
        &mut self,
        out: &mut Outbox,
        policy: &Policy,
        id: InstanceId,
        cause: &ExitCause,
        expected: bool,
    ) {
        let Some(instance) = self.instances.get_mut(&id) else {
            return;
        };
        if instance.state == State::Gone {
            return;
        }
        let expected = expected || instance.state == State::Stopping;
        let was_ready = instance.state == State::Ready;
        let lived = out.now.since(instance.asked_at);
        let (server, cpus) = (instance.server.clone(), instance.cpus);
        instance.state = State::Gone;
        if !expected {
            let reason = format!("{id} on {server} died: {}", describe(cause));
            self.last_death = Some(reason.clone());
            self.record(out, Kind::Died, Some(id), reason, None);
            // Whatever is left of it must not serve on: the fence.
            let grace = Duration::ZERO;
            out.command(Command::Stop {
                instance: id,
                server: server.clone(),
                grace,
            });
        }
        if self.primary == Some(id) {
            self.failed_lives = if was_ready && lived >= LIFE {
                0
            } else {
                self.failed_lives.saturating_add(1)
            };
            self.primary_gone(out, policy, id);
        } else if self.shadow == Some(id) {
            self.shadow_gone(out, policy, cause, was_ready);
        } else if self.retiring == Some(id) {
            self.retiring = None;
            self.publish(out, policy, true);
            let reason = format!("{id} ended; {cpus:.2} CPUs given back to {server}");
            self.record(out, Kind::Reclaimed, Some(id), reason, None);
            if matches!(self.phase, Phase::Draining | Phase::Baking) {
                self.settle_again(out);
                if self.bake {
                    // A shadow that was dismissed is no move.
                    self.next_move_at = out.now.after(Duration::from_millis(policy.move_pause_ms));
                }
            }
        }
        self.forget_gone();
    }

    fn primary_gone(&mut self, out: &mut Outbox, policy: &Policy, id: InstanceId) {
        self.primary = None;
        let heir = if self.is_healthy(self.shadow) {
            self.shadow.take()
        } else if self.is_healthy(self.retiring) {
            self.retiring.take()
        } else {
            None
        };
        self.shadow_bp = 0;
        self.saturated = 0;
        let Some(heir) = heir else {
            self.publish(out, policy, true);
            // Pauses are for moves: a service that is down is started again soon, unless that has been
            // of no use again and again.
            self.next_start_at = out.now.after(self.restart_pause());
            if self.shadow.is_none() {
                self.enter(out, Phase::Baseline);
            }
            return;
        };
        self.primary = Some(heir);
        self.publish(out, policy, true);
        let reason = format!("{heir} takes over from {id}, which is fenced");
        self.record(out, Kind::Failover, Some(heir), reason, None);
        if self.retiring.is_none() {
            self.settle_again(out);
        }
    }

    /// From a primary's death without an heir to the next start.
    pub(super) fn restart_pause(&self) -> Duration {
        let doublings = self.failed_lives.saturating_sub(1).min(16);
        RESTART_PAUSE
            .saturating_mul(1 << doublings)
            .min(RESTART_PAUSE_MAX)
    }

    fn shadow_gone(
        &mut self,
        out: &mut Outbox,
        policy: &Policy,
        cause: &ExitCause,
        was_ready: bool,
    ) {
        if !was_ready {
            self.note_failed_start(out);
        }
        let shadow = self.shadow.take();
        self.shadow_bp = 0;
        if was_ready {
            self.publish(out, policy, true);
        }
        let moving = matches!(
            self.phase,
            Phase::Creating | Phase::Warming | Phase::Shifting
        );
        if moving {
            let reason = format!("the shadow ended: {}", describe(cause));
            self.record(out, Kind::Abort, shadow, reason, None);
            self.settle_again(out);
        }
        let pause = Duration::from_millis(policy.move_pause_ms);
        self.next_move_at = out.now.after(pause);
        self.next_start_at = self.next_move_at;
    }

    /// The whole run ends, and every instance with it: none of these ends is a death.
    pub(super) fn close(&mut self, out: &mut Outbox, policy: &Policy) {
        let running: Vec<String> = self.instances.keys().map(|id| format!("{id}")).collect();
        let reason = if running.is_empty() {
            "SIM ends".into()
        } else {
            format!("SIM ends, and with it {}", running.join(", "))
        };
        self.record(out, Kind::Operator, self.primary, reason, None);
        self.instances.clear();
        (self.primary, self.shadow, self.retiring) = (None, None, None);
        self.shadow_bp = 0;
        self.saturated = 0;
        self.failed_lives = 0;
        self.frozen = false;
        self.bake = false;
        // Pauses between moves and tries are of a run.
        self.next_move_at = out.now;
        self.next_start_at = out.now;
        self.settle_again(out);
        // A proxy of the next run must not begin with addresses of this one.
        self.publish(out, policy, true);
    }

    /// Back to Steady, or to Baseline where that was never over.
    pub(super) fn settle_again(&mut self, out: &Outbox) {
        self.enter(
            out,
            if self.calibrated {
                Phase::Steady
            } else {
                Phase::Baseline
            },
        );
    }
}
