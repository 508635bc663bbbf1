//! What a batch writes of tasks, and what follows once it is written, or was not.

use std::collections::BTreeMap;

use rpicluster_core::Moment;
use rpicluster_core::tasks::JobRecord;
use rpicluster_protocol::{JobEvent, JobId, JobState, TaskId};

use super::ask::{Submitted, Waiter};
use super::{RETRY_PAUSE, TaskDesk, Unsaved};
use crate::engine::tasks::AskError;
use crate::shown::{about, job_info, task_info};
use crate::store::{JobRow, StoredJob, SubmittedJob, Swept, TaskRows};
use crate::view::View;

/// How many ended jobs are forgotten in one transaction.
const FORGOTTEN_MAX: usize = 100;

/// How many tasks of one job are told of at once: a million may be canceled together.
const EVENTS_MAX: usize = 20_000;

impl TaskDesk {
    /// Whether there is something to be written now.
    pub(in crate::engine) fn wants_save(&self, now: Moment) -> bool {
        let may_try = self.retry_at.is_none_or(|at| at <= now);
        may_try && (!self.unsaved.is_empty() || self.totals.garbage || self.has_too_much())
    }

    /// What is to be written.
    pub(in crate::engine) fn rows(&self) -> TaskRows<'_> {
        let unsaved = &self.unsaved;
        let submitted = unsaved.submitted.iter().filter_map(|(job, submitted)| {
            let key = submitted.key.as_ref().map(|(key, answer)| (key.as_str(), answer.clone()));
            Some(SubmittedJob { record: self.tasks.job(*job)?, about: &submitted.about, key })
        });
        TaskRows {
            submitted: submitted.collect(),
            jobs: unsaved.jobs.iter().filter_map(|job| self.row(*job)).collect(),
            tasks: unsaved.tasks.iter().filter_map(|task| Some((*task, self.tasks.task(*task)?))).collect(),
            late_results: unsaved.late_results.values().collect(),
            nodes: unsaved.nodes.iter().map(|slave| (slave, self.tasks.node(slave))).collect(),
            output: &unsaved.output,
            audit: &unsaved.deeds,
            cut: unsaved.cut.iter().copied().collect(),
            output_to_free: self.output_to_free(),
            forgotten: self.forgotten(),
            sweep: self.totals.garbage,
        }
    }

    /// It is written: whoever waits is answered, watchers are told, and slaves may be.
    pub(in crate::engine) fn saved(&mut self, swept: Swept, view: &View) {
        self.retry_at = None;
        let forgotten = self.forgotten();
        let unsaved = std::mem::take(&mut self.unsaved);
        for piece in &unsaved.output {
            *self.totals.output.entry(piece.key.task.job).or_default() += piece.data.len() as u64;
        }
        for (job, bytes) in swept.freed {
            let left = self.totals.output.get(&job).copied().unwrap_or_default().saturating_sub(bytes);
            if left == 0 {
                self.totals.output.remove(&job)
            } else {
                self.totals.output.insert(job, left)
            };
        }
        self.totals.garbage = swept.more_garbage;
        for job in forgotten {
            self.totals.ended.retain(|ended| *ended != job);
            self.totals.output.remove(&job);
            // One that was kept for a late result.
            self.tasks.let_go(job);
        }
        self.output_bytes = self.totals.output.values().sum();
        self.tell(&unsaved);
        // Who drains a slave and then looks sees it drained.
        unsaved.nodes.iter().filter_map(|slave| view.get(slave.as_str())).for_each(|slave| self.show_work(&slave));
        self.owed.append(&mut self.held);
        for Submitted { accepted, done, .. } in unsaved.submitted.into_values() {
            for done in done {
                let _ = done.send(Ok(accepted.clone()));
            }
        }
        for Waiter(done) in unsaved.waiters {
            let _ = done.send(Ok(()));
        }
        self.tasks.forget_ended();
    }

    /// It could not be written. New jobs are as if they had never been submitted; all else stays to be written.
    pub(in crate::engine) fn not_saved(&mut self, now: Moment) {
        self.retry_at = Some(now + RETRY_PAUSE);
        for (job, submitted) in std::mem::take(&mut self.unsaved.submitted) {
            self.tasks.let_go(job);
            self.held.let_go(job);
            self.unsaved.jobs.remove(&job);
            self.unsaved.tasks.retain(|task| task.job != job);
            self.unsaved.deeds.retain(|deed| deed.deed != "submit" || deed.subject != job.to_string());
            for done in submitted.done {
                let _ = done.send(Err(AskError::NotWritten));
            }
        }
        for Waiter(done) in std::mem::take(&mut self.unsaved.waiters) {
            let _ = done.send(Err(AskError::NotWritten));
        }
    }

    /// Puts on the board how a job stands.
    pub(super) fn post(&self, job: JobId) {
        match self.row(job) {
            Some(row) if row.state == JobState::Active => self.board.set(row),
            _ => self.board.remove(job),
        }
    }

    fn row(&self, job: JobId) -> Option<JobRow> {
        let JobRecord { canceled, ended, .. } = self.tasks.job(job)?;
        let (state, counts) = self.tasks.job_state(job)?;
        Some(JobRow { job, canceled, ended, state, counts: counts.clone() })
    }

    /// Shows what was written.
    fn tell(&mut self, unsaved: &Unsaved) {
        let mut changed: BTreeMap<JobId, Vec<TaskId>> = BTreeMap::new();
        for job in unsaved.jobs.iter().chain(unsaved.submitted.keys()) {
            changed.entry(*job).or_default();
        }
        for task in &unsaved.tasks {
            changed.entry(task.job).or_default().push(*task);
        }
        for (job, tasks) in changed {
            let Some(row) = self.row(job) else { continue };
            let has_ended = row.state != JobState::Active;
            if unsaved.jobs.contains(&job) {
                let place = self.totals.ended.iter().position(|ended| *ended == job);
                match place {
                    None if has_ended => self.totals.ended.push(job),
                    Some(place) if !has_ended => drop(self.totals.ended.remove(place)),
                    _ => {}
                }
            }
            self.tell_watchers(job, &row, &tasks, unsaved);
            if has_ended {
                self.cut.remove(&job);
            }
            self.post(job);
        }
    }

    fn tell_watchers(&self, job: JobId, row: &JobRow, tasks: &[TaskId], unsaved: &Unsaved) {
        let interest = self.board.interest(job);
        let Some(record) = self.tasks.job(job).filter(|_| interest.tasks) else { return };
        if tasks.len() > EVENTS_MAX {
            return self.board.cut(job);
        }
        let (mut output, mut others) = (Vec::new(), Vec::new());
        if interest.output {
            for piece in unsaved.output.iter().filter(|piece| piece.key.task.job == job) {
                write_event(&mut output, &JobEvent::Output(piece.clone()));
            }
        }
        let output_dropped = self.cut.contains(&job);
        for id in tasks {
            let Some(task) = self.tasks.task(*id) else { continue };
            write_event(&mut others, &JobEvent::Task(task_info(&record.spec, *id, task, output_dropped)));
        }
        let (submitted, about) = (record.submitted, about(&record.spec));
        let info = job_info(StoredJob { row: row.clone(), submitted, output_dropped, about });
        write_event(&mut others, &JobEvent::Job(info));
        self.board.tell(job, &output, &others, row.state != JobState::Active);
    }

    fn has_too_much(&self) -> bool {
        let jobs = self.totals.ended.len() > self.limits.jobs_max && !self.forgotten().is_empty();
        jobs || self.output_to_free().is_some()
    }

    /// Ended jobs that go, the oldest first.
    fn forgotten(&self) -> Vec<JobId> {
        let surplus = self.totals.ended.len().saturating_sub(self.limits.jobs_max);
        let oldest = self.totals.ended.iter().take(surplus.min(FORGOTTEN_MAX)).copied();
        oldest.filter(|job| !self.unsaved.jobs.contains(job) && !self.is_active(*job)).collect()
    }

    /// Ended jobs whose output goes, the oldest first, and how many bytes are too many.
    fn output_to_free(&self) -> Option<(Vec<JobId>, u64)> {
        let all = self.output_bytes + self.unsaved.output_bytes;
        let surplus = all.checked_sub(self.limits.output_bytes_max).filter(|surplus| *surplus > 0)?;
        let ended = self.totals.ended.iter().filter(|job| self.totals.output.contains_key(job));
        let ended: Vec<JobId> = ended.copied().filter(|job| !self.is_active(*job)).collect();
        (!ended.is_empty()).then_some((ended, surplus))
    }

    fn is_active(&self, job: JobId) -> bool {
        self.tasks.job_state(job).is_some_and(|(state, _)| state == JobState::Active)
    }
}

impl Unsaved {
    pub(super) fn is_empty(&self) -> bool {
        self.submitted.is_empty()
            && self.jobs.is_empty()
            && self.tasks.is_empty()
            && self.nodes.is_empty()
            && self.late_results.is_empty()
            && self.output.is_empty()
            && self.cut.is_empty()
            && self.deeds.is_empty()
            && self.waiters.is_empty()
    }
}

/// As an event of `text/event-stream`.
pub(crate) fn write_event(text: &mut Vec<u8>, event: &JobEvent) {
    text.extend_from_slice(b"data: ");
    let before = text.len();
    // What is written into memory and made of texts and numbers cannot fail; were it to, the event is left out.
    if serde_json::to_writer(&mut *text, event).is_err() {
        text.truncate(before);
        text.extend_from_slice(b"null");
    }
    text.extend_from_slice(b"\n\n");
}
