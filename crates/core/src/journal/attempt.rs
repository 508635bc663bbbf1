//! One attempt as its slave holds it, and how its events are made.

use std::time::Duration;

use rpicluster_protocol::limits::{RESEND_MAX, RESEND_MIN};
use rpicluster_protocol::{
    AttemptKey, JournalEntry, Outcome, RejectReason, TaskAck, TaskFinished, TaskOffer, TaskRejected, TaskStarted,
};

use crate::Moment;

/// How far an attempt has come.
#[derive(Debug)]
pub(super) enum Phase {
    /// It waits until nothing else runs; nothing of it is recorded.
    Waiting(Box<TaskOffer>),
    /// That it begins is recorded, and not known to be durable.
    Beginning(Box<TaskOffer>),
    /// It was spawned.
    Running,
    /// It has ended, or will never begin.
    Over,
}

#[derive(Debug)]
pub(super) struct Attempt {
    pub(super) phase: Phase,
    /// The newest event that may be told.
    pub(super) settled: Option<JournalEntry>,
    /// A newer one that has to be durable before, with the number of its record.
    pub(super) fresh: Option<(u64, JournalEntry)>,
    /// Nothing else may run beside it.
    pub(super) alone: bool,
    /// Its command has promised that the machine goes down; until when that is believed.
    pub(super) boot_wait_end: Option<Moment>,
    /// Of another epoch: it is being killed, and then forgotten.
    pub(super) foreign: bool,
    pub(super) lease_end: Moment,
    pub(super) lease_ms: u64,
    pub(super) resend_at: Moment,
    pub(super) resend_wait: Duration,
    acked_seq: u32,
    acked_stdout: u64,
    acked_stderr: u64,
}

impl Attempt {
    pub(super) fn new(phase: Phase, lease_end: Moment, lease_ms: u64) -> Attempt {
        Attempt {
            phase,
            settled: None,
            fresh: None,
            alone: false,
            boot_wait_end: None,
            foreign: false,
            lease_end,
            lease_ms,
            resend_at: Moment::NEVER,
            resend_wait: RESEND_MIN,
            acked_seq: 0,
            acked_stdout: 0,
            acked_stderr: 0,
        }
    }

    /// One that an earlier life of the agent has left behind.
    pub(super) fn over(entry: JournalEntry) -> Attempt {
        Attempt { fresh: Some((0, entry)), ..Attempt::new(Phase::Over, Moment::NEVER, 0) }
    }

    /// What was decided last.
    pub(super) fn newest(&self) -> Option<&JournalEntry> {
        self.fresh.as_ref().map(|(_, entry)| entry).or(self.settled.as_ref())
    }

    /// Whether it holds a slot.
    pub(super) fn occupies(&self) -> bool {
        matches!(self.phase, Phase::Beginning(_) | Phase::Running)
    }

    /// Whether its lease is worth a renewal.
    pub(super) fn renews(&self) -> bool {
        self.occupies() && !self.foreign
    }

    pub(super) fn acked(&mut self, ack: &TaskAck) {
        self.acked_seq = self.acked_seq.max(ack.seq);
        self.acked_stdout = self.acked_stdout.max(ack.stdout);
        self.acked_stderr = self.acked_stderr.max(ack.stderr);
    }

    /// Whether its newest event is to be repeated.
    pub(super) fn awaits_ack(&self) -> bool {
        self.fresh.is_none() && !self.foreign && self.settled.as_ref().is_some_and(|entry| entry.seq() > self.acked_seq)
    }

    /// Whether the master has recorded all of it.
    pub(super) fn may_be_forgotten(&self) -> bool {
        let Some(settled) = self.settled.as_ref().filter(|_| self.fresh.is_none()) else { return false };
        let is_whole = match settled {
            JournalEntry::Started(_) => false,
            JournalEntry::Finished(finished) => {
                self.acked_stdout >= finished.stdout && self.acked_stderr >= finished.stderr
            }
            JournalEntry::Rejected(_) => true,
        };
        is_whole && self.acked_seq >= settled.seq()
    }

    /// When its event is told again if this time is in vain too; the next wait is twice as long.
    pub(super) fn next_resend(&mut self, now: Moment) -> Moment {
        self.resend_at = now + self.resend_wait;
        self.resend_wait = (self.resend_wait * 2).min(RESEND_MAX);
        self.resend_at
    }
}

pub(super) fn started(key: AttemptKey, boot_id: Option<String>) -> JournalEntry {
    JournalEntry::Started(TaskStarted { key, seq: 1, boot_id })
}

pub(super) fn rejection(key: AttemptKey, seq: u32, reason: RejectReason, detail: Option<String>) -> JournalEntry {
    JournalEntry::Rejected(TaskRejected { key, seq, reason, detail })
}

/// An end of which no more is known.
pub(super) fn ended(key: AttemptKey, outcome: Outcome, reason: Option<&str>) -> TaskFinished {
    TaskFinished { reason: reason.map(str::to_owned), ..TaskFinished::new(key, 1, outcome) }
}
