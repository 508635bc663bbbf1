//! What tells one store from another.

use super::{Store, StoreError};

/// The third version of the schema.
pub(super) const SCHEMA: &str = "
    CREATE TABLE meta (
        one INTEGER PRIMARY KEY CHECK (one = 1),  -- there is one row
        epoch INTEGER NOT NULL                    -- 64 random bits, others in every restored store
    ) STRICT;
    INSERT INTO meta (one, epoch) VALUES (1, random());
    PRAGMA user_version = 3;";

impl Store {
    /// What tells this store from every other, also from the one of whose backup it was made: what was begun under another
    /// epoch does not concern it.
    pub(crate) fn epoch(&self) -> Result<u64, StoreError> {
        let read = |cause| self.sql("read", cause);
        let epoch: i64 = self.connection.query_row("SELECT epoch FROM meta", [], |row| row.get(0)).map_err(read)?;
        Ok(epoch.cast_unsigned())
    }
}
