//! What slaves are to be told, put together: of each attempt the newest only, and several in one message.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use rpicluster_core::Moment;
use rpicluster_core::tasks::TaskEffect;
use rpicluster_protocol::{
    AttemptKey, Envelope, JobId, SlaveId, TaskAck, TaskCancel, TaskLease, TaskOffer, ToSlave, encode_to_slave,
};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use crate::letters::Letter;

/// How long an acknowledgement of an end may wait for others: its slave needs it for nothing but to forget. Far less than
/// the second after which that makes the end durable for its own sake.
pub(super) const ACK_WAIT: Duration = Duration::from_millis(50);

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
    /// Since when there are some.
    acks_since: Option<Moment>,
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

    /// When there is something to hand out.
    pub(super) fn poll_timeout(&self) -> Option<Moment> {
        self.0.values().map(OfSlave::due).min()
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
    pub(super) fn pay(&mut self, letters: &mpsc::Sender<Letter>, now: Moment) {
        let mut left = BTreeMap::new();
        while let Some((slave, mut of_slave)) = self.0.pop_first() {
            of_slave.acks_since.get_or_insert(now);
            match letters.try_reserve() {
                Ok(place) => {
                    let messages = of_slave.messages(now);
                    if !messages.is_empty() {
                        place.send(Letter { slave: slave.clone(), messages });
                    }
                    if !of_slave.acks.is_empty() {
                        left.insert(slave, of_slave);
                    }
                }
                Err(TrySendError::Full(())) => {
                    left.insert(slave, of_slave);
                    break;
                }
                // The master stops: nothing is owed any more.
                Err(TrySendError::Closed(())) => return self.0.clear(),
            }
        }
        self.0.append(&mut left);
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

    /// When something of it is to be said.
    fn due(&self) -> Moment {
        let is_patient = self.cancels.is_empty() && self.offers.is_empty() && self.leases.is_empty();
        if is_patient { self.acks_due() } else { Moment::default() }
    }

    fn acks_due(&self) -> Moment {
        // More output follows what is acknowledged of it.
        let is_urgent =
            self.acks.len() >= TOGETHER_MAX || self.acks.values().any(|ack| ack.stdout > 0 || ack.stderr > 0);
        self.acks_since.filter(|_| !is_urgent).map_or(Moment::default(), |since| since + ACK_WAIT)
    }

    /// What is to be said now.
    fn messages(&mut self, now: Moment) -> Vec<Bytes> {
        let mut messages = Vec::new();
        let acks_due = self.acks_due();
        let OfSlave { acks, acks_since, cancels, offers, leases } = self;
        if acks_due <= now {
            *acks_since = None;
            pack(std::mem::take(acks).into_values().collect(), ToSlave::TaskAck, &mut messages);
        }
        let (cancels, mut offers) = (std::mem::take(cancels), std::mem::take(offers));
        // What is to end is not begun before.
        offers.retain(|key, _| !cancels.contains_key(key));
        pack(cancels.into_values().collect(), ToSlave::TaskCancel, &mut messages);
        pack(offers.into_values().collect(), ToSlave::TaskOffer, &mut messages);
        for lease in leases.drain(..) {
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

    const NOW: Moment = Moment::from_millis(1_000);

    fn messages(outgoing: &mut Outgoing) -> Vec<ToSlave> {
        messages_at(outgoing, NOW)
    }

    fn messages_at(outgoing: &mut Outgoing, now: Moment) -> Vec<ToSlave> {
        let (sender, mut letters) = mpsc::channel(10);
        outgoing.pay(&sender, now);
        let Ok(letter) = letters.try_recv() else { return Vec::new() };
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
        assert_eq!(outgoing.poll_timeout(), None);
    }

    /// A slave may say of an attempt that nobody knows that it wrote whatever it likes.
    #[test]
    fn acknowledgements_of_any_length_are_said() {
        let mut outgoing = Outgoing::default();
        let ack = TaskAck { key: key(0), seq: 2, stdout: u64::MAX, stderr: u64::MAX };
        outgoing.take(TaskEffect::Ack(slave(), ack));
        assert_eq!(messages(&mut outgoing), [ToSlave::TaskAck(vec![ack])]);
    }

    #[test]
    fn acknowledgements_of_ends_wait_for_each_other_and_hold_up_nothing() {
        let mut outgoing = Outgoing::default();
        let ack = |index| TaskAck { key: key(index), seq: 2, stdout: 0, stderr: 0 };
        outgoing.take(TaskEffect::Ack(slave(), ack(0)));
        assert_eq!(messages(&mut outgoing), []);
        assert_eq!(outgoing.poll_timeout(), Some(NOW + ACK_WAIT));
        outgoing.take(TaskEffect::Ack(slave(), ack(1)));
        outgoing.take(offer(2, 1));
        assert!(outgoing.poll_timeout() <= Some(NOW));
        assert!(matches!(&messages(&mut outgoing)[..], [ToSlave::TaskOffer(offers)] if offers.len() == 1));
        assert_eq!(messages_at(&mut outgoing, NOW + ACK_WAIT), [ToSlave::TaskAck(vec![ack(0), ack(1)])]);
        assert_eq!(outgoing.poll_timeout(), None);
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
        outgoing.pay(&sender, NOW);
        outgoing.pay(&sender, NOW + ACK_WAIT);
        assert!(outgoing.poll_timeout().is_some());
        assert_eq!(letters.try_recv().unwrap().slave.as_str(), "a");
        outgoing.pay(&sender, NOW + ACK_WAIT);
        assert_eq!(letters.try_recv().unwrap().slave.as_str(), "b");
        assert_eq!(outgoing.poll_timeout(), None);
    }
}
