//! For how long the slave may go on without hearing from the master.

use std::time::Duration;

use rpicluster_protocol::limits::LEASE_RENEWAL_INTERVAL;
use rpicluster_protocol::{AttemptKey, LeasedAttempt, TaskLease};

use super::attempt::Phase;
use super::{Effect, Journal};
use crate::Moment;

/// Renewals without an answer; older ones would not be worth one.
const RENEWALS_MAX: usize = 64;
/// Attempts in one renewal: it stays within a message.
const RENEWED_MAX: usize = 512;

impl Journal {
    pub(super) fn handle_lease_ack(&mut self, lease: &TaskLease, effects: &mut Vec<Effect>) {
        if !self.adopt(lease.epoch, effects) {
            return;
        }
        let Some((_, sent)) = self.renewals.iter().find(|(renewal, _)| *renewal == lease.renewal).copied() else {
            return;
        };
        for LeasedAttempt { task, attempt } in &lease.attempts {
            let key = AttemptKey { task: *task, attempt: *attempt, epoch: lease.epoch };
            let Some(attempt) = self.attempts.get_mut(&key).filter(|attempt| attempt.occupies()) else { continue };
            let lease_end = sent + Duration::from_millis(attempt.lease_ms);
            if lease_end > attempt.lease_end {
                attempt.lease_end = lease_end;
                if matches!(attempt.phase, Phase::Running) {
                    effects.push(Effect::Extend { key, lease_end });
                }
            }
        }
    }

    /// Asks that all leases be renewed, an epoch at a time.
    pub(super) fn renew(&mut self, now: Moment, effects: &mut Vec<Effect>) {
        let mut running: Vec<AttemptKey> =
            self.attempts.iter().filter(|(_, attempt)| attempt.renews()).map(|(key, _)| *key).collect();
        self.renew_at = (!running.is_empty()).then(|| now + LEASE_RENEWAL_INTERVAL);
        running.sort_by_key(|key| (key.epoch, *key));
        for of_one_epoch in running.chunk_by(|one, next| one.epoch == next.epoch) {
            for some in of_one_epoch.chunks(RENEWED_MAX) {
                self.renewal += 1;
                self.renewals.push_back((self.renewal, now));
                if self.renewals.len() > RENEWALS_MAX {
                    self.renewals.pop_front();
                }
                let attempts = some.iter().map(|key| LeasedAttempt { task: key.task, attempt: key.attempt }).collect();
                effects.push(Effect::Renew(TaskLease { epoch: some[0].epoch, renewal: self.renewal, attempts }));
            }
        }
    }
}
