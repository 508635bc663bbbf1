use std::collections::{BTreeMap, HashMap, HashSet};

use rpicluster_protocol::limits::{LEASE, OUTPUT_LIMIT, RESEND_MAX};
use rpicluster_protocol::{JobId, TaskCancel, TaskId, TaskLease, TaskSpec, Work};
use serde_json::Value;

use super::*;

mod random;

fn key(index: u32) -> AttemptKey {
    AttemptKey { task: TaskId { job: JobId(1), index }, attempt: 1, epoch: Epoch(1) }
}

fn offer(key: AttemptKey, session: u64) -> Box<TaskOffer> {
    let work = Work::Exec { argv: vec!["true".to_owned()] };
    let spec = TaskSpec {
        work,
        env: BTreeMap::new(),
        cwd: None,
        stdin: None,
        run_as: None,
        timeout_ms: None,
        output_limit: OUTPUT_LIMIT,
    };
    let lease_ms = u64::try_from(LEASE.as_millis()).unwrap();
    Box::new(TaskOffer { key, session: SessionId::from_random(session), lease_ms, spec })
}

fn ack(key: AttemptKey, seq: u32) -> Input {
    Input::Ack(TaskAck { key, seq, stdout: 0, stderr: 0 })
}

fn exited(key: AttemptKey) -> Input {
    Input::Exited(Box::new(TaskFinished { exit_code: Some(0), ..ended(key, Outcome::Succeeded, None) }))
}

/// A slave around a journal: a disk, of which a loss of power leaves what is synced, and processes.
struct Slave {
    journal: Journal,
    now: Moment,
    session: u64,
    file: Vec<u8>,
    /// Written, and not safe from a loss of power.
    unsynced: Vec<Record>,
    /// What is in the file, by attempt.
    durable: HashMap<AttemptKey, Vec<JournalEntry>>,
    running: HashSet<AttemptKey>,
    /// What ever began, with how often.
    begun: HashMap<AttemptKey, u32>,
    told: Vec<JournalEntry>,
    renewed: Vec<TaskLease>,
    ends: HashMap<AttemptKey, Moment>,
}

impl Slave {
    fn new(slots: u32) -> Slave {
        let mut slave = Slave {
            journal: Journal::new(slots, Some("boot-1".to_owned())),
            now: Moment::from_millis(1000),
            session: 1,
            file: encode_beginning(rpicluster_protocol::JournalId(1)),
            unsynced: Vec::new(),
            durable: HashMap::new(),
            running: HashSet::new(),
            begun: HashMap::new(),
            told: Vec::new(),
            renewed: Vec::new(),
            ends: HashMap::new(),
        };
        slave.input(Input::SessionBegan(SessionId::from_random(1)));
        slave
    }

    fn input(&mut self, input: Input) {
        let mut effects = Vec::new();
        self.journal.handle(self.now, input, &mut effects);
        self.apply(effects);
    }

    fn offer(&mut self, key: AttemptKey) {
        let offer = offer(key, self.session);
        self.input(Input::Offer { offer, verdict: Verdict::Run });
    }

    fn sync(&mut self) {
        self.keep_written();
        self.input(Input::Synced { records: self.journal.recorded() });
    }

    fn keep_written(&mut self) {
        let records = std::mem::take(&mut self.unsynced);
        if !records.is_empty() {
            self.file.extend(encode(&records, Before::Durable));
        }
        self.note_durable(records);
    }

    fn needs_sync(&mut self) -> bool {
        self.journal.sync_due().is_some_and(|at| at <= self.now)
    }

    fn is_durable(&self, entry: &JournalEntry) -> bool {
        self.durable.get(&entry.key()).is_some_and(|held| held.contains(entry))
    }

    fn note_durable(&mut self, records: Vec<Record>) {
        for record in records {
            if let Record::Entry { entry, .. } = record {
                self.durable.entry(entry.key()).or_default().push(entry);
            }
        }
    }

    fn wait(&mut self, time: Duration) {
        self.now = self.now + time;
        let mut effects = Vec::new();
        self.journal.handle_timeout(self.now, &mut effects);
        self.apply(effects);
    }

