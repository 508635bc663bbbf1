//! Everything that happens, in the order of a virtual clock, as a seed decides.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use rpicluster_core::Moment;
use rpicluster_core::journal::{Effect, Input, Journal, Verdict};
use rpicluster_core::tasks::{JobSpec, Slots, Step, TaskEffect, TaskInput};
use rpicluster_protocol::{
    AttemptKey, Epoch, JobId, JournalEntry, JournalId, Outcome, SessionId, Stream, TaskAck, TaskCancel, TaskFinished,
    TaskLease, TaskOffer, TaskOutput, TaskSpec, Work,
};

use crate::checks::Checks;
use crate::head::{Disk, Head};
use crate::node::Node;

#[path = "agent.rs"]
mod agent;
#[path = "network.rs"]
mod network;
#[path = "plan.rs"]
mod plan;

/// How long faults go on at most, in milliseconds.
const FAULTS_MS: u64 = 20 * 60_000;
/// By when everything has ended after that: some leases and waits between attempts.
const HEALING_MS: u64 = 6 * 3_600_000;

/// A mistake planted in whoever uses the decisions: the checks must find it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bug {
    SpawnBeforeSync,
    AckBeforeCommit,
    KeepEpoch,
    IgnoreLease,
}

#[derive(Debug, Clone)]
enum Up {
    State(Slots),
    Journal(JournalId, Vec<JournalEntry>),
    Event(JournalEntry),
    Output(TaskOutput),
    Lease(TaskLease),
}

#[derive(Debug, Clone)]
enum Down {
    Offer(Box<TaskOffer>),
    Cancel(TaskCancel),
    Ack(TaskAck),
    LeaseAck(TaskLease),
    Announce,
}

#[derive(Debug, Clone)]
enum Event {
    Submit,
    CancelJob,
    Drain(usize),
    Undrain(usize),
    HeadCrash,
    HeadStart,
    Commit,
    Backup,
    Restore,
    DiskFault,
    DiskMended(u64),
    Crash(usize, /** with the power */ bool),
    LoseJournal(usize),
    Start(usize),
    Connect(usize),
    Disconnect(usize),
    Missed(usize, SessionId),
    /// Nothing is heard of it for a while, and its connection holds.
    Silent(usize),
    HeardAgain(usize, SessionId),
    Remove(usize),
    ToHead(usize, SessionId, Up),
    ToNode(usize, SessionId, Down),
    Synced(usize, u64, u64),
    RunEnds(usize, u64, AttemptKey, Outcome),
    LeaseEnds(usize, u64, AttemptKey),
    NodeTimer(usize),
    HeadTimer,
    Heal,
}

pub(crate) struct World {
    random: fastrand::Rng,
    bug: Option<Bug>,
    print: bool,
    clock: u64,
    events: BinaryHeap<Reverse<(u64, u64)>>,
    bodies: BTreeMap<u64, Event>,
    scheduled: u64,
    pub(crate) nodes: Vec<Node>,
    pub(crate) head: Option<Head>,
    /// What the head knows of sessions.
    online: HashMap<usize, SessionId>,
    committing: bool,
    pub(crate) disk: Disk,
    backup: Option<Disk>,
    disk_fails: bool,
    /// No more faults.
    healed: bool,
    /// Slaves that were removed, and when they join again.
    away: HashMap<usize, u64>,
    /// When the last message of a slave arrives, so that the next is not earlier.
    arrivals: HashMap<(usize, bool), u64>,
    node_timers: HashMap<usize, u64>,
    head_timer: u64,
    submitted: u64,
    pub(crate) steps: u64,
    pub(crate) checks: Checks,
}

