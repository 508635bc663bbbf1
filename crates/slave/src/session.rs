//! One connection: from CONNECT, with its own session id and will, to the moment that it breaks or is closed.
//!
//! A single task polls the network and speaks. It never waits on the client's request channel, which only polling
//! empties: what has no room there waits in `unsent`, and whoever would add to it is not listened to meanwhile.

use std::collections::VecDeque;
use std::future::{self, Future};
use std::pin::{Pin, pin};
use std::time::Duration;

use rpicluster_client::Connection;
use rpicluster_protocol::limits::{ANNOUNCE_JITTER_MAX, PACKET_BYTES_MAX};
use rpicluster_protocol::{
    Details, Envelope, FromSlave, Info, Liveness, RequestId, SessionId, State, ToSlave, Topic, Upward,
    encode_from_slave, parse_to_slave,
};
use rumqttc::{
    AsyncClient, ClientError, ConnectionError, Event, EventLoop, LastWill, MqttOptions, NetworkOptions, Outgoing,
    Packet, Publish, QoS, Request, SubscribeFilter, SubscribeReasonCode,
};
use tokio::select;
use tokio::time::{self, Instant, Interval, MissedTickBehavior};

use crate::outbox::delivery;
use crate::slave::Slave;
use crate::tasks::{Spoken, Tasks};

/// Requests that the client holds for the network: the prelude of a session fits at once.
const REQUESTS_MAX: usize = 16;
/// Unacknowledged messages; the client keeps a table of this length for each connection.
const INFLIGHT_MAX: u16 = 32;
/// More than the client takes to connect, or to give up.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(15);
/// Longest wait for the broker to acknowledge the goodbye.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(1);
/// Log lines per second that messages from the network may cause.
const LINES_PER_SECOND: u32 = 10;
/// Longest piece of a message that a log line repeats, in characters.
const LOGGED_CHARACTERS_MAX: usize = 2048;

/// How a session ended.
pub(crate) enum Ended {
    /// As it was told to.
    Stopped,
    /// The connection failed, or was never made.
    Lost {
        /// Why.
        error: ConnectionError,
        /// How long it was up.
        held: Duration,
    },
}

/// Connects once and speaks until the connection breaks or `shutdown` completes.
pub(crate) async fn run(
    slave: &mut Slave,
    connection: &Connection,
    id: &SessionId,
    random: &mut fastrand::Rng,
    mut shutdown: Pin<&mut impl Future<Output = ()>>,
) -> Ended {
    let (client, eventloop) = AsyncClient::new(options(slave, connection, id), REQUESTS_MAX);
    let mut poll = pin!(next_event(with_nodelay(eventloop)));
    slave.pulse.expect_within(CONNECT_TIME_MAX);
    let (eventloop, connack) = select! {
        () = shutdown.as_mut() => return Ended::Stopped,
        polled = poll.as_mut() => polled,
    };
    if let Err(error) = connack {
        return Ended::Lost { error, held: Duration::ZERO };
    }
    poll.set(next_event(eventloop));
    let mut session = Session::new(slave, id, client, random);
    session.begin();
    let connected = Instant::now();
    loop {
        let may_add = session.unsent.is_empty();
        session.slave.pulse.expect_within(session.slave.config.vitals_interval);
        let input = select! {
            () = shutdown.as_mut() => break,
            (eventloop, event) = poll.as_mut() => match event {
                Ok(event) => {
                    poll.set(next_event(eventloop));
                    Input::Network(event)
                }
                Err(error) => {
                    session.end_tasks();
                    session.slave.status.send_modify(|status| status.set_disconnected());
                    return Ended::Lost { error, held: connected.elapsed() };
                }
            },
            Some(envelope) = session.slave.outgoing.recv(), if may_add => Input::Outbox(envelope),
            Some(spoken) = next_of_tasks(&mut session.slave.tasks), if may_add => Input::Task(spoken),
            () = reached(session.announce_at), if may_add => Input::Announce,
            _ = session.vitals.tick() => Input::Vitals,
            _ = session.message.tick() => Input::Message,
        };
        session.handle(input);
    }
    session.end_tasks();
    session.say_goodbye();
    match time::timeout(GOODBYE_TIMEOUT, session.finish(poll)).await {
        Ok(Ok(())) => tracing::info!(id = %session.slave.id, "stopped"),
        Ok(Err(error)) => tracing::warn!(id = %session.slave.id, %error, "the connection broke before the goodbye"),
        Err(_) => tracing::warn!(id = %session.slave.id, "the broker did not acknowledge the goodbye in time"),
    }
    session.slave.status.send_modify(|status| status.set_disconnected());
    Ended::Stopped
}