    fn reconnect(&mut self) {
        self.session += 1;
        self.input(Input::SessionBegan(SessionId::from_random(self.session)));
    }

    /// The agent dies: with the machine, if the boot is another one.
    fn crash(&mut self, boot_id: &str) {
        if self.journal.boot_id.as_deref() == Some(boot_id) {
            self.keep_written();
        }
        self.unsynced.clear();
        self.running.clear();
        let slots = self.journal.slots;
        let contents = decode(&self.file).unwrap();
        self.journal = Journal::restore(slots, Some(boot_id.to_owned()), contents.records, |_| (3, 0));
        self.file = encode_beginning(contents.id);
        self.file.extend(encode(&self.journal.records(), Before::Durable));
        self.note_durable(self.journal.records());
        self.input(Input::Synced { records: 0 });
        self.reconnect();
    }

    fn apply(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Record(record) => self.unsynced.push(record),
                Effect::Spawn { offer, lease_end } => {
                    assert!(self.durable.contains_key(&offer.key), "{:?} is not durable", offer.key);
                    *self.begun.entry(offer.key).or_default() += 1;
                    self.running.insert(offer.key);
                    self.ends.insert(offer.key, lease_end);
                }
                Effect::Extend { key, lease_end } => {
                    assert!(self.ends.insert(key, lease_end).unwrap() < lease_end);
                }
                Effect::Kill { key } => {
                    if self.running.remove(&key) {
                        self.input(Input::Exited(Box::new(ended(key, Outcome::Canceled, None))));
                    }
                }
                Effect::Tell(entry) => {
                    let is_written =
                        |record: &Record| matches!(record, Record::Entry { entry: of, .. } if *of == entry);
                    let holds = self.is_durable(&entry)
                        || match &entry {
                            JournalEntry::Started(_) => false,
                            JournalEntry::Rejected(no) if no.reason == RejectReason::Busy => true,
                            JournalEntry::Rejected(_) | JournalEntry::Finished(_) => {
                                self.unsynced.iter().any(is_written)
                            }
                        };
                    assert!(holds, "{entry:?} is told and not recorded");
                    self.told.push(entry);
                }
                Effect::Renew(lease) => self.renewed.push(lease),
                Effect::Forget { .. } | Effect::TellJournal => {}
            }
        }
    }

    fn told(&mut self) -> Vec<JournalEntry> {
        std::mem::take(&mut self.told)
    }

    fn end(&mut self) -> TaskFinished {
        match self.told().pop() {
            Some(JournalEntry::Finished(finished)) => *finished,
            other => panic!("no end: {other:?}"),
        }
    }

    fn refusal(&mut self) -> RejectReason {
        match self.told().pop() {
            Some(JournalEntry::Rejected(rejected)) => rejected.reason,
            other => panic!("no refusal: {other:?}"),
        }
    }
}

#[test]
fn an_attempt_begins_when_that_is_durable_and_its_end_is_told_at_once() {
    let mut slave = Slave::new(1);
    slave.offer(key(1));
    assert!(slave.running.is_empty() && slave.told().is_empty());
    slave.sync();
    assert_eq!(slave.told(), [started(key(1), Some("boot-1".to_owned()))]);
    slave.input(exited(key(1)));
    let end = slave.end();
    assert_eq!((end.seq, end.outcome), (2, Outcome::Succeeded));
    slave.input(ack(key(1), 2));
    assert_eq!(slave.journal.held(), 0);
    slave.wait(END_WAIT);
    assert!(!slave.needs_sync(), "the master has it");
}

#[test]
fn an_end_that_nobody_acknowledges_is_made_durable_and_one_that_nobody_hears_at_once() {
    let mut slave = Slave::new(3);
    for index in 1..=3 {
        slave.offer(key(index));
    }
    slave.sync();
    slave.input(exited(key(1)));
    assert!(!slave.needs_sync());
    assert_eq!(slave.journal.sync_due(), Some(slave.now + END_WAIT));
    slave.wait(END_WAIT);
    assert!(slave.needs_sync());
    slave.sync();
    assert!(!slave.needs_sync());
    slave.input(exited(key(2)));
    assert!(!slave.needs_sync());
    slave.input(Input::SessionEnded);
    assert!(slave.needs_sync(), "it may not have arrived");
    slave.sync();
    slave.told();
    slave.input(exited(key(3)));
    assert!(slave.needs_sync() && slave.told().is_empty());
    slave.sync();
    slave.reconnect();
    assert_eq!(slave.journal.entries().len(), 3);
}

