//! Who is online: the rules of `docs/protocol.md`, section Presence.
//!
//! A slave's newest session decides. What it says itself (`online`, its will, a clean `offline`) is believed at once; what
//! an older session still says is ignored; and a slave of which nothing comes is offline by silence until anything comes.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use rpicluster_protocol::limits::{ANNOUNCE_JITTER_MAX, SUPERSEDED_SESSIONS_MAX};
use rpicluster_protocol::{Liveness, SessionId, SlaveId, State};

use crate::Moment;

/// Reason of a slave of which nothing came for the presence timeout, also in a retained state written by the master.
pub const SILENT: &str = "silent";
/// Reason of a slave that sent messages but never a `state`.
pub const NO_STATE: &str = "no_state";
/// How the reason begins in a retained state that the master wrote because another message had overwritten the truth.
pub const RESTORED: &str = "restored";

/// Reason in a slave's will.
const CONNECTION_LOST: &str = "connection_lost";

/// How long after an absence of the master the ends of connections come in that were closed meanwhile.
const AFTERMATH: Duration = Duration::from_secs(1);

/// What happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// A `state` of protocol version 1 was read from the slave's topic.
    Claim {
        /// Whose topic it was.
        slave: SlaveId,
        /// What it says.
        state: State,
        /// It is a copy that the broker kept, not a message just sent.
        retained: bool,
    },
    /// Any other message just sent by the slave.
    Sign {
        /// Who sent it.
        slave: SlaveId,
    },
    /// The master itself was away for so long: nobody could be heard.
    Paused(Duration),
    /// The master hears its broker again, after so long without it: nobody could be heard, what was said last may be lost,
    /// and the broker may have forgotten what it kept.
    BrokerBack(Duration),
    /// Somebody wants the slave forgotten.
    Remove {
        /// Who is forgotten.
        slave: SlaveId,
    },
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Liveness, reason or session are others than before.
    Changed {
        /// Whose.
        slave: SlaveId,
        /// What holds now.
        state: Liveness,
        /// Why it is offline.
        reason: Option<String>,
        /// Its newest session.
        session: Option<SessionId>,
    },
    /// Ask the slave for its `state` and details.
    Announce {
        /// Whom to ask.
        slave: SlaveId,
    },
    /// The retained `state` is not, or may not be, [`Presence::truth`]: write it again.
    RewriteRetained {
        /// Whose.
        slave: SlaveId,
    },
    /// [`Presence::record`] is another than before, or none: keep it.
    Remember {
        /// Whose.
        slave: SlaveId,
    },
    /// The next sign of life at or after `from` matters at once: hand it in as [`Input::Sign`].
    Listen {
        /// Whose.
        slave: SlaveId,
        /// From when on.
        from: Moment,
    },
}

/// What is remembered of a slave across restarts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Whose it is.
    pub slave: SlaveId,
    /// What held last.
    pub liveness: Liveness,
    /// Why it is offline.
    pub reason: Option<String>,
    /// What its newest session claimed, if there was one.
    pub claim: Option<State>,
    /// The newest session said itself that it is over: no sign of life revives it.
    pub ended: bool,
    /// Older sessions, the oldest first, at most [`SUPERSEDED_SESSIONS_MAX`].
    pub superseded: Vec<SessionId>,
}

/// The presence of all slaves.
#[derive(Debug)]
pub struct Presence {
    timeout: Duration,
    /// Until then a lost connection proves nothing: the master was away, and slaves gave it up for that.
    doubt_until: Moment,
    slaves: HashMap<SlaveId, Slave>,
    /// One entry for each online slave, never later than its true deadline: a sign of life only moves `Slave::heard`, and
    /// an entry that comes due too early is put back. And one for each offline slave of which the broker may keep another
    /// state: the time that the slave has to put it right itself.
    deadlines: BTreeSet<(Moment, SlaveId)>,
}

#[derive(Debug)]
struct Slave {
    liveness: Liveness,
    reason: Option<String>,
    claim: Option<State>,
    ended: bool,
    superseded: VecDeque<SessionId>,
    heard: Moment,
    /// When its entry in `Presence::deadlines` comes due, if it has one.
    entry: Moment,
    /// When it was last asked to announce itself.
    asked: Option<Moment>,
}

