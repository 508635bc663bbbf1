//! Who runs what: jobs, tasks, attempts, leases, retries. The rules are on the page `docs/protocol.md`, Tasks.
//!
//! Whoever calls this writes what [`Effect::RememberTask`] and its like name before any other effect of the same call, or
//! of calls before it, is seen by anybody.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use rpicluster_protocol::limits::{
    KILL_GRACE, PRESENCE_TIMEOUT, RESEND_MAX, RESEND_MIN, RETRY_WAIT_MAX, RETRY_WAIT_MIN,
};
use rpicluster_protocol::{
    Action, AttemptKey, Epoch, JobId, JobState, JournalEntry, JournalId, LeasedAttempt, Outcome, RejectReason,
    SessionId, SlaveId, Stream, TaskAck, TaskCancel, TaskFinished, TaskId, TaskLease, TaskOffer, TaskOutput, TaskState,
    Timestamp, Work,
};

use crate::Moment;

mod drain;
mod job;
mod model;
mod render;
mod transition;
mod waiting;

use job::{Job, Taken};
pub use model::{JobRecord, JobSpec, NodeRecord, Step, Task};
pub use transition::{Cause, TRANSITIONS};

/// How long a task waits first that its slave could not begin right now; it doubles up to [`RESEND_MAX`].
const DECLINED_WAIT: Duration = Duration::from_secs(1);

/// So often a task may be declined: a slave that never has room is no slave for it.
const DECLINED_MAX: u32 = 50;

