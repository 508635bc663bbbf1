//! A job that has not ended, or may still change: its tasks, and what of its steps waits.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use rpicluster_protocol::{Action, JobId, JobState, SlaveId, TaskState, Timestamp, Work};

use super::model::{JobRecord, JobSpec, Step, Task};
use crate::Moment;

/// What takes longer than this is not offered ahead: the next of them would wait too long for the slot.
const AHEAD_TASK_MS_MAX: u64 = 100;
/// For each slave so many tasks must be queued for one to be offered ahead: at the end of a queue who is free is to get it.
const AHEAD_QUEUE_MIN: usize = 4;

/// See the module.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) id: JobId,
    pub(crate) spec: Arc<JobSpec>,
    pub(crate) tasks: Vec<Task>,
    pub(crate) steps: Vec<StepState>,
    pub(crate) canceled: bool,
    pub(crate) submitted: Timestamp,
    pub(crate) ended: Option<Timestamp>,
    pub(crate) counts: BTreeMap<TaskState, u32>,
    /// It has ended and is kept for what may still be said of it.
    pub(crate) kept: bool,
}

/// How far a step has come.
#[derive(Debug)]
pub(crate) struct StepState {
    /// Index of its first task.
    pub(crate) first: u32,
    /// Queued tasks that its slaves share, in order; some may not be queued any more.
    pub(crate) shared: VecDeque<u32>,
    /// Attempts that are with slaves.
    pub(crate) open: u32,
    /// Tasks that have not ended.
    pub(crate) unended: u32,
    /// Tasks that have ended without success.
    pub(crate) failed: u32,
    /// Nothing more of it is started, for that reason.
    pub(crate) stopped: Option<String>,
    /// Slaves that have room while its batch has none.
    pub(crate) waiting: BTreeSet<SlaveId>,
    /// Since when it waits for slaves that are away: it could begin.
    pub(crate) due_since: Option<Moment>,
    /// How long its tasks take, in milliseconds: the last ones count most.
    pub(crate) usual_ms: Option<u64>,
    /// When it is seen next who has waited too long.
    pub(crate) waits_until: Option<Moment>,
}

/// What a slave gets when it asks a step for work.
pub(crate) enum Taken {
    /// This task.
    Task(u32),
    /// Something, once another of its tasks has ended.
    Later,
    /// Nothing that is there now.
    Nothing,
}

impl Job {
    pub(crate) fn new(record: JobRecord) -> Job {
        let JobRecord { job, spec, canceled, submitted, ended } = record;
        let all = spec.tasks();
        let mut first = 0;
        let mut steps = Vec::with_capacity(spec.steps.len());
        for step in &spec.steps {
            let tasks = step.tasks();
            steps.push(StepState {
                first,
                shared: VecDeque::new(),
                open: 0,
                unended: tasks,
                failed: 0,
                stopped: None,
                waiting: BTreeSet::new(),
                due_since: None,
                usual_ms: None,
                waits_until: None,
            });
            first += tasks;
        }
        let tasks = vec![Task::new(); all as usize];
        Job {
            id: job,
            spec,
            tasks,
            steps,
            canceled,
            submitted,
            ended,
            counts: (all > 0).then_some((TaskState::Queued, all)).into_iter().collect(),
            kept: false,
        }
    }

    pub(crate) fn record(&self) -> JobRecord {
        JobRecord {
            job: self.id,
            spec: self.spec.clone(),
            canceled: self.canceled,
            submitted: self.submitted,
            ended: self.ended,
        }
    }

    pub(crate) fn state(&self) -> JobState {
        let all: u32 = self.counts.values().sum();
        let ended = |(state, count): (&TaskState, &u32)| if state.has_ended() { *count } else { 0 };
        if self.counts.iter().map(ended).sum::<u32>() < all {
            JobState::Active
        } else if self.counts.get(&TaskState::Succeeded).copied().unwrap_or(0) == all {
            JobState::Succeeded
        } else if self.canceled {
            JobState::Canceled
        } else {
            JobState::Failed
        }
    }

    /// Counts everything anew from the tasks, after they were restored.
    pub(crate) fn recount(&mut self) {
        self.counts.clear();
        for step in 0..self.steps.len() {
            let (mut open, mut unended, mut failed) = (0, 0, 0);
            for index in self.range(step as u32) {
                let Some(task) = self.tasks.get(index as usize) else { continue };
                *self.counts.entry(task.state).or_default() += 1;
                open += u32::from(task.is_open());
                unended += u32::from(!task.state.has_ended());
                failed += u32::from(task.state.has_ended() && task.state != TaskState::Succeeded);
            }
            let state = &mut self.steps[step];
            (state.open, state.unended, state.failed) = (open, unended, failed);
        }
    }

    /// Puts the task into another state and counts it there. Returns whether its step has ended with that.
    pub(crate) fn set(&mut self, index: u32, to: TaskState) -> bool {
        let Some((step, _)) = self.spec.locate(index) else { return false };
        let (Some(task), Some(step)) = (self.tasks.get_mut(index as usize), self.steps.get_mut(step as usize)) else {
            return false;
        };
        let (was_open, from) = (task.is_open(), task.state);
        task.state = to;
        let count = self.counts.entry(from).or_default();
        *count = count.saturating_sub(1);
        if *count == 0 {
            self.counts.remove(&from);
        }
        *self.counts.entry(to).or_default() += 1;
        match (was_open, task.is_open()) {
            (false, true) => step.open += 1,
            (true, false) => step.open -= 1,
            _ => {}
        }
        let is_failure = |state: TaskState| state.has_ended() && state != TaskState::Succeeded;
        match (is_failure(from), is_failure(to)) {
            (false, true) => step.failed += 1,
            (true, false) => step.failed -= 1,
            _ => {}
        }
        match (from.has_ended(), to.has_ended()) {
            (false, true) => {
                step.unended -= 1;
                step.unended == 0
            }
            (true, false) => {
                step.unended += 1;
                false
            }
            // A late result: what waits for the step may now begin, or not.
            (true, true) => step.unended == 0,
            (false, false) => false,
        }
    }