impl World {
    pub(crate) fn new(seed: u64, bug: Option<Bug>, print: bool) -> World {
        let mut random = fastrand::Rng::with_seed(seed);
        let count = random.u64(1..=3);
        let nodes = (0..count).map(|number| Node::new(number, random.u32(1..=3), JournalId(random.u64(..)))).collect();
        let disk = Disk { epoch: Some(Epoch(random.u64(..))), next_job: 1, ..Disk::default() };
        let mut world = World {
            random,
            bug,
            print,
            clock: 1_000,
            events: BinaryHeap::new(),
            bodies: BTreeMap::new(),
            scheduled: 0,
            nodes,
            head: None,
            online: HashMap::new(),
            committing: false,
            disk,
            backup: None,
            disk_fails: false,
            healed: false,
            away: HashMap::new(),
            arrivals: HashMap::new(),
            node_timers: HashMap::new(),
            head_timer: 0,
            submitted: 0,
            steps: 0,
            checks: Checks::default(),
        };
        world.plan();
        world
    }

    /// Until every task has ended.
    ///
    /// # Errors
    /// Names the promise that was broken.
    pub(crate) fn run(&mut self) -> Result<(), String> {
        while let Some(Reverse((at, number))) = self.events.pop() {
            let Some(event) = self.bodies.remove(&number) else { continue };
            self.clock = at;
            self.steps += 1;
            if self.print {
                println!("{at:>9} {event:?}");
            }
            self.happen(event);
            self.arm();
            self.checks.verdict()?;
            if self.healed && self.all_ended() {
                return self.judge_end();
            }
            if at > FAULTS_MS + HEALING_MS {
                break;
            }
        }
        let open: Vec<JobId> = self.disk.jobs.values().filter(|job| job.ended.is_none()).map(|job| job.job).collect();
        Err(format!("jobs {open:?} have not ended"))
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Submit => self.submit(),
            Event::CancelJob => {
                let jobs: Vec<JobId> = self.disk.jobs.keys().copied().collect();
                if let Some(job) = self.random.choice(jobs) {
                    let running = self.random.bool();
                    self.tell_head(TaskInput::CancelJob(job, running));
                }
            }
            Event::Silent(node) => {
                if let Some(session) = self.online.get(&node).cloned().filter(|_| !self.healed) {
                    self.tell_head(TaskInput::SlaveDown(self.nodes[node].id.clone()));
                    self.within(20_000, Event::HeardAgain(node, session));
                }
            }
            Event::HeardAgain(node, session) => {
                if self.online.get(&node) == Some(&session) {
                    let slots = self.nodes[node].slots();
                    self.tell_head(TaskInput::SlaveUp(self.nodes[node].id.clone(), session, slots));
                }
            }
            // It knows nothing of it, works on while its leases hold, and joins again much later.
            Event::Remove(node) => {
                if !self.healed && self.head.is_some() && !self.disk_fails {
                    self.disconnect(node, true);
                    self.online.remove(&node);
                    self.tell_head(TaskInput::SlaveRemoved(self.nodes[node].id.clone()));
                    self.nodes[node].removed = true;
                    self.away.insert(node, self.clock + 400_000);
                }
            }
            Event::Drain(node) => {
                let deadline = self.random.bool().then_some(Duration::from_secs(30));
                self.tell_head(TaskInput::Drain(self.nodes[node].id.clone(), "drill".to_owned(), deadline));
                self.within(60_000, Event::Undrain(node));
            }
            Event::Undrain(node) => self.tell_head(TaskInput::Undrain(self.nodes[node].id.clone())),
            Event::HeadCrash => self.head_crash(),
            Event::HeadStart if self.head.is_none() => {
                self.head = Some(Head::start(self.clock, &self.disk));
                for node in &self.nodes {
                    let record = self.disk.nodes.get(&node.id);
                    self.checks.drains(&node.id, record.is_some_and(|record| record.drain.is_some()));
                }
                self.commit_soon();
            }
            Event::HeadStart => {}
            Event::Commit => self.commit(),
            Event::Backup => self.backup = Some(self.disk.clone()),
            Event::Restore => self.restore(),
            Event::DiskFault => {
                if !self.healed && !self.disk_fails {
                    self.disk_fails = true;
                    // Now and then for longer than a lease.
                    let most = if self.random.u8(..4) == 0 { 200_000 } else { 20_000 };
                    let lasts = self.random.u64(..most);
                    self.at(lasts, Event::DiskMended(lasts));
                }
            }
            Event::DiskMended(lasted) => {
                self.disk_fails = false;
                // What was decided meanwhile is said only now.
                self.tell_head(TaskInput::Paused(Duration::from_millis(lasted)));
                self.commit_soon();
            }
            Event::Crash(node, power) => self.node_crash(node, power),
            Event::LoseJournal(node) => {
                self.node_crash(node, true);
                let another = JournalId(self.random.u64(..));
                self.nodes[node].lose_journal(another);
            }
            Event::Start(node) if self.nodes[node].journal.is_none() => {
                let effects = self.nodes[node].restart(self.clock);
                self.apply(node, effects);
                self.within(3_000, Event::Connect(node));
            }
            Event::Start(_) => {}
            Event::Connect(node) => self.connect(node),
            Event::Disconnect(node) => {
                if !self.healed {
                    self.disconnect(node, true);
                }
            }
            Event::Missed(node, session) => {
                if self.online.get(&node) == Some(&session) {
                    self.online.remove(&node);
                    self.tell_head(TaskInput::SlaveDown(self.nodes[node].id.clone()));
                }
            }
            Event::ToHead(node, session, up) => self.head_hears(node, session, up),
            Event::ToNode(node, session, down) => self.node_hears(node, &session, down),
            Event::Synced(node, start, records) => {
                if self.random.u8(..50) == 0 {
                    // The power fails just before.
                    self.node_crash(node, true);
                }
                if self.nodes[node].start == start {
                    self.nodes[node].sync();
                    let effects = self.nodes[node].handle(self.clock, Input::Synced { records });
                    self.apply(node, effects);
                }
            }
            Event::RunEnds(node, start, key, outcome) => {
                if self.nodes[node].start == start {
                    self.run_ends(node, key, outcome);
                }
            }
            Event::LeaseEnds(node, start, key) => {
                let run = self.nodes[node].running.get(&key);
                let is_over = run.is_some_and(|run| run.lease_end <= Moment::from_millis(self.clock));
                if is_over && self.nodes[node].start == start && self.bug != Some(Bug::IgnoreLease) {
                    self.within(9_000, Event::RunEnds(node, start, key, Outcome::Lost));
                }
            }
            Event::NodeTimer(node) => {
                let effects = self.nodes[node].timeout(self.clock);
                self.apply(node, effects);
            }
            Event::HeadTimer if self.disk_fails => {}
            Event::HeadTimer => {
                if let Some(head) = &mut self.head {
                    let before = head.uncommitted().len();
                    head.timeout(self.clock);
                    self.note_offers(before);
                    self.commit_soon();
                }
            }
            Event::Heal => self.heal(),
        }
    }

    fn heal(&mut self) {
        self.healed = true;
        if self.disk_fails {
            self.happen(Event::DiskMended(200_000));
        }
        self.at(0, Event::HeadStart);
        for node in 0..self.nodes.len() {
            self.within(10, Event::Start(node));
            self.within(30_000, Event::Connect(node));
            self.at(61_000, Event::Undrain(node));
        }
    }

    /// Puts what is due next among the events.
    fn arm(&mut self) {
        for node in 0..self.nodes.len() {
            let due = |journal: &mut Journal| journal.poll_timeout().into_iter().chain(journal.sync_due()).min();
            let due = self.nodes[node].journal.as_mut().and_then(due);
            let Some(due) = due.map(|due| due.as_millis().max(self.clock + 1)) else { continue };
            if self.node_timers.insert(node, due) != Some(due) {
                self.at(due - self.clock, Event::NodeTimer(node));
            }
        }
        // Nothing is judged while nothing can be written.
        let due = self.head.as_ref().filter(|_| !self.disk_fails).and_then(|head| head.tasks.poll_timeout());
        if let Some(due) = due.map(|due| due.as_millis().max(self.clock + 1)).filter(|due| *due != self.head_timer) {
            self.head_timer = due;
            self.at(due - self.clock, Event::HeadTimer);
        }
    }

    fn tell_head(&mut self, input: TaskInput) {
        let Some(head) = &mut self.head else { return };
        let before = head.uncommitted().len();
        let drained = match &input {
            TaskInput::Drain(slave, ..) => Some((slave.clone(), true)),
            TaskInput::Undrain(slave) | TaskInput::SlaveRemoved(slave) => Some((slave.clone(), false)),
            _ => None,
        };
        let undrained = drained.clone().filter(|(_, drained)| !drained);
        undrained.into_iter().for_each(|(slave, drained)| self.checks.drains(&slave, drained));
        head.handle(self.clock, input);
        self.note_offers(before);
        drained.into_iter().for_each(|(slave, drained)| self.checks.drains(&slave, drained));
        let Some(head) = &mut self.head else { return };
        if self.bug == Some(Bug::AckBeforeCommit) {
            let early = head.uncommitted()[before..].iter().filter(|effect| matches!(effect, TaskEffect::Ack(..)));
            let early: Vec<TaskEffect> = early.cloned().collect();
            early.into_iter().for_each(|effect| self.say(effect));
        }
        self.commit_soon();
    }

    /// Looks at offers as they are decided: what they rest on may be another thing once they are said.
    fn note_offers(&mut self, before: usize) {
        let Some(head) = &self.head else { return };
        for effect in &head.uncommitted()[before..] {
            if let TaskEffect::Offer(slave, offer) = effect {
                self.checks.offers(slave, offer.key);
            }
        }
    }

    fn commit_soon(&mut self) {
        if !self.committing {
            self.committing = true;
            self.within(20, Event::Commit);
        }
    }

    fn commit(&mut self) {
        self.committing = false;
        if self.disk_fails {
            return self.commit_soon();
        }
        let Some(head) = &mut self.head else { return };
        let effects = head.commit(&mut self.disk);
        // A crash may come between any two of them.
        let is_crash = !self.healed && self.random.u8(..100) == 0;
        let said = if is_crash { self.random.usize(..=effects.len()) } else { effects.len() };
        effects.into_iter().take(said).for_each(|effect| self.say(effect));
        if is_crash {
            self.head_crash();
        }
    }

    fn head_crash(&mut self) {
        if self.healed || self.head.take().is_none() {
            return;
        }
        self.online.clear();
        self.head_timer = 0;
        // The broker goes with it.
        (0..self.nodes.len()).for_each(|node| self.disconnect(node, false));
        self.within(10_000, Event::HeadStart);
    }

    /// The master's disk is replaced by an older copy.
    fn restore(&mut self) {
        let Some(copy) = self.backup.clone().filter(|_| !self.healed) else { return };
        self.head_crash();
        let epoch = if self.bug == Some(Bug::KeepEpoch) { copy.epoch } else { Some(Epoch(self.random.u64(..))) };
        self.disk = Disk { epoch, ..copy };
    }

    fn node_crash(&mut self, node: usize, power: bool) {
        if self.healed {
            return;
        }
        self.disconnect(node, true);
        for key in self.nodes[node].crash(power) {
            self.checks.ends(key, None);
        }
        self.within(20_000, Event::Start(node));
    }

    fn all_ended(&self) -> bool {
        let is_settled = self.head.as_ref().is_some_and(|head| head.uncommitted().is_empty());
        is_settled && self.disk.jobs.values().all(|job| job.ended.is_some())
    }

    fn judge_end(&mut self) -> Result<(), String> {
        self.checks.at_the_end(&self.disk);
        self.checks.verdict()
    }

    /// At some time within so many milliseconds.
    fn within(&mut self, most: u64, event: Event) {
        let after = self.random.u64(0..=most);
        self.at(after, event);
    }

    fn at(&mut self, after: u64, event: Event) {
        self.scheduled += 1;
        self.events.push(Reverse((self.clock + after, self.scheduled)));
        self.bodies.insert(self.scheduled, event);
    }
}
