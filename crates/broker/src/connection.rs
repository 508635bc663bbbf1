//! One client's connection after its CONNECT: bytes in, bytes out, and nothing that waits for somebody else.

mod outgoing;

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tracing::info;

use crate::allowance::Allowance;
use crate::client::{Queued, Step};
use crate::codec::{
    Ack, CodecError, Disconnect, PINGRESP, Packet, Publish, QoS, Rules, Subscribe, Unsubscribe, Version, answer_length,
    decode, encode_ack, encode_disconnect, encode_suback, encode_unsuback, reason, split_frame,
};
use crate::hub::{Attachment, Hub};
use crate::message::{Message, Parts};
use crate::router::RouterStopped;
use crate::stats::Stats;
use crate::subscriptions::Wish;
use crate::topic::quoted;

/// How much is read at once, and about how much is encoded ahead of the socket.
const CHUNK: usize = 16 * 1024;
/// Above this much unsent output a client that does not read is not read from either.
const OUTPUT_MAX: usize = 256 * 1024;
/// How long a connection that is taken over may go on reading what had arrived (see rumqttd's loss of QoS 0 messages).
const DRAIN_TIMEOUT: Duration = Duration::from_millis(100);
/// After this long without a byte nothing more had arrived: timers fire after the sockets were looked at.
const DRAIN_QUIET: Duration = Duration::from_millis(1);
/// How long a peer is given to read the last packet.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(1);
/// Who publishes no more than this a second, at QoS 1 and 2, is not what makes a subscriber slow, and is not held for it:
/// a flooder and an idle reader together must not delay what everybody else has to say.
const MODEST_MESSAGES: u32 = 20;
const MODEST_BYTES: u32 = 64 * 1024;
/// A timer that fires later than this says that the whole process was away; sockets are read before anybody is judged.
const AWAY: Duration = Duration::from_millis(500);

/// Everything a connection needs; it ends with [`Connection::run`].
pub(crate) struct Connection<R, W> {
    hub: Arc<Hub>,
    attachment: Attachment,
    settings: Settings,
    read: R,
    write: W,
    /// Received bytes that do not make up a packet yet, or wait for what is held.
    input: Vec<u8>,
    output: Vec<u8>,
    /// How much of `output` has been written.
    written: usize,
    /// Written, but perhaps kept back by the encryption.
    unflushed: bool,
    held: Option<Held>,
    last_received: Instant,
    /// Since when the peer has not taken any output.
    stalled_since: Option<Instant>,
    taken: Vec<Queued>,
    allowance: Allowance,
    /// See [`MODEST_MESSAGES`].
    modest: Allowance,
    /// See [`Hub::has_subscribers`].
    known_topics: HashMap<Box<str>, (u64, bool)>,
}

/// What CONNECT settled.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Settings {
    pub(crate) version: Version,
    pub(crate) encrypted: bool,
    /// 1.5 times the keep alive (MQTT 3.1.2.10), or `None` if it is 0.
    pub(crate) silence_max: Option<Duration>,
    /// How many messages at QoS 1 and 2 may be in flight to the client.
    pub(crate) window: u16,
    /// The longest packet the client takes (MQTT 5).
    pub(crate) packet_bytes_max: usize,
}

/// A packet whose effect has to wait; nothing after it is looked at until then.
struct Held {
    until: Pin<Box<dyn Future<Output = Result<(), RouterStopped>> + Send>>,
    then: Then,
}

enum Then {
    /// A PUBLISH was accepted.
    Acknowledge { qos: QoS, packet_id: u16 },
    /// Everything published before this SUBSCRIBE has arrived.
    Subscribe { packet_id: u16, filters: Vec<(String, Wish)> },
}

