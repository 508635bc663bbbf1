//! What the master remembers across restarts. The only file that speaks SQL.
//!
//! One SQLite file in the state folder, in WAL mode with `synchronous=FULL`: a commit that returned survives a power cut.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

use rpicluster_core::Record;
use rpicluster_protocol::{Details, Liveness, SessionId, SlaveId, State, Timestamp};
use rusqlite::{Connection, Row, params};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The schema this program writes, kept in SQLite's `user_version`.
const SCHEMA_VERSION: i64 = 1;

const SCHEMA: &str = "
    CREATE TABLE slaves (
        id TEXT PRIMARY KEY,          -- the slave's id
        online INTEGER NOT NULL,      -- 1 or 0
        since_ms INTEGER NOT NULL,    -- milliseconds since 1970 UTC
        reason TEXT,                  -- why it is offline
        claim TEXT,                   -- JSON: the newest session's own words
        ended INTEGER NOT NULL,       -- 1 if that session said that it is over
        superseded TEXT NOT NULL,     -- JSON: older sessions, the oldest first
        details TEXT                  -- JSON: computer_details
    ) STRICT, WITHOUT ROWID;
    PRAGMA user_version = 1;";

const SAVE: &str = "
    INSERT OR REPLACE INTO slaves (id, online, since_ms, reason, claim, ended, superseded, details)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)";

const LOAD: &str = "SELECT id, online, since_ms, reason, claim, ended, superseded, details FROM slaves ORDER BY id";

/// The open store. While it is open, no other master can open it.
#[derive(Debug)]
pub(crate) struct Store {
    path: PathBuf,
    connection: Connection,
    /// Unlocked when it is closed, also by a crash.
    _lock: File,
}

/// One slave as it is remembered.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct StoredSlave {
    pub(crate) record: Record,
    pub(crate) since: Timestamp,
    pub(crate) details: Option<Details>,
}

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
        found: i64,
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
    #[error("{path} is damaged: slave {id:?}: {problem}; move the file away to start with an empty store")]
    Damaged {
        /// The store's file.
        path: PathBuf,
        /// The row.
        id: String,
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
        let unusable = |path: &Path| {
            let path = path.to_owned();
            move |cause| StoreError::Folder { path, cause }
        };
        std::fs::create_dir_all(folder).map_err(unusable(folder))?;
        let lock_path = folder.join("master.lock");
        let lock = File::create(&lock_path).map_err(unusable(&lock_path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(StoreError::InUse(folder.to_owned())),
            Err(TryLockError::Error(cause)) => return Err(unusable(&lock_path)(cause)),
        }
        let path = folder.join("master.db");
        let open = |cause| StoreError::Sql { action: "open", path: path.clone(), cause };
        let connection = Connection::open(&path).map_err(open)?;
        let store = Store { path: path.clone(), connection, _lock: lock };
        store.prepare()?;
        Ok(store)
    }

    /// All slaves, sorted by id.
    pub(crate) fn slaves(&self) -> Result<Vec<StoredSlave>, StoreError> {
        let read = |cause| self.sql("read", cause);
        let mut statement = self.connection.prepare(LOAD).map_err(read)?;
        let mut rows = statement.query([]).map_err(read)?;
        let mut slaves = Vec::new();
        while let Some(row) = rows.next().map_err(read)? {
            let raw = RawSlave::read(row).map_err(read)?;
            let id = raw.id.clone();
            let damaged = |problem| StoreError::Damaged { path: self.path.clone(), id, problem };
            slaves.push(raw.parse().map_err(damaged)?);
        }
        Ok(slaves)
    }

    /// Writes these slaves, in one transaction.
    pub(crate) fn save(&mut self, slaves: &[StoredSlave]) -> Result<(), StoreError> {
        self.try_save(slaves).map_err(|cause| self.sql("write to", cause))
    }

    fn try_save(&mut self, slaves: &[StoredSlave]) -> Result<(), rusqlite::Error> {
        let transaction = self.connection.transaction()?;
        {
            let mut statement = transaction.prepare(SAVE)?;
            for StoredSlave { record, since, details } in slaves {
                statement.execute(params![
                    record.slave.as_str(),
                    record.liveness == Liveness::Online,
                    i64::try_from(since.unix_ms()).unwrap_or(i64::MAX),
                    record.reason,
                    record.claim.as_ref().map(json).transpose()?,
                    record.ended,
                    json(&record.superseded)?,
                    details.as_ref().map(json).transpose()?,
                ])?;
            }
        }
        transaction.commit()
    }

    fn prepare(&self) -> Result<(), StoreError> {
        let open = |cause| self.sql("open", cause);
        let found: i64 = self.connection.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(open)?;
        if found > SCHEMA_VERSION {
            return Err(StoreError::Newer { path: self.path.clone(), found });
        }
        self.connection.execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;").map_err(open)?;
        if found == 0 {
            self.connection.execute_batch(&format!("BEGIN; {SCHEMA} COMMIT;")).map_err(open)?;
        }
        Ok(())
    }

    /// From now on nothing can be written, until [`Store::mend`].
    #[cfg(test)]
    pub(crate) fn break_down(&self) {
        self.connection.execute_batch("ALTER TABLE slaves RENAME TO elsewhere").expect("the table is there");
    }

    /// See [`Store::break_down`].
    #[cfg(test)]
    pub(crate) fn mend(&self) {
        self.connection.execute_batch("ALTER TABLE elsewhere RENAME TO slaves").expect("the table was renamed");
    }

    fn sql(&self, action: &'static str, cause: rusqlite::Error) -> StoreError {
        StoreError::Sql { action, path: self.path.clone(), cause }
    }
}

/// A row as it lies in the file.
struct RawSlave {
    id: String,
    online: bool,
    since_ms: i64,
    reason: Option<String>,
    claim: Option<String>,
    ended: bool,
    superseded: String,
    details: Option<String>,
}

impl RawSlave {
    fn read(row: &Row<'_>) -> Result<RawSlave, rusqlite::Error> {
        Ok(RawSlave {
            id: row.get(0)?,
            online: row.get(1)?,
            since_ms: row.get(2)?,
            reason: row.get(3)?,
            claim: row.get(4)?,
            ended: row.get(5)?,
            superseded: row.get(6)?,
            details: row.get(7)?,
        })
    }

    fn parse(self) -> Result<StoredSlave, String> {
        let slave: SlaveId = self.id.parse().map_err(|error| format!("{error}"))?;
        let liveness = if self.online { Liveness::Online } else { Liveness::Offline };
        let claim: Option<State> = self.claim.as_deref().map(|text| parsed("claim", text)).transpose()?;
        let superseded: Vec<SessionId> = parsed("superseded", &self.superseded)?;
        let details: Option<Details> = self.details.as_deref().map(|text| parsed("details", text)).transpose()?;
        let record = Record { slave, liveness, reason: self.reason, claim, ended: self.ended, superseded };
        let since = Timestamp::from_unix_ms(u64::try_from(self.since_ms).unwrap_or(0));
        Ok(StoredSlave { record, since, details })
    }
}

fn json(value: &impl Serialize) -> Result<String, rusqlite::Error> {
    serde_json::to_string(value).map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))
}

fn parsed<T: DeserializeOwned>(column: &str, text: &str) -> Result<T, String> {
    serde_json::from_str(text).map_err(|error| format!("column {column}: {error}"))
}

#[cfg(test)]
mod tests;
