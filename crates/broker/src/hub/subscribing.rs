//! Subscriptions come and go, and their retained messages are handed over.

use std::ops::ControlFlow;

use tracing::info;

use super::{Attachment, Hub, Queued, lock};
use crate::client::{Client, Pushed, Session};
use crate::codec::{RetainHandling, reason};
use crate::config::Limits;
use crate::message::Message;
use crate::stats::Stats;
use crate::subscriptions::Wish;
use crate::sys;
use crate::topic::{is_valid_filter, matches, quoted};

/// How many retained messages are looked at before everybody else has a turn.
const LOOKS: usize = 500;
/// How many bytes of them may wait for their subscriber.
const BYTES_AHEAD: usize = 16 * 1024;

impl Hub {
    /// Adds a subscription; the retained messages that it asks for are [handed over](Hub::hand_over) from now on. The reason
    /// code for SUBACK.
    pub(crate) fn subscribe(&self, attachment: &mut Attachment, filter: &str, wish: Wish) -> u8 {
        let Attachment { client, session, permissions, .. } = attachment;
        let refusal = if !is_valid_filter(filter, self.limits.filter_levels) {
            Some(reason::TOPIC_FILTER_INVALID)
        } else if filter.starts_with("$share/") {
            // MQTT 5 3.2.2.3.13: shared subscriptions are declined in CONNACK.
            Some(reason::SHARED_NOT_SUPPORTED)
        } else if !permissions.may_subscribe(filter) {
            Some(reason::NOT_AUTHORIZED)
        } else if !session.subscriptions.contains_key(filter)
            && session.subscriptions.len() >= self.limits.subscriptions
        {
            Some(reason::QUOTA_EXCEEDED)
        } else {
            None
        };
        if let Some(refusal) = refusal {
            self.count_refusal(client, &self.stats.subscriptions_refused);
            if refusal == reason::NOT_AUTHORIZED && self.refusals.allows() {
                info!(client = ?client.id, filter = quoted(filter), "SUBSCRIBE refused; more are counted");
            }
            return refusal;
        }
        let table = &mut *lock(&self.table);
        if table.subscriptions.len() >= self.limits.subscriptions_total && !session.subscriptions.contains_key(filter) {
            self.count_refusal(client, &self.stats.subscriptions_refused);
            return reason::QUOTA_EXCEEDED;
        }
        table.subscriptions.insert(filter, client, wish);
        self.subscriptions_changed(table);
        let is_new = session.subscriptions.insert(filter.into(), wish).is_none();
        let wants_retained = match wish.options.retain_handling {
            RetainHandling::EverySubscribe => true,
            RetainHandling::NewSubscription => is_new,
            RetainHandling::Never => false,
        };
        if wants_retained {
            session.walks.insert(filter.into(), table.retained.walk(filter));
            let reports = if filter.starts_with(sys::ROOT) { self.sys_messages() } else { Vec::new() };
            for report in reports.iter().filter(|report| matches(filter, report.topic())) {
                self.queue(client, retained(report, wish));
            }
        }
        wish.options.qos as u8
    }

    /// Takes a subscription away. The reason code for UNSUBACK.
    pub(crate) fn unsubscribe(&self, attachment: &mut Attachment, filter: &str) -> u8 {
        if attachment.session.subscriptions.remove(filter).is_none() {
            return reason::NO_SUBSCRIPTION_EXISTED;
        }
        attachment.session.walks.remove(filter);
        let mut table = lock(&self.table);
        table.subscriptions.remove(filter, &attachment.client);
        self.subscriptions_changed(&table);
        reason::SUCCESS
    }

    /// Whether there are retained messages to be looked at for this client, and room for them.
    pub(crate) fn has_to_hand_over(&self, attachment: &Attachment) -> bool {
        !attachment.session.walks.is_empty() && self.has_room(&attachment.client)
    }

    /// One more may wait for the client, whatever its size, without another one giving way.
    fn has_room(&self, client: &Client) -> bool {
        let Limits { queue_messages, queue_bytes, packet_bytes, .. } = self.limits;
        let (messages, bytes) = client.waiting();
        // A message is a little longer than its packet.
        let is_next_free = messages <= queue_messages / 4 && bytes + 2 * packet_bytes <= queue_bytes;
        messages == 0 || (is_next_free && bytes < BYTES_AHEAD)
    }

    /// Queues some of the retained messages that the client's subscriptions asked for, as many as have room: it is given
    /// them as fast as it reads, however many there are, and none of them is dropped for being too many.
    pub(crate) fn hand_over(&self, attachment: &mut Attachment) {
        let Attachment { client, session, .. } = attachment;
        let Session { subscriptions, walks, .. } = &mut **session;
        let mut looks = LOOKS;
        while let Some(mut entry) = walks.first_entry()
            && self.has_room(client)
        {
            let filter = entry.key().clone();
            let more = subscriptions.get(&filter).is_some_and(|wish| {
                lock(&self.table).retained.go_on(&filter, entry.get_mut(), &mut looks, |message| {
                    if !self.has_room(client) {
                        return ControlFlow::Break(());
                    }
                    if self.queue(client, retained(message, *wish)) == Pushed::Overflow {
                        // It is longer than all that may wait.
                        Stats::add(&self.stats.queue_overflows, 1);
                        client.close(reason::QUOTA_EXCEEDED);
                    }
                    ControlFlow::Continue(())
                })
            });
            if more {
                return;
            }
            entry.remove();
        }
    }
}

/// A retained message for who subscribed (MQTT 3.3.1.3).
fn retained(message: &Message, wish: Wish) -> Queued {
    Queued {
        message: message.clone(),
        qos: wish.options.qos.min(message.qos()),
        retain: true,
        subscription_ids: wish.id.into_iter().collect(),
    }
}