    /// The tasks of a step.
    pub(crate) fn range(&self, step: u32) -> std::ops::Range<u32> {
        let first = self.steps.get(step as usize).map_or(0, |state| state.first);
        first..first + self.step(step).map_or(0, Step::tasks)
    }

    pub(crate) fn step(&self, step: u32) -> Option<&Step> {
        self.spec.steps.get(step as usize)
    }

    /// All steps that it comes after have succeeded; nothing if one of them ended otherwise.
    pub(crate) fn is_due(&self, step: u32) -> Option<bool> {
        let after = self.step(step).map_or(&[][..], |step| &step.after);
        let before = || after.iter().filter_map(|earlier| self.steps.get(*earlier as usize));
        if before().any(|state| state.unended == 0 && state.failed > 0) {
            return None;
        }
        Some(before().all(|state| state.unended == 0))
    }

    /// The step could give a slave something now, as far as it alone says.
    fn is_open_for(&self, step: u32) -> bool {
        self.is_due(step) == Some(true) && self.steps.get(step as usize).is_some_and(|state| state.stopped.is_none())
    }

    /// A task has taken so long, as its slave says.
    pub(crate) fn note_duration(&mut self, index: u32, millis: u64) {
        let millis = millis.min(u64::from(u32::MAX));
        if let Some((step, _)) = self.spec.locate(index)
            && let Some(state) = self.steps.get_mut(step as usize)
        {
            state.usual_ms = Some(state.usual_ms.map_or(millis, |usual| (3 * usual + millis) / 4));
        }
    }

    /// Tasks of the step may be offered to slaves that have no free slot: they are short and many, none is one too many for a
    /// batch or after a failure, and where each runs does not matter.
    pub(crate) fn goes_ahead(&self, step: u32) -> bool {
        let Some((definition, state)) = self.step(step).zip(self.steps.get(step as usize)) else { return false };
        let is_free = definition.inputs.is_some() && definition.batch.is_none() && definition.max_failures.is_none();
        let are_short = state.usual_ms.is_some_and(|usual| usual <= AHEAD_TASK_MS_MAX);
        is_free
            && are_short
            && state.shared.len() > AHEAD_QUEUE_MIN * definition.slaves.len()
            && !matches!(definition.spec.work, Work::Action { action: Action::Reboot | Action::Shutdown })
    }

    /// Whether a task of the step is queued that the slave could begin, if it had a slot.
    pub(crate) fn has_queued(&self, step: u32, slave: &SlaveId) -> bool {
        let Some((definition, state)) = self.step(step).zip(self.steps.get(step as usize)) else { return false };
        let is_queued = |index: u32| self.tasks.get(index as usize).is_some_and(|t| t.state == TaskState::Queued);
        let of_slave =
            || definition.slaves.binary_search(slave).is_ok_and(|place| is_queued(state.first + place as u32));
        let queued = if definition.inputs.is_some() { !state.shared.is_empty() } else { of_slave() };
        queued && self.is_open_for(step)
    }

    /// Takes a queued task of the step for the slave.
    pub(crate) fn take(&mut self, step: u32, slave: &SlaveId) -> Taken {
        if !self.is_open_for(step) {
            return Taken::Nothing;
        }
        let spec = self.spec.clone();
        let Some((definition, state)) = spec.steps.get(step as usize).zip(self.steps.get_mut(step as usize)) else {
            return Taken::Nothing;
        };
        let is_queued = |index: &u32| self.tasks.get(*index as usize).is_some_and(|t| t.state == TaskState::Queued);
        let is_full = definition.batch.is_some_and(|batch| state.open >= batch);
        if definition.inputs.is_none() {
            let place = definition.slaves.binary_search(slave).ok().map(|place| state.first + place as u32);
            return match place.filter(is_queued) {
                Some(_) if is_full => state.wait_for_batch(slave),
                Some(index) => Taken::Task(index),
                None => Taken::Nothing,
            };
        }
        while state.shared.front().is_some_and(|index| !is_queued(index)) {
            state.shared.pop_front();
        }
        match state.shared.front() {
            Some(_) if is_full => state.wait_for_batch(slave),
            Some(index) => {
                let index = *index;
                state.shared.pop_front();
                Taken::Task(index)
            }
            None => Taken::Nothing,
        }
    }

    /// Takes out a slave that waits for a place in the step's batch, if there is one now.
    pub(crate) fn waits_for_batch(&mut self, step: u32) -> Option<SlaveId> {
        let batch = self.step(step)?.batch?;
        let state = self.steps.get_mut(step as usize)?;
        if state.open < batch { state.waiting.pop_first() } else { None }
    }
}

impl StepState {
    fn wait_for_batch(&mut self, slave: &SlaveId) -> Taken {
        self.waiting.insert(slave.clone());
        Taken::Later
    }
}