#[test]
fn an_end_survives_the_agent_and_is_lost_with_the_power_alone() {
    for (boot, outcome) in [("boot-1", Outcome::Succeeded), ("boot-2", Outcome::Lost)] {
        let mut slave = Slave::new(1);
        slave.offer(key(1));
        slave.sync();
        slave.input(exited(key(1)));
        slave.crash(boot);
        let [JournalEntry::Finished(end)] = &slave.journal.entries()[..] else { panic!("no end") };
        assert_eq!(end.outcome, outcome);
    }
}

#[test]
fn a_repeated_offer_replays_and_never_runs_again() {
    let mut slave = Slave::new(2);
    slave.offer(key(1));
    slave.offer(key(1));
    slave.sync();
    slave.told();
    slave.offer(key(1));
    assert!(matches!(slave.told()[..], [JournalEntry::Started(_)]));
    slave.input(exited(key(1)));
    slave.sync();
    slave.offer(key(1));
    assert_eq!(slave.end().outcome, Outcome::Succeeded);
    slave.input(ack(key(1), 2));
    slave.offer(key(1));
    slave.sync();
    assert!(slave.told().is_empty());
    assert_eq!(slave.begun[&key(1)], 1);
}

#[test]
fn an_offer_of_another_session_or_whose_lease_is_over_before_it_begins_is_stale() {
    let mut slave = Slave::new(2);
    let of_before = offer(key(1), 77);
    slave.input(Input::Offer { offer: of_before, verdict: Verdict::Run });
    slave.sync();
    assert_eq!(slave.refusal(), RejectReason::Stale);
    slave.offer(key(2));
    slave.reconnect();
    assert!(slave.journal.entries().iter().all(|entry| entry.key() != key(2)));
    slave.sync();
    slave.sync();
    assert_eq!(slave.refusal(), RejectReason::Stale);
    slave.offer(key(3));
    slave.now = slave.now + LEASE;
    slave.sync();
    slave.sync();
    assert_eq!(slave.refusal(), RejectReason::Stale);
    assert!(slave.begun.is_empty());
    assert_eq!(slave.journal.running(), 0);
}

#[test]
fn a_cancel_ends_it_wherever_it_is_and_before_its_offer_too() {
    let mut slave = Slave::new(3);
    slave.input(Input::Cancel(TaskCancel { key: key(1) }));
    slave.sync();
    assert_eq!((slave.end().outcome, slave.journal.held()), (Outcome::Canceled, 1));
    slave.offer(key(1));
    slave.offer(key(2));
    slave.input(Input::Cancel(TaskCancel { key: key(2) }));
    slave.sync();
    assert_eq!(slave.end().outcome, Outcome::Canceled);
    assert!(slave.begun.is_empty());
    slave.offer(key(3));
    slave.sync();
    slave.input(Input::Cancel(TaskCancel { key: key(3) }));
    slave.sync();
    assert_eq!(slave.end().outcome, Outcome::Canceled);
}

#[test]
fn the_first_outcome_wins() {
    let mut slave = Slave::new(1);
    slave.offer(key(1));
    slave.sync();
    slave.input(exited(key(1)));
    slave.input(Input::Cancel(TaskCancel { key: key(1) }));
    slave.input(exited(key(1)));
    slave.input(Input::RunnerGone { reason: "gone".to_owned() });
    slave.sync();
    assert_eq!(slave.end().outcome, Outcome::Succeeded);
}

