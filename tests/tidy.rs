use std::fs;
use std::path::{Path, PathBuf};

/// A file beyond this wants to be two ideas.
const LINES_MAX: usize = 600;

/// All Rust files below `folder`, by their path from the repository's top.
fn rust_files(folder: &str) -> Vec<(String, String)> {
    let top = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../..")).canonicalize().unwrap();
    let mut files = Vec::new();
    let mut folders: Vec<PathBuf> = vec![top.join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(&top).unwrap().display().to_string();
                files.push((name, fs::read_to_string(&path).unwrap()));
            }
        }
    }
    assert!(!files.is_empty(), "{folder} has no Rust files");
    files
}

/// Files outside of test modules, without their comments and without what follows `#[cfg(test)]`.
fn product() -> Vec<(String, String)> {
    let is_test = |name: &str| name.ends_with("/tests.rs") || name.contains("/tests/");
    let files = rust_files("crates").into_iter().filter(|(name, _)| !is_test(name));
    files
        .map(|(name, text)| {
            let product = text.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
            let code = product.lines().filter(|line| !line.trim_start().starts_with("//"));
            (name, code.map(|line| format!("{line}\n")).collect())
        })
        .collect()
}

fn nowhere_but(places: &[&str], words: &[&str]) {
    for (name, text) in product() {
        if places.iter().any(|place| name.starts_with(place)) {
            continue;
        }
        for (number, line) in text.lines().enumerate() {
            let word = words.iter().find(|word| line.contains(*word));
            assert!(word.is_none(), "{name}, line {} of code: {line:?} belongs in {places:?}", number + 1);
        }
    }
}

#[test]
fn no_file_is_too_long() {
    let sources = rust_files("crates").into_iter().filter(|(name, _)| name.contains("/src/"));
    for (name, text) in sources.chain(rust_files("tests")) {
        let lines = text.lines().count();
        assert!(lines <= LINES_MAX, "{name} has {lines} lines, more than {LINES_MAX}: it wants to be two files");
    }
}

#[test]
fn only_the_broker_knows_rumqttd() {
    // The bench measures the stock server beside ours; the log silences the router by its name.
    nowhere_but(&["crates/broker/", "crates/bench/", "crates/rpicluster/src/log.rs"], &["rumqttd"]);
}

#[test]
fn only_the_store_speaks_sql() {
    nowhere_but(&["crates/master/src/store"], &["SELECT ", "INSERT ", "UPDATE ", "DELETE ", "CREATE TABLE", "PRAGMA "]);
}

#[test]
fn only_one_file_spells_topics() {
    // The benchmark speaks as a stranger would.
    nowhere_but(&["crates/protocol/src/topic.rs", "crates/bench/"], &["/from/", "/to/", "master/state"]);
}

#[test]
fn core_does_nothing_but_decide() {
    for (name, text) in product().into_iter().filter(|(name, _)| name.starts_with("crates/core/")) {
        for word in ["std::fs", "std::net", "std::thread", "Instant::now", "SystemTime::now", "tokio", "rand::"] {
            assert!(!text.contains(word), "{name} uses {word}");
        }
    }
}

#[test]
fn every_limit_of_the_broker_is_crossed_by_a_test() {
    let config = rust_files("crates/broker/src").into_iter().find(|(name, _)| name.ends_with("/config.rs")).unwrap().1;
    let limits = config.split_once("pub struct Limits {").unwrap().1.split_once("\n}").unwrap().0;
    let keys = limits.lines().filter_map(|line| line.trim().strip_prefix("pub ")?.split_once(':')).map(|(key, _)| key);
    let tests: String = rust_files("crates/broker/tests").into_iter().map(|(_, text)| text).collect();
    let missing: Vec<&str> = keys.filter(|key| !tests.contains(&format!("limits.{key} ="))).collect();
    assert!(missing.is_empty(), "no test in crates/broker/tests sets limits.{missing:?}");
}

#[test]
fn the_image_is_built_of_every_crate() {
    let top = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../..")).canonicalize().unwrap();
    let dockerfile = fs::read_to_string(top.join("Dockerfile")).unwrap();
    for entry in fs::read_dir(top.join("crates")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let line = format!("COPY crates/{name}/Cargo.toml crates/{name}/");
        assert!(dockerfile.lines().any(|known| known == line), "the Dockerfile lacks {line:?}");
    }
}
