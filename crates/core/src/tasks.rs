//! Who runs what: jobs, tasks, attempts, leases, retries. The rules are on the page `docs/protocol.md`, Tasks.
//!
//! Whoever calls this writes what [`TaskEffect::RememberTask`] and its like name before any other effect of the same call, or
//! of calls before it, is seen by anybody.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use rpicluster_protocol::limits::{
    KILL_GRACE, PRESENCE_TIMEOUT, RESEND_MAX, RESEND_MIN, RETRY_WAIT_MAX, RETRY_WAIT_MIN,
};
use rpicluster_protocol::{
    AttemptKey, Epoch, JobId, JobState, JournalEntry, JournalId, RejectReason, SessionId, SlaveId, TaskAck, TaskCancel,
    TaskFinished, TaskId, TaskLease, TaskOffer, TaskOutput, TaskState, Timestamp, Work,
};

use crate::Moment;

mod attempts;
mod drain;
mod job;
mod lease;
mod model;
mod order;
mod queue;
mod render;
mod slaves;
mod transition;
mod waiting;

use job::Job;
pub use model::{JobRecord, JobSpec, NodeRecord, Step, Task};
pub use transition::{Cause, TRANSITIONS};

/// How long a task waits first that its slave could not begin right now; it doubles up to [`RESEND_MAX`].
const DECLINED_WAIT: Duration = Duration::from_secs(1);

/// So often a task may be declined: a slave that never has room is no slave for it.
const DECLINED_MAX: u32 = 50;

/// How many tasks are kept, with their jobs, after the end because the slave of a lost one may still tell how it went.
pub const KEPT_TASKS_MAX: usize = 100_000;

/// Why the tasks of a canceled job are.
const JOB_CANCELED: &str = "the job was canceled";

/// Why the tasks of a step are canceled that comes after one that failed.
const STEP_BEFORE_FAILED: &str = "a step that it comes after did not succeed";

/// What happens.
#[derive(Debug, Clone, PartialEq)]
pub enum TaskInput {
    /// A job is submitted. Its number was never given out before.
    Submit(JobId, Arc<JobSpec>),
    /// Nothing more of a job is begun, and what runs is ended if `running` says so.
    CancelJob(JobId, /** running */ bool),
    /// Tasks that ended without success are queued again: only those that failed or timed out if so said.
    RetryJob(JobId, /** failed only */ bool),
    /// A slave is online in that session, with so many slots. It gets offers once its journal has come.
    SlaveUp(SlaveId, SessionId, Slots),
    /// A slave is offline.
    SlaveDown(SlaveId),
    /// The whole journal of a slave.
    Journal(SlaveId, SessionId, JournalId, Vec<JournalEntry>),
    /// One event of an attempt.
    Event(SlaveId, JournalEntry),
    /// A piece of output.
    Output(SlaveId, TaskOutput),
    /// A slave asks that leases be renewed.
    Lease(SlaveId, TaskLease),
    /// A slave gets no further tasks; what runs is ended after that time, if one is given.
    Drain(SlaveId, /** reason */ String, Option<Duration>),
    /// A slave gets tasks again.
    Undrain(SlaveId),
    /// A slave is no more of the cluster.
    SlaveRemoved(SlaveId),
    /// The master was away for so long: nobody could be heard, or what was decided could not be written and said.
    Paused(Duration),
}

/// How many attempts a slave takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Slots {
    /// That run at the same time.
    pub at_once: u32,
    /// Beyond these, to begin as soon as one of them has ended.
    pub ahead: u32,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq)]
pub enum TaskEffect {
    /// Write the job and that it ended, or did not: [`Tasks::job`].
    RememberJob(JobId),
    /// Write the task: [`Tasks::task`].
    RememberTask(TaskId),
    /// Write what is kept of the slave: [`Tasks::node`].
    RememberNode(SlaveId),
    /// Write a piece of output that was not recorded before.
    Output(TaskOutput),
    /// Write how an attempt ended that is not its task's last: another one follows, or has.
    LateResult(Box<TaskFinished>),
    /// Tell a slave.
    Offer(SlaveId, Box<TaskOffer>),
    /// Tell a slave.
    Cancel(SlaveId, TaskCancel),
    /// Tell a slave. The latest one for an attempt includes those before.
    Ack(SlaveId, TaskAck),
    /// Tell a slave.
    LeaseAck(SlaveId, TaskLease),
    /// Ask a slave for its journal, which has not come.
    Announce(SlaveId),
}

