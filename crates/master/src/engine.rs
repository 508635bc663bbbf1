//! The one thread that owns core and store: inputs in, decisions made, what must last written, effects out.
//!
//! It never waits on output. What a full queue does not take stays owed and is made again from what holds then.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rpicluster_core::tasks::{Now, Slots};
use rpicluster_core::{Effect, Input as Core, Moment, Presence, Record};
use rpicluster_protocol::{Liveness, SlaveId, State, Timestamp};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot};
use tracing::{info, warn};

use crate::access::Change;
use crate::clock;
use crate::commands::Command;
use crate::counters::MasterCounters;
use crate::health::{BEAT_INTERVAL, Health};
use crate::loglimit::{Permit, SharedLogLimit};
use crate::store::{Store, StoredSlave};
use crate::tasks::RunError;
use crate::view::{Slave, View};

pub(crate) mod tasks;
use tasks::{Ask, TaskDesk, TaskNews};

/// How many inputs are waiting at most; handlers of slaves wait beyond.
pub(crate) const INPUTS_MAX: usize = 10_000;

/// How many inputs share one step.
const BATCH_MAX: usize = 512;

/// Presence and details are written at most this often: an SD card wears out by commits.
const SAVE_INTERVAL: Duration = Duration::from_secs(10);

/// Whoever was away for longer could not hear: silence during that time says nothing.
const PAUSE_MIN: Duration = Duration::from_secs(1);

/// What the engine is told. What handlers and bus say bears the time when the bus took the message, and the slave itself:
/// one that was removed meanwhile is another than one that came back under its id.
#[derive(Debug)]
pub(crate) enum Input {
    /// A slave's `state`, of a protocol version that this master speaks.
    /// `retained` is a copy that an external broker kept; the embedded one sends its master none.
    Claim { slave: Arc<Slave>, state: State, retained: bool, at: Moment },
    /// A sign of life that the engine had asked for.
    Sign { slave: Arc<Slave>, at: Moment },
    /// The slave's details in the view are new.
    Details { slave: Arc<Slave> },
    /// Access changes: to be written at once. A slave that is removed is forgotten with that.
    Commit { changes: Vec<Change>, done: oneshot::Sender<Result<(), NotWritten>> },
    /// What a slave says of its tasks.
    Tasks { slave: Arc<Slave>, news: TaskNews },
    /// What somebody asks for with regard to tasks.
    Ask(Ask),
    /// A removed slave has no sessions any more: its retained messages are to go, the last of them with this mark.
    Farewell { slave: SlaveId, mark: Bytes },
}

/// The store could not write a change, which therefore does not hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the store cannot be written, so that nothing was changed: the master's log says why")]
pub(crate) struct NotWritten;

/// Changes, and who waits for them to be durable.
#[derive(Debug)]
struct Commit {
    changes: Vec<Change>,
    done: oneshot::Sender<Result<(), NotWritten>>,
}

/// See the module.
pub(crate) struct Engine {
    presence: Presence,
    store: Store,
    view: Arc<View>,
    health: Arc<Health>,
    counters: Arc<MasterCounters>,
    log: Arc<SharedLogLimit>,
    commands: mpsc::Sender<Command>,
    effects: Vec<Effect>,
    desk: TaskDesk,
    /// Of which tasks should know whether they are there.
    stirred: BTreeSet<SlaveId>,
    unsaved: BTreeSet<SlaveId>,
    saved_at: Moment,
    commits: Vec<Commit>,
    rewrites_owed: BTreeSet<SlaveId>,
    announces_owed: BTreeSet<SlaveId>,
    farewells_owed: BTreeMap<SlaveId, Bytes>,
    /// When bus, engine and broker were last known to be well, all of them.
    sound_at: Moment,
    /// Until then all that slaves said was heard, or they were given time for what was not.
    heard_until: Moment,
    /// Which connection to an external broker is the one we hear.
    connection: u64,
}

/// What the engine works with.
pub(crate) struct Surroundings {
    pub(crate) view: Arc<View>,
    pub(crate) health: Arc<Health>,
    pub(crate) counters: Arc<MasterCounters>,
    pub(crate) log: Arc<SharedLogLimit>,
    pub(crate) commands: mpsc::Sender<Command>,
    pub(crate) desk: TaskDesk,
}

