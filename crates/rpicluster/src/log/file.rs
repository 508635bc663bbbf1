//! A log file that cannot fill the disk: a new one each day and at a size, and a bounded number of old ones.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// Writes `<name>.log`; old ones are `<name>.log.1` (the youngest) and so on.
pub(crate) struct RotatingFile {
    path: PathBuf,
    file: File,
    /// Bytes in the current file.
    size: u64,
    /// The day the current file belongs to.
    day: u64,
    limits: Limits,
}

/// What bounds the disk space of a log: `files_max × file_bytes_max`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Number of files, the current one included.
    pub(crate) files_max: u32,
    /// A file that would grow beyond this many bytes is closed early.
    pub(crate) file_bytes_max: u64,
}

impl RotatingFile {
    /// Opens `<folder>/<name>.log`, going on with what is there. The folder is made if it does not exist.
    ///
    /// # Errors
    /// If the folder cannot be made or the file cannot be written.
    pub(crate) fn open(folder: &Path, name: &str, limits: Limits) -> io::Result<RotatingFile> {
        fs::create_dir_all(folder)?;
        let path = folder.join(format!("{name}.log"));
        let file = append_to(&path)?;
        let metadata = file.metadata()?;
        let size = metadata.len();
        let day = if size == 0 { today() } else { day_of(metadata.modified()?) };
        let log = RotatingFile { path, file, size, day, limits };
        log.remove_surplus();
        Ok(log)
    }

    fn write_on(&mut self, day: u64, line: &[u8]) -> io::Result<()> {
        let grown = self.size.saturating_add(line.len() as u64);
        if self.size > 0 && (day != self.day || grown > self.limits.file_bytes_max) {
            self.rotate()?;
        }
        self.day = day;
        self.file.write_all(line)?;
        self.size += line.len() as u64;
        Ok(())
    }

    /// Every old file moves one number up; the oldest is overwritten.
    fn rotate(&mut self) -> io::Result<()> {
        if self.limits.files_max <= 1 {
            self.file.set_len(0)?;
        } else {
            for number in (0..self.limits.files_max - 1).rev() {
                match fs::rename(self.numbered(number), self.numbered(number + 1)) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
            }
            self.file = append_to(&self.path)?;
        }
        self.size = 0;
        Ok(())
    }

    /// Files beyond the limit are left when the limit was lowered between two starts.
    fn remove_surplus(&self) {
        for number in self.limits.files_max.max(1).. {
            if fs::remove_file(self.numbered(number)).is_err() {
                break;
            }
        }
    }

    fn numbered(&self, number: u32) -> PathBuf {
        match number {
            0 => self.path.clone(),
            _ => self.path.with_extension(format!("log.{number}")),
        }
    }
}

impl Write for RotatingFile {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.write_on(today(), line)?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

fn append_to(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

fn today() -> u64 {
    day_of(SystemTime::now())
}

/// Days since 1970 UTC; a clock before that counts as 1970.
fn day_of(time: SystemTime) -> u64 {
    const SECONDS_PER_DAY: u64 = 24 * 60 * 60;
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() / SECONDS_PER_DAY
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_new_day_starts_a_new_file_and_the_number_is_bounded() {
        let folder = tempfile::tempdir().unwrap();
        let limits = Limits { files_max: 3, file_bytes_max: 1000 };
        let mut log = RotatingFile::open(folder.path(), "master", limits).unwrap();
        let first_day = today();
        for day in 0..10 {
            log.write_on(first_day + day, format!("day {day}\n").as_bytes()).unwrap();
        }
        assert_eq!(names(folder.path()), ["master.log", "master.log.1", "master.log.2"]);
        assert_eq!(fs::read_to_string(folder.path().join("master.log")).unwrap(), "day 9\n");
        assert_eq!(fs::read_to_string(folder.path().join("master.log.2")).unwrap(), "day 7\n");
    }

    #[test]
    fn a_flood_on_one_day_stays_within_its_bytes() {
        let folder = tempfile::tempdir().unwrap();
        for files_max in [1, 2] {
            let limits = Limits { files_max, file_bytes_max: 100 };
            let mut log = RotatingFile::open(folder.path(), "slave", limits).unwrap();
            for _ in 0..1000 {
                log.write_all(b"0123456789\n").unwrap();
            }
            let bytes: u64 =
                names(folder.path()).iter().map(|name| folder.path().join(name).metadata().unwrap().len()).sum();
            assert!(bytes > 0 && bytes <= u64::from(files_max) * 100, "{bytes}");
        }
    }

    #[test]
    fn a_restart_goes_on_with_the_file_and_a_lower_limit_removes_old_ones() {
        let folder = tempfile::tempdir().unwrap();
        let day = today();
        let mut log = RotatingFile::open(folder.path(), "master", Limits { files_max: 5, file_bytes_max: 9 }).unwrap();
        for _ in 0..5 {
            log.write_on(day, b"a line\n").unwrap();
        }
        assert_eq!(names(folder.path()).len(), 5);
        let mut log = RotatingFile::open(folder.path(), "master", Limits { files_max: 2, file_bytes_max: 99 }).unwrap();
        log.write_on(day, b"more\n").unwrap();
        assert_eq!(names(folder.path()), ["master.log", "master.log.1"]);
        assert_eq!(fs::read_to_string(folder.path().join("master.log")).unwrap(), "a line\nmore\n");
    }
}
