use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use tar::{Builder, EntryType, Header};
use tempfile::TempDir;

use super::*;
use crate::access::{Account, ApiToken, Enrolment, Hash, Labels, PasswordHash, Role, Token, TokenId};
use crate::certificates::{Certificates, Wanted};
use crate::store::private_folder;

fn api_token(name: &str) -> Change {
    Change::ApiTokenAdded(ApiToken { name: name.parse().unwrap(), secret: Hash::of(b"secret"), created: 1 })
}

fn changes() -> Vec<Change> {
    let secret = Hash::of(b"secret");
    vec![
        Change::SlaveEnrolled(Enrolment { id: "pi".parse().unwrap(), secret, labels: Labels::new(), created: 1 }),
        Change::AccountAdded(Account {
            name: "home".parse().unwrap(),
            role: Role::Observer,
            password: PasswordHash::new("$argon2id$v=19$m=19456,t=2,p=1$a$b"),
            publish: Vec::new(),
            subscribe: Vec::new(),
        }),
        api_token("cli"),
    ]
}

fn join_token() -> Change {
    let secret = Hash::of(b"secret");
    let id = TokenId::of(&secret);
    let (labels, slave) = (Labels::new(), None);
    Change::TokenSet(Token { id, secret, created: 1, expires: 1 << 40, uses_left: 1, slave, labels, replace: false })
}

/// A state as a master that ran leaves it, and where a backup of it can lie.
fn state() -> (TempDir, PathBuf, PathBuf) {
    let folder = private_folder();
    let state = folder.path().join("state");
    let mut store = Store::open(&state).unwrap();
    store.save(&[], &changes()).unwrap();
    store.save(&[], [&join_token()]).unwrap();
    Certificates::open(&state, &Wanted::default(), SystemTime::now()).unwrap();
    let file = folder.path().join("head.tar");
    (folder, state, file)
}

/// Names, modes and contents of all that lies in a folder.
fn picture(folder: &Path) -> Vec<(PathBuf, u32, Vec<u8>)> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().map(Result::unwrap) {
            let (path, mode) = (entry.path(), entry.metadata().unwrap().permissions().mode() & 0o7777);
            let bytes = if path.is_dir() { Vec::new() } else { fs::read(&path).unwrap() };
            if path.is_dir() {
                folders.push(path.clone());
            }
            // Its lock says nothing.
            if !path.ends_with("master.lock") {
                found.push((path, mode, bytes));
            }
        }
    }
    found.sort();
    found
}

fn problem(result: Result<Restored, BackupError>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn what_was_backed_up_is_restored_for_its_owner_alone_in_another_epoch_and_without_join_tokens() {
    let (folder, state_dir, file) = state();
    let before = picture(&state_dir);
    let backup = backup(&state_dir, &file, false).unwrap();
    assert!(backup.has_authority);
    assert_eq!(backup.bytes, file.metadata().unwrap().len());
    assert_eq!(file.metadata().unwrap().permissions().mode() & 0o7777, 0o600);
    // SQLite may have made its two files anew to read the store.
    let mut after = picture(&state_dir);
    after.retain(|(path, ..)| !path.to_str().unwrap().contains("master.db-"));
    assert_eq!(after, before);

    let new = folder.path().join("a/new");
    let restored = restore(&new, &file, false).unwrap();
    assert_eq!((restored.slaves, restored.accounts, restored.api_tokens), (1, 1, 1));
    assert_eq!(new.metadata().unwrap().permissions().mode() & 0o7777, 0o700);
    let modes: Vec<_> = picture(&new).into_iter().map(|(path, mode, _)| (path, mode)).collect();
    let wanted = [CA_KEY_FILE, CA_FILE, STORE_FILE].map(|name| (new.join(name), 0o600));
    assert_eq!(modes, wanted);
    for name in [CA_FILE, CA_KEY_FILE] {
        assert_eq!(fs::read(new.join(name)).unwrap(), fs::read(state_dir.join(name)).unwrap(), "{name}");
    }
    let (old, new) = (Store::open(&state_dir).unwrap(), Store::open(&new).unwrap());
    assert_eq!(new.access().unwrap(), changes());
    assert_eq!(old.access().unwrap().len(), changes().len() + 1);
    assert_ne!(old.epoch().unwrap(), new.epoch().unwrap());
}

#[test]
fn a_backup_amid_commits_holds_whole_transactions_and_everything_from_before() {
    let (folder, state_dir, file) = state();
    let mut store = Store::open(&state_dir).unwrap();
    let is_over = AtomicBool::new(false);
    let written = std::sync::atomic::AtomicUsize::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in (0..40).cycle().take_while(|_| !is_over.load(Ordering::Relaxed)) {
                let pair = [api_token(&format!("a-{number}")), api_token(&format!("b-{number}"))];
                store.save(&[], &pair).unwrap();
                written.fetch_max(number + 1, Ordering::SeqCst);
            }
        });
        for number in 0..5 {
            let at_least = written.load(Ordering::SeqCst);
            backup(&state_dir, &file, true).unwrap();
            let restored = restore(&folder.path().join(format!("new-{number}")), &file, false).unwrap();
            assert!(restored.api_tokens % 2 == 1 && restored.api_tokens > 2 * at_least, "{restored:?} {at_least}");
        }
        is_over.store(true, Ordering::Relaxed);
    });
}

