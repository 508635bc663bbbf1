//! What a slave decides about attempts: the slave's half of `docs/protocol.md`, section Tasks.
//!
//! Journal before deed: an attempt's beginning is durable before it is begun; what was once decided of an attempt is never
//! decided again. The caller writes each [`Effect::Record`], makes what it has written durable (many at once) and says so
//! with [`Input::Synced`]; only then do the effects come that depend on it.
//!
//! An end is told as soon as it is written: a loss of power can take it only while the master may have it, and a beginning
//! without an end makes the attempt lost, not begun again. It is made durable with the next beginning, or, if the master
//! does not acknowledge it soon or there is none to tell, for its own sake.

mod attempt;
mod input;
mod lease;
mod record;
mod restore;
mod waiting;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use rpicluster_protocol::limits::{LEASE_RENEWAL_INTERVAL, RESEND_MIN};
use rpicluster_protocol::{
    AttemptKey, Epoch, JournalEntry, Outcome, RejectReason, SessionId, TaskAck, TaskFinished, TaskOffer,
};

use self::attempt::{Attempt, Phase, ended, rejection, started};
use crate::Moment;

pub use input::{Effect, Input, Verdict};
pub use record::{Before, Contents, Damage, Record, decode, encode, encode_beginning};
pub use waiting::{AHEAD, AHEAD_WAIT};

/// Attempts that a slave holds, running or not yet acknowledged; more are refused as `busy`.
const HELD_MAX: usize = 4096;
/// Bytes of results that it holds; beyond, new offers are refused as `busy`.
const RESULT_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Attempts of this session that are over and forgotten, so that a late copy of their offers is known.
const FORGOTTEN_MAX: usize = 65_536;
/// Epochs that are over, so that a late message of theirs does not bring them back.
const PAST_EPOCHS_MAX: usize = 8;
/// How long an end that is told and not acknowledged may be without being durable.
const END_WAIT: Duration = Duration::from_secs(1);
/// How long a machine may take to go down once it has promised to.
const BOOT_WAIT: Duration = Duration::from_secs(600);

/// What a slave holds of attempts.
#[derive(Debug)]
pub struct Journal {
    slots: u32,
    boot_id: Option<String>,
    attempts: HashMap<AttemptKey, Attempt>,
    /// How many occupy a slot.
    running: u32,
    /// Offers that wait for a slot, and until when.
    ahead: VecDeque<(Moment, AttemptKey)>,
    /// The one that boots the machine, waiting or running.
    alone: Option<AttemptKey>,
    result_bytes: usize,
    session: Option<SessionId>,
    epoch: Option<Epoch>,
    past_epochs: VecDeque<Epoch>,
    /// Over in this session; with the reason if it was refused without a record.
    forgotten: HashMap<AttemptKey, Option<RejectReason>>,
    forgotten_order: VecDeque<AttemptKey>,
    recorded: u64,
    synced: u64,
    /// Records that are not durable and are waited for, and whose they are.
    unsynced: VecDeque<(u64, AttemptKey)>,
    /// Records of ends that were told and are not durable, and when they are to be if they are held until then.
    told_early: VecDeque<(Moment, u64, AttemptKey)>,
    /// When an event that is not acknowledged is told again.
    resends: BTreeSet<(Moment, AttemptKey)>,
    renewal: u64,
    renewals: VecDeque<(u64, Moment)>,
    renew_at: Option<Moment>,
}

impl Journal {
    /// An empty journal of a machine with that many slots.
    pub fn new(slots: u32, boot_id: Option<String>) -> Journal {
        Journal {
            slots,
            boot_id,
            attempts: HashMap::new(),
            running: 0,
            ahead: VecDeque::new(),
            alone: None,
            result_bytes: 0,
            session: None,
            epoch: None,
            past_epochs: VecDeque::new(),
            forgotten: HashMap::new(),
            forgotten_order: VecDeque::new(),
            recorded: 0,
            synced: 0,
            unsynced: VecDeque::new(),
            told_early: VecDeque::new(),
            resends: BTreeSet::new(),
            renewal: 0,
            renewals: VecDeque::new(),
            renew_at: None,
        }
    }

    /// All that a new file must hold, in the place of the records so far.
    pub fn records(&self) -> Vec<Record> {
        let all = self
            .attempts
            .values()
            .filter_map(|attempt| Some(Record::Entry { entry: attempt.newest()?.clone(), alone: attempt.alone }));
        all.collect()
    }

