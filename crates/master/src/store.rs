//! What the master remembers across restarts. The only place that speaks SQL.
//!
//! One SQLite file in the state folder, in WAL mode with `synchronous=FULL`: a commit that returned survives a power cut.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rpicluster_core::tasks::{JobSpec, NodeRecord, Task};
use rpicluster_machine::{PrivateError, ensure_private_folder};
use rpicluster_protocol::JobId;
use rusqlite::Connection;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::access::Change;

mod access;
mod backup;
mod meta;
mod reader;
mod slaves;
mod tasks;

pub(crate) use backup::snapshot;
pub(crate) use reader::{Pieces, Reader};
pub(crate) use slaves::StoredSlave;
pub(crate) use tasks::{About, Deed, JobRow, StoredJob, SubmittedJob, Swept, TaskRows, Totals};

/// The file in the state folder.
pub(crate) const STORE_FILE: &str = "master.db";

/// How the schema came to be: each entry leads from the version before to the next. The version is kept in SQLite's
/// `user_version`.
const MIGRATIONS: [&str; 4] = [slaves::SCHEMA, access::SCHEMA, meta::SCHEMA, tasks::SCHEMA];

/// The schema this program writes.
const SCHEMA_VERSION: usize = MIGRATIONS.len();

/// The open store. While it is open, no other master can open it.
#[derive(Debug)]
pub(crate) struct Store {
    path: PathBuf,
    connection: Connection,
    /// Unlocked when it is closed, also by a crash.
    _lock: File,
}

/// A job, what it does, and those of its tasks that were ever tried, by their places.
pub(crate) type WholeJob = (StoredJob, Arc<JobSpec>, Vec<(u32, Task)>);

/// Why the store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The state folder or its lock file cannot be made.
    #[error("cannot use the state folder {path}: {cause}; choose another with --state-dir")]
    Folder {
        /// The folder or file.
        path: PathBuf,
        /// What the system says.
        cause: std::io::Error,
    },
    /// The state folder cannot be made, or others may look into it.
    #[error("{0}; or choose another folder with --state-dir")]
    Private(#[from] PrivateError),
    /// Another master runs on this folder.
    #[error("another master uses the state folder {0}: stop it, or choose another folder with --state-dir")]
    InUse(PathBuf),
    /// The store was written by a newer program.
    #[error(
        "{path} has schema version {found}, this program knows {SCHEMA_VERSION}: use the newer rpicluster that wrote it"
    )]
    Newer {
        /// The store's file.
        path: PathBuf,
        /// The version it has.
        found: usize,
    },
    /// SQLite refused something.
    #[error("cannot {action} {path}: {cause}")]
    Sql {
        /// What was tried, as in `write to`.
        action: &'static str,
        /// The store's file.
        path: PathBuf,
        /// What SQLite says.
        cause: rusqlite::Error,
    },
    /// A row does not hold what this program writes.
    #[error("{path} is damaged: {row}: {problem}; move the file away to start with an empty store")]
    Damaged {
        /// The store's file.
        path: PathBuf,
        /// The row, as in `slave "pi-7"`.
        row: String,
        /// What is wrong with it.
        problem: String,
    },
}

impl Store {
    /// Opens the store in `folder`, making both if they do not exist.
    ///
    /// # Errors
    /// If the folder cannot be used or is in use, or the file is newer than this program or no store.
    pub(crate) fn open(folder: &Path) -> Result<Store, StoreError> {
        ensure_private_folder(folder)?;
        let lock = lock(folder)?;
        let path = folder.join(STORE_FILE);
        let open = |cause| StoreError::Sql { action: "open", path: path.clone(), cause };
        let connection = Connection::open(&path).map_err(open)?;
        let store = Store { path: path.clone(), connection, _lock: lock };
        store.prepare()?;
        Ok(store)
    }

    /// All slaves, sorted by id.
    pub(crate) fn slaves(&self) -> Result<Vec<StoredSlave>, StoreError> {
        slaves::load(&self.connection).map_err(|error| self.unreadable(error))
    }

    /// Who may connect, as the changes that lead to it.
    pub(crate) fn access(&self) -> Result<Vec<Change>, StoreError> {
        access::load(&self.connection).map_err(|error| self.unreadable(error))
    }

