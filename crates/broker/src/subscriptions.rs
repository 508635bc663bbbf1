//! Which client gets which topic: a tree of filter levels.

use std::collections::HashMap;
use std::sync::Arc;

use crate::client::Client;
use crate::codec::{QoS, SubscriptionOptions};

/// All subscriptions of all clients.
#[derive(Debug, Default)]
pub(crate) struct Subscriptions {
    root: Node,
    count: usize,
}

/// What one subscription of a client asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Wish {
    pub(crate) options: SubscriptionOptions,
    /// Subscription identifier (MQTT 5).
    pub(crate) id: Option<u32>,
}

/// One client to which a message goes, once, however many of its filters match (MQTT 3.3.5).
#[derive(Debug)]
pub(crate) struct Recipient<'a> {
    pub(crate) client: &'a Arc<Client>,
    /// The highest QoS of the matching subscriptions.
    pub(crate) qos: QoS,
    pub(crate) retain_as_published: bool,
    pub(crate) subscription_ids: Vec<u32>,
}

#[derive(Debug, Default)]
struct Node {
    children: HashMap<Box<str>, Node>,
    /// Filters that end here.
    here: Vec<(Arc<Client>, Wish)>,
}

impl Subscriptions {
    /// Adds or replaces a subscription.
    pub(crate) fn insert(&mut self, filter: &str, client: &Arc<Client>, wish: Wish) {
        let mut node = &mut self.root;
        for level in filter.split('/') {
            // `entry` would allocate the key also where the level exists.
            if !node.children.contains_key(level) {
                node.children.insert(level.into(), Node::default());
            }
            let Some(child) = node.children.get_mut(level) else { return };
            node = child;
        }
        match node.here.iter_mut().find(|(known, _)| Arc::ptr_eq(known, client)) {
            Some((_, old)) => *old = wish,
            None => {
                node.here.push((Arc::clone(client), wish));
                self.count += 1;
            }
        }
    }

    /// Takes a subscription away.
    pub(crate) fn remove(&mut self, filter: &str, client: &Arc<Client>) {
        fn remove(node: &mut Node, filter: Option<&str>, client: &Arc<Client>) -> bool {
            let Some(filter) = filter else {
                let at = node.here.iter().position(|(known, _)| Arc::ptr_eq(known, client));
                return at.map(|at| node.here.swap_remove(at)).is_some();
            };
            let (level, rest) = split(filter);
            let Some(child) = node.children.get_mut(level) else { return false };
            let removed = remove(child, rest, client);
            if child.here.is_empty() && child.children.is_empty() {
                node.children.remove(level);
            }
            removed
        }
        self.count -= usize::from(remove(&mut self.root, Some(filter), client));
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.count
    }

    /// Whether any filter begins with this level.
    pub(crate) fn has_below(&self, level: &str) -> bool {
        self.root.children.contains_key(level)
    }

    /// Whether a message on `topic` goes to anybody.
    pub(crate) fn has_recipients(&self, topic: &str) -> bool {
        let mut found = Vec::new();
        collect(&self.root, Some(topic), !topic.starts_with('$'), &mut found);
        found.iter().any(|subscriptions| !subscriptions.is_empty())
    }

    /// A client that gets messages on `topic` at QoS 1 or 2 and is congested.
    pub(crate) fn congested_recipient(&self, topic: &str) -> Option<Arc<Client>> {
        let mut found = Vec::new();
        collect(&self.root, Some(topic), !topic.starts_with('$'), &mut found);
        let mut above_0 = found.into_iter().flatten().filter(|(_, wish)| wish.options.qos != QoS::AtMostOnce);
        above_0.find(|(client, _)| client.is_congested()).map(|(client, _)| Arc::clone(client))
    }

    /// Hands every client that gets a message on `topic` to `each`. `publisher` is left out where it asked for no local
    /// copies (MQTT 5 3.8.3.1).
    pub(crate) fn recipients<'a>(&'a self, topic: &str, publisher: u64, mut each: impl FnMut(Recipient<'a>)) {
        let mut found = Vec::new();
        // MQTT 4.7.2-1: wildcards at the first level do not match topics that begin with '$'.
        collect(&self.root, Some(topic), !topic.starts_with('$'), &mut found);
        if let [one] = found[..] {
            one.iter().filter_map(|entry| recipient(entry, publisher)).for_each(each);
            return;
        }
        let mut all: Vec<_> = found.into_iter().flatten().filter_map(|entry| recipient(entry, publisher)).collect();
        all.sort_by_key(|recipient| recipient.client.number);
        let mut all = all.into_iter();
        let Some(mut current) = all.next() else { return };
        for next in all {
            if Arc::ptr_eq(current.client, next.client) {
                current.qos = current.qos.max(next.qos);
                current.retain_as_published |= next.retain_as_published;
                current.subscription_ids.extend(next.subscription_ids);
            } else {
                each(std::mem::replace(&mut current, next));
            }
        }
        each(current);
    }
}

