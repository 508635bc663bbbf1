//! What is counted. Nothing is dropped without a trace here.

use std::ops::AddAssign;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

/// A number that only grows.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    /// One more.
    pub(crate) fn count(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// How many so far.
    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The counters of one slave. Each has one writer, so that no message waits for another slave's.
#[derive(Debug, Default)]
pub(crate) struct SlaveCounters {
    /// Messages taken from the broker.
    pub(crate) received: Counter,
    /// Messages parsed and dealt with, bad ones included.
    pub(crate) handled: Counter,
    /// Messages thrown away because the slave sent faster than its handler works.
    pub(crate) shed: Counter,
    /// Messages that were not understood.
    pub(crate) bad_messages: Counter,
    /// `info` requests answered.
    pub(crate) answered: Counter,
    /// Answers and complaints withheld by a rate limit, or dropped because the slave does not take them.
    pub(crate) unanswered: Counter,
}

/// Figures of one slave or of all, as HTTP shows them. When nothing is under way, `received = handled + shed`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(crate) struct SlaveFigures {
    pub(crate) received: u64,
    pub(crate) handled: u64,
    pub(crate) shed: u64,
    pub(crate) bad_messages: u64,
    pub(crate) answered: u64,
    pub(crate) unanswered: u64,
}

/// The counters that belong to no slave.
#[derive(Debug, Default)]
pub(crate) struct MasterCounters {
    /// Messages whose topic is not part of the protocol.
    pub(crate) unroutable: Counter,
    /// Messages of clients beyond `slaves_max`, and of slaves that were just removed.
    pub(crate) refused: Counter,
    /// Commands and retained states that a stalled client's queue did not take in time.
    pub(crate) commands_dropped: Counter,
    /// Attempts to write to the store that failed and are repeated.
    pub(crate) store_failures: Counter,
}

/// [`MasterCounters`] as HTTP shows them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct MasterFigures {
    pub(crate) unroutable: u64,
    pub(crate) refused: u64,
    pub(crate) commands_dropped: u64,
    pub(crate) store_failures: u64,
}

impl SlaveCounters {
    pub(crate) fn figures(&self) -> SlaveFigures {
        SlaveFigures {
            received: self.received.get(),
            handled: self.handled.get(),
            shed: self.shed.get(),
            bad_messages: self.bad_messages.get(),
            answered: self.answered.get(),
            unanswered: self.unanswered.get(),
        }
    }
}

impl AddAssign for SlaveFigures {
    fn add_assign(&mut self, other: SlaveFigures) {
        self.received += other.received;
        self.handled += other.handled;
        self.shed += other.shed;
        self.bad_messages += other.bad_messages;
        self.answered += other.answered;
        self.unanswered += other.unanswered;
    }
}

impl MasterCounters {
    pub(crate) fn figures(&self) -> MasterFigures {
        MasterFigures {
            unroutable: self.unroutable.get(),
            refused: self.refused.get(),
            commands_dropped: self.commands_dropped.get(),
            store_failures: self.store_failures.get(),
        }
    }
}