    /// The newest event of each attempt that may be told, for `task_journal`.
    pub fn entries(&self) -> Vec<JournalEntry> {
        let known = self.attempts.values().filter(|attempt| !attempt.foreign);
        let mut entries: Vec<JournalEntry> = known.filter_map(|attempt| attempt.settled.clone()).collect();
        entries.sort_by_key(JournalEntry::key);
        entries
    }

    /// All attempts that are held.
    pub fn keys(&self) -> impl Iterator<Item = AttemptKey> {
        self.attempts.keys().copied()
    }

    /// The newest event of each, durable or not.
    pub fn held_entries(&self) -> impl Iterator<Item = &JournalEntry> {
        self.attempts.values().filter_map(|attempt| attempt.newest())
    }

    /// From when on records are to be durable; nothing waits for that if there is no such time.
    pub fn sync_due(&mut self) -> Option<Moment> {
        if !self.unsynced.is_empty() {
            return Some(Moment::default());
        }
        // What is forgotten was acknowledged.
        while self.told_early.pop_front_if(|(_, _, key)| !self.attempts.contains_key(key)).is_some() {}
        self.told_early.front().map(|(at, ..)| *at)
    }

    /// How many records there have been.
    pub fn recorded(&self) -> u64 {
        self.recorded
    }

    /// How many attempts are held.
    pub fn held(&self) -> usize {
        self.attempts.len()
    }

    /// How many occupy a slot.
    pub fn running(&self) -> u32 {
        self.running
    }

    /// How many offers wait for a slot.
    pub fn waiting(&self) -> usize {
        self.ahead.len()
    }

    /// When [`Journal::handle_timeout`] has something to do.
    pub fn poll_timeout(&self) -> Option<Moment> {
        self.session.as_ref()?;
        let resend = self.resends.first().map(|(at, _)| *at);
        let boot = self.alone.and_then(|key| self.attempts.get(&key)?.boot_wait_end);
        let ahead = self.ahead.front().map(|(until, _)| *until);
        [resend, self.renew_at, boot, ahead].into_iter().flatten().min()
    }

    /// Takes what happened.
    pub fn handle(&mut self, now: Moment, input: Input, effects: &mut Vec<Effect>) {
        match input {
            Input::SessionBegan(session) => self.begin_session(now, session, effects),
            Input::SessionEnded => self.end_session(),
            Input::Announced => effects.push(Effect::TellJournal),
            Input::Offer { offer, verdict } => self.handle_offer(now, offer, verdict, effects),
            Input::Cancel(cancel) => self.handle_cancel(now, cancel.key, effects),
            Input::Ack(ack) => self.handle_ack(ack, effects),
            Input::LeaseAck(lease) => self.handle_lease_ack(&lease, effects),
            Input::Synced { records } => self.handle_synced(now, records, effects),
            Input::Exited(finished) => self.handle_exited(now, *finished, effects),
            Input::RunnerGone { reason } => self.handle_runner_gone(now, &reason, effects),
        }
        self.begin_waiting(now, effects);
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Moment, effects: &mut Vec<Effect>) {
        if self.session.is_none() {
            return;
        }
        while let Some((at, key)) = self.resends.first().copied().filter(|(at, _)| *at <= now) {
            self.resends.remove(&(at, key));
            if let Some(attempt) = self.attempts.get_mut(&key)
                && let Some(entry) = attempt.settled.clone()
            {
                self.resends.insert((attempt.next_resend(now), key));
                effects.push(Effect::Tell(entry));
            }
        }
        if self.renew_at.is_some_and(|at| at <= now) {
            self.renew(now, effects);
        }
        while let Some((_, key)) = self.ahead.pop_front_if(|(until, _)| *until <= now) {
            self.refuse(now, key, RejectReason::Waited, None, effects);
        }
        if let Some(key) = self.alone
            && self.attempts.get(&key).and_then(|attempt| attempt.boot_wait_end).is_some_and(|end| end <= now)
        {
            self.finish(now, ended(key, Outcome::Failed, Some("the machine did not go down")), effects);
        }
        self.begin_waiting(now, effects);
    }

