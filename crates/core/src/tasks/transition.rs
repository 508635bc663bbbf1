//! Every way in which a task goes from one state to another. What is not in the table does not happen.

use rpicluster_protocol::TaskState::{self, *};

/// Why a task's state changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Cause {
    /// A free slot was found: the offer is on its way.
    Offer,
    /// The slave says that it began.
    Started,
    /// The slave is gone.
    SlaveGone,
    /// The slave was only silent: it is back in the same session.
    SlaveBack,
    /// The slave is back, and has not begun or does not know it.
    NeverBegan,
    /// The slave is back and its journal does not hold what had begun, or it has another journal.
    JournalGone,
    /// The slave says that it succeeded.
    Succeeded,
    /// The slave says that it failed.
    Failed,
    /// The slave says that it took too long.
    TimedOut,
    /// The slave says that it ended because it was told to.
    Canceled,
    /// The slave, or the end of the lease, says that nobody knows how far it came.
    Lost,
    /// The slave's policy says no.
    Rejected,
    /// The slave could not begin now: no free slot, or the offer was stale.
    Declined,
    /// The time to wait before another attempt is over.
    BackoffOver,
    /// A user, a limit or an earlier step says that it is not to begin.
    Withdrawn,
    /// No slave was there for it in time.
    Expired,
    /// A user wants it tried again.
    Retry,
}

/// From where, why, and to where it may lead.
pub const TRANSITIONS: &[(TaskState, Cause, &[TaskState])] = &[
    (Queued, Cause::Offer, &[Offered]),
    (Queued, Cause::Withdrawn, &[Canceled]),
    (Queued, Cause::Expired, &[Expired]),
    (Queued, Cause::Succeeded, &[Succeeded]),
    (Offered, Cause::Started, &[Running]),
    (Offered, Cause::SlaveGone, &[Unknown]),
    (Offered, Cause::NeverBegan, &[Queued, Canceled]),
    (Offered, Cause::JournalGone, &[Lost, Backoff]),
    (Offered, Cause::Succeeded, &[Succeeded]),
    (Offered, Cause::Failed, &[Failed, Backoff]),
    (Offered, Cause::TimedOut, &[TimedOut, Backoff]),
    (Offered, Cause::Canceled, &[Canceled]),
    (Offered, Cause::Lost, &[Lost, Backoff]),
    (Offered, Cause::Rejected, &[Rejected]),
    (Offered, Cause::Declined, &[Backoff, Canceled]),
    (Running, Cause::SlaveGone, &[Unknown]),
    (Running, Cause::JournalGone, &[Lost, Backoff]),
    (Running, Cause::Succeeded, &[Succeeded]),
    (Running, Cause::Failed, &[Failed, Backoff]),
    (Running, Cause::TimedOut, &[TimedOut, Backoff]),
    (Running, Cause::Canceled, &[Canceled]),
    (Running, Cause::Lost, &[Lost, Backoff]),
    (Unknown, Cause::Started, &[Running]),
    (Unknown, Cause::SlaveBack, &[Offered, Running]),
    (Unknown, Cause::NeverBegan, &[Queued, Canceled]),
    (Unknown, Cause::JournalGone, &[Lost, Backoff]),
    (Unknown, Cause::Succeeded, &[Succeeded]),
    (Unknown, Cause::Failed, &[Failed, Backoff]),
    (Unknown, Cause::TimedOut, &[TimedOut, Backoff]),
    (Unknown, Cause::Canceled, &[Canceled]),
    (Unknown, Cause::Lost, &[Lost, Backoff]),
    (Unknown, Cause::Rejected, &[Rejected]),
    (Unknown, Cause::Declined, &[Backoff, Canceled]),
    (Backoff, Cause::BackoffOver, &[Queued]),
    (Backoff, Cause::Withdrawn, &[Canceled]),
    (Backoff, Cause::Succeeded, &[Succeeded]),
    (Failed, Cause::Retry, &[Queued]),
    (TimedOut, Cause::Retry, &[Queued]),
    (Canceled, Cause::Retry, &[Queued]),
    (Rejected, Cause::Retry, &[Queued]),
    (Lost, Cause::Retry, &[Queued]),
    (Lost, Cause::Succeeded, &[Succeeded]),
    (Lost, Cause::Failed, &[Failed]),
    (Lost, Cause::TimedOut, &[TimedOut]),
    (Lost, Cause::Canceled, &[Canceled]),
    (Expired, Cause::Retry, &[Queued]),
];

impl Cause {
    /// What it means, for the page.
    pub fn meaning(self) -> &'static str {
        match self {
            Cause::Offer => "a slot is free",
            Cause::Started => "the slave says that it began",
            Cause::SlaveGone => "the slave is gone",
            Cause::SlaveBack => "the slave is back in the same session",
            Cause::NeverBegan => "the slave is back and has not begun",
            Cause::JournalGone => "the slave is back and its journal does not know",
            Cause::Succeeded => "the slave says that it succeeded",
            Cause::Failed => "the slave says that it failed",
            Cause::TimedOut => "the slave says that it took too long",
            Cause::Canceled => "the slave says that it was told to end",
            Cause::Lost => "the agent died, or the lease is over",
            Cause::Rejected => "the slave's policy says no",
            Cause::Declined => "the slave had no slot, or the offer was stale",
            Cause::BackoffOver => "the wait is over",
            Cause::Withdrawn => "canceled before it began",
            Cause::Expired => "no slave was there in time",
            Cause::Retry => "`retry`",
        }
    }
}

/// Whether the table knows that way.
pub(crate) fn is_allowed(from: TaskState, cause: Cause, to: TaskState) -> bool {
    TRANSITIONS.iter().any(|(state, why, targets)| *state == from && *why == cause && targets.contains(&to))
}
