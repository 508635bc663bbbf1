//! One slave's answers on their way out. A slave that does not take its answers holds up nobody, not even its own
//! presence: they wait here, bounded, while the handler goes on.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;

use rpicluster_broker::{Outgoing, RouterStopped};

use crate::publish::Publish;
use crate::slave_list::SlaveList;

/// How many answers to one slave wait at most.
const ANSWERS_MAX: usize = 64;

/// See the module.
pub(crate) struct Outbox<P> {
    publisher: P,
    waiting: VecDeque<Outgoing>,
    list: Option<SlaveList>,
    sending: Option<Sending>,
}

type Sending = Pin<Box<dyn Future<Output = Result<(), RouterStopped>> + Send>>;

impl<P: Publish> Outbox<P> {
    pub(crate) fn new(publisher: P) -> Outbox<P> {
        Outbox { publisher, waiting: VecDeque::new(), list: None, sending: None }
    }

    /// Takes an answer, if there is room.
    pub(crate) fn push(&mut self, answer: Outgoing) -> bool {
        let room = self.waiting.len() < ANSWERS_MAX;
        if room {
            self.waiting.push_back(answer);
        }
        room
    }

    /// Takes a long answer, if none is under way. Short answers go between its parts.
    pub(crate) fn push_list(&mut self, list: SlaveList) -> bool {
        let room = self.list.is_none();
        if room {
            self.list = Some(list);
        }
        room
    }

    /// Nothing is left to send.
    pub(crate) fn is_empty(&self) -> bool {
        self.sending.is_none() && self.waiting.is_empty() && self.list.is_none()
    }

    /// Sends one message; at once if there is none. Cancel safe: what was begun goes on at the next call.
    pub(crate) async fn send_next(&mut self) -> Result<(), RouterStopped> {
        if self.sending.is_none() {
            let Some(message) = self.next_message() else { return Ok(()) };
            let publisher = self.publisher.clone();
            self.sending = Some(Box::pin(async move { publisher.publish(message).await }));
        }
        let Some(sending) = &mut self.sending else { return Ok(()) };
        let result = sending.await;
        self.sending = None;
        result
    }

    fn next_message(&mut self) -> Option<Outgoing> {
        if let Some(answer) = self.waiting.pop_front() {
            return Some(answer);
        }
        let part = self.list.as_mut()?.next();
        if part.is_none() {
            self.list = None;
        }
        part
    }
}