    /// Writes these slaves, makes these changes, and writes these rows of tasks, all in one transaction.
    pub(crate) fn save_all<'a>(
        &mut self,
        slaves: &[StoredSlave],
        changes: impl IntoIterator<Item = &'a Change>,
        rows: &TaskRows<'_>,
    ) -> Result<Swept, StoreError> {
        self.try_save(slaves, changes, rows).map_err(|cause| self.sql("write to", cause))
    }

    fn try_save<'a>(
        &mut self,
        slaves: &[StoredSlave],
        changes: impl IntoIterator<Item = &'a Change>,
        rows: &TaskRows<'_>,
    ) -> Result<Swept, rusqlite::Error> {
        let transaction = self.connection.transaction()?;
        slaves::save(&transaction, slaves)?;
        for change in changes {
            access::save(&transaction, change)?;
        }
        let swept = tasks::save(&transaction, rows)?;
        transaction.commit()?;
        Ok(swept)
    }

    /// The same without tasks.
    #[cfg(test)]
    pub(crate) fn save<'a>(
        &mut self,
        slaves: &[StoredSlave],
        changes: impl IntoIterator<Item = &'a Change>,
    ) -> Result<(), StoreError> {
        self.save_all(slaves, changes, &TaskRows::default()).map(drop)
    }

    /// Jobs that may still change: all that have not ended, and the newest with lost tasks, with no more than so many tasks.
    pub(crate) fn unsettled_jobs(&self, tasks_max: usize) -> Result<Vec<JobId>, StoreError> {
        tasks::unsettled(&self.connection, tasks_max).map_err(|error| self.unreadable(error))
    }

    /// A job, if it is there.
    pub(crate) fn job(&self, job: JobId) -> Result<Option<WholeJob>, StoreError> {
        let read = || -> Result<_, Unreadable> {
            let found = tasks::job(&self.connection, job)?.zip(tasks::spec(&self.connection, job)?);
            let Some((found, spec)) = found else { return Ok(None) };
            Ok(Some((found, Arc::new(spec), tasks::tasks(&self.connection, job, 0, u32::MAX)?)))
        };
        read().map_err(|error| self.unreadable(error))
    }

    /// Whether a job is there.
    pub(crate) fn has_job(&self, job: JobId) -> Result<bool, StoreError> {
        tasks::has_job(&self.connection, job).map_err(|error| self.unreadable(error))
    }

    /// What is kept of slaves with regard to tasks.
    pub(crate) fn task_nodes(&self) -> Result<Vec<NodeRecord>, StoreError> {
        tasks::nodes(&self.connection).map_err(|error| self.unreadable(error))
    }

    /// Numbers to count on from.
    pub(crate) fn totals(&self) -> Result<Totals, StoreError> {
        tasks::totals(&self.connection).map_err(|error| self.unreadable(error))
    }

    /// What was answered when a job was submitted under this key, if one was.
    pub(crate) fn answer(&self, key: &str) -> Result<Option<String>, StoreError> {
        tasks::answer(&self.connection, key).map_err(|error| self.unreadable(error))
    }

    /// For those who only read, on threads of their own.
    pub(crate) fn reader(&self) -> Reader {
        Reader::new(self.path.clone())
    }

    fn prepare(&self) -> Result<(), StoreError> {
        let open = |cause| self.sql("open", cause);
        let found = known_version(&self.connection, &self.path)?;
        self.connection.execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;").map_err(open)?;
        for migration in &MIGRATIONS[found..] {
            self.connection.execute_batch(&format!("BEGIN; {migration} COMMIT;")).map_err(open)?;
        }
        Ok(())
    }

    /// From now on nothing can be written, until [`Store::mend`].
    #[cfg(test)]
    pub(crate) fn break_down(&self) {
        self.connection.execute_batch("PRAGMA query_only = ON").expect("it can be set");
    }

    /// See [`Store::break_down`].
    #[cfg(test)]
    pub(crate) fn mend(&self) {
        self.connection.execute_batch("PRAGMA query_only = OFF").expect("it can be set");
    }

    fn unreadable(&self, error: Unreadable) -> StoreError {
        error.of(&self.path)
    }

    fn sql(&self, action: &'static str, cause: rusqlite::Error) -> StoreError {
        StoreError::Sql { action, path: self.path.clone(), cause }
    }
}

