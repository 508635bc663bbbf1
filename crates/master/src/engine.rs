//! The one thread that owns core and store: inputs in, decisions made, what must last written, effects out.
//!
//! It never waits on output. What a full queue does not take stays owed and is made again from what holds then.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use rpicluster_core::{Effect, Input as Core, Moment, Presence, Record};
use rpicluster_protocol::{Liveness, SlaveId, State, Timestamp};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tracing::{info, warn};

use crate::clock;
use crate::commands::Command;
use crate::counters::MasterCounters;
use crate::health::{BEAT_INTERVAL, Health};
use crate::loglimit::SharedLogLimit;
use crate::store::{Store, StoredSlave};
use crate::tasks::RunError;
use crate::view::View;

/// How many inputs are waiting at most; handlers of slaves wait beyond.
pub(crate) const INPUTS_MAX: usize = 10_000;

/// How many inputs share one step.
const BATCH_MAX: usize = 512;

/// Presence and details are written at most this often: an SD card wears out by commits.
const SAVE_INTERVAL: Duration = Duration::from_secs(10);

/// Whoever was away for longer could not hear: silence during that time says nothing.
const PAUSE_MIN: Duration = Duration::from_secs(1);

/// What handlers and bus tell the engine, with the time when the bus took the message.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Input {
    /// A slave's `state`, of a protocol version that this master speaks.
    Claim { slave: SlaveId, state: State, at: Moment },
    /// A sign of life that the engine had asked for.
    Sign { slave: SlaveId, at: Moment },
    /// The slave's details in the view are new.
    Details { slave: SlaveId },
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
    unsaved: BTreeSet<SlaveId>,
    saved_at: Moment,
    rewrites_owed: BTreeSet<SlaveId>,
    announces_owed: BTreeSet<SlaveId>,
    /// When bus and engine were last known to run, both.
    sound_at: Moment,
}

/// What the engine works with.
pub(crate) struct Surroundings {
    pub(crate) view: Arc<View>,
    pub(crate) health: Arc<Health>,
    pub(crate) counters: Arc<MasterCounters>,
    pub(crate) log: Arc<SharedLogLimit>,
    pub(crate) commands: mpsc::Sender<Command>,
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
        let Surroundings { view, health, counters, log, commands } = surroundings;
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
            unsaved: BTreeSet::new(),
            saved_at: now,
            rewrites_owed: BTreeSet::new(),
            announces_owed: BTreeSet::new(),
            sound_at: now,
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
        self.save();
        Ok(())
    }

    /// Takes a batch of inputs; judges silence if there are `no_more`.
    fn step(&mut self, batch: &mut Vec<Input>, no_more: bool, now: Moment, wall: Timestamp) {
        let hears = self.notice_pause(now);
        for input in batch.drain(..) {
            self.take(input);
        }
        if no_more && hears {
            self.judge_silence(now);
        }
        self.apply(now, wall);
        if now.since(self.saved_at) >= SAVE_INTERVAL && !self.unsaved.is_empty() {
            self.save();
            self.saved_at = now;
        }
        self.pay();
        self.health.engine.beat(now);
    }

    fn wait(&self, now: Moment) -> Duration {
        let deadline = self.presence.poll_timeout().map_or(BEAT_INTERVAL, |deadline| deadline.since(now));
        // A due deadline that may not be judged yet must not become a busy loop.
        deadline.clamp(Duration::from_millis(10), BEAT_INTERVAL)
    }

    fn take(&mut self, input: Input) {
        let (at, input) = match input {
            // The embedded broker sends the master no kept copies: everything is said now.
            Input::Claim { slave, state, at } => (at, Core::Claim { slave, state, retained: false }),
            Input::Sign { slave, at } => (at, Core::Sign { slave }),
            Input::Details { slave } => {
                self.unsaved.insert(slave);
                return;
            }
        };
        self.presence.handle(at, input, &mut self.effects);
    }

    /// Tells core when bus or engine was away (stopped, suspended, a slow commit). Returns whether the bus hears now.
    fn notice_pause(&mut self, now: Moment) -> bool {
        if self.health.bus.age(now) > PAUSE_MIN {
            return false;
        }
        let gap = now.since(self.sound_at);
        self.sound_at = now;
        if gap > PAUSE_MIN {
            warn!(gap_ms = gap.as_millis() as u64, "the master was away: slaves get as much more time to be heard");
            for slave in self.view.all() {
                self.presence.heard(&slave.id, slave.pulse.heard());
            }
            self.presence.handle(now, Core::Paused(gap), &mut self.effects);
        }
        true
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
    }

    fn report(&self, slave: &SlaveId, state: Liveness, reason: Option<&str>, now: Moment) {
        let Some(permit) = self.log.permit(now) else { return };
        let suppressed = permit.suppressed();
        match state {
            Liveness::Online => info!(%slave, suppressed, "slave is online"),
            Liveness::Offline => info!(%slave, reason = reason.unwrap_or("unknown"), suppressed, "slave is offline"),
        }
    }

    /// One transaction for all that changed. What cannot be written stays and is tried again.
    fn save(&mut self) {
        let rows: Vec<StoredSlave> = self.unsaved.iter().filter_map(|id| self.row(id)).collect();
        match self.store.save(&rows) {
            Ok(()) => self.unsaved.clear(),
            Err(error) => {
                self.counters.store_failures.count();
                warn!(%error, slaves = rows.len(), "presence is not saved yet: trying again");
            }
        }
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
    }
}

fn offer(commands: &mpsc::Sender<Command>, command: Command) -> bool {
    // A closed queue means that the master stops: nothing is owed any more.
    !matches!(commands.try_send(command), Err(TrySendError::Full(_)))
}

#[cfg(test)]
mod tests;
