//! Retained messages (MQTT 3.3.1.3), bounded in number and bytes.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::collections::{BTreeSet, HashMap};
use std::ops::{Bound, ControlFlow};

use crate::config::Limits;
use crate::message::Message;
use crate::topic::{Standing, literal_prefix, standing};

/// The last retained message of each topic.
#[derive(Debug, Default)]
pub(crate) struct Retained {
    messages: BTreeSet<Kept>,
    /// How many have ever been put here.
    stored: u64,
    bytes: usize,
    /// How many of them each client, by its number, put there.
    by_publisher: HashMap<u64, usize>,
}

/// A message by its topic, which it holds itself: there may be many, and a copy of each topic would be a third of a short one.
#[derive(Debug)]
struct Kept {
    message: Message,
    /// How many had been put here before, and itself.
    number: u64,
}

/// A subscriber's way through the retained messages, which may be long: taken a step at a time.
#[derive(Debug)]
pub(crate) struct Walk {
    /// Where to go on: no topic before this one is left.
    next: Vec<u8>,
    /// What was put here later than this came to the subscriber as it was published.
    newest: u64,
}

impl Retained {
    /// Keeps a retained message, or forgets its topic's if the payload is empty. `false` if the limits left no room; then
    /// the topic's older message is gone too, for it is no longer the truth.
    pub(crate) fn store(&mut self, message: &Message, limits: &Limits) -> bool {
        if let Some(old) = self.messages.take(message.topic_bytes()) {
            self.bytes -= old.message.len();
            self.release(old.message.publisher());
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
        self.stored += 1;
        self.messages.insert(Kept { message: message.clone(), number: self.stored });
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

    /// The way through every retained message that `filter` matches, in the order of their topics.
    pub(crate) fn walk(&self, filter: &str) -> Walk {
        Walk { next: literal_prefix(filter).into(), newest: self.stored }
    }

    /// Goes on along a way of `filter` for as long as each message that matches is taken, and there are `looks` left, of which
    /// each message costs one. Whether there is more.
    pub(crate) fn go_on(
        &self,
        filter: &str,
        walk: &mut Walk,
        looks: &mut usize,
        mut take: impl FnMut(&Message) -> ControlFlow<()>,
    ) -> bool {
        let from = |start: &[u8]| self.messages.range::<[u8], _>((Bound::Included(start), Bound::Unbounded));
        let mut rest = from(&walk.next);
        while let Some(Kept { message, number }) = rest.next() {
            let Some(left) = looks.checked_sub(1) else {
                walk.next = message.topic_bytes().into();
                return true;
            };
            *looks = left;
            match standing(filter, message.topic()) {
                Standing::Matches if *number > walk.newest => {}
                Standing::Matches => {
                    if take(message).is_break() {
                        walk.next = message.topic_bytes().into();
                        return true;
                    }
                }
                Standing::Differs => {}
                Standing::NothingBefore(next) => rest = from(next.as_bytes()),
                Standing::NothingAfter => break,
            }
        }
        false
    }

    pub(crate) fn len(&self) -> usize {
        self.messages.len()
    }
}

impl Borrow<[u8]> for Kept {
    fn borrow(&self) -> &[u8] {
        self.message.topic_bytes()
    }
}

impl Ord for Kept {
    fn cmp(&self, other: &Self) -> Ordering {
        self.message.topic_bytes().cmp(other.message.topic_bytes())
    }
}

impl PartialOrd for Kept {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Kept {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Kept {}

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
        let mut found = Vec::new();
        let mut walk = retained.walk(filter);
        while retained.go_on(filter, &mut walk, &mut 2, |message| {
            found.push(message.topic().to_owned());
            ControlFlow::Continue(())
        }) {}
        found
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

    #[test]
    fn a_walk_goes_on_where_it_was_stopped_and_leaves_out_what_came_later() {
        let mut retained = Retained::default();
        let limits = Limits::default();
        for topic in ["a", "b", "c", "d"] {
            assert!(retained.store(&message(topic, "1"), &limits));
        }
        let mut walk = retained.walk("#");
        let mut found = Vec::new();
        let mut step = |retained: &Retained, room: usize| {
            let before = found.len();
            let more = retained.go_on("#", &mut walk, &mut usize::MAX.clone(), |message| {
                if found.len() == before + room {
                    return ControlFlow::Break(());
                }
                found.push(message.topic().to_owned());
                ControlFlow::Continue(())
            });
            (found.concat(), more)
        };
        assert_eq!(step(&retained, 1), ("a".to_owned(), true));
        for (topic, payload) in [("a", "2"), ("b", ""), ("bb", "2"), ("d", "2")] {
            assert!(retained.store(&message(topic, payload), &limits));
        }
        assert_eq!(step(&retained, 9), ("ac".to_owned(), false), "b is gone, and what was published came by itself");
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
            let mut expected: Vec<String> = retained.messages.iter().map(|kept| kept.message.topic().to_owned()).collect();
            expected.retain(|topic| matches(&filter, topic));
            prop_assert_eq!(topics(&retained, &filter), expected, "{}", filter);
        }
    }
}