/// Keeps every master out of a state folder for as long as what is returned lives.
///
/// # Errors
/// If one is at work there.
pub(crate) fn lock(folder: &Path) -> Result<File, StoreError> {
    let path = folder.join("master.lock");
    let unusable = |cause| StoreError::Folder { path: path.clone(), cause };
    let lock = File::create(&path).map_err(unusable)?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(StoreError::InUse(folder.to_owned())),
        Err(TryLockError::Error(cause)) => Err(unusable(cause)),
    }
}

/// The version of the schema, if this program knows it.
fn known_version(connection: &Connection, path: &Path) -> Result<usize, StoreError> {
    let open = |cause| StoreError::Sql { action: "open", path: path.to_owned(), cause };
    let found: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(open)?;
    // A negative version is none that any program has written.
    match usize::try_from(found).unwrap_or(usize::MAX) {
        found if found > SCHEMA_VERSION => Err(StoreError::Newer { path: path.to_owned(), found }),
        found => Ok(found),
    }
}

/// Why rows cannot be read.
enum Unreadable {
    /// SQLite refuses.
    Sql(rusqlite::Error),
    /// A row does not hold what this program writes.
    Damaged { row: String, problem: String },
}

impl Unreadable {
    /// The same as an error of the store in this file.
    fn of(self, path: &Path) -> StoreError {
        let path = path.to_owned();
        match self {
            Unreadable::Sql(cause) => StoreError::Sql { action: "read", path, cause },
            Unreadable::Damaged { row, problem } => StoreError::Damaged { path, row, problem },
        }
    }

    /// What cannot be read is part of this row.
    fn in_row(self, name: &str) -> Unreadable {
        use rusqlite::Error::{FromSqlConversionFailure, IntegralValueOutOfRange, InvalidColumnType};
        let problem = match self {
            Unreadable::Damaged { problem, .. } => problem,
            Unreadable::Sql(
                cause @ (FromSqlConversionFailure(..) | IntegralValueOutOfRange(..) | InvalidColumnType(..)),
            ) => cause.to_string(),
            Unreadable::Sql(cause) => return Unreadable::Sql(cause),
        };
        Unreadable::Damaged { row: name.to_owned(), problem }
    }
}

impl From<rusqlite::Error> for Unreadable {
    fn from(cause: rusqlite::Error) -> Unreadable {
        Unreadable::Sql(cause)
    }
}

impl From<String> for Unreadable {
    fn from(problem: String) -> Unreadable {
        Unreadable::Damaged { row: String::new(), problem }
    }
}

fn json(value: &impl Serialize) -> Result<String, rusqlite::Error> {
    serde_json::to_string(value).map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))
}

fn parsed<T: DeserializeOwned>(column: &str, text: &str) -> Result<T, String> {
    serde_json::from_str(text).map_err(|error| format!("column {column}: {error}"))
}

/// From now on no enrolment can be written to the store in `folder`, until what is returned is dropped.
#[cfg(test)]
pub(crate) fn break_enrolments(folder: &Path) -> impl Drop + use<> {
    struct Broken(Connection);
    impl Drop for Broken {
        fn drop(&mut self) {
            self.0.execute_batch("ALTER TABLE elsewhere RENAME TO enrolments").expect("the table was renamed");
        }
    }
    let connection = Connection::open(folder.join("master.db")).expect("there is a store");
    connection.execute_batch("ALTER TABLE enrolments RENAME TO elsewhere").expect("the table is there");
    Broken(connection)
}

/// Changes the store in a folder by its own language.
#[cfg(test)]
pub(crate) fn alter(folder: &Path, sql: &str) {
    let connection = Connection::open(folder.join(STORE_FILE)).expect("there is a store");
    connection.execute_batch(sql).expect("it can be changed");
}

/// A folder such as a store wants.
#[cfg(test)]
pub(crate) fn private_folder() -> tempfile::TempDir {
    use std::os::unix::fs::PermissionsExt as _;
    let private = std::fs::Permissions::from_mode(0o700);
    tempfile::Builder::new().permissions(private).tempdir().expect("a temporary folder can be made")
}

#[cfg(test)]
mod tests;
