//! A slave: its journal, what of it is on disk, and what it runs.

use std::collections::{BTreeMap, HashMap};

use rpicluster_core::Moment;
use rpicluster_core::journal::{AHEAD, Effect, Input, Journal, Record};
use rpicluster_core::tasks::Slots;
use rpicluster_protocol::{AttemptKey, JournalEntry, JournalId, SessionId, SlaveId, TaskOffer, Work};

/// An attempt that runs.
#[derive(Debug, Clone)]
pub(crate) struct Run {
    pub(crate) lease_end: Moment,
    /// Names the work: what it answers.
    pub(crate) token: String,
    pub(crate) bytes: u64,
}

/// A slave, on or off.
pub(crate) struct Node {
    pub(crate) id: SlaveId,
    pub(crate) slots: u32,
    /// None while the agent is down.
    pub(crate) journal: Option<Journal>,
    pub(crate) journal_id: JournalId,
    /// How many journals it has had.
    pub(crate) lives: u64,
    /// Counts the agent's starts: what was scheduled for an earlier one is void.
    pub(crate) start: u64,
    pub(crate) boot: u64,
    /// Written, and safe from a loss of power.
    pub(crate) durable: Vec<Record>,
    /// Written, and safe from a crash only.
    pub(crate) written: Vec<Record>,
    pub(crate) running: BTreeMap<AttemptKey, Run>,
    /// Bytes of output of what ran, and how many of them the master has.
    pub(crate) spool: HashMap<AttemptKey, (u64, u64)>,
    pub(crate) session: Option<SessionId>,
    /// It was removed, and has not joined again.
    pub(crate) removed: bool,
}

impl Node {
    pub(crate) fn new(number: u64, slots: u32, journal_id: JournalId) -> Node {
        let id = format!("pi-{number}").parse().expect("a valid id");
        Node {
            id,
            slots,
            journal: Some(Journal::new(slots, Some("0".to_owned()))),
            journal_id,
            lives: 0,
            start: 0,
            boot: 0,
            durable: Vec::new(),
            written: Vec::new(),
            running: BTreeMap::new(),
            spool: HashMap::new(),
            session: None,
            removed: false,
        }
    }

    pub(crate) fn handle(&mut self, clock: u64, input: Input) -> Vec<Effect> {
        let mut effects = Vec::new();
        if let Some(journal) = &mut self.journal {
            journal.handle(Moment::from_millis(clock), input, &mut effects);
        }
        effects
    }

    pub(crate) fn timeout(&mut self, clock: u64) -> Vec<Effect> {
        let mut effects = Vec::new();
        if let Some(journal) = &mut self.journal {
            journal.handle_timeout(Moment::from_millis(clock), &mut effects);
        }
        effects
    }

    /// What it tells the master that it takes.
    pub(crate) fn slots(&self) -> Slots {
        Slots { at_once: self.slots, ahead: AHEAD }
    }

    /// What the journal would tell, if the agent runs.
    pub(crate) fn entries(&self) -> Vec<JournalEntry> {
        self.journal.as_ref().map(Journal::entries).unwrap_or_default()
    }

    /// What was written so far is safe.
    pub(crate) fn sync(&mut self) {
        self.durable.append(&mut self.written);
    }

    /// The agent dies, with all that it runs; with the power goes what was not synced.
    pub(crate) fn crash(&mut self, power: bool) -> Vec<AttemptKey> {
        self.journal = None;
        self.session = None;
        self.start += 1;
        if power {
            self.written.clear();
            self.boot += 1;
        } else {
            self.sync();
        }
        let killed = self.running.keys().copied().collect();
        self.running.clear();
        killed
    }

    /// The disk is replaced.
    pub(crate) fn lose_journal(&mut self, another: JournalId) {
        self.durable.clear();
        self.written.clear();
        self.spool.clear();
        self.journal_id = another;
        self.lives += 1;
    }

    pub(crate) fn restart(&mut self, clock: u64) -> Vec<Effect> {
        let spool = self.spool.clone();
        let spooled = |key| spool.get(&key).map_or((0, 0), |(bytes, _)| (*bytes, 0));
        let journal = Journal::restore(self.slots, Some(self.boot.to_string()), self.durable.clone(), spooled);
        self.durable = journal.records();
        self.journal = Some(journal);
        self.handle(clock, Input::Synced { records: 0 })
    }

    pub(crate) fn begin(&mut self, offer: &TaskOffer, lease_end: Moment, bytes: u64) {
        let token = match &offer.spec.work {
            Work::Exec { argv } => argv.concat(),
            _ => String::new(),
        };
        self.running.insert(offer.key, Run { lease_end, token, bytes });
    }
}
