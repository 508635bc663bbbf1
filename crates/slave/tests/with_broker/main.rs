//! The slave against a real broker, Debian's mosquitto: what is on the wire, and when.
#![allow(clippy::unwrap_used, reason = "the helpers of a test fail by panicking, as the test itself does")]

mod broker;
mod hostile;

use std::time::Duration;

use broker::{Broker, Heard, Observer, PATIENCE};
use rpicluster_client::{ClusterConfig, Connection};
use rpicluster_protocol::{
    Details, Downward, Envelope, FromSlave, Info, Liveness, SessionId, SlaveId, State, ToSlave, Topic, TopicRoot,
    Upward, Vitals,
};
use rpicluster_slave::{Access, Behaviour, Outbox, Slave, SlaveConfig, SlaveError, Status, query_status};
use rumqttc::QoS;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time;

/// Canned answers, and a message of its own at the start of a session.
struct Canned;

impl Behaviour for Canned {
    fn details(&mut self) -> Details {
        Details { hostname: Some("canned".to_owned()), ..Details::default() }
    }

    fn vitals(&mut self) -> Option<Vitals> {
        Some(Vitals { uptime: Some(7), ..Vitals::default() })
    }

    fn on_connected(&mut self, _session: &SessionId, outbox: &Outbox) {
        outbox.try_send(FromSlave::Info(Info::Time)).unwrap();
    }
}

struct Running {
    id: SlaveId,
    status: watch::Receiver<Status>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<(), SlaveError>>,
}

fn config() -> SlaveConfig {
    SlaveConfig {
        id: Some("pi-1".parse().unwrap()),
        vitals_interval: Duration::from_millis(100),
        message_interval: Duration::from_millis(100),
        ..SlaveConfig::default()
    }
}

/// An account at the broker on `port`.
fn account(port: u16, password: Option<&str>) -> Connection {
    let broker = Some(format!("mqtt://127.0.0.1:{port}").parse().unwrap());
    let password = password.map(|password| password.to_owned().into());
    ClusterConfig { broker, password, ..ClusterConfig::default() }.connection().unwrap().unwrap()
}

fn slave(port: u16) -> Slave {
    slave_with(account(port, None))
}

fn slave_with(account: Connection) -> Slave {
    Slave::new(config(), TopicRoot::default(), Access::Account(account), Canned).unwrap()
}

fn start(slave: Slave) -> Running {
    let (stop, stopped) = oneshot::channel();
    let (id, status) = (slave.id().clone(), slave.status());
    let task = tokio::spawn(slave.run(async { drop(stopped.await) }));
    Running { id, status, stop, task }
}

impl Running {
    async fn wait_for(&mut self, what: &str, condition: impl FnMut(&Status) -> bool) -> Status {
        let waited = time::timeout(PATIENCE, self.status.wait_for(condition)).await;
        waited.unwrap_or_else(|_| panic!("not reached: {what}")).unwrap().clone()
    }
}

fn state(heard: Heard) -> State {
    match heard.envelope.message {
        FromSlave::State(state) => state,
        other => panic!("expected a state, heard {other:?}"),
    }
}

#[tokio::test]
async fn a_session_begins_with_state_details_and_hello() {
    let broker = Broker::start().await;
    let mut observer = Observer::connect(&broker).await;
    let mut running = start(slave(broker.port));

    let first = observer.hear(&running.id).await;
    assert_eq!(first.qos, QoS::AtLeastOnce);
    let online = state(first);
    assert_eq!((online.state, online.protocol, online.reason), (Liveness::Online, Some(1), None));
    let connected = running.wait_for("connected", |status| status.connected).await;
    assert_eq!(connected.session, Some(online.session));

    let second = observer.hear(&running.id).await;
    let FromSlave::ComputerDetails(details) = second.envelope.message else { panic!("{second:?}") };
    assert_eq!(details.hostname.as_deref(), Some("canned"));
    assert_eq!(details.agent_version.as_deref(), Some(env!("CARGO_PKG_VERSION")));

    let hello = observer.hear(&running.id).await;
    assert_eq!(hello.envelope.message, FromSlave::Info(Info::ComputerDetails));
    assert!(hello.envelope.id.is_some());
    assert_eq!(hello.qos, QoS::AtLeastOnce);

    let own = observer.hear_on(&running.id, Upward::Info).await;
    assert_eq!(own.envelope.message, FromSlave::Info(Info::Time));
    assert_eq!(observer.hear_on(&running.id, Upward::Vitals).await.qos, QoS::AtMostOnce);
    let alive = observer.hear_on(&running.id, Upward::Message).await;
    assert_eq!(alive.envelope.message, FromSlave::Message("I am still alive, client: pi-1".to_owned()));

    drop(observer);
    let mut latecomer = Observer::connect(&broker).await;
    let mut retained = Vec::new();
    while retained.len() < 2 {
        let heard = latecomer.hear(&running.id).await;
        if heard.retained {
            retained.push(heard.leaf);
        }
    }
    assert!(retained.contains(&Upward::State) && retained.contains(&Upward::Details), "{retained:?}");
}

