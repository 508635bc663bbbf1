//! What waits, and who gets it.

use rpicluster_protocol::limits::RESEND_MIN;
use rpicluster_protocol::{AttemptKey, JobId, SessionId, SlaveId, TaskId, TaskOffer, TaskState};

use super::job::Taken;
use super::render::{Circumstances, render};
use super::{Cause, Effects, Now, Open, Task, TaskEffect, Tasks, master_lease};

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
    pub(super) fn queue(&mut self, id: TaskId) {
        let Some(job) = self.jobs.get_mut(&id.job) else { return };
        let Some((step, _)) = job.spec.locate(id.index) else { return };
        if let Some(slave) = job.spec.pinned(id.index).cloned() {
            return self.list_for(slave, id.job, step);
        }
        let Some(state) = job.steps.get_mut(step as usize) else { return };
        state.shared.push_back(id.index);
        if state.shared.len() == 1 {
            self.list(id.job, step);
        }
    }

    pub(super) fn list(&mut self, job: JobId, step: u32) {
        let slaves = self.jobs.get(&job).and_then(|job| job.step(step)).map(|step| step.slaves.clone());
        slaves.into_iter().flatten().for_each(|slave| self.list_for(slave, job, step));
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
        while let Some(slave) = self.hungry.pop_first() {
            while let Some(id) = self.next_task(&slave) {
                self.begin(now, id, &slave, effects);
            }
        }
    }

    /// A task that the slave can begin now. Jobs take turns.
    pub(super) fn next_task(&mut self, slave: &SlaveId) -> Option<TaskId> {
        let node = self.nodes.get_mut(slave)?;
        if !node.ready || node.drain.is_some() || node.open.len() >= node.slots as usize {
            return None;
        }
        for _ in 0..node.steps.len() {
            let (id, step) = node.steps.pop_front()?;
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
        if let Some(node) = self.nodes.get_mut(slave) {
            node.open.insert(id);
        }
        if let Some(offer) = self.key(id).and_then(|key| self.offer(id, key, session)) {
            effects.push(TaskEffect::Offer(slave.clone(), offer));
        }
    }

    pub(super) fn offer(&self, id: TaskId, key: AttemptKey, session: SessionId) -> Option<Box<TaskOffer>> {
        let job = self.jobs.get(&id.job)?;
        let (step, place) = job.spec.locate(id.index)?;
        let slave = job.tasks.get(id.index as usize)?.slave.as_ref()?;
        let with = Circumstances { input: job.spec.input(id.index), number: place + 1, slave };
        let spec = render(&job.step(step)?.spec, with);
        // A lease is minutes.
        let lease_ms = self.lease.as_millis() as u64;
        Some(Box::new(TaskOffer { key, session, lease_ms, spec }))
    }
}
