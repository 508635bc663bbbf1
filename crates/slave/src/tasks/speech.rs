//! What there is to say to the master, in the order in which it is said: the journal, renewals, events, output.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use rpicluster_core::Moment;
use rpicluster_core::journal::{AHEAD, Journal};
use rpicluster_protocol::limits::MESSAGE_BYTES_MAX;
use rpicluster_protocol::{
    AttemptKey, Envelope, FromSlave, JournalEntry, JournalId, Part, RequestId, SessionId, TaskJournal, TaskLease,
    Upward, encode_from_slave,
};

use super::output::Outputs;

/// Events that wait; the oldest gives way, and is told again when its time comes.
const EVENTS_MAX: usize = 16_384;
/// That an attempt has begun is said after this, unless it is over by then: a short task has one event, not two.
const BEGINNING_WAIT: Duration = Duration::from_millis(20);
/// An end waits so long for others while the slave has enough to do: they share a message, and the next offers another.
const END_WAIT: Duration = Duration::from_millis(5);
/// So many offers that wait for a slot are enough to do.
const ENOUGH: usize = AHEAD as usize / 2;
/// Room in a message for what is around its entries.
const ENVELOPE_BYTES: usize = 1024;

pub(crate) struct Speech {
    journal_id: JournalId,
    wants_journal: bool,
    /// Parts of a journal that is being told.
    parts: VecDeque<Envelope<FromSlave>>,
    renewals: VecDeque<TaskLease>,
    events: VecDeque<JournalEntry>,
    /// Since when there are events.
    events_since: Option<Moment>,
    /// Beginnings, and when they are said.
    begun: VecDeque<(Moment, JournalEntry)>,
    next_id: u64,
}

impl Speech {
    pub(crate) fn new(journal_id: JournalId) -> Speech {
        Speech {
            journal_id,
            wants_journal: false,
            parts: VecDeque::new(),
            renewals: VecDeque::new(),
            events: VecDeque::new(),
            events_since: None,
            begun: VecDeque::new(),
            next_id: 1,
        }
    }

    /// What was not said in a session is not said in the next: that one begins with the journal.
    pub(crate) fn clear(&mut self) {
        self.wants_journal = false;
        self.parts.clear();
        self.renewals.clear();
        self.forget_events();
    }

    fn forget_events(&mut self) {
        self.events.clear();
        self.events_since = None;
        self.begun.clear();
    }

    /// Whether nothing is to be said by now.
    pub(crate) fn is_empty(&self) -> bool {
        self.parts.is_empty() && self.renewals.is_empty() && self.events.is_empty() && !self.wants_journal
    }

    /// When a beginning is to be said.
    pub(crate) fn poll_timeout(&self) -> Option<Moment> {
        self.begun.front().map(|(at, _)| *at)
    }

    /// When ends that wait for others are to be said.
    pub(crate) fn held_until(&self, journal: &Journal) -> Option<Moment> {
        let is_rest_said = self.parts.is_empty() && self.renewals.is_empty() && !self.wants_journal;
        self.events_since.filter(|_| is_rest_said && journal.waiting() >= ENOUGH).map(|since| since + END_WAIT)
    }

    pub(crate) fn tell(&mut self, now: Moment, entry: JournalEntry) {
        if matches!(entry, JournalEntry::Started(_)) {
            self.begun.push_back((now + BEGINNING_WAIT, entry));
            return;
        }
        self.begun.retain(|(_, begun)| begun.key() != entry.key());
        self.push(now, entry);
    }

    /// What has waited long enough is to be said.
    pub(crate) fn handle_timeout(&mut self, now: Moment) {
        while let Some((_, entry)) = self.begun.pop_front_if(|(at, _)| *at <= now) {
            self.push(now, entry);
        }
    }

    fn push(&mut self, now: Moment, entry: JournalEntry) {
        self.events_since.get_or_insert(now);
        if self.events.len() >= EVENTS_MAX {
            self.events.pop_front();
        }
        self.events.push_back(entry);
    }

    pub(crate) fn tell_journal(&mut self) {
        self.wants_journal = true;
    }

