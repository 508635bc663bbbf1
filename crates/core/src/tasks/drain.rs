//! Slaves that get no further tasks.

use super::*;

impl Tasks {
    /// What runs may end, or is ended after that time; what has not begun is taken back.
    pub(super) fn drain(
        &mut self,
        now: Now,
        slave: SlaveId,
        reason: String,
        deadline: Option<Duration>,
        effects: &mut Effects,
    ) {
        self.forget_deadline(&slave);
        let node = self.nodes.entry(slave.clone()).or_default();
        node.drain = Some(reason);
        if let Some(deadline) = deadline {
            let deadline_ms = u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX);
            node.drain_until = Some(Timestamp::from_unix_ms(now.wall.unix_ms().saturating_add(deadline_ms)));
            self.timers.insert((now.moment + deadline, Timer::Drain(slave.clone())));
        }
        let open = node.open.clone();
        effects.push(TaskEffect::RememberNode(slave));
        for id in open {
            if self.task(id).is_some_and(|task| !task.started && !task.cancel && task.is_open()) {
                self.recalled.insert(id);
                self.send_cancel(now, id, effects);
            }
        }
    }

    pub(super) fn undrain(&mut self, slave: SlaveId, effects: &mut Effects) {
        self.forget_deadline(&slave);
        self.nodes.entry(slave.clone()).or_default().drain = None;
        self.hungry.insert(slave.clone());
        effects.push(TaskEffect::RememberNode(slave));
    }

    /// The deadline of a drain, or its first check after a restart: how long that is, only the wall clock knows then.
    pub(super) fn drain_due(&mut self, now: Now, slave: SlaveId, effects: &mut Effects) {
        let Some(until) = self.nodes.get(&slave).and_then(|node| node.drain_until) else { return };
        let left = until.unix_ms().saturating_sub(now.wall.unix_ms());
        if left > 0 {
            self.timers.insert((now.moment + Duration::from_millis(left), Timer::Drain(slave)));
            return;
        }
        let open = self.nodes.get(&slave).map(|node| node.open.clone()).unwrap_or_default();
        open.into_iter().for_each(|task| self.cancel(now, task, effects));
    }

    /// The slave says that it ended the task because it was told to, and it was told so only to take the task back.
    pub(super) fn is_taken_back(&self, id: TaskId) -> bool {
        let is_first_word = |task: &Task| !task.started && task.result.as_ref().is_some_and(|end| end.seq == 1);
        self.recalled.contains(&id)
            && self.task(id).is_some_and(|task| task.is_open() && !task.cancel && is_first_word(task))
    }

    /// It never began: others may run it.
    pub(super) fn take_back(&mut self, now: Now, id: TaskId, effects: &mut Effects) {
        self.recalled.remove(&id);
        if let Some(task) = self.task_mut(id) {
            task.reason = None;
            effects.extend(task.result.take().map(TaskEffect::LateResult));
        }
        self.give_back(now, id, Cause::NeverBegan, effects);
    }

    fn forget_deadline(&mut self, slave: &SlaveId) {
        if self.nodes.get_mut(slave).and_then(|node| node.drain_until.take()).is_some() {
            self.timers.retain(|(_, timer)| *timer != Timer::Drain(slave.clone()));
        }
    }
}
