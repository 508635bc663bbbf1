//! Presence on a virtual clock.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;

const TIMEOUT: Duration = Duration::from_secs(15);

/// One slave, its retained topic, and a master that can restart.
struct Bench {
    presence: Presence,
    now: Moment,
    /// What the broker holds for `R/from/pi/state`.
    retained: Option<State>,
    /// What the master wrote there and has not yet read back.
    echoes: VecDeque<State>,
    announces: usize,
    listen_from: Option<Moment>,
    shown: Option<(Liveness, Option<String>)>,
    remembered: Option<Record>,
}

fn pi() -> SlaveId {
    "pi".parse().unwrap()
}

fn state(state: Liveness, session: &str, reason: Option<&str>) -> State {
    State {
        state,
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
        Bench {
            presence: Presence::new(TIMEOUT),
            now: Moment::from_millis(1_000),
            retained: None,
            echoes: VecDeque::new(),
            announces: 0,
            listen_from: None,
            shown: None,
            remembered: None,
        }
    }

    fn claim(&mut self, state: State) {
        self.retained = Some(state.clone());
        self.handle(Input::Claim { slave: pi(), state, retained: false });
    }

    fn online(&mut self, session: &str) {
        self.claim(state(Liveness::Online, session, None));
    }

    fn will(&mut self, session: &str) {
        self.claim(state(Liveness::Offline, session, Some("connection_lost")));
    }

    fn sign(&mut self) {
        self.handle(Input::Sign { slave: pi() });
    }

    fn handle(&mut self, input: Input) {
        let mut effects = Vec::new();
        self.presence.handle(self.now, input, &mut effects);
        self.apply(effects);
    }

    fn advance(&mut self, time: Duration) {
        self.now = self.now + time;
        let mut effects = Vec::new();
        self.presence.timeout(self.now, &mut effects);
        self.apply(effects);
    }

    fn apply(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Changed { state, reason, .. } => self.shown = Some((state, reason)),
                Effect::Announce { .. } => self.announces += 1,
                Effect::RewriteRetained { .. } => {
                    let truth = self.presence.truth(&pi()).expect("only a claimed session has a retained state");
                    self.retained = Some(truth.clone());
                    self.echoes.push_back(truth);
                }
                Effect::Remember { .. } => self.remembered = self.presence.record(&pi()),
                Effect::Listen { from, .. } => self.listen_from = Some(from),
            }
        }
    }

    /// The master reads one of its own messages; `overwrites` if it also reaches the broker only now.
    fn echo(&mut self, overwrites: bool) {
        if let Some(state) = self.echoes.pop_front() {
            if overwrites {
                self.retained = Some(state.clone());
            }
            self.handle(Input::Claim { slave: pi(), state, retained: false });
        }
    }

    /// A new master with the old one's memory.
    fn restart(&mut self) {
        self.presence = Presence::new(TIMEOUT);
        self.echoes.clear();
        let mut effects = Vec::new();
        if let Some(record) = self.remembered.clone() {
            self.presence.restore(self.now, record, &mut effects);
        }
        self.apply(effects);
    }

    fn shown(&self) -> (Liveness, &str) {
        let (state, reason) = self.shown.as_ref().expect("the slave is listed");
        (*state, reason.as_deref().unwrap_or(""))
    }

    fn retained(&self) -> (Liveness, &str) {
        let state = self.retained.as_ref().expect("something is retained");
        (state.state, state.session.as_str())
    }
}

const ONLINE: (Liveness, &str) = (Liveness::Online, "");

fn offline(reason: &str) -> (Liveness, &str) {
    (Liveness::Offline, reason)
}

#[test]
fn a_slave_is_online_from_its_claim_until_its_will_or_its_goodbye() {
    for reason in ["connection_lost", "stopped"] {
        let mut bench = Bench::new();
        bench.online("s1");
        assert_eq!(bench.shown(), ONLINE);
        bench.claim(state(Liveness::Offline, "s1", Some(reason)));
        assert_eq!(bench.shown(), offline(reason));
        bench.advance(TIMEOUT);
        assert_eq!(bench.shown(), offline(reason), "who has gone is not silent");
        bench.online("s2");
        assert_eq!(bench.shown(), ONLINE);
    }
}