    pub(crate) fn renew(&mut self, lease: TaskLease) {
        self.renewals.push_back(lease);
    }

    /// The next message, encoded.
    pub(crate) fn next(
        &mut self,
        now: Moment,
        session: &SessionId,
        journal: &Journal,
        outputs: &mut Outputs,
    ) -> Option<(Upward, Vec<u8>)> {
        loop {
            let envelope = self.next_envelope(now, session, journal, outputs)?;
            match encode_from_slave(&envelope) {
                Ok(payload) => return Some((envelope.message.leaf(), payload)),
                // Lengths are counted before, so this shows one event that is too long by itself.
                Err(error) => tracing::error!(%error, "a message about tasks cannot be sent"),
            }
        }
    }

    fn next_envelope(
        &mut self,
        now: Moment,
        session: &SessionId,
        journal: &Journal,
        outputs: &mut Outputs,
    ) -> Option<Envelope<FromSlave>> {
        if std::mem::take(&mut self.wants_journal) {
            // Events that wait are in it.
            self.forget_events();
            self.parts = self.journal_parts(session, journal.entries());
        }
        if let Some(part) = self.parts.pop_front() {
            return Some(part);
        }
        if let Some(lease) = self.renewals.pop_front() {
            return Some(self.identified(FromSlave::TaskLease(lease)));
        }
        if self.held_until(journal).is_none_or(|until| until <= now)
            && let Some(events) = self.next_events()
        {
            return Some(self.identified(events));
        }
        let pieces = outputs.next_message(now);
        (!pieces.is_empty()).then(|| FromSlave::TaskOutput(pieces).into())
    }

    fn identified(&mut self, message: FromSlave) -> Envelope<FromSlave> {
        let id = format!("e{}", self.next_id).parse::<RequestId>().ok();
        self.next_id += 1;
        Envelope { id, ..Envelope::new(message) }
    }

    /// Events of one type that fit into a message. Of each attempt only the newest is told, and beginnings first, so that
    /// none comes after its end.
    fn next_events(&mut self) -> Option<FromSlave> {
        let newest: HashMap<AttemptKey, u32> = if self.events.len() > 1 {
            self.events.iter().map(|entry| (entry.key(), entry.seq())).collect()
        } else {
            HashMap::new()
        };
        self.events.retain(|entry| newest.get(&entry.key()).is_none_or(|seq| entry.seq() >= *seq));
        let first = self.events.iter().find(|entry| matches!(entry, JournalEntry::Started(_)));
        let kind = std::mem::discriminant(first.or(self.events.front())?);
        let mut room = MESSAGE_BYTES_MAX - ENVELOPE_BYTES;
        let (mut taken, mut left) = (Vec::new(), VecDeque::new());
        let mut is_full = false;
        for entry in self.events.drain(..) {
            let length = if is_full || std::mem::discriminant(&entry) != kind { None } else { Some(length_of(&entry)) };
            match length {
                Some(length) if length <= room || taken.is_empty() => {
                    room = room.saturating_sub(length);
                    taken.push(entry);
                }
                Some(_) => {
                    is_full = true;
                    left.push_back(entry);
                }
                None => left.push_back(entry),
            }
        }
        self.events = left;
        self.events_since.take_if(|_| self.events.is_empty());
        Some(of_one_kind(taken))
    }

    fn journal_parts(&self, session: &SessionId, entries: Vec<JournalEntry>) -> VecDeque<Envelope<FromSlave>> {
        let mut parts = vec![Vec::new()];
        let mut room = MESSAGE_BYTES_MAX - ENVELOPE_BYTES;
        for entry in entries {
            let length = length_of(&entry);
            if length > room {
                parts.push(Vec::new());
                room = MESSAGE_BYTES_MAX - ENVELOPE_BYTES;
            }
            room = room.saturating_sub(length);
            if let Some(part) = parts.last_mut() {
                part.push(entry);
            }
        }
        let count = parts.len();
        let whole = parts.into_iter().zip(0u32..).map(|(attempts, number)| {
            let journal = TaskJournal { journal_id: self.journal_id, session: session.clone(), attempts };
            let part = Part { number, last: number as usize + 1 == count };
            Envelope { part: Some(part), ..Envelope::new(FromSlave::TaskJournal(journal)) }
        });
        whole.collect()
    }
}

