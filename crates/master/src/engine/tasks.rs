//! The engine's half for tasks: what slaves and people say goes to core; what follows is written with the rest of the
//! batch, and only then said to anybody.
//!
//! While the store cannot be written, slaves' events and output are left to be repeated and people are refused; presence,
//! journals and leases go on, so that what runs goes on running.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

use rpicluster_core::Moment;
use rpicluster_core::tasks::{JobRecord, KEPT_TASKS_MAX, Now, Slots, TaskEffect, TaskInput, Tasks};
use rpicluster_protocol::limits::{LEASE, SLOTS_MAX};
use rpicluster_protocol::{
    AttemptKey, Epoch, JobId, JobState, JournalEntry, JournalId, SessionId, SlaveId, TaskFinished, TaskId, TaskLease,
    TaskOutput,
};
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use crate::board::Board;
use crate::letters::Letter;
use crate::store::{Deed, Store, StoreError, StoredJob, Totals};
use crate::view::{Slave, SlaveWork, View};

mod ask;
mod commit;
mod outgoing;

pub(crate) use ask::{Ask, AskError, Done, Submission};
use ask::{Submitted, Waiter};
pub(crate) use commit::write_event;
use outgoing::Outgoing;

/// How long to wait before what could not be written is tried again.
const RETRY_PAUSE: Duration = Duration::from_secs(2);

/// How often what slaves have open is shown anew.
const SHOW_INTERVAL: Duration = Duration::from_millis(250);

/// What a slave says of its tasks.
#[derive(Debug)]
pub(crate) enum TaskNews {
    /// Its whole journal.
    Journal(SessionId, JournalId, Vec<JournalEntry>),
    /// Events of attempts.
    Events(Vec<JournalEntry>),
    /// Pieces of output, and the room in memory that they take.
    Output(Vec<TaskOutput>, Option<OwnedSemaphorePermit>),
    /// Leases to be renewed.
    Lease(TaskLease),
}

/// What bounds the store.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TaskLimits {
    /// Ended jobs that are kept.
    pub(crate) jobs_max: usize,
    /// Bytes of output that are kept, of all jobs together.
    pub(crate) output_bytes_max: u64,
}

/// See the module.
pub(crate) struct TaskDesk {
    tasks: Tasks,
    board: Arc<Board>,
    letters: mpsc::Sender<Letter>,
    limits: TaskLimits,
    totals: Totals,
    /// Of all that is kept.
    output_bytes: u64,
    effects: Vec<TaskEffect>,
    unsaved: Unsaved,
    /// To be said once what is unsaved is written.
    held: Outgoing,
    /// To be said.
    owed: Outgoing,
    /// Unended jobs of whose output something is not kept.
    cut: HashSet<JobId>,
    /// When to try again what could not be written.
    retry_at: Option<Moment>,
    /// Slaves that are online, with their slots.
    online: BTreeMap<SlaveId, Slots>,
    /// Those whose journal has not come, and who are to be asked for it.
    silent: BTreeSet<SlaveId>,
    /// What is shown of slaves' tasks may have changed.
    show: bool,
    shown_at: Moment,
}

/// What is to be written.
#[derive(Debug, Default)]
struct Unsaved {
    submitted: BTreeMap<JobId, Submitted>,
    jobs: BTreeSet<JobId>,
    tasks: BTreeSet<TaskId>,
    nodes: BTreeSet<SlaveId>,
    late_results: BTreeMap<AttemptKey, TaskFinished>,
    output: Vec<TaskOutput>,
    output_bytes: u64,
    /// How many bytes of output can be kept, if that was counted since the last transaction.
    room: Option<u64>,
    cut: BTreeSet<JobId>,
    deeds: Vec<Deed>,
    waiters: Vec<Waiter>,
}