    fn begin_session(&mut self, now: Moment, session: SessionId, effects: &mut Vec<Effect>) {
        self.session = Some(session);
        // Their offers were of another session, and are stale now.
        self.forgotten.clear();
        self.forgotten_order.clear();
        self.drop_ahead();
        if let Some(key) = self.alone {
            self.refuse_waiting(now, key, RejectReason::Stale, effects);
        }
        effects.push(Effect::TellJournal);
        self.resends.clear();
        for (key, attempt) in &mut self.attempts {
            attempt.resend_wait = RESEND_MIN;
            if attempt.awaits_ack() {
                self.resends.insert((attempt.next_resend(now), *key));
            }
        }
        self.renew(now, effects);
    }

    fn end_session(&mut self) {
        self.session = None;
        // Nobody acknowledges what was told.
        self.told_early.iter_mut().for_each(|(at, ..)| *at = Moment::default());
    }

    fn handle_offer(&mut self, now: Moment, offer: Box<TaskOffer>, verdict: Verdict, effects: &mut Vec<Effect>) {
        let key = offer.key;
        if !self.adopt(key.epoch, effects) {
            return;
        }
        if let Some(attempt) = self.attempts.get(&key) {
            // A repeated offer replays what is known; what is not durable yet is told when it is.
            effects.extend(attempt.settled.clone().filter(|_| attempt.fresh.is_none()).map(Effect::Tell));
            return;
        }
        if let Some(refused) = self.forgotten.get(&key) {
            effects.extend(refused.map(|reason| Effect::Tell(rejection(key, 1, reason, None))));
            return;
        }
        if self.attempts.len() >= HELD_MAX || self.result_bytes >= RESULT_BYTES_MAX {
            // There is no room for a record either: that it was refused is remembered for this session only.
            self.remember_forgotten(key, Some(RejectReason::Busy));
            effects.push(Effect::Tell(rejection(key, 1, RejectReason::Busy, None)));
            return;
        }
        let lease_end = now + Duration::from_millis(offer.lease_ms);
        if self.session.as_ref() != Some(&offer.session) {
            return self.refuse(now, key, RejectReason::Stale, None, effects);
        }
        match verdict {
            Verdict::Reject { reason, detail } => self.refuse(now, key, reason, Some(detail), effects),
            Verdict::Answer(result) => {
                self.attempts.insert(key, Attempt::new(Phase::Over, lease_end, 0));
                let finished = TaskFinished { result: Some(result), ..ended(key, Outcome::Succeeded, None) };
                self.finish(now, finished, effects);
            }
            Verdict::Run if self.has_room_ahead() => {
                self.ahead.push_back((now + AHEAD_WAIT, key));
                self.wait(key, offer, lease_end);
            }
            Verdict::Run | Verdict::RunAlone if self.running >= self.slots || self.alone.is_some() => {
                // One that boots the machine waits for its slots, but not behind another one of its kind.
                if verdict == Verdict::RunAlone && self.alone.is_none() && self.slots > 0 {
                    self.wait_alone(now, key, offer, lease_end, effects);
                } else {
                    self.refuse(now, key, RejectReason::Busy, None, effects);
                }
            }
            Verdict::RunAlone if self.running > 0 => self.wait_alone(now, key, offer, lease_end, effects),
            Verdict::Run => self.begin(now, key, offer, lease_end, false, effects),
            Verdict::RunAlone => self.begin(now, key, offer, lease_end, true, effects),
        }
    }

    /// Records that it begins; it is spawned when the record is durable.
    fn begin(
        &mut self,
        now: Moment,
        key: AttemptKey,
        offer: Box<TaskOffer>,
        lease_end: Moment,
        alone: bool,
        effects: &mut Vec<Effect>,
    ) {
        let lease_ms = offer.lease_ms;
        let mut attempt = Attempt::new(Phase::Beginning(offer), lease_end, lease_ms);
        attempt.alone = alone;
        self.attempts.insert(key, attempt);
        self.running += 1;
        if alone {
            self.alone = Some(key);
        }
        self.record(now, started(key, self.boot_id.clone()), effects);
    }

    /// Records that it does not begin and never will.
    fn refuse(
        &mut self,
        now: Moment,
        key: AttemptKey,
        reason: RejectReason,
        detail: Option<String>,
        effects: &mut Vec<Effect>,
    ) {
        self.leave_slot(key);
        let attempt = self.attempts.entry(key).or_insert_with(|| Attempt::new(Phase::Over, Moment::NEVER, 0));
        attempt.phase = Phase::Over;
        // Nobody was told that it had begun.
        attempt.settled = None;
        self.record(now, rejection(key, 1, reason, detail), effects);
    }