impl Engine {
    /// An engine that knows what `records` remember, at `now`.
    pub(crate) fn new(
        timeout: Duration,
        store: Store,
        records: Vec<Record>,
        surroundings: Surroundings,
        now: Moment,
    ) -> Engine {
        let Surroundings { view, health, counters, log, commands, desk } = surroundings;
        let mut presence = Presence::new(timeout);
        let mut effects = Vec::new();
        for record in records {
            presence.restore(now, record, &mut effects);
        }
        Engine {
            presence,
            store,
            view,
            health,
            counters,
            log,
            commands,
            effects,
            desk,
            stirred: BTreeSet::new(),
            unsaved: BTreeSet::new(),
            saved_at: now,
            commits: Vec::new(),
            rewrites_owed: BTreeSet::new(),
            announces_owed: BTreeSet::new(),
            farewells_owed: BTreeMap::new(),
            sound_at: now,
            heard_until: now,
            connection: 0,
        }
    }

    /// Runs on the calling thread until nobody can send inputs any more; then everything is saved.
    ///
    /// # Errors
    /// If the system gives no timer.
    pub(crate) fn run(mut self, mut inputs: mpsc::Receiver<Input>) -> Result<(), RunError> {
        // A timer of its own: the master's runtime may be on its way down while the engine still saves.
        let timer = tokio::runtime::Builder::new_current_thread().enable_time().build();
        let timer = timer.map_err(|error| RunError::Failed { task: "engine", problem: error.to_string() })?;
        let mut batch = Vec::with_capacity(BATCH_MAX);
        loop {
            let wait = self.wait(clock::now());
            let received =
                timer.block_on(async { tokio::time::timeout(wait, inputs.recv_many(&mut batch, BATCH_MAX)).await });
            self.step(&mut batch, inputs.is_empty(), clock::now(), clock::wall());
            if received == Ok(0) {
                break;
            }
        }
        self.save(clock::now(), clock::wall());
        Ok(())
    }

    /// Takes a batch of inputs; judges silence if there are `no_more`.
    fn step(&mut self, batch: &mut Vec<Input>, no_more: bool, now: Moment, wall: Timestamp) {
        let heard_until = self.notice_pause(now, wall);
        for input in batch.drain(..) {
            self.take(input, now, wall);
        }
        if let Some(heard_until) = heard_until.filter(|_| no_more) {
            self.judge_silence(heard_until);
        }
        self.apply(now, wall);
        if no_more && heard_until.is_some() {
            self.desk.timeout(Now { moment: now, wall });
        }
        let is_due = now.since(self.saved_at) >= SAVE_INTERVAL && !self.unsaved.is_empty();
        if is_due || !self.commits.is_empty() || self.desk.wants_save(now) {
            self.save(now, wall);
        }
        // What is owed is not said to a broker that is away: it is made of what holds when that is back.
        if heard_until.is_some() {
            self.announces_owed.extend(self.desk.ask_for_journals());
            self.pay();
            self.desk.pay(&self.view, now);
        }
        self.health.engine.beat(now);
    }

    fn wait(&self, now: Moment) -> Duration {
        let hears = self.health.hearing.until(now).is_some();
        let due = self.presence.poll_timeout().into_iter().chain(self.desk.poll_timeout(now)).min();
        let due = due.filter(|_| hears).unwrap_or(now + BEAT_INTERVAL);
        let deadline = self.desk.busy_at(now).map_or(due, |busy| busy.min(due)).since(now);
        // A due deadline that may not be judged yet must not become a busy loop.
        deadline.clamp(Duration::from_millis(10), BEAT_INTERVAL)
    }

