//! The master: its memory, its disk, and the one order in which it uses them.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use rpicluster_core::Moment;
use rpicluster_core::tasks::{JobRecord, NodeRecord, Now, Task, TaskEffect, TaskInput, Tasks};
use rpicluster_protocol::{AttemptKey, Epoch, JobId, SlaveId, TaskFinished, TaskId, TaskState, Timestamp};

/// Minutes, so that leases end within a run.
pub(crate) const LEASE: Duration = Duration::from_secs(120);

/// What a master has written.
#[derive(Debug, Clone, Default)]
pub(crate) struct Disk {
    pub(crate) jobs: BTreeMap<JobId, JobRecord>,
    pub(crate) tasks: BTreeMap<TaskId, Task>,
    pub(crate) nodes: HashMap<SlaveId, NodeRecord>,
    /// Attempts of which it is written how they ended.
    pub(crate) ends: HashSet<AttemptKey>,
    pub(crate) epoch: Option<Epoch>,
    pub(crate) next_job: u64,
}

/// A running master.
pub(crate) struct Head {
    pub(crate) tasks: Tasks,
    /// What followed from inputs that are not committed yet.
    effects: Vec<TaskEffect>,
}

pub(crate) fn now(clock: u64) -> Now {
    Now { moment: Moment::from_millis(clock), wall: Timestamp::from_unix_ms(clock) }
}

impl Head {
    /// Recovery is the only start path.
    pub(crate) fn start(clock: u64, disk: &Disk) -> Head {
        let mut tasks = Tasks::new(disk.epoch.unwrap_or(Epoch(0)), LEASE);
        let mut effects = Vec::new();
        disk.nodes.values().cloned().for_each(|node| tasks.restore_node(node));
        for (id, job) in disk.jobs.iter().filter(|(_, job)| job.ended.is_none()) {
            let known = disk.tasks.iter().filter(|(task, _)| task.job == *id);
            let known: Vec<(u32, Task)> = known.map(|(task, state)| (task.index, state.clone())).collect();
            tasks.restore_job(now(clock), job.clone(), known, &mut effects);
        }
        Head { tasks, effects }
    }

    pub(crate) fn handle(&mut self, clock: u64, input: TaskInput) {
        self.tasks.handle(now(clock), input, &mut self.effects);
    }

    pub(crate) fn timeout(&mut self, clock: u64) {
        self.tasks.timeout(now(clock), &mut self.effects);
    }

    /// What would be said if the commit succeeded.
    pub(crate) fn uncommitted(&self) -> &[TaskEffect] {
        &self.effects
    }

    /// Writes everything, and returns what may now be said.
    pub(crate) fn commit(&mut self, disk: &mut Disk) -> Vec<TaskEffect> {
        let effects = std::mem::take(&mut self.effects);
        for effect in &effects {
            match effect {
                TaskEffect::RememberJob(id) => {
                    if let Some(job) = self.tasks.job(*id) {
                        disk.jobs.insert(*id, job);
                    }
                }
                TaskEffect::RememberTask(id) => {
                    if let Some(task) = self.tasks.task(*id) {
                        note_end(disk, *id, task);
                        disk.tasks.insert(*id, task.clone());
                    }
                }
                TaskEffect::RememberNode(slave) => match self.tasks.node(slave) {
                    Some(node) => drop(disk.nodes.insert(slave.clone(), node)),
                    None => drop(disk.nodes.remove(slave)),
                },
                TaskEffect::LateResult(finished) => drop(disk.ends.insert(finished.key)),
                _ => {}
            }
        }
        self.tasks.forget_ended();
        effects
    }
}

fn note_end(disk: &mut Disk, id: TaskId, task: &Task) {
    if let Some(TaskFinished { key, .. }) = task.result.as_deref() {
        disk.ends.insert(*key);
    }
    // Rejections leave no result: the state says it, or another attempt follows.
    let over = matches!(task.state, TaskState::Rejected | TaskState::Backoff | TaskState::Canceled);
    if let (true, Some(epoch)) = (over, disk.epoch) {
        disk.ends.insert(AttemptKey { task: id, attempt: task.attempt, epoch });
    }
}