    fn handle_cancel(&mut self, now: Moment, key: AttemptKey, effects: &mut Vec<Effect>) {
        if !self.adopt(key.epoch, effects) || self.forgotten.contains_key(&key) {
            return;
        }
        let Some(attempt) = self.attempts.get(&key) else {
            if self.attempts.len() < HELD_MAX {
                self.attempts.insert(key, Attempt::new(Phase::Over, Moment::NEVER, 0));
                self.finish(now, ended(key, Outcome::Canceled, Some("canceled before it was offered")), effects);
            }
            return;
        };
        match attempt.phase {
            Phase::Waiting(_) | Phase::Beginning(_) => {
                self.finish(now, ended(key, Outcome::Canceled, Some("canceled before it began")), effects);
            }
            // The runner may have missed an earlier one.
            Phase::Running if attempt.boot_wait_end.is_none() => effects.push(Effect::Kill { key }),
            Phase::Running | Phase::Over => {}
        }
    }

    fn handle_ack(&mut self, ack: TaskAck, effects: &mut Vec<Effect>) {
        if !self.adopt(ack.key.epoch, effects) {
            return;
        }
        let Some(attempt) = self.attempts.get_mut(&ack.key) else { return };
        attempt.acked(&ack);
        if !attempt.awaits_ack() {
            self.resends.remove(&(attempt.resend_at, ack.key));
        }
        if attempt.may_be_forgotten() {
            self.forget(ack.key, effects);
        }
    }

    fn handle_synced(&mut self, now: Moment, records: u64, effects: &mut Vec<Effect>) {
        self.synced = self.synced.max(records);
        while self.told_early.pop_front_if(|(_, record, _)| *record <= records).is_some() {}
        while let Some((record, key)) = self.unsynced.pop_front_if(|(record, _)| *record <= records) {
            let Some(attempt) = self.attempts.get_mut(&key) else { continue };
            let Some((_, entry)) = attempt.fresh.take_if(|(newest, _)| *newest == record) else { continue };
            if let Phase::Beginning(offer) = &attempt.phase {
                // The last moment to see that the offer does not hold any more.
                let holds = self.session.as_ref() == Some(&offer.session) && now < attempt.lease_end;
                if !holds {
                    self.refuse(now, key, RejectReason::Stale, None, effects);
                    continue;
                }
                if let Phase::Beginning(offer) = std::mem::replace(&mut attempt.phase, Phase::Running) {
                    effects.push(Effect::Spawn { offer, lease_end: attempt.lease_end });
                }
                if self.renew_at.is_none() {
                    self.renew_at = Some(now + LEASE_RENEWAL_INTERVAL);
                }
            }
            attempt.settled = Some(entry.clone());
            if attempt.may_be_forgotten() {
                // Of another epoch, and over.
                self.forget(key, effects);
            } else if self.session.is_some() && !attempt.foreign {
                self.tell(now, key, entry, effects);
            }
        }
    }

    fn tell(&mut self, now: Moment, key: AttemptKey, entry: JournalEntry, effects: &mut Vec<Effect>) {
        if let Some(attempt) = self.attempts.get_mut(&key) {
            attempt.resend_wait = RESEND_MIN;
            self.resends.remove(&(attempt.resend_at, key));
            self.resends.insert((attempt.next_resend(now), key));
            effects.push(Effect::Tell(entry));
        }
    }

    fn handle_exited(&mut self, now: Moment, finished: TaskFinished, effects: &mut Vec<Effect>) {
        let Some(attempt) = self.attempts.get_mut(&finished.key) else { return };
        if !matches!(attempt.phase, Phase::Running) {
            return;
        }
        if attempt.alone && finished.outcome == Outcome::Succeeded && !attempt.foreign {
            // The command has only promised it: the next boot tells.
            attempt.boot_wait_end = Some(now + BOOT_WAIT);
            return;
        }
        self.finish(now, finished, effects);
    }

    fn handle_runner_gone(&mut self, now: Moment, reason: &str, effects: &mut Vec<Effect>) {
        let is_gone = |attempt: &Attempt| matches!(attempt.phase, Phase::Running) && attempt.boot_wait_end.is_none();
        let mut gone: Vec<AttemptKey> =
            self.attempts.iter().filter(|(_, attempt)| is_gone(attempt)).map(|(key, _)| *key).collect();
        gone.sort();
        for key in gone {
            self.finish(now, ended(key, Outcome::Lost, Some(reason)), effects);
        }
    }