/// Bytes of an event and its comma.
fn length_of(entry: &JournalEntry) -> usize {
    serde_json::to_string(entry).map_or(0, |json| json.len() + 1)
}

fn of_one_kind(entries: Vec<JournalEntry>) -> FromSlave {
    let (mut started, mut finished, mut rejected) = (Vec::new(), Vec::new(), Vec::new());
    for entry in entries {
        match entry {
            JournalEntry::Started(event) => started.push(event),
            JournalEntry::Finished(event) => finished.push(*event),
            JournalEntry::Rejected(event) => rejected.push(event),
        }
    }
    if !started.is_empty() {
        FromSlave::TaskStarted(started)
    } else if !finished.is_empty() {
        FromSlave::TaskFinished(finished)
    } else {
        FromSlave::TaskRejected(rejected)
    }
}

#[cfg(test)]
mod tests {
    use rpicluster_core::journal::{Effect, Input, Verdict};
    use rpicluster_protocol::{
        Epoch, JobId, Outcome, TaskCancel, TaskFinished, TaskId, TaskOffer, TaskStarted, parse_from_slave,
    };

    use super::*;

    const NOW: Moment = Moment::from_millis(1);

    fn key(index: u32) -> AttemptKey {
        AttemptKey { task: TaskId { job: JobId(1), index }, attempt: 1, epoch: Epoch(1) }
    }

    fn started(index: u32) -> JournalEntry {
        JournalEntry::Started(TaskStarted { key: key(index), seq: 1, boot_id: None })
    }

    fn finished(index: u32, result: &str) -> JournalEntry {
        JournalEntry::Finished(Box::new(TaskFinished {
            exit_code: Some(0),
            duration_ms: 1,
            result: Some(result.into()),
            ..TaskFinished::new(key(index), 2, Outcome::Succeeded)
        }))
    }

    /// All that is said, as the master reads it.
    fn said(speech: &mut Speech, journal: &Journal) -> Vec<Envelope<FromSlave>> {
        let folder = tempfile::tempdir().unwrap();
        let mut outputs = Outputs::new(folder.path().to_owned());
        let session = SessionId::from_random(1);
        let mut all = Vec::new();
        while let Some((leaf, payload)) = speech.next(Moment::default(), &session, journal, &mut outputs) {
            all.push(parse_from_slave(leaf, &payload).unwrap());
        }
        all
    }

    #[test]
    fn a_long_journal_comes_in_parts_and_before_all_else() {
        let mut journal = Journal::new(1, None);
        let mut effects: Vec<Effect> = Vec::new();
        for index in 0..1000 {
            journal.handle(Moment::default(), Input::Cancel(TaskCancel { key: key(index) }), &mut effects);
        }
        let records = journal.recorded();
        journal.handle(Moment::default(), Input::Synced { records }, &mut effects);
        let mut speech = Speech::new(JournalId(7));
        speech.tell(NOW, started(1));
        speech.tell_journal();
        speech.tell(NOW, started(2000));
        let said = said(&mut speech, &journal);
        let parts: Vec<(Part, usize)> = said
            .iter()
            .filter_map(|envelope| match &envelope.message {
                FromSlave::TaskJournal(journal) => Some((envelope.part.unwrap(), journal.attempts.len())),
                _ => None,
            })
            .collect();
        assert!(parts.len() > 1);
        assert!(parts.iter().zip(0..).all(|((part, _), number)| part.number == number));
        assert_eq!(parts.iter().filter(|(part, _)| part.last).count(), 1);
        assert_eq!(parts.iter().map(|(_, length)| length).sum::<usize>(), 1000);
        assert_eq!(said.len(), parts.len(), "events that waited are in the journal");
    }