/// Why a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum End {
    /// The client said goodbye.
    #[error("disconnected")]
    Disconnected,
    /// The client said goodbye and wants its will published (MQTT 5).
    #[error("disconnected with will")]
    DisconnectedWithWill,
    /// The socket was closed or broke.
    #[error("connection lost")]
    Lost,
    /// The client broke the standard.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// The broker ends the connection, with this reason code.
    #[error("closed with reason code {0:#04x}")]
    Closed(u8),
    /// The peer did not read.
    #[error("peer does not read")]
    Stalled,
    /// The router is gone.
    #[error(transparent)]
    Router(#[from] RouterStopped),
}

enum Event {
    Written(std::io::Result<usize>),
    Read(std::io::Result<usize>),
    Outbox,
    Settled(Result<(), RouterStopped>),
    /// Everybody else had a turn.
    Turn,
    /// A client that sent too fast may be read again.
    Refilled,
    Timer,
}

impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin> Connection<R, W> {
    /// A connection whose CONNACK is the beginning of `output` and whose first unread bytes are `input`.
    pub(crate) fn new(
        hub: Arc<Hub>,
        attachment: Attachment,
        settings: Settings,
        (read, write): (R, W),
        input: Vec<u8>,
        output: Vec<u8>,
    ) -> Self {
        let allowance = Allowance::new(hub.limits.packets_per_second, hub.limits.bytes_per_second, Instant::now());
        Connection {
            hub,
            attachment,
            settings,
            read,
            write,
            input,
            output,
            written: 0,
            unflushed: false,
            held: None,
            last_received: Instant::now(),
            stalled_since: None,
            taken: Vec::new(),
            allowance,
            modest: Allowance::new(MODEST_MESSAGES, MODEST_BYTES, Instant::now()),
            known_topics: HashMap::new(),
        }
    }

    /// Serves the client until it goes or must go; then gives up its place, with its will if the standard says so.
    pub(crate) async fn run(mut self) -> End {
        self.attachment.session.resume();
        let mut end = match self.serve().await {
            Ok(never) => match never {},
            Err(end) => end,
        };
        // What was read goes on its way, also that of a client that is gone by now.
        if end == End::Closed(reason::SESSION_TAKEN_OVER) || self.held.is_some() {
            end = self.drain().await.err().unwrap_or(end);
        }
        if matches!(self.held, Some(Held { then: Then::Acknowledge { .. }, .. })) {
            Stats::add(&self.hub.stats.dropped_unaccepted, 1);
        }
        if matches!(end, End::Closed(_)) {
            self.fill();
        }
        let (code, keeps_will) = match end {
            End::Disconnected => (None, false),
            End::DisconnectedWithWill | End::Lost | End::Stalled => (None, true),
            End::Codec(error) => (Some(error.reason()), true),
            // MQTT 3.1.2.5: a server that shuts down may leave wills unpublished; the sessions end with it.
            End::Closed(reason::SERVER_SHUTTING_DOWN) => (Some(reason::SERVER_SHUTTING_DOWN), false),
            // Its account is gone: nothing more is said in its name.
            End::Closed(reason::ADMINISTRATIVE_ACTION) => (Some(reason::ADMINISTRATIVE_ACTION), false),
            End::Closed(code) => (Some(code), true),
            End::Router(_) => (None, false),
        };
        if !keeps_will {
            self.attachment.will = None;
        }
        if matches!(end, End::Closed(reason::QUOTA_EXCEEDED | reason::ADMINISTRATIVE_ACTION)) {
            self.attachment.expiry = 0;
        }
        let Connection { attachment, settings, mut write, mut output, written, .. } = self;
        drop(attachment);
        if let Some(code) = code {
            encode_disconnect(&mut output, settings.version, code);
        }
        // Who left right after a packet still gets the answer to it.
        if code.is_some() || matches!(end, End::Disconnected | End::DisconnectedWithWill) {
            let farewell = async {
                write.write_all(&output[written..]).await?;
                write.shutdown().await
            };
            // The peer may be the one that does not read; it had its time.
            let _ = tokio::time::timeout(FAREWELL_TIMEOUT, farewell).await;
        }
        end
    }

    async fn serve(&mut self) -> Result<std::convert::Infallible, End> {
        let timer = tokio::time::sleep_until(self.deadline().into());
        tokio::pin!(timer);
        self.process()?;
        loop {
            self.fill();
            match self.next_event(timer.as_mut()).await {
                Event::Written(result) => self.on_written(result)?,
                Event::Read(result) => self.on_read(result)?,
                Event::Settled(result) => self.on_settled(result)?,
                Event::Outbox => {
                    if let Some(code) = self.attachment.client.closing() {
                        return Err(End::Closed(code));
                    }
                }
                Event::Turn => {}
                Event::Refilled => {
                    Stats::add(&self.hub.stats.throttled, 1);
                    Stats::add(&self.attachment.client.counts.throttled, 1);
                    self.last_received = Instant::now();
                }
                Event::Timer => {
                    self.on_timer(timer.deadline().into())?;
                    let next = self.deadline().max(Instant::now() + AWAY);
                    timer.as_mut().reset(next.into());
                }
            }
        }
    }

    async fn next_event(&mut self, timer: Pin<&mut tokio::time::Sleep>) -> Event {
        let unsent = self.written < self.output.len();
        let throttled = self.allowance.exhausted(Instant::now());
        let reads = throttled.is_none() && self.may_read();
        let has_to_hand_over = self.hub.has_to_hand_over(&self.attachment);
        tokio::select! {
            biased;
            result = write_some(&mut self.write, &self.output[self.written..]), if unsent || self.unflushed => {
                Event::Written(result)
            }
            () = self.attachment.client.outbox_ready.notified() => Event::Outbox,
            result = settled(&mut self.held) => Event::Settled(result),
            result = read_some(&mut self.read, &mut self.input), if reads => Event::Read(result),
            () = tokio::task::yield_now(), if has_to_hand_over => Event::Turn,
            () = pause(throttled) => Event::Refilled,
            () = timer => Event::Timer,
        }
    }

    fn on_written(&mut self, result: std::io::Result<usize>) -> Result<(), End> {
        let count = result.map_err(|_| End::Lost)?;
        Stats::add(&self.hub.stats.bytes_sent, count as u64);
        self.written += count;
        self.unflushed = self.settings.encrypted && count > 0;
        self.stalled_since = self.unflushed.then(Instant::now);
        if self.written == self.output.len() {
            self.written = 0;
            self.output.clear();
            // An idle connection holds no buffer.
            self.output.shrink_to(0);
        } else if self.written >= OUTPUT_MAX / 2 {
            self.output.drain(..self.written);
            self.written = 0;
        }
        Ok(())
    }

    fn on_read(&mut self, result: std::io::Result<usize>) -> Result<(), End> {
        let count = result.map_err(|_| End::Lost)?;
        if count == 0 {
            return Err(End::Lost);
        }
        Stats::add(&self.hub.stats.bytes_received, count as u64);
        self.last_received = Instant::now();
        self.process()
    }

    fn on_settled(&mut self, result: Result<(), RouterStopped>) -> Result<(), End> {
        result?;
        // Its keep alive was suspended while the broker did not read it.
        self.last_received = Instant::now();
        match self.held.take().map(|held| held.then) {
            Some(Then::Acknowledge { qos, packet_id }) => self.acknowledge(qos, packet_id),
            Some(Then::Subscribe { packet_id, filters }) => self.subscribe(packet_id, filters),
            None => {}
        }
        self.process()
    }

    fn on_timer(&mut self, planned: Instant) -> Result<(), End> {
        let now = Instant::now();
        if now.saturating_duration_since(planned) > AWAY {
            return Ok(());
        }
        if self.stalled_since.is_some_and(|since| now - since >= self.hub.limits.write_timeout) {
            Stats::add(&self.hub.stats.write_timeouts, 1);
            return Err(End::Stalled);
        }
        if self.may_read() && self.settings.silence_max.is_some_and(|most| now - self.last_received >= most) {
            Stats::add(&self.hub.stats.keep_alive_timeouts, 1);
            return Err(End::Closed(reason::KEEP_ALIVE_TIMEOUT));
        }
        Ok(())
    }

    fn may_read(&self) -> bool {
        self.held.is_none() && self.output.len() - self.written < OUTPUT_MAX
    }

    /// When to look at the keep alive and at the output again. An early look does no harm.
    fn deadline(&self) -> Instant {
        let now = Instant::now();
        let write = self.hub.limits.write_timeout;
        let silence = self.settings.silence_max.map(|most| self.last_received + most);
        let stalled = self.stalled_since.map(|since| since + write);
        // Output that begins to wait now is judged at the earliest after `write`.
        let idle = now + write;
        silence.into_iter().chain(stalled).min().unwrap_or(idle).min(idle)
    }

    /// Handles every whole packet received, until one has to wait.
    fn process(&mut self) -> Result<(), End> {
        let rules = Rules { version: self.settings.version, user_properties_max: self.hub.limits.user_properties };
        let input = std::mem::take(&mut self.input);
        let mut used = 0;
        let result = loop {
            if self.held.is_some() {
                break Ok(());
            }
            match split_frame(&input[used..], self.hub.limits.packet_bytes) {
                Ok(Some((frame, length))) => {
                    used += length;
                    self.allowance.spend(length);
                    let handled = decode(frame, rules).map_err(End::from).and_then(|packet| self.handle(packet));
                    if let Err(end) = handled {
                        break Err(end);
                    }
                }
                Ok(None) => break Ok(()),
                Err(error) => break Err(error.into()),
            }
        };
        if used < input.len() {
            self.input = input;
            self.input.drain(..used);
        }
        result
    }

    fn handle(&mut self, packet: Packet<'_>) -> Result<(), End> {
        let version = self.settings.version;
        match packet {
            Packet::Publish(publish) => return self.on_publish(&publish),
            Packet::PubAck(ack) => drop(self.attachment.session.settle(ack.packet_id, Step::Acknowledged)?),
            Packet::PubRec(ack) => self.on_pubrec(ack)?,
            Packet::PubRel(ack) => {
                let known = self.attachment.session.received.remove(&ack.packet_id);
                let code = if known { reason::SUCCESS } else { reason::PACKET_ID_NOT_FOUND };
                encode_ack(&mut self.output, version, 0x70, ack.packet_id, code);
            }
            Packet::PubComp(ack) => drop(self.attachment.session.settle(ack.packet_id, Step::Complete)?),
            Packet::Subscribe(subscribe) => self.on_subscribe(&subscribe)?,
            Packet::Unsubscribe(unsubscribe) => self.on_unsubscribe(&unsubscribe)?,
            Packet::PingReq => self.output.extend(PINGRESP),
            Packet::Disconnect(disconnect) => return self.on_disconnect(&disconnect),
        }
        Ok(())
    }

    fn on_publish(&mut self, publish: &Publish<'_>) -> Result<(), End> {
        let (qos, packet_id) = (publish.qos, publish.packet_id);
        if qos == QoS::ExactlyOnce && self.attachment.session.received.contains(&packet_id) {
            // MQTT 4.3.3: sent again because PUBREC got lost.
            self.acknowledge(qos, packet_id);
            return Ok(());
        }
        if qos == QoS::ExactlyOnce && self.attachment.session.received.len() >= usize::from(self.hub.limits.inflight) {
            return Err(End::Closed(reason::RECEIVE_MAXIMUM_EXCEEDED));
        }
        Stats::add(&self.hub.stats.messages_received, 1);
        Stats::add(&self.attachment.client.counts.received, 1);
        if !self.attachment.permissions.may_publish(publish.topic) {
            self.refuse(publish.topic, qos, packet_id);
            return Ok(());
        }
        let parts = Parts {
            topic: publish.topic,
            payload: publish.payload,
            qos,
            retain: publish.retain,
            publisher: self.attachment.client.number,
            expiry: publish.properties.expiry,
            properties: &publish.properties.passed,
        };
        let message = Message::new(parts, self.hub.clock);
        let to_front = publish.retain || self.hub.has_subscribers(publish.topic, &mut self.known_topics);
        let hold = self.hub.should_hold(publish.topic, qos) && self.floods(message.len());
        if !hold && self.hub.router.try_accept(&message, to_front)? {
            self.acknowledge(qos, packet_id);
        } else {
            let hub = Arc::clone(&self.hub);
            let until = Box::pin(async move {
                if hold {
                    hub.uncongested(message.topic()).await;
                }
                hub.router.accept(message, to_front).await
            });
            self.held = Some(Held { until, then: Then::Acknowledge { qos, packet_id } });
        }
        Ok(())
    }

    /// Whether the client publishes more than modestly, this message of so many bytes included.
    fn floods(&mut self, bytes: usize) -> bool {
        self.modest.spend(bytes);
        self.modest.exhausted(Instant::now()).is_some()
    }

    fn acknowledge(&mut self, qos: QoS, packet_id: u16) {
        match qos {
            QoS::AtMostOnce => {}
            QoS::AtLeastOnce => encode_ack(&mut self.output, self.settings.version, 0x40, packet_id, reason::SUCCESS),
            QoS::ExactlyOnce => {
                self.attachment.session.received.insert(packet_id);
                encode_ack(&mut self.output, self.settings.version, 0x50, packet_id, reason::SUCCESS);
            }
        }
    }

    /// Answers a PUBLISH that is not let through. MQTT 3.1.1 has no refusal: it is acknowledged and goes nowhere (3.3.5-2).
    fn refuse(&mut self, topic: &str, qos: QoS, packet_id: u16) {
        let client = &self.attachment.client;
        self.hub.count_refusal(client, &self.hub.stats.publishes_refused);
        if self.hub.refusals.allows() {
            info!(client = ?client.id, topic = quoted(topic), "PUBLISH refused; more are counted");
        }
        match (self.settings.version, qos) {
            (Version::V4, _) => self.acknowledge(qos, packet_id),
            (Version::V5, QoS::AtMostOnce) => {}
            (Version::V5, QoS::AtLeastOnce) => {
                encode_ack(&mut self.output, Version::V5, 0x40, packet_id, reason::NOT_AUTHORIZED);
            }
            (Version::V5, QoS::ExactlyOnce) => {
                encode_ack(&mut self.output, Version::V5, 0x50, packet_id, reason::NOT_AUTHORIZED);
            }
        }
    }

    fn on_pubrec(&mut self, ack: Ack) -> Result<(), End> {
        let session = &mut self.attachment.session;
        if ack.reason >= 0x80 {
            session.settle(ack.packet_id, Step::Received)?;
            return Ok(());
        }
        let known = session.released(ack.packet_id)?;
        let code = if known { reason::SUCCESS } else { reason::PACKET_ID_NOT_FOUND };
        encode_ack(&mut self.output, self.settings.version, 0x62, ack.packet_id, code);
        Ok(())
    }

    fn on_subscribe(&mut self, subscribe: &Subscribe<'_>) -> Result<(), End> {
        self.check_answer(subscribe.filters.len())?;
        let id = subscribe.subscription_id;
        let filters = subscribe.filters.iter();
        let filters = filters.map(|(filter, options)| ((*filter).to_owned(), Wish { options: *options, id })).collect();
        let hub = Arc::clone(&self.hub);
        // A retained message that was published before must come as one.
        let until = Box::pin(async move { hub.router.settled().await });
        self.held = Some(Held { until, then: Then::Subscribe { packet_id: subscribe.packet_id, filters } });
        Ok(())
    }

    fn subscribe(&mut self, packet_id: u16, filters: Vec<(String, Wish)>) {
        let reasons: Vec<u8> =
            filters.into_iter().map(|(filter, wish)| self.hub.subscribe(&mut self.attachment, &filter, wish)).collect();
        encode_suback(&mut self.output, self.settings.version, packet_id, &reasons);
    }

    fn on_unsubscribe(&mut self, unsubscribe: &Unsubscribe<'_>) -> Result<(), End> {
        self.check_answer(unsubscribe.filters.len())?;
        let reasons: Vec<u8> =
            unsubscribe.filters.iter().map(|filter| self.hub.unsubscribe(&mut self.attachment, filter)).collect();
        encode_unsuback(&mut self.output, self.settings.version, unsubscribe.packet_id, &reasons);
        Ok(())
    }

    /// Ends the connection, before anything else is done, if the answer to so many filters is longer than the client takes.
    /// All other answers are as short as the shortest CONNACK, without which there is no connection.
    fn check_answer(&self, filters: usize) -> Result<(), End> {
        let fits = answer_length(filters) <= self.settings.packet_bytes_max;
        if fits { Ok(()) } else { Err(End::Closed(reason::PACKET_TOO_LARGE)) }
    }

    fn on_disconnect(&mut self, disconnect: &Disconnect) -> Result<(), End> {
        if let Some(expiry) = disconnect.session_expiry {
            // MQTT 5 3.14.2.2.2: a session that was to end with the connection cannot be kept after all.
            if self.attachment.expiry == 0 && expiry != 0 {
                return Err(End::Closed(reason::PROTOCOL_ERROR));
            }
            self.attachment.expiry = expiry;
        }
        if disconnect.reason == reason::DISCONNECT_WITH_WILL {
            return Err(End::DisconnectedWithWill);
        }
        Err(End::Disconnected)
    }

    /// Handles what had arrived before the connection ended.
    async fn drain(&mut self) -> Result<(), End> {
        let rest = async {
            loop {
                if let Some(held) = &mut self.held {
                    let result = held.until.as_mut().await;
                    self.on_settled(result)?;
                    continue;
                }
                let arrived = read_some(&mut self.read, &mut self.input);
                match tokio::time::timeout(DRAIN_QUIET, tokio::task::unconstrained(arrived)).await {
                    Ok(result) => self.on_read(result)?,
                    Err(_) => return Ok(()),
                }
            }
        };
        match tokio::time::timeout(DRAIN_TIMEOUT, rest).await {
            // The end of the old socket is no news; only a goodbye in it is.
            Ok(Err(End::Lost)) | Err(_) => Ok(()),
            Ok(result) => result,
        }
    }
}

