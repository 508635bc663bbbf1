//! What slaves are to be told, put together: of each attempt the newest only, and several in one message.

use std::collections::BTreeMap;

use bytes::Bytes;
use rpicluster_core::tasks::TaskEffect;
use rpicluster_protocol::{
    AttemptKey, Envelope, JobId, SlaveId, TaskAck, TaskCancel, TaskLease, TaskOffer, ToSlave, encode_to_slave,
};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use crate::letters::Letter;

/// How many leases of one slave wait at most: each asks again.
const LEASES_MAX: usize = 64;

/// How many go into one message, unless they are too long for it.
const TOGETHER_MAX: usize = 128;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Outgoing(BTreeMap<SlaveId, OfSlave>);

#[derive(Debug, Default)]
struct OfSlave {
    acks: BTreeMap<AttemptKey, TaskAck>,
    cancels: BTreeMap<AttemptKey, TaskCancel>,
    offers: BTreeMap<AttemptKey, TaskOffer>,
    leases: Vec<TaskLease>,
}

impl Outgoing {
    /// Takes what is to be said to a slave; gives back what is not.
    pub(super) fn take(&mut self, effect: TaskEffect) -> Option<TaskEffect> {
        match effect {
            TaskEffect::Ack(slave, ack) => self.of(slave).ack(ack),
            TaskEffect::Cancel(slave, cancel) => drop(self.of(slave).cancels.insert(cancel.key, cancel)),
            TaskEffect::Offer(slave, offer) => drop(self.of(slave).offers.insert(offer.key, *offer)),
            TaskEffect::LeaseAck(slave, lease) => self.of(slave).lease(lease),
            other => return Some(other),
        }
        None
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Nothing of this job was ever said.
    pub(super) fn let_go(&mut self, job: JobId) {
        for of_slave in self.0.values_mut() {
            of_slave.offers.retain(|key, _| key.task.job != job);
            of_slave.cancels.retain(|key, _| key.task.job != job);
        }
    }

    /// Adds what came later.
    pub(super) fn append(&mut self, later: &mut Outgoing) {
        for (slave, later) in std::mem::take(&mut later.0) {
            let of_slave = self.of(slave);
            later.acks.into_values().for_each(|ack| of_slave.ack(ack));
            of_slave.cancels.extend(later.cancels);
            of_slave.offers.extend(later.offers);
            later.leases.into_iter().for_each(|lease| of_slave.lease(lease));
        }
    }

    /// Hands letters out, as far as the queue takes them.
    pub(super) fn pay(&mut self, letters: &mpsc::Sender<Letter>) {
        while let Some((slave, of_slave)) = self.0.pop_first() {
            match letters.try_reserve() {
                Ok(place) => place.send(Letter { slave, messages: of_slave.messages() }),
                Err(TrySendError::Full(())) => {
                    self.0.insert(slave, of_slave);
                    return;
                }
                // The master stops: nothing is owed any more.
                Err(TrySendError::Closed(())) => return self.0.clear(),
            }
        }
    }

    fn of(&mut self, slave: SlaveId) -> &mut OfSlave {
        self.0.entry(slave).or_default()
    }
}

impl OfSlave {
    /// Acknowledgements are cumulative: of two, each number counts that is higher.
    fn ack(&mut self, ack: TaskAck) {
        let known = self.acks.entry(ack.key).or_insert(ack);
        known.seq = known.seq.max(ack.seq);
        known.stdout = known.stdout.max(ack.stdout);
        known.stderr = known.stderr.max(ack.stderr);
    }

    fn lease(&mut self, lease: TaskLease) {
        if self.leases.len() >= LEASES_MAX {
            self.leases.remove(0);
        }
        self.leases.push(lease);
    }

