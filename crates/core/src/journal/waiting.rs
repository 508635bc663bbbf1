//! Offers that wait: for a free slot, or, one that boots the machine, for all of them. Nothing of them is recorded.

use std::time::Duration;

use rpicluster_protocol::{AttemptKey, RejectReason, TaskOffer};

use super::attempt::{Attempt, Phase};
use super::{Effect, Journal};
use crate::Moment;

/// Offers beyond the slots that are taken, to begin when one is free: what is short need not wait for the master.
pub const AHEAD: u32 = 4;
/// How long such an offer waits before it is given back.
pub const AHEAD_WAIT: Duration = Duration::from_secs(1);

impl Journal {
    /// All slots are taken, and there is a place to wait for one.
    pub(super) fn has_room_ahead(&self) -> bool {
        let is_full = self.slots > 0 && self.running >= self.slots;
        is_full && self.alone.is_none() && self.ahead.len() < AHEAD as usize
    }

    pub(super) fn wait(&mut self, key: AttemptKey, offer: Box<TaskOffer>, lease_end: Moment) {
        let lease_ms = offer.lease_ms;
        self.attempts.insert(key, Attempt::new(Phase::Waiting(offer), lease_end, lease_ms));
    }

    pub(super) fn wait_alone(
        &mut self,
        now: Moment,
        key: AttemptKey,
        offer: Box<TaskOffer>,
        lease_end: Moment,
        effects: &mut Vec<Effect>,
    ) {
        while let Some((_, ahead)) = self.ahead.pop_front() {
            self.refuse(now, ahead, RejectReason::Waited, None, effects);
        }
        self.alone = Some(key);
        self.wait(key, offer, lease_end);
    }

    /// Offers of a session that is over are nothing: its journal does not hold them, which tells the master that they never
    /// began.
    pub(super) fn drop_ahead(&mut self) {
        for (_, key) in self.ahead.drain(..) {
            self.attempts.remove(&key);
        }
    }

    fn is_waiting(&self, key: AttemptKey) -> bool {
        matches!(self.attempts.get(&key).map(|attempt| &attempt.phase), Some(Phase::Waiting(_)))
    }

    pub(super) fn refuse_waiting(
        &mut self,
        now: Moment,
        key: AttemptKey,
        reason: RejectReason,
        effects: &mut Vec<Effect>,
    ) {
        if self.is_waiting(key) {
            self.refuse(now, key, reason, None, effects);
        }
    }

    /// Those that waited begin: for a slot, or one for all of them. Without a session their offers mean nothing.
    pub(super) fn begin_waiting(&mut self, now: Moment, effects: &mut Vec<Effect>) {
        if self.session.is_none() {
            return;
        }
        if let Some(key) = self.alone {
            if self.running == 0 {
                self.begin_one_waiting(now, key, true, effects);
            }
            return;
        }
        while self.running < self.slots
            && let Some((_, key)) = self.ahead.pop_front()
        {
            self.begin_one_waiting(now, key, false, effects);
        }
    }

    fn begin_one_waiting(&mut self, now: Moment, key: AttemptKey, alone: bool, effects: &mut Vec<Effect>) {
        if !self.is_waiting(key) {
            return;
        }
        if let Some(Attempt { phase: Phase::Waiting(offer), lease_end, .. }) = self.attempts.remove(&key) {
            if now < lease_end {
                self.begin(now, key, offer, lease_end, alone, effects);
            } else {
                self.refuse(now, key, RejectReason::Stale, None, effects);
            }
        }
    }
}