impl Presence {
    /// Nobody is known yet. A slave of which nothing comes for `timeout` is offline.
    pub fn new(timeout: Duration) -> Presence {
        Presence { timeout, doubt_until: Moment::default(), slaves: HashMap::new(), deadlines: BTreeSet::new() }
    }

    /// Takes back what was remembered. An online slave is shown as it was, with a full timeout to prove it.
    pub fn restore(&mut self, now: Moment, record: Record, effects: &mut Vec<Effect>) {
        let Record { slave: id, liveness, reason, claim, ended, superseded } = record;
        let entry = now + self.timeout;
        match liveness {
            Liveness::Online => drop(self.deadlines.insert((entry, id.clone()))),
            Liveness::Offline => effects.push(Effect::Listen { slave: id.clone(), from: now }),
        }
        let superseded = superseded.into();
        let mut slave = Slave { liveness, reason, claim, ended, superseded, heard: now, entry, asked: None };
        slave.ask(&id, now, effects);
        self.slaves.insert(id, slave);
    }

    /// Takes one input and appends what follows from it.
    pub fn handle(&mut self, now: Moment, input: Input, effects: &mut Vec<Effect>) {
        match input {
            Input::Claim { slave, state, retained: true } => self.kept_copy(now, slave, state, effects),
            Input::Claim { slave, state, retained: false } => self.claim(now, slave, state, effects),
            Input::Sign { slave } => self.sign(now, slave, effects),
            Input::Paused(gap) => {
                self.doubt_until = now + AFTERMATH;
                self.forgive(now, gap);
            }
            Input::BrokerBack(gap) => {
                if gap >= AFTERMATH {
                    self.doubt_until = now + AFTERMATH;
                }
                self.forgive(now, gap);
                for (id, slave) in &mut self.slaves {
                    slave.asked = None;
                    slave.ask(id, now, effects);
                    if slave.liveness == Liveness::Offline && slave.claim.is_some() {
                        slave.reschedule(id, now + self.timeout, &mut self.deadlines);
                    }
                }
            }
            Input::Remove { slave } => {
                if let Some(forgotten) = self.slaves.remove(&slave) {
                    self.deadlines.remove(&(forgotten.entry, slave.clone()));
                    effects.push(Effect::Remember { slave });
                }
            }
        }
    }

    /// The slave was heard at `at`. Enough for an online slave; [`Effect::Listen`] says when more is wanted.
    pub fn heard(&mut self, slave: &SlaveId, at: Moment) {
        if let Some(slave) = self.slaves.get_mut(slave) {
            slave.heard = slave.heard.max(at);
        }
    }

