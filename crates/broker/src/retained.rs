//! Retained messages (MQTT 3.3.1.3), bounded in number and bytes.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;

use crate::config::Limits;
use crate::message::Message;
use crate::topic::{literal_prefix, matches};

/// The last retained message of each topic.
#[derive(Debug, Default)]
pub(crate) struct Retained {
    messages: BTreeMap<Box<str>, Message>,
    bytes: usize,
    /// How many of them each client, by its number, put there.
    by_publisher: HashMap<u64, usize>,
}

impl Retained {
    /// Keeps a retained message, or forgets its topic's if the payload is empty. `false` if the limits left no room; then
    /// the topic's older message is gone too, for it is no longer the truth.
    pub(crate) fn store(&mut self, message: &Message, limits: &Limits) -> bool {
        let old = self.messages.remove(message.topic());
        if let Some(old) = &old {
            self.bytes -= old.len();
            self.release(old.publisher());
        }
        if message.payload().is_empty() {
            return true;
        }
        let publisher = message.publisher();
        let count = self.by_publisher.entry(publisher).or_default();
        *count += 1;
        if self.messages.len() >= limits.retained_messages
            || self.bytes + message.len() > limits.retained_bytes
            || *count > limits.retained_messages_per_client
        {
            self.release(publisher);
            return false;
        }
        self.bytes += message.len();
        self.messages.insert(message.topic().into(), message.clone());
        true
    }

    fn release(&mut self, publisher: u64) {
        if let Some(count) = self.by_publisher.get_mut(&publisher) {
            *count -= 1;
            if *count == 0 {
                self.by_publisher.remove(&publisher);
            }
        }
    }

    /// Every retained message whose topic matches `filter`.
    pub(crate) fn matching<'a>(&'a self, filter: &'a str) -> impl Iterator<Item = &'a Message> + 'a {
        let prefix = literal_prefix(filter);
        self.messages
            .range::<str, _>((Bound::Included(prefix), Bound::Unbounded))
            .take_while(move |(topic, _)| topic.starts_with(prefix))
            .filter(move |(topic, _)| matches(filter, topic))
            .map(|(_, message)| message)
    }

    pub(crate) fn len(&self) -> usize {
        self.messages.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::QoS;
    use crate::message::{Clock, Parts};

    fn message(topic: &str, payload: &str) -> Message {
        let parts = Parts {
            topic,
            payload: payload.as_bytes(),
            qos: QoS::AtMostOnce,
            retain: true,
            publisher: 0,
            expiry: None,
            properties: &[],
        };
        Message::new(parts, Clock::start())
    }

    fn topics(retained: &Retained, filter: &str) -> Vec<String> {
        retained.matching(filter).map(|message| message.topic().to_owned()).collect()
    }

    #[test]
    fn the_last_message_of_a_topic_is_kept_until_an_empty_one() {
        let mut retained = Retained::default();
        let limits = Limits::default();
        for topic in ["a/b", "a", "ab", "a/c", "$SYS/x"] {
            assert!(retained.store(&message(topic, "1"), &limits));
        }
        assert_eq!(topics(&retained, "a/#"), ["a", "a/b", "a/c"]);
        assert_eq!(topics(&retained, "a/+"), ["a/b", "a/c"]);
        assert_eq!(topics(&retained, "#"), ["a", "a/b", "a/c", "ab"]);
        assert!(retained.store(&message("a/b", ""), &limits));
        assert_eq!(topics(&retained, "a/b"), Vec::<String>::new());
        assert_eq!(retained.len(), 4);
    }

    #[test]
    fn limits_hold_and_free_again() {
        let mut retained = Retained::default();
        let limits = Limits { retained_messages: 2, retained_bytes: 200, ..Limits::default() };
        assert!(retained.store(&message("a", "1"), &limits));
        assert!(retained.store(&message("b", "1"), &limits));
        assert!(!retained.store(&message("c", "1"), &limits));
        assert!(!retained.store(&message("a", &"x".repeat(200)), &limits));
        assert_eq!(topics(&retained, "#"), ["b"]);
        assert!(retained.store(&message("c", "1"), &limits));
        for _ in 0..100 {
            assert!(retained.store(&message("c", "2"), &limits));
        }
        let limits = Limits { retained_messages_per_client: 2, ..Limits::default() };
        assert!(!retained.store(&message("d", "1"), &limits));
        assert!(retained.store(&message("b", ""), &limits));
        assert!(retained.store(&message("d", "1"), &limits));
    }
}