fn recipient<'a>((client, wish): &'a (Arc<Client>, Wish), publisher: u64) -> Option<Recipient<'a>> {
    if wish.options.no_local && client.number == publisher {
        return None;
    }
    Some(Recipient {
        client,
        qos: wish.options.qos,
        retain_as_published: wish.options.retain_as_published,
        subscription_ids: wish.id.into_iter().collect(),
    })
}

/// Collects the subscriptions below `node` that match the rest of a topic. Goes no deeper than the deepest filter.
fn collect<'a>(node: &'a Node, topic: Option<&str>, wildcards: bool, found: &mut Vec<&'a [(Arc<Client>, Wish)]>) {
    if wildcards && let Some(all) = node.children.get("#") {
        found.push(&all.here);
    }
    let Some(topic) = topic else {
        found.push(&node.here);
        return;
    };
    let (level, rest) = split(topic);
    if let Some(child) = node.children.get(level) {
        collect(child, rest, true, found);
    }
    if wildcards && let Some(child) = node.children.get("+") {
        collect(child, rest, true, found);
    }
}

fn split(levels: &str) -> (&str, Option<&str>) {
    match levels.split_once('/') {
        Some((level, rest)) => (level, Some(rest)),
        None => (levels, None),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::codec::RetainHandling;
    use crate::topic::matches;

    fn wish(qos: QoS, id: Option<u32>) -> Wish {
        let retain_handling = RetainHandling::EverySubscribe;
        Wish { options: SubscriptionOptions { qos, no_local: false, retain_as_published: false, retain_handling }, id }
    }

    fn numbers(tree: &Subscriptions, topic: &str) -> Vec<u64> {
        let mut numbers = Vec::new();
        tree.recipients(topic, 0, |recipient| numbers.push(recipient.client.number));
        numbers.sort_unstable();
        numbers
    }

    #[test]
    fn overlapping_filters_deliver_once_at_the_highest_qos_with_every_id() {
        let mut tree = Subscriptions::default();
        let client = Arc::new(Client::new("a".into(), 1, Arc::default()));
        tree.insert("a/#", &client, wish(QoS::AtMostOnce, Some(5)));
        tree.insert("a/+", &client, wish(QoS::ExactlyOnce, Some(6)));
        let mut seen = Vec::new();
        tree.recipients("a/b", 0, |r| seen.push((r.qos, r.subscription_ids)));
        seen[0].1.sort_unstable();
        assert_eq!(seen, [(QoS::ExactlyOnce, vec![5, 6])]);
    }

    #[test]
    fn no_local_leaves_the_publisher_out() {
        let mut tree = Subscriptions::default();
        let client = Arc::new(Client::new("a".into(), 1, Arc::default()));
        let mut wish = wish(QoS::AtMostOnce, None);
        wish.options.no_local = true;
        tree.insert("a", &client, wish);
        let mut seen = 0;
        tree.recipients("a", 1, |_| seen += 1);
        assert_eq!(seen, 0);
        tree.recipients("a", 2, |_| seen += 1);
        assert_eq!(seen, 1);
    }

    proptest! {
        /// The tree agrees with the plain definition, also after removals, and leaves nothing behind.
        #[test]
        fn the_tree_matches_as_the_standard_says(
            filters in proptest::collection::vec("([ab$]|[+]|){1}(/([ab]|[+]|)){0,3}(/#)?|#", 1..12),
            topics in proptest::collection::vec("[ab$]?(/[ab]?){0,4}", 1..12),
            removed in 0usize..12,
        ) {
            let mut tree = Subscriptions::default();
            let clients: Vec<_> = (0..filters.len()).map(|n| Arc::new(Client::new("c".into(), n as u64 + 1, Arc::default()))).collect();
            for (filter, client) in filters.iter().zip(&clients) {
                tree.insert(filter, client, wish(QoS::AtMostOnce, None));
            }
            for (filter, client) in filters.iter().zip(&clients).take(removed) {
                tree.remove(filter, client);
            }
            for topic in &topics {
                let mut expected: Vec<u64> = filters.iter().zip(&clients).skip(removed)
                    .filter(|(filter, _)| matches(filter, topic)).map(|(_, client)| client.number).collect();
                expected.sort_unstable();
                prop_assert_eq!(numbers(&tree, topic), expected, "{}", topic);
            }
            for (filter, client) in filters.iter().zip(&clients) {
                tree.remove(filter, client);
            }
            prop_assert!(tree.root.children.is_empty() && tree.len() == 0);
        }
    }
}