    fn messages(self) -> Vec<Bytes> {
        let mut messages = Vec::new();
        let OfSlave { acks, cancels, mut offers, leases } = self;
        // What is to end is not begun before.
        offers.retain(|key, _| !cancels.contains_key(key));
        pack(acks.into_values().collect(), ToSlave::TaskAck, &mut messages);
        pack(cancels.into_values().collect(), ToSlave::TaskCancel, &mut messages);
        pack(offers.into_values().collect(), ToSlave::TaskOffer, &mut messages);
        for lease in leases {
            // It answers a message of the same length.
            let encoded = encode_to_slave(&Envelope::new(ToSlave::LeaseAck(lease)));
            messages.extend(encoded.ok().map(Bytes::from));
        }
        messages
    }
}

/// Puts as many into a message as fit.
fn pack<T: Clone>(all: Vec<T>, message: fn(Vec<T>) -> ToSlave, messages: &mut Vec<Bytes>) {
    for some in all.chunks(TOGETHER_MAX) {
        pack_some(some, message, messages);
    }
}

fn pack_some<T: Clone>(some: &[T], message: fn(Vec<T>) -> ToSlave, messages: &mut Vec<Bytes>) {
    match encode_to_slave(&Envelope::new(message(some.to_vec()))) {
        Ok(encoded) => messages.push(encoded.into()),
        // One alone fits: the longest offer of a job is tried when it is submitted.
        Err(_) if some.len() > 1 => {
            let (first, second) = some.split_at(some.len() / 2);
            pack_some(first, message, messages);
            pack_some(second, message, messages);
        }
        Err(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use rpicluster_protocol::limits::MESSAGE_BYTES_MAX;
    use rpicluster_protocol::{Epoch, TaskId, TaskSpec, Work, parse_to_slave};

    use super::*;

    fn key(index: u32) -> AttemptKey {
        AttemptKey { task: TaskId { job: JobId(1), index }, attempt: 1, epoch: Epoch(7) }
    }

    fn slave() -> SlaveId {
        "pi".parse().unwrap()
    }

    fn offer(index: u32, length: usize) -> TaskEffect {
        let spec: TaskSpec = serde_json::from_value(serde_json::json!({
            "kind": "exec", "argv": ["x".repeat(length)]
        }))
        .unwrap();
        assert!(matches!(spec.work, Work::Exec { .. }));
        let offer = TaskOffer { key: key(index), session: "s".parse().unwrap(), lease_ms: 1, spec };
        TaskEffect::Offer(slave(), Box::new(offer))
    }

    fn messages(outgoing: &mut Outgoing) -> Vec<ToSlave> {
        let (sender, mut letters) = mpsc::channel(10);
        outgoing.pay(&sender);
        let letter = letters.try_recv().unwrap();
        assert!(letter.messages.iter().all(|message| message.len() <= MESSAGE_BYTES_MAX));
        letter.messages.iter().map(|message| parse_to_slave(message).unwrap().message).collect()
    }

    #[test]
    fn acknowledgements_of_an_attempt_become_one_and_many_share_a_message() {
        let mut outgoing = Outgoing::default();
        let ack = |index, seq, stdout| TaskAck { key: key(index), seq, stdout, stderr: 0 };
        for told in [ack(0, 2, 0), ack(0, 0, 9), ack(1, 1, 0)] {
            assert!(outgoing.take(TaskEffect::Ack(slave(), told)).is_none());
        }
        assert_eq!(messages(&mut outgoing), [ToSlave::TaskAck(vec![ack(0, 2, 9), ack(1, 1, 0)])]);
        assert!(outgoing.is_empty());
    }

    #[test]
    fn long_offers_are_spread_over_messages_and_none_is_lost() {
        let mut outgoing = Outgoing::default();
        for index in 0..10 {
            outgoing.take(offer(index, MESSAGE_BYTES_MAX / 3));
        }
        let messages = messages(&mut outgoing);
        let offers = |message: &ToSlave| match message {
            ToSlave::TaskOffer(offers) => offers.iter().map(|offer| offer.key.task.index).collect::<Vec<_>>(),
            other => panic!("{other:?}"),
        };
        assert!(messages.len() < 10);
        assert_eq!(messages.iter().flat_map(offers).collect::<Vec<_>>(), (0..10).collect::<Vec<_>>());
    }

    #[test]
    fn what_is_canceled_at_once_is_not_offered_and_what_was_taken_back_is_not_said() {
        let mut outgoing = Outgoing::default();
        outgoing.take(offer(0, 1));
        outgoing.take(TaskEffect::Cancel(slave(), TaskCancel { key: key(0) }));
        assert_eq!(messages(&mut outgoing), [ToSlave::TaskCancel(vec![TaskCancel { key: key(0) }])]);
        outgoing.take(offer(0, 1));
        outgoing.let_go(JobId(1));
        assert_eq!(messages(&mut outgoing), []);
    }

    #[test]
    fn a_full_queue_leaves_owed_what_it_does_not_take() {
        let (sender, mut letters) = mpsc::channel(1);
        let mut outgoing = Outgoing::default();
        for name in ["a", "b"] {
            let ack = TaskAck { key: key(0), seq: 1, stdout: 0, stderr: 0 };
            outgoing.take(TaskEffect::Ack(name.parse().unwrap(), ack));
        }
        outgoing.pay(&sender);
        assert!(!outgoing.is_empty());
        assert_eq!(letters.try_recv().unwrap().slave.as_str(), "a");
        outgoing.pay(&sender);
        assert_eq!(letters.try_recv().unwrap().slave.as_str(), "b");
        assert!(outgoing.is_empty());
    }
}
