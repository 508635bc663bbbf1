//! Who runs what: jobs, tasks, attempts, leases, retries. The rules are on the page `docs/protocol.md`, Tasks.
//!
//! Whoever calls this writes what [`Effect::RememberTask`] and its like name before any other effect of the same call, or
//! of calls before it, is seen by anybody.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use rpicluster_protocol::limits::{KILL_GRACE, PRESENCE_TIMEOUT, RETRY_WAIT_MAX, RETRY_WAIT_MIN};
use rpicluster_protocol::{
    AttemptKey, Epoch, JobId, JobState, JournalEntry, JournalId, RejectReason, SessionId, SlaveId, TaskAck, TaskCancel,
    TaskFinished, TaskId, TaskLease, TaskOffer, TaskOutput, TaskState, Timestamp, Work,
};

use crate::Moment;

mod attempts;
mod job;
mod model;
mod queue;
mod render;
mod slaves;
mod transition;

use job::Job;
pub use model::{JobRecord, JobSpec, NodeRecord, Step, Task};
pub use transition::{Cause, TRANSITIONS};

/// How long a task waits that its slave could not begin right now.
const DECLINED_WAIT: Duration = Duration::from_secs(1);

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
}

/// A slave, as far as tasks go.
#[derive(Debug, Default)]
struct Node {
    session: Option<SessionId>,
    /// The journal of this session has been handled.
    ready: bool,
    slots: u32,
    journal: Option<JournalId>,
    drain: Option<String>,
    /// Its attempts that have not ended.
    open: BTreeSet<TaskId>,
    /// Steps that may have something for it, in turn.
    steps: VecDeque<(JobId, u32)>,
    listed: HashSet<(JobId, u32)>,
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
        }
    }

    /// Takes back a slave that was remembered.
    pub fn restore_node(&mut self, record: NodeRecord) {
        let node = self.nodes.entry(record.slave).or_default();
        node.journal = record.journal;
        node.drain = record.drain;
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
                    let open = Open {
                        slave: slave.clone(),
                        session: None,
                        lease_until,
                        resend: None,
                        timer: lease_until,
                        pending: None,
                    };
                    self.timers.insert((lease_until, Timer::Attempt(id)));
                    self.open.insert(id, open);
                    self.nodes.entry(slave).or_default().open.insert(id);
                }
                TaskState::Backoff => drop(self.timers.insert((now.moment, Timer::Backoff(id)))),
                _ => {}
            }
        }
        let steps = job.steps.len() as u32;
        self.jobs.insert(id, job);
        for step in 0..steps {
            self.queue_all(id, step);
            self.arm_overdue(now, id, step, PRESENCE_TIMEOUT);
            self.judge_failures(now, id, step, effects);
        }
    }

    /// Drops jobs that have ended, once what was to be remembered of them is written. A lost task is kept for a while, with
    /// its job: its slave may still tell how it went.
    pub fn forget_ended(&mut self) {
        for id in std::mem::take(&mut self.ended) {
            let Some(job) = self.jobs.get(&id).filter(|job| job.ended.is_some()) else { continue };
            if job.counts.contains_key(&TaskState::Lost) {
                self.kept.push_back(id);
                self.kept_tasks += job.tasks.len();
            } else {
                self.jobs.remove(&id);
            }
        }
        while self.kept_tasks > KEPT_TASKS_MAX
            && let Some(oldest) = self.kept.pop_front()
        {
            let is_over = self.jobs.get(&oldest).is_some_and(|job| job.ended.is_some());
            let tasks = self.jobs.get(&oldest).map_or(0, |job| job.tasks.len());
            self.kept_tasks -= tasks.min(self.kept_tasks);
            if is_over {
                self.jobs.remove(&oldest);
            }
        }
    }

    /// Takes one input and appends what follows from it.
    pub fn handle(&mut self, now: Now, input: TaskInput, effects: &mut Effects) {
        match input {
            TaskInput::Submit(job, spec) => self.submit(now, job, spec, effects),
            TaskInput::CancelJob(job, running) => self.cancel_job(now, job, running, effects),
            TaskInput::RetryJob(job, failed_only) => self.retry_job(now, job, failed_only, effects),
            TaskInput::SlaveUp(slave, session, slots) => self.slave_up(slave, session, slots),
            TaskInput::SlaveDown(slave) => self.slave_down(now, &slave, effects),
            TaskInput::Journal(slave, session, journal, entries) => {
                self.journal(now, &slave, &session, journal, entries, effects);
            }
            TaskInput::Event(slave, event) => self.event(now, &slave, event, effects),
            TaskInput::Output(slave, output) => self.output(now, &slave, output, effects),
            TaskInput::Lease(slave, lease) => self.renew(now, slave, lease, effects),
            TaskInput::Drain(slave, reason, deadline) => {
                if let Some(deadline) = deadline {
                    self.timers.insert((now.moment + deadline, Timer::Drain(slave.clone())));
                }
                self.nodes.entry(slave.clone()).or_default().drain = Some(reason);
                effects.push(TaskEffect::RememberNode(slave));
            }
            TaskInput::Undrain(slave) => {
                self.nodes.entry(slave.clone()).or_default().drain = None;
                self.timers.retain(|(_, timer)| *timer != Timer::Drain(slave.clone()));
                self.hungry.insert(slave.clone());
                effects.push(TaskEffect::RememberNode(slave));
            }
            TaskInput::SlaveRemoved(slave) => self.slave_removed(now, &slave, effects),
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
                Timer::Backoff(task) => {
                    if self.task(task).is_some_and(|task| task.state == TaskState::Backoff) {
                        self.set(now, task, Cause::BackoffOver, TaskState::Queued, effects);
                        self.queue(task);
                    }
                }
                Timer::Overdue(job, step) => {
                    if let Some(state) = self.jobs.get_mut(&job).and_then(|job| job.steps.get_mut(step as usize)) {
                        state.overdue = true;
                    }
                    self.expire(now, job, step, effects);
                }
                Timer::Drain(slave) => {
                    let open = self.nodes.get(&slave).map(|node| node.open.clone()).unwrap_or_default();
                    open.into_iter().for_each(|task| self.cancel(now, task, effects));
                }
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
        Some(NodeRecord { slave: slave.clone(), journal: node.journal, drain: node.drain.clone() })
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
            self.arm_overdue(now, id, step, Duration::ZERO);
        }
    }

    /// A step's time to wait counts from its submission, and anew from a restart of the master.
    fn arm_overdue(&mut self, now: Now, job: JobId, step: u32, at_least: Duration) {
        let wait = self.jobs.get(&job).and_then(|job| job.step(step)).and_then(|step| step.wait_ms);
        if let Some(wait) = wait {
            let wait = Duration::from_millis(wait).max(at_least);
            self.timers.insert((now.moment + wait, Timer::Overdue(job, step)));
        }
    }

    fn cancel_job(&mut self, now: Now, id: JobId, running: bool, effects: &mut Effects) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        if job.state() != JobState::Active {
            return;
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
            return;
        }
        job.canceled = false;
        job.ended = None;
        job.steps.iter_mut().for_each(|step| (step.stopped, step.overdue) = (None, false));
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
            self.arm_overdue(now, id, step, Duration::ZERO);
        }
    }

    /// Puts a task into another state, with all that follows for its step and its job.
    fn set(&mut self, now: Now, id: TaskId, cause: Cause, to: TaskState, effects: &mut Effects) {
        let Some(job) = self.jobs.get_mut(&id.job) else { return };
        let Some(task) = job.tasks.get_mut(id.index as usize) else { return };
        debug_assert!(transition::is_allowed(task.state, cause, to), "{id}: {:?} by {cause:?} to {to:?}", task.state);
        task.ended_at = to.has_ended().then_some(now.wall);
        let step_ended = job.set(id.index, to);
        effects.push(TaskEffect::RememberTask(id));
        let Some((step, _)) = job.spec.locate(id.index) else { return };
        if to.has_ended() || to == TaskState::Backoff {
            self.wake_batch(id.job, step);
        }
        if to.has_ended() && to != TaskState::Succeeded {
            self.judge_failures(now, id.job, step, effects);
        }
        if step_ended {
            self.step_ended(now, id.job, effects);
        }
    }

    /// A place in a batch is free: every slave of the step may have use for it.
    fn wake_batch(&mut self, job: JobId, step: u32) {
        let Some(step) = self.jobs.get(&job).and_then(|job| job.step(step)) else { return };
        if step.batch.is_some() {
            self.hungry.extend(step.slaves.iter().cloned());
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
                Some(true) => self.list(id, step),
                Some(false) => {}
                None => {
                    for index in job.range(step) {
                        self.withdraw(now, TaskId { job: id, index }, STEP_BEFORE_FAILED, effects);
                    }
                }
            }
        }
        let Some(job) = self.jobs.get_mut(&id) else { return };
        if job.state() != JobState::Active && job.ended.is_none() {
            job.ended = Some(now.wall);
            self.ended.push(id);
            effects.push(TaskEffect::RememberJob(id));
        }
    }

    /// Lets tasks end that waited too long for slaves that are offline.
    fn expire(&mut self, now: Now, id: JobId, step: u32, effects: &mut Effects) {
        let Some(job) = self.jobs.get(&id) else { return };
        let (Some(definition), Some(state)) = (job.step(step), job.steps.get(step as usize)) else { return };
        if !state.overdue {
            return;
        }
        let is_away = |slave: &SlaveId| self.nodes.get(slave).is_none_or(|node| node.session.is_none());
        let all_away = definition.inputs.is_some() && definition.slaves.iter().all(is_away);
        let waits_in_vain = |index: &u32| {
            let is_queued = job.tasks.get(*index as usize).is_some_and(|task| task.state == TaskState::Queued);
            is_queued && (all_away || job.spec.pinned(*index).is_some_and(is_away))
        };
        let expired: Vec<u32> = job.range(step).filter(waits_in_vain).collect();
        for index in expired {
            let id = TaskId { job: id, index };
            // One that expires may be one too many for its step, and then the others are withdrawn.
            let Some(task) = self.task_mut(id).filter(|task| task.state == TaskState::Queued) else { continue };
            task.reason = Some("no slave for it was online in time".to_owned());
            self.set(now, id, Cause::Expired, TaskState::Expired, effects);
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
