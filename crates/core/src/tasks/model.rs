//! What is stored of jobs, tasks and slaves, and how they are told apart.

use std::sync::Arc;

use rpicluster_protocol::{
    Action, JobId, JournalId, SessionId, SlaveId, TaskFinished, TaskSpec, TaskState, Timestamp, Work,
};
use serde::{Deserialize, Serialize};

use super::render::{Circumstances, render};

/// What a job does: what its user asked for, with targets resolved. Never changes once it was submitted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobSpec {
    /// For people.
    pub name: Option<String>,
    /// Who asked for it.
    pub requester: String,
    /// In order; at least one with a task.
    pub steps: Vec<Step>,
}

/// One step of a job. Its tasks are those of `inputs`, which its slaves share, else one for each slave.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// By which people know it.
    pub name: Option<String>,
    /// The target as it was asked for.
    pub on: String,
    /// What every task does, before `{}`, `{#}` and `{slave}` are filled in.
    pub spec: TaskSpec,
    /// Which slaves may run it, sorted, without doubles.
    pub slaves: Vec<SlaveId>,
    /// A task for each.
    pub inputs: Option<Vec<String>>,
    /// How often a task is tried again.
    pub retries: u32,
    /// A task may run again though nobody knows how far it came.
    pub idempotent: bool,
    /// How long tasks wait for slaves that are offline, in milliseconds; for ever if not given.
    pub wait_ms: Option<u64>,
    /// How many tasks run at once at most.
    pub batch: Option<u32>,
    /// After so many failed tasks no further one is started.
    pub max_failures: Option<u32>,
    /// Places of earlier steps that must have succeeded.
    pub after: Vec<u32>,
}

/// A job as it is kept.
#[derive(Debug, Clone, PartialEq)]
pub struct JobRecord {
    /// Its number.
    pub job: JobId,
    /// What it does.
    pub spec: Arc<JobSpec>,
    /// Somebody canceled it.
    pub canceled: bool,
    /// When it was submitted, by the master's clock.
    pub submitted: Timestamp,
    /// When its last task ended.
    pub ended: Option<Timestamp>,
}

/// A task as it is kept. One that is not is queued and was never tried.
#[derive(Debug, Clone, PartialEq)]
pub struct Task {
    /// Where it stands.
    pub state: TaskState,
    /// The number of its latest attempt; 0 before the first.
    pub attempt: u32,
    /// How many of its attempts count against the job's retries.
    pub failures: u32,
    /// Whose its latest attempt is.
    pub slave: Option<SlaveId>,
    /// The slave has said that the latest attempt began.
    pub started: bool,
    /// Somebody wants the latest attempt to end.
    pub cancel: bool,
    /// In words, where the state alone does not tell.
    pub reason: Option<String>,
    /// How the latest attempt ended, as its slave says.
    pub result: Option<Box<TaskFinished>>,
    /// Bytes of standard output of the latest attempt that are recorded.
    pub stdout: u64,
    /// Bytes of standard error of the latest attempt that are recorded.
    pub stderr: u64,
    /// Some of the output is lost.
    pub gap: bool,
    /// When the latest attempt was said to have begun, by the master's clock.
    pub started_at: Option<Timestamp>,
    /// When the task ended.
    pub ended_at: Option<Timestamp>,
}

/// What is kept of a slave with regard to tasks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeRecord {
    /// Whose it is.
    pub slave: SlaveId,
    /// Its journal when it was last heard.
    pub journal: Option<JournalId>,
    /// The session in which it was last offered tasks: some of these offers may still be on their way in it.
    pub session: Option<SessionId>,
    /// It gets no further tasks, for that reason.
    pub drain: Option<String>,
    /// When what still runs there is ended, by the master's clock.
    pub drain_until: Option<Timestamp>,
}

impl Step {
    /// How many tasks it has. More than a `u32` counts are refused at submission.
    pub fn tasks(&self) -> u32 {
        let tasks = self.inputs.as_ref().map_or(self.slaves.len(), Vec::len);
        u32::try_from(tasks).unwrap_or(u32::MAX)
    }

    /// What the task at that place within the step does on that slave, with everything filled in.
    pub fn rendered(&self, place: u32, slave: &SlaveId) -> TaskSpec {
        let input = self.inputs.as_ref().and_then(|inputs| inputs.get(place as usize)).map(String::as_str);
        render(&self.spec, Circumstances { input, number: place + 1, slave })
    }
}

impl JobSpec {
    /// How many tasks it has.
    pub fn tasks(&self) -> u32 {
        self.steps.iter().fold(0, |all, step| all.saturating_add(step.tasks()))
    }

    /// The step to which the task at `index` belongs, and its place within it.
    pub fn locate(&self, index: u32) -> Option<(u32, u32)> {
        let mut place = index;
        for (number, step) in (0..).zip(&self.steps) {
            match place.checked_sub(step.tasks()) {
                Some(beyond) => place = beyond,
                None => return Some((number, place)),
            }
        }
        None
    }

    /// The input of the task at `index`, if its step has inputs.
    pub fn input(&self, index: u32) -> Option<&str> {
        let (step, place) = self.locate(index)?;
        self.steps.get(step as usize)?.inputs.as_ref()?.get(place as usize).map(String::as_str)
    }

    /// The only slave that may run the task at `index`, if its step has no inputs.
    pub fn pinned(&self, index: u32) -> Option<&SlaveId> {
        let (step, place) = self.locate(index)?;
        let step = self.steps.get(step as usize)?;
        if step.inputs.is_some() { None } else { step.slaves.get(place as usize) }
    }
}

impl JobSpec {
    /// The task at `index` boots the machine or powers it off: nothing else runs beside it.
    pub(crate) fn is_alone(&self, index: u32) -> bool {
        let step = self.locate(index).and_then(|(step, _)| self.steps.get(step as usize));
        step.is_some_and(|step| matches!(step.spec.work, Work::Action { action: Action::Reboot | Action::Shutdown }))
    }
}

impl Task {
    /// Queued and never tried.
    pub fn new() -> Task {
        Task {
            state: TaskState::Queued,
            attempt: 0,
            failures: 0,
            slave: None,
            started: false,
            cancel: false,
            reason: None,
            result: None,
            stdout: 0,
            stderr: 0,
            gap: false,
            started_at: None,
            ended_at: None,
        }
    }

    /// An attempt is with a slave, or was when it was last heard.
    pub fn is_open(&self) -> bool {
        matches!(self.state, TaskState::Offered | TaskState::Running | TaskState::Unknown)
    }
}

impl Default for Task {
    fn default() -> Self {
        Task::new()
    }
}
