//! What a backup takes from the store, and in what a restored store differs from the one that was backed up.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};

use super::{STORE_FILE, Store, StoreError, known_version};

/// How long a snapshot waits for a master that is just recovering its store after a crash.
const PATIENCE: Duration = Duration::from_secs(10);

/// Writes everything that is committed to the store in `folder` into a new file. A master that runs there goes on
/// meanwhile: what it commits from now on is not in it, of what it committed before all is.
///
/// # Errors
/// If the store cannot be read, is newer than this program, or the file cannot be written.
pub(crate) fn snapshot(folder: &Path, to: &Path) -> Result<(), StoreError> {
    let path = folder.join(STORE_FILE);
    let sql = |action| {
        let path = path.clone();
        move |cause| StoreError::Sql { action, path, cause }
    };
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(&path, flags).map_err(sql("open"))?;
    connection.busy_timeout(PATIENCE).map_err(sql("open"))?;
    known_version(&connection, &path)?;
    let Some(name) = to.to_str() else {
        let cause = std::io::Error::other("SQLite wants the name of the state folder to be UTF-8");
        return Err(StoreError::Folder { path: to.to_owned(), cause });
    };
    connection.execute("VACUUM INTO ?1", [name]).map_err(sql("copy")).map(drop)
}

impl Store {
    /// Makes of a backup's store one to go on with: of another epoch, without tokens for joining, which may have been used
    /// since, and with unended jobs canceled, which may have run since. It is then one whole file.
    pub(crate) fn begin_anew(&self) -> Result<(), StoreError> {
        let write = |cause| self.sql("write to", cause);
        let found: String =
            self.connection.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0)).map_err(write)?;
        if found != "ok" {
            return Err(StoreError::Damaged { path: self.path.clone(), row: "its pages".to_owned(), problem: found });
        }
        let anew = "BEGIN; UPDATE meta SET epoch = random(); DELETE FROM tokens;
                    UPDATE jobs SET canceled = 1 WHERE ended_ms IS NULL; COMMIT; PRAGMA journal_mode = DELETE;";
        self.connection.execute_batch(anew).map_err(write)
    }
}
