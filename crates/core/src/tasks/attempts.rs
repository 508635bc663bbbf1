//! What slaves say of attempts, and what follows for their tasks.

use rpicluster_protocol::{
    AttemptKey, JournalEntry, Outcome, RejectReason, SlaveId, Stream, TaskAck, TaskCancel, TaskFinished, TaskId,
    TaskOutput, TaskState,
};

use super::{Cause, Effects, JOB_CANCELED, Now, TaskEffect, Tasks, Timer, reject_words, retry_wait};

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
                        RejectReason::Waited if self.gives_back_ahead(slave) => {
                            self.give_back(now, id, Cause::NeverBegan, effects);
                        }
                        RejectReason::Stale | RejectReason::Busy | RejectReason::Waited => {
                            self.give_back(now, id, Cause::Declined, effects);
                        }
                        reason => {
                            if let Some(task) = self.task_mut(id) {
                                task.reason = Some(rejected.detail.unwrap_or_else(|| reject_words(reason).to_owned()));
                            }
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
                } else if task.result.is_none() {
                    effects.push(TaskEffect::LateResult(finished));
                }
                self.acknowledge(slave, key, seq, effects);
            }
        }
    }

    /// The slave has more than its slots hold, and gives some of it back: nothing more is offered ahead there for now. One
    /// that says so of what fits into its slots declines.
    fn gives_back_ahead(&mut self, slave: &SlaveId) -> bool {
        let Some(node) = self.nodes.get_mut(slave) else { return false };
        node.is_crowded = true;
        node.open.len() > node.slots.at_once as usize
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
        let cancel = self.task(id).is_some_and(|task| task.cancel) || self.recalled.contains(&id);
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
        if let Some(job) = self.jobs.get_mut(&id.job) {
            job.note_duration(id.index, finished.duration_ms);
        }
        let slave = self.open.get(&id).map(|open| &open.slave);
        if let Some(node) = slave.and_then(|slave| self.nodes.get_mut(slave)) {
            node.is_crowded = false;
        }
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
            self.decline(now, id, effects);
        } else {
            self.set(now, id, cause, TaskState::Queued, effects);
            self.queue(now, id);
        }
    }

    /// Why a task is not to be tried (again), if it is not.
    pub(super) fn is_withdrawn(&self, id: TaskId) -> Option<String> {
        let job = self.jobs.get(&id.job)?;
        if job.canceled {
            return Some(JOB_CANCELED.to_owned());
        }
        let (step, _) = job.spec.locate(id.index)?;
        job.steps.get(step as usize)?.stopped.clone()
    }

    pub(super) fn output(&mut self, now: Now, slave: &SlaveId, mut output: TaskOutput, effects: &mut Effects) {
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
            // At most the piece's length, because the piece goes beyond what is recorded.
            let known = recorded.saturating_sub(output.offset);
            output.data.drain(..known as usize);
            output.offset += known;
            output.gap = is_jump;
            *recorded = end;
            task.gap |= is_jump;
            effects.push(TaskEffect::Output(output));
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
}
