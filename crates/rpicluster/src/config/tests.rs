use super::*;
use crate::exit::Exit;
use layers::known_keys;
use serde::de::DeserializeOwned;
use std::collections::BTreeSet;
use std::fs;

const TOP_LEVEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

fn nothing() -> std::iter::Empty<(OsString, OsString)> {
    std::iter::empty()
}

/// A line of a sample that shows a setting: its dotted key, and whether it is commented out.
fn shown_keys(sample: &str) -> Vec<(String, bool)> {
    let mut section = String::new();
    let mut keys = Vec::new();
    let mut explained = false;
    for line in sample.lines() {
        let commented = line.strip_prefix("# ");
        let name = commented.unwrap_or(line).split_once(" = ").map(|(name, _)| name);
        let name = name.filter(|name| name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'));
        if let Some(header) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            section = header.to_owned();
        } else if let Some(name) = name {
            assert!(explained, "{section}.{name} has no comment of its own");
            keys.push((format!("{section}.{name}"), commented.is_some()));
        }
        explained = commented.is_some() && name.is_none();
    }
    keys
}

/// Settings, without the sections that hold others.
fn leaves<T: Serialize + DeserializeOwned + Default>() -> BTreeSet<String> {
    let keys = known_keys::<T>();
    let is_section = |key: &String| keys.iter().any(|other| other.starts_with(&format!("{key}.")));
    keys.iter().filter(|key| !is_section(key)).cloned().collect()
}

/// The sample as if its commented settings were set.
fn uncommented(sample: &str) -> String {
    let settings: Vec<&str> = sample
        .lines()
        .map(|line| match line.strip_prefix("# ") {
            Some(rest) if !shown_keys(&format!("# x\n{line}")).is_empty() => rest,
            _ => line,
        })
        .collect();
    settings.join("\n")
}

#[test]
fn the_samples_equal_the_defaults() {
    let sources = Sources::find(&[Path::new(TOP_LEVEL)], None, None);
    assert!(sources.cluster.is_some() && sources.broker.is_some());
    let samples = read(sources, nothing()).unwrap();
    assert_eq!(samples.file, ClusterFile::default());
    assert_eq!(samples.broker, BrokerConfig::default());
}

#[test]
fn the_samples_show_every_setting_and_no_other() {
    let check = |file: &str, known: BTreeSet<String>| {
        let sample = fs::read_to_string(Path::new(TOP_LEVEL).join(file)).unwrap();
        let shown: BTreeSet<String> = shown_keys(&sample).into_iter().map(|(key, _)| key).collect();
        assert_eq!(shown, known, "{file}");
    };
    check(CLUSTER_FILE, leaves::<ClusterFile>());
    check(BROKER_FILE, leaves::<BrokerConfig>());
}

#[test]
fn what_the_samples_comment_out_is_valid_and_only_what_has_no_default() {
    let sample = fs::read_to_string(Path::new(TOP_LEVEL).join(CLUSTER_FILE)).unwrap();
    let defaults = serde_json::to_value(ClusterFile::default()).unwrap();
    for (key, commented) in shown_keys(&sample) {
        let default = defaults.pointer(&format!("/{}", key.replace('.', "/"))).filter(|value| !value.is_null());
        assert_eq!(commented, default.is_none(), "{key}");
    }
    let folder = tempfile::tempdir().unwrap();
    // A password and a file that holds one exclude each other.
    let all_set = uncommented(&sample).replace("password_file = ", "# password_file = ");
    fs::write(folder.path().join(CLUSTER_FILE), all_set).unwrap();
    let all_set = read(Sources::find(&[folder.path()], None, None), nothing()).unwrap().file;
    assert!(all_set.slave.id.is_some() && all_set.slave.slots.is_some() && all_set.log.folder.is_some());
}

