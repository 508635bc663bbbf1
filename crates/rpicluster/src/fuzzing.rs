//! What a fuzzer may do with the configuration, which is private otherwise. Only built with the feature `fuzzing`.

use std::cell::OnceCell;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;

use arbitrary::{Result, Unstructured};
use rpicluster_broker::BrokerConfig;
use tempfile::TempDir;

use crate::config::{BROKER_FILE, CLUSTER_FILE, ClusterFile, Sources, known_keys, read};
use crate::exit::Exit;

/// Takes bytes as the two files and the environment, or as the way to make them: three texts with a zero byte between.
///
/// # Panics
/// If the configuration cannot be read, and the error does not say where.
pub fn configuration(bytes: &[u8]) {
    let mut texts = bytes.splitn(3, |byte| *byte == 0).map(<[u8]>::to_vec);
    let [cluster, broker, variable] = [(); 3].map(|()| texts.next().unwrap_or_default());
    load(&cluster, &broker, variable);
    if let Ok((cluster, broker, variable)) = made(&mut Unstructured::new(bytes)) {
        load(cluster.as_bytes(), broker.as_bytes(), variable.into_bytes());
    }
}

thread_local! {
    /// Where the files of each run lie, one after the other.
    static FOLDER: OnceCell<TempDir> = const { OnceCell::new() };
}

fn load(cluster: &[u8], broker: &[u8], variable: Vec<u8>) {
    let sources = FOLDER.with(|folder| {
        let folder = folder.get_or_init(|| tempfile::tempdir().expect("a temporary folder can be made")).path();
        let paths = [(CLUSTER_FILE, cluster), (BROKER_FILE, broker)].map(|(name, bytes)| {
            let path = folder.join(name);
            std::fs::write(&path, bytes).expect("a temporary file can be written");
            path
        });
        let [cluster, broker] = paths.map(Some);
        Sources { cluster, broker }
    });
    let equals = variable.iter().position(|byte| *byte == b'=').unwrap_or(variable.len());
    let (name, value) = variable.split_at(equals);
    let value = value.get(1..).unwrap_or_default();
    let environment = [(OsString::from_vec(name.to_vec()), OsString::from_vec(value.to_vec()))];
    match read(sources, environment.into_iter()) {
        Ok(configuration) => {
            // What the types take and the checks let through can be looked at and used.
            let _ = configuration.file.cluster.connection();
            let shown = format!("{configuration:?}");
            assert!(shown.len() > 2);
        }
        Err(failure) => {
            let message = &failure.message;
            assert_eq!(failure.exit, Exit::Configuration, "{message}");
            // A variable's name is its key.
            let is_of_variable = message.starts_with("environment variable RPICLUSTER__");
            let is_of_file = [CLUSTER_FILE, BROKER_FILE].iter().any(|name| message.contains(name));
            let is_placed = ["key ", "line "].iter().any(|word| message.contains(word));
            assert!(is_of_variable || is_of_file && is_placed, "names no key or line of a source: {message}");
        }
    }
}

/// Both files and a variable that set keys that there are, mostly to something that they can be.
fn made(bytes: &mut Unstructured<'_>) -> Result<(String, String, String)> {
    let (cluster, broker) = (known_keys::<ClusterFile>(), known_keys::<BrokerConfig>());
    let variable = if bytes.ratio(1, 3)? {
        let is_of_broker = bytes.arbitrary()?;
        let (section, keys) = if is_of_broker { ("BROKER__", &broker) } else { ("", &cluster) };
        let key = bytes.choose(keys)?.to_uppercase().replace('.', "__");
        let value = value(bytes)?.replace('"', "");
        format!("RPICLUSTER__{section}{key}={value}")
    } else {
        String::new()
    };
    Ok((lines(bytes, &cluster)?, lines(bytes, &broker)?, variable))
}

fn lines(bytes: &mut Unstructured<'_>, keys: &[String]) -> Result<String> {
    let mut lines = String::new();
    for _ in 0..bytes.int_in_range(0..=4)? {
        let mut key = bytes.choose(keys)?.clone();
        if bytes.ratio(1, 8)? {
            let at = bytes.choose_index(key.len())?;
            key.remove(at);
        }
        let value = value(bytes)?;
        lines.push_str(&format!("{key} = {value}\n"));
    }
    Ok(lines)
}

fn value(bytes: &mut Unstructured<'_>) -> Result<String> {
    const VALUES: [&str; 28] = [
        "true",
        "0",
        "1",
        "-1",
        "65536",
        "9223372036854775807",
        "1.5",
        "inf",
        "nan",
        "\"\"",
        "\"1s\"",
        "\"1500ms\"",
        "\"100000000000years\"",
        "\"18446744073709551615s\"",
        "\"a\"",
        "\"a/b\"",
        "\"mqtts://head:8883\"",
        "\"127.0.0.1:0\"",
        "\"[::1]:1\"",
        "\"pi-1\"",
        "\"hold\"",
        "\"debug\"",
        "[]",
        "[\"a\", 1]",
        "{}",
        "{ a = \"b\" }",
        "{ address = \"127.0.0.1:1\", tls = true }",
        "2026-11-24T00:00:00Z",
    ];
    if bytes.ratio(1, 6)? {
        let text = String::from_utf8_lossy(bytes.bytes(bytes.len().min(8))?).into_owned();
        return Ok(format!("{text:?}"));
    }
    bytes.choose(&VALUES).map(|value| (*value).to_owned())
}
