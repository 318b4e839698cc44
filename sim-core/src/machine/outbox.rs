//! What one step asks for, while it is being put together.

use super::Outcome;
use crate::command::Command;
use crate::journal::Record;
use crate::name::{InstanceId, ServerName};
use crate::policy::Policy;
use crate::time::Time;
use core::time::Duration;

/// Collects commands and records of one step.
pub(crate) struct Outbox {
    pub(crate) now: Time,
    pub(crate) epoch: u64,
    outcome: Outcome,
}

impl Outbox {
    pub(crate) fn new(now: Time, epoch: u64) -> Self {
        Self {
            now,
            epoch,
            outcome: Outcome::default(),
        }
    }

    pub(crate) fn command(&mut self, command: Command) {
        self.outcome.commands.push(command);
    }

    pub(crate) fn record(&mut self, record: Record) {
        self.outcome.records.push(record);
    }

    /// Stops an instance that a node reports and no workload knows: a leftover.
    pub(crate) fn stop_unknown(
        &mut self,
        instance: InstanceId,
        server: ServerName,
        policy: &Policy,
    ) {
        let grace = Duration::from_millis(policy.stop_grace_ms);
        self.command(Command::Stop {
            instance,
            server,
            grace,
        });
    }

    pub(crate) fn finish(self) -> Outcome {
        self.outcome
    }
}
