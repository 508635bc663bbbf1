use rpicluster_protocol::{Details, TopicRoot};
use tokio::sync::mpsc;

use super::*;
use crate::health::Hearing;
use crate::loglimit::SharedLogLimit;
use crate::publish::fake::FakePublisher;
use crate::view::View;

struct Bench {
    bus: Bus<FakePublisher>,
    engine: mpsc::Receiver<Input>,
    _machine: watch::Sender<Arc<Details>>,
}

const VITALS: &str = r#"{"type":"vitals","payload":{}}"#;

fn bench(slaves_max: usize, inputs_max: usize) -> Bench {
    let (engine_sender, engine) = mpsc::channel(inputs_max);
    let (machine_sender, machine) = watch::channel(Arc::default());
    let world = World {
        root: TopicRoot::default(),
        view: Arc::new(View::new(slaves_max)),
        engine: engine_sender,
        machine,
        publisher: FakePublisher::new().0,
        log: SharedLogLimit::new(10, Duration::from_secs(1)),
    };
    let health = Arc::new(Health::new(Moment::default(), Arc::new(Hearing::here())));
    Bench { bus: Bus::new(Arc::new(world), health, Arc::default()), engine, _machine: machine_sender }
}

impl Bench {
    fn deliver(&mut self, topic: &str, at: u64) {
        self.bus.deliver(
            topic,
            Bytes::from_static(VITALS.as_bytes()),
            Wishes::default(),
            false,
            Moment::from_millis(at),
        );
    }

    /// Whose sign of life the engine was told, and of when.
    fn signed(&mut self) -> (String, Moment) {
        match self.engine.try_recv() {
            Ok(Input::Sign { slave, at }) => (slave.id.to_string(), at),
            other => panic!("{other:?}"),
        }
    }

    fn slave(&self, id: &str) -> Arc<Slave> {
        self.bus.world.view.get(id).unwrap()
    }

    async fn handled(&self, id: &str, count: u64) {
        let slave = self.slave(id);
        while slave.counters.handled.get() < count {
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test]
async fn every_message_is_counted_under_its_own_slave() {
    let mut bench = bench(10, 10);
    for round in 1..=100 {
        bench.deliver("rpicluster/from/a/vitals", round);
        bench.deliver("rpicluster/from/b/vitals", round);
        bench.deliver("rpicluster/from/b/vitals", round);
    }
    bench.handled("a", 100).await;
    bench.handled("b", 200).await;
    for (id, received) in [("a", 100), ("b", 200)] {
        let figures = bench.slave(id).counters.figures();
        assert_eq!((figures.received, figures.handled, figures.shed), (received, received, 0));
        assert!(bench.slave(id).latest().vitals.is_some());
    }
    assert_eq!(bench.bus.handlers.len(), 2);
}

#[tokio::test]
async fn a_flood_is_shed_and_still_a_sign_of_life() {
    let mut bench = bench(10, 10);
    for at in 1..=5_000 {
        bench.deliver("rpicluster/from/a/vitals", at);
    }
    let slave = bench.slave("a");
    assert_eq!(slave.pulse.heard(), Moment::from_millis(5_000));
    bench.handled("a", 1_000).await;
    let figures = slave.counters.figures();
    assert_eq!((figures.received, figures.handled, figures.shed), (5_000, 1_000, 4_000));
}

#[tokio::test]
async fn the_engine_hears_of_a_new_slave_once_and_of_nobody_who_is_no_slave() {
    let mut bench = bench(1, 10);
    bench.deliver("rpicluster/from/a/state", 1);
    bench.deliver("rpicluster/from/a/vitals", 2);
    assert!(bench.engine.try_recv().is_err(), "its claim is on the way");
    bench.deliver("rpicluster/from/a/vitals", 1_001);
    bench.deliver("rpicluster/from/a/vitals", 1_002);
    bench.deliver("rpicluster/from/b/vitals", 4);
    for topic in ["rpicluster/from/Ä/vitals", "rpicluster/from/master/vitals", "rpicluster/to/a/reply", "x", ""] {
        bench.deliver(topic, 5);
    }
    let a = bench.slave("a");
    assert_eq!(bench.signed(), ("a".to_owned(), Moment::from_millis(1_001)));
    bench.handled("a", 4).await;
    // The state was no state: that is a bad message and a sign of life that nobody waits for any more.
    assert_eq!(a.counters.bad_messages.get(), 1);
    assert!(bench.engine.try_recv().is_err());
    assert!(bench.bus.world.view.get("b").is_none());
    assert_eq!((bench.bus.counters.refused.get(), bench.bus.counters.unroutable.get()), (1, 5));
}

#[tokio::test]
async fn a_sign_of_life_that_the_engine_could_not_take_is_told_at_the_next_message() {
    let mut bench = bench(10, 1);
    bench.deliver("rpicluster/from/a/vitals", 1);
    bench.deliver("rpicluster/from/b/vitals", 2);
    assert_eq!(bench.signed(), ("a".to_owned(), Moment::from_millis(1)));
    bench.deliver("rpicluster/from/b/vitals", 3);
    assert_eq!(bench.signed(), ("b".to_owned(), Moment::from_millis(3)));
}

#[tokio::test]
async fn a_removed_slave_is_nobody_until_its_farewell_and_new_after_it() {
    let mut bench = bench(10, 10);
    bench.deliver("rpicluster/from/a/vitals", 1);
    bench.deliver("rpicluster/from/a/message", 1);
    bench.handled("a", 2).await;
    let old = bench.slave("a");
    bench.bus.world.view.remove(&old.id);
    let _farewell = bench.bus.world.view.expect_farewell(&old.id, Bytes::from_static(b"mark"));

    let empty = |bench: &mut Bench, mark: &'static [u8]| {
        let wishes = Wishes { topic: None, correlation_data: Some(Bytes::from_static(mark)) };
        bench.bus.deliver("rpicluster/from/a/state", Bytes::new(), wishes, false, Moment::from_millis(2));
    };
    for leaf in ["vitals", "details", "state"] {
        bench.deliver(&format!("rpicluster/from/a/{leaf}"), 2);
    }
    empty(&mut bench, b"forged");
    assert!(bench.bus.world.view.get("a").is_none(), "what it said before is nobody's");
    assert_eq!((bench.bus.counters.refused.get(), old.counters.received.get()), (4, 2));

    empty(&mut bench, b"mark");
    bench.bus.handlers.join_next().await.unwrap().unwrap().unwrap();
    assert!(bench.bus.routes.is_empty() && bench.bus.slaves.is_empty());
    bench.deliver("rpicluster/from/a/vitals", 3);
    bench.handled("a", 1).await;
    assert!(!Arc::ptr_eq(&old, &bench.slave("a")));
    assert_eq!(bench.bus.counters.refused.get(), 4);
}
