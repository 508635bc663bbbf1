//! A client by its id: what outlives its connections.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::Notify;

use crate::access::Permissions;
use crate::codec::{CodecError, QoS, reason};
use crate::config::Limits;
use crate::message::Message;
use crate::retained::Walk;
use crate::subscriptions::Wish;

/// One client id that is connected, or whose session or will is kept.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) id: Box<str>,
    /// Unique in this run of the broker.
    pub(crate) number: u64,
    /// Held while a connection takes its place or its will is published, so that these come one after another.
    pub(crate) gate: tokio::sync::Mutex<()>,
    /// Signals that the connection has left.
    pub(crate) vacated: Notify,
    place: Mutex<Place>,
    outbox: Mutex<Outbox>,
    /// How many clients are congested, this one perhaps among them.
    congested: Arc<AtomicUsize>,
    /// Signals those who wait that this client is not congested any more.
    drained: Notify,
    /// Signals the connection that its outbox needs it.
    pub(crate) outbox_ready: Notify,
    pub(crate) counts: Counts,
}

/// What has been counted of one client.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    /// Messages received from it.
    pub(crate) received: AtomicU64,
    /// Messages sent to it.
    pub(crate) sent: AtomicU64,
    /// Messages for it that were dropped, whatever the reason.
    pub(crate) dropped: AtomicU64,
    /// Its publications and subscriptions that were refused.
    pub(crate) refused: AtomicU64,
    /// Times it was not read for a while because it sent too fast.
    pub(crate) throttled: AtomicU64,
}

/// Whether a connection is there, and what waits while none is.
#[derive(Debug, Default)]
pub(crate) struct Place {
    pub(crate) connected: bool,
    /// Whose it is, since the first connection.
    pub(crate) account: Option<Arc<str>>,
    /// Kept between connections.
    pub(crate) session: Option<Box<Session>>,
    /// When the kept session ends.
    pub(crate) expires: Option<Instant>,
    /// The will of the last connection and when it is due.
    pub(crate) will: Option<(Instant, Message)>,
    /// When the hub looks at this client: the earlier of these two.
    pub(crate) scheduled: Option<Instant>,
}

/// A session's state (MQTT 3.1.2.4) without its queue. A connection owns it while it lasts.
#[derive(Debug, Default)]
pub(crate) struct Session {
    pub(crate) subscriptions: HashMap<Box<str>, Wish>,
    /// Those among them of which retained messages are left to be handed over.
    pub(crate) walks: BTreeMap<Box<str>, Walk>,
    /// Sent at QoS 1 and 2 and not yet acknowledged, oldest first.
    pub(crate) inflight: VecDeque<Inflight>,
    /// What an earlier connection left unacknowledged and this one has not sent again yet, oldest first.
    pub(crate) again: VecDeque<Inflight>,
    /// Packet ids of QoS 2 messages received and not yet released.
    pub(crate) received: HashSet<u16>,
    /// The packet id given last.
    pub(crate) last_packet_id: u16,
}

/// A message that its receiver has not acknowledged.
#[derive(Debug)]
pub(crate) struct Inflight {
    pub(crate) packet_id: u16,
    /// The message, or `None` once PUBREC came and PUBREL was sent.
    pub(crate) queued: Option<Queued>,
}

/// What the receiver of a message sends next (MQTT 4.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// PUBACK
    Acknowledged,
    /// PUBREC
    Received,
    /// PUBCOMP
    Complete,
}

/// A message that waits for its receiver.
#[derive(Debug, Clone)]
pub(crate) struct Queued {
    pub(crate) message: Message,
    pub(crate) qos: QoS,
    pub(crate) retain: bool,
    pub(crate) subscription_ids: Vec<u32>,
}

#[derive(Debug, Default)]
struct Outbox {
    connected: bool,
    /// What its owner may see.
    permissions: Arc<Permissions>,
    /// The reason code with which the connection must end.
    closing: Option<u8>,
    queue: VecDeque<Queued>,
    bytes: usize,
    /// More than half of what may wait waits, and not yet a quarter again.
    congested: bool,
}

