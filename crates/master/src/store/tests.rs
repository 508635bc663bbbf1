use super::*;

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
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().join("a/b");
    let first = [slave("a", Liveness::Online), slave("b", Liveness::Offline)];
    let mut store = Store::open(&folder).unwrap();
    assert_eq!(store.slaves().unwrap(), []);
    store.save(&first).unwrap();
    drop(store);

    let mut store = Store::open(&folder).unwrap();
    assert_eq!(store.slaves().unwrap(), first);
    let mut met = slave("a", Liveness::Offline);
    met.details = None;
    met.record.claim = None;
    store.save(std::slice::from_ref(&met)).unwrap();
    assert_eq!(store.slaves().unwrap(), [met, first[1].clone()]);
}

#[test]
fn it_is_durable_and_readable_by_others() {
    let folder = tempfile::tempdir().unwrap();
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
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let error = Store::open(folder.path()).unwrap_err();
    assert!(matches!(error, StoreError::InUse(_)), "{error}");
    assert!(error.to_string().contains("--state-dir"));
    drop(store);
    Store::open(folder.path()).unwrap();
}

#[test]
fn a_newer_store_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    drop(Store::open(folder.path()).unwrap());
    let newer = Connection::open(folder.path().join("master.db")).unwrap();
    newer.execute_batch("PRAGMA user_version = 7").unwrap();
    drop(newer);
    let error = Store::open(folder.path()).unwrap_err();
    assert!(matches!(error, StoreError::Newer { found: 7, .. }), "{error}");
}

#[test]
fn damage_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("master.db");
    let mut store = Store::open(folder.path()).unwrap();
    store.save(&[slave("a", Liveness::Online)]).unwrap();
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