async fn settled(held: &mut Option<Held>) -> Result<(), RouterStopped> {
    match held {
        Some(held) => held.until.as_mut().await,
        None => std::future::pending().await,
    }
}

/// Writes once, or pushes out what was written if there is nothing more; how much.
async fn write_some(write: &mut (impl AsyncWrite + Unpin), output: &[u8]) -> std::io::Result<usize> {
    if output.is_empty() {
        write.flush().await?;
        return Ok(0);
    }
    write.write(output).await
}

async fn pause(time: Option<Duration>) {
    match time {
        Some(time) => tokio::time::sleep(time).await,
        None => std::future::pending().await,
    }
}

/// Reads once, through a buffer on the stack, so that a connection that waits holds none.
pub(crate) async fn read_some(read: &mut (impl AsyncRead + Unpin), input: &mut Vec<u8>) -> std::io::Result<usize> {
    std::future::poll_fn(|context| {
        let mut chunk = [std::mem::MaybeUninit::uninit(); CHUNK];
        let mut buffer = tokio::io::ReadBuf::uninit(&mut chunk);
        std::task::ready!(Pin::new(&mut *read).poll_read(context, &mut buffer))?;
        input.extend_from_slice(buffer.filled());
        std::task::Poll::Ready(Ok(buffer.filled().len()))
    })
    .await
}