#[test]
fn a_late_will_changes_nothing_and_the_retained_topic_is_put_right() {
    let mut bench = Bench::new();
    bench.online("s1");
    bench.online("s2");
    bench.will("s1");
    assert_eq!(bench.shown(), ONLINE);
    assert_eq!(bench.retained(), (Liveness::Online, "s2"));
    assert_eq!(bench.announces, 0);
}

#[test]
fn a_late_will_is_ignored_after_a_restart_of_the_master_too() {
    let mut bench = Bench::new();
    bench.online("s1");
    bench.online("s2");
    bench.restart();
    bench.will("s1");
    assert_eq!(bench.shown(), ONLINE);
    assert_eq!(bench.retained(), (Liveness::Online, "s2"));
}

#[test]
fn the_last_eight_superseded_sessions_are_remembered() {
    let mut bench = Bench::new();
    for session in 0..20 {
        bench.online(&format!("s{session}"));
    }
    assert_eq!(bench.remembered.as_ref().unwrap().superseded.len(), SUPERSEDED_SESSIONS_MAX);
    bench.online("s11");
    assert_eq!(bench.presence.record(&pi()).unwrap().claim.unwrap().session.as_str(), "s19", "s11 is history");
    bench.will("s10");
    assert_eq!(bench.shown(), ONLINE);
    assert_eq!(bench.announces, 1, "s10 is forgotten, so it is an unknown session");
}

#[test]
fn an_offline_of_an_unknown_session_only_asks() {
    let mut bench = Bench::new();
    bench.online("s1");
    bench.will("other");
    assert_eq!(bench.shown(), ONLINE);
    assert_eq!(bench.announces, 1);
    assert_eq!(bench.retained(), (Liveness::Online, "s1"));

    bench.will("another");
    assert_eq!(bench.announces, 1, "the answer may still be on its way");
    bench.advance(ANNOUNCE_JITTER_MAX);
    bench.will("other");
    assert_eq!(bench.announces, 2);

    let mut stranger = Bench::new();
    stranger.will("other");
    assert_eq!(stranger.shown(), offline(NO_STATE));
    assert_eq!(stranger.announces, 1);
}

#[test]
fn duplicates_change_nothing() {
    let mut bench = Bench::new();
    bench.online("s1");
    let mut effects = Vec::new();
    let again = Input::Claim { slave: pi(), state: state(Liveness::Online, "s1", None), retained: false };
    bench.presence.handle(bench.now, again, &mut effects);
    assert_eq!(effects, []);
    bench.claim(state(Liveness::Offline, "s1", Some("stopped")));
    bench.will("s1");
    assert_eq!(bench.shown(), offline("stopped"), "the first word of a session about its end counts");
}

#[test]
fn silence_is_offline_and_any_message_ends_it() {
    let mut bench = Bench::new();
    bench.online("s1");
    bench.advance(TIMEOUT - Duration::from_millis(1));
    assert_eq!(bench.shown(), ONLINE);
    bench.advance(Duration::from_millis(1));
    assert_eq!(bench.shown(), offline(SILENT));
    assert_eq!(bench.retained(), (Liveness::Offline, "s1"));
    assert!(bench.listen_from.unwrap() <= bench.now);
    bench.echo(false);
    assert_eq!(bench.shown(), offline(SILENT), "the master's own words are no sign of life");
    bench.sign();
    assert_eq!(bench.shown(), ONLINE);
    assert_eq!(bench.retained(), (Liveness::Online, "s1"));
    bench.advance(TIMEOUT);
    assert_eq!(bench.shown(), offline(SILENT));
}