    /// When [`Presence::timeout`] should be called next.
    pub fn poll_timeout(&self) -> Option<Moment> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }

    /// Whose silence is about to be judged: the moment to tell what was [`Presence::heard`] of them.
    pub fn due(&self, now: Moment) -> impl Iterator<Item = &SlaveId> {
        self.deadlines.iter().take_while(move |(deadline, _)| *deadline <= now).map(|(_, slave)| slave)
    }

    /// Judges silence.
    pub fn timeout(&mut self, now: Moment, effects: &mut Vec<Effect>) {
        while self.poll_timeout().is_some_and(|deadline| deadline <= now) {
            let Some((_, id)) = self.deadlines.pop_first() else { return };
            let Some(slave) = self.slaves.get_mut(&id) else { continue };
            if slave.liveness == Liveness::Offline {
                effects.push(Effect::RewriteRetained { slave: id });
                continue;
            }
            let deadline = slave.heard + self.timeout;
            if deadline > now {
                slave.entry = deadline;
                self.deadlines.insert((deadline, id));
                continue;
            }
            slave.liveness = Liveness::Offline;
            slave.reason = Some(SILENT.to_owned());
            let from = slave.heard + Duration::from_millis(1);
            slave.changed(&id, effects);
            effects.push(Effect::RewriteRetained { slave: id.clone() });
            effects.push(Effect::Listen { slave: id, from });
        }
    }

    /// What the retained `state` of the slave should say; nothing if it never claimed a session.
    pub fn truth(&self, slave: &SlaveId) -> Option<State> {
        let slave = self.slaves.get(slave)?;
        let reason = match slave.reason.as_deref() {
            Some(SILENT) => SILENT.to_owned(),
            Some(reason) => format!("{RESTORED}: {reason}"),
            None => RESTORED.to_owned(),
        };
        Some(State { state: slave.liveness, reason: Some(reason), ..slave.claim.clone()? })
    }

    /// What is to be remembered of the slave.
    pub fn record(&self, id: &SlaveId) -> Option<Record> {
        let slave = self.slaves.get(id)?;
        Some(Record {
            slave: id.clone(),
            liveness: slave.liveness,
            reason: slave.reason.clone(),
            claim: slave.claim.clone(),
            ended: slave.ended,
            superseded: slave.superseded.iter().cloned().collect(),
        })
    }

    /// Nobody could be heard for so long: everybody gets as much more time.
    fn forgive(&mut self, now: Moment, gap: Duration) {
        for slave in self.slaves.values_mut() {
            slave.heard = now.min(slave.heard + gap);
        }
    }

    /// A `state` just sent: by the slave, by the broker for it (its will), or by the master, whose own words come back.
    fn claim(&mut self, now: Moment, id: SlaveId, state: State, effects: &mut Vec<Effect>) {
        let reason = state.reason.as_deref();
        let written_by_master = reason.is_some_and(|reason| reason == SILENT || reason.starts_with(RESTORED));
        let said = (state.state, state.session.clone());
        if written_by_master {
            // Neither a claim nor a sign of life: it only shows what the retained topic holds.
        } else if state.state == Liveness::Online {
            self.online(now, &id, state, effects);
        } else {
            self.offline(now, &id, state, effects);
        }
        // The message has overwritten the retained state, whoever sent it.
        if self.truth(&id).is_some_and(|truth| (truth.state, truth.session) != said) {
            effects.push(Effect::RewriteRetained { slave: id });
        }
    }

    fn online(&mut self, now: Moment, id: &SlaveId, state: State, effects: &mut Vec<Effect>) {
        let slave = self.slaves.entry(id.clone()).or_insert_with(|| Slave::new(now));
        if slave.is_superseded(&state.session) {
            return;
        }
        slave.heard = slave.heard.max(now);
        slave.ended = false;
        if slave.adopt(state) || slave.liveness == Liveness::Offline {
            self.set_online(id, effects);
        }
    }

    fn offline(&mut self, now: Moment, id: &SlaveId, state: State, effects: &mut Vec<Effect>) {
        self.meet(now, id, effects);
        let Some(slave) = self.slaves.get_mut(id) else { return };
        if slave.is_superseded(&state.session) {
            return;
        }
        if slave.session() != Some(&state.session) {
            slave.ask(id, now, effects);
            return;
        }
        if slave.ended {
            return;
        }
        let lost = state.reason.as_deref() == Some(CONNECTION_LOST);
        if lost && now < self.doubt_until && slave.liveness == Liveness::Online {
            // It will be back in a new session at once, or silence tells.
            effects.push(Effect::Announce { slave: id.clone() });
            return;
        }
        // A slave that was silent is now known to be gone: the better reason replaces the worse, `since` stays.
        slave.ended = true;
        slave.liveness = Liveness::Offline;
        slave.reason = state.reason;
        slave.changed(id, effects);
        self.deadlines.remove(&(slave.entry, id.clone()));
        effects.push(Effect::Listen { slave: id.clone(), from: now + self.timeout });
    }

    /// A copy that the broker kept: who wrote it may have died since. It can name a newer session, never prove a life.
    fn kept_copy(&mut self, now: Moment, id: SlaveId, state: State, effects: &mut Vec<Effect>) {
        let is_new = !self.slaves.contains_key(&id);
        let timeout = self.timeout;
        let said = (state.state, state.session.clone());
        let slave = self.slaves.entry(id.clone()).or_insert_with(|| Slave::new(now));
        let names_newer_session = slave.session() != Some(&state.session) && !slave.is_superseded(&state.session);
        if names_newer_session && (state.state == Liveness::Online || is_new) {
            slave.ended = state.state == Liveness::Offline;
            if slave.liveness == Liveness::Offline {
                slave.reason = if slave.ended { state.reason.clone() } else { Some(SILENT.to_owned()) };
                let from = if slave.ended { now + timeout } else { now };
                effects.push(Effect::Listen { slave: id.clone(), from });
            }
            slave.adopt(state);
            slave.changed(&id, effects);
        }
        slave.ask(&id, now, effects);
        if slave.liveness == Liveness::Offline && slave.claim.is_some() {
            if (said.0, Some(&said.1)) == (slave.liveness, slave.session()) {
                self.deadlines.remove(&(slave.entry, id));
            } else {
                slave.reschedule(&id, now + timeout, &mut self.deadlines);
            }
        }
    }

    fn sign(&mut self, now: Moment, id: SlaveId, effects: &mut Vec<Effect>) {
        let was_known = self.meet(now, &id, effects);
        let Some(slave) = self.slaves.get_mut(&id) else { return };
        slave.heard = slave.heard.max(now);
        match slave.liveness {
            Liveness::Online => {}
            Liveness::Offline if slave.claim.is_some() && !slave.ended => {
                self.set_online(&id, effects);
                effects.push(Effect::RewriteRetained { slave: id });
            }
            // It speaks, but has not said that it is there: ask, at most once in a timeout.
            Liveness::Offline if was_known => {
                slave.ask(&id, now, effects);
                effects.push(Effect::Listen { slave: id, from: now + self.timeout });
            }
            Liveness::Offline => slave.ask(&id, now, effects),
        }
    }

    /// Lists a slave of which nothing was known; tells whether it was.
    fn meet(&mut self, now: Moment, id: &SlaveId, effects: &mut Vec<Effect>) -> bool {
        if self.slaves.contains_key(id) {
            return true;
        }
        let slave = Slave::new(now);
        slave.changed(id, effects);
        effects.push(Effect::Listen { slave: id.clone(), from: now + self.timeout });
        self.slaves.insert(id.clone(), slave);
        false
    }

    fn set_online(&mut self, id: &SlaveId, effects: &mut Vec<Effect>) {
        let Some(slave) = self.slaves.get_mut(id) else { return };
        if slave.liveness == Liveness::Offline {
            slave.liveness = Liveness::Online;
            slave.reason = None;
            slave.reschedule(id, slave.heard + self.timeout, &mut self.deadlines);
        }
        slave.changed(id, effects);
    }
}

