use rpicluster_core::Record;
use rpicluster_protocol::{Details, Liveness, SessionId, SlaveId, State, Timestamp};

use super::*;
use crate::access::{Account, ApiToken, Enrolment, Hash, Labels, PasswordHash, Role, Token, TokenId};

/// The whole of a file that version 1 of the schema had, with a slave in it.
const VERSION_1: &str = r#"
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
    PRAGMA user_version = 1;
    INSERT INTO slaves VALUES ('pi', 0, 1700000000123, 'stopped',
        '{"state":"online","session":"s9","protocol":1}', 1, '["s8"]', '{"hostname":"h"}');"#;

fn slave(id: &str, liveness: Liveness) -> StoredSlave {
    let session: SessionId = "s9".parse().unwrap();
    StoredSlave {
        record: Record {
            slave: id.parse().unwrap(),
            liveness,
            reason: (liveness == Liveness::Offline).then(|| "stopped".to_owned()),
            claim: Some(State {
                state: Liveness::Online,
                session,
                protocol: Some(1),
                boot_id: Some("b".into()),
                version: None,
                slots: Some(4),
                ahead: Some(2),
                reason: None,
            }),
            ended: liveness == Liveness::Offline,
            superseded: vec!["s7".parse().unwrap(), "s8".parse().unwrap()],
        },
        since: Timestamp::from_unix_ms(1_700_000_000_123),
        details: Some(Details { hostname: Some("höst\"".into()), ram: Some(1 << 40), ..Details::default() }),
    }
}

#[test]
fn what_was_saved_is_there_when_it_is_opened_again() {
    let folder = private_folder();
    let folder = folder.path().join("a/b");
    let first = [slave("a", Liveness::Online), slave("b", Liveness::Offline)];
    let mut store = Store::open(&folder).unwrap();
    assert_eq!(store.slaves().unwrap(), []);
    store.save(&first, []).unwrap();
    drop(store);

    let mut store = Store::open(&folder).unwrap();
    assert_eq!(store.slaves().unwrap(), first);
    let mut met = slave("a", Liveness::Offline);
    met.details = None;
    met.record.claim = None;
    store.save(std::slice::from_ref(&met), []).unwrap();
    assert_eq!(store.slaves().unwrap(), [met, first[1].clone()]);
}

#[test]
fn it_is_durable_and_readable_by_others() {
    let folder = private_folder();
    let store = Store::open(folder.path()).unwrap();
    let pragma = |name: &str| -> String {
        let sql = format!("PRAGMA {name}");
        let value: rusqlite::types::Value = store.connection.query_row(&sql, [], |row| row.get(0)).unwrap();
        format!("{value:?}")
    };
    assert_eq!(pragma("journal_mode"), r#"Text("wal")"#);
    assert_eq!(pragma("synchronous"), "Integer(2)");
    assert_eq!(pragma("user_version"), format!("Integer({SCHEMA_VERSION})"));
}

#[test]
fn a_second_master_is_told_who_is_in_its_way() {
    let folder = private_folder();
    let store = Store::open(folder.path()).unwrap();
    let error = Store::open(folder.path()).unwrap_err();
    assert!(matches!(error, StoreError::InUse(_)), "{error}");
    assert!(error.to_string().contains("--state-dir"));
    drop(store);
    Store::open(folder.path()).unwrap();
}

#[test]
fn a_newer_store_is_refused_and_left_alone() {
    let folder = private_folder();
    drop(Store::open(folder.path()).unwrap());
    let newer = Connection::open(folder.path().join("master.db")).unwrap();
    newer.execute_batch("PRAGMA user_version = 7").unwrap();
    drop(newer);
    let error = Store::open(folder.path()).unwrap_err();
    assert!(matches!(error, StoreError::Newer { found: 7, .. }), "{error}");
}

#[test]
fn damage_is_named() {
    let folder = private_folder();
    let path = folder.path().join("master.db");
    let mut store = Store::open(folder.path()).unwrap();
    store.save(&[slave("a", Liveness::Online)], []).unwrap();
    store.connection.execute_batch("UPDATE slaves SET claim = '{'").unwrap();
    let error = store.slaves().unwrap_err().to_string();
    assert!(error.contains("\"a\"") && error.contains("claim") && error.contains("master.db"), "{error}");
    drop(store);

    std::fs::write(&path, "this is no database at all, and long enough to be seen as none").unwrap();
    assert!(matches!(Store::open(folder.path()).unwrap_err(), StoreError::Sql { .. }));
}

#[test]
fn an_impossible_folder_is_named() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let error = Store::open(&file.path().join("below")).unwrap_err();
    assert!(error.to_string().contains("below"), "{error}");
}

/// One of each kind of row.
fn access() -> Vec<Change> {
    let secret = Hash::of(b"secret");
    let labels = Labels::from([("room".to_owned(), "lab \"1\"".to_owned())]);
    let id: SlaveId = "pi".parse().unwrap();
    vec![
        Change::SlaveEnrolled(Enrolment { id: id.clone(), secret, labels: labels.clone(), created: 1 }),
        Change::TokenSet(Token {
            id: TokenId::of(&secret),
            secret,
            created: 1,
            expires: u64::MAX >> 1,
            uses_left: u32::MAX,
            slave: Some(id),
            labels,
            replace: true,
        }),
        Change::AccountAdded(Account {
            name: "home".parse().unwrap(),
            role: Role::Custom,
            password: PasswordHash::new("$argon2id$v=19$m=19456,t=2,p=1$a$b"),
            publish: vec!["a/#".to_owned()],
            subscribe: vec!["+/\"b\"".to_owned()],
        }),
        Change::ApiTokenAdded(ApiToken { name: "cli".parse().unwrap(), secret, created: 1 }),
    ]
}