    #[test]
    fn a_short_task_has_one_event_and_a_long_one_is_told_of_in_time() {
        let mut speech = Speech::new(JournalId(7));
        let journal = Journal::new(1, None);
        speech.tell(NOW, started(1));
        speech.tell(NOW, started(2));
        speech.handle_timeout(NOW);
        assert!(speech.is_empty());
        speech.tell(NOW, finished(1, "short"));
        let messages = |said: Vec<Envelope<FromSlave>>| said.into_iter().map(|one| one.message).collect::<Vec<_>>();
        let all = messages(said(&mut speech, &journal));
        assert!(matches!(&all[..], [FromSlave::TaskFinished(ends)] if ends.len() == 1), "{all:?}");
        let due = speech.poll_timeout().unwrap();
        assert_eq!(due, NOW + BEGINNING_WAIT);
        speech.handle_timeout(due);
        assert_eq!(speech.poll_timeout(), None);
        let all = messages(said(&mut speech, &journal));
        assert!(matches!(&all[..], [FromSlave::TaskStarted(begun)] if begun[0].key == key(2)), "{all:?}");
    }

    #[test]
    fn ends_wait_for_others_while_there_is_enough_to_do() {
        let session = SessionId::from_random(1);
        let offer = |index| {
            let spec = serde_json::from_value(serde_json::json!({"kind": "exec", "argv": ["true"]})).unwrap();
            let offer = TaskOffer { key: key(index), session: session.clone(), lease_ms: 60_000, spec };
            Input::Offer { offer: Box::new(offer), verdict: Verdict::Run }
        };
        let mut journal = Journal::new(1, None);
        let mut effects: Vec<Effect> = Vec::new();
        journal.handle(NOW, Input::SessionBegan(session.clone()), &mut effects);
        (0..=ENOUGH as u32).for_each(|index| journal.handle(NOW, offer(index), &mut effects));
        assert_eq!(journal.waiting(), ENOUGH);
        let mut speech = Speech::new(JournalId(7));
        let folder = tempfile::tempdir().unwrap();
        let mut outputs = Outputs::new(folder.path().to_owned());
        let mut next = |speech: &mut Speech, now, journal: &Journal| {
            speech.next(now, &session, journal, &mut outputs).map(|(leaf, payload)| parse_from_slave(leaf, &payload))
        };
        speech.tell(NOW, finished(8, "x"));
        assert!(next(&mut speech, NOW, &journal).is_none());
        assert_eq!(speech.held_until(&journal), Some(NOW + END_WAIT));
        speech.tell(NOW + END_WAIT, finished(9, "x"));
        let told = next(&mut speech, NOW + END_WAIT, &journal).unwrap().unwrap().message;
        assert!(matches!(&told, FromSlave::TaskFinished(ends) if ends.len() == 2), "{told:?}");
        assert_eq!(speech.held_until(&journal), None);
        speech.tell(NOW, finished(10, "x"));
        assert!(next(&mut speech, NOW, &Journal::new(1, None)).is_some(), "who has nothing more to do wants more");
    }

    #[test]
    fn events_share_messages_the_newest_of_each_attempt_and_beginnings_first() {
        let mut speech = Speech::new(JournalId(7));
        for index in 0..100 {
            speech.tell(NOW, started(index));
        }
        speech.handle_timeout(NOW + BEGINNING_WAIT);
        for index in 0..50 {
            speech.tell(NOW, finished(index, &"x".repeat(2000)));
        }
        let said = said(&mut speech, &Journal::new(1, None));
        let [FromSlave::TaskStarted(begun), rest @ ..] =
            &said.iter().map(|one| one.message.clone()).collect::<Vec<_>>()[..]
        else {
            panic!("no beginnings");
        };
        assert_eq!(begun.len(), 50);
        let ends: Vec<u32> = rest
            .iter()
            .flat_map(|message| match message {
                FromSlave::TaskFinished(ends) => ends.iter().map(|end| end.key.task.index).collect::<Vec<_>>(),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(ends, (0..50).collect::<Vec<_>>());
        assert!(rest.len() > 1 && said.iter().all(|one| one.id.is_some()));
    }
}
