//! The journal's file: lines appended, made durable together, and written anew when most of it is history.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rpicluster_core::journal::{Before, Contents, Damage, Record, decode, encode, encode_beginning};
use rpicluster_protocol::JournalId;

/// From this size on it is written anew once it is four times as long as what it must hold.
const COMPACT_BYTES: u64 = 1024 * 1024;
/// So many zeros are written ahead of the records. To make durable what does not change a file's length costs half as much
/// time and wear where the file system has a journal of its own.
const ROOM_BYTES: u64 = 8 * 1024;
/// Longer than any journal: compaction keeps it far below.
const FILE_BYTES_MAX: u64 = 512 * 1024 * 1024;

/// An open journal. Whatever fails leaves it in need of being written anew, which [`JournalFile::commit`] does.
#[derive(Debug)]
pub(crate) struct JournalFile {
    path: PathBuf,
    id: JournalId,
    file: Option<File>,
    /// Of records.
    bytes: u64,
    /// Of the file, with the zeros behind them.
    length: u64,
    /// All of it is durable.
    is_durable: bool,
    /// How long it was when it held nothing but what it must.
    compact_bytes: u64,
}

/// What was found where the journal should be.
#[derive(Debug)]
pub(crate) enum Found {
    Nothing,
    Journal(Contents),
    /// It was set aside.
    Damaged {
        damage: Damage,
        aside: PathBuf,
    },
}

/// Reads the journal; a damaged one is set aside, so that nobody takes it for the truth.
pub(crate) fn read(path: &Path) -> io::Result<Found> {
    let mut bytes = Vec::new();
    match File::open(path) {
        Ok(file) => file.take(FILE_BYTES_MAX).read_to_end(&mut bytes)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
        Err(error) => return Err(error),
    };
    match decode(&bytes) {
        Ok(contents) => Ok(Found::Journal(contents)),
        Err(damage) => {
            let aside = path.with_extension("damaged");
            fs::rename(path, &aside)?;
            Ok(Found::Damaged { damage, aside })
        }
    }
}

impl JournalFile {
    /// A journal that is written with its first [`JournalFile::commit`].
    pub(crate) fn new(path: PathBuf, id: JournalId) -> JournalFile {
        JournalFile { path, id, file: None, bytes: 0, length: 0, is_durable: true, compact_bytes: 0 }
    }

    pub(crate) fn id(&self) -> JournalId {
        self.id
    }

    /// Writes `records` behind those before, where they survive this process, and makes all durable if that is wanted;
    /// `all` tells what a new file must hold.
    ///
    /// # Errors
    /// If the system refuses. The next commit then writes a new file, because nobody knows what is in this one.
    pub(crate) fn commit(
        &mut self,
        records: &[Record],
        durable: bool,
        all: impl FnOnce() -> Vec<Record>,
    ) -> io::Result<()> {
        let is_history = self.bytes > COMPACT_BYTES && self.bytes > 4 * self.compact_bytes;
        let Some(file) = self.file.take_if(|_| !is_history) else { return self.rewrite(&all()) };
        if !records.is_empty() {
            let before = if self.is_durable { Before::Durable } else { Before::Written };
            self.is_durable = false;
            self.write(&file, &encode(records, before))?;
        }
        if durable {
            file.sync_data()?;
            self.is_durable = true;
        }
        self.file = Some(file);
        Ok(())
    }

    /// Writes behind the records, and zeros ahead of those to come where there are none. A disk without room for the zeros
    /// may have it for the records.
    fn write(&mut self, file: &File, bytes: &[u8]) -> io::Result<()> {
        let end = self.bytes + bytes.len() as u64;
        if end > self.length {
            let room = vec![0; ROOM_BYTES as usize];
            let is_made = file.write_all_at(&room, end).is_ok();
            self.length = end + if is_made { ROOM_BYTES } else { 0 };
        }
        file.write_all_at(bytes, self.bytes)?;
        self.bytes = end;
        Ok(())
    }

    /// Puts a new file in the place of the old one: after a crash there is one or the other, whole.
    fn rewrite(&mut self, all: &[Record]) -> io::Result<()> {
        self.file = None;
        let beside = self.path.with_extension("new");
        match fs::remove_file(&beside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
        let mut bytes = encode_beginning(self.id);
        if !all.is_empty() {
            bytes.extend(encode(all, Before::Durable));
        }
        (self.bytes, self.length) = (0, 0);
        self.write(&file, &bytes)?;
        file.sync_all()?;
        fs::rename(&beside, &self.path)?;
        if let Some(folder) = self.path.parent() {
            File::open(folder)?.sync_all()?;
        }
        self.is_durable = true;
        self.compact_bytes = self.bytes;
        self.file = Some(file);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use rpicluster_protocol::{AttemptKey, Epoch, JobId, TaskId};

    use super::*;

    fn record(index: u32) -> Record {
        let task = TaskId { job: JobId(1), index };
        Record::Forgotten(AttemptKey { task, attempt: 1, epoch: Epoch(1) })
    }

    fn contents(path: &Path) -> Contents {
        match read(path).unwrap() {
            Found::Journal(contents) => contents,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_is_committed_is_found_again_and_history_is_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        assert!(matches!(read(&path).unwrap(), Found::Nothing));
        let mut file = JournalFile::new(path.clone(), JournalId(7));
        file.commit(&[], true, || vec![record(0)]).unwrap();
        let many: Vec<Record> = (1..1000).map(record).collect();
        let mut longest = 0;
        for _ in 0..30 {
            file.commit(&many, true, || vec![record(0)]).unwrap();
            longest = longest.max(fs::metadata(&path).unwrap().len());
        }
        assert!(longest < COMPACT_BYTES + 200_000, "{longest}");
        let found = contents(&path);
        assert_eq!((found.id, found.torn), (JournalId(7), false));
        assert_eq!(found.records[0], record(0));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_a_disk_has_refused_is_written_whole_when_it_can_be() {
        let folder = tempfile::tempdir().unwrap();
        let (state, path) = (folder.path().join("state"), folder.path().join("state/journal"));
        let mut file = JournalFile::new(path.clone(), JournalId(7));
        assert!(file.commit(&[record(1)], true, || vec![record(1)]).is_err());
        fs::create_dir(&state).unwrap();
        file.commit(&[], true, || vec![record(1)]).unwrap();
        assert_eq!(contents(&path).records, [record(1)]);
    }

    #[test]
    fn a_damaged_file_is_set_aside() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        fs::write(&path, "no journal\n").unwrap();
        assert!(matches!(read(&path).unwrap(), Found::Damaged { .. }));
        assert!(!path.exists());
        assert_eq!(fs::read_to_string(folder.path().join("journal.damaged")).unwrap(), "no journal\n");
    }
}