/// What became of a message for a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pushed {
    Queued,
    /// Queued in the place of this many messages at QoS 0.
    Displaced(u64),
    /// Dropped: the client is too slow.
    Dropped,
    /// Not kept: a message at QoS 0 for a client that is away.
    Away,
    /// Not for this client's eyes.
    Hidden,
    /// The session must end: it cannot hold a message at QoS 1 or 2.
    Overflow,
}

impl Client {
    pub(crate) fn new(id: Box<str>, number: u64, congested: Arc<AtomicUsize>) -> Client {
        Client {
            id,
            number,
            gate: tokio::sync::Mutex::default(),
            vacated: Notify::new(),
            place: Mutex::default(),
            outbox: Mutex::default(),
            congested,
            drained: Notify::new(),
            outbox_ready: Notify::new(),
            counts: Counts::default(),
        }
    }

    pub(crate) fn place(&self) -> MutexGuard<'_, Place> {
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn outbox(&self) -> MutexGuard<'_, Outbox> {
        self.outbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens the outbox for a new connection.
    pub(crate) fn open_outbox(&self, permissions: &Arc<Permissions>) {
        let mut outbox = self.outbox();
        outbox.connected = true;
        outbox.permissions = Arc::clone(permissions);
        outbox.closing = None;
    }

    /// Closes the outbox when its connection is gone. What waited at QoS 0 is lost with the connection.
    pub(crate) fn close_outbox(&self, keep: bool) {
        let mut outbox = self.outbox();
        outbox.connected = false;
        outbox.queue.retain(|queued| keep && queued.qos != QoS::AtMostOnce);
        outbox.queue.shrink_to_fit();
        outbox.bytes = outbox.queue.iter().map(|queued| queued.message.len()).sum();
        self.relieve(&mut outbox);
    }

    fn relieve(&self, outbox: &mut Outbox) {
        if std::mem::take(&mut outbox.congested) {
            self.congested.fetch_sub(1, Ordering::Relaxed);
            self.drained.notify_waiters();
        }
    }

    /// Waits until this client is not congested.
    pub(crate) async fn drained(&self) {
        let drained = self.drained.notified();
        if self.is_congested() {
            drained.await;
        }
    }

    /// Whether so much waits for this client that its publishers should wait.
    pub(crate) fn is_congested(&self) -> bool {
        self.outbox().congested
    }

    /// How many messages wait, and their bytes.
    pub(crate) fn waiting(&self) -> (usize, usize) {
        let outbox = self.outbox();
        (outbox.queue.len(), outbox.bytes)
    }

    /// Asks the connection to end with this reason code.
    pub(crate) fn close(&self, reason: u8) {
        self.outbox().closing.get_or_insert(reason);
        self.outbox_ready.notify_one();
    }

    /// The reason code with which the connection must end, if it must.
    pub(crate) fn closing(&self) -> Option<u8> {
        self.outbox().closing
    }

    /// Queues a message for this client, within the limits.
    pub(crate) fn push(&self, queued: Queued, limits: &Limits) -> Pushed {
        let mut outbox = self.outbox();
        let at_most_once = queued.qos == QoS::AtMostOnce;
        if at_most_once && !outbox.connected {
            return Pushed::Away;
        }
        if outbox.permissions.hides(queued.message.topic()) {
            return Pushed::Hidden;
        }
        if outbox.closing == Some(reason::QUOTA_EXCEEDED) {
            return Pushed::Dropped;
        }
        let size = queued.message.len();
        let mut displaced = 0;
        while outbox.queue.len() >= limits.queue_messages || outbox.bytes + size > limits.queue_bytes {
            match outbox.queue.front() {
                Some(front) if front.qos == QoS::AtMostOnce => {
                    outbox.bytes -= front.message.len();
                    outbox.queue.pop_front();
                    displaced += 1;
                }
                _ if at_most_once => return Pushed::Dropped,
                _ => return Pushed::Overflow,
            }
        }
        outbox.bytes += size;
        outbox.queue.push_back(queued);
        let half = outbox.queue.len() > limits.queue_messages / 2 || outbox.bytes > limits.queue_bytes / 2;
        if half && outbox.connected && !outbox.congested {
            outbox.congested = true;
            self.congested.fetch_add(1, Ordering::Relaxed);
        }
        let wake = outbox.connected && outbox.queue.len() == 1;
        drop(outbox);
        if wake {
            self.outbox_ready.notify_one();
        }
        if displaced > 0 { Pushed::Displaced(displaced) } else { Pushed::Queued }
    }

