//! What is known of the slaves now: read by HTTP and by `slave_details`, written by handlers and the engine.
//!
//! Each slave has its own small lock, so that nobody waits for another slave's messages. Updates are idempotent.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use bytes::Bytes;
use rpicluster_core::{Moment, NO_STATE};
use rpicluster_protocol::{Details, Liveness, SessionId, SlaveDetails, SlaveId, Timestamp, Vitals};

use tokio::sync::oneshot;

use crate::counters::{SlaveCounters, SlaveFigures};

/// All slaves, offline ones included.
#[derive(Debug)]
pub(crate) struct View {
    known: RwLock<Known>,
    slaves_max: usize,
}

#[derive(Debug, Default)]
struct Known {
    slaves: BTreeMap<SlaveId, Arc<Slave>>,
    /// Removed slaves of which messages may still be on the way: they are nobody's until the farewell has come.
    leaving: BTreeMap<SlaveId, Option<Farewell>>,
}

/// The last message on a removed slave's topics, and who waits for it.
#[derive(Debug)]
struct Farewell {
    mark: Bytes,
    _arrived: oneshot::Sender<()>,
}

/// One slave.
#[derive(Debug)]
pub(crate) struct Slave {
    pub(crate) id: SlaveId,
    pub(crate) counters: SlaveCounters,
    pub(crate) pulse: Pulse,
    latest: Mutex<Latest>,
    details_unsaved: AtomicBool,
    removed: AtomicBool,
}

/// The newest of everything that is known of a slave. Cheap to clone.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Latest {
    pub(crate) state: Liveness,
    pub(crate) since: Timestamp,
    pub(crate) reason: Option<String>,
    pub(crate) session: Option<SessionId>,
    pub(crate) details: Option<Arc<Details>>,
    pub(crate) vitals: Option<Arc<Vitals>>,
}

/// When a slave was last heard. The engine reads it when a deadline comes due, so that a message costs it nothing.
#[derive(Debug)]
pub(crate) struct Pulse {
    heard: AtomicU64,
    report_from: AtomicU64,
}

impl View {
    pub(crate) fn new(slaves_max: usize) -> View {
        View { known: RwLock::default(), slaves_max }
    }

    /// The slave, if it is known.
    pub(crate) fn get(&self, id: &str) -> Option<Arc<Slave>> {
        self.read().slaves.get(id).cloned()
    }

    /// Everybody, sorted by id.
    pub(crate) fn all(&self) -> Vec<Arc<Slave>> {
        self.read().slaves.values().cloned().collect()
    }

    /// The slave, listed as offline without a state if it was not known; nothing if the list is full or it is leaving.
    pub(crate) fn get_or_meet(&self, id: &SlaveId, at: Timestamp) -> Option<Arc<Slave>> {
        let Known { slaves, leaving } = &mut *self.write();
        if let Some(slave) = slaves.get(id) {
            return Some(slave.clone());
        }
        if slaves.len() >= self.slaves_max || leaving.contains_key(id) {
            return None;
        }
        let slave = Arc::new(Slave::new(id.clone(), Latest::without_state(at)));
        slaves.insert(id.clone(), slave.clone());
        Some(slave)
    }

    /// Lists a slave that the store remembers. Nobody whom we knew is refused, whatever the bound is now.
    pub(crate) fn restore(&self, id: SlaveId, latest: Latest) {
        let slave = Arc::new(Slave::new(id.clone(), latest));
        self.write().slaves.insert(id, slave);
    }

    /// Forgets the slave. What is said in its name from now on is nobody's, until its [`View::farewell`].
    pub(crate) fn remove(&self, id: &SlaveId) {
        let Known { slaves, leaving } = &mut *self.write();
        if let Some(slave) = slaves.remove(id) {
            slave.removed.store(true, Ordering::SeqCst);
        }
        leaving.insert(id.clone(), None);
    }

    /// Whether messages of a removed slave may still be on the way.
    pub(crate) fn is_leaving(&self, id: &SlaveId) -> bool {
        self.read().leaving.contains_key(id)
    }

    /// The removed slave's farewell will bear this mark. The receiver ends when it has come.
    pub(crate) fn expect_farewell(&self, id: &SlaveId, mark: Bytes) -> oneshot::Receiver<()> {
        let (arrived, arrival) = oneshot::channel();
        if let Some(farewell) = self.write().leaving.get_mut(id) {
            *farewell = Some(Farewell { mark, _arrived: arrived });
        }
        arrival
    }

    /// Takes a message that may be the removed slave's farewell; tells whether it was. Who has the id from now on is new.
    pub(crate) fn farewell(&self, id: &SlaveId, mark: &Bytes) -> bool {
        let leaving = &mut self.write().leaving;
        let is_last = leaving.get(id).is_some_and(|farewell| farewell.as_ref().is_some_and(|last| last.mark == *mark));
        if is_last {
            leaving.remove(id);
        }
        is_last
    }