/// When something happens, by both clocks: decisions rest on the first, the second is for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// A clock that never goes back and counts suspend.
    pub moment: Moment,
    /// The master's wall clock.
    pub wall: Timestamp,
}

/// All jobs that have not ended, and the slaves that run their tasks.
#[derive(Debug)]
pub struct Tasks {
    epoch: Epoch,
    lease: Duration,
    jobs: BTreeMap<JobId, Job>,
    nodes: HashMap<SlaveId, Node>,
    open: HashMap<TaskId, Open>,
    timers: BTreeSet<(Moment, Timer)>,
    /// Slaves with which something may have become possible.
    hungry: BTreeSet<SlaveId>,
    /// Jobs that have ended since [`Tasks::forget_ended`].
    ended: Vec<JobId>,
    /// Ended jobs with lost tasks, the oldest first, and how many tasks they have.
    kept: VecDeque<JobId>,
    kept_tasks: usize,
    /// Steps with a free place in their batch for which slaves wait.
    freed: BTreeSet<(JobId, u32)>,
    /// Attempts that are to be taken back, because their slave is drained and they had not begun.
    recalled: HashSet<TaskId>,
    /// How often a task was declined in turn.
    declined: HashMap<TaskId, u32>,
    /// What may still run on a slave that was removed: no other attempt before that.
    embargoes: HashMap<TaskId, Moment>,
}

/// A slave, as far as tasks go.
#[derive(Debug, Default)]
struct Node {
    /// Its latest session.
    session: Option<SessionId>,
    online: bool,
    /// It was, since it joined or the master began.
    was_online: bool,
    /// Since when it is not.
    away_since: Moment,
    /// The journal of this session has been handled.
    ready: bool,
    /// When it is asked for its journal (again), and how long to wait then.
    announce: Option<(Moment, Duration)>,
    slots: Slots,
    /// It gave back what was offered ahead, and nothing has ended there since.
    is_crowded: bool,
    journal: Option<JournalId>,
    drain: Option<String>,
    /// When what still runs is ended.
    drain_until: Option<Timestamp>,
    /// Its attempts that have not ended.
    open: BTreeSet<TaskId>,
    /// The one of them that boots the machine or powers it off.
    alone: Option<TaskId>,
    /// Steps that may have something for it, in turn.
    steps: VecDeque<(JobId, u32)>,
    listed: BTreeSet<(JobId, u32)>,
}

/// An attempt that is with a slave.
#[derive(Debug)]
struct Open {
    slave: SlaveId,
    /// In which session it was offered last.
    session: Option<SessionId>,
    lease_until: Moment,
    /// When what was not answered is said again, and how long to wait then.
    resend: Option<(Moment, Duration)>,
    /// Its entry in `Tasks::timers`.
    timer: Moment,
    /// It has ended, but output before that is missing.
    pending: Option<Box<TaskFinished>>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    Attempt(TaskId),
    Backoff(TaskId),
    Overdue(JobId, u32),
    Drain(SlaveId),
    Announce(SlaveId),
}

type Effects = Vec<TaskEffect>;

impl Tasks {
    /// Nothing is known yet. `epoch` is that of the store; a slave may work for `lease` without hearing from the master.
    pub fn new(epoch: Epoch, lease: Duration) -> Tasks {
        Tasks {
            epoch,
            lease,
            jobs: BTreeMap::new(),
            nodes: HashMap::new(),
            open: HashMap::new(),
            timers: BTreeSet::new(),
            hungry: BTreeSet::new(),
            ended: Vec::new(),
            kept: VecDeque::new(),
            kept_tasks: 0,
            freed: BTreeSet::new(),
            recalled: HashSet::new(),
            declined: HashMap::new(),
            embargoes: HashMap::new(),
        }
    }