#[test]
fn a_backup_overwrites_nothing_unasked_and_says_where_there_is_nothing() {
    let (folder, state_dir, file) = state();
    fs::write(&file, "precious").unwrap();
    assert!(matches!(backup(&state_dir, &file, false), Err(BackupError::Exists(_))));
    assert_eq!(fs::read(&file).unwrap(), b"precious");
    backup(&state_dir, &file, true).unwrap();
    let nothing = backup(&folder.path().join("nowhere"), &file, true).unwrap_err().to_string();
    assert!(nothing.contains("nowhere") && nothing.contains("--state-dir"), "{nothing}");
    let nowhere = backup(&state_dir, &folder.path().join("no/such/folder.tar"), false).unwrap_err().to_string();
    assert!(nowhere.contains("folder.tar"), "{nowhere}");
    fs::remove_file(state_dir.join(CA_KEY_FILE)).unwrap();
    assert!(matches!(backup(&state_dir, &file, true), Err(BackupError::Certificates(_))));
    archive::check(&file).unwrap();
}

#[test]
fn a_state_that_is_there_is_kept_and_set_aside_when_asked() {
    let (folder, state_dir, file) = state();
    backup(&state_dir, &file, false).unwrap();
    let before = picture(&state_dir);
    let occupied = problem(restore(&state_dir, &file, false));
    assert!(occupied.contains("--force"), "{occupied}");
    assert_eq!(picture(&state_dir), before);

    let lock = store::lock(&state_dir).unwrap();
    let running = problem(restore(&state_dir, &file, true));
    assert!(running.contains("another master uses"), "{running}");
    assert_eq!(picture(&state_dir), before);
    drop(lock);
    let turn = turn(&state_dir).unwrap();
    assert!(matches!(restore(&state_dir, &file, true), Err(BackupError::Busy(_))));
    assert!(matches!(backup(&state_dir, &folder.path().join("x"), true), Err(BackupError::Busy(_))));
    drop(turn);

    for _ in 0..2 {
        let aside = restore(&state_dir, &file, true).unwrap().set_aside.unwrap();
        assert_eq!(aside.metadata().unwrap().permissions().mode() & 0o7777, 0o700);
        assert_eq!(fs::read(aside.join(CA_KEY_FILE)).unwrap(), fs::read(state_dir.join(CA_KEY_FILE)).unwrap());
        assert_eq!(Store::open(&aside).unwrap().access().unwrap()[0], changes()[0]);
    }
    // What a crash left half way is worked over.
    fs::create_dir(state_dir.join("restore.new")).unwrap();
    fs::remove_file(state_dir.join(STORE_FILE)).unwrap();
    restore(&state_dir, &file, true).unwrap();
    assert!(!state_dir.join("restore.new").exists());
}

#[test]
fn an_archive_that_is_cut_or_damaged_anywhere_is_refused_or_means_the_same() {
    let (folder, state_dir, file) = state();
    backup(&state_dir, &file, false).unwrap();
    let whole = fs::read(&file).unwrap();
    let manifest = archive::check(&file).unwrap();
    // Two blocks of zeros end it.
    let end = whole.len() - 1024;
    for length in (0..end).step_by(509).chain([end - 513, 512, 513]) {
        fs::write(&file, &whole[..length]).unwrap();
        assert!(archive::check(&file).is_err(), "cut to {length} of {}", whole.len());
    }
    let mut refused = 0;
    for at in (0..end).step_by(61) {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x10;
        fs::write(&file, &damaged).unwrap();
        match archive::check(&file) {
            Ok(read) => assert_eq!(read, manifest, "changed at {at}"),
            Err(error) => {
                assert!(error.to_string().contains("head.tar"), "{error}");
                refused += 1;
            }
        }
    }
    assert!(refused > end / 61 / 2, "{refused} of {} damages were seen", end / 61);
    fs::write(&file, &whole[..end / 2]).unwrap();
    let new = folder.path().join("new");
    let cut = problem(restore(&new, &file, false));
    assert!(cut.contains("head.tar cannot be restored"), "{cut}");
    assert!(!new.exists());
    let no_file = problem(restore(&new, folder.path(), false));
    assert!(no_file.contains("no file"), "{no_file}");
    assert!(problem(restore(&new, &folder.path().join("none"), false)).contains("none"));
}

/// A tar archive of these entries, each with its kind, name and bytes.
fn tar(file: &Path, entries: &[(EntryType, &str, &[u8])]) {
    let mut tar = Builder::new(File::create(file).unwrap());
    for (kind, name, bytes) in entries {
        let mut header = Header::new_ustar();
        header.set_entry_type(*kind);
        header.set_size(bytes.len() as u64);
        // Past all checks of the library that writes it.
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_cksum();
        tar.append(&header, *bytes).unwrap();
    }
    tar.into_inner().unwrap().flush().unwrap();
}