    /// The farewells that have not come yet.
    pub(crate) fn farewells(&self) -> Vec<(SlaveId, Bytes)> {
        let known = self.read();
        let expected = known.leaving.iter().filter_map(|(id, last)| Some((id.clone(), last.as_ref()?.mark.clone())));
        expected.collect()
    }

    /// The counters of all slaves together.
    pub(crate) fn figures(&self) -> SlaveFigures {
        let mut total = SlaveFigures::default();
        for slave in self.all() {
            total += slave.counters.figures();
        }
        total
    }

    fn read(&self) -> RwLockReadGuard<'_, Known> {
        self.known.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Known> {
        self.known.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slave {
    pub(crate) fn new(id: SlaveId, latest: Latest) -> Slave {
        Slave {
            id,
            counters: SlaveCounters::default(),
            pulse: Pulse { heard: AtomicU64::new(0), report_from: AtomicU64::new(0) },
            latest: Mutex::new(latest),
            details_unsaved: AtomicBool::new(false),
            removed: AtomicBool::new(false),
        }
    }

    /// Whether it was forgotten. A slave that comes back under its id is another one.
    pub(crate) fn is_removed(&self) -> bool {
        self.removed.load(Ordering::SeqCst)
    }

    /// A copy of all that is known now.
    pub(crate) fn latest(&self) -> Latest {
        self.lock().clone()
    }

    /// Takes what presence decided; tells whether it went online or offline by that. `since` moves only then.
    pub(crate) fn set_presence(
        &self,
        state: Liveness,
        reason: Option<String>,
        session: Option<SessionId>,
        at: Timestamp,
    ) -> bool {
        let mut latest = self.lock();
        let turned = latest.state != state;
        if turned {
            latest.since = at;
        }
        latest.state = state;
        latest.reason = reason;
        latest.session = session;
        turned
    }

    /// Takes new details; tells whether the engine must hear that there is something to save.
    pub(crate) fn set_details(&self, details: Arc<Details>) -> bool {
        let mut latest = self.lock();
        if latest.details.as_ref() == Some(&details) {
            return false;
        }
        latest.details = Some(details);
        !self.details_unsaved.swap(true, Ordering::SeqCst)
    }

    /// From now on new details are news again: call this before the latest are read in order to save them.
    pub(crate) fn saving_details(&self) {
        self.details_unsaved.store(false, Ordering::SeqCst);
    }

    /// Takes new vitals.
    pub(crate) fn set_vitals(&self, vitals: Arc<Vitals>) {
        self.lock().vitals = Some(vitals);
    }

    fn lock(&self) -> MutexGuard<'_, Latest> {
        self.latest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Latest {
    fn without_state(since: Timestamp) -> Latest {
        Latest {
            state: Liveness::Offline,
            since,
            reason: Some(NO_STATE.to_owned()),
            session: None,
            details: None,
            vitals: None,
        }
    }

    /// The same as told to slaves.
    pub(crate) fn told(&self) -> SlaveDetails {
        SlaveDetails {
            state: self.state,
            since: self.since,
            reason: self.reason.clone(),
            details: self.details.as_deref().cloned().map(Box::new),
            vitals: self.vitals.as_deref().cloned().map(Box::new),
        }
    }
}

impl Pulse {
    /// Notes a sign of life; tells whether the engine waits for it. Then it is not told again before it asks again.
    pub(crate) fn beat(&self, at: Moment) -> bool {
        self.heard.fetch_max(at.as_millis(), Ordering::SeqCst);
        let from = self.report_from.load(Ordering::SeqCst);
        let never = Moment::NEVER.as_millis();
        // A lost race means that the engine has just asked anew: it looks at `heard` itself then.
        at.as_millis() >= from
            && self.report_from.compare_exchange(from, never, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    /// The report did not get through: the next sign of life is told instead.
    pub(crate) fn ask_again(&self, from: Moment) {
        self.report_from.fetch_min(from.as_millis(), Ordering::SeqCst);
    }

    /// The newest sign of life.
    pub(crate) fn heard(&self) -> Moment {
        Moment::from_millis(self.heard.load(Ordering::SeqCst))
    }

    /// Asks for the next sign of life at or after `from`; one that came already is the answer.
    pub(crate) fn listen(&self, from: Moment) -> Option<Moment> {
        self.report_from.store(from.as_millis(), Ordering::SeqCst);
        let heard = self.heard();
        (heard >= from && self.beat(heard)).then_some(heard)
    }
}

#[cfg(test)]
mod tests;