impl Slave {
    fn new(now: Moment) -> Slave {
        Slave {
            liveness: Liveness::Offline,
            reason: Some(NO_STATE.to_owned()),
            claim: None,
            ended: false,
            superseded: VecDeque::new(),
            heard: now,
            entry: Moment::NEVER,
            asked: None,
        }
    }

    fn session(&self) -> Option<&SessionId> {
        self.claim.as_ref().map(|claim| &claim.session)
    }

    fn is_superseded(&self, session: &SessionId) -> bool {
        self.superseded.contains(session)
    }

    /// Makes `state` the newest claim, and its session the newest; tells whether it says anything new.
    fn adopt(&mut self, state: State) -> bool {
        let claim = State { state: Liveness::Online, reason: None, ..state };
        if self.claim.as_ref() == Some(&claim) {
            return false;
        }
        let older = self.claim.replace(claim).map(|older| older.session);
        if let Some(older) = older.filter(|older| Some(older) != self.session()) {
            self.superseded.push_back(older);
            if self.superseded.len() > SUPERSEDED_SESSIONS_MAX {
                self.superseded.pop_front();
            }
        }
        true
    }

    /// Gives it this one entry among the deadlines.
    fn reschedule(&mut self, id: &SlaveId, at: Moment, deadlines: &mut BTreeSet<(Moment, SlaveId)>) {
        deadlines.remove(&(self.entry, id.clone()));
        self.entry = at;
        deadlines.insert((at, id.clone()));
    }

    /// Asks it to announce itself, unless the answer to the question before may still be on its way.
    fn ask(&mut self, id: &SlaveId, now: Moment, effects: &mut Vec<Effect>) {
        if self.asked.is_none_or(|asked| now.since(asked) >= ANNOUNCE_JITTER_MAX) {
            self.asked = Some(now);
            effects.push(Effect::Announce { slave: id.clone() });
        }
    }

    fn changed(&self, id: &SlaveId, effects: &mut Vec<Effect>) {
        effects.push(Effect::Changed {
            slave: id.clone(),
            state: self.liveness,
            reason: self.reason.clone(),
            session: self.session().cloned(),
        });
        effects.push(Effect::Remember { slave: id.clone() });
    }
}

#[cfg(test)]
mod tests;
