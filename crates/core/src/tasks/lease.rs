//! How long attempts are waited for, and what is said again meanwhile.

use rpicluster_protocol::limits::{RESEND_MAX, RESEND_MIN};
use rpicluster_protocol::{AttemptKey, LeasedAttempt, SlaveId, TaskCancel, TaskId, TaskLease, TaskState};

use super::{Cause, Effects, Node, Now, TaskEffect, Tasks, Timer, master_lease};

impl Tasks {
    pub(super) fn renew(&mut self, now: Now, slave: SlaveId, lease: TaskLease, effects: &mut Effects) {
        let until = now.moment + master_lease(self.lease);
        let mut renewed = Vec::new();
        for attempt in lease.attempts {
            let LeasedAttempt { task: id, attempt: number } = attempt;
            let is_latest = lease.epoch == self.epoch && self.task(id).is_some_and(|task| task.attempt == number);
            match self.open.get_mut(&id).filter(|open| is_latest && open.slave == slave) {
                Some(open) => {
                    open.lease_until = until;
                    renewed.push(attempt);
                }
                // It is not known, or was given up.
                None => {
                    let key = AttemptKey { task: id, attempt: number, epoch: lease.epoch };
                    let has_ended = is_latest
                        && self.task(id).is_some_and(|task| task.state.has_ended() && task.state != TaskState::Lost);
                    if !has_ended {
                        effects.push(TaskEffect::Cancel(slave.clone(), TaskCancel { key }));
                    }
                }
            }
        }
        effects.push(TaskEffect::LeaseAck(slave, TaskLease { attempts: renewed, ..lease }));
    }

    /// The timer of an open attempt: its lease is over, or something is to be said again, or neither yet.
    pub(super) fn attempt_due(&mut self, now: Now, id: TaskId, effects: &mut Effects) {
        let Some(open) = self.open.get_mut(&id) else { return };
        if open.lease_until <= now.moment {
            if let Some(finished) = open.pending.take() {
                // Its end is known; that output is missing is shown.
                if let Some(task) = self.task_mut(id) {
                    task.gap = true;
                }
                return self.settle(now, id, finished, effects);
            }
            if let Some(task) = self.task_mut(id) {
                task.reason = Some("its lease is over: nothing was heard of it".to_owned());
            }
            return self.lose(now, id, Cause::Lost, effects);
        }
        if let Some((at, wait)) = open.resend
            && at <= now.moment
        {
            let wait = (wait * 2).min(RESEND_MAX);
            open.resend = Some((now.moment + wait, wait));
            let slave = open.slave.clone();
            self.say_again(now, id, slave, effects);
        }
        self.arm(id);
    }

    pub(super) fn say_again(&self, now: Now, id: TaskId, slave: SlaveId, effects: &mut Effects) {
        let (Some(key), Some(task), Some(open)) = (self.key(id), self.task(id), self.open.get(&id)) else { return };
        let Some(node) = self.nodes.get(&slave).filter(|node| node.hears()) else { return };
        // Of the lease, what is left: the master does not wait longer because it has said something twice.
        let lease = open.lease_until.since(now.moment).saturating_sub(master_lease(self.lease) - self.lease);
        if task.cancel || self.recalled.contains(&id) {
            effects.push(TaskEffect::Cancel(slave, TaskCancel { key }));
        } else if task.state == TaskState::Offered
            && !lease.is_zero()
            && let Some(session) = node.session.clone()
            && let Some(offer) = self.offer(id, key, session, lease)
        {
            effects.push(TaskEffect::Offer(slave, offer));
        }
    }

    /// Keeps one entry in the table of timers for an open attempt.
    pub(super) fn arm(&mut self, id: TaskId) {
        let Some(open) = self.open.get_mut(&id) else { return };
        self.timers.remove(&(open.timer, Timer::Attempt(id)));
        open.timer = open.resend.map_or(open.lease_until, |(at, _)| at.min(open.lease_until));
        self.timers.insert((open.timer, Timer::Attempt(id)));
    }

    /// The attempt is not with a slave any more.
    pub(super) fn close(&mut self, id: TaskId) {
        let Some(open) = self.open.remove(&id) else { return };
        self.timers.remove(&(open.timer, Timer::Attempt(id)));
        if let Some(node) = self.nodes.get_mut(&open.slave) {
            node.open.remove(&id);
            node.alone.take_if(|alone| *alone == id);
        }
        self.hungry.insert(open.slave);
    }

    /// Asks the slave of an open attempt to end it.
    pub(super) fn cancel(&mut self, now: Now, id: TaskId, effects: &mut Effects) {
        let Some(task) = self.task_mut(id) else { return };
        if !task.is_open() {
            return;
        }
        if !task.cancel {
            task.cancel = true;
            effects.push(TaskEffect::RememberTask(id));
        }
        self.send_cancel(now, id, effects);
    }

    pub(super) fn send_cancel(&mut self, now: Now, id: TaskId, effects: &mut Effects) {
        let Some(key) = self.key(id) else { return };
        let Some(open) = self.open.get_mut(&id) else { return };
        // A slave that is away is told after its journal.
        if self.nodes.get(&open.slave).is_some_and(Node::hears) {
            effects.push(TaskEffect::Cancel(open.slave.clone(), TaskCancel { key }));
            open.resend = Some((now.moment + RESEND_MIN, RESEND_MIN));
            self.arm(id);
        }
    }
}
