//! The journal as bytes: a line for each write, so that a crash can only ever harm those that were not durable.
//!
//! A line is a checksum (CRC-32, eight hexadecimal digits), a mark, a JSON array of records and a newline; JSON itself
//! never holds one. The mark is a blank, or `+`, which the checksum covers, if what is before the line was not known to be
//! durable. The first line names the journal, and zeros at the end are room for more. Parts of what is not durable reach a
//! disk in any order: behind whatever a crash leaves of a line there can be lines with a `+`, and no others.

use rpicluster_protocol::{AttemptKey, JournalEntry, JournalId};
use serde::{Deserialize, Serialize};

/// The number of this format.
const VERSION: u32 = 1;
/// Digits of the checksum.
const CHECKSUM_BYTES: usize = 8;
/// The checksum and the mark after it.
const PREFIX_BYTES: usize = CHECKSUM_BYTES + 1;

/// What is known of what is before a line as it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Before {
    /// All of it is durable.
    Durable,
    /// Some of it may not be.
    Written,
}

impl Before {
    fn mark(self) -> u8 {
        match self {
            Before::Durable => b' ',
            Before::Written => b'+',
        }
    }
}

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
    /// The end was bad: writes that a crash cut short before they were durable.
    pub torn: bool,
}

/// Why bytes are no journal. What they held is not known any more.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// A line that was durable has another checksum or is no record.
    #[error("line {0} is damaged, and not one that a crash cut short")]
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
    encode(&[Record::Journal { id, version: VERSION }], Before::Durable)
}

/// One line of `records`, to be written at once.
pub fn encode(records: &[Record], before: Before) -> Vec<u8> {
    let mut line = vec![b' '; PREFIX_BYTES];
    // Records are numbers and texts below string keys: JSON can say all of them.
    if serde_json::to_writer(&mut line, records).is_err() {
        return Vec::new();
    }
    let checksum = checksum(before, &line[PREFIX_BYTES..]);
    line[..CHECKSUM_BYTES].copy_from_slice(checksum.as_bytes());
    line[CHECKSUM_BYTES] = before.mark();
    line.push(b'\n');
    line
}

/// Reads a journal.
///
/// # Errors
/// If anything is bad that a crash does not explain.
pub fn decode(bytes: &[u8]) -> Result<Contents, Damage> {
    let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    let mut lines = bytes[..end].split_inclusive(|byte| *byte == b'\n').enumerate();
    let beginning = lines.next().and_then(|(_, line)| decode_line(line)).ok_or(Damage::Beginning)?;
    let id = match beginning.as_slice() {
        [Record::Journal { id, version: VERSION }] => *id,
        [Record::Journal { version, .. }] => return Err(Damage::Version(*version)),
        _ => return Err(Damage::Beginning),
    };
    let mut contents = Contents { id, records: Vec::new(), torn: false };
    while let Some((number, line)) = lines.next() {
        let Some(records) = decode_line(line) else {
            contents.torn = true;
            let mut explained =
                lines.by_ref().map(|(_, line)| line.get(CHECKSUM_BYTES) == Some(&Before::Written.mark()));
            return if explained.all(|explained| explained) { Ok(contents) } else { Err(Damage::Line(number + 1)) };
        };
        contents.records.extend(records);
    }
    Ok(contents)
}

/// [`CHECKSUM_BYTES`] of text.
fn checksum(before: Before, json: &[u8]) -> String {
    let mut hasher = crc32fast::Hasher::new();
    if before == Before::Written {
        hasher.update(&[before.mark()]);
    }
    hasher.update(json);
    format!("{:08x}", hasher.finalize())
}

fn decode_line(line: &[u8]) -> Option<Vec<Record>> {
    let (prefix, json) = line.strip_suffix(b"\n")?.split_at_checked(PREFIX_BYTES)?;
    let (found, mark) = prefix.split_at(CHECKSUM_BYTES);
    let before = [Before::Durable, Before::Written].into_iter().find(|before| mark == [before.mark()])?;
    (found == checksum(before, json).as_bytes()).then(|| serde_json::from_slice(json).ok())?
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
            bytes.extend(encode(&[forgotten(index), forgotten(index)], Before::Durable));
        }
        bytes
    }

    #[test]
    fn a_file_that_is_no_journal_says_so() {
        for bad in [&b""[..], b"\n", b"00000000 []\n", b"hello", &encode(&[forgotten(1)], Before::Durable)] {
            assert_eq!(decode(bad), Err(Damage::Beginning));
        }
        let newer = encode(&[Record::Journal { id: JournalId(1), version: 2 }], Before::Durable);
        assert_eq!(decode(&newer), Err(Damage::Version(2)));
    }

    /// Pages of what was not durable reach the disk in any order.
    #[test]
    fn what_was_not_durable_may_be_bad_anywhere_and_is_left_out_from_there_on() {
        let durable = lines(2);
        let first = encode(&[forgotten(2)], Before::Durable);
        let second = encode(&[forgotten(3)], Before::Written);
        let third = encode(&[forgotten(4)], Before::Written);
        let zeros = |line: &[u8], from: usize, to: usize| {
            let mut line = line.to_vec();
            line[from..to].fill(0);
            line
        };
        let room = vec![0; 100];
        let tails = [
            [zeros(&first, 0, 20), second.clone(), third.clone()],
            [zeros(&first, 20, first.len()), second.clone(), third.clone()],
            [vec![0; first.len()], vec![0; second.len()], third.clone()],
            [vec![0; first.len()], second.clone(), zeros(&third, 10, third.len())],
        ];
        for tail in tails {
            let bytes = [durable.clone(), tail.concat(), room.clone()].concat();
            let contents = decode(&bytes).unwrap();
            assert_eq!((contents.records.len(), contents.torn), (4, true), "{}", String::from_utf8_lossy(&bytes));
        }
        let whole = [durable.clone(), first.clone(), second.clone(), room].concat();
        assert_eq!(decode(&whole).map(|contents| (contents.records.len(), contents.torn)), Ok((6, false)));
        let strict = encode(&[forgotten(5)], Before::Durable);
        let bad = [durable, zeros(&first, 0, 20), second, strict].concat();
        assert_eq!(decode(&bad), Err(Damage::Line(4)), "it was durable before the last line was written");
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
