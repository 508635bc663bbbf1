//! One connection: from CONNECT, with its own session and will, to the moment that it breaks or is closed.

use std::future;
use std::pin::{Pin, pin};
use std::time::Duration;

use rpicluster_broker::{Outgoing, QoS as OutgoingQoS};
use rpicluster_protocol::limits::{KEEP_ALIVE, PACKET_BYTES_MAX};
use rpicluster_protocol::{Liveness, SessionId, ToSlave, Topic, parse_to_slave};
use rumqttc::Outgoing as Sent;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{
    Filter, LastWill, Packet, PubAckReason, Publish, PublishProperties, SubscribeReasonCode,
};
use rumqttc::v5::{AsyncClient, ConnectionError, Event, EventLoop, MqttOptions, Request};
use tokio::select;
use tokio::time::{self, Instant};
use tracing::{info, warn};

use super::{Problem, Remote};
use crate::clock;
use crate::mailbox::Wishes;
use crate::own_state::own_state;
use crate::source::Arrived;

/// How many publications the client library holds for the network.
const HANDED_MAX: usize = 64;

/// Room beside them for what is not published, or published about ourselves.
const EXTRA_MAX: usize = 16;

/// Unacknowledged publications; the library keeps a table of this length.
const INFLIGHT_MAX: u16 = 256;

/// How long the goodbye may take.
const GOODBYE_TIME_MAX: Duration = Duration::from_secs(1);

/// Our state is said again so long after somebody else's came: two masters must not answer each other faster.
const RESTATE_WAIT: Duration = Duration::from_millis(500);

/// How a session ended.
pub(super) enum Ended {
    /// As it was told to.
    Stopped,
    /// The connection failed, or was never made.
    Lost {
        /// Why.
        problem: Problem,
        /// How long it was up.
        held: Duration,
    },
}

/// Connects once and speaks until the connection breaks or `stop` completes.
pub(super) async fn run(remote: &mut Remote, id: &SessionId, mut stop: Pin<&mut impl Future<Output = ()>>) -> Ended {
    let (client, eventloop) = AsyncClient::new(options(remote, id), HANDED_MAX + EXTRA_MAX);
    let mut poll = pin!(next_event(eventloop));
    let (eventloop, connack) = select! {
        () = stop.as_mut() => return Ended::Stopped,
        polled = poll.as_mut() => polled,
    };
    if let Err(error) = connack {
        return Ended::Lost { problem: Problem::of(&error, remote.connection.address()), held: Duration::ZERO };
    }
    poll.set(next_event(eventloop));
    let began = Instant::now();
    let mut session = Session { remote, id, client, handed: 0, unacknowledged: 0, is_up: false, restate_at: None };
    session.begin();
    let problem = loop {
        select! {
            () = stop.as_mut() => break None,
            (eventloop, event) = poll.as_mut() => match event {
                Ok(event) => {
                    poll.set(next_event(eventloop));
                    if let Err(problem) = session.handle(event).await {
                        break Some(problem);
                    }
                }
                Err(error) => {
                    session.count_lost(&eventloop);
                    break Some(Problem::of(&error, session.remote.connection.address()));
                }
            },
            message = session.remote.queue.pop(), if session.has_room() => session.say(message),
            () = reached(session.restate_at) => session.restate(),
        }
    };
    session.remote.queue.set_connected(false);
    session.remote.status.hearing.lost();
    if let Some(problem) = problem {
        return Ended::Lost { problem, held: began.elapsed() };
    }
    match time::timeout(GOODBYE_TIME_MAX, session.goodbye(poll)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => warn!(%error, "the connection to the broker broke before the goodbye"),
        Err(_) => warn!("the broker did not take the master's goodbye in time: slaves notice by its will"),
    }
    Ended::Stopped
}

/// Takes the event loop and gives it back, so that the future can be kept across `select!`: dropping a poll halfway could
/// lose what it was about to write.
async fn next_event(mut eventloop: EventLoop) -> Polled {
    let event = eventloop.poll().await;
    (eventloop, event)
}

type Polled = (EventLoop, Result<Event, ConnectionError>);

/// Completes at `moment`; never, if there is none.
async fn reached(moment: Option<Instant>) {
    match moment {
        Some(moment) => time::sleep_until(moment).await,
        None => future::pending().await,
    }
}

fn options(remote: &Remote, id: &SessionId) -> MqttOptions {
    let mut options = remote.connection.options_v5(&remote.client_id);
    options.set_keep_alive(KEEP_ALIVE);
    options.set_clean_start(true);
    options.set_max_packet_size(u32::try_from(PACKET_BYTES_MAX).ok());
    options.set_outgoing_inflight_upper_limit(INFLIGHT_MAX);
    // A state is far below the limit of a message.
    if let Ok(will) = own_state(&remote.root, id, Some("connection_lost")) {
        options.set_last_will(LastWill::new(will.topic, will.payload, QoS::AtLeastOnce, true, None));
    }
    options
}

/// The state of a connection that is up.
struct Session<'a> {
    remote: &'a mut Remote,
    id: &'a SessionId,
    client: AsyncClient,
    /// Publications that the library has not yet written.
    handed: usize,
    /// Those at QoS 1 that the broker has not yet acknowledged.
    unacknowledged: usize,
    /// The broker sends us what slaves say.
    is_up: bool,
    restate_at: Option<Instant>,
}

