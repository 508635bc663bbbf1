use rpicluster_protocol::Details;
use tempfile::TempDir;

use super::*;
use crate::access::{Enrolment, Hash, Labels};
use crate::health::Hearing;
use crate::store::private_folder;

const TIMEOUT: Duration = Duration::from_secs(15);

struct Bench {
    engine: Engine,
    view: Arc<View>,
    health: Arc<Health>,
    commands: mpsc::Receiver<Command>,
    now: Moment,
    folder: TempDir,
}

fn pi() -> SlaveId {
    "pi".parse().unwrap()
}

fn state(liveness: Liveness, session: &str, reason: Option<&str>) -> State {
    State {
        state: liveness,
        session: session.parse().unwrap(),
        protocol: Some(1),
        boot_id: None,
        version: None,
        slots: None,
        ahead: None,
        reason: reason.map(str::to_owned),
    }
}

impl Bench {
    fn new() -> Bench {
        Bench::open(private_folder(), COMMANDS)
    }

    fn open(folder: TempDir, commands_max: usize) -> Bench {
        let now = Moment::from_millis(1_000_000);
        let store = Store::open(folder.path()).unwrap();
        let slaves = store.slaves().unwrap();
        let view = Arc::new(View::new(100));
        let health = Arc::new(Health::new(now, Arc::new(Hearing::here())));
        let (sender, commands) = mpsc::channel(commands_max);
        let (desk, _, _) = super::tasks::tests::desk(&store);
        let surroundings = Surroundings {
            view: view.clone(),
            health: health.clone(),
            counters: Arc::default(),
            log: Arc::new(SharedLogLimit::new(1_000, Duration::from_secs(1))),
            commands: sender,
            desk,
        };
        let records = slaves.into_iter().map(|slave| slave.record).collect();
        let engine = Engine::new(TIMEOUT, store, records, surroundings, now);
        Bench { engine, view, health, commands, now, folder }
    }

    fn meet(&self, id: &SlaveId) -> Arc<crate::view::Slave> {
        self.view.get_or_meet(id, Timestamp::from_unix_ms(0)).unwrap()
    }

    fn claim(&mut self, state: State) {
        let slave = self.meet(&pi());
        self.step(vec![Input::Claim { slave, state, retained: false, at: self.now }]);
    }

    /// One step of engine and bus, both alive.
    fn step(&mut self, mut inputs: Vec<Input>) {
        self.health.bus.beat(self.now);
        self.engine.step(&mut inputs, true, self.now, Timestamp::from_unix_ms(self.now.as_millis()));
    }

    /// Time passes as in life: nobody is away.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.now = end.min(self.now + BEAT_INTERVAL);
            self.step(Vec::new());
        }
    }

    fn shown(&self) -> (Liveness, Option<String>) {
        let latest = self.view.get("pi").unwrap().latest();
        (latest.state, latest.reason)
    }

    fn commands(&mut self) -> Vec<Command> {
        std::iter::from_fn(|| self.commands.try_recv().ok()).collect()
    }
}

const COMMANDS: usize = 16;
const ONLINE: (Liveness, Option<String>) = (Liveness::Online, None);

#[test]
fn a_claim_is_in_the_view_at_once_and_in_the_store_within_ten_seconds() {
    let mut bench = Bench::new();
    bench.claim(state(Liveness::Online, "s1", None));
    assert_eq!(bench.shown(), ONLINE);
    assert_eq!(bench.engine.store.slaves().unwrap(), []);
    bench.pass(SAVE_INTERVAL);
    let saved = bench.engine.store.slaves().unwrap();
    assert_eq!(saved[0].record.claim.as_ref().unwrap().session.as_str(), "s1");
    assert_eq!(saved[0].since, Timestamp::from_unix_ms(1_000_000));
}

#[test]
fn an_idle_cluster_writes_nothing() {
    let mut bench = Bench::new();
    bench.claim(state(Liveness::Online, "s1", None));
    bench.pass(SAVE_INTERVAL);
    let log = bench.folder.path().join("master.db-wal");
    let before = std::fs::metadata(&log).unwrap().len();
    for _ in 0..12 {
        bench.view.get("pi").unwrap().pulse.beat(bench.now);
        bench.pass(Duration::from_secs(5));
    }
    assert_eq!(bench.shown(), ONLINE);
    assert_eq!(std::fs::metadata(&log).unwrap().len(), before);
}

