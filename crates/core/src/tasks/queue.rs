//! What waits, and who gets it.

use std::time::Duration;

use rpicluster_protocol::limits::RESEND_MIN;
use rpicluster_protocol::{AttemptKey, JobId, SessionId, SlaveId, TaskId, TaskOffer, TaskState};

use super::job::Taken;
use super::{Cause, Effects, Node, Now, Open, Task, TaskEffect, Tasks, master_lease};

impl Tasks {
    /// Puts all queued tasks of a step where slaves look for them.
    pub(super) fn queue_all(&mut self, id: JobId, step: u32) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        if job.step(step).is_some_and(|step| step.inputs.is_some()) {
            let queued = |index: &u32| job.tasks.get(*index as usize).is_some_and(|t| t.state == TaskState::Queued);
            let shared = job.range(step).filter(queued).collect();
            if let Some(state) = job.steps.get_mut(step as usize) {
                state.shared = shared;
            }
        }
        self.list(id, step);
    }

    /// Puts one queued task where slaves look for it.
    pub(super) fn queue(&mut self, now: Now, id: TaskId) {
        let Some(job) = self.jobs.get_mut(&id.job) else { return };
        let Some((step, _)) = job.spec.locate(id.index) else { return };
        if let Some(slave) = job.spec.pinned(id.index).cloned() {
            self.list_for(slave, id.job, step);
        } else if let Some(state) = job.steps.get_mut(step as usize) {
            state.shared.push_back(id.index);
            if state.shared.len() == 1 {
                self.list(id.job, step);
            }
        }
        self.arm_waiting(now, id.job, step);
    }

    pub(super) fn list(&mut self, job: JobId, step: u32) {
        let slaves = self.jobs.get(&job).and_then(|job| job.step(step)).map(|step| step.slaves.clone());
        slaves.into_iter().flatten().for_each(|slave| self.list_for(slave, job, step));
    }

    /// All that may wait for a slave: one that was removed and joins again is listed nowhere.
    pub(super) fn list_all_for(&mut self, slave: &SlaveId) {
        let mut listed = Vec::new();
        for (id, job) in &self.jobs {
            let steps = (0..).zip(&job.spec.steps);
            listed.extend(
                steps.filter(|(_, step)| step.slaves.binary_search(slave).is_ok()).map(|(step, _)| (*id, step)),
            );
        }
        listed.into_iter().for_each(|(job, step)| self.list_for(slave.clone(), job, step));
    }

    pub(super) fn list_for(&mut self, slave: SlaveId, job: JobId, step: u32) {
        let node = self.nodes.entry(slave.clone()).or_default();
        if node.listed.insert((job, step)) {
            node.steps.push_back((job, step));
        }
        self.hungry.insert(slave);
    }

    /// Gives slaves with free slots what waits for them.
    pub(super) fn feed(&mut self, now: Now, effects: &mut Effects) {
        loop {
            while let Some(slave) = self.hungry.pop_first() {
                while let Some(id) = self.next_task(&slave) {
                    self.begin(now, id, &slave, effects);
                }
            }
            let Some(step) = self.freed.pop_first() else { return };
            while let Some((id, slave)) = self.next_in_batch(step) {
                self.begin(now, id, &slave, effects);
            }
        }
    }

    /// A task that the slave can begin now, or as soon as it has a free slot. Jobs take turns: nothing is offered ahead of a
    /// task that waits for a slot.
    pub(super) fn next_task(&mut self, slave: &SlaveId) -> Option<TaskId> {
        let node = self.nodes.get_mut(slave).filter(|node| node.has_room() || node.has_room_ahead())?;
        let is_ahead = !node.has_room();
        for _ in 0..node.steps.len() {
            let (id, step) = node.steps.pop_front()?;
            if is_ahead && self.jobs.get(&id).is_some_and(|job| !job.goes_ahead(step)) {
                if self.jobs.get(&id).is_some_and(|job| job.has_queued(step, slave)) {
                    node.steps.push_front((id, step));
                    return None;
                }
                node.steps.push_back((id, step));
                continue;
            }
            match self.jobs.get_mut(&id).map_or(Taken::Nothing, |job| job.take(step, slave)) {
                Taken::Task(index) => {
                    node.steps.push_back((id, step));
                    return Some(TaskId { job: id, index });
                }
                Taken::Later => node.steps.push_back((id, step)),
                Taken::Nothing => drop(node.listed.remove(&(id, step))),
            }
        }
        None
    }

    /// A task for a free place in a batch, and one of the slaves that wait for it. Who has no room now looks again when it has.
    pub(super) fn next_in_batch(&mut self, (id, step): (JobId, u32)) -> Option<(TaskId, SlaveId)> {
        let job = self.jobs.get_mut(&id)?;
        while let Some(slave) = job.waits_for_batch(step) {
            if self.nodes.get(&slave).is_some_and(Node::has_room)
                && let Taken::Task(index) = job.take(step, &slave)
            {
                return Some((TaskId { job: id, index }, slave));
            }
        }
        None
    }

    pub(super) fn begin(&mut self, now: Now, id: TaskId, slave: &SlaveId, effects: &mut Effects) {
        let Some(session) = self.nodes.get(slave).and_then(|node| node.session.clone()) else { return };
        let Some(task) = self.task_mut(id) else { return };
        *task = Task {
            state: task.state,
            attempt: task.attempt.saturating_add(1),
            failures: task.failures,
            slave: Some(slave.clone()),
            ..Task::new()
        };
        self.set(now, id, Cause::Offer, TaskState::Offered, effects);
        let lease_until = now.moment + master_lease(self.lease);
        let open = Open {
            slave: slave.clone(),
            session: Some(session.clone()),
            lease_until,
            resend: Some((now.moment + RESEND_MIN, RESEND_MIN)),
            timer: lease_until,
            pending: None,
        };
        self.open.insert(id, open);
        self.arm(id);
        self.recalled.remove(&id);
        self.embargoes.remove(&id);
        let is_alone = self.jobs.get(&id.job).is_some_and(|job| job.spec.is_alone(id.index));
        if let Some(node) = self.nodes.get_mut(slave) {
            node.open.insert(id);
            node.alone = node.alone.or(is_alone.then_some(id));
        }
        if let Some(offer) = self.key(id).and_then(|key| self.offer(id, key, session, self.lease)) {
            effects.push(TaskEffect::Offer(slave.clone(), offer));
        }
    }

    pub(super) fn offer(
        &self,
        id: TaskId,
        key: AttemptKey,
        session: SessionId,
        lease: Duration,
    ) -> Option<Box<TaskOffer>> {
        let job = self.jobs.get(&id.job)?;
        let (step, place) = job.spec.locate(id.index)?;
        let slave = job.tasks.get(id.index as usize)?.slave.as_ref()?;
        let spec = job.step(step)?.rendered(place, slave);
        // A lease is minutes.
        let lease_ms = lease.as_millis() as u64;
        Some(Box::new(TaskOffer { key, session, lease_ms, spec }))
    }
}
