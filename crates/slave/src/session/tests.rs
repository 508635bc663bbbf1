use rpicluster_protocol::{BadMessage, TopicRoot, Vitals, encode_to_slave};

use super::*;
use crate::{Access, Behaviour, Outbox, SlaveConfig};
use rpicluster_client::Trust;

/// Tells vitals and forwards every reply to the master, to show what it was given.
struct Echo;

impl Behaviour for Echo {
    fn vitals(&mut self) -> Option<Vitals> {
        Some(Vitals::default())
    }

    fn on_reply(&mut self, reply: &Envelope<ToSlave>, outbox: &Outbox) {
        outbox.try_send(FromSlave::Message(format!("{:?}", reply.message))).unwrap();
    }
}

/// A session whose client is connected to nothing: what it says stays in the client. The event loop only has to live.
struct Fixture {
    slave: Slave,
    connection: Connection,
    id: SessionId,
    random: fastrand::Rng,
}

impl Fixture {
    fn new() -> Fixture {
        let config = SlaveConfig { id: Some("pi-1".parse().unwrap()), ..SlaveConfig::default() };
        let connection = Connection::new("mqtt://127.0.0.1".parse().unwrap(), &Trust::System, None).unwrap();
        let access = Access::Account(connection.clone());
        let slave = Slave::new(config, TopicRoot::default(), access, Echo).unwrap();
        Fixture { slave, connection, id: SessionId::from_random(1), random: fastrand::Rng::with_seed(1) }
    }

    fn session(&mut self) -> (Session<'_>, EventLoop) {
        let (client, eventloop) = AsyncClient::new(options(&self.slave, &self.connection, &self.id), REQUESTS_MAX);
        (Session::new(&mut self.slave, &self.id, client, &mut self.random), eventloop)
    }
}

fn publish(topic: &str, payload: impl Into<Vec<u8>>) -> Input {
    Input::Network(Event::Incoming(Packet::Publish(Publish::new(topic, QoS::AtLeastOnce, payload))))
}

fn reply(message: ToSlave, re: Option<&str>) -> Input {
    let envelope = Envelope::new(message).answering(re.map(|re| re.parse().unwrap()));
    publish("rpicluster/to/pi-1/reply", encode_to_slave(&envelope).unwrap())
}

fn master_state(session: u64, retained: bool) -> Input {
    let state = State {
        state: Liveness::Online,
        session: SessionId::from_random(session),
        protocol: None,
        boot_id: None,
        version: None,
        slots: None,
        ahead: None,
        reason: None,
    };
    let payload = encode_to_slave(&ToSlave::State(state).into()).unwrap();
    let mut publish = Publish::new("rpicluster/master/state", QoS::AtLeastOnce, payload);
    publish.retain = retained;
    Input::Network(Event::Incoming(Packet::Publish(publish)))
}

#[tokio::test]
async fn only_the_answer_to_its_own_hello_counts() {
    let mut fixture = Fixture::new();
    let (mut session, _eventloop) = fixture.session();
    session.begin();
    let hello = session.hello.clone().unwrap();
    for stranger in [None, Some("hello-of-another-session")] {
        session.handle(reply(ToSlave::MasterInfo(Box::default()), stranger));
        assert!(!session.slave.status.borrow().master_info_received);
    }
    session.handle(reply(ToSlave::MasterInfo(Box::default()), Some(hello.as_str())));
    assert!(session.slave.status.borrow().master_info_received);
}

#[tokio::test]
async fn a_reply_reaches_the_behaviour_and_its_answer_the_outbox() {
    let mut fixture = Fixture::new();
    let (mut session, _eventloop) = fixture.session();
    session.handle(reply(ToSlave::BadMessage(BadMessage::Unknown), None));
    let answer = session.slave.outgoing.try_recv().unwrap();
    assert_eq!(answer.message, FromSlave::Message("BadMessage(Unknown)".to_owned()));
}

#[tokio::test]
async fn what_is_not_understood_is_counted_and_nothing_more() {
    let mut fixture = Fixture::new();
    let (mut session, _eventloop) = fixture.session();
    let announce = encode_to_slave(&ToSlave::Announce.into()).unwrap();
    session.handle(publish("rpicluster/to/pi-1/reply", "nonsense"));
    session.handle(publish("rpicluster/to/pi-1/other/level", announce.clone()));
    session.handle(publish("elsewhere", announce.clone()));
    session.handle(publish("rpicluster/master/state", announce));
    assert_eq!(session.slave.status.borrow().not_understood, 4);
    assert_eq!(session.announce_at, None);
    assert!(session.slave.outgoing.try_recv().is_err());
}

#[tokio::test]
async fn another_master_is_answered_as_announce_is_and_the_first_retained_one_is_not() {
    let mut fixture = Fixture::new();
    let (mut session, _eventloop) = fixture.session();
    session.handle(master_state(1, true));
    assert_eq!(session.announce_at, None);
    session.handle(master_state(1, false));
    assert_eq!(session.announce_at, None);
    session.handle(master_state(2, true));
    assert!(session.announce_at.unwrap() <= Instant::now() + ANNOUNCE_JITTER_MAX);
}

#[tokio::test]
async fn a_first_master_that_comes_after_the_slave_is_answered() {
    let mut fixture = Fixture::new();
    let (mut session, _eventloop) = fixture.session();
    session.handle(master_state(1, false));
    assert!(session.announce_at.is_some());
}

#[tokio::test]
async fn a_second_announce_does_not_delay_the_answer_to_the_first() {
    let mut fixture = Fixture::new();
    let (mut session, _eventloop) = fixture.session();
    session.handle(reply(ToSlave::Announce, None));
    let first = session.announce_at;
    session.handle(reply(ToSlave::Announce, None));
    assert_eq!(session.announce_at, first);
}

#[tokio::test]
async fn a_connection_that_is_behind_sheds_vitals_and_keeps_the_rest() {
    let mut fixture = Fixture::new();
    let (mut session, eventloop) = fixture.session();
    for _ in 0..REQUESTS_MAX {
        session.handle(Input::Vitals);
    }
    session.handle(Input::Outbox(FromSlave::Info(Info::Time).into()));
    session.handle(Input::Vitals);
    session.handle(Input::Message);
    assert_eq!(session.unsent.len(), 1);
    assert_eq!(session.unsent[0].leaf, Upward::Info);
    let status = session.slave.status.borrow().clone();
    assert_eq!((status.sent, status.shed), (REQUESTS_MAX as u64, 2));
    drop(eventloop);
}

#[test]
fn a_flood_costs_ten_lines_a_second() {
    let start = Instant::now();
    let mut lines = LineBudget::new(start);
    let within = |lines: &mut LineBudget, now| (0..1000).filter(|_| lines.spend_at(now)).count();
    assert_eq!(within(&mut lines, start), 10);
    assert_eq!(within(&mut lines, start + Duration::from_millis(999)), 0);
    assert_eq!(within(&mut lines, start + Duration::from_secs(1)), 10);
}
