//! What slaves say of attempts, and what follows for their tasks.

use rpicluster_protocol::limits::{RESEND_MAX, RESEND_MIN};
use rpicluster_protocol::{
    AttemptKey, JournalEntry, LeasedAttempt, Outcome, RejectReason, SlaveId, Stream, TaskAck, TaskCancel, TaskFinished,
    TaskId, TaskLease, TaskOutput, TaskState,
};

use super::{Cause, DECLINED_WAIT, Effects, Now, TaskEffect, Tasks, Timer, master_lease, reject_words, retry_wait};

impl Tasks {
    pub(super) fn event(&mut self, now: Now, slave: &SlaveId, event: JournalEntry, effects: &mut Effects) {
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
                    // It was given up for lost. What runs nevertheless is ended, and tells then.
                    effects.push(TaskEffect::Cancel(slave.clone(), TaskCancel { key }));
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
    pub(super) fn stale_event(&mut self, slave: &SlaveId, event: JournalEntry, effects: &mut Effects) {
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
    pub(super) fn answered(&mut self, id: TaskId) {
        let cancel = self.task(id).is_some_and(|task| task.cancel);
        if let Some(open) = self.open.get_mut(&id)
            && !cancel
        {
            open.resend = None;
        }
    }

    pub(super) fn acknowledge(&self, slave: &SlaveId, key: AttemptKey, seq: u32, effects: &mut Effects) {
        let (stdout, stderr) = self.task(key.task).map_or((0, 0), |task| (task.stdout, task.stderr));
        effects.push(TaskEffect::Ack(slave.clone(), TaskAck { key, seq, stdout, stderr }));
    }

    /// The outcome of the latest attempt.
    pub(super) fn settle(&mut self, now: Now, id: TaskId, finished: Box<TaskFinished>, effects: &mut Effects) {
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
    pub(super) fn lose(&mut self, now: Now, id: TaskId, cause: Cause, effects: &mut Effects) {
        self.close(id);
        let idempotent = self.step_of(id).is_some_and(|step| step.idempotent);
        if !(idempotent && self.retry_later(now, id, cause, effects)) {
            self.set(now, id, cause, TaskState::Lost, effects);
        }
    }

    /// Lets the task wait for another attempt, if its job allows one.
    pub(super) fn retry_later(&mut self, now: Now, id: TaskId, cause: Cause, effects: &mut Effects) -> bool {
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

    /// An attempt that never began ends without a trace: its task is queued again, without a retry lost.
    pub(super) fn give_back(&mut self, now: Now, id: TaskId, cause: Cause, effects: &mut Effects) {
        self.close(id);
        let withdrawn = self.is_withdrawn(id);
        let Some(task) = self.task_mut(id) else { return };
        if task.cancel || withdrawn.is_some() {
            task.reason = Some(withdrawn.unwrap_or_else(|| "it was canceled before it began".to_owned()));
            self.set(now, id, cause, TaskState::Canceled, effects);
        } else if cause == Cause::Declined {
            self.set(now, id, cause, TaskState::Backoff, effects);
            self.timers.insert((now.moment + DECLINED_WAIT, Timer::Backoff(id)));
        } else {
            self.set(now, id, cause, TaskState::Queued, effects);
            self.queue(id);
        }
    }

    /// Why a task is not to be tried (again), if it is not.
    pub(super) fn is_withdrawn(&self, id: TaskId) -> Option<String> {
        let job = self.jobs.get(&id.job)?;
        if job.canceled {
            return Some("the job was canceled".to_owned());
        }
        let (step, _) = job.spec.locate(id.index)?;
        job.steps.get(step as usize)?.stopped.clone()
    }

    pub(super) fn output(&mut self, now: Now, slave: &SlaveId, output: TaskOutput, effects: &mut Effects) {
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

    pub(super) fn renew(&mut self, now: Now, slave: SlaveId, lease: TaskLease, effects: &mut Effects) {
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
    pub(super) fn attempt_due(&mut self, now: Now, id: TaskId, effects: &mut Effects) {
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
            self.say_again(id, slave, effects);
        }
        self.arm(id);
    }

    pub(super) fn say_again(&self, id: TaskId, slave: SlaveId, effects: &mut Effects) {
        let (Some(key), Some(task)) = (self.key(id), self.task(id)) else { return };
        let Some(node) = self.nodes.get(&slave).filter(|node| node.ready) else { return };
        if task.cancel {
            effects.push(TaskEffect::Cancel(slave, TaskCancel { key }));
        } else if task.state == TaskState::Offered
            && let Some(session) = node.session.clone()
            && let Some(offer) = self.offer(id, key, session)
        {
            effects.push(TaskEffect::Offer(slave, offer));
        }
    }

    /// Keeps one entry in the table of timers for an open attempt.
    pub(super) fn arm(&mut self, id: TaskId) {
        let Some(open) = self.open.get_mut(&id) else { return };
        self.timers.remove(&(open.timer, Timer::Attempt(id)));
        open.timer = open.resend.map_or(open.lease_until, |(at, _)| at.min(open.lease_until));
        self.timers.insert((open.timer, Timer::Attempt(id)));
    }

    /// The attempt is not with a slave any more.
    pub(super) fn close(&mut self, id: TaskId) {
        let Some(open) = self.open.remove(&id) else { return };
        self.timers.remove(&(open.timer, Timer::Attempt(id)));
        if let Some(node) = self.nodes.get_mut(&open.slave) {
            node.open.remove(&id);
        }
        self.hungry.insert(open.slave);
    }

    /// Asks the slave of an open attempt to end it.
    pub(super) fn cancel(&mut self, now: Now, id: TaskId, effects: &mut Effects) {
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

    pub(super) fn send_cancel(&mut self, now: Now, id: TaskId, effects: &mut Effects) {
        let Some(key) = self.key(id) else { return };
        let Some(open) = self.open.get_mut(&id) else { return };
        // A slave that is away is told after its journal.
        if self.nodes.get(&open.slave).is_some_and(|node| node.ready) {
            effects.push(TaskEffect::Cancel(open.slave.clone(), TaskCancel { key }));
            open.resend = Some((now.moment + RESEND_MIN, RESEND_MIN));
            self.arm(id);
        }
    }
}
