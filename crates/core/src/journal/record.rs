//! The journal as bytes: a line for each write, so that a crash can only ever harm the last one.
//!
//! A line is a checksum (CRC-32, eight hexadecimal digits), a blank, a JSON array of records and a newline; JSON itself
//! never holds one. The first line names the journal. Many records that are made durable together share a line: parts of
//! a write reach a disk in any order, and whatever a crash leaves of it is one bad line at the end.

use rpicluster_protocol::{AttemptKey, JournalEntry, JournalId};
use serde::{Deserialize, Serialize};

/// The number of this format.
const VERSION: u32 = 1;
/// Digits of the checksum and the blank after them.
const PREFIX_BYTES: usize = 9;

/// What the journal keeps.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Record {
    /// Which journal this is: always the first, alone on its line.
    Journal {
        /// Its name.
        id: JournalId,
        /// The number of the format.
        version: u32,
    },
    /// The newest event of an attempt.
    Entry {
        /// The event.
        entry: JournalEntry,
        /// It boots the machine or powers it off: another boot id tells later that it did.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        alone: bool,
    },
    /// The master has recorded all of this attempt.
    Forgotten(AttemptKey),
}

/// A journal that was read.
#[derive(Debug, Clone, PartialEq)]
pub struct Contents {
    /// Which.
    pub id: JournalId,
    /// All that it holds, in order, without the first.
    pub records: Vec<Record>,
    /// The last line was bad: a write that a crash cut short, and that nobody was told of.
    pub torn: bool,
}

/// Why bytes are no journal. What they held is not known any more.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// A line that is not the last has another checksum or is no record.
    #[error("line {0} is damaged, and not the last")]
    Line(usize),
    /// The first line does not name the journal.
    #[error("it does not begin as a journal does")]
    Beginning,
    /// It was written by a newer program.
    #[error("it has format {0}, and this program knows {VERSION}")]
    Version(u32),
}

/// The first line of the journal `id`.
pub fn encode_beginning(id: JournalId) -> Vec<u8> {
    encode(&[Record::Journal { id, version: VERSION }])
}

/// One line of `records`, to be written at once.
pub fn encode(records: &[Record]) -> Vec<u8> {
    let mut line = vec![b' '; PREFIX_BYTES];
    // Records are numbers and texts below string keys: JSON can say all of them.
    if serde_json::to_writer(&mut line, records).is_err() {
        return Vec::new();
    }
    let checksum = checksum(&line[PREFIX_BYTES..]);
    line[..PREFIX_BYTES].copy_from_slice(checksum.as_bytes());
    line.push(b'\n');
    line
}

/// Reads a journal.
///
/// # Errors
/// If anything but its last line is bad.
pub fn decode(bytes: &[u8]) -> Result<Contents, Damage> {
    let mut lines = bytes.split_inclusive(|byte| *byte == b'\n').enumerate().peekable();
    let beginning = lines.next().and_then(|(_, line)| decode_line(line)).ok_or(Damage::Beginning)?;
    let id = match beginning.as_slice() {
        [Record::Journal { id, version: VERSION }] => *id,
        [Record::Journal { version, .. }] => return Err(Damage::Version(*version)),
        _ => return Err(Damage::Beginning),
    };
    let mut contents = Contents { id, records: Vec::new(), torn: false };
    while let Some((number, line)) = lines.next() {
        match decode_line(line) {
            Some(records) => contents.records.extend(records),
            None if lines.peek().is_none() => contents.torn = true,
            None => return Err(Damage::Line(number + 1)),
        }
    }
    Ok(contents)
}

/// [`PREFIX_BYTES`] of text.
fn checksum(json: &[u8]) -> String {
    format!("{:08x} ", crc32fast::hash(json))
}

fn decode_line(line: &[u8]) -> Option<Vec<Record>> {
    let line = line.strip_suffix(b"\n")?;
    let (prefix, json) = line.split_at_checked(PREFIX_BYTES)?;
    let expected = checksum(json);
    (prefix == expected.as_bytes()).then(|| serde_json::from_slice(json).ok())?
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rpicluster_protocol::{Epoch, JobId, TaskId};

    use super::*;

    fn forgotten(index: u32) -> Record {
        let task = TaskId { job: JobId(7), index };
        Record::Forgotten(AttemptKey { task, attempt: 1, epoch: Epoch(u64::MAX) })
    }

    fn lines(count: u32) -> Vec<u8> {
        let mut bytes = encode_beginning(JournalId(9));
        for index in 0..count {
            bytes.extend(encode(&[forgotten(index), forgotten(index)]));
        }
        bytes
    }

    #[test]
    fn a_file_that_is_no_journal_says_so() {
        for bad in [&b""[..], b"\n", b"00000000 []\n", b"hello", &encode(&[forgotten(1)])] {
            assert_eq!(decode(bad), Err(Damage::Beginning));
        }
        let newer = encode(&[Record::Journal { id: JournalId(1), version: 2 }]);
        assert_eq!(decode(&newer), Err(Damage::Version(2)));
    }

    proptest! {
        #[test]
        fn a_journal_cut_anywhere_loses_only_its_last_line(count in 0u32..5, cut: prop::sample::Index) {
            let whole = lines(count);
            let first = encode_beginning(JournalId(9)).len();
            let cut = first + cut.index(whole.len() - first + 1);
            let contents = decode(&whole[..cut]).unwrap();
            let complete = whole[..cut].iter().filter(|byte| **byte == b'\n').count() - 1;
            prop_assert_eq!(contents.records.len(), 2 * complete);
            prop_assert_eq!(contents.torn, !whole[..cut].ends_with(b"\n"));
        }

        #[test]
        fn a_changed_byte_is_noticed_and_torn_only_at_the_end(
            count in 1u32..5, at: prop::sample::Index, change in 1u8..=255
        ) {
            let mut bytes = lines(count);
            let at = at.index(bytes.len());
            let last = bytes[..bytes.len() - 1].iter().rposition(|byte| *byte == b'\n').unwrap();
            bytes[at] ^= change;
            match decode(&bytes) {
                Ok(contents) => prop_assert!(contents.torn && at >= last && contents.records.len() < 2 * count as usize),
                Err(_) => prop_assert!(at <= last + 1 || bytes[at] == b'\n'),
            }
        }
    }
}