    fn take(&mut self, input: Input, now: Moment, wall: Timestamp) {
        match input {
            Input::Claim { slave, .. }
            | Input::Sign { slave, .. }
            | Input::Details { slave }
            | Input::Tasks { slave, .. }
                if slave.is_removed() => {}
            Input::Claim { slave, state, retained, at } => {
                let claim = Core::Claim { slave: slave.id.clone(), state, retained };
                self.presence.handle(at, claim, &mut self.effects);
                self.stirred.insert(slave.id.clone());
            }
            Input::Tasks { slave, news } => {
                // Its session is known before anything of that session is.
                self.apply(now, wall);
                self.desk.news(&slave.id, news, Now { moment: now, wall });
            }
            Input::Ask(ask) => self.desk.ask(ask, &self.store, Now { moment: now, wall }),
            Input::Sign { slave, at } => {
                self.presence.handle(at, Core::Sign { slave: slave.id.clone() }, &mut self.effects);
            }
            Input::Details { slave } => drop(self.unsaved.insert(slave.id.clone())),
            Input::Commit { changes, done } => self.commits.push(Commit { changes, done }),
            Input::Farewell { slave, mark } => drop(self.farewells_owed.insert(slave, mark)),
        }
    }

    /// Tells core when bus or engine was away (stopped, suspended, a slow commit), or an external broker. Returns until when
    /// slaves have been heard; nothing while nobody can be.
    fn notice_pause(&mut self, now: Moment, wall: Timestamp) -> Option<Moment> {
        if self.health.bus.age(now) > PAUSE_MIN {
            return None;
        }
        let (connection, heard_until) = self.health.hearing.until(now)?;
        let broker_is_back = std::mem::replace(&mut self.connection, connection) != connection;
        let was_away = now.since(std::mem::replace(&mut self.sound_at, now)) > PAUSE_MIN;
        if !broker_is_back && !was_away {
            self.heard_until = self.heard_until.max(heard_until);
            return Some(self.heard_until);
        }
        let gap = now.since(std::mem::replace(&mut self.heard_until, now));
        self.desk.paused(gap, Now { moment: now, wall });
        for slave in self.view.all() {
            self.presence.heard(&slave.id, slave.pulse.heard());
        }
        if broker_is_back {
            self.presence.handle(now, Core::BrokerBack(gap), &mut self.effects);
            // They may have been lost with the connection before.
            self.farewells_owed.extend(self.view.farewells());
        } else {
            warn!(gap_ms = gap.as_millis() as u64, "the master was away: slaves get as much more time to be heard");
            self.presence.handle(now, Core::Paused(gap), &mut self.effects);
        }
        Some(now)
    }

    fn judge_silence(&mut self, now: Moment) {
        let due: Vec<SlaveId> = self.presence.due(now).cloned().collect();
        for id in due {
            if let Some(slave) = self.view.get(id.as_str()) {
                self.presence.heard(&id, slave.pulse.heard());
            }
        }
        self.presence.timeout(now, &mut self.effects);
    }

    fn apply(&mut self, now: Moment, wall: Timestamp) {
        // A sign of life that came meanwhile is handled at once, and has effects of its own.
        while !self.effects.is_empty() {
            for effect in std::mem::take(&mut self.effects) {
                match effect {
                    Effect::Changed { slave, state, reason, session } => {
                        // The bus lists a slave before anything of it comes here; one that it refused is none of ours.
                        let Some(slave) = self.view.get(slave.as_str()) else { continue };
                        if slave.set_presence(state, reason.clone(), session, wall) {
                            self.report(&slave.id, state, reason.as_deref(), now);
                        }
                        self.stirred.insert(slave.id.clone());
                    }
                    Effect::Announce { slave } => drop(self.announces_owed.insert(slave)),
                    Effect::RewriteRetained { slave } => drop(self.rewrites_owed.insert(slave)),
                    Effect::Remember { slave } => drop(self.unsaved.insert(slave)),
                    Effect::Listen { slave: id, from } => {
                        let Some(slave) = self.view.get(id.as_str()) else { continue };
                        if let Some(at) = slave.pulse.listen(from) {
                            self.presence.handle(at, Core::Sign { slave: id }, &mut self.effects);
                        }
                    }
                }
            }
        }
        for slave in std::mem::take(&mut self.stirred) {
            let record = self.presence.record(&slave).filter(|record| record.liveness == Liveness::Online);
            let session = record.and_then(|record| record.claim).map(|claim| {
                let (at_once, ahead) = (claim.slots.unwrap_or(0), claim.ahead.unwrap_or(0));
                (claim.session, Slots { at_once, ahead })
            });
            self.desk.presence(&slave, session, Now { moment: now, wall });
        }
    }