#[test]
fn signs_of_life_move_the_deadline() {
    let mut bench = Bench::new();
    bench.online("s1");
    for _ in 0..10 {
        bench.advance(Duration::from_secs(10));
        bench.presence.heard(&pi(), bench.now);
        assert_eq!(bench.shown(), ONLINE);
    }
    assert_eq!(bench.presence.due(bench.now + TIMEOUT).collect::<Vec<_>>(), [&pi()]);
    bench.advance(TIMEOUT);
    assert_eq!(bench.shown(), offline(SILENT));
    assert_eq!(bench.presence.poll_timeout(), None);
}

#[test]
fn the_will_of_a_silent_slave_tells_the_better_reason_and_ends_its_session() {
    let mut bench = Bench::new();
    bench.online("s1");
    bench.advance(TIMEOUT);
    bench.will("s1");
    assert_eq!(bench.shown(), offline("connection_lost"));
    bench.sign();
    assert_eq!(bench.shown(), offline("connection_lost"), "only a new online revives an ended session");
    assert_eq!(bench.announces, 1);
    assert_eq!(bench.listen_from, Some(bench.now + TIMEOUT), "and it is not asked at every message");
}

#[test]
fn an_echo_that_overtakes_a_will_does_not_revive_the_slave() {
    let mut bench = Bench::new();
    bench.online("s1");
    bench.advance(TIMEOUT);
    bench.echo(true);
    bench.sign();
    bench.will("s1");
    bench.echo(true);
    assert_eq!(bench.shown(), offline("connection_lost"));
    assert_eq!(bench.retained(), (Liveness::Offline, "s1"));
}

#[test]
fn an_echo_of_an_end_does_not_end_the_session_again() {
    let mut bench = Bench::new();
    bench.online("s1");
    bench.online("s2");
    bench.claim(state(Liveness::Offline, "s2", Some("stopped")));
    bench.will("s1");
    assert_eq!(bench.retained.as_ref().unwrap().reason.as_deref(), Some("restored: stopped"));
    bench.online("s2");
    bench.echo(true);
    assert_eq!(bench.shown(), ONLINE, "a slave made by hand may use its session again");
    assert_eq!(bench.retained(), (Liveness::Online, "s2"));
}

#[test]
fn a_slave_without_state_is_listed_offline_until_it_claims() {
    let mut bench = Bench::new();
    bench.sign();
    assert_eq!(bench.shown(), offline(NO_STATE));
    assert_eq!(bench.announces, 1);
    bench.advance(Duration::from_secs(60));
    bench.sign();
    assert_eq!(bench.shown(), offline(NO_STATE));
    assert_eq!(bench.announces, 2);
    bench.online("s1");
    assert_eq!(bench.shown(), ONLINE);
}

#[test]
fn a_restored_online_slave_has_a_full_timeout_to_prove_it() {
    let mut bench = Bench::new();
    bench.online("s1");
    bench.advance(Duration::from_secs(14));
    bench.restart();
    assert_eq!(bench.announces, 1);
    bench.advance(Duration::from_secs(14));
    assert_eq!(bench.shown(), ONLINE);
    bench.advance(Duration::from_secs(1));
    assert_eq!(bench.shown(), offline(SILENT));
}

#[test]
fn a_kept_copy_is_believed_only_with_a_sign_of_life() {
    let kept =
        |session: &str, liveness| Input::Claim { slave: pi(), state: state(liveness, session, None), retained: true };
    let mut dead = Bench::new();
    dead.handle(kept("s1", Liveness::Online));
    assert_eq!(dead.shown(), offline(SILENT));
    assert_eq!(dead.announces, 1);
    dead.sign();
    assert_eq!(dead.shown(), ONLINE);

    let mut known = Bench::new();
    known.online("s1");
    known.handle(kept("s0", Liveness::Offline));
    assert_eq!(known.shown(), ONLINE);
    known.handle(kept("s2", Liveness::Online));
    known.advance(TIMEOUT);
    assert_eq!(known.shown(), offline(SILENT), "a copy does not move the deadline");
    known.will("s1");
    assert_eq!(known.shown(), offline(SILENT), "but its session is the newest");
}