/// Takes the event loop and gives it back, so that the future can be kept across `select!`: dropping a poll halfway could
/// lose what it was about to write.
async fn next_event(mut eventloop: EventLoop) -> Polled {
    let event = eventloop.poll().await;
    (eventloop, event)
}

type Polled = (EventLoop, Result<Event, ConnectionError>);

/// What tasks have to say; nothing ever, if there are none.
async fn next_of_tasks(tasks: &mut Option<Tasks>) -> Option<Spoken> {
    match tasks {
        Some(tasks) => tasks.next().await,
        None => future::pending().await,
    }
}

/// Completes at `moment`; never, if there is none.
async fn reached(moment: Option<Instant>) {
    match moment {
        Some(moment) => time::sleep_until(moment).await,
        None => future::pending().await,
    }
}

fn options(slave: &Slave, connection: &Connection, session: &SessionId) -> MqttOptions {
    let mut options = connection.options(slave.id.as_str());
    options.set_keep_alive(slave.config.keep_alive);
    options.set_clean_session(true);
    options.set_max_packet_size(PACKET_BYTES_MAX, PACKET_BYTES_MAX);
    options.set_inflight(INFLIGHT_MAX);
    // A state is far below the limit of a message; without a will the master still notices the silence.
    if let Ok(will) = encode_from_slave(&slave.state(session, Some("connection_lost")).into()) {
        options.set_last_will(LastWill::new(slave.topic(Upward::State), will, QoS::AtLeastOnce, true));
    }
    options
}

/// Without this a reply waits 40 ms for the acknowledgement of the request.
fn with_nodelay(mut eventloop: EventLoop) -> EventLoop {
    let mut network = NetworkOptions::new();
    network.set_tcp_nodelay(true);
    eventloop.set_network_options(network);
    eventloop
}

/// What makes a connected session do something.
enum Input {
    Network(Event),
    Outbox(Envelope<FromSlave>),
    Task(Spoken),
    Announce,
    Vitals,
    Message,
}

/// The state of a connection that is up.
struct Session<'a> {
    slave: &'a mut Slave,
    id: &'a SessionId,
    client: AsyncClient,
    random: &'a mut fastrand::Rng,
    /// What the client has no room for, in order.
    unsent: VecDeque<Encoded>,
    /// QoS 1 messages handed to the client and not yet acknowledged.
    unacknowledged: usize,
    hello: Option<RequestId>,
    announce_at: Option<Instant>,
    vitals: Interval,
    message: Interval,
    lines: LineBudget,
}

/// A message ready to be published.
struct Encoded {
    leaf: Upward,
    payload: Vec<u8>,
}