/// How many tasks are kept, with their jobs, after the end because the slave of a lost one may still tell how it went.
const KEPT_TASKS_MAX: usize = 100_000;

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
    SlaveUp(SlaveId, SessionId, u32),
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
    slots: u32,
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
        let id = record.job;
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
        let steps = job.steps.len() as u32;
        self.jobs.insert(id, job);
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

    fn submit(&mut self, now: Now, id: JobId, spec: Arc<JobSpec>, effects: &mut Effects) {
        let record = JobRecord { job: id, spec, canceled: false, submitted: now.wall, ended: None };
        let job = Job::new(record);
        let steps = job.steps.len() as u32;
        self.jobs.insert(id, job);
        effects.push(TaskEffect::RememberJob(id));
        for step in 0..steps {
            self.queue_all(id, step);
            self.begin_waiting(now, id, step, Duration::ZERO);
        }
        if self.jobs.get(&id).is_some_and(|job| job.tasks.is_empty()) {
            self.step_ended(now, id, effects);
        }
    }

    fn cancel_job(&mut self, now: Now, id: JobId, running: bool, effects: &mut Effects) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        if job.state() != JobState::Active {
            return self.ended.push(id);
        }
        job.canceled = true;
        effects.push(TaskEffect::RememberJob(id));
        for index in 0..job.tasks.len() as u32 {
            let task = TaskId { job: id, index };
            self.withdraw(now, task, "the job was canceled", effects);
            if running {
                self.cancel(now, task, effects);
            }
        }
    }

    /// Ends a task that is not with a slave.
    fn withdraw(&mut self, now: Now, id: TaskId, reason: &str, effects: &mut Effects) {
        let Some(task) = self.task_mut(id) else { return };
        if matches!(task.state, TaskState::Queued | TaskState::Backoff) {
            task.reason = Some(reason.to_owned());
            self.set(now, id, Cause::Withdrawn, TaskState::Canceled, effects);
        }
    }

    /// Asks the slave of an open attempt to end it.
    fn cancel(&mut self, now: Now, id: TaskId, effects: &mut Effects) {
        let Some(task) = self.task_mut(id) else { return };
        if !task.is_open() {
            return;
        }
        if !task.cancel {
            task.cancel = true;
            effects.push(TaskEffect::RememberTask(id));
        }
        self.send_cancel(now, id, effects);
    }

    fn send_cancel(&mut self, now: Now, id: TaskId, effects: &mut Effects) {
        let Some(key) = self.key(id) else { return };
        let Some(open) = self.open.get_mut(&id) else { return };
        // A slave that is away is told after its journal.
        if self.nodes.get(&open.slave).is_some_and(Node::hears) {
            effects.push(TaskEffect::Cancel(open.slave.clone(), TaskCancel { key }));
            open.resend = Some((now.moment + RESEND_MIN, RESEND_MIN));
            self.arm(id);
        }
    }

    fn retry_job(&mut self, now: Now, id: JobId, failed_only: bool, effects: &mut Effects) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        // Tasks that never began because an earlier step failed go with it.
        let wanted = |task: &Task| match task.state {
            TaskState::Failed | TaskState::TimedOut => true,
            TaskState::Canceled if task.reason.as_deref() == Some(STEP_BEFORE_FAILED) => true,
            state => !failed_only && state.has_ended() && state != TaskState::Succeeded,
        };
        let again: Vec<u32> = (0..).zip(&job.tasks).filter(|(_, task)| wanted(task)).map(|(index, _)| index).collect();
        if again.is_empty() {
            // Perhaps it was read for this alone.
            return if job.ended.is_some() {
                self.ended.push(id)
            };
        }
        job.canceled = false;
        job.ended = None;
        job.steps.iter_mut().for_each(|step| step.stopped = None);
        effects.push(TaskEffect::RememberJob(id));
        for index in again {
            let task = TaskId { job: id, index };
            if let Some(task) = self.task_mut(task) {
                *task = Task { state: task.state, attempt: task.attempt, slave: task.slave.clone(), ..Task::new() };
            }
            self.set(now, task, Cause::Retry, TaskState::Queued, effects);
        }
        for step in 0..self.jobs.get(&id).map_or(0, |job| job.steps.len() as u32) {
            self.queue_all(id, step);
            self.begin_waiting(now, id, step, Duration::ZERO);
        }
    }

    fn slave_up(&mut self, now: Now, slave: SlaveId, session: SessionId, slots: u32, effects: &mut Effects) {
        if !std::mem::replace(&mut self.nodes.entry(slave.clone()).or_default().was_online, true) {
            self.list_all_for(&slave);
        }
        let node = self.nodes.entry(slave.clone()).or_default();
        let was_silent = !node.online && node.ready && node.session.as_ref() == Some(&session);
        node.slots = slots;
        node.online = true;
        if node.session.as_ref() != Some(&session) {
            node.session = Some(session);
            node.ready = false;
        }
        let open = if was_silent { node.open.clone() } else { BTreeSet::new() };
        // Who has no slots may know nothing of tasks.
        if slots > 0 && !node.ready && node.announce.is_none() {
            node.announce = Some((now.moment + RESEND_MIN, RESEND_MIN));
            self.timers.insert((now.moment + RESEND_MIN, Timer::Announce(slave.clone())));
        }
        // In the same session nothing was lost: everything stands where it stood.
        for id in open {
            let Some(task) = self.task(id).filter(|task| task.state == TaskState::Unknown) else { continue };
            let stood = if task.started { TaskState::Running } else { TaskState::Offered };
            self.set(now, id, Cause::SlaveBack, stood, effects);
        }
        self.hungry.insert(slave);
    }

    /// The journal of this session has not come, or not whole.
    fn announce(&mut self, now: Now, slave: SlaveId, effects: &mut Effects) {
        let Some(node) = self.nodes.get_mut(&slave) else { return };
        let Some((_, wait)) = node.announce.take_if(|(at, _)| *at <= now.moment) else { return };
        if node.online && !node.ready {
            let wait = (wait * 2).min(RESEND_MAX);
            node.announce = Some((now.moment + wait, wait));
            self.timers.insert((now.moment + wait, Timer::Announce(slave.clone())));
            effects.push(TaskEffect::Announce(slave));
        }
    }

    fn slave_down(&mut self, now: Now, slave: &SlaveId, effects: &mut Effects) {
        let Some(node) = self.nodes.get_mut(slave) else { return };
        if !std::mem::take(&mut node.online) {
            return;
        }
        node.away_since = now.moment;
        let (open, steps) = (node.open.clone(), node.steps.clone());
        for id in open {
            let Some(task) = self.task(id) else { continue };
            let powers_off = matches!(self.work(id), Some(Work::Action { action: Action::Shutdown }));
            if task.state == TaskState::Running && powers_off {
                if let Some(finished) = self.gone_as_told(id) {
                    self.settle(now, id, finished, effects);
                }
            } else if task.state != TaskState::Unknown {
                self.set(now, id, Cause::SlaveGone, TaskState::Unknown, effects);
            }
        }
        for (job, step) in steps {
            self.waited(now, job, step, effects);
        }
    }

    /// A shutdown has succeeded when the slave is gone: it cannot say so itself.
    fn gone_as_told(&self, id: TaskId) -> Option<Box<TaskFinished>> {
        let task = self.task(id)?;
        Some(Box::new(TaskFinished {
            key: self.key(id)?,
            seq: 2,
            outcome: Outcome::Succeeded,
            exit_code: None,
            signal: None,
            reason: None,
            duration_ms: 0,
            stdout: task.stdout,
            stderr: task.stderr,
            truncated: false,
            cpu_ms: None,
            memory_peak: None,
            result: None,
        }))
    }

    fn slave_removed(&mut self, now: Now, slave: &SlaveId, effects: &mut Effects) {
        let Some(node) = self.nodes.remove(slave) else { return };
        effects.push(TaskEffect::RememberNode(slave.clone()));
        self.hungry.remove(slave);
        let mut withdrawn = Vec::new();
        for (job, step) in node.listed {
            let Some(found) = self.jobs.get(&job) else { continue };
            let Some(definition) = found.step(step) else { continue };
            if definition.inputs.is_none() {
                let place = definition.slaves.binary_search(slave).ok();
                withdrawn.extend(place.map(|place| TaskId { job, index: found.range(step).start + place as u32 }));
            } else if !definition.slaves.iter().any(|other| self.nodes.contains_key(other)) {
                withdrawn.extend(found.range(step).map(|index| TaskId { job, index }));
            }
        }
        for id in node.open {
            if let Some(task) = self.task_mut(id) {
                task.reason = Some("the slave was removed".to_owned());
            }
            self.lose(now, id, Cause::Lost, effects);
        }
        for id in withdrawn {
            self.withdraw(now, id, "the slave was removed", effects);
        }
    }

    fn journal(
        &mut self,
        now: Now,
        slave: &SlaveId,
        session: &SessionId,
        journal: JournalId,
        entries: Vec<JournalEntry>,
        effects: &mut Effects,
    ) {
        let Some(node) = self.nodes.get_mut(slave) else { return };
        if node.session.as_ref() != Some(session) {
            return;
        }
        let is_another = node.journal.is_some_and(|known| known != journal);
        if node.journal != Some(journal) || !node.ready {
            node.journal = Some(journal);
            effects.push(TaskEffect::RememberNode(slave.clone()));
        }
        let held: HashSet<AttemptKey> = entries.iter().map(JournalEntry::key).collect();
        for entry in entries {
            self.event(now, slave, entry, effects);
        }
        let open = self.nodes.get(slave).map(|node| node.open.clone()).unwrap_or_default();
        for id in open {
            let (Some(key), Some(open)) = (self.key(id), self.open.get(&id)) else { continue };
            // What was offered in this session may still be on its way.
            if held.contains(&key) || open.session.as_ref() == Some(session) {
                continue;
            }
            if self.task(id).is_some_and(|task| task.started) || is_another {
                let reason = if is_another { "the slave's journal is gone" } else { "the slave does not know of it" };
                if let Some(task) = self.task_mut(id) {
                    task.reason = Some(reason.to_owned());
                }
                self.lose(now, id, Cause::JournalGone, effects);
            } else {
                self.give_back(now, id, Cause::NeverBegan, effects);
            }
        }
        if let Some(node) = self.nodes.get_mut(slave) {
            node.ready = true;
            if let Some((at, _)) = node.announce.take() {
                self.timers.remove(&(at, Timer::Announce(slave.clone())));
            }
        }
        let open = self.nodes.get(slave).map(|node| node.open.clone()).unwrap_or_default();
        for id in open {
            if self.task(id).is_some_and(|task| task.cancel) || self.recalled.contains(&id) {
                self.send_cancel(now, id, effects);
            } else {
                // An offer of this session from before a restart is made again, in vain if it has come.
                self.arm(id);
            }
        }
        self.hungry.insert(slave.clone());
    }

    /// An attempt that never began ends without a trace: its task is queued again, without a retry lost.
    fn give_back(&mut self, now: Now, id: TaskId, cause: Cause, effects: &mut Effects) {
        self.close(id);
        let withdrawn = self.is_withdrawn(id);
        let Some(task) = self.task_mut(id) else { return };
        if task.cancel || withdrawn.is_some() {
            task.reason = Some(withdrawn.unwrap_or_else(|| "it was canceled before it began".to_owned()));
            self.set(now, id, cause, TaskState::Canceled, effects);
        } else if cause == Cause::Declined {
            self.decline(now, id, effects);
        } else {
            self.set(now, id, cause, TaskState::Queued, effects);
            self.queue(now, id);
        }
    }

    /// Why a task is not to be tried (again), if it is not.
    fn is_withdrawn(&self, id: TaskId) -> Option<String> {
        let job = self.jobs.get(&id.job)?;
        if job.canceled {
            return Some("the job was canceled".to_owned());
        }
        let (step, _) = job.spec.locate(id.index)?;
        job.steps.get(step as usize)?.stopped.clone()
    }

    fn event(&mut self, now: Now, slave: &SlaveId, event: JournalEntry, effects: &mut Effects) {
        let (key, id) = (event.key(), event.key().task);
        let is_latest = self.task(id).is_some_and(|task| {
            key.epoch == self.epoch && key.attempt == task.attempt && task.slave.as_ref() == Some(slave)
        });
        if !is_latest {
            return self.stale_event(slave, event, effects);
        }
        let Some(task) = self.task_mut(id) else { return };
        let (state, is_open) = (task.state, task.is_open());
        match event {
            JournalEntry::Started(started) => {
                if is_open {
                    let is_news = !task.started;
                    task.started = true;
                    if is_news {
                        task.started_at = Some(now.wall);
                    }
                    if state != TaskState::Running {
                        self.set(now, id, Cause::Started, TaskState::Running, effects);
                    }
                    self.answered(id);
                } else if !state.has_ended() || state == TaskState::Lost {
                    // It was given up. What runs nevertheless is ended and tells then; until that is known, nothing is
                    // acknowledged: the number could be that of its end.
                    return effects.push(TaskEffect::Cancel(slave.clone(), TaskCancel { key }));
                }
                self.acknowledge(slave, key, started.seq, effects);
            }
            JournalEntry::Rejected(rejected) => {
                let seq = rejected.seq;
                if is_open {
                    match rejected.reason {
                        RejectReason::Stale | RejectReason::Busy => self.give_back(now, id, Cause::Declined, effects),
                        reason => {
                            task.reason = Some(rejected.detail.unwrap_or_else(|| reject_words(reason).to_owned()));
                            self.close(id);
                            self.set(now, id, Cause::Rejected, TaskState::Rejected, effects);
                        }
                    }
                }
                self.acknowledge(slave, key, seq, effects);
            }
            JournalEntry::Finished(finished) => {
                let is_complete = finished.stdout <= task.stdout && finished.stderr <= task.stderr;
                if is_open && !is_complete {
                    if let Some(open) = self.open.get_mut(&id) {
                        open.pending = Some(finished);
                    }
                    return self.answered(id);
                }
                if matches!(state, TaskState::Lost | TaskState::Backoff | TaskState::Queued) && !is_complete {
                    // It is told again, until its output has come.
                    return;
                }
                let seq = finished.seq;
                if is_open || matches!(state, TaskState::Lost | TaskState::Backoff | TaskState::Queued) {
                    self.settle(now, id, finished, effects);
                } else {
                    effects.push(TaskEffect::LateResult(finished));
                }
                self.acknowledge(slave, key, seq, effects);
            }
        }
    }

    /// What is said of an attempt that is not the latest of a task: it must not run, and may be forgotten.
    fn stale_event(&mut self, slave: &SlaveId, event: JournalEntry, effects: &mut Effects) {
        let (key, seq) = (event.key(), event.seq());
        let (stdout, stderr) = match event {
            JournalEntry::Started(_) => {
                effects.push(TaskEffect::Cancel(slave.clone(), TaskCancel { key }));
                return;
            }
            JournalEntry::Rejected(_) => (0, 0),
            JournalEntry::Finished(finished) => {
                let totals = (finished.stdout, finished.stderr);
                if key.epoch == self.epoch {
                    effects.push(TaskEffect::LateResult(finished));
                }
                totals
            }
        };
        effects.push(TaskEffect::Ack(slave.clone(), TaskAck { key, seq, stdout, stderr }));
    }

    /// The slave spoke of the attempt: nothing needs to be said again, but for a cancel.
    fn answered(&mut self, id: TaskId) {
        let cancel = self.task(id).is_some_and(|task| task.cancel) || self.recalled.contains(&id);
        if let Some(open) = self.open.get_mut(&id)
            && !cancel
        {
            open.resend = None;
        }
    }

    fn acknowledge(&self, slave: &SlaveId, key: AttemptKey, seq: u32, effects: &mut Effects) {
        let (stdout, stderr) = self.task(key.task).map_or((0, 0), |task| (task.stdout, task.stderr));
        effects.push(TaskEffect::Ack(slave.clone(), TaskAck { key, seq, stdout, stderr }));
    }

    /// The outcome of the latest attempt.
    fn settle(&mut self, now: Now, id: TaskId, finished: Box<TaskFinished>, effects: &mut Effects) {
        let outcome = finished.outcome;
        let Some(task) = self.task_mut(id) else { return };
        let before = task.state;
        if matches!(before, TaskState::Backoff | TaskState::Queued) && outcome != Outcome::Succeeded {
            // It is about to be tried again, whatever this attempt came to.
            return effects.push(TaskEffect::LateResult(finished));
        }
        task.reason = finished.reason.clone();
        task.gap |= finished.truncated;
        task.result = Some(finished);
        self.close(id);
        let (cause, to) = match outcome {
            Outcome::Succeeded => (Cause::Succeeded, TaskState::Succeeded),
            Outcome::Failed => (Cause::Failed, TaskState::Failed),
            Outcome::TimedOut => (Cause::TimedOut, TaskState::TimedOut),
            Outcome::Canceled if self.is_taken_back(id) => return self.take_back(now, id, effects),
            Outcome::Canceled => (Cause::Canceled, TaskState::Canceled),
            Outcome::Lost if before == TaskState::Lost => return effects.push(TaskEffect::RememberTask(id)),
            Outcome::Lost => return self.lose(now, id, Cause::Lost, effects),
        };
        let may_retry = matches!(outcome, Outcome::Failed | Outcome::TimedOut) && before != TaskState::Lost;
        if may_retry && self.retry_later(now, id, cause, effects) {
            return;
        }
        self.set(now, id, cause, to, effects);
    }

    /// Nobody knows how far the latest attempt came.
    fn lose(&mut self, now: Now, id: TaskId, cause: Cause, effects: &mut Effects) {
        self.close(id);
        let idempotent = self.step_of(id).is_some_and(|step| step.idempotent);
        if !(idempotent && self.retry_later(now, id, cause, effects)) {
            self.set(now, id, cause, TaskState::Lost, effects);
        }
    }

    /// Lets the task wait for another attempt, if its job allows one.
    fn retry_later(&mut self, now: Now, id: TaskId, cause: Cause, effects: &mut Effects) -> bool {
        let retries = self.step_of(id).map_or(0, |step| step.retries);
        let withdrawn = self.is_withdrawn(id).is_some();
        let epoch = self.epoch;
        let Some(task) = self.task_mut(id) else { return false };
        if task.cancel || withdrawn || task.failures >= retries {
            return false;
        }
        task.failures += 1;
        let wait = retry_wait(epoch, id, task.failures);
        effects.extend(task.result.clone().map(TaskEffect::LateResult));
        self.set(now, id, cause, TaskState::Backoff, effects);
        self.timers.insert((now.moment + wait, Timer::Backoff(id)));
        true
    }

    fn output(&mut self, now: Now, slave: &SlaveId, output: TaskOutput, effects: &mut Effects) {
        let (key, id) = (output.key, output.key.task);
        let epoch = self.epoch;
        let end = output.offset.saturating_add(output.data.len() as u64);
        let latest = self
            .task_mut(id)
            .filter(|task| key.epoch == epoch && key.attempt == task.attempt && task.slave.as_ref() == Some(slave));
        let Some(task) = latest else {
            // Nobody asks for it any more: let the slave forget it.
            let (stdout, stderr) = if output.stream == Stream::Stdout { (end, 0) } else { (0, end) };
            effects.push(TaskEffect::Ack(slave.clone(), TaskAck { key, seq: 0, stdout, stderr }));
            return;
        };
        let recorded = match output.stream {
            Stream::Stdout => &mut task.stdout,
            Stream::Stderr => &mut task.stderr,
        };
        let is_jump = output.offset > *recorded;
        if (!is_jump || output.gap) && end > *recorded {
            let known = recorded.saturating_sub(output.offset) as usize;
            *recorded = end;
            task.gap |= is_jump;
            let data = output.data.get(known..).unwrap_or_default().to_vec();
            effects.push(TaskEffect::Output(TaskOutput {
                offset: output.offset + known as u64,
                gap: is_jump,
                data,
                ..output
            }));
            effects.push(TaskEffect::RememberTask(id));
        }
        let (stdout, stderr) = (task.stdout, task.stderr);
        let pending = self
            .open
            .get_mut(&id)
            .and_then(|open| open.pending.take_if(|finished| finished.stdout <= stdout && finished.stderr <= stderr));
        let seq = match pending {
            Some(finished) => {
                let seq = finished.seq;
                self.settle(now, id, finished, effects);
                seq
            }
            None => 0,
        };
        effects.push(TaskEffect::Ack(slave.clone(), TaskAck { key, seq, stdout, stderr }));
    }

    fn renew(&mut self, now: Now, slave: SlaveId, lease: TaskLease, effects: &mut Effects) {
        let until = now.moment + master_lease(self.lease);
        let mut renewed = Vec::new();
        for attempt in lease.attempts {
            let LeasedAttempt { task: id, attempt: number } = attempt;
            let is_latest = lease.epoch == self.epoch && self.task(id).is_some_and(|task| task.attempt == number);
            match self.open.get_mut(&id).filter(|open| is_latest && open.slave == slave) {
                Some(open) => {
                    open.lease_until = until;
                    renewed.push(attempt);
                }
                // It is not known, or was given up.
                None => {
                    let key = AttemptKey { task: id, attempt: number, epoch: lease.epoch };
                    let has_ended = is_latest
                        && self.task(id).is_some_and(|task| task.state.has_ended() && task.state != TaskState::Lost);
                    if !has_ended {
                        effects.push(TaskEffect::Cancel(slave.clone(), TaskCancel { key }));
                    }
                }
            }
        }
        effects.push(TaskEffect::LeaseAck(slave, TaskLease { attempts: renewed, ..lease }));
    }

    /// The timer of an open attempt: its lease is over, or something is to be said again, or neither yet.
    fn attempt_due(&mut self, now: Now, id: TaskId, effects: &mut Effects) {
        let Some(open) = self.open.get_mut(&id) else { return };
        if open.lease_until <= now.moment {
            if let Some(finished) = open.pending.take() {
                // Its end is known; that output is missing is shown.
                if let Some(task) = self.task_mut(id) {
                    task.gap = true;
                }
                return self.settle(now, id, finished, effects);
            }
            if let Some(task) = self.task_mut(id) {
                task.reason = Some("its lease is over: nothing was heard of it".to_owned());
            }
            return self.lose(now, id, Cause::Lost, effects);
        }
        if let Some((at, wait)) = open.resend
            && at <= now.moment
        {
            let wait = (wait * 2).min(RESEND_MAX);
            open.resend = Some((now.moment + wait, wait));
            let slave = open.slave.clone();
            self.say_again(now, id, slave, effects);
        }
        self.arm(id);
    }

    fn say_again(&self, now: Now, id: TaskId, slave: SlaveId, effects: &mut Effects) {
        let (Some(key), Some(task), Some(open)) = (self.key(id), self.task(id), self.open.get(&id)) else { return };
        let Some(node) = self.nodes.get(&slave).filter(|node| node.hears()) else { return };
        // Of the lease, what is left: the master does not wait longer because it has said something twice.
        let lease = open.lease_until.since(now.moment).saturating_sub(master_lease(self.lease) - self.lease);
        if task.cancel || self.recalled.contains(&id) {
            effects.push(TaskEffect::Cancel(slave, TaskCancel { key }));
        } else if task.state == TaskState::Offered
            && !lease.is_zero()
            && let Some(session) = node.session.clone()
            && let Some(offer) = self.offer(id, key, session, lease)
        {
            effects.push(TaskEffect::Offer(slave, offer));
        }
    }

    /// Keeps one entry in the table of timers for an open attempt.
    fn arm(&mut self, id: TaskId) {
        let Some(open) = self.open.get_mut(&id) else { return };
        self.timers.remove(&(open.timer, Timer::Attempt(id)));
        open.timer = open.resend.map_or(open.lease_until, |(at, _)| at.min(open.lease_until));
        self.timers.insert((open.timer, Timer::Attempt(id)));
    }

    /// The attempt is not with a slave any more.
    fn close(&mut self, id: TaskId) {
        let Some(open) = self.open.remove(&id) else { return };
        self.timers.remove(&(open.timer, Timer::Attempt(id)));
        if let Some(node) = self.nodes.get_mut(&open.slave) {
            node.open.remove(&id);
            node.alone.take_if(|alone| *alone == id);
        }
        self.hungry.insert(open.slave);
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

    /// Stops a step in which too many tasks have failed.
    fn judge_failures(&mut self, now: Now, id: JobId, step: u32, effects: &mut Effects) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        let Some(limit) = job.step(step).and_then(|step| step.max_failures) else { return };
        let range = job.range(step);
        let Some(state) = job.steps.get_mut(step as usize) else { return };
        if state.failed < limit || state.stopped.is_some() || state.unended == 0 {
            return;
        }
        let reason = format!("{limit} tasks of its step had failed");
        state.stopped = Some(reason.clone());
        for index in range {
            self.withdraw(now, TaskId { job: id, index }, &reason, effects);
        }
    }

    /// A step has ended: those after it may begin, or never will; perhaps the job has ended too.
    fn step_ended(&mut self, now: Now, id: JobId, effects: &mut Effects) {
        let steps = self.jobs.get(&id).map_or(0, |job| job.steps.len() as u32);
        for step in 0..steps {
            let Some(job) = self.jobs.get(&id) else { return };
            let comes_after = job.step(step).is_some_and(|step| !step.after.is_empty());
            if !comes_after || job.steps.get(step as usize).is_none_or(|state| state.unended == 0) {
                continue;
            }
            match job.is_due(step) {
                Some(true) => {
                    self.list(id, step);
                    self.begin_waiting(now, id, step, Duration::ZERO);
                }
                Some(false) => {}
                None => {
                    for index in job.range(step) {
                        self.withdraw(now, TaskId { job: id, index }, STEP_BEFORE_FAILED, effects);
                    }
                }
            }
        }
        let Some(job) = self.jobs.get_mut(&id) else { return };
        if job.state() != JobState::Active {
            if job.ended.is_none() {
                job.ended = Some(now.wall);
                self.ended.push(id);
            }
            // Also after a late result, that may have made another of it.
            effects.push(TaskEffect::RememberJob(id));
        }
    }

    /// Puts all queued tasks of a step where slaves look for them.
    fn queue_all(&mut self, id: JobId, step: u32) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        if job.step(step).is_some_and(|step| step.inputs.is_some()) {
            let queued = |index: &u32| job.tasks.get(*index as usize).is_some_and(|t| t.state == TaskState::Queued);
            let shared = job.range(step).filter(queued).collect();
            if let Some(state) = job.steps.get_mut(step as usize) {
                state.shared = shared;
            }
        }
        self.list(id, step);
    }

    /// Puts one queued task where slaves look for it.
    fn queue(&mut self, now: Now, id: TaskId) {
        let Some(job) = self.jobs.get_mut(&id.job) else { return };
        let Some((step, _)) = job.spec.locate(id.index) else { return };
        if let Some(slave) = job.spec.pinned(id.index).cloned() {
            self.list_for(slave, id.job, step);
        } else if let Some(state) = job.steps.get_mut(step as usize) {
            state.shared.push_back(id.index);
            if state.shared.len() == 1 {
                self.list(id.job, step);
            }
        }
        self.arm_waiting(now, id.job, step);
    }

    fn list(&mut self, job: JobId, step: u32) {
        let slaves = self.jobs.get(&job).and_then(|job| job.step(step)).map(|step| step.slaves.clone());
        slaves.into_iter().flatten().for_each(|slave| self.list_for(slave, job, step));
    }

    /// All that may wait for a slave: one that was removed and joins again is listed nowhere.
    fn list_all_for(&mut self, slave: &SlaveId) {
        let mut listed = Vec::new();
        for (id, job) in &self.jobs {
            let steps = (0..).zip(&job.spec.steps);
            listed.extend(
                steps.filter(|(_, step)| step.slaves.binary_search(slave).is_ok()).map(|(step, _)| (*id, step)),
            );
        }
        listed.into_iter().for_each(|(job, step)| self.list_for(slave.clone(), job, step));
    }

    fn list_for(&mut self, slave: SlaveId, job: JobId, step: u32) {
        let node = self.nodes.entry(slave.clone()).or_default();
        if node.listed.insert((job, step)) {
            node.steps.push_back((job, step));
        }
        self.hungry.insert(slave);
    }

    /// Gives slaves with free slots what waits for them.
    fn feed(&mut self, now: Now, effects: &mut Effects) {
        loop {
            while let Some(slave) = self.hungry.pop_first() {
                while let Some(id) = self.next_task(&slave) {
                    self.begin(now, id, &slave, effects);
                }
            }
            let Some(step) = self.freed.pop_first() else { return };
            while let Some((id, slave)) = self.next_in_batch(step) {
                self.begin(now, id, &slave, effects);
            }
        }
    }

    /// A task that the slave can begin now. Jobs take turns.
    fn next_task(&mut self, slave: &SlaveId) -> Option<TaskId> {
        let node = self.nodes.get_mut(slave).filter(|node| node.has_room())?;
        for _ in 0..node.steps.len() {
            let (id, step) = node.steps.pop_front()?;
            match self.jobs.get_mut(&id).map_or(Taken::Nothing, |job| job.take(step, slave)) {
                Taken::Task(index) => {
                    node.steps.push_back((id, step));
                    return Some(TaskId { job: id, index });
                }
                Taken::Later => node.steps.push_back((id, step)),
                Taken::Nothing => drop(node.listed.remove(&(id, step))),
            }
        }
        None
    }

    /// A task for a free place in a batch, and one of the slaves that wait for it. Who has no room now looks again when it has.
    fn next_in_batch(&mut self, (id, step): (JobId, u32)) -> Option<(TaskId, SlaveId)> {
        let job = self.jobs.get_mut(&id)?;
        while let Some(slave) = job.waits_for_batch(step) {
            if self.nodes.get(&slave).is_some_and(Node::has_room)
                && let Taken::Task(index) = job.take(step, &slave)
            {
                return Some((TaskId { job: id, index }, slave));
            }
        }
        None
    }

    fn begin(&mut self, now: Now, id: TaskId, slave: &SlaveId, effects: &mut Effects) {
        let Some(session) = self.nodes.get(slave).and_then(|node| node.session.clone()) else { return };
        let Some(task) = self.task_mut(id) else { return };
        *task = Task {
            state: task.state,
            attempt: task.attempt.saturating_add(1),
            failures: task.failures,
            slave: Some(slave.clone()),
            ..Task::new()
        };
        self.set(now, id, Cause::Offer, TaskState::Offered, effects);
        let lease_until = now.moment + master_lease(self.lease);
        let open = Open {
            slave: slave.clone(),
            session: Some(session.clone()),
            lease_until,
            resend: Some((now.moment + RESEND_MIN, RESEND_MIN)),
            timer: lease_until,
            pending: None,
        };
        self.open.insert(id, open);
        self.arm(id);
        self.recalled.remove(&id);
        self.embargoes.remove(&id);
        let is_alone = self.jobs.get(&id.job).is_some_and(|job| job.spec.is_alone(id.index));
        if let Some(node) = self.nodes.get_mut(slave) {
            node.open.insert(id);
            node.alone = node.alone.or(is_alone.then_some(id));
        }
        if let Some(offer) = self.key(id).and_then(|key| self.offer(id, key, session, self.lease)) {
            effects.push(TaskEffect::Offer(slave.clone(), offer));
        }
    }

    fn offer(&self, id: TaskId, key: AttemptKey, session: SessionId, lease: Duration) -> Option<Box<TaskOffer>> {
        let job = self.jobs.get(&id.job)?;
        let (step, place) = job.spec.locate(id.index)?;
        let slave = job.tasks.get(id.index as usize)?.slave.as_ref()?;
        let spec = job.step(step)?.rendered(place, slave);
        // A lease is minutes.
        let lease_ms = lease.as_millis() as u64;
        Some(Box::new(TaskOffer { key, session, lease_ms, spec }))
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
        self.hears() && self.drain.is_none() && self.alone.is_none() && self.open.len() < self.slots as usize
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
        RejectReason::Busy => "the slave had no free slot",
    }
}

#[cfg(test)]
mod tests;