#[test]
fn files_are_found_in_order_and_the_broker_beside_a_named_one() {
    let [first, second] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let folders = [first.path(), second.path()];
    assert_eq!(Sources::find(&folders, None, None), Sources::default());
    for name in [CLUSTER_FILE, BROKER_FILE] {
        fs::write(second.path().join(name), "").unwrap();
    }
    fs::write(first.path().join(CLUSTER_FILE), "").unwrap();
    let found = Sources::find(&folders, None, None);
    assert_eq!(found.cluster, Some(first.path().join(CLUSTER_FILE)));
    assert_eq!(found.broker, Some(second.path().join(BROKER_FILE)));

    let named = first.path().join("other.toml");
    assert_eq!(Sources::find(&folders, Some(&named), None), Sources { cluster: Some(named), broker: None });
    let beside = Sources::find(&folders, Some(&second.path().join("other.toml")), None);
    assert_eq!(beside.broker, Some(second.path().join(BROKER_FILE)));
    let both = Sources::find(&folders, None, Some(Path::new("/x/b.toml")));
    assert_eq!(both.broker, Some(PathBuf::from("/x/b.toml")));
}

#[test]
fn the_environment_reaches_both_files() {
    let environment = [
        ("RPICLUSTER__MASTER__HTTP", "127.0.0.1:1"),
        ("RPICLUSTER__BROKER__LISTENERS__LOCAL__ADDRESS", "127.0.0.1:2"),
        ("RPICLUSTER__SLAVE__LABELS__ROOM", "12"),
    ];
    let environment = environment.into_iter().map(|(name, value)| (name.into(), value.into()));
    let configuration = read(Sources::default(), environment).unwrap();
    assert_eq!(configuration.file.master.http.port(), 1);
    assert_eq!(configuration.file.slave.labels["room"], "12");
    assert_eq!(configuration.broker.listeners["local"].address.port(), 2);
}

#[test]
fn values_that_cannot_work_are_named_with_their_origin() {
    let refused = |name: &str, value: &str| {
        let failure = read(Sources::default(), [(name.into(), value.into())].into_iter()).unwrap_err();
        assert_eq!(failure.exit, Exit::Configuration);
        assert!(failure.message.starts_with(&format!("environment variable {name}: ")), "{failure}");
        failure.message
    };
    assert!(refused("RPICLUSTER__MASTER__PRESENCE_TIMEOUT", "1ms").contains("key master.presence_timeout: "));
    assert!(refused("RPICLUSTER__SLAVE__SLOTS", "100000").contains("key slave.slots: use 0 to"));
    assert!(refused("RPICLUSTER__SLAVE__ID", "Ä").contains("key slave.id: slave id"));
    assert!(refused("RPICLUSTER__LOG__FILES_MAX", "0").contains("key log.files_max: use 1 to"));
    assert!(refused("RPICLUSTER__LOG__FILE_BYTES_MAX", "1").contains("key log.file_bytes_max: use at least"));
    assert!(refused("RPICLUSTER__LOG__LEVEL", "loud").contains("expected one of `error`, `warn`"));
    assert!(refused("RPICLUSTER__CLUSTER__TOPIC_ROOT", "a/#").contains("key cluster.topic_root: "));
    assert!(
        refused("RPICLUSTER__BROKER__LIMITS__CONNECTIONS", "0").contains("key limits.connections: 0 cannot be used")
    );
    assert!(refused("RPICLUSTER__BROKER__LIMITS__CONECTIONS", "5").contains("did you mean limits.connections?"));
    assert!(
        refused("RPICLUSTER__CLUSTER__BROKER", "http://x").contains("key cluster.broker: \"http://\" is not known")
    );
    assert!(refused("RPICLUSTER__CLUSTER__PASSWORD", "hunter2").contains("key cluster.password: is for a broker of"));
    assert!(refused("RPICLUSTER__BROKER", "5").contains("a key is missing"));
}

#[test]
fn no_error_repeats_a_password() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(CLUSTER_FILE);
    let sources = || Sources::find(&[folder.path()], None, None);
    for line in ["password = 4711", "password = 'hunter2", "password = ['hunter2']", "password 'hunter2' = 5"] {
        fs::write(&path, format!("[cluster]\nbroker = 'a'\n{line}\n")).unwrap();
        let message = read(sources(), nothing()).unwrap_err().message;
        assert!(message.contains("password") && !message.contains("4711"), "{message}");
        assert!(!message.contains("hunter2"), "{message}");
    }
}

#[test]
fn one_place_names_the_broker() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join(CLUSTER_FILE), "[cluster]\nbroker = 'a'\n[slave]\nmaster = 'b'\n").unwrap();
    let failure = read(Sources::find(&[folder.path()], None, None), nothing()).unwrap_err();
    assert!(failure.message.contains("key slave.master: excludes cluster.broker"), "{failure}");
}