#[test]
fn a_pause_of_the_master_moves_deadlines() {
    let mut bench = Bench::new();
    bench.online("s1");
    bench.now = bench.now + Duration::from_secs(40);
    bench.handle(Input::Paused(Duration::from_secs(30)));
    bench.advance(Duration::from_secs(4));
    assert_eq!(bench.shown(), ONLINE);
    bench.advance(Duration::from_secs(1));
    assert_eq!(bench.shown(), offline(SILENT));
}

#[test]
fn a_connection_lost_while_the_master_was_away_is_no_proof() {
    let mut bench = Bench::new();
    bench.online("s1");
    bench.now = bench.now + Duration::from_secs(30);
    bench.handle(Input::Paused(Duration::from_secs(30)));
    bench.will("s1");
    assert_eq!(bench.shown(), ONLINE);
    assert_eq!(bench.retained(), (Liveness::Online, "s1"));
    assert_eq!(bench.announces, 1);
    bench.advance(TIMEOUT);
    assert_eq!(bench.shown(), offline(SILENT), "it did not come back");

    bench.online("s2");
    bench.handle(Input::Paused(Duration::from_secs(30)));
    bench.now = bench.now + AFTERMATH;
    bench.will("s2");
    assert_eq!(bench.shown(), offline("connection_lost"), "long after the pause a will is a will");
}

#[test]
fn when_the_broker_is_back_everybody_is_asked_and_nobody_pays_for_the_gap() {
    let gap = Duration::from_secs(100);
    let mut bench = Bench::new();
    bench.online("s1");
    bench.now = bench.now + gap;
    bench.handle(Input::BrokerBack(gap));
    assert_eq!((bench.shown(), bench.announces), (ONLINE, 1));
    bench.advance(TIMEOUT - Duration::from_secs(1));
    assert_eq!(bench.shown(), ONLINE);
    bench.advance(Duration::from_secs(1));
    assert_eq!(bench.shown(), offline(SILENT), "it did not come back");
}

#[test]
fn what_the_broker_keeps_is_put_right_unless_the_slave_does_so_itself_in_time() {
    let kept =
        |session: &str, liveness| Input::Claim { slave: pi(), state: state(liveness, session, None), retained: true };
    let gone = || {
        let mut bench = Bench::new();
        bench.online("s1");
        bench.will("s1");
        // The broker comes back with an empty memory.
        bench.retained = None;
        bench.handle(Input::BrokerBack(Duration::ZERO));
        bench
    };
    let mut forgotten = gone();
    forgotten.advance(TIMEOUT);
    assert_eq!(forgotten.retained(), (Liveness::Offline, "s1"));
    assert_eq!(forgotten.presence.poll_timeout(), None);

    let mut kept_well = gone();
    kept_well.handle(kept("s1", Liveness::Offline));
    kept_well.advance(TIMEOUT);
    assert_eq!(kept_well.retained, None, "nothing had to be written");

    let mut newer = gone();
    newer.handle(kept("s2", Liveness::Online));
    newer.advance(Duration::from_secs(1));
    assert_eq!((newer.shown(), newer.retained.is_none()), (offline(SILENT), true), "it may answer yet");
    newer.advance(TIMEOUT);
    assert_eq!(newer.retained(), (Liveness::Offline, "s2"));

    let mut back = gone();
    back.online("s2");
    back.advance(TIMEOUT - Duration::from_secs(1));
    assert_eq!((back.shown(), back.retained()), (ONLINE, (Liveness::Online, "s2")));
    back.advance(Duration::from_secs(1));
    assert_eq!(back.shown(), offline(SILENT));
}

#[test]
fn a_removed_slave_is_forgotten_until_it_speaks() {
    let mut bench = Bench::new();
    bench.online("s1");
    bench.handle(Input::Remove { slave: pi() });
    assert_eq!(bench.remembered, None);
    assert_eq!(bench.presence.poll_timeout(), None);
    bench.will("s1");
    assert_eq!(bench.shown(), offline(NO_STATE));
}

