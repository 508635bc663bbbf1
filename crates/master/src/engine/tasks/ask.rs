//! What people ask for over HTTP.

use std::sync::Arc;
use std::time::Duration;

use rpicluster_core::tasks::{JobSpec, Now, TaskInput};
use rpicluster_protocol::{JobAccepted, JobId, JobState, SlaveId};
use tokio::sync::oneshot;
use tracing::warn;

use super::TaskDesk;
use crate::shown::about;
use crate::store::{About, Deed, Store};

/// How many tasks may wait, of all jobs together: each takes memory until its job has ended.
const TASKS_MAX: u64 = 4_000_000;

/// Who waits for an answer, which comes once what was asked for is written.
pub(crate) type Done<T> = oneshot::Sender<Result<T, AskError>>;

/// A request.
#[derive(Debug)]
pub(crate) enum Ask {
    /// A new job.
    Submit(Box<Submission>, Done<JobAccepted>),
    /// See [`TaskInput::CancelJob`].
    Cancel { job: JobId, running: bool, requester: String, done: Done<()> },
    /// See [`TaskInput::RetryJob`].
    Retry { job: JobId, failed_only: bool, requester: String, done: Done<()> },
    /// See [`TaskInput::Drain`].
    Drain { slave: SlaveId, reason: String, deadline: Option<Duration>, requester: String, done: Done<()> },
    /// See [`TaskInput::Undrain`].
    Undrain { slave: SlaveId, requester: String, done: Done<()> },
}

/// A job that was checked.
#[derive(Debug)]
pub(crate) struct Submission {
    pub(crate) spec: Arc<JobSpec>,
    /// What is answered, but for the number.
    pub(crate) accepted: JobAccepted,
    /// Under which the same answer is given again.
    pub(crate) key: Option<String>,
}

/// Why something is not done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AskError {
    /// The store cannot be written.
    #[error("the store cannot be written now, the master's log says why: nothing is promised; ask again later")]
    NotWritten,
    /// There is no such job, or none any more.
    #[error("job {0} is not known")]
    NoJob(JobId),
    /// There is no more room.
    #[error("{0} tasks wait already, and no more than {TASKS_MAX} can: wait until some have ended, or cancel some")]
    TooMany(u64),
}

/// A job that is not written yet.
#[derive(Debug)]
pub(super) struct Submitted {
    pub(super) about: About,
    /// The key, and the answer as it is kept with it.
    pub(super) key: Option<(String, String)>,
    pub(super) accepted: JobAccepted,
    pub(super) done: Vec<Done<JobAccepted>>,
}

/// Somebody who waits for a change to be written.
#[derive(Debug)]
pub(super) struct Waiter(pub(super) Done<()>);

impl TaskDesk {
    /// Takes a request. Whoever has gone meanwhile is not told, here and below: what was asked for is done.
    pub(in crate::engine) fn ask(&mut self, ask: Ask, store: &Store, now: Now) {
        let is_failing = self.is_failing(now.moment);
        match ask {
            Ask::Submit(submission, done) if !is_failing => self.submit(*submission, done, store, now),
            Ask::Submit(_, done) => drop(done.send(Err(AskError::NotWritten))),
            Ask::Cancel { done, .. }
            | Ask::Retry { done, .. }
            | Ask::Drain { done, .. }
            | Ask::Undrain { done, .. }
                if is_failing =>
            {
                let _ = done.send(Err(AskError::NotWritten));
            }
            Ask::Cancel { job, running, requester, done } => {
                let is_known = self.tasks.job_state(job).is_some();
                if !is_known && !self.is_stored(store, job) {
                    let _ = done.send(Err(AskError::NoJob(job)));
                    return;
                }
                self.deed(now, requester, "cancel", format!("{job}{}", if running { " running" } else { "" }));
                self.handle(now, TaskInput::CancelJob(job, running));
                self.unsaved.waiters.push(Waiter(done));
            }
            Ask::Retry { job, failed_only, requester, done } => {
                if let Err(error) = self.retry(job, failed_only, store, now) {
                    let _ = done.send(Err(error));
                    return;
                }
                self.deed(now, requester, "retry", format!("{job}{}", if failed_only { " failed" } else { "" }));
                self.unsaved.waiters.push(Waiter(done));
            }
            Ask::Drain { slave, reason, deadline, requester, done } => {
                self.deed(now, requester, "drain", format!("{slave} {reason}"));
                self.handle(now, TaskInput::Drain(slave, reason, deadline));
                self.unsaved.waiters.push(Waiter(done));
            }
            Ask::Undrain { slave, requester, done } => {
                self.deed(now, requester, "undrain", slave.to_string());
                self.handle(now, TaskInput::Undrain(slave));
                self.unsaved.waiters.push(Waiter(done));
            }
        }
    }

    fn submit(&mut self, submission: Submission, done: Done<JobAccepted>, store: &Store, now: Now) {
        let Submission { spec, accepted, key } = submission;
        if let Some(key) = &key {
            // The same may have come twice within this batch.
            let same = |submitted: &&mut Submitted| submitted.key.as_ref().is_some_and(|(known, _)| known == key);
            if let Some(submitted) = self.unsaved.submitted.values_mut().find(same) {
                return submitted.done.push(done);
            }
            match store.answer(key) {
                Ok(None) => {}
                Ok(Some(answer)) => {
                    let answer = serde_json::from_str(&answer).map_err(|_| AskError::NotWritten);
                    let _ = done.send(answer);
                    return;
                }
                Err(error) => {
                    warn!(%error, "cannot look for an idempotency key");
                    let _ = done.send(Err(AskError::NotWritten));
                    return;
                }
            }
        }
        let waiting = self.tasks.task_count();
        if waiting + u64::from(spec.tasks()) > TASKS_MAX {
            let _ = done.send(Err(AskError::TooMany(waiting)));
            return;
        }
        self.totals.last_job += 1;
        let job = JobId(self.totals.last_job);
        let accepted = JobAccepted { job: Some(job), ..accepted };
        // What is answered is made of ids and numbers: it can be written.
        let answer = serde_json::to_string(&accepted).unwrap_or_default();
        let submitted =
            Submitted { about: about(&spec), key: key.map(|key| (key, answer)), accepted, done: vec![done] };
        self.deed(now, spec.requester.clone(), "submit", job.to_string());
        self.unsaved.submitted.insert(job, submitted);
        self.handle(now, TaskInput::Submit(job, spec));
    }

    fn retry(&mut self, job: JobId, failed_only: bool, store: &Store, now: Now) -> Result<(), AskError> {
        let unreadable = |error| {
            warn!(%error, %job, "cannot read a job");
            AskError::NotWritten
        };
        let was_known = self.tasks.job_state(job).is_some();
        if !was_known && !self.restore(store, job, now).map_err(unreadable)? {
            return Err(AskError::NoJob(job));
        }
        self.handle(now, TaskInput::RetryJob(job, failed_only));
        let is_active = self.tasks.job_state(job).is_some_and(|(state, _)| state == JobState::Active);
        if !was_known && !is_active {
            // There was nothing to be tried again.
            self.tasks.let_go(job);
            self.board.remove(job);
        }
        Ok(())
    }

    fn is_stored(&self, store: &Store, job: JobId) -> bool {
        store.has_job(job).unwrap_or_else(|error| {
            warn!(%error, %job, "cannot read a job");
            false
        })
    }

    pub(super) fn deed(&mut self, now: Now, requester: String, deed: &'static str, subject: String) {
        self.unsaved.deeds.push(Deed { at: now.wall, requester, deed, subject });
    }
}