    /// Takes back a slave that was remembered: all slaves before the first job.
    pub fn restore_node(&mut self, record: NodeRecord) {
        if record.drain_until.is_some() {
            // At the first opportunity it is seen how long that still is.
            self.timers.insert((Moment::default(), Timer::Drain(record.slave.clone())));
        }
        let node = self.nodes.entry(record.slave).or_default();
        node.journal = record.journal;
        node.session = record.session;
        node.drain = record.drain;
        node.drain_until = record.drain_until;
    }

    /// Takes back a job and those of its tasks that were remembered. Every lease starts anew in full, and tasks that wait
    /// for slaves wait at least until these had time to come back. For a job that is known already this does nothing.
    pub fn restore_job(
        &mut self,
        now: Now,
        record: JobRecord,
        tasks: impl IntoIterator<Item = (u32, Task)>,
        effects: &mut Effects,
    ) {
        let (id, canceled) = (record.job, record.canceled);
        if self.jobs.contains_key(&id) {
            return;
        }
        let mut job = Job::new(record);
        for (index, task) in tasks {
            if let Some(place) = job.tasks.get_mut(index as usize) {
                *place = task;
            }
        }
        job.recount();
        for (index, task) in (0..).zip(&mut job.tasks) {
            let id = TaskId { job: id, index };
            match task.state {
                TaskState::Offered | TaskState::Running | TaskState::Unknown => {
                    let Some(slave) = task.slave.clone() else { continue };
                    // Nobody can say where it stands before the slave's journal has come.
                    let lease_until = now.moment + master_lease(self.lease);
                    let node = self.nodes.entry(slave.clone()).or_default();
                    // With a broker that others run, the session may go on, and the offer may be on its way in it.
                    let open = Open {
                        slave,
                        session: node.session.clone(),
                        lease_until,
                        resend: (!task.started || task.cancel).then_some((now.moment + RESEND_MIN, RESEND_MIN)),
                        timer: lease_until,
                        pending: None,
                    };
                    node.open.insert(id);
                    if job.spec.is_alone(id.index) {
                        node.alone = Some(id);
                    }
                    if node.drain.is_some() && !task.started && !task.cancel {
                        self.recalled.insert(id);
                    }
                    self.timers.insert((lease_until, Timer::Attempt(id)));
                    self.open.insert(id, open);
                }
                TaskState::Backoff => {
                    let is_known = |slave| self.nodes.get(slave).is_some_and(|node| node.journal.is_some());
                    if !task.slave.as_ref().is_some_and(is_known) {
                        self.embargoes.insert(id, now.moment + master_lease(self.lease));
                    }
                    self.timers.insert((now.moment, Timer::Backoff(id)));
                }
                _ => {}
            }
        }
        let (steps, tasks) = (job.steps.len() as u32, job.tasks.len() as u32);
        self.ended.extend(job.ended.map(|_| id));
        self.jobs.insert(id, job);
        // Nothing that waits is left where a cancel was written with all that follows from it; a backup is another matter.
        for index in (0..tasks).filter(|_| canceled) {
            self.withdraw(now, TaskId { job: id, index }, JOB_CANCELED, effects);
        }
        for step in 0..steps {
            self.queue_all(id, step);
            self.begin_waiting(now, id, step, PRESENCE_TIMEOUT);
            self.judge_failures(now, id, step, effects);
        }
    }

    /// Drops jobs that have ended, once what was to be remembered of them is written. A lost task is kept for a while, with
    /// its job: its slave may still tell how it went.
    pub fn forget_ended(&mut self) {
        for id in std::mem::take(&mut self.ended) {
            let Some(job) = self.jobs.get_mut(&id).filter(|job| job.ended.is_some()) else { continue };
            if job.kept {
                // It is in the list already, and goes when its turn comes.
            } else if job.counts.contains_key(&TaskState::Lost) {
                job.kept = true;
                self.kept.push_back(id);
                self.kept_tasks += job.tasks.len();
            } else {
                self.jobs.remove(&id);
            }
        }
        while self.kept_tasks > KEPT_TASKS_MAX
            && let Some(oldest) = self.kept.pop_front()
        {
            let Some(job) = self.jobs.get_mut(&oldest) else { continue };
            job.kept = false;
            self.kept_tasks -= job.tasks.len();
            if job.ended.is_some() {
                self.jobs.remove(&oldest);
            }
        }
    }

