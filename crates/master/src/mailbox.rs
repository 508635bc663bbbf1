//! Between the bus and one slave's handler: bounded, never waits, and loses nothing that cannot be said again.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use rpicluster_core::Moment;
use rpicluster_protocol::Upward;
use tokio::sync::Notify;

/// How many messages of one slave wait at most.
const MESSAGES_MAX: usize = 1_000;

/// How many bytes of one slave's messages wait at most, so that 1,000 long ones do not fill the memory of a Pi.
const BYTES_MAX: usize = 2 * 1024 * 1024;

/// How many `state` messages wait apart from the rest: more than a slave's last few connections never matter.
const STATES_MAX: usize = 8;

/// How many messages are taken at once.
const BATCH_MAX: usize = 64;

/// One message for the handler.
#[derive(Debug)]
pub(crate) struct Mail {
    /// Where it came in.
    pub(crate) leaf: Upward,
    /// The envelope's bytes.
    pub(crate) payload: Bytes,
    /// Where and with what an answer is wanted.
    pub(crate) wishes: Wishes,
    /// It is a copy that an external broker kept.
    pub(crate) retained: bool,
    /// When the bus took it.
    pub(crate) at: Moment,
}

/// What an MQTT 5 client may ask of the answer to a message.
#[derive(Debug, Clone, Default)]
pub(crate) struct Wishes {
    /// Response Topic.
    pub(crate) topic: Option<String>,
    /// Correlation Data.
    pub(crate) correlation_data: Option<Bytes>,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Mailbox {
    waiting: Mutex<Waiting>,
    arrived: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    closed: bool,
    /// Newest last. A full one gives up its oldest: an older session's words are the ones that matter least.
    states: VecDeque<Mail>,
    others: VecDeque<Mail>,
    other_bytes: usize,
}

impl Mailbox {
    /// Puts a message in; tells whether one had to be shed for that.
    pub(crate) fn push(&self, mail: Mail) -> bool {
        let shed = self.lock().push(mail);
        self.arrived.notify_one();
        shed
    }

    /// Nothing comes any more, and nothing that waits matters.
    pub(crate) fn close(&self) {
        *self.lock() = Waiting { closed: true, ..Waiting::default() };
        self.arrived.notify_one();
    }

    /// Waits for messages and moves up to [`BATCH_MAX`] of them to `batch`, states first; tells whether it goes on. Cancel
    /// safe.
    pub(crate) async fn take(&self, batch: &mut Vec<Mail>) -> bool {
        // A flood never makes this wait: be fair to the other tasks nevertheless.
        tokio::task::consume_budget().await;
        loop {
            {
                let mut waiting = self.lock();
                if waiting.closed || waiting.move_to(batch) {
                    return !waiting.closed;
                }
            }
            self.arrived.notified().await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    fn push(&mut self, mail: Mail) -> bool {
        if mail.leaf == Upward::State {
            let shed = self.states.len() >= STATES_MAX && self.states.pop_front().is_some();
            self.states.push_back(mail);
            return shed;
        }
        let bytes = self.other_bytes + mail.payload.len();
        if self.others.len() >= MESSAGES_MAX || bytes > BYTES_MAX {
            return true;
        }
        self.other_bytes = bytes;
        self.others.push_back(mail);
        false
    }

    fn move_to(&mut self, batch: &mut Vec<Mail>) -> bool {
        batch.extend(self.states.drain(..));
        let others = self.others.len().min(BATCH_MAX);
        for mail in self.others.drain(..others) {
            self.other_bytes -= mail.payload.len();
            batch.push(mail);
        }
        // Most of the time most of many mailboxes are empty, and hold no room.
        self.states.shrink_to(0);
        if self.others.is_empty() {
            self.others.shrink_to(0);
        }
        !batch.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mail(leaf: Upward, payload: &str) -> Mail {
        let payload = Bytes::copy_from_slice(payload.as_bytes());
        Mail { leaf, payload, wishes: Wishes::default(), retained: false, at: Moment::default() }
    }

    fn payloads(batch: &[Mail]) -> Vec<&[u8]> {
        batch.iter().map(|mail| &mail.payload[..]).collect()
    }

    #[tokio::test]
    async fn an_overfull_mailbox_sheds_what_comes_but_no_state() {
        let mailbox = Mailbox::default();
        let shed = (0..MESSAGES_MAX + 5).filter(|n| mailbox.push(mail(Upward::Vitals, &n.to_string()))).count();
        assert_eq!(shed, 5);
        assert!(!mailbox.push(mail(Upward::State, "state")));
        let mut batch = Vec::new();
        mailbox.take(&mut batch).await;
        assert_eq!(payloads(&batch)[..2], [&b"state"[..], b"0"]);
        let mut taken = batch.len();
        while taken < MESSAGES_MAX + 1 {
            batch.clear();
            mailbox.take(&mut batch).await;
            assert!(batch.len() <= BATCH_MAX);
            taken += batch.len();
        }
        assert_eq!(payloads(&batch).last().unwrap(), &b"999");
    }

    #[tokio::test]
    async fn of_many_states_the_newest_stay_in_order() {
        let mailbox = Mailbox::default();
        let shed = (0..STATES_MAX + 3).filter(|n| mailbox.push(mail(Upward::State, &n.to_string()))).count();
        assert_eq!(shed, 3);
        let mut batch = Vec::new();
        mailbox.take(&mut batch).await;
        assert_eq!(payloads(&batch), [b"3".as_slice(), b"4", b"5", b"6", b"7", b"8", b"9", b"10"]);
    }

    #[tokio::test]
    async fn bytes_are_bounded_too_and_freed_again() {
        let mailbox = Mailbox::default();
        let long = "x".repeat(BYTES_MAX / 2);
        assert!(!mailbox.push(mail(Upward::Message, &long)));
        assert!(!mailbox.push(mail(Upward::Message, &long)));
        assert!(mailbox.push(mail(Upward::Message, "x")));
        mailbox.take(&mut Vec::new()).await;
        assert!(!mailbox.push(mail(Upward::Message, &long)));
    }
}