impl<'a> Session<'a> {
    fn new(slave: &'a mut Slave, id: &'a SessionId, client: AsyncClient, random: &'a mut fastrand::Rng) -> Session<'a> {
        let now = Instant::now();
        let mut vitals = time::interval_at(now, slave.config.vitals_interval);
        let mut message = time::interval_at(now + slave.config.message_interval, slave.config.message_interval);
        // After a suspend one tick is enough.
        vitals.set_missed_tick_behavior(MissedTickBehavior::Delay);
        message.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Session {
            slave,
            client,
            random,
            unsent: VecDeque::new(),
            unacknowledged: 0,
            hello: format!("hello-{id}").parse().ok(),
            announce_at: None,
            vitals,
            message,
            lines: LineBudget::new(now),
            id,
        }
    }

    /// Subscribes, so that no answer is missed, then introduces itself: `state` is the first message.
    fn begin(&mut self) {
        self.slave.status.send_modify(|status| status.set_connected(self.id));
        tracing::info!(id = %self.slave.id, session = %self.id, master = %self.slave.address, "connected");
        let filters = [self.slave.root.to_slave(&self.slave.id), self.slave.root.name(&Topic::MasterState)];
        let filters = filters.map(|filter| SubscribeFilter::new(filter, QoS::AtLeastOnce));
        if self.client.try_subscribe_many(filters).is_err() {
            // A new client has room, so this shows a topic root that MQTT does not allow.
            tracing::error!(root = %self.slave.root, "cannot subscribe below this topic root");
        }
        self.introduce();
        if let Some(tasks) = &self.slave.tasks {
            tasks.set_session(Some(self.id));
        }
        self.slave.behaviour.on_connected(self.id, &self.slave.outbox);
    }

    fn handle(&mut self, input: Input) {
        match input {
            Input::Network(event) => self.handle_event(event),
            Input::Outbox(envelope) => self.say(envelope),
            Input::Task(Spoken { session, leaf, payload }) => {
                // What was meant for an earlier session is said anew in this one.
                if session == *self.id {
                    self.unsent.push_back(Encoded { leaf, payload });
                    self.flush();
                }
            }
            Input::Announce => {
                self.announce_at = None;
                self.introduce();
                self.tell_tasks(Tasks::announce);
            }
            Input::Vitals => {
                if let Some(vitals) = self.slave.behaviour.vitals() {
                    self.say_if_free(FromSlave::Vitals(Box::new(vitals)));
                }
            }
            Input::Message => {
                if let Some(text) = self.slave.behaviour.message(&self.slave.id) {
                    self.say_if_free(FromSlave::Message(text));
                }
            }
        }
    }

    fn handle_event(&mut self, event: Event) {
        match event {
            Event::Incoming(Packet::Publish(publish)) => self.handle_publish(&publish),
            Event::Incoming(Packet::PubAck(_)) => self.unacknowledged = self.unacknowledged.saturating_sub(1),
            Event::Incoming(Packet::SubAck(suback)) if suback.return_codes.contains(&SubscribeReasonCode::Failure) => {
                tracing::warn!(id = %self.slave.id, "the broker refused a subscription: check its access rules");
            }
            _ => {}
        }
        // Every event may mean that the client has room again.
        self.flush();
    }

    fn handle_publish(&mut self, publish: &Publish) {
        self.slave.status.send_modify(|status| status.received += 1);
        let topic = self.slave.root.parse(&publish.topic).map_err(|error| error.to_string());
        let parsed = topic.and_then(|topic| {
            let envelope = parse_to_slave(&publish.payload).map_err(|error| error.to_string())?;
            Ok((topic, envelope))
        });
        match parsed {
            Ok((Topic::MasterState, Envelope { message: ToSlave::State(state), .. })) => {
                self.handle_master_state(state, publish.retain);
            }
            Ok((Topic::To(..), envelope)) => self.handle_reply(&envelope),
            Ok((topic, _)) => self.not_understood(&format!("type does not belong on {topic:?}")),
            Err(problem) => self.not_understood(&problem),
        }
    }

    fn handle_master_state(&mut self, state: State, retained: bool) {
        if state.state == Liveness::Offline {
            if self.lines.spend() {
                tracing::info!(session = %state.session, reason = ?state.reason, "the master is offline");
            }
            return;
        }
        let known = self.slave.status.borrow().master_session.clone();
        if known.as_ref() == Some(&state.session) {
            return;
        }
        if self.lines.spend() {
            tracing::info!(session = %state.session, "the master is online");
        }
        // A master that was online before this slave has heard its introduction.
        if known.is_some() || !retained {
            self.schedule_announce();
        }
        self.slave.status.send_modify(|status| status.master_session = Some(state.session.clone()));
        self.slave.behaviour.on_master_changed(&state.session, &self.slave.outbox);
    }

    fn handle_reply(&mut self, reply: &Envelope<ToSlave>) {
        match &reply.message {
            ToSlave::Announce => self.schedule_announce(),
            ToSlave::MasterInfo(details) if reply.re.is_some() && reply.re == self.hello => {
                self.slave.status.send_modify(|status| status.master_info_received = true);
                if self.lines.spend() {
                    tracing::info!(id = %self.slave.id, "master info: {}", printable(details));
                }
            }
            ToSlave::BadMessage(problem) if self.lines.spend() => {
                tracing::warn!(id = %self.slave.id, re = ?reply.re, ?problem, "the master did not understand a message");
            }
            message => self.tell_tasks(|tasks| tasks.deliver(message)),
        }
        self.slave.behaviour.on_reply(reply, &self.slave.outbox);
    }

    /// Hands something to the thread of tasks. What it cannot take is counted, and repeated by whoever said it.
    fn tell_tasks(&mut self, hand: impl FnOnce(&Tasks) -> bool) {
        if self.slave.tasks.as_ref().is_some_and(|tasks| !hand(tasks)) {
            self.slave.status.send_modify(|status| status.shed += 1);
            if self.lines.spend() {
                tracing::warn!(id = %self.slave.id, "tasks are behind: a message about them was dropped");
            }
        }
    }

    fn end_tasks(&mut self) {
        if let Some(tasks) = &self.slave.tasks {
            tasks.set_session(None);
        }
    }

    fn not_understood(&mut self, problem: &str) {
        self.slave.status.send_modify(|status| status.not_understood += 1);
        if self.lines.spend() {
            tracing::warn!(id = %self.slave.id, ?problem, "received what is no message");
        }
    }

    /// Slaves wait a random time, so that a thousand do not answer at once; one that waits already goes on waiting.
    fn schedule_announce(&mut self) {
        let wait = ANNOUNCE_JITTER_MAX.mul_f64(self.random.f64());
        self.announce_at.get_or_insert_with(|| Instant::now() + wait);
    }

    /// `state` and details, and the tutorial's hello until the master has answered it.
    fn introduce(&mut self) {
        let state = self.slave.state(self.id, None);
        self.say(state.into());
        let details = self.slave.details();
        self.say(details.into());
        if !self.slave.status.borrow().master_info_received {
            let hello = Envelope { id: self.hello.clone(), ..Envelope::new(FromSlave::Info(Info::ComputerDetails)) };
            self.say(hello);
        }
    }

    /// For what is stale a moment later: a connection that is behind gets the next one.
    fn say_if_free(&mut self, message: FromSlave) {
        if self.unsent.is_empty() {
            self.say(message.into());
        } else {
            self.slave.status.send_modify(|status| status.shed += 1);
        }
    }

    fn say(&mut self, envelope: Envelope<FromSlave>) {
        let leaf = envelope.message.leaf();
        match encode_from_slave(&envelope) {
            Ok(payload) => self.unsent.push_back(Encoded { leaf, payload }),
            Err(error) => {
                self.slave.status.send_modify(|status| status.shed += 1);
                if self.lines.spend() {
                    tracing::warn!(id = %self.slave.id, %error, "a message was not sent");
                }
            }
        }
        self.flush();
    }

    /// Hands to the client as much as it has room for.
    fn flush(&mut self) {
        while let Some(Encoded { leaf, payload }) = self.unsent.pop_front() {
            let (qos, retain) = delivery(leaf);
            match self.client.try_publish(self.slave.topic(leaf), qos, retain, payload) {
                Ok(()) => {
                    self.unacknowledged += usize::from(qos != QoS::AtMostOnce);
                    self.slave.status.send_modify(|status| status.sent += 1);
                }
                Err(ClientError::TryRequest(Request::Publish(publish))) => {
                    self.unsent.push_front(Encoded { leaf, payload: publish.payload.into() });
                    return;
                }
                // The client is gone, and with it the connection: the next poll tells.
                Err(_) => return,
            }
        }
    }

    fn say_goodbye(&mut self) {
        let offline = self.slave.state(self.id, Some("stopped"));
        self.say(offline.into());
    }

    /// Goes on polling until everything is acknowledged, the goodbye last of all; then disconnects, which discards the
    /// will.
    async fn finish(&mut self, poll: impl Future<Output = Polled>) -> Result<(), ConnectionError> {
        let (mut eventloop, mut event) = poll.await;
        loop {
            self.handle_event(event?);
            if self.unsent.is_empty() && self.unacknowledged == 0 {
                break;
            }
            event = eventloop.poll().await;
        }
        // Nothing waits in the client any more, so there is room.
        let _ = self.client.try_disconnect();
        while !matches!(eventloop.poll().await?, Event::Outgoing(Outgoing::Disconnect)) {}
        Ok(())
    }
}

/// A machine's details as one line of JSON, which has no control characters.
fn printable(details: &Details) -> String {
    let text = serde_json::to_string(details).unwrap_or_default();
    text.chars().take(LOGGED_CHARACTERS_MAX).collect()
}

/// Keeps the network from filling the log.
struct LineBudget {
    since: Instant,
    left: u32,
}

impl LineBudget {
    fn new(now: Instant) -> LineBudget {
        LineBudget { since: now, left: LINES_PER_SECOND }
    }

    fn spend(&mut self) -> bool {
        self.spend_at(Instant::now())
    }

    fn spend_at(&mut self, now: Instant) -> bool {
        if now.duration_since(self.since) >= Duration::from_secs(1) {
            *self = LineBudget::new(now);
        }
        let may = self.left > 0;
        self.left = self.left.saturating_sub(1);
        may
    }
}

#[cfg(test)]
mod tests;