    /// Lets go of a job: of one whose submission could not be written and of which nobody was told anything, or of one that
    /// was restored and has ended nevertheless.
    pub fn let_go(&mut self, id: JobId) {
        let open: Vec<TaskId> = self.open.keys().filter(|task| task.job == id).copied().collect();
        open.into_iter().for_each(|task| self.close(task));
        self.jobs.remove(&id);
    }

    /// Takes one input and appends what follows from it.
    pub fn handle(&mut self, now: Now, input: TaskInput, effects: &mut Effects) {
        match input {
            TaskInput::Submit(job, spec) => self.submit(now, job, spec, effects),
            TaskInput::CancelJob(job, running) => self.cancel_job(now, job, running, effects),
            TaskInput::RetryJob(job, failed_only) => self.retry_job(now, job, failed_only, effects),
            TaskInput::SlaveUp(slave, session, slots) => self.slave_up(now, slave, session, slots, effects),
            TaskInput::SlaveDown(slave) => self.slave_down(now, &slave, effects),
            TaskInput::Journal(slave, session, journal, entries) => {
                self.journal(now, &slave, &session, journal, entries, effects);
            }
            TaskInput::Event(slave, event) => self.event(now, &slave, event, effects),
            TaskInput::Output(slave, output) => self.output(now, &slave, output, effects),
            TaskInput::Lease(slave, lease) => self.renew(now, slave, lease, effects),
            TaskInput::Drain(slave, reason, deadline) => self.drain(now, slave, reason, deadline, effects),
            TaskInput::Undrain(slave) => self.undrain(slave, effects),
            TaskInput::SlaveRemoved(slave) => {
                self.lay_embargoes(&slave);
                self.slave_removed(now, &slave, effects);
            }
            TaskInput::Paused(gap) => self.paused(now, gap),
        }
        self.feed(now, effects);
    }

    /// When [`Tasks::timeout`] should be called next.
    pub fn poll_timeout(&self) -> Option<Moment> {
        self.timers.first().map(|(moment, _)| *moment)
    }

    /// Does what is due. Not to be called while inputs wait: they may be what was waited for.
    pub fn timeout(&mut self, now: Now, effects: &mut Effects) {
        while self.poll_timeout().is_some_and(|moment| moment <= now.moment) {
            let Some((_, timer)) = self.timers.pop_first() else { break };
            match timer {
                Timer::Attempt(task) => self.attempt_due(now, task, effects),
                Timer::Backoff(task) => self.backoff_over(now, task, effects),
                Timer::Overdue(job, step) => self.waited(now, job, step, effects),
                Timer::Drain(slave) => self.drain_due(now, slave, effects),
                Timer::Announce(slave) => self.announce(now, slave, effects),
            }
        }
        self.feed(now, effects);
    }

    /// A job that has not ended, or was kept.
    pub fn job(&self, job: JobId) -> Option<JobRecord> {
        self.jobs.get(&job).map(Job::record)
    }

    /// Where a job stands, and how many of its tasks stand where.
    pub fn job_state(&self, job: JobId) -> Option<(JobState, &BTreeMap<TaskState, u32>)> {
        self.jobs.get(&job).map(|job| (job.state(), &job.counts))
    }

    /// A task of a job that is known here.
    pub fn task(&self, task: TaskId) -> Option<&Task> {
        self.jobs.get(&task.job)?.tasks.get(task.index as usize)
    }

    /// What is to be kept of a slave.
    pub fn node(&self, slave: &SlaveId) -> Option<NodeRecord> {
        let node = self.nodes.get(slave)?;
        Some(NodeRecord {
            slave: slave.clone(),
            journal: node.journal,
            session: node.session.clone().filter(|_| node.journal.is_some()),
            drain: node.drain.clone(),
            drain_until: node.drain_until,
        })
    }

    /// By which store attempts are.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// How many tasks there are in all, ended ones of unended jobs among them.
    pub fn task_count(&self) -> u64 {
        self.jobs.values().map(|job| job.tasks.len() as u64).sum()
    }

    /// The slave is in that session, and its journal has come.
    pub fn is_ready(&self, slave: &SlaveId, session: &SessionId) -> bool {
        self.nodes.get(slave).is_some_and(|node| node.ready && node.session.as_ref() == Some(session))
    }

