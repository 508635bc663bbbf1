//! What a slave says of its tasks, for the engine: its journal put together from its parts, all else as it comes. Nothing
//! is answered here: the engine acknowledges once it is written.

use std::sync::Arc;

use rpicluster_protocol::limits::JOURNAL_ATTEMPTS_MAX;
use rpicluster_protocol::{FromSlave, JournalEntry, JournalId, Part, SessionId, TaskJournal, TaskOutput};
use tokio::sync::Semaphore;

use crate::engine::Input;
use crate::engine::tasks::TaskNews;

/// How many bytes of output wait for the engine, of all slaves together: a slow disk must not fill the memory of a Pi.
pub(crate) const OUTPUT_ROOM_BYTES: usize = 16 * 1024 * 1024;

/// A journal of which parts are missing.
#[derive(Debug)]
pub(super) struct Collecting {
    session: SessionId,
    journal: JournalId,
    next: u32,
    attempts: Vec<JournalEntry>,
}

/// What the engine is to be told of a message, if anything yet.
///
/// # Errors
/// The sentence says what is wrong with a journal's part.
pub(super) fn news(
    journal: &mut Option<Box<Collecting>>,
    message: FromSlave,
    part: Option<Part>,
) -> Result<Option<TaskNews>, String> {
    Ok(Some(match message {
        FromSlave::TaskStarted(all) => TaskNews::Events(all.into_iter().map(JournalEntry::Started).collect()),
        FromSlave::TaskRejected(all) => TaskNews::Events(all.into_iter().map(JournalEntry::Rejected).collect()),
        FromSlave::TaskFinished(all) => {
            TaskNews::Events(all.into_iter().map(|one| JournalEntry::Finished(Box::new(one))).collect())
        }
        FromSlave::TaskOutput(pieces) => TaskNews::Output(pieces, None),
        FromSlave::TaskLease(lease) => TaskNews::Lease(lease),
        FromSlave::TaskJournal(received) => return collect(journal, received, part),
        // Nothing else is of tasks.
        _ => return Ok(None),
    }))
}

fn collect(
    collecting: &mut Option<Box<Collecting>>,
    received: TaskJournal,
    part: Option<Part>,
) -> Result<Option<TaskNews>, String> {
    let Part { number, last } = part.unwrap_or(Part { number: 0, last: true });
    let TaskJournal { journal_id: journal, session, attempts } = received;
    let mut whole = match collecting.take() {
        _ if number == 0 => Box::new(Collecting { session, journal, next: 0, attempts: Vec::new() }),
        Some(known) if known.next == number && known.session == session && known.journal == journal => known,
        _ => return Err(format!("task_journal: part {number} does not follow: send it again from part 0")),
    };
    if whole.attempts.len() + attempts.len() > JOURNAL_ATTEMPTS_MAX {
        return Err(format!("task_journal: it has more than {JOURNAL_ATTEMPTS_MAX} attempts"));
    }
    whole.attempts.extend(attempts);
    whole.next = number.saturating_add(1);
    if last {
        let Collecting { session, journal, attempts, .. } = *whole;
        return Ok(Some(TaskNews::Journal(session, journal, attempts)));
    }
    *collecting = Some(whole);
    Ok(None)
}

/// Waits until there is room for output on its way to the engine. All else needs none: it is short.
pub(super) async fn with_room(room: &Arc<Semaphore>, mut input: Input) -> Input {
    if let Input::Tasks { news: TaskNews::Output(pieces, taken), .. } = &mut input {
        let bytes: usize = pieces.iter().map(|piece| size_of::<TaskOutput>() + piece.data.len()).sum();
        // A message has far fewer bytes than there is room, and nobody closes it.
        let bytes = u32::try_from(bytes.min(OUTPUT_ROOM_BYTES)).unwrap_or(u32::MAX);
        *taken = room.clone().acquire_many_owned(bytes).await.ok();
    }
    input
}

#[cfg(test)]
mod tests {
    use rpicluster_protocol::{AttemptKey, Epoch, JobId, TaskId, TaskStarted};

    use super::*;

    fn part(session: &str, index: u32) -> TaskJournal {
        let key = AttemptKey { task: TaskId { job: JobId(1), index }, attempt: 1, epoch: Epoch(1) };
        let attempts = vec![JournalEntry::Started(TaskStarted { key, seq: 1, boot_id: None })];
        TaskJournal { journal_id: JournalId(1), session: session.parse().unwrap(), attempts }
    }

    fn at(number: u32, last: bool) -> Option<Part> {
        Some(Part { number, last })
    }

    #[test]
    fn a_journal_is_told_when_its_last_part_has_come() {
        let mut journal = None;
        assert!(collect(&mut journal, part("s", 0), at(0, false)).unwrap().is_none());
        assert!(collect(&mut journal, part("s", 1), at(1, false)).unwrap().is_none());
        let whole = collect(&mut journal, part("s", 2), at(2, true)).unwrap().unwrap();
        let TaskNews::Journal(_, _, attempts) = whole else { panic!("{whole:?}") };
        assert_eq!(attempts.iter().map(|entry| entry.key().task.index).collect::<Vec<_>>(), [0, 1, 2]);
        assert!(journal.is_none());
        assert!(collect(&mut journal, part("s", 0), None).unwrap().is_some(), "one that is not in parts");
    }

    #[test]
    fn parts_that_do_not_follow_each_other_are_no_journal() {
        for (second, number) in [(part("s", 1), 2), (part("other", 1), 1), (part("s", 1), 7)] {
            let mut journal = None;
            collect(&mut journal, part("s", 0), at(0, false)).unwrap();
            let error = collect(&mut journal, second, at(number, true)).unwrap_err();
            assert!(error.contains("part 0"), "{error}");
            assert!(collect(&mut journal, part("s", 2), at(1, true)).is_err(), "what was collected is gone");
        }
        let mut journal = None;
        let long =
            TaskJournal { attempts: vec![part("s", 0).attempts.remove(0); JOURNAL_ATTEMPTS_MAX], ..part("s", 0) };
        collect(&mut journal, long, at(0, false)).unwrap();
        assert!(collect(&mut journal, part("s", 1), at(1, true)).unwrap_err().contains("more than"));
    }
}