    /// Moves waiting messages into `taken` until they make up `bytes`, and no more than `window` at QoS 1 and 2.
    pub(crate) fn take(&self, taken: &mut Vec<Queued>, bytes: usize, mut window: usize, limits: &Limits) {
        let mut outbox = self.outbox();
        let mut size = 0;
        while size < bytes
            && let Some(front) = outbox.queue.front()
        {
            if front.qos != QoS::AtMostOnce {
                if window == 0 {
                    break;
                }
                window -= 1;
            }
            size += front.message.len();
            taken.extend(outbox.queue.pop_front());
        }
        outbox.bytes -= size;
        if outbox.queue.len() <= limits.queue_messages / 4 && outbox.bytes <= limits.queue_bytes / 4 {
            self.relieve(&mut outbox);
        }
    }
}

impl Inflight {
    /// The next step of its exchange must be this one.
    fn check(&self, step: Step) -> Result<(), CodecError> {
        let next = match &self.queued {
            Some(queued) if queued.qos == QoS::AtLeastOnce => Step::Acknowledged,
            Some(_) => Step::Received,
            None => Step::Complete,
        };
        if step == next { Ok(()) } else { Err(CodecError::Protocol("acknowledgement out of turn")) }
    }
}

impl Session {
    /// A packet id that is not in use (MQTT 2.3.1). There is one: the window is smaller than the number of ids.
    pub(crate) fn next_packet_id(&mut self) -> u16 {
        loop {
            self.last_packet_id = self.last_packet_id.checked_add(1).unwrap_or(1);
            let mut used = self.inflight.iter().chain(&self.again);
            if !used.any(|inflight| inflight.packet_id == self.last_packet_id) {
                return self.last_packet_id;
            }
        }
    }

    /// PUBACK or PUBCOMP, or PUBREC with an error: the message is done. `Ok(false)` if its id is unknown.
    ///
    /// # Errors
    /// If this is not its turn: then nothing has changed.
    pub(crate) fn settle(&mut self, packet_id: u16, step: Step) -> Result<bool, CodecError> {
        for sent in [&mut self.inflight, &mut self.again] {
            if let Some(index) = sent.iter().position(|inflight| inflight.packet_id == packet_id) {
                sent[index].check(step)?;
                return Ok(sent.remove(index).is_some());
            }
        }
        Ok(false)
    }

    /// PUBREC: from now on only PUBREL is sent again. `Ok(false)` if its id is unknown.
    ///
    /// # Errors
    /// If the message was sent at QoS 1.
    pub(crate) fn released(&mut self, packet_id: u16) -> Result<bool, CodecError> {
        let mut sent = self.inflight.iter_mut().chain(&mut self.again);
        let Some(inflight) = sent.find(|inflight| inflight.packet_id == packet_id) else { return Ok(false) };
        if inflight.queued.is_some() {
            inflight.check(Step::Received)?;
            inflight.queued = None;
        }
        Ok(true)
    }

