//! Output on its way into files: nobody ever makes the process wait, and what is too much is cut.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rpicluster_protocol::{AttemptKey, Stream};

use super::wire::name;

/// How much is read at once: what a pipe holds.
pub(crate) const READ_BYTES: usize = 64 * 1024;

/// The folder in which output waits.
#[derive(Debug)]
pub(crate) struct Spool {
    folder: PathBuf,
    /// Bytes that may still be written.
    left: u64,
}

/// One stream of an attempt.
#[derive(Debug)]
pub(crate) struct Spooled {
    path: PathBuf,
    file: Option<File>,
    pub(crate) kept: u64,
    limit: u64,
    /// There was more than is kept.
    pub(crate) cut: bool,
}

/// Where a stream of an attempt waits.
pub(crate) fn spool_path(folder: &Path, key: &AttemptKey, stream: Stream) -> PathBuf {
    let ending = match stream {
        Stream::Stdout => "out",
        Stream::Stderr => "err",
    };
    folder.join(format!("{}.{ending}", name(key)))
}

impl Spool {
    pub(crate) fn new(folder: PathBuf, left: u64) -> Spool {
        Spool { folder, left }
    }

    pub(crate) fn stream(&self, key: &AttemptKey, stream: Stream, limit: u64) -> Spooled {
        Spooled { path: spool_path(&self.folder, key, stream), file: None, kept: 0, limit, cut: false }
    }

    /// Keeps what fits.
    pub(crate) fn write(&mut self, stream: &mut Spooled, bytes: &[u8]) {
        let room = (stream.limit - stream.kept).min(self.left);
        let fits = usize::try_from(room).map_or(bytes, |room| &bytes[..bytes.len().min(room)]);
        stream.cut |= fits.len() < bytes.len();
        if fits.is_empty() {
            return;
        }
        match stream.append(fits) {
            Ok(()) => {
                let length = fits.len() as u64;
                stream.kept += length;
                self.left -= length;
            }
            Err(_) => {
                // A full disk is like a full spool. What was written in part lies beyond what is told.
                stream.cut = true;
                stream.limit = stream.kept;
            }
        }
    }

    /// Reads what a stream has for now and keeps what fits. `false` when nothing more will come.
    pub(crate) fn fill(&mut self, stream: &mut Spooled, pipe: &mut impl Read, buffer: &mut [u8]) -> bool {
        match pipe.read(buffer) {
            Ok(0) => false,
            Ok(length) => {
                self.write(stream, &buffer[..length]);
                true
            }
            Err(error) => matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted),
        }
    }

    /// Removes what waits of an attempt.
    pub(crate) fn forget(&mut self, key: &AttemptKey) {
        for stream in [Stream::Stdout, Stream::Stderr] {
            let path = spool_path(&self.folder, key, stream);
            if let Ok(metadata) = fs::metadata(&path) {
                self.left += metadata.len();
                // What stays is found at the next start.
                let _ = fs::remove_file(&path);
            }
        }
    }
}

impl Spooled {
    /// What comes from now on belongs to nothing.
    pub(crate) fn close(&mut self) {
        self.file = None;
        self.limit = self.kept;
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            None => self.file.insert(OpenOptions::new().append(true).create(true).mode(0o600).open(&self.path)?),
        };
        file.write_all(bytes)
    }
}
