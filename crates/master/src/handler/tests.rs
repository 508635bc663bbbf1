use std::time::Duration;

use bytes::Bytes;
use rpicluster_broker::Outgoing;
use rpicluster_protocol::{Liveness, Timestamp, parse_to_slave};
use tokio::task::JoinHandle;

use super::*;
use crate::publish::fake::FakePublisher;

struct Bench {
    slave: Arc<Slave>,
    mailbox: Arc<Mailbox>,
    publisher: FakePublisher,
    published: mpsc::Receiver<Outgoing>,
    engine: mpsc::Receiver<Input>,
    now: Moment,
    task: JoinHandle<Result<(), RouterStopped>>,
    sent: u64,
    _machine: watch::Sender<Arc<Details>>,
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Bench {
    fn new() -> Bench {
        let view = Arc::new(View::new(10));
        let slave = view.get_or_meet(&"pi".parse().unwrap(), Timestamp::from_unix_ms(0)).unwrap();
        let mailbox = Arc::new(Mailbox::default());
        let (publisher, published) = FakePublisher::new();
        let (engine_sender, engine) = mpsc::channel(100);
        let details = Details { hostname: Some("head".into()), ..Details::default() };
        let (machine_sender, machine) = watch::channel(Arc::new(details));
        let world = World {
            root: TopicRoot::default(),
            view,
            engine: engine_sender,
            machine,
            publisher: publisher.clone(),
            log: SharedLogLimit::new(10, Duration::from_secs(1)),
        };
        let handler = Handler::new(slave.clone(), mailbox.clone(), Arc::new(world));
        Bench {
            slave,
            mailbox,
            publisher,
            published,
            engine,
            now: Moment::from_millis(1_000_000),
            task: tokio::spawn(handler.run()),
            sent: 0,
            _machine: machine_sender,
        }
    }

    fn send(&mut self, leaf: Upward, payload: &str) {
        self.send_with(leaf, payload, Wishes::default());
    }

    fn send_with(&mut self, leaf: Upward, payload: &str, wishes: Wishes) {
        self.sent += 1;
        let payload = Bytes::copy_from_slice(payload.as_bytes());
        assert!(!self.mailbox.push(Mail { leaf, payload, wishes, retained: false, at: self.now }));
    }

    async fn reply(&mut self) -> (Outgoing, Envelope<ToSlave>) {
        let message = self.published.recv().await.unwrap();
        let envelope = parse_to_slave(&message.payload).unwrap();
        (message, envelope)
    }

    /// Waits until all that was sent is handled.
    async fn handled(&self) {
        while self.slave.counters.handled.get() < self.sent {
            tokio::task::yield_now().await;
        }
    }
}

fn info(what: &str) -> String {
    format!(r#"{{"type":"info","payload":"{what}","id":"r-{what}"}}"#)
}

fn bad(error: &Envelope<ToSlave>) -> &BadMessage {
    match &error.message {
        ToSlave::BadMessage(bad) => bad,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn requests_are_answered_on_the_reply_topic_with_their_id() {
    let mut bench = Bench::new();
    bench.send(Upward::Info, &info("computer_details"));
    let (message, reply) = bench.reply().await;
    assert_eq!((message.topic.as_str(), message.retain), ("rpicluster/to/pi/reply", false));
    assert_eq!(reply.re.as_ref().unwrap().as_str(), "r-computer_details");
    let ToSlave::MasterInfo(details) = reply.message else { panic!("{reply:?}") };
    assert_eq!(details.hostname.as_deref(), Some("head"));

    bench.send(Upward::Info, &info("time"));
    assert!(matches!(bench.reply().await.1.message, ToSlave::MasterTime { unix_ms } if unix_ms > 0));
    bench.send(Upward::Info, &info("slave_details"));
    let reply = bench.reply().await.1;
    let ToSlave::SlaveDetails(slaves) = reply.message else { panic!("{reply:?}") };
    assert_eq!(slaves["pi"].state, Liveness::Offline);
    assert!(reply.part.unwrap().last);
    assert_eq!(bench.slave.counters.answered.get(), 3);
}

#[tokio::test]
async fn a_response_topic_is_honoured_only_below_the_slaves_own() {
    let mut bench = Bench::new();
    let own = "rpicluster/to/pi/mine";
    for (wanted, used) in [
        (own, own),
        ("rpicluster/to/pi", "rpicluster/to/pi/reply"),
        ("rpicluster/to/pi/", "rpicluster/to/pi/reply"),
        ("rpicluster/to/pi/#", "rpicluster/to/pi/reply"),
        ("rpicluster/to/pi2/reply", "rpicluster/to/pi/reply"),
        ("rpicluster/from/pi/state", "rpicluster/to/pi/reply"),
    ] {
        let wishes = Wishes { topic: Some(wanted.into()), correlation_data: Some(Bytes::from_static(b"c")) };
        bench.send_with(Upward::Info, &info("time"), wishes);
        let message = bench.reply().await.0;
        assert_eq!(message.topic, used);
        assert_eq!(message.correlation_data.as_deref(), Some(&b"c"[..]));
    }
}

#[tokio::test]
async fn nonsense_is_named_counted_and_answered_once_a_second() {
    let mut bench = Bench::new();
    bench.send(Upward::Info, &info("weather"));
    let reply = bench.reply().await.1;
    assert_eq!((bad(&reply), reply.re.as_ref().unwrap().as_str()), (&BadMessage::Unknown, "r-weather"));

    for nonsense in ["", "[]", "null", r#"{"type":"dance","payload":1}"#, r#"{"type":"vitals","payload":{}}"#] {
        bench.send(Upward::Message, nonsense);
    }
    bench.now = bench.now + Duration::from_secs(1);
    bench.send(Upward::Vitals, r#"{"type":"vitals","payload":{"uptime":"long"},"id":"v1"}"#);
    let reply = bench.reply().await.1;
    assert_eq!(reply.re.as_ref().unwrap().as_str(), "v1");
    assert!(matches!(bad(&reply), BadMessage::Error(error) if error.contains("vitals")), "{reply:?}");
    bench.handled().await;
    assert_eq!(bench.slave.counters.bad_messages.get(), 7);
    assert_eq!(bench.slave.counters.unanswered.get(), 5);
    assert!(bench.published.try_recv().is_err());
}

#[tokio::test]
async fn the_list_of_slaves_is_answered_once_in_ten_seconds() {
    let mut bench = Bench::new();
    bench.send(Upward::Info, &info("slave_details"));
    assert!(matches!(bench.reply().await.1.message, ToSlave::SlaveDetails(_)));
    bench.now = bench.now + Duration::from_millis(2_500);
    bench.send(Upward::Info, &info("slave_details"));
    let reply = bench.reply().await.1;
    assert!(matches!(bad(&reply), BadMessage::Error(error) if error.contains("again in 8 s")), "{reply:?}");
    bench.now = bench.now + Duration::from_millis(7_500);
    bench.send(Upward::Info, &info("slave_details"));
    assert!(matches!(bench.reply().await.1.message, ToSlave::SlaveDetails(_)));
}

#[tokio::test]
async fn states_reach_the_engine_and_another_protocol_is_refused_by_name() {
    let mut bench = Bench::new();
    let long = "x".repeat(10_000);
    bench.send(
        Upward::State,
        &format!(r#"{{"type":"state","payload":{{"state":"offline","session":"s1","reason":"{long}"}}}}"#),
    );
    let Some(Input::Claim { state, at, .. }) = bench.engine.recv().await else { panic!("no claim") };
    assert_eq!((state.session.as_str(), at), ("s1", bench.now));
    assert_eq!(state.reason.unwrap().len(), STATE_TEXT_CHARS_MAX);

    bench.send(Upward::State, r#"{"type":"state","payload":{"state":"online","session":"s2","protocol":7},"id":"q"}"#);
    let reply = bench.reply().await.1;
    assert!(matches!(bad(&reply), BadMessage::Error(error) if error.contains("protocol 7")), "{reply:?}");
    assert_eq!(reply.re.as_ref().unwrap().as_str(), "q");
    assert!(matches!(bench.engine.recv().await, Some(Input::Sign { at, .. }) if at == bench.now));
}

#[tokio::test]
async fn details_and_vitals_are_shown_and_only_details_are_told_to_the_engine() {
    let mut bench = Bench::new();
    bench.send(Upward::Vitals, r#"{"type":"vitals","payload":{"uptime":5}}"#);
    bench.send(Upward::Details, r#"{"type":"computer_details","payload":{"hostname":"a\nb"}}"#);
    assert!(matches!(bench.engine.recv().await, Some(Input::Details { slave }) if Arc::ptr_eq(&slave, &bench.slave)));
    bench.handled().await;
    let latest = bench.slave.latest();
    assert_eq!(latest.vitals.unwrap().uptime, Some(5));
    assert_eq!(latest.details.unwrap().hostname.as_deref(), Some("a\nb"));
    assert!(bench.engine.try_recv().is_err());
}

#[tokio::test]
async fn a_slave_that_takes_no_answers_is_still_heard() {
    let mut bench = Bench::new();
    bench.publisher.stall("rpicluster/to/pi/reply");
    for _ in 0..200 {
        bench.send(Upward::Info, &info("time"));
    }
    bench.handled().await;
    let counters = &bench.slave.counters;
    assert_eq!(counters.answered.get() + counters.unanswered.get(), 200);
    assert!(counters.unanswered.get() > 100, "what waits for it is bounded");
    bench.send(Upward::State, r#"{"type":"state","payload":{"state":"offline","session":"s1"}}"#);
    assert!(matches!(bench.engine.recv().await, Some(Input::Claim { .. })));
}