#[test]
fn details_are_saved_as_they_are_then() {
    let mut bench = Bench::new();
    bench.claim(state(Liveness::Online, "s1", None));
    let slave = bench.meet(&pi());
    for cores in [1, 2] {
        if slave.set_details(Arc::new(Details { cpu_cores: Some(cores), ..Details::default() })) {
            bench.step(vec![Input::Details { slave: slave.clone() }]);
        }
    }
    bench.pass(SAVE_INTERVAL);
    assert_eq!(bench.engine.store.slaves().unwrap()[0].details.as_ref().unwrap().cpu_cores, Some(2));
    assert!(slave.set_details(Arc::default()), "the next details are news again");
}

#[test]
fn silence_is_judged_by_the_pulse_and_only_when_nothing_waits() {
    let mut bench = Bench::new();
    bench.claim(state(Liveness::Online, "s1", None));
    let slave = bench.meet(&pi());
    bench.pass(Duration::from_secs(14));
    slave.pulse.beat(bench.now);
    bench.pass(Duration::from_millis(14_500));
    assert_eq!(bench.shown(), ONLINE);
    bench.now = bench.now + BEAT_INTERVAL;
    bench.health.bus.beat(bench.now);
    bench.engine.step(&mut Vec::new(), false, bench.now, Timestamp::from_unix_ms(0));
    assert_eq!(bench.shown(), ONLINE, "an input that waits may be its sign of life");
    bench.step(Vec::new());
    assert_eq!(bench.shown(), (Liveness::Offline, Some("silent".into())));
    let truth = state(Liveness::Offline, "s1", Some("silent"));
    assert_eq!(bench.commands(), [Command::RewriteRetained(pi(), truth)]);

    assert!(slave.pulse.beat(bench.now), "the next message is asked for");
    bench.step(vec![Input::Sign { slave, at: bench.now }]);
    assert_eq!(bench.shown(), ONLINE);
}

#[test]
fn a_message_that_races_with_the_judgement_wins() {
    let mut bench = Bench::new();
    bench.claim(state(Liveness::Online, "s1", None));
    bench.pass(TIMEOUT - BEAT_INTERVAL);
    bench.now = bench.now + BEAT_INTERVAL;
    // Core judges before it is told of this one; the question that follows finds it.
    bench.engine.presence.timeout(bench.now, &mut bench.engine.effects);
    bench.view.get("pi").unwrap().pulse.beat(bench.now);
    bench.step(Vec::new());
    assert_eq!(bench.shown(), ONLINE);
}

#[test]
fn a_master_that_was_away_gives_everybody_as_much_more_time() {
    let mut bench = Bench::new();
    bench.claim(state(Liveness::Online, "s1", None));
    bench.pass(Duration::from_secs(10));
    bench.view.get("pi").unwrap().pulse.beat(bench.now);
    bench.pass(Duration::from_secs(1));
    bench.now = bench.now + Duration::from_secs(60);
    // The engine wakes before the bus does.
    bench.engine.step(&mut Vec::new(), true, bench.now, Timestamp::from_unix_ms(0));
    assert_eq!(bench.shown(), ONLINE);
    bench.pass(Duration::from_secs(13));
    assert_eq!(bench.shown(), ONLINE);
    bench.pass(Duration::from_secs(2));
    assert_eq!(bench.shown().0, Liveness::Offline);
}

#[test]
fn a_bus_that_hangs_makes_nobody_offline() {
    let mut bench = Bench::new();
    bench.claim(state(Liveness::Online, "s1", None));
    for _ in 0..120 {
        bench.now = bench.now + BEAT_INTERVAL;
        bench.engine.step(&mut Vec::new(), true, bench.now, Timestamp::from_unix_ms(0));
    }
    assert_eq!(bench.shown(), ONLINE);
    assert!(!bench.health.bus.is_alive(bench.now) && bench.health.engine.is_alive(bench.now));
    bench.pass(Duration::from_secs(10));
    assert_eq!(bench.shown(), ONLINE);
}

#[test]
fn a_store_that_fails_stops_nothing_and_is_tried_again() {
    let mut bench = Bench::new();
    bench.engine.store.break_down();
    bench.claim(state(Liveness::Online, "s1", None));
    bench.pass(SAVE_INTERVAL);
    assert_eq!(bench.engine.counters.store_failures.get(), 1);
    bench.claim(state(Liveness::Offline, "s1", Some("stopped")));
    assert_eq!(bench.shown(), (Liveness::Offline, Some("stopped".into())));
    bench.engine.store.mend();
    bench.pass(SAVE_INTERVAL);
    assert_eq!(bench.engine.store.slaves().unwrap()[0].record.reason.as_deref(), Some("stopped"));
    assert_eq!(bench.engine.counters.store_failures.get(), 1);
}