impl Session<'_> {
    /// Subscribes, so that nothing is missed, then says that we are there.
    fn begin(&mut self) {
        let root = &self.remote.root;
        let filters = [root.every_slave(), root.name(&Topic::MasterState)];
        let filters = filters.map(|filter| Filter::new(filter, QoS::AtLeastOnce));
        // A new client has room, and a topic root is a good one.
        let _ = self.client.try_subscribe_many(filters);
        self.restate();
        self.remote.queue.set_connected(true);
    }

    async fn handle(&mut self, event: Event) -> Result<(), Problem> {
        if self.is_up && matches!(event, Event::Incoming(_)) {
            self.remote.status.hearing.heard(clock::now());
        }
        match event {
            Event::Incoming(Packet::SubAck(suback)) => {
                let granted = |code: &SubscribeReasonCode| matches!(code, SubscribeReasonCode::Success(_));
                if !suback.return_codes.iter().all(granted) {
                    return Err(Problem::of_rules("read what slaves say"));
                }
                info!(broker = %self.remote.connection.address(), session = %self.id, "connected to the broker");
                self.is_up = true;
                self.remote.status.found();
            }
            Event::Incoming(Packet::Publish(publish)) => self.take(publish).await,
            Event::Incoming(Packet::PubAck(puback)) => {
                self.unacknowledged = self.unacknowledged.saturating_sub(1);
                if !matches!(puback.reason, PubAckReason::Success | PubAckReason::NoMatchingSubscribers) {
                    self.remote.status.dropped.count();
                    self.note(Problem::of_rules(&format!("publish ({:?})", puback.reason)).text);
                }
            }
            Event::Outgoing(Sent::Publish(_)) => self.handed = self.handed.saturating_sub(1),
            _ => {}
        }
        Ok(())
    }

    async fn take(&mut self, publish: Publish) {
        let Publish { topic, payload, retain, properties, .. } = publish;
        // What is no text is no topic of ours.
        let Ok(topic) = String::from_utf8(topic.into()) else { return };
        if topic == self.remote.root.name(&Topic::MasterState) {
            return self.hear_master(&payload, retain);
        }
        let properties = properties.unwrap_or_default();
        let wishes = Wishes { topic: properties.response_topic, correlation_data: properties.correlation_data };
        // The bus is gone only when the master stops.
        let _ = self.remote.arrived.send(Arrived { topic, payload, wishes, retained: retain }).await;
    }

    /// Our own words come back; so does the late will of an earlier connection, or what another master says.
    fn hear_master(&mut self, payload: &[u8], retained: bool) {
        let said = parse_to_slave(payload).ok().and_then(|envelope| match envelope.message {
            ToSlave::State(state) => Some((state.state, state.session)),
            _ => None,
        });
        let is_ours = said.as_ref().is_some_and(|(state, session)| *state == Liveness::Online && session == self.id);
        // A kept copy is older than what we have just said.
        if is_ours || retained {
            return;
        }
        if let Some((Liveness::Online, session)) = said {
            self.note(format!("another master speaks below the same topic root (session {session}): only one may"));
        }
        self.restate_at.get_or_insert_with(|| Instant::now() + RESTATE_WAIT);
    }

    fn restate(&mut self) {
        self.restate_at = None;
        // A state is far below the limit of a message.
        if let Ok(state) = own_state(&self.remote.root, self.id, None) {
            self.say(state);
        }
    }

    /// Something is wrong although we are connected.
    fn note(&mut self, problem: String) {
        let mut page = self.remote.status.page();
        if page.problem.as_ref() != Some(&problem) {
            warn!(%problem, "the broker works only in part");
            page.problem = Some(problem);
        }
    }

    fn has_room(&self) -> bool {
        self.handed < HANDED_MAX
    }

    fn say(&mut self, message: Outgoing) {
        let Outgoing { topic, payload, qos, retain, correlation_data } = message;
        let qos = match qos {
            OutgoingQoS::AtMostOnce => QoS::AtMostOnce,
            OutgoingQoS::AtLeastOnce => QoS::AtLeastOnce,
            OutgoingQoS::ExactlyOnce => QoS::ExactlyOnce,
        };
        let properties = PublishProperties { correlation_data, ..PublishProperties::default() };
        // There is room, and no topic of ours has a wildcard.
        match self.client.try_publish_with_properties(topic, qos, retain, payload, properties) {
            Ok(()) => {
                self.handed += 1;
                self.unacknowledged += usize::from(qos != QoS::AtMostOnce);
            }
            Err(_) => self.remote.status.dropped.count(),
        }
    }

    fn count_lost(&self, eventloop: &EventLoop) {
        let lost = eventloop.pending.iter().filter(|request| matches!(request, Request::Publish(_)));
        lost.for_each(|_| self.remote.status.dropped.count());
    }

    /// Says all that still waits and then that we stop, waits until it is acknowledged, and disconnects, which discards the
    /// will.
    async fn goodbye(&mut self, poll: impl Future<Output = Polled>) -> Result<(), ConnectionError> {
        let mut offline = own_state(&self.remote.root, self.id, Some("stopped")).ok();
        let (mut eventloop, mut event) = poll.await;
        loop {
            // What comes in has no reader any more.
            match event? {
                Event::Incoming(Packet::PubAck(_)) => self.unacknowledged = self.unacknowledged.saturating_sub(1),
                Event::Outgoing(Sent::Publish(_)) => self.handed = self.handed.saturating_sub(1),
                _ => {}
            }
            while self.has_room()
                && let Some(message) = self.remote.queue.try_pop().or_else(|| offline.take())
            {
                self.say(message);
            }
            if offline.is_none() && self.unacknowledged == 0 {
                break;
            }
            event = eventloop.poll().await;
        }
        // Nothing waits in the client any more, so there is room.
        let _ = self.client.try_disconnect();
        while !matches!(eventloop.poll().await?, Event::Outgoing(Sent::Disconnect)) {}
        Ok(())
    }
}