#[tokio::test]
async fn an_answered_hello_is_not_repeated_at_announce() {
    let broker = Broker::start().await;
    let mut observer = Observer::connect(&broker).await;
    let mut running = start(slave(broker.port));
    let hello = observer.hear_on(&running.id, Upward::Info).await.envelope.id;

    let reply = Topic::To(running.id.clone(), Downward::Reply);
    let answer = Envelope::new(ToSlave::MasterInfo(Box::default())).answering(hello);
    observer.tell(reply, &answer);
    running.wait_for("master info", |status| status.master_info_received).await;

    let command = Topic::To(running.id.clone(), Downward::Command);
    observer.tell(command, &ToSlave::Announce.into());
    let again = state(observer.hear_on(&running.id, Upward::State).await);
    assert_eq!(Some(again.session), running.status.borrow().session);
    observer.hear_on(&running.id, Upward::Details).await;
    for _ in 0..5 {
        assert_ne!(observer.hear(&running.id).await.leaf, Upward::Info);
    }
}

#[tokio::test]
async fn a_master_that_comes_later_is_greeted() {
    let broker = Broker::start().await;
    let mut observer = Observer::connect(&broker).await;
    let mut running = start(slave(broker.port));
    let hello = observer.hear_on(&running.id, Upward::Info).await.envelope.id;

    let master = SessionId::from_random(1);
    let online = State {
        state: Liveness::Online,
        session: master.clone(),
        protocol: None,
        boot_id: None,
        version: None,
        slots: None,
        ahead: None,
        reason: None,
    };
    observer.tell(Topic::MasterState, &ToSlave::State(online).into());
    state(observer.hear_on(&running.id, Upward::State).await);
    assert_eq!(observer.hear_on(&running.id, Upward::Info).await.envelope.id, hello);
    running.wait_for("master seen", |status| status.master_session.as_ref() == Some(&master)).await;
}

#[tokio::test]
async fn a_lost_connection_leaves_the_will_of_its_session() {
    let broker = Broker::start().await;
    let mut observer = Observer::connect(&broker).await;
    let running = start(slave(broker.port));
    let online = state(observer.hear(&running.id).await);

    running.task.abort();
    let will = observer.hear_on(&running.id, Upward::State).await;
    assert_eq!(will.qos, QoS::AtLeastOnce);
    let will = state(will);
    assert_eq!((will.state, will.reason.as_deref()), (Liveness::Offline, Some("connection_lost")));
    assert_eq!(will.session, online.session);
}

#[tokio::test]
async fn a_clean_stop_says_so_and_leaves_no_will() {
    let broker = Broker::start().await;
    let mut observer = Observer::connect(&broker).await;
    let running = start(slave(broker.port));
    let online = state(observer.hear(&running.id).await);

    running.stop.send(()).unwrap();
    let ended = time::timeout(PATIENCE, running.task).await.expect("the slave does not stop");
    ended.unwrap().unwrap();
    let offline = state(observer.hear_on(&running.id, Upward::State).await);
    assert_eq!((offline.state, offline.reason.as_deref()), (Liveness::Offline, Some("stopped")));
    assert_eq!(offline.session, online.session);

    // A will would have come before what the next session says, and would have replaced the retained state.
    let mut latecomer = Observer::connect(&broker).await;
    assert_eq!(state(latecomer.hear_on(&running.id, Upward::State).await).reason.as_deref(), Some("stopped"));
    let successor = start(slave(broker.port));
    assert_eq!(state(observer.hear_on(&successor.id, Upward::State).await).state, Liveness::Online);
}