#[test]
fn what_a_full_queue_does_not_take_is_made_again_from_what_holds_then() {
    let mut bench = Bench::open(private_folder(), 1);
    bench.claim(state(Liveness::Online, "s2", None));
    bench.claim(state(Liveness::Offline, "unknown", None));
    bench.claim(state(Liveness::Online, "s3", None));
    let rewritten = |session| Command::RewriteRetained(pi(), state(Liveness::Online, session, Some("restored")));
    assert_eq!(bench.commands(), [rewritten("s2")]);
    bench.claim(state(Liveness::Online, "s2", None));
    assert_eq!(bench.commands(), [rewritten("s3")]);
    bench.step(Vec::new());
    assert_eq!(bench.commands(), [Command::Announce(pi())]);
}

#[test]
fn a_new_engine_knows_what_the_old_one_saved_at_its_end() {
    let mut bench = Bench::new();
    bench.claim(state(Liveness::Online, "s1", None));
    bench.claim(state(Liveness::Online, "s2", None));
    let (sender, inputs) = mpsc::channel::<Input>(1);
    drop(sender);
    let Bench { engine, folder, .. } = bench;
    engine.run(inputs).unwrap();

    let mut bench = Bench::open(folder, COMMANDS);
    bench.meet(&pi()).set_presence(Liveness::Online, None, None, Timestamp::from_unix_ms(0));
    bench.claim(state(Liveness::Offline, "s1", Some("connection_lost")));
    assert_eq!(bench.shown(), ONLINE);
    assert!(bench.commands().contains(&Command::Announce(pi())));
    bench.pass(TIMEOUT);
    assert_eq!(bench.shown(), (Liveness::Offline, Some("silent".into())));
}

fn removed() -> Vec<Change> {
    vec![Change::SlaveRemoved(pi())]
}

fn enrolled(id: &str) -> Vec<Change> {
    let (id, secret) = (id.parse().unwrap(), Hash::of(b"secret"));
    vec![Change::SlaveEnrolled(Enrolment { id, secret, labels: Labels::new(), created: 0 })]
}

