//! What is promised, checked as it happens by somebody who sees everything.

use std::collections::{HashMap, HashSet};

use rpicluster_protocol::{
    AttemptKey, Epoch, JournalEntry, Outcome, RejectReason, SlaveId, TaskAck, TaskId, TaskState, Work,
};

use crate::head::Disk;
use crate::node::Node;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Checks {
    offered: HashSet<AttemptKey>,
    /// What has begun, where, and in which life of that slave's journal.
    begun: HashSet<(AttemptKey, usize, u64)>,
    running: HashMap<(Epoch, TaskId), AttemptKey>,
    /// Tasks of which an attempt was cut short, so that nobody knows how far it came.
    cut_short: HashSet<(Epoch, TaskId)>,
    drained: HashSet<SlaveId>,
    broken: Option<String>,
}

impl Checks {
    /// The master decides so.
    pub(crate) fn offers(&mut self, slave: &SlaveId, key: AttemptKey) {
        let is_new = self.offered.insert(key);
        let is_drained = self.drained.contains(slave);
        self.require(!(is_new && is_drained), || format!("{slave} is drained and was offered {}", key.task));
    }

    /// From now on the slave gets no tasks, or gets some.
    pub(crate) fn drains(&mut self, slave: &SlaveId, drained: bool) {
        if drained {
            self.drained.insert(slave.clone());
        } else {
            self.drained.remove(slave);
        }
    }

    /// An attempt has begun on that node.
    pub(crate) fn begins(&mut self, key: AttemptKey, at: usize, nodes: &[Node], disk: &Disk) {
        let node = &nodes[at];
        let AttemptKey { task, attempt, epoch } = key;
        // A journal that is lost with its disk cannot promise anything.
        let is_first = self.begun.insert((key, at, node.lives));
        self.require(is_first, || format!("attempt {attempt} of {task} began twice"));
        if let Some(other) = self.running.insert((epoch, task), key) {
            self.require(false, || format!("{task} runs twice at once: attempts {} and {attempt}", other.attempt));
        }
        let job = disk.jobs.get(&task.job).filter(|_| disk.epoch == Some(epoch));
        let step_of = |task: TaskId| job.and_then(|job| job.spec.locate(task.index)).map(|(step, _)| step as usize);
        let step = job.zip(step_of(task)).map(|(job, step)| &job.spec.steps[step]);
        if self.cut_short.contains(&(epoch, task)) && step.is_some_and(|step| !step.idempotent) {
            self.require(false, || format!("{task} runs again though nobody knows how far it came"));
        }
        let (running, slots) = (node.running.len(), node.slots as usize);
        self.require(running <= slots, || format!("{running} attempts run in {slots} slots"));
        let Some(batch) = step.and_then(|step| step.batch) else { return };
        // What a slave that was removed still runs is not part of the cluster any more.
        let keys = nodes.iter().filter(|node| !node.removed).flat_map(|node| node.running.keys());
        let of_step = keys
            .filter(|other| other.epoch == epoch && other.task.job == task.job && step_of(other.task) == step_of(task));
        let running = of_step.count();
        self.require(running <= batch as usize, || format!("{running} attempts run in a batch of {batch}"));
    }

    /// An attempt does not run any more; with an outcome unless it died with its slave.
    pub(crate) fn ends(&mut self, key: AttemptKey, outcome: Option<Outcome>) {
        if matches!(outcome, None | Some(Outcome::Lost)) {
            self.cut_short.insert((key.epoch, key.task));
        }
        if self.running.get(&(key.epoch, key.task)) == Some(&key) {
            self.running.remove(&(key.epoch, key.task));
        }
    }

    /// The node may forget something: the master's disk must know it.
    pub(crate) fn acknowledged(&mut self, node: &Node, disk: &Disk, ack: &TaskAck) {
        // One that was declined leaves nothing to know: another attempt follows.
        let is_declined = |reason| matches!(reason, RejectReason::Stale | RejectReason::Busy | RejectReason::Waited);
        let is_end = |entry: &JournalEntry| match entry {
            JournalEntry::Started(_) => false,
            JournalEntry::Finished(_) => true,
            JournalEntry::Rejected(rejected) => !is_declined(rejected.reason),
        };
        let covers = |entry: &JournalEntry| entry.key() == ack.key && ack.seq >= entry.seq() && is_end(entry);
        if disk.epoch == Some(ack.key.epoch) && node.entries().iter().any(covers) {
            let AttemptKey { task, attempt, .. } = ack.key;
            let is_known = disk.ends.contains(&ack.key);
            self.require(is_known, || {
                format!("the end of {task}, attempt {attempt}, was acknowledged and is not known")
            });
        }
    }

    /// What the disk must hold when all jobs have ended.
    pub(crate) fn at_the_end(&mut self, disk: &Disk) {
        for job in disk.jobs.values() {
            for index in 0..job.spec.tasks() {
                let id = TaskId { job: job.job, index };
                let Some(task) = disk.tasks.get(&id) else {
                    self.require(false, || format!("{id} has ended with its job and is not written"));
                    continue;
                };
                self.require(task.state.has_ended(), || format!("{id} is {} and its job has ended", task.state));
                let is_explained = task.state != TaskState::Succeeded || task.result.is_some();
                self.require(is_explained, || format!("{id} has succeeded and nobody knows how"));
                let (Some(slave), Some(result)) = (&task.slave, &task.result) else { continue };
                let Some((step, _)) = job.spec.locate(index) else { continue };
                let Work::Exec { argv } = &job.spec.steps[step as usize].spec.work else { continue };
                let expected = format!("{}{}", argv[0], job.spec.input(index).unwrap_or(slave.as_str()));
                if result.outcome == Outcome::Succeeded {
                    let is_own = result.result == Some(expected.clone().into());
                    self.require(is_own, || format!("{id} was given the result of other work, not of {expected}"));
                    let is_whole = task.gap || task.stdout >= result.stdout;
                    self.require(is_whole, || format!("{id} has {} of {} bytes", task.stdout, result.stdout));
                }
            }
        }
    }

    /// How many attempts have begun.
    pub(crate) fn starts(&self) -> u64 {
        self.begun.len() as u64
    }

    /// The first promise that was broken.
    ///
    /// # Errors
    /// Names it.
    pub(crate) fn verdict(&mut self) -> Result<(), String> {
        self.broken.take().map_or(Ok(()), Err)
    }

    pub(crate) fn require(&mut self, holds: bool, promise: impl FnOnce() -> String) {
        if !holds {
            self.broken.get_or_insert_with(promise);
        }
    }
}