    fn report(&self, slave: &SlaveId, state: Liveness, reason: Option<&str>, now: Moment) {
        let Some(permit) = self.log.permit(now) else { return };
        let suppressed = permit.suppressed();
        match state {
            Liveness::Online => info!(%slave, suppressed, "slave is online"),
            Liveness::Offline => info!(%slave, reason = reason.unwrap_or("unknown"), suppressed, "slave is offline"),
        }
    }

    /// One transaction for all that changed. What is known of slaves and cannot be written stays and is tried again; who
    /// waits for a change of access is told.
    fn save(&mut self, now: Moment, wall: Timestamp) {
        self.saved_at = now;
        let rows: Vec<StoredSlave> = self.unsaved.iter().filter_map(|id| self.row(id)).collect();
        let commits = std::mem::take(&mut self.commits);
        let changes = commits.iter().flat_map(|commit| &commit.changes);
        let saved = match self.store.save_all(&rows, changes, &self.desk.rows()) {
            Ok(swept) => {
                self.unsaved.clear();
                self.desk.saved(swept, &self.view);
                Ok(())
            }
            Err(error) => {
                self.desk.not_saved(now);
                self.counters.store_failures.count();
                if let Some(suppressed) = self.log.permit(now).map(Permit::suppressed) {
                    let (slaves, changes) = (rows.len(), commits.len());
                    warn!(%error, slaves, changes, suppressed, "cannot save: all but changes of access is tried again");
                }
                Err(error)
            }
        };
        for Commit { changes, done } in commits {
            if saved.is_ok() {
                changes.iter().for_each(|change| self.committed(change, Now { moment: now, wall }));
            }
            // Who waited may have gone with the runtime: what is written holds at the next start.
            let _ = done.send(saved.as_ref().map(drop).map_err(|_| NotWritten));
        }
    }

    /// What follows, for those who are known, from a change that was written.
    fn committed(&mut self, change: &Change, now: Now) {
        let Change::SlaveRemoved(id) = change else { return };
        // The view first: whatever is still said in its name is known by that to be nobody's.
        self.view.remove(id);
        // That its row is to go is all that follows, and it is gone.
        self.presence.handle(now.moment, Core::Remove { slave: id.clone() }, &mut Vec::new());
        self.unsaved.remove(id);
        self.rewrites_owed.remove(id);
        self.announces_owed.remove(id);
        self.desk.removed(id, now);
    }

    fn row(&self, id: &SlaveId) -> Option<StoredSlave> {
        let slave = self.view.get(id.as_str())?;
        slave.saving_details();
        let latest = slave.latest();
        let record = self.presence.record(id)?;
        Some(StoredSlave { record, since: latest.since, details: latest.details.as_deref().cloned() })
    }

    /// Hands out what is owed, as far as the queue takes it.
    fn pay(&mut self) {
        while let Some(slave) = self.rewrites_owed.first() {
            if let Some(truth) = self.presence.truth(slave)
                && !offer(&self.commands, Command::RewriteRetained(slave.clone(), truth))
            {
                return;
            }
            self.rewrites_owed.pop_first();
        }
        while let Some(slave) = self.announces_owed.first() {
            if !offer(&self.commands, Command::Announce(slave.clone())) {
                return;
            }
            self.announces_owed.pop_first();
        }
        while let Some((slave, mark)) = self.farewells_owed.first_key_value() {
            if !offer(&self.commands, Command::Farewell(slave.clone(), mark.clone())) {
                return;
            }
            self.farewells_owed.pop_first();
        }
    }
}

fn offer(commands: &mpsc::Sender<Command>, command: Command) -> bool {
    // A closed queue means that the master stops: nothing is owed any more.
    !matches!(commands.try_send(command), Err(TrySendError::Full(_)))
}

#[cfg(test)]
mod tests;