    /// Records how it ended. The first outcome wins: nobody comes here for one that is over.
    fn finish(&mut self, now: Moment, mut finished: TaskFinished, effects: &mut Vec<Effect>) {
        let key = finished.key;
        self.leave_slot(key);
        if let Some(attempt) = self.attempts.get_mut(&key) {
            attempt.phase = Phase::Over;
            attempt.boot_wait_end = None;
            if attempt.foreign {
                self.forget(key, effects);
            } else {
                // One that was about to begin, and was not spawned, never began: the master may give it to others.
                let began = attempt.settled.is_some();
                finished.seq = if began { 2 } else { 1 };
                self.record(now, JournalEntry::Finished(Box::new(finished)), effects);
            }
        }
    }

    fn leave_slot(&mut self, key: AttemptKey) {
        if self.attempts.get(&key).is_some_and(Attempt::occupies) {
            self.running -= 1;
        }
        self.alone.take_if(|alone| *alone == key);
        self.ahead.retain(|(_, waiting)| *waiting != key);
        if self.running == 0 {
            self.renew_at = None;
        }
    }

    fn record(&mut self, now: Moment, entry: JournalEntry, effects: &mut Vec<Effect>) {
        self.recorded += 1;
        let (key, is_end) = (entry.key(), !matches!(entry, JournalEntry::Started(_)));
        let Some(attempt) = self.attempts.get_mut(&key) else { return };
        self.result_bytes += result_bytes(&entry);
        self.resends.remove(&(attempt.resend_at, key));
        effects.push(Effect::Record(Record::Entry { entry: entry.clone(), alone: attempt.alone }));
        if is_end && self.session.is_some() {
            attempt.fresh = None;
            attempt.settled = Some(entry.clone());
            self.told_early.push_back((now + END_WAIT, self.recorded, key));
            self.tell(now, key, entry, effects);
        } else {
            attempt.fresh = Some((self.recorded, entry));
            self.unsynced.push_back((self.recorded, key));
        }
    }

    fn forget(&mut self, key: AttemptKey, effects: &mut Vec<Effect>) {
        if let Some(attempt) = self.attempts.remove(&key) {
            self.resends.remove(&(attempt.resend_at, key));
            let entries = attempt.fresh.iter().map(|(_, entry)| entry).chain(&attempt.settled);
            self.result_bytes = self.result_bytes.saturating_sub(entries.map(result_bytes).sum());
        }
        self.recorded += 1;
        effects.push(Effect::Record(Record::Forgotten(key)));
        effects.push(Effect::Forget { key });
        self.remember_forgotten(key, None);
    }

    fn remember_forgotten(&mut self, key: AttemptKey, reason: Option<RejectReason>) {
        if self.forgotten.insert(key, reason).is_none() {
            self.forgotten_order.push_back(key);
        }
        if self.forgotten_order.len() > FORGOTTEN_MAX
            && let Some(oldest) = self.forgotten_order.pop_front()
        {
            self.forgotten.remove(&oldest);
        }
    }

    /// Whether a message of this epoch counts. Another one than before ends and forgets what was of that one.
    fn adopt(&mut self, epoch: Epoch, effects: &mut Vec<Effect>) -> bool {
        if self.past_epochs.contains(&epoch) {
            return false;
        }
        if self.epoch == Some(epoch) {
            return true;
        }
        let before = self.epoch.replace(epoch);
        self.past_epochs.extend(before);
        if self.past_epochs.len() > PAST_EPOCHS_MAX {
            self.past_epochs.pop_front();
        }
        let mut others: Vec<AttemptKey> = self.attempts.keys().filter(|key| key.epoch != epoch).copied().collect();
        others.sort();
        for key in others {
            let Some(attempt) = self.attempts.get_mut(&key) else { continue };
            if matches!(attempt.phase, Phase::Running) && attempt.boot_wait_end.is_none() {
                attempt.foreign = true;
                self.resends.remove(&(attempt.resend_at, key));
                effects.push(Effect::Kill { key });
            } else {
                self.leave_slot(key);
                self.forget(key, effects);
            }
        }
        true
    }
}

/// How much memory an event's result takes, about.
fn result_bytes(entry: &JournalEntry) -> usize {
    match entry {
        JournalEntry::Finished(finished) => finished.result.as_ref().map_or(0, |result| result.to_string().len()),
        JournalEntry::Started(_) | JournalEntry::Rejected(_) => 0,
    }
}

#[cfg(test)]
mod tests;