    /// How many attempts a slave has open.
    pub fn open_attempts(&self, slave: &SlaveId) -> usize {
        self.nodes.get(slave).map_or(0, |node| node.open.len())
    }

    /// Puts a task into another state, with all that follows for its step and its job.
    fn set(&mut self, now: Now, id: TaskId, cause: Cause, to: TaskState, effects: &mut Effects) {
        let Some(job) = self.jobs.get_mut(&id.job) else { return };
        let Some(task) = job.tasks.get_mut(id.index as usize) else { return };
        debug_assert!(transition::is_allowed(task.state, cause, to), "{id}: {:?} by {cause:?} to {to:?}", task.state);
        task.ended_at = to.has_ended().then_some(now.wall);
        if to.has_ended() || to == TaskState::Running {
            self.declined.remove(&id);
        }
        if to.has_ended() {
            self.embargoes.remove(&id);
            self.recalled.remove(&id);
        }
        let step_ended = job.set(id.index, to);
        effects.push(TaskEffect::RememberTask(id));
        let Some((step, _)) = job.spec.locate(id.index) else { return };
        if !matches!(to, TaskState::Offered | TaskState::Running | TaskState::Unknown) {
            self.freed.insert((id.job, step));
        }
        if to.has_ended() && to != TaskState::Succeeded {
            self.judge_failures(now, id.job, step, effects);
        }
        if step_ended {
            self.stop_waiting(id.job, step);
            self.step_ended(now, id.job, effects);
        }
    }

    fn key(&self, id: TaskId) -> Option<AttemptKey> {
        Some(AttemptKey { task: id, attempt: self.task(id)?.attempt, epoch: self.epoch })
    }

    fn task_mut(&mut self, id: TaskId) -> Option<&mut Task> {
        self.jobs.get_mut(&id.job)?.tasks.get_mut(id.index as usize)
    }

    fn step_of(&self, id: TaskId) -> Option<&Step> {
        let job = self.jobs.get(&id.job)?;
        job.step(job.spec.locate(id.index)?.0)
    }

    fn work(&self, id: TaskId) -> Option<&Work> {
        self.step_of(id).map(|step| &step.spec.work)
    }
}

impl Node {
    /// What is said to it is heard, and means something.
    fn hears(&self) -> bool {
        self.online && self.ready
    }

    /// It can be offered something.
    fn has_room(&self) -> bool {
        self.takes(self.slots.at_once)
    }

    /// It can be offered something to begin when a slot is free.
    fn has_room_ahead(&self) -> bool {
        !self.is_crowded && self.takes(self.slots.at_once.saturating_add(self.slots.ahead))
    }

    fn takes(&self, most: u32) -> bool {
        self.hears() && self.drain.is_none() && self.alone.is_none() && self.open.len() < most as usize
    }
}

/// How long the master waits before it gives an attempt up: always longer than the slave lets it run.
fn master_lease(lease: Duration) -> Duration {
    lease + KILL_GRACE + lease / 20
}

/// How long before the next attempt: doubling, and spread so that tasks which failed together do not come back together.
/// The spread comes from what the task is, not from chance: it can be replayed.
fn retry_wait(epoch: Epoch, id: TaskId, failures: u32) -> Duration {
    let doubled = RETRY_WAIT_MIN.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(RETRY_WAIT_MAX);
    // The finalizer of SplitMix64.
    let mut bits = epoch.0 ^ id.job.0.rotate_left(32) ^ (u64::from(id.index) << 20) ^ u64::from(failures);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^= bits >> 31;
    // Between half of it and all of it.
    doubled / 2 + doubled / 2 * (bits >> 32) as u32 / u32::MAX
}

fn reject_words(reason: RejectReason) -> &'static str {
    match reason {
        RejectReason::Policy => "the slave's policy does not allow it",
        RejectReason::UnknownFunction => "the slave has no such function",
        RejectReason::Unsupported => "the slave's agent does not know how to do that",
        RejectReason::Stale => "the offer was stale",
        RejectReason::Busy | RejectReason::Waited => "the slave had no free slot",
    }
}

#[cfg(test)]
mod tests;