impl TaskDesk {
    /// Goes on where the store left off.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub(crate) fn open(
        store: &Store,
        limits: TaskLimits,
        board: Arc<Board>,
        letters: mpsc::Sender<Letter>,
        now: Now,
    ) -> Result<TaskDesk, StoreError> {
        let totals = store.totals()?;
        let mut desk = TaskDesk {
            tasks: Tasks::new(Epoch(store.epoch()?), LEASE),
            board,
            letters,
            limits,
            output_bytes: totals.output.values().sum(),
            totals,
            effects: Vec::new(),
            unsaved: Unsaved::default(),
            held: Outgoing::default(),
            owed: Outgoing::default(),
            cut: HashSet::new(),
            retry_at: None,
            online: BTreeMap::new(),
            silent: BTreeSet::new(),
            show: true,
            shown_at: now.moment,
        };
        store.task_nodes()?.into_iter().for_each(|node| desk.tasks.restore_node(node));
        for job in store.unsettled_jobs(KEPT_TASKS_MAX)? {
            desk.restore(store, job, now)?;
        }
        desk.collect();
        Ok(desk)
    }

    /// By which store attempts are.
    pub(crate) fn epoch(&self) -> Epoch {
        self.tasks.epoch()
    }

    /// Takes a job back from the store; tells whether it is there.
    fn restore(&mut self, store: &Store, job: JobId, now: Now) -> Result<bool, StoreError> {
        let Some((stored, spec, tasks)) = store.job(job)? else { return Ok(false) };
        let StoredJob { row, submitted, output_dropped, .. } = stored;
        if output_dropped {
            self.cut.insert(job);
        }
        let record = JobRecord { job, spec, canceled: row.canceled, submitted, ended: row.ended };
        self.tasks.restore_job(now, record, tasks, &mut self.effects);
        self.post(job);
        Ok(true)
    }

    /// A slave has come, gone or said again how many slots it has.
    pub(super) fn presence(&mut self, slave: &SlaveId, session: Option<(SessionId, Slots)>, now: Now) {
        self.show = true;
        let input = match session {
            Some((session, slots)) => {
                let Slots { at_once, ahead } = slots;
                let slots = Slots { at_once: at_once.min(SLOTS_MAX), ahead: ahead.min(SLOTS_MAX) };
                self.online.insert(slave.clone(), slots);
                TaskInput::SlaveUp(slave.clone(), session, slots)
            }
            None => {
                if self.online.remove(slave).is_none() {
                    return;
                }
                TaskInput::SlaveDown(slave.clone())
            }
        };
        self.handle(now, input);
    }

    /// A slave is no more of the cluster.
    pub(super) fn removed(&mut self, slave: &SlaveId, now: Now) {
        self.online.remove(slave);
        self.handle(now, TaskInput::SlaveRemoved(slave.clone()));
    }

    /// A slave tells of its tasks.
    pub(super) fn news(&mut self, slave: &SlaveId, news: TaskNews, now: Now) {
        let is_failing = self.is_failing(now.moment);
        match news {
            TaskNews::Journal(session, journal, entries) => {
                self.handle(now, TaskInput::Journal(slave.clone(), session, journal, entries));
            }
            TaskNews::Lease(lease) => self.handle(now, TaskInput::Lease(slave.clone(), lease)),
            // Neither is acknowledged, so that both come again.
            TaskNews::Events(_) | TaskNews::Output(..) if is_failing => {}
            TaskNews::Events(events) => {
                for event in events {
                    self.handle(now, TaskInput::Event(slave.clone(), event));
                }
            }
            TaskNews::Output(pieces, _room) => {
                for piece in pieces {
                    self.handle(now, TaskInput::Output(slave.clone(), piece));
                }
            }
        }
    }

    /// When [`TaskDesk::timeout`] should be called next.
    pub(super) fn poll_timeout(&self, now: Moment) -> Option<Moment> {
        self.tasks.poll_timeout().filter(|_| !self.is_failing(now))
    }

    /// Does what is due. Not to be called while inputs wait.
    pub(super) fn timeout(&mut self, now: Now) {
        if self.poll_timeout(now.moment).is_some_and(|due| due <= now.moment) {
            self.tasks.timeout(now, &mut self.effects);
            self.collect();
        }
    }

    /// The master was away for so long: nobody could be heard.
    pub(super) fn paused(&mut self, gap: Duration, now: Now) {
        self.handle(now, TaskInput::Paused(gap));
    }

    /// Slaves that should send their journal again: it was shed, or lost with an external broker.
    pub(super) fn ask_for_journals(&mut self) -> BTreeSet<SlaveId> {
        std::mem::take(&mut self.silent)
    }

    /// Hands out what is owed, as far as the queue takes it, and shows what slaves have open.
    pub(super) fn pay(&mut self, view: &View, now: Moment) {
        self.owed.pay(&self.letters, now);
        if self.show && now.since(self.shown_at) >= SHOW_INTERVAL {
            (self.show, self.shown_at) = (false, now);
            view.all().iter().for_each(|slave| self.show_work(slave));
        }
    }

    /// Shows what a slave has to do with tasks.
    fn show_work(&self, slave: &Slave) {
        let drain = self.tasks.node(&slave.id).and_then(|node| node.drain);
        let open = self.tasks.open_attempts(&slave.id);
        slave.set_work(SlaveWork { slots: self.online.get(&slave.id).map(|slots| slots.at_once), open, drain });
    }

    /// When something is to be said or written.
    pub(super) fn busy_at(&self, now: Moment) -> Option<Moment> {
        self.owed.poll_timeout().into_iter().chain(self.wants_save(now).then_some(now)).min()
    }

    /// The store could not be written, and it is not time to try again, or what waits for that comes first.
    fn is_failing(&self, now: Moment) -> bool {
        self.retry_at.is_some_and(|at| at > now || !self.unsaved.is_empty())
    }

    fn handle(&mut self, now: Now, input: TaskInput) {
        self.tasks.handle(now, input, &mut self.effects);
        self.collect();
    }

    /// Notes what follows from an input.
    fn collect(&mut self) {
        if !self.effects.is_empty() {
            self.show = true;
        }
        for effect in std::mem::take(&mut self.effects) {
            match effect {
                TaskEffect::RememberJob(job) => drop(self.unsaved.jobs.insert(job)),
                TaskEffect::RememberTask(task) => {
                    self.unsaved.tasks.insert(task);
                    // What comes late changes how an ended job is counted.
                    let has_ended = self.tasks.job_state(task.job).is_some_and(|(state, _)| state != JobState::Active);
                    if has_ended {
                        self.unsaved.jobs.insert(task.job);
                    }
                }
                TaskEffect::RememberNode(slave) => drop(self.unsaved.nodes.insert(slave)),
                TaskEffect::Output(piece) => self.output(piece),
                TaskEffect::LateResult(result) => drop(self.unsaved.late_results.insert(result.key, *result)),
                TaskEffect::Announce(slave) => drop(self.silent.insert(slave)),
                // It says what holds already, and what runs must not die of a full disk.
                effect @ TaskEffect::LeaseAck(..) if self.retry_at.is_some() => drop(self.owed.take(effect)),
                effect => drop(self.held.take(effect)),
            }
        }
    }

    /// Keeps a piece of output within what its task and all together may keep.
    fn output(&mut self, mut piece: TaskOutput) {
        let id = piece.key.task;
        let spec = self.tasks.job(id.job).map(|job| job.spec);
        let step = spec.as_ref().and_then(|spec| spec.steps.get(spec.locate(id.index)?.0 as usize));
        let limit = step.map_or(0, |step| step.spec.output_limit);
        // The slave cuts it there itself; one that does not gains nothing.
        let left = limit.saturating_sub(piece.offset);
        piece.data.truncate(usize::try_from(left).unwrap_or(usize::MAX));
        let bytes = piece.data.len() as u64;
        if bytes == 0 {
            return;
        }
        if self.unsaved.output_bytes + bytes > self.room_for_output() {
            self.cut.insert(id.job);
            self.unsaved.cut.insert(id.job);
            return;
        }
        self.unsaved.output_bytes += bytes;
        self.unsaved.output.push(piece);
    }

    /// How many bytes of output can be kept until the next transaction: output of ended jobs makes room for that of others.
    fn room_for_output(&mut self) -> u64 {
        let (totals, all, limit) = (&self.totals, self.output_bytes, self.limits.output_bytes_max);
        *self.unsaved.room.get_or_insert_with(|| {
            let of_ended: u64 = totals.ended.iter().filter_map(|job| totals.output.get(job)).sum();
            limit.saturating_sub(all.saturating_sub(of_ended))
        })
    }
}

#[cfg(test)]
pub(crate) mod tests;
