//! How an agent that starts finds its journal.

use std::collections::BTreeMap;

use rpicluster_protocol::{AttemptKey, JournalEntry, Outcome, TaskFinished};

use super::attempt::{Attempt, ended};
use super::{Journal, Record, result_bytes};

impl Journal {
    /// The journal as an agent that starts finds it. Attempts that had begun and not ended are over, and the caller has
    /// killed what was left of them; `spooled` tells how many bytes are kept of their two streams.
    ///
    /// The file is to be written anew with [`Journal::records`], which [`Input::Synced`](super::Input::Synced) with 0 confirms.
    pub fn restore(
        slots: u32,
        boot_id: Option<String>,
        records: Vec<Record>,
        spooled: impl Fn(AttemptKey) -> (u64, u64),
    ) -> Journal {
        let mut entries = BTreeMap::new();
        for record in records {
            match record {
                Record::Journal { .. } => {}
                Record::Entry { entry, alone } => {
                    entries.insert(entry.key(), (entry, alone));
                }
                Record::Forgotten(key) => {
                    entries.remove(&key);
                }
            }
        }
        let mut journal = Journal::new(slots, boot_id);
        for (key, (entry, alone)) in entries {
            let entry = match entry {
                JournalEntry::Started(begun) => {
                    let (stdout, stderr) = spooled(key);
                    let (outcome, reason) = match (alone, begun.boot_id == journal.boot_id) {
                        (true, false) => (Outcome::Succeeded, None),
                        (true, true) => (Outcome::Failed, Some("the machine has not booted since")),
                        (false, _) => (Outcome::Lost, Some("agent crashed")),
                    };
                    let finished = TaskFinished { stdout, stderr, ..ended(key, outcome, reason) };
                    JournalEntry::Finished(Box::new(TaskFinished { seq: begun.seq + 1, ..finished }))
                }
                over => over,
            };
            journal.result_bytes += result_bytes(&entry);
            journal.attempts.insert(key, Attempt::over(entry));
            journal.unsynced.push_back((0, key));
        }
        journal
    }
}