#[test]
fn more_than_the_slots_is_busy_and_so_is_more_than_can_be_held() {
    let mut slave = Slave::new(1);
    slave.input(Input::Offer { offer: offer(key(1), 1), verdict: Verdict::RunAlone });
    slave.offer(key(2));
    assert_eq!(slave.refusal(), RejectReason::Busy);
    slave.sync();
    let held = u32::try_from(HELD_MAX).unwrap();
    for index in 2..=held {
        slave.input(Input::Cancel(TaskCancel { key: key(index) }));
    }
    slave.sync();
    assert_eq!(slave.journal.held(), HELD_MAX);
    for _ in 0..2 {
        slave.offer(key(held + 1));
        assert_eq!(slave.refusal(), RejectReason::Busy);
    }
    assert_eq!(slave.journal.held(), HELD_MAX);
}

#[test]
fn what_is_offered_ahead_begins_when_a_slot_is_free_with_one_sync_for_the_end_before_it() {
    let mut slave = Slave::new(1);
    for index in 1..=1 + AHEAD {
        slave.offer(key(index));
    }
    slave.offer(key(99));
    assert_eq!(slave.refusal(), RejectReason::Busy, "no more than so many wait");
    slave.sync();
    slave.told();
    slave.input(exited(key(1)));
    assert_eq!((slave.end().key, slave.running.len()), (key(1), 1));
    assert_eq!(slave.unsynced.len(), 2, "the end of one and the beginning of the next");
    slave.sync();
    assert!(slave.running.contains(&key(2)) && slave.begun.len() == 2);
    slave.told();
    slave.input(Input::Cancel(TaskCancel { key: key(3) }));
    assert_eq!((slave.end().seq, slave.begun.contains_key(&key(3))), (1, false), "it never began");
    slave.offer(key(6));
    assert_eq!(slave.told(), [], "there is a place again");
    slave.running.clear();
    slave.input(exited(key(2)));
    slave.sync();
    assert!(slave.running.contains(&key(4)), "in the order of their offers");
}

#[test]
fn what_waits_too_long_or_for_another_session_is_given_back() {
    let mut slave = Slave::new(1);
    slave.offer(key(1));
    slave.offer(key(2));
    slave.sync();
    assert_eq!(slave.journal.poll_timeout(), Some(slave.now + AHEAD_WAIT));
    slave.wait(AHEAD_WAIT);
    assert_eq!(slave.refusal(), RejectReason::Waited);
    slave.offer(key(3));
    slave.input(Input::Offer { offer: offer(key(4), 1), verdict: Verdict::RunAlone });
    assert_eq!(slave.refusal(), RejectReason::Waited, "nothing is to run beside what boots the machine");
    slave.input(exited(key(1)));
    slave.sync();
    assert!(slave.running.contains(&key(4)));
    let mut slave = Slave::new(1);
    slave.offer(key(1));
    slave.offer(key(2));
    slave.sync();
    slave.told();
    slave.input(Input::SessionEnded);
    slave.input(exited(key(1)));
    slave.sync();
    assert!(!slave.begun.contains_key(&key(2)), "nobody knows whether its offer holds");
    slave.reconnect();
    assert!(slave.journal.keys().all(|held| held != key(2)), "what the journal does not hold never began");
}

#[test]
fn what_is_not_acknowledged_is_told_again_ever_more_slowly() {
    let mut slave = Slave::new(1);
    slave.offer(key(1));
    slave.sync();
    slave.told();
    let mut waits = Vec::new();
    for _ in 0..6 {
        let due = slave.journal.resends.first().unwrap().0;
        waits.push(due.since(slave.now));
        slave.wait(due.since(slave.now));
        assert_eq!(slave.told().len(), 1);
    }
    assert_eq!(waits[0], RESEND_MIN);
    assert_eq!(waits[5], RESEND_MAX);
    slave.input(ack(key(1), 1));
    slave.wait(RESEND_MAX);
    assert!(slave.told().is_empty());
}

#[test]
fn leases_hold_from_when_their_renewal_was_sent() {
    let mut slave = Slave::new(1);
    slave.offer(key(1));
    slave.sync();
    slave.wait(LEASE_RENEWAL_INTERVAL);
    let sent = slave.now;
    let asked = slave.renewed.pop().unwrap();
    slave.now = slave.now + Duration::from_secs(100);
    slave.input(Input::LeaseAck(TaskLease { renewal: asked.renewal + 1, ..asked.clone() }));
    assert!(slave.ends[&key(1)] < sent + LEASE);
    slave.input(Input::LeaseAck(asked));
    assert_eq!(slave.ends[&key(1)], sent + LEASE);
}

