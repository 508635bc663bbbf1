//! Slaves that come, go, and tell what their journals hold.

use std::collections::{BTreeSet, HashSet};

use rpicluster_protocol::limits::{RESEND_MAX, RESEND_MIN};
use rpicluster_protocol::{
    Action, AttemptKey, JournalEntry, JournalId, Outcome, SessionId, SlaveId, TaskFinished, TaskId, TaskState, Work,
};

use super::{Cause, Effects, Now, Slots, TaskEffect, Tasks, Timer};

impl Tasks {
    pub(super) fn slave_up(
        &mut self,
        now: Now,
        slave: SlaveId,
        session: SessionId,
        slots: Slots,
        effects: &mut Effects,
    ) {
        if !std::mem::replace(&mut self.nodes.entry(slave.clone()).or_default().was_online, true) {
            self.list_all_for(&slave);
        }
        let node = self.nodes.entry(slave.clone()).or_default();
        let was_silent = !node.online && node.ready && node.session.as_ref() == Some(&session);
        node.slots = slots;
        node.online = true;
        if node.session.as_ref() != Some(&session) {
            node.session = Some(session);
            node.ready = false;
        }
        let open = if was_silent { node.open.clone() } else { BTreeSet::new() };
        // Who has no slots may know nothing of tasks.
        if slots.at_once > 0 && !node.ready && node.announce.is_none() {
            node.announce = Some((now.moment + RESEND_MIN, RESEND_MIN));
            self.timers.insert((now.moment + RESEND_MIN, Timer::Announce(slave.clone())));
        }
        // In the same session nothing was lost: everything stands where it stood.
        for id in open {
            let Some(task) = self.task(id).filter(|task| task.state == TaskState::Unknown) else { continue };
            let stood = if task.started { TaskState::Running } else { TaskState::Offered };
            self.set(now, id, Cause::SlaveBack, stood, effects);
        }
        self.hungry.insert(slave);
    }

    /// The journal of this session has not come, or not whole.
    pub(super) fn announce(&mut self, now: Now, slave: SlaveId, effects: &mut Effects) {
        let Some(node) = self.nodes.get_mut(&slave) else { return };
        let Some((_, wait)) = node.announce.take_if(|(at, _)| *at <= now.moment) else { return };
        if node.online && !node.ready {
            let wait = (wait * 2).min(RESEND_MAX);
            node.announce = Some((now.moment + wait, wait));
            self.timers.insert((now.moment + wait, Timer::Announce(slave.clone())));
            effects.push(TaskEffect::Announce(slave));
        }
    }

    pub(super) fn slave_down(&mut self, now: Now, slave: &SlaveId, effects: &mut Effects) {
        let Some(node) = self.nodes.get_mut(slave) else { return };
        if !std::mem::take(&mut node.online) {
            return;
        }
        node.away_since = now.moment;
        let (open, steps) = (node.open.clone(), node.steps.clone());
        for id in open {
            let Some(task) = self.task(id) else { continue };
            let powers_off = matches!(self.work(id), Some(Work::Action { action: Action::Shutdown }));
            if task.state == TaskState::Running && powers_off {
                if let Some(finished) = self.gone_as_told(id) {
                    self.settle(now, id, finished, effects);
                }
            } else if task.state != TaskState::Unknown {
                self.set(now, id, Cause::SlaveGone, TaskState::Unknown, effects);
            }
        }
        for (job, step) in steps {
            self.waited(now, job, step, effects);
        }
    }

    /// A shutdown has succeeded when the slave is gone: it cannot say so itself.
    pub(super) fn gone_as_told(&self, id: TaskId) -> Option<Box<TaskFinished>> {
        let task = self.task(id)?;
        Some(Box::new(TaskFinished {
            stdout: task.stdout,
            stderr: task.stderr,
            ..TaskFinished::new(self.key(id)?, 2, Outcome::Succeeded)
        }))
    }

    pub(super) fn slave_removed(&mut self, now: Now, slave: &SlaveId, effects: &mut Effects) {
        let Some(node) = self.nodes.remove(slave) else { return };
        effects.push(TaskEffect::RememberNode(slave.clone()));
        self.hungry.remove(slave);
        let mut withdrawn = Vec::new();
        for (job, step) in node.listed {
            let Some(found) = self.jobs.get(&job) else { continue };
            let Some(definition) = found.step(step) else { continue };
            if definition.inputs.is_none() {
                let place = definition.slaves.binary_search(slave).ok();
                withdrawn.extend(place.map(|place| TaskId { job, index: found.range(step).start + place as u32 }));
            } else if !definition.slaves.iter().any(|other| self.nodes.contains_key(other)) {
                withdrawn.extend(found.range(step).map(|index| TaskId { job, index }));
            }
        }
        for id in node.open {
            if let Some(task) = self.task_mut(id) {
                task.reason = Some("the slave was removed".to_owned());
            }
            self.lose(now, id, Cause::Lost, effects);
        }
        for id in withdrawn {
            self.withdraw(now, id, "the slave was removed", effects);
        }
    }

    pub(super) fn journal(
        &mut self,
        now: Now,
        slave: &SlaveId,
        session: &SessionId,
        journal: JournalId,
        entries: Vec<JournalEntry>,
        effects: &mut Effects,
    ) {
        let Some(node) = self.nodes.get_mut(slave) else { return };
        if node.session.as_ref() != Some(session) {
            return;
        }
        let is_another = node.journal.is_some_and(|known| known != journal);
        if node.journal != Some(journal) || !node.ready {
            node.journal = Some(journal);
            effects.push(TaskEffect::RememberNode(slave.clone()));
        }
        let held: HashSet<AttemptKey> = entries.iter().map(JournalEntry::key).collect();
        for entry in entries {
            self.event(now, slave, entry, effects);
        }
        let open = self.nodes.get(slave).map(|node| node.open.clone()).unwrap_or_default();
        for id in open {
            let (Some(key), Some(open)) = (self.key(id), self.open.get(&id)) else { continue };
            // What was offered in this session may still be on its way.
            if held.contains(&key) || open.session.as_ref() == Some(session) {
                continue;
            }
            if self.task(id).is_some_and(|task| task.started) || is_another {
                let reason = if is_another { "the slave's journal is gone" } else { "the slave does not know of it" };
                if let Some(task) = self.task_mut(id) {
                    task.reason = Some(reason.to_owned());
                }
                self.lose(now, id, Cause::JournalGone, effects);
            } else {
                self.give_back(now, id, Cause::NeverBegan, effects);
            }
        }
        if let Some(node) = self.nodes.get_mut(slave) {
            node.ready = true;
            if let Some((at, _)) = node.announce.take() {
                self.timers.remove(&(at, Timer::Announce(slave.clone())));
            }
        }
        let open = self.nodes.get(slave).map(|node| node.open.clone()).unwrap_or_default();
        for id in open {
            if self.task(id).is_some_and(|task| task.cancel) || self.recalled.contains(&id) {
                self.send_cancel(now, id, effects);
            } else {
                // An offer of this session from before a restart is made again, in vain if it has come.
                self.arm(id);
            }
        }
        self.hungry.insert(slave.clone());
    }
}
