//! What goes into a journal and what comes out of it.

use rpicluster_protocol::{
    AttemptKey, JournalEntry, RejectReason, SessionId, TaskAck, TaskCancel, TaskFinished, TaskLease, TaskOffer,
};
use serde_json::Value;

use super::Record;
use crate::Moment;

/// What happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// A connection is up; its `state` is on its way.
    SessionBegan(SessionId),
    /// The connection is gone.
    SessionEnded,
    /// The master wants to hear everything again.
    Announced,
    /// The master offers work.
    Offer {
        /// What.
        offer: Box<TaskOffer>,
        /// What the slave's own policy says of it.
        verdict: Verdict,
    },
    /// The master wants an attempt to end.
    Cancel(TaskCancel),
    /// The master has recorded something.
    Ack(TaskAck),
    /// The master has renewed leases.
    LeaseAck(TaskLease),
    /// So many of the records, counted from the first, are durable.
    Synced {
        /// How many.
        records: u64,
    },
    /// An attempt that was spawned is over; nothing of it runs any more. Its `seq` is not looked at.
    Exited(Box<TaskFinished>),
    /// Whatever was running was killed because its runner is gone.
    RunnerGone {
        /// In words.
        reason: String,
    },
}

/// What the slave's own policy says of an offer.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// It may run.
    Run,
    /// It may run when nothing else does: it boots the machine or powers it off.
    RunAlone,
    /// It is done already, harmless, and this is its result.
    Answer(Value),
    /// It may not run.
    Reject {
        /// Why.
        reason: RejectReason,
        /// The rule's name, and what to do.
        detail: String,
    },
}

/// What is to be done, in this order.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Write this after the records before it, and before what comes after it is told.
    Record(Record),
    /// Begin it. Never twice for a key.
    Spawn {
        /// What.
        offer: Box<TaskOffer>,
        /// It must be dead at this moment unless [`Effect::Extend`] names a later one.
        lease_end: Moment,
    },
    /// Its lease ends later now.
    Extend {
        /// Whose.
        key: AttemptKey,
        /// When.
        lease_end: Moment,
    },
    /// End it; [`Input::Exited`] is awaited.
    Kill {
        /// What.
        key: AttemptKey,
    },
    /// Nothing of it is needed any more, neither its output.
    Forget {
        /// What.
        key: AttemptKey,
    },
    /// Send this event.
    Tell(JournalEntry),
    /// Send [`Journal::entries`](super::Journal::entries) as `task_journal`, and what output is not acknowledged.
    TellJournal,
    /// Send this.
    Renew(TaskLease),
}
