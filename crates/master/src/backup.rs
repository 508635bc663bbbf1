//! `rpicluster backup` and `restore`: the master's state in one tar file, taken while it runs.
//!
//! A backup holds the store as it was at one moment, and the certificate authority, which never changes. A manifest
//! comes first, with the length and SHA-256 of each file. Nothing of a state folder is changed before all of that has
//! been checked, and what is restored comes to its place in an order in which a master that starts in between says what
//! is missing.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use rpicluster_machine::{PrivateError, ensure_private_folder, write_private};
use rpicluster_protocol::Timestamp;
use tempfile::NamedTempFile;

use crate::access::Change;
use crate::certificates::{self, CA_FILE, CA_KEY_FILE, CertificateError};
use crate::clock;
use crate::store::{self, STORE_FILE, Store, StoreError};

mod archive;

use archive::Manifest;

/// What a state folder holds that a restored state replaces: the store's last two are SQLite's own.
const REPLACED: [&str; 5] = [CA_FILE, CA_KEY_FILE, STORE_FILE, "master.db-wal", "master.db-shm"];

/// In which order files come to their place. A master that starts in between finds the certificate without its key, and
/// refuses.
const RESTORED: [&str; 3] = [CA_FILE, STORE_FILE, CA_KEY_FILE];

/// Why a state cannot be backed up or restored. Nothing was changed then.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The state folder cannot be made, or others may look into it.
    #[error(transparent)]
    Private(#[from] PrivateError),
    /// The store cannot be used, or a master runs.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The authority is there in half.
    #[error(transparent)]
    Certificates(#[from] CertificateError),
    /// There is nothing to back up.
    #[error("{} holds no master's state (no {STORE_FILE}): name another folder with --state-dir", .0.display())]
    NoState(PathBuf),
    /// The file for the backup exists.
    #[error("{} exists already: --force overwrites it", .0.display())]
    Exists(PathBuf),
    /// There is a state already.
    #[error("{} holds a state already ({file}): --force sets it aside there", .folder.display())]
    Occupied {
        /// The state folder.
        folder: PathBuf,
        /// What of a state is in it.
        file: &'static str,
    },
    /// The folder is being worked on.
    #[error("another backup or restore is at work in {}: try again when it has ended", .0.display())]
    Busy(PathBuf),
    /// The file is no backup, or damaged.
    #[error("{} cannot be restored: {problem}", .path.display())]
    Archive {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The system refuses.
    #[error("cannot {action} {}: {cause}", .path.display())]
    Io {
        /// What was tried, as in `write`.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the system says.
        cause: io::Error,
    },
}

/// What a backup has become.
#[derive(Debug)]
pub struct BackedUp {
    /// Bytes of the file.
    pub bytes: u64,
    /// Whether the state has a certificate authority: not if the configuration names one's own certificate.
    pub has_authority: bool,
}

/// What was restored.
#[derive(Debug)]
pub struct Restored {
    /// When the backup was made, by the clock of its machine.
    pub created: Timestamp,
    /// Slaves that may connect.
    pub slaves: usize,
    /// Accounts.
    pub accounts: usize,
    /// API tokens.
    pub api_tokens: usize,
    /// Where the state lies now that was there before.
    pub set_aside: Option<PathBuf>,
}

/// Writes the state in `state_dir` into `file`, for its owner alone. A master may run there. If this ends early, by a
/// crash too, `file` is what it was.
///
/// # Errors
/// If there is no state, it cannot be read, or `file` exists (unless it is to be overwritten) or cannot be written.
pub fn backup(state_dir: &Path, file: &Path, overwrite: bool) -> Result<BackedUp, BackupError> {
    if !state_dir.join(STORE_FILE).is_file() {
        return Err(BackupError::NoState(state_dir.to_owned()));
    }
    if !overwrite && file.symlink_metadata().is_ok() {
        return Err(BackupError::Exists(file.to_owned()));
    }
    ensure_private_folder(state_dir)?;
    let _turn = turn(state_dir)?;
    let work = Work::begin(state_dir.join("backup.new"))?;
    store::snapshot(state_dir, &work.0.join(STORE_FILE))?;
    let authority = certificates::authority_texts(state_dir)?;
    let has_authority = authority.is_some();
    for (name, text) in [CA_FILE, CA_KEY_FILE].into_iter().zip(authority.into_iter().flatten()) {
        write_private(&work.0.join(name), &text)?;
    }
    let write = io_error("write", file);
    let mut out = NamedTempFile::new_in(parent(file)).map_err(&write)?;
    let files: &[&str] = if has_authority { &RESTORED } else { &[STORE_FILE] };
    archive::write(out.as_file_mut(), &work.0, files, clock::wall()).map_err(&write)?;
    out.as_file().sync_all().map_err(&write)?;
    let bytes = out.as_file().metadata().map_err(&write)?.len();
    let placed = if overwrite { out.persist(file) } else { out.persist_noclobber(file) };
    placed.map_err(|error| match error.error.kind() {
        io::ErrorKind::AlreadyExists => BackupError::Exists(file.to_owned()),
        _ => write(error.error),
    })?;
    sync(parent(file))?;
    Ok(BackedUp { bytes, has_authority })
}

/// Puts the state that `file` holds into `state_dir`, which it makes if need be. Its epoch is a new one, and tokens for
/// joining are left out: some may have been used since.
///
/// # Errors
/// If `file` is no whole backup, a master runs in `state_dir`, or a state is there, unless it is to be set aside.
pub fn restore(state_dir: &Path, file: &Path, set_aside: bool) -> Result<Restored, BackupError> {
    let manifest = archive::check(file)?;
    ensure_private_folder(state_dir)?;
    let _turn = turn(state_dir)?;
    let _lock = store::lock(state_dir)?;
    let present: Vec<&str> =
        REPLACED.into_iter().filter(|name| state_dir.join(name).symlink_metadata().is_ok()).collect();
    if let Some(file) = present.first().filter(|_| !set_aside) {
        return Err(BackupError::Occupied { folder: state_dir.to_owned(), file });
    }
    let work = Work::begin(state_dir.join("restore.new"))?;
    if archive::unpack(file, &work.0)? != manifest {
        return Err(BackupError::Archive { path: file.to_owned(), problem: "it changes while it is read".to_owned() });
    }
    let mut restored = prepare(&work.0, &manifest).map_err(|problem| {
        let path = file.to_owned();
        BackupError::Archive { path, problem }
    })?;
    for name in RESTORED.iter().map(|name| work.0.join(name)).filter(|path| path.exists()) {
        File::open(&name).and_then(|file| file.sync_all()).map_err(io_error("write", &name))?;
    }
    if !present.is_empty() {
        restored.set_aside = Some(move_aside(state_dir, &present)?);
    }
    for name in RESTORED.into_iter().filter(|name| work.0.join(name).exists()) {
        let path = state_dir.join(name);
        fs::rename(work.0.join(name), &path).map_err(io_error("write", &path))?;
    }
    sync(state_dir)?;
    Ok(restored)
}

/// Makes of what was unpacked a state to go on with, if a master can use it.
fn prepare(folder: &Path, manifest: &Manifest) -> Result<Restored, String> {
    let unusable = |error| match error {
        StoreError::Newer { found, .. } => {
            format!("its store has schema version {found}: use the newer rpicluster that made it")
        }
        StoreError::Damaged { row, problem, .. } => format!("its store is damaged: {row}: {problem}"),
        StoreError::Sql { cause, .. } => format!("its store is none: {cause}"),
        other => other.to_string(),
    };
    let store = Store::open(folder).map_err(unusable)?;
    store.begin_anew().map_err(unusable)?;
    store.slaves().map_err(unusable)?;
    let access = store.access().map_err(unusable)?;
    if manifest.has_authority() {
        certificates::check_authority(folder).map_err(|error| format!("its certificate authority is none: {error}"))?;
    }
    let count = |is_one: fn(&Change) -> bool| access.iter().filter(|change| is_one(change)).count();
    Ok(Restored {
        created: manifest.created,
        slaves: count(|change| matches!(change, Change::SlaveEnrolled(_))),
        accounts: count(|change| matches!(change, Change::AccountAdded(_))),
        api_tokens: count(|change| matches!(change, Change::ApiTokenAdded(_))),
        set_aside: None,
    })
}

/// Puts a state into a folder of its own. The certificate goes last, so that a master that starts in between finds it
/// without its key, and refuses.
fn move_aside(state_dir: &Path, present: &[&str]) -> Result<PathBuf, BackupError> {
    let seconds = clock::wall().unix_ms() / 1_000;
    let aside = |number: u64| state_dir.join(format!("before-restore-{}", seconds + number));
    let mut number = 0;
    while aside(number).symlink_metadata().is_ok() {
        number += 1;
    }
    let aside = aside(number);
    DirBuilder::new().mode(0o700).create(&aside).map_err(io_error("make the folder", &aside))?;
    for name in present.iter().rev() {
        let path = state_dir.join(name);
        fs::rename(&path, aside.join(name)).map_err(io_error("move away", &path))?;
    }
    sync(&aside)?;
    Ok(aside)
}

/// A folder in the state folder that goes away with this.
struct Work(PathBuf);

impl Work {
    fn begin(path: PathBuf) -> Result<Work, BackupError> {
        // What a crash left there is of no use.
        match fs::remove_dir_all(&path) {
            Err(cause) if cause.kind() != io::ErrorKind::NotFound => return Err(io_error("remove", &path)(cause)),
            _ => {}
        }
        DirBuilder::new().mode(0o700).create(&path).map_err(io_error("make the folder", &path))?;
        Ok(Work(path))
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        // If it stays, the next one removes it.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// One backup or restore at a time in a state folder. Masters do not mind: their lock is another.
fn turn(state_dir: &Path) -> Result<File, BackupError> {
    let folder = File::open(state_dir).map_err(io_error("open", state_dir))?;
    match folder.try_lock() {
        Ok(()) => Ok(folder),
        Err(fs::TryLockError::WouldBlock) => Err(BackupError::Busy(state_dir.to_owned())),
        Err(fs::TryLockError::Error(cause)) => Err(io_error("lock", state_dir)(cause)),
    }
}

fn parent(file: &Path) -> &Path {
    match file.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

fn sync(folder: &Path) -> Result<(), BackupError> {
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(io_error("write", folder))
}

fn io_error<'a>(action: &'static str, path: &'a Path) -> impl Fn(io::Error) -> BackupError + 'a {
    move |cause| BackupError::Io { action, path: path.to_owned(), cause }
}

#[cfg(test)]
mod tests;