#[test]
fn whatever_is_no_backup_is_refused_and_changes_nothing() {
    let folder = private_folder();
    let (file, new) = (folder.path().join("x.tar"), folder.path().join("new"));
    let sha256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    let manifest = |names: &[&str], bytes: u64| {
        let files: Vec<_> =
            names.iter().map(|name| format!(r#""{name}":{{"bytes":{bytes},"sha256":"{sha256}"}}"#)).collect();
        let created = "2026-11-24T00:00:00Z";
        format!(r#"{{"format":1,"program":"x","created":"{created}","files":{{{}}}}}"#, files.join(","))
    };
    let plain = EntryType::Regular;
    let empty = manifest(&["master.db"], 0);
    let all = manifest(&["master.db", "ca.pem", "ca.key"], 0);
    let newer = empty.replace("\"format\":1", "\"format\":2");
    let long = manifest(&["master.db"], 1 << 31);
    let first = |text: &'_ str| (plain, "manifest.json", text.as_bytes().to_vec());
    type Entry<'a> = (EntryType, &'a str, Vec<u8>);
    let cases: Vec<(Vec<Entry<'_>>, &str)> = vec![
        (vec![], "empty"),
        (vec![(plain, "notes.txt", b"hello".to_vec())], "notes.txt"),
        (vec![first("{}")], "manifest.json"),
        (vec![first(&newer)], "form 2"),
        (vec![first(&long)], "more than"),
        (vec![first(&manifest(&["master.db", "../evil"], 0))], "../evil"),
        (vec![first(&manifest(&["ca.pem", "ca.key"], 0))], "leaves out"),
        (vec![first(&manifest(&["master.db", "ca.pem"], 0))], "leaves out"),
        (vec![first(&empty)], "master.db is missing"),
        (vec![first(&empty), (plain, "../master.db", vec![])], "../master.db"),
        (vec![first(&empty), (plain, "/etc/passwd", vec![])], "/etc/passwd"),
        (vec![first(&empty), (plain, "./master.db", vec![])], "./master.db"),
        (vec![first(&empty), (plain, "ca.key", vec![])], "ca.key"),
        (vec![first(&empty), (plain, "master.db", vec![]), (plain, "master.db", vec![])], "master.db"),
        (vec![first(&empty), first(&empty)], "manifest.json"),
        (vec![first(&empty), (plain, "master.db", b"1".to_vec())], "length"),
        (vec![first(&manifest(&["master.db"], 1)), (plain, "master.db", b"1".to_vec())], "damaged"),
        (vec![first(&empty), (EntryType::Symlink, "master.db", vec![])], "plain file"),
        (vec![first(&empty), (EntryType::Link, "master.db", vec![])], "plain file"),
        (vec![first(&empty), (EntryType::Directory, "master.db", vec![])], "plain file"),
        (vec![first(&empty), (EntryType::GNULongName, "././@LongLink", b"master.db".to_vec())], "plain file"),
        (vec![first(&empty), (EntryType::XHeader, "x", b"17 path=master.db\n".to_vec())], "plain file"),
    ];
    for (entries, named) in cases {
        let entries: Vec<_> = entries.iter().map(|(kind, name, bytes)| (*kind, *name, &bytes[..])).collect();
        tar(&file, &entries);
        let problem = problem(restore(&new, &file, false));
        assert!(problem.contains("x.tar") && problem.contains(named), "{named}: {problem}");
        assert!(!new.exists(), "{named}");
    }
    // A manifest that agrees with what follows does not make it a state.
    let whole = [("master.db", &b""[..]), ("ca.pem", b""), ("ca.key", b"")].map(|(name, bytes)| (plain, name, bytes));
    tar(&file, &[&[(plain, "manifest.json", all.as_bytes())], &whole[..]].concat());
    let no_key = problem(restore(&new, &file, false));
    assert!(no_key.contains("certificate authority"), "{no_key}");
    assert_eq!(picture(&new), []);
    fs::write(&file, "this is no tar archive at all").unwrap();
    assert!(problem(restore(&new, &file, false)).contains("x.tar"));
}

#[test]
fn a_store_of_a_newer_program_or_with_damaged_rows_is_not_restored() {
    let (folder, state_dir, file) = state();
    let new = folder.path().join("new");
    let change = |sql: &str| crate::store::alter(&state_dir, sql);
    change("UPDATE accounts SET role = 'king'");
    backup(&state_dir, &file, true).unwrap();
    let damaged = problem(restore(&new, &file, false));
    assert!(damaged.contains("\"home\"") && damaged.contains("king"), "{damaged}");
    assert_eq!(picture(&new), []);
    change("UPDATE accounts SET role = 'observer'");
    change("PRAGMA user_version = 99");
    let newer = backup(&state_dir, &file, true).unwrap_err().to_string();
    assert!(newer.contains("99") && newer.contains("newer"), "{newer}");
}
