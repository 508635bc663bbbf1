//! The rows of slaves: what is known of each.

use rpicluster_core::Record;
use rpicluster_protocol::{Details, Liveness, SessionId, SlaveId, State, Timestamp};
use rusqlite::{Connection, Row, Transaction, params};

use super::{Unreadable, json, parsed};

/// The first version of the schema.
pub(super) const SCHEMA: &str = "
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

/// One slave as it is remembered.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct StoredSlave {
    pub(crate) record: Record,
    pub(crate) since: Timestamp,
    pub(crate) details: Option<Details>,
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

pub(super) fn load(connection: &Connection) -> Result<Vec<StoredSlave>, Unreadable> {
    let mut statement = connection.prepare(LOAD)?;
    let mut rows = statement.query([])?;
    let mut slaves = Vec::new();
    while let Some(row) = rows.next()? {
        let raw = RawSlave::read(row)?;
        let id = raw.id.clone();
        slaves.push(raw.parse().map_err(|problem| Unreadable::Damaged { row: format!("slave {id:?}"), problem })?);
    }
    Ok(slaves)
}

pub(super) fn save(transaction: &Transaction<'_>, slaves: &[StoredSlave]) -> Result<(), rusqlite::Error> {
    if slaves.is_empty() {
        return Ok(());
    }
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
    Ok(())
}

pub(super) fn remove(transaction: &Transaction<'_>, id: &SlaveId) -> Result<(), rusqlite::Error> {
    transaction.execute("DELETE FROM slaves WHERE id = ?1", [id.as_str()]).map(drop)
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