    /// A new connection: what is in flight is to be sent again (MQTT 4.4), within its own window.
    pub(crate) fn resume(&mut self) {
        let rest = std::mem::take(&mut self.again);
        self.again = std::mem::take(&mut self.inflight);
        self.again.extend(rest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Clock, Parts};

    fn queued(qos: QoS, payload: &str) -> Queued {
        let parts = Parts {
            topic: "t",
            payload: payload.as_bytes(),
            qos,
            retain: false,
            publisher: 0,
            expiry: None,
            properties: &[],
        };
        let message = Message::new(parts, Clock::start());
        Queued { message, qos, retain: false, subscription_ids: Vec::new() }
    }

    fn limits(queue_messages: usize) -> Limits {
        Limits { queue_messages, ..Limits::default() }
    }

    #[test]
    fn a_full_outbox_drops_the_oldest_at_qos_0_and_never_one_at_qos_1() {
        let client = Client::new("a".into(), 1, Arc::default());
        client.open_outbox(&Arc::default());
        let limits = limits(2);
        assert_eq!(client.push(queued(QoS::AtMostOnce, "1"), &limits), Pushed::Queued);
        assert_eq!(client.push(queued(QoS::AtLeastOnce, "2"), &limits), Pushed::Queued);
        assert_eq!(client.push(queued(QoS::AtMostOnce, "3"), &limits), Pushed::Displaced(1));
        assert_eq!(client.push(queued(QoS::AtMostOnce, "4"), &limits), Pushed::Dropped);
        assert_eq!(client.push(queued(QoS::AtLeastOnce, "5"), &limits), Pushed::Overflow);
        let mut taken = Vec::new();
        client.take(&mut taken, usize::MAX, 10, &limits);
        let payloads: Vec<_> = taken.iter().map(|queued| queued.message.payload()).collect();
        assert_eq!(payloads, [b"2", b"3"]);
    }

    #[test]
    fn an_absent_client_keeps_only_what_is_above_qos_0() {
        let client = Client::new("a".into(), 1, Arc::default());
        client.open_outbox(&Arc::default());
        client.push(queued(QoS::AtMostOnce, "1"), &limits(9));
        client.push(queued(QoS::AtLeastOnce, "2"), &limits(9));
        client.close_outbox(true);
        assert_eq!(client.push(queued(QoS::AtMostOnce, "3"), &limits(9)), Pushed::Away);
        assert_eq!(client.push(queued(QoS::ExactlyOnce, "4"), &limits(9)), Pushed::Queued);
        assert_eq!(client.outbox().queue.len(), 2);
    }

    #[test]
    fn the_window_holds_back_qos_1_in_order() {
        let client = Client::new("a".into(), 1, Arc::default());
        client.open_outbox(&Arc::default());
        for payload in ["1", "2", "3"] {
            client.push(queued(QoS::AtLeastOnce, payload), &limits(9));
        }
        let mut taken = Vec::new();
        client.take(&mut taken, usize::MAX, 2, &limits(9));
        assert_eq!((taken.len(), client.outbox().queue.len()), (2, 1));
    }

    #[test]
    fn a_half_full_outbox_is_congested_until_it_is_a_quarter_full() {
        let count = Arc::new(AtomicUsize::new(0));
        let client = Client::new("a".into(), 1, Arc::clone(&count));
        client.open_outbox(&Arc::default());
        let limits = limits(8);
        let mut taken = Vec::new();
        let mut states = Vec::new();
        for _ in 0..5 {
            client.push(queued(QoS::AtLeastOnce, "x"), &limits);
            states.push(client.is_congested());
        }
        for _ in 0..4 {
            client.take(&mut taken, 1, 9, &limits);
            states.push(client.is_congested());
        }
        assert_eq!(states, [false, false, false, false, true, true, true, false, false]);
        assert_eq!(count.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn packet_ids_skip_those_in_use_and_0() {
        let mut session = Session { last_packet_id: u16::MAX - 1, ..Session::default() };
        session.inflight.push_back(Inflight { packet_id: 1, queued: None });
        assert_eq!([session.next_packet_id(), session.next_packet_id()], [u16::MAX, 2]);
        assert_eq!((session.settle(1, Step::Complete), session.settle(1, Step::Complete)), (Ok(true), Ok(false)));
    }
}
