//! The rows of access: enrolments, tokens, accounts, API tokens. Of every secret the file holds a hash only.

use rpicluster_protocol::SlaveId;
use rusqlite::{Connection, Row, Transaction, params};

use super::{Unreadable, json, parsed, slaves};
use crate::access::{Account, ApiToken, Change, Enrolment, Hash, Name, PasswordHash, Role, Token, TokenId};

/// The second version of the schema.
pub(super) const SCHEMA: &str = "
    CREATE TABLE enrolments (
        id TEXT PRIMARY KEY,          -- the slave's id
        secret BLOB NOT NULL,         -- SHA-256 of its secret
        labels TEXT NOT NULL,         -- JSON
        created INTEGER NOT NULL      -- seconds since 1970 UTC
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE tokens (
        id TEXT PRIMARY KEY,          -- 8 hexadecimal digits
        secret BLOB NOT NULL,         -- SHA-256 of its random bits
        created INTEGER NOT NULL,     -- seconds since 1970 UTC
        expires INTEGER NOT NULL,     -- likewise
        uses_left INTEGER NOT NULL,
        slave TEXT,                   -- the only slave that may use it
        labels TEXT NOT NULL,         -- JSON
        replaces INTEGER NOT NULL     -- 1 if it may take an id from another machine
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE accounts (
        name TEXT PRIMARY KEY,
        role TEXT NOT NULL,           -- observer, home-assistant or custom
        password TEXT NOT NULL,       -- argon2id, as a PHC string
        publish TEXT NOT NULL,        -- JSON: topic filters of the role custom
        subscribe TEXT NOT NULL       -- JSON: likewise
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE api_tokens (
        name TEXT PRIMARY KEY,
        secret BLOB NOT NULL,         -- SHA-256 of its text
        created INTEGER NOT NULL      -- seconds since 1970 UTC
    ) STRICT, WITHOUT ROWID;
    PRAGMA user_version = 2;";

/// Everything, as the changes that lead to it.
pub(super) fn load(connection: &Connection) -> Result<Vec<Change>, Unreadable> {
    let mut changes = Vec::new();
    let sql = "SELECT id, secret, labels, created FROM enrolments ORDER BY id";
    read(connection, sql, "slave", enrolment, Change::SlaveEnrolled, &mut changes)?;
    let sql = "SELECT id, secret, created, expires, uses_left, slave, labels, replaces FROM tokens ORDER BY id";
    read(connection, sql, "token", token, Change::TokenSet, &mut changes)?;
    let sql = "SELECT name, role, password, publish, subscribe FROM accounts ORDER BY name";
    read(connection, sql, "account", account, Change::AccountAdded, &mut changes)?;
    let sql = "SELECT name, secret, created FROM api_tokens ORDER BY name";
    read(connection, sql, "API token", api_token, Change::ApiTokenAdded, &mut changes)?;
    Ok(changes)
}

/// Writes one change.
pub(super) fn save(transaction: &Transaction<'_>, change: &Change) -> Result<(), rusqlite::Error> {
    let written = match change {
        Change::SlaveEnrolled(enrolment) => transaction.execute(
            "INSERT OR REPLACE INTO enrolments (id, secret, labels, created) VALUES (?1, ?2, ?3, ?4)",
            params![
                enrolment.id.as_str(),
                enrolment.secret.as_bytes(),
                json(&enrolment.labels)?,
                signed(enrolment.created)
            ],
        ),
        Change::SlaveRemoved(id) => {
            slaves::remove(transaction, id)?;
            transaction.execute("DELETE FROM enrolments WHERE id = ?1", [id.as_str()])
        }
        Change::TokenSet(token) => transaction.execute(
            "INSERT OR REPLACE INTO tokens (id, secret, created, expires, uses_left, slave, labels, replaces)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
            params![
                token.id.to_string(),
                token.secret.as_bytes(),
                signed(token.created),
                signed(token.expires),
                token.uses_left,
                token.slave.as_ref().map(SlaveId::as_str),
                json(&token.labels)?,
                token.replace
            ],
        ),
        Change::TokenRemoved(id) => transaction.execute("DELETE FROM tokens WHERE id = ?1", [id.to_string()]),
        Change::AccountAdded(account) => transaction.execute(
            "INSERT OR REPLACE INTO accounts (name, role, password, publish, subscribe) VALUES (?1, ?2, ?3, ?4, ?5)",
            params![
                account.name.as_str(),
                account.role.as_str(),
                account.password.as_str(),
                json(&account.publish)?,
                json(&account.subscribe)?
            ],
        ),
        Change::AccountRemoved(name) => transaction.execute("DELETE FROM accounts WHERE name = ?1", [name.as_str()]),
        Change::ApiTokenAdded(token) => transaction.execute(
            "INSERT OR REPLACE INTO api_tokens (name, secret, created) VALUES (?1, ?2, ?3)",
            params![token.name.as_str(), token.secret.as_bytes(), signed(token.created)],
        ),
        Change::ApiTokenRemoved(name) => transaction.execute("DELETE FROM api_tokens WHERE name = ?1", [name.as_str()]),
    };
    written.map(drop)
}

fn read<T>(
    connection: &Connection,
    sql: &str,
    what: &str,
    parse: impl Fn(&Row<'_>, String) -> Result<T, Unreadable>,
    change: impl Fn(T) -> Change,
    changes: &mut Vec<Change>,
) -> Result<(), Unreadable> {
    let mut statement = connection.prepare(sql)?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let key: String = row.get(0)?;
        let parsed = parse(row, key.clone());
        changes.push(change(parsed.map_err(|error| error.in_row(&format!("{what} {key:?}")))?));
    }
    Ok(())
}

fn enrolment(row: &Row<'_>, id: String) -> Result<Enrolment, Unreadable> {
    Ok(Enrolment {
        id: id.parse().map_err(problem)?,
        secret: hash(row, 1)?,
        labels: parsed("labels", &row.get::<_, String>(2)?)?,
        created: unsigned(row, 3)?,
    })
}

fn token(row: &Row<'_>, id: String) -> Result<Token, Unreadable> {
    let slave: Option<String> = row.get(5)?;
    Ok(Token {
        id: id.parse::<TokenId>().map_err(|()| problem("the id is no token's"))?,
        secret: hash(row, 1)?,
        created: unsigned(row, 2)?,
        expires: unsigned(row, 3)?,
        uses_left: row.get(4)?,
        slave: slave.map(|slave| slave.parse().map_err(problem)).transpose()?,
        labels: parsed("labels", &row.get::<_, String>(6)?)?,
        replace: row.get(7)?,
    })
}

fn account(row: &Row<'_>, name: String) -> Result<Account, Unreadable> {
    let role: String = row.get(1)?;
    Ok(Account {
        name: name.parse::<Name>().map_err(problem)?,
        role: role.parse::<Role>().map_err(|()| problem(format!("column role: {role:?} is not known")))?,
        password: PasswordHash::new(&row.get::<_, String>(2)?),
        publish: parsed("publish", &row.get::<_, String>(3)?)?,
        subscribe: parsed("subscribe", &row.get::<_, String>(4)?)?,
    })
}

fn api_token(row: &Row<'_>, name: String) -> Result<ApiToken, Unreadable> {
    Ok(ApiToken { name: name.parse::<Name>().map_err(problem)?, secret: hash(row, 1)?, created: unsigned(row, 2)? })
}

fn hash(row: &Row<'_>, column: usize) -> Result<Hash, Unreadable> {
    let bytes: Vec<u8> = row.get(column)?;
    let bytes = bytes.try_into().map_err(|_| problem("column secret: it is no SHA-256"))?;
    Ok(Hash::from_bytes(bytes))
}

fn unsigned(row: &Row<'_>, column: usize) -> Result<u64, Unreadable> {
    Ok(u64::try_from(row.get::<_, i64>(column)?).unwrap_or(0))
}

fn signed(seconds: u64) -> i64 {
    i64::try_from(seconds).unwrap_or(i64::MAX)
}

fn problem(problem: impl ToString) -> Unreadable {
    Unreadable::from(problem.to_string())
}
