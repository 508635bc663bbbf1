//! What users ask of jobs, and how one step follows another.

use std::sync::Arc;
use std::time::Duration;

use rpicluster_protocol::{JobId, JobState, TaskId, TaskState};

use super::{Cause, Effects, JOB_CANCELED, Job, JobRecord, JobSpec, Now, STEP_BEFORE_FAILED, Task, TaskEffect, Tasks};

impl Tasks {
    pub(super) fn submit(&mut self, now: Now, id: JobId, spec: Arc<JobSpec>, effects: &mut Effects) {
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

    pub(super) fn cancel_job(&mut self, now: Now, id: JobId, running: bool, effects: &mut Effects) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        if job.state() != JobState::Active {
            return self.ended.push(id);
        }
        job.canceled = true;
        effects.push(TaskEffect::RememberJob(id));
        for index in 0..job.tasks.len() as u32 {
            let task = TaskId { job: id, index };
            self.withdraw(now, task, JOB_CANCELED, effects);
            if running {
                self.cancel(now, task, effects);
            }
        }
    }

    /// Ends a task that is not with a slave.
    pub(super) fn withdraw(&mut self, now: Now, id: TaskId, reason: &str, effects: &mut Effects) {
        let Some(task) = self.task_mut(id) else { return };
        if matches!(task.state, TaskState::Queued | TaskState::Backoff) {
            task.reason = Some(reason.to_owned());
            self.set(now, id, Cause::Withdrawn, TaskState::Canceled, effects);
        }
    }

    pub(super) fn retry_job(&mut self, now: Now, id: JobId, failed_only: bool, effects: &mut Effects) {
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

    /// Stops a step in which too many tasks have failed.
    pub(super) fn judge_failures(&mut self, now: Now, id: JobId, step: u32, effects: &mut Effects) {
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
    pub(super) fn step_ended(&mut self, now: Now, id: JobId, effects: &mut Effects) {
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
}