#[test]
fn access_is_read_as_it_was_written_and_what_is_removed_is_gone() {
    let folder = private_folder();
    let mut store = Store::open(folder.path()).unwrap();
    assert_eq!(store.access().unwrap(), []);
    store.save(&[slave("pi", Liveness::Online)], &access()).unwrap();
    drop(store);
    let mut store = Store::open(folder.path()).unwrap();
    assert_eq!(store.access().unwrap(), access());
    assert_eq!(store.slaves().unwrap().len(), 1);

    let removed = [
        Change::SlaveRemoved("pi".parse().unwrap()),
        Change::TokenRemoved(TokenId::of(&Hash::of(b"secret"))),
        Change::AccountRemoved("home".parse().unwrap()),
        Change::ApiTokenRemoved("cli".parse().unwrap()),
    ];
    // A slave that has changed in the very moment of its removal is gone nevertheless.
    store.save(&[slave("pi", Liveness::Offline)], &removed).unwrap();
    assert_eq!(store.access().unwrap(), []);
    assert_eq!(store.slaves().unwrap(), []);
}

#[test]
fn one_change_that_cannot_be_written_takes_back_the_whole_transaction() {
    let folder = private_folder();
    let mut store = Store::open(folder.path()).unwrap();
    store.connection.execute_batch("DROP TABLE api_tokens").unwrap();
    let error = store.save(&[slave("a", Liveness::Online)], &access()).unwrap_err();
    assert!(error.to_string().contains("write to"), "{error}");
    assert_eq!(store.slaves().unwrap(), []);
    let left: i64 = store.connection.query_row("SELECT count(*) FROM enrolments", [], |row| row.get(0)).unwrap();
    assert_eq!(left, 0);
}

#[test]
fn a_store_of_the_first_version_is_brought_forward_with_all_it_holds() {
    let folder = private_folder();
    let old = Connection::open(folder.path().join("master.db")).unwrap();
    old.execute_batch(VERSION_1).unwrap();
    drop(old);
    let mut store = Store::open(folder.path()).unwrap();
    let slaves = store.slaves().unwrap();
    assert_eq!((slaves.len(), slaves[0].record.slave.as_str()), (1, "pi"));
    assert_eq!(slaves[0].since, Timestamp::from_unix_ms(1_700_000_000_123));
    assert_eq!(store.access().unwrap(), []);
    store.save(&[], &access()).unwrap();
    drop(store);

    let store = Store::open(folder.path()).unwrap();
    assert_eq!(store.access().unwrap(), access());
    let version: i64 = store.connection.query_row("PRAGMA user_version", [], |row| row.get(0)).unwrap();
    assert_eq!(version, 4);
}

#[test]
fn damaged_rows_of_access_are_named() {
    let folder = private_folder();
    let mut store = Store::open(folder.path()).unwrap();
    store.save(&[], &access()).unwrap();
    let token = TokenId::of(&Hash::of(b"secret")).to_string();
    let damages = [
        ("UPDATE enrolments SET secret = x'00'", "slave \"pi\": column secret"),
        ("UPDATE enrolments SET labels = '['", "slave \"pi\": column labels"),
        ("UPDATE enrolments SET id = 'P'", "slave \"P\": "),
        ("UPDATE tokens SET uses_left = -1", &format!("token \"{token}\": ")),
        ("UPDATE tokens SET slave = '-'", &format!("token \"{token}\": ")),
        ("UPDATE tokens SET id = 'x'", "token \"x\": "),
        ("UPDATE accounts SET role = 'king'", "account \"home\": column role: \"king\""),
        ("UPDATE accounts SET subscribe = '{}'", "account \"home\": column subscribe"),
        ("UPDATE api_tokens SET secret = x''", "API token \"cli\": column secret"),
    ];
    for (damage, named) in damages {
        store.connection.execute_batch(&format!("BEGIN; {damage};")).unwrap();
        let error = store.access().unwrap_err();
        assert!(matches!(error, StoreError::Damaged { .. }), "{damage}: {error}");
        assert!(error.to_string().contains(named) && error.to_string().contains("master.db"), "{damage}: {error}");
        store.connection.execute_batch("ROLLBACK").unwrap();
    }
    assert_eq!(store.access().unwrap(), access());
}

#[test]
fn a_store_keeps_its_epoch_and_no_two_have_the_same() {
    let folders = [private_folder(), private_folder()];
    let old = Connection::open(folders[1].path().join("master.db")).unwrap();
    old.execute_batch(&format!("{} {}", slaves::SCHEMA, access::SCHEMA)).unwrap();
    drop(old);
    let epoch = |number: usize| Store::open(folders[number].path()).unwrap().epoch().unwrap();
    let epochs = [epoch(0), epoch(1)];
    assert_ne!(epochs[0], epochs[1], "of a new one, and of one that had none before");
    assert_eq!([epoch(0), epoch(1)], epochs);
    let store = Store::open(folders[0].path()).unwrap();
    store.begin_anew().unwrap();
    assert_ne!(store.epoch().unwrap(), epochs[0]);
}