#[test]
fn changes_of_one_batch_are_one_transaction_with_all_that_waited() {
    let mut bench = Bench::new();
    bench.claim(state(Liveness::Online, "s1", None));
    assert_eq!(bench.engine.store.slaves().unwrap(), []);
    let commit = |bench: &mut Bench, batch: [Vec<Change>; 2]| {
        let mut answers = Vec::new();
        let inputs = batch.map(|changes| {
            let (done, answer) = oneshot::channel();
            answers.push(answer);
            Input::Commit { changes, done }
        });
        bench.step(inputs.into());
        answers.iter_mut().map(|answer| answer.try_recv().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(commit(&mut bench, [enrolled("a"), enrolled("b")]), [Ok(()), Ok(())]);
    assert_eq!(bench.engine.store.access().unwrap(), [enrolled("a"), enrolled("b")].concat());
    assert_eq!(bench.engine.store.slaves().unwrap().len(), 1, "presence went with it");

    bench.engine.store.break_down();
    assert_eq!(commit(&mut bench, [enrolled("c"), removed()]), [Err(NotWritten), Err(NotWritten)]);
    assert_eq!(bench.engine.store.access().unwrap().len(), 2, "the one took the other back");
}

#[test]
fn a_removed_slave_is_forgotten_and_what_is_still_said_in_its_name_is_nobodys() {
    let mut bench = Bench::new();
    bench.claim(state(Liveness::Online, "s1", None));
    bench.pass(SAVE_INTERVAL);
    let old = bench.meet(&pi());
    let (done, mut answer) = oneshot::channel();
    bench.step(vec![Input::Commit { changes: removed(), done }]);
    assert_eq!(answer.try_recv(), Ok(Ok(())));
    assert_eq!(bench.engine.store.slaves().unwrap(), []);
    assert!(old.is_removed() && bench.view.get("pi").is_none() && bench.view.is_leaving(&pi()));
    assert!(bench.engine.presence.record(&pi()).is_none());
    assert!(bench.view.get_or_meet(&pi(), Timestamp::from_unix_ms(0)).is_none(), "until its farewell has come");

    let late = |slave: &Arc<Slave>, at| {
        let claim = state(Liveness::Online, "s1", None);
        vec![
            Input::Claim { slave: slave.clone(), state: claim, retained: false, at },
            Input::Sign { slave: slave.clone(), at },
            Input::Details { slave: slave.clone() },
        ]
    };
    bench.commands();
    bench.step(late(&old, bench.now));
    assert!(bench.engine.presence.record(&pi()).is_none());
    let mark = Bytes::from_static(b"mark");
    drop(bench.view.expect_farewell(&pi(), mark.clone()));
    bench.step(vec![Input::Farewell { slave: pi(), mark: mark.clone() }]);
    assert_eq!(bench.commands(), [Command::Farewell(pi(), mark.clone())]);
    assert!(!bench.view.farewell(&pi(), &Bytes::from_static(b"other")) && bench.view.farewell(&pi(), &mark));

    // Who comes back is new, whatever the old one still says.
    bench.claim(state(Liveness::Online, "s2", None));
    bench.step(late(&old, bench.now));
    assert_eq!(bench.shown(), ONLINE);
    assert_eq!(bench.view.get("pi").unwrap().latest().session.unwrap().as_str(), "s2");
}

#[test]
fn a_change_that_cannot_be_written_changes_nothing() {
    let mut bench = Bench::new();
    bench.claim(state(Liveness::Online, "s1", None));
    bench.engine.store.break_down();
    let (done, mut answer) = oneshot::channel();
    bench.step(vec![Input::Commit { changes: removed(), done }]);
    assert_eq!(answer.try_recv(), Ok(Err(NotWritten)));
    assert_eq!(bench.engine.counters.store_failures.get(), 1);
    assert_eq!(bench.shown(), ONLINE);
    assert!(!bench.view.is_leaving(&pi()) && bench.engine.presence.record(&pi()).is_some());
    bench.engine.store.mend();
    bench.pass(SAVE_INTERVAL);
    assert_eq!(bench.engine.store.slaves().unwrap().len(), 1, "what was to be saved with it is tried again");
}

#[test]
fn a_broker_elsewhere_that_is_away_makes_nobody_offline_and_what_is_owed_waits_for_it() {
    let mut bench = Bench::new();
    let hearing = Arc::new(Hearing::elsewhere());
    hearing.found(bench.now);
    let health = Arc::new(Health::new(bench.now, hearing.clone()));
    (bench.health, bench.engine.health) = (health.clone(), health);
    bench.claim(state(Liveness::Online, "s1", None));
    bench.commands();
    hearing.heard(bench.now);
    // Undetected at first: what did not come proves nothing beyond what did.
    bench.pass(TIMEOUT + Duration::from_secs(2));
    assert_eq!(bench.shown(), ONLINE);
    hearing.lost();
    bench.pass(10 * TIMEOUT);
    assert_eq!(bench.shown(), ONLINE);
    bench.claim(state(Liveness::Offline, "s0", Some("connection_lost")));
    assert_eq!(bench.commands(), []);

    hearing.found(bench.now);
    bench.step(Vec::new());
    assert_eq!(bench.shown(), ONLINE);
    assert!(bench.commands().contains(&Command::Announce(pi())));
    for _ in 0..TIMEOUT.as_secs() {
        hearing.heard(bench.now);
        bench.pass(Duration::from_secs(1));
    }
    hearing.heard(bench.now);
    bench.step(Vec::new());
    assert_eq!(bench.shown(), (Liveness::Offline, Some("silent".to_owned())));
}

#[test]
fn a_farewell_that_may_have_been_lost_is_said_again_when_the_broker_is_back() {
    let mut bench = Bench::new();
    let hearing = Arc::new(Hearing::elsewhere());
    let health = Arc::new(Health::new(bench.now, hearing.clone()));
    (bench.health, bench.engine.health) = (health.clone(), health);
    bench.meet(&pi());
    bench.view.remove(&pi());
    let mark = Bytes::from_static(b"mark");
    let _arrival = bench.view.expect_farewell(&pi(), mark.clone());
    for _ in 0..2 {
        hearing.found(bench.now);
        bench.step(Vec::new());
        assert_eq!(bench.commands(), [Command::Farewell(pi(), mark.clone())]);
        hearing.lost();
    }
    assert!(bench.view.farewell(&pi(), &mark));
    hearing.found(bench.now);
    bench.step(Vec::new());
    assert_eq!(bench.commands(), []);
}
