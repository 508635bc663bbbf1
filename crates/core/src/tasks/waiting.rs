//! Tasks that wait: for slaves that are away, for their next attempt, for a slave that has room.

use super::*;

impl Tasks {
    /// From now on the step waits for slaves, if it is not for an earlier step that it waits. Slaves that are away get
    /// `at_least` so long to come back.
    pub(super) fn begin_waiting(&mut self, now: Now, id: JobId, step: u32, at_least: Duration) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        let Some(wait) = job.step(step).and_then(|step| step.wait_ms).map(Duration::from_millis) else { return };
        if job.is_due(step) == Some(true)
            && let Some(state) = job.steps.get_mut(step as usize)
        {
            state.due_since = Some(now.moment + at_least.saturating_sub(wait));
            self.arm_waiting(now, id, step);
        }
    }

    /// Sees to it that [`Tasks::waited`] comes when the first of the step's queued tasks has waited too long.
    pub(super) fn arm_waiting(&mut self, now: Now, id: JobId, step: u32) {
        let next = self.next_in_vain(id, step).map(|next| next.max(now.moment));
        let Some(state) = self.jobs.get_mut(&id).and_then(|job| job.steps.get_mut(step as usize)) else { return };
        if state.waits_until != next {
            let timer = || Timer::Overdue(id, step);
            state.waits_until.map(|before| self.timers.remove(&(before, timer())));
            state.waits_until = next;
            self.timers.extend(next.map(|next| (next, timer())));
        }
    }

    /// Nothing of the step waits any more.
    pub(super) fn stop_waiting(&mut self, id: JobId, step: u32) {
        let state = self.jobs.get_mut(&id).and_then(|job| job.steps.get_mut(step as usize));
        if let Some(before) = state.and_then(|state| state.waits_until.take()) {
            self.timers.remove(&(before, Timer::Overdue(id, step)));
        }
    }

    /// Lets tasks end that waited too long for slaves that are away.
    pub(super) fn waited(&mut self, now: Now, id: JobId, step: u32, effects: &mut Effects) {
        self.stop_waiting(id, step);
        let Some(job) = self.jobs.get(&id) else { return };
        if job.step(step).is_none_or(|step| step.wait_ms.is_none()) {
            return;
        }
        let range = job.range(step);
        let is_over = |index: &u32| self.waits_in_vain_from(id, step, *index).is_some_and(|from| from <= now.moment);
        let expired: Vec<u32> = range.filter(is_over).collect();
        for index in expired {
            let id = TaskId { job: id, index };
            // One that expires may be one too many for its step, and then the others are withdrawn.
            let Some(task) = self.task_mut(id).filter(|task| task.state == TaskState::Queued) else { continue };
            task.reason = Some("no slave for it was online in time".to_owned());
            self.set(now, id, Cause::Expired, TaskState::Expired, effects);
        }
        self.arm_waiting(now, id, step);
    }

    /// When the first of the step's queued tasks will have waited too long, if no slave comes.
    fn next_in_vain(&self, id: JobId, step: u32) -> Option<Moment> {
        let job = self.jobs.get(&id)?;
        let definition = job.step(step)?;
        definition.wait_ms?;
        if definition.inputs.is_none() {
            return job.range(step).filter_map(|index| self.waits_in_vain_from(id, step, index)).min();
        }
        // They share their slaves: one stands for all, and the front of the queue is not always queued.
        let queued = job.steps.get(step as usize)?.shared.iter();
        queued.copied().find_map(|index| self.waits_in_vain_from(id, step, index))
    }

    /// From when on the task has waited too long, if it is queued and everybody who could run it is away.
    fn waits_in_vain_from(&self, id: JobId, step: u32, index: u32) -> Option<Moment> {
        let job = self.jobs.get(&id)?;
        job.tasks.get(index as usize).filter(|task| task.state == TaskState::Queued)?;
        let definition = job.step(step)?;
        let wait = Duration::from_millis(definition.wait_ms?);
        let mut since = job.steps.get(step as usize)?.due_since?;
        let slaves = match job.spec.pinned(index) {
            Some(slave) => std::slice::from_ref(slave),
            None => &definition.slaves[..],
        };
        for slave in slaves {
            match self.nodes.get(slave) {
                Some(node) if node.online => return None,
                Some(node) => since = since.max(node.away_since),
                None => {}
            }
        }
        Some(since + wait)
    }

    /// The time before the next attempt is over.
    pub(super) fn backoff_over(&mut self, now: Now, id: TaskId, effects: &mut Effects) {
        if self.task(id).is_none_or(|task| task.state != TaskState::Backoff) {
            return;
        }
        if let Some(until) = self.embargoes.get(&id).copied().filter(|until| *until > now.moment) {
            self.timers.insert((until, Timer::Backoff(id)));
            return;
        }
        self.set(now, id, Cause::BackoffOver, TaskState::Queued, effects);
        self.queue(now, id);
    }

    /// A slave that is removed is not heard any more, and may work on until its leases are over: nothing that it may run
    /// begins elsewhere before.
    pub(super) fn lay_embargoes(&mut self, slave: &SlaveId) {
        let open = self.nodes.get(slave).into_iter().flat_map(|node| &node.open);
        self.embargoes.extend(open.filter_map(|id| Some((*id, self.open.get(id)?.lease_until))));
    }

    /// A slave had no room for the task, or the offer came too late. It costs no retry, and is not tried for ever.
    pub(super) fn decline(&mut self, now: Now, id: TaskId, effects: &mut Effects) {
        let declined = self.declined.entry(id).or_default();
        *declined += 1;
        if *declined >= DECLINED_MAX {
            let reason = format!("it was declined {declined} times in turn: its slaves have no room");
            if let Some(task) = self.task_mut(id) {
                task.reason = Some(reason);
            }
            return self.set(now, id, Cause::Rejected, TaskState::Rejected, effects);
        }
        let wait = DECLINED_WAIT.saturating_mul(1 << (*declined - 1).min(16)).min(RESEND_MAX);
        self.set(now, id, Cause::Declined, TaskState::Backoff, effects);
        self.timers.insert((now.moment + wait, Timer::Backoff(id)));
    }

    /// The master was away. What it could not hear was perhaps said, and what it has decided comes later than it thought:
    /// everybody gets that much more time.
    pub(super) fn paused(&mut self, now: Now, gap: Duration) {
        let open: Vec<TaskId> = self.open.keys().copied().collect();
        for id in open {
            if let Some(open) = self.open.get_mut(&id) {
                open.lease_until = open.lease_until + gap;
            }
            self.arm(id);
        }
        for node in self.nodes.values_mut() {
            node.away_since = now.moment.min(node.away_since + gap);
        }
        for state in self.jobs.values_mut().flat_map(|job| &mut job.steps) {
            state.due_since = state.due_since.map(|since| since + gap);
        }
    }
}
