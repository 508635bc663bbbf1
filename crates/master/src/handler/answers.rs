//! Where one slave's answers go, and how many complaints it gets.

use std::sync::Arc;

use bytes::Bytes;
use rpicluster_broker::{Outgoing, QoS, RouterStopped};
use rpicluster_core::Moment;
use rpicluster_protocol::limits::BAD_MESSAGE_INTERVAL;
use rpicluster_protocol::{BadMessage, Downward, Envelope, RequestId, ToSlave, Topic, TopicRoot, encode_to_slave};

use crate::mailbox::Wishes;
use crate::outbox::Outbox;
use crate::publish::Publish;
use crate::slave_list::SlaveList;
use crate::view::Slave;

/// The longest Response Topic in bytes that is honoured, beyond the prefix of the slave's own topics.
const RESPONSE_TOPIC_BYTES_MAX: usize = 128;

/// The longest Correlation Data in bytes that is returned.
const CORRELATION_BYTES_MAX: usize = 1024;

/// See the module.
pub(super) struct Answers<P> {
    slave: Arc<Slave>,
    outbox: Outbox<P>,
    reply_topic: String,
    reply_prefix: String,
    complained_at: Option<Moment>,
}

impl<P: Publish> Answers<P> {
    pub(super) fn new(slave: Arc<Slave>, root: TopicRoot, publisher: P) -> Answers<P> {
        Answers {
            outbox: Outbox::new(publisher),
            reply_topic: root.name(&Topic::To(slave.id.clone(), Downward::Reply)),
            reply_prefix: root.reply_prefix(&slave.id),
            complained_at: None,
            slave,
        }
    }

    /// Answers a request.
    pub(super) fn answer(&mut self, wishes: &Wishes, envelope: Envelope<ToSlave>) {
        let sent = self.enqueue(wishes, &envelope);
        self.count(sent);
    }

    /// Answers a request with the list of slaves.
    pub(super) fn list(&mut self, list: SlaveList) {
        let sent = self.outbox.push_list(list);
        self.count(sent);
    }

    /// Says that a message was not understood, at most once in [`BAD_MESSAGE_INTERVAL`]; all are counted.
    pub(super) fn complain(&mut self, wishes: &Wishes, re: Option<RequestId>, bad: BadMessage, at: Moment) {
        self.slave.counters.bad_messages.count();
        let too_soon = self.complained_at.is_some_and(|last| at.since(last) < BAD_MESSAGE_INTERVAL);
        if too_soon {
            self.slave.counters.unanswered.count();
            return;
        }
        self.complained_at = Some(at);
        if !self.enqueue(wishes, &Envelope::new(ToSlave::BadMessage(bad)).answering(re)) {
            self.slave.counters.unanswered.count();
        }
    }

    /// Where an answer with these wishes goes, without its payload.
    pub(super) fn address(&self, wishes: &Wishes) -> Outgoing {
        let correlation_data = wishes.correlation_data.clone().filter(|data| data.len() <= CORRELATION_BYTES_MAX);
        let topic = match &wishes.topic {
            Some(topic) if self.may_answer_on(topic) => topic.clone(),
            _ => self.reply_topic.clone(),
        };
        Outgoing { topic, payload: Bytes::new(), qos: QoS::AtLeastOnce, retain: false, correlation_data }
    }

    /// See [`Outbox::is_empty`].
    pub(super) fn is_empty(&self) -> bool {
        self.outbox.is_empty()
    }

    /// See [`Outbox::send_next`].
    pub(super) async fn send_next(&mut self) -> Result<(), RouterStopped> {
        self.outbox.send_next().await
    }

    fn enqueue(&mut self, wishes: &Wishes, envelope: &Envelope<ToSlave>) -> bool {
        // Only a machine with absurdly many labels or addresses makes an answer too long for a message.
        let Ok(payload) = encode_to_slave(envelope) else { return false };
        let answer = Outgoing { payload: payload.into(), ..self.address(wishes) };
        self.outbox.push(answer)
    }

    fn count(&self, sent: bool) {
        let counters = &self.slave.counters;
        if sent { counters.answered.count() } else { counters.unanswered.count() }
    }

    fn may_answer_on(&self, topic: &str) -> bool {
        topic.strip_prefix(&self.reply_prefix).is_some_and(|rest| {
            let fits = (1..=RESPONSE_TOPIC_BYTES_MAX).contains(&rest.len());
            fits && !rest.contains(['+', '#']) && !rest.chars().any(char::is_control)
        })
    }
}