#[test]
fn attempts_of_another_epoch_are_killed_and_forgotten() {
    let mut slave = Slave::new(3);
    slave.offer(key(1));
    slave.offer(key(2));
    slave.sync();
    slave.input(exited(key(2)));
    slave.sync();
    slave.told();
    let new = AttemptKey { epoch: Epoch(2), ..key(1) };
    slave.offer(new);
    slave.sync();
    assert!(slave.running.contains(&new) && !slave.running.contains(&key(1)));
    assert_eq!(slave.journal.entries().len(), 1);
    slave.offer(key(3));
    slave.input(Input::Cancel(TaskCancel { key: key(4) }));
    slave.sync();
    assert_eq!(slave.journal.held(), 1, "a late message of the old epoch counts");
}

#[test]
fn after_a_crash_what_had_begun_is_lost_and_keeps_its_output() {
    let mut slave = Slave::new(2);
    slave.offer(key(1));
    slave.sync();
    slave.told();
    slave.crash("boot-1");
    let [JournalEntry::Finished(end)] = &slave.journal.entries()[..] else { panic!("no end") };
    assert_eq!((end.outcome, end.reason.as_deref(), end.stdout), (Outcome::Lost, Some("agent crashed"), 3));
    slave.input(ack(key(1), 2));
    assert_eq!(slave.journal.held(), 1, "three bytes of output are not acknowledged");
    slave.input(Input::Ack(TaskAck { key: key(1), seq: 2, stdout: 3, stderr: 0 }));
    assert_eq!(slave.journal.held(), 0);
}

#[test]
fn a_reboot_waits_for_the_slots_holds_them_and_is_decided_by_the_next_boot() {
    for (boot, outcome) in [("boot-1", Outcome::Failed), ("boot-2", Outcome::Succeeded)] {
        let mut slave = Slave::new(2);
        slave.offer(key(1));
        slave.sync();
        slave.input(Input::Offer { offer: offer(key(2), 1), verdict: Verdict::RunAlone });
        slave.sync();
        assert!(!slave.running.contains(&key(2)));
        slave.offer(key(3));
        slave.sync();
        assert_eq!(slave.refusal(), RejectReason::Busy);
        slave.input(exited(key(1)));
        slave.sync();
        assert!(slave.running.contains(&key(2)));
        // The command has succeeded, the machine is not down yet.
        slave.input(exited(key(2)));
        slave.sync();
        assert!(slave.journal.entries().contains(&started(key(2), Some("boot-1".to_owned()))));
        slave.crash(boot);
        let entries = slave.journal.entries();
        let end = entries.iter().find(|entry| entry.key() == key(2)).unwrap();
        assert!(matches!(end, JournalEntry::Finished(end) if end.outcome == outcome), "{end:?}");
    }
}

#[test]
fn a_machine_that_does_not_go_down_has_failed_to() {
    let mut slave = Slave::new(1);
    slave.input(Input::Offer { offer: offer(key(1), 1), verdict: Verdict::RunAlone });
    slave.sync();
    slave.input(exited(key(1)));
    slave.wait(BOOT_WAIT);
    slave.sync();
    assert_eq!(slave.end().outcome, Outcome::Failed);
    slave.offer(key(2));
    slave.sync();
    assert!(slave.running.contains(&key(2)));
}

#[test]
fn a_harmless_action_costs_one_record() {
    let mut slave = Slave::new(1);
    slave.input(Input::Offer { offer: offer(key(1), 1), verdict: Verdict::Answer(Value::from("pong")) });
    assert_eq!(slave.unsynced.len(), 1);
    assert!(!slave.needs_sync());
    let end = slave.end();
    assert_eq!((end.seq, end.outcome, end.result), (1, Outcome::Succeeded, Some(Value::from("pong"))));
}
