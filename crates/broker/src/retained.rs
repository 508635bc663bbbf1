//! Retained messages (MQTT 3.3.1.3), bounded in number and bytes.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::collections::{BTreeSet, HashMap};
use std::ops::Bound;

use crate::config::Limits;
use crate::message::Message;
use crate::topic::{Standing, literal_prefix, standing};

/// The last retained message of each topic.
#[derive(Debug, Default)]
pub(crate) struct Retained {
    messages: BTreeSet<ByTopic>,
    bytes: usize,
    /// How many of them each client, by its number, put there.
    by_publisher: HashMap<u64, usize>,
}

/// A message by its topic, which it holds itself: there may be many, and a copy of each topic would be a third of a short one.
#[derive(Debug)]
struct ByTopic(Message);

impl Retained {
    /// Keeps a retained message, or forgets its topic's if the payload is empty. `false` if the limits left no room; then
    /// the topic's older message is gone too, for it is no longer the truth.
    pub(crate) fn store(&mut self, message: &Message, limits: &Limits) -> bool {
        if let Some(ByTopic(old)) = self.messages.take(message.topic_bytes()) {
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
        self.messages.insert(ByTopic(message.clone()));
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

    /// Every retained message whose topic matches `filter`, in the order of their topics.
    pub(crate) fn matching<'a>(&'a self, filter: &'a str) -> impl Iterator<Item = &'a Message> + 'a {
        let from = |start: &str| self.messages.range::<[u8], _>((Bound::Included(start.as_bytes()), Bound::Unbounded));
        let mut rest = from(literal_prefix(filter));
        std::iter::from_fn(move || {
            loop {
                let ByTopic(message) = rest.next()?;
                match standing(filter, message.topic()) {
                    Standing::Matches => return Some(message),
                    Standing::Differs => {}
                    Standing::NothingBefore(next) => rest = from(&next),
                    Standing::NothingAfter => return None,
                }
            }
        })
    }

    pub(crate) fn len(&self) -> usize {
        self.messages.len()
    }
}

impl Borrow<[u8]> for ByTopic {
    fn borrow(&self) -> &[u8] {
        self.0.topic_bytes()
    }
}

impl Ord for ByTopic {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.topic_bytes().cmp(other.0.topic_bytes())
    }
}

impl PartialOrd for ByTopic {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for ByTopic {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for ByTopic {}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::codec::QoS;
    use crate::message::{Clock, Parts};
    use crate::topic::matches;

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
    proptest! {
        /// The search that leaves out what cannot match finds what the plain definition finds.
        #[test]
        fn matching_finds_what_the_standard_says(
            filter in "(([ab!0$]|[+]|){1}(/([ab!0]{1,2}|[+]|)){0,4}(/#)?)|#",
            names in proptest::collection::vec("[ab$]?[!0]?(/[ab!0]{0,2}){0,5}", 1..40),
        ) {
            let mut retained = Retained::default();
            for name in names.iter().filter(|name| !name.is_empty()) {
                retained.store(&message(name, "x"), &Limits::default());
            }
            let mut expected: Vec<String> = retained.messages.iter().map(|message| message.0.topic().to_owned()).collect();
            expected.retain(|topic| matches(&filter, topic));
            prop_assert_eq!(topics(&retained, &filter), expected, "{}", filter);
        }
    }
}