#[tokio::test]
async fn each_connection_is_a_session_of_its_own() {
    let mut broker = Broker::start().await;
    let mut running = start(slave(broker.port));
    let first = running.wait_for("connected", |status| status.connected).await.session;
    broker.kill();
    running.wait_for("disconnected", |status| !status.connected).await;
    broker.restart().await;

    let mut observer = Observer::connect(&broker).await;
    let again = state(observer.hear_on(&running.id, Upward::State).await);
    let status = running.wait_for("connected again", |status| status.connected).await;
    assert_eq!(status.reconnects, 1);
    assert_ne!(status.session, first);
    assert_eq!(Some(&again.session), status.session.as_ref());

    running.task.abort();
    let will = loop {
        let heard = state(observer.hear_on(&running.id, Upward::State).await);
        if heard.state == Liveness::Offline {
            break heard;
        }
    };
    assert_eq!(will.session, again.session);
}

#[tokio::test]
async fn an_account_is_used_and_its_refusal_shown() {
    let broker = Broker::start_with_account("pi-1", "right").await;
    let mut wrong = start(slave_with(account(broker.port, Some("wrong"))));
    let status = wrong.wait_for("refused", |status| status.problem.is_some()).await;
    let problem = status.problem.unwrap();
    assert!(problem.contains("check user and password of [cluster]") && !problem.contains("wrong"), "{problem}");
    assert!(!status.connected && !wrong.task.is_finished());

    let mut right = start(slave_with(account(broker.port, Some("right"))));
    let status = right.wait_for("connected", |status| status.connected).await;
    assert_eq!(status.problem, None);
    assert_eq!(status.master, format!("mqtt://127.0.0.1:{}", broker.port));
}

#[tokio::test]
async fn a_foreign_broker_is_reached_by_tls_with_a_certificate_of_ones_own() {
    let broker = Broker::start_with_certificates().await;
    let secured = ClusterConfig {
        broker: Some(format!("mqtts://127.0.0.1:{}", broker.port).parse().unwrap()),
        ca_file: Some(broker.file("ca.pem")),
        client_certificate: Some(broker.file("client.pem")),
        client_key: Some(broker.file("client.key")),
        ..ClusterConfig::default()
    };
    let mut running = start(slave_with(secured.connection().unwrap().unwrap()));
    running.wait_for("connected", |status| status.connected).await;

    let untrusting = ClusterConfig { ca_file: None, ..secured };
    let mut running = start(slave_with(untrusting.connection().unwrap().unwrap()));
    let problem = running.wait_for("a problem", |status| status.problem.is_some()).await.problem.unwrap();
    assert!(
        problem.contains("not from the CA that is trusted here") && problem.contains("cluster.ca_file"),
        "{problem}"
    );
}

#[tokio::test]
async fn it_stops_at_once_where_there_is_no_broker() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let running = start(slave(port));
    running.stop.send(()).unwrap();
    time::timeout(PATIENCE, running.task).await.expect("the slave does not stop").unwrap().unwrap();
}

#[tokio::test]
async fn nonsense_is_counted_and_the_connection_stays() {
    let broker = Broker::start().await;
    let mut observer = Observer::connect(&broker).await;
    let mut running = start(slave(broker.port));
    observer.hear(&running.id).await;
    let reply = Topic::To(running.id.clone(), Downward::Reply);
    observer.tell_raw(reply.clone(), "{");
    observer.tell_raw(reply.clone(), vec![0xff; 49 * 1024]);
    observer.tell_raw(reply, r#"{"type":"no_such_type","payload":null}"#);
    for _ in 0..5 {
        observer.hear(&running.id).await;
    }
    let status = running.wait_for("all counted", |status| status.not_understood == 3).await;
    assert!(status.connected && status.reconnects == 0);
}

#[tokio::test]
async fn the_status_socket_tells_while_it_runs() {
    let broker = Broker::start().await;
    let folder = tempfile::tempdir().unwrap();
    let path = SlaveConfig { state_dir: folder.path().to_owned(), ..SlaveConfig::default() }.status_socket();
    let mut running = start(slave(broker.port).with_status_socket(&path));
    running.wait_for("connected", |status| status.connected).await;
    let asked = path.clone();
    let told = tokio::task::spawn_blocking(move || query_status(&asked)).await.unwrap().unwrap();
    assert_eq!((told.id, told.connected), (running.id.clone(), true));

    let second = start(slave(broker.port).with_status_socket(&path));
    assert!(matches!(second.task.await.unwrap(), Err(SlaveError::StatusSocket { .. })));
    running.stop.send(()).unwrap();
    running.task.await.unwrap().unwrap();
    assert!(!path.exists());
}