/// What the world does to one slave. Connections are numbered; each has a session of its own.
#[derive(Debug, Clone)]
enum Step {
    /// A new connection, and its `online`.
    Connect,
    /// The `online` of the newest connection again.
    Repeat,
    /// The end of the connection `back` before the newest, perhaps long after it, perhaps again.
    Will {
        back: usize,
    },
    /// The `online` of an older connection, redelivered.
    Stale {
        back: usize,
    },
    Sign,
    Advance {
        seconds: u64,
    },
    Pause {
        seconds: u64,
    },
    Restart,
    Echo {
        overwrites: bool,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let back = 1..=SUPERSEDED_SESSIONS_MAX;
    let step = prop_oneof![
        3 => Just(Step::Connect),
        1 => Just(Step::Repeat),
        2 => (0..=SUPERSEDED_SESSIONS_MAX).prop_map(|back| Step::Will { back }),
        1 => back.prop_map(|back| Step::Stale { back }),
        4 => Just(Step::Sign),
        4 => (0u64..20).prop_map(|seconds| Step::Advance { seconds }),
        1 => (1u64..100).prop_map(|seconds| Step::Pause { seconds }),
        1 => Just(Step::Restart),
        3 => any::<bool>().prop_map(|overwrites| Step::Echo { overwrites }),
    ];
    proptest::collection::vec(step, 1..80)
}

/// The rules, said in the simplest way.
#[derive(Default)]
struct Model {
    newest: Option<usize>,
    ended: bool,
    silent: bool,
    quiet: Duration,
    /// The master was away a moment ago.
    doubts: bool,
}

proptest! {
    #[test]
    fn presence_follows_the_rules(steps in steps()) {
        let mut bench = Bench::new();
        let mut model = Model::default();
        for step in steps {
            let session = |back: usize| model.newest.and_then(|n| n.checked_sub(back)).map(|n| format!("s{n}"));
            match step {
                Step::Connect => {
                    let next = model.newest.map_or(0, |n| n + 1);
                    bench.online(&format!("s{next}"));
                    model = Model { newest: Some(next), doubts: model.doubts, ..Model::default() };
                }
                Step::Repeat => if let Some(session) = session(0) {
                    bench.online(&session);
                    model = Model { newest: model.newest, doubts: model.doubts, ..Model::default() };
                },
                Step::Will { back } => if let Some(session) = session(back) {
                    bench.will(&session);
                    model.ended |= back == 0 && (!model.doubts || model.silent);
                },
                Step::Stale { back } => if let Some(session) = session(back) {
                    bench.online(&session);
                },
                Step::Sign => {
                    bench.sign();
                    model.silent = false;
                    model.quiet = Duration::ZERO;
                }
                Step::Advance { seconds } => {
                    bench.advance(Duration::from_secs(seconds));
                    model.quiet += Duration::from_secs(seconds);
                    model.silent |= model.quiet >= TIMEOUT;
                    model.doubts &= seconds == 0;
                }
                Step::Pause { seconds } => {
                    bench.now = bench.now + Duration::from_secs(seconds);
                    bench.handle(Input::Paused(Duration::from_secs(seconds)));
                    model.doubts = true;
                }
                Step::Restart => {
                    bench.restart();
                    model.doubts = false;
                    if !model.silent { model.quiet = Duration::ZERO; }
                }
                Step::Echo { overwrites } => bench.echo(overwrites),
            }
            if let Some((shown, _)) = &bench.shown {
                let expected = model.newest.is_some() && !model.ended && !model.silent;
                prop_assert_eq!(*shown == Liveness::Online, expected);
            }
        }
        // When all that the master wrote has come back, the retained topic says what holds.
        for _ in 0..100 {
            bench.echo(true);
        }
        prop_assert!(bench.echoes.is_empty());
        if let Some(truth) = bench.presence.truth(&pi()) {
            prop_assert_eq!(bench.retained(), (truth.state, truth.session.as_str()));
        }
    }
}
