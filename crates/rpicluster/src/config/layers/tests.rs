use super::*;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::time::Duration;

#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Sample {
    net: Net,
    other: Other,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Net {
    address: std::net::SocketAddr,
    port: u16,
    fast: bool,
    share: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    words: Vec<String>,
    mode: Mode,
    listeners: BTreeMap<String, Listener>,
}

#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Other {
    timeout_ms: u64,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Listener {
    address: String,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Mode {
    Slow,
    Quick,
}

impl Default for Net {
    fn default() -> Self {
        Net {
            address: ([127, 0, 0, 1], 1883).into(),
            port: 1,
            fast: false,
            share: Duration::from_millis(500).as_secs_f64(),
            name: None,
            words: Vec::new(),
            mode: Mode::Slow,
            listeners: BTreeMap::new(),
        }
    }
}

fn environment(pairs: &[(&str, &str)]) -> Vec<Variable> {
    variables(pairs.iter().map(|(name, value)| (name.into(), value.into()))).unwrap()
}

fn valid(sample: &Sample) -> Result<(), Invalid> {
    let invalid = Invalid { key: "other.timeout_ms".to_owned(), problem: "use less than 1000".to_owned() };
    if sample.other.timeout_ms < 1000 { Ok(()) } else { Err(invalid) }
}

/// The typed result of a file with `toml` and an environment; `<file>` stands for the file's name in errors.
fn loaded(toml: &str, pairs: &[(&str, &str)]) -> Result<Sample, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sample.toml");
    std::fs::write(&path, toml).unwrap();
    load_layers(Some(&path), environment(pairs), valid).map_err(|failure| {
        assert_eq!(failure.exit, Exit::Configuration);
        failure.message.replace(&path.display().to_string(), "<file>")
    })
}

#[track_caller]
fn refused(toml: &str, message: &str) {
    assert_eq!(loaded(toml, &[]).unwrap_err(), message);
}

#[test]
fn nothing_given_means_the_defaults() {
    assert_eq!(load_layers::<Sample>(None, Vec::new(), valid).unwrap(), Sample::default());
    assert_eq!(loaded("", &[]).unwrap(), Sample::default());
    assert_eq!(loaded("[net]", &[]).unwrap(), Sample::default());
}

#[test]
fn the_environment_wins_over_the_file() {
    let file = "[net]\nport = 2\nfast = true\nname = \"a\"";
    let sample = loaded(file, &[("RPICLUSTER__NET__PORT", "3"), ("RPICLUSTER__NET__SHARE", "0.25")]).unwrap();
    assert_eq!((sample.net.port, sample.net.fast, sample.net.share), (3, true, 0.25));
    assert_eq!(sample.net.name.as_deref(), Some("a"));
}

#[test]
fn a_text_that_looks_like_a_number_stays_a_text() {
    let variables = [("RPICLUSTER__NET__NAME", "007"), ("RPICLUSTER__NET__LISTENERS__LAN__ADDRESS", "1.50")];
    let sample = loaded("", &variables).unwrap();
    assert_eq!(sample.net.name.as_deref(), Some("007"));
    assert_eq!(sample.net.listeners["lan"].address, "1.50");
}

#[test]
fn foreign_and_empty_variables_are_no_settings() {
    let foreign = [("RPICLUSTER_URL", "http://x"), ("RPICLUSTER", "1"), ("PATH", "/"), ("RPICLUSTER__NET__PORT", "")];
    assert_eq!(loaded("", &foreign).unwrap(), Sample::default());
}

#[test]
fn an_unknown_key_names_its_nearest_neighbour() {
    refused("[net]\nprot = 5", "<file>: unknown key net.prot; did you mean net.port?");
    refused("[net]\nnam = 5", "<file>: unknown key net.nam; did you mean net.name?");
    refused("[nett]\nport = 5", "<file>: unknown key nett; did you mean net?");
    refused("[nett]", "<file>: unknown key nett; did you mean net?");
    refused("[other]\nmode = 5", "<file>: unknown key other.mode; did you mean net.mode?");
    refused("[other]\nzzzzzz = 5", "<file>: unknown key other.zzzzzz; [other] knows: timeout_ms");
    refused("zzzzzz = 5", "<file>: unknown key zzzzzz; the top level knows: net, other");
    let nested = "[net.listeners.lan]\nadress = \"x\"";
    refused(nested, "<file>: unknown key net.listeners.lan.adress; did you mean net.listeners.lan.address?");
}

#[test]
fn all_keys_are_known_also_those_without_a_default() {
    let mut keys = known_keys::<Sample>();
    keys.sort();
    let expected = [
        "net",
        "net.address",
        "net.fast",
        "net.listeners",
        "net.mode",
        "net.name",
        "net.port",
        "net.share",
        "net.words",
        "other",
        "other.timeout_ms",
    ];
    assert_eq!(keys, expected);
}

#[test]
fn odd_keys_are_unknown_and_harmless() {
    for odd in ["\"net.port\" = 5", "\"a[99999999999]\" = 1", "\"\" = 1", "\"\\n\" = 1"] {
        let message = loaded(odd, &[]).unwrap_err();
        assert!(message.starts_with("<file>: unknown key ") && !message.contains('\n'), "{message}");
    }
}

#[test]
fn a_wrong_type_names_what_is_expected() {
    refused("[net]\nport = \"5\"", "<file>: key net.port: found 5, expected a number without quotes");
    refused("[net]\nport = 2.5", "<file>: key net.port: found 2.5, expected a whole number");
    refused("[net]\nname = 5", "<file>: key net.name: found 5, expected a text in quotes");
    refused("[net]\nfast = \"yes\"", "<file>: key net.fast: found yes, expected true or false");
    refused("[net]\nwords = [\"a\", 5]", "<file>: key net.words[1]: found 5, expected a text in quotes");
    refused("net = 5", "<file>: key net: this is a section with keys of its own");
    let integer_for_text = "[net.listeners.lan]\naddress = 5";
    refused(integer_for_text, "<file>: key net.listeners.lan.address: found 5, expected a text in quotes");
}

#[test]
fn an_impossible_value_names_the_default() {
    let message = loaded("[net]\naddress = \"nonsense\"", &[]).unwrap_err();
    assert_eq!(message, "<file>: key net.address: invalid socket address syntax; the default is \"127.0.0.1:1883\"");
    for too_large in ["70000", "-1"] {
        let message = loaded(&format!("[net]\nport = {too_large}"), &[]).unwrap_err();
        assert!(message.starts_with("<file>: key net.port: found "), "{message}");
    }
    refused("[other]\ntimeout_ms = 1000", "<file>: key other.timeout_ms: use less than 1000");
    let message = loaded("[net]\nmode = \"fats\"", &[]).unwrap_err();
    let expected = "<file>: key net.mode: unknown variant `fats`, expected `slow` or `quick`; the default is \"slow\"";
    assert_eq!(message, expected);
}

#[test]
fn an_error_from_the_environment_names_the_variable() {
    let message = |name, value| loaded("[net]\nport = 5", &[(name, value)]).unwrap_err();
    assert_eq!(
        message("RPICLUSTER__NET__PROT", "5"),
        "environment variable RPICLUSTER__NET__PROT: unknown key net.prot; did you mean net.port?"
    );
    assert!(
        message("RPICLUSTER__NET__PORT", "x\n")
            .starts_with("environment variable RPICLUSTER__NET__PORT: key net.port: ")
    );
    assert!(message("RPICLUSTER__NET", "x").starts_with("environment variable RPICLUSTER__NET: key net: "));
    assert!(message("RPICLUSTER__", "x").starts_with("environment variable RPICLUSTER__: unknown key"));
    let deep = format!("RPICLUSTER{}", "__A".repeat(100));
    let pairs = [(deep.into(), "x".into())];
    assert!(variables(pairs.into_iter()).unwrap_err().message.contains("too many levels"));
}

#[test]
fn an_unreadable_or_broken_file_is_named() {
    let message = loaded("[net]\nport = = 5", &[]).unwrap_err();
    assert!(message.starts_with("<file>: ") && message.contains("line 2"), "{message}");
    let missing = load_layers::<Sample>(Some(Path::new("/nowhere/x.toml")), Vec::new(), valid).unwrap_err();
    assert!(missing.message.starts_with("/nowhere/x.toml: cannot read the file: "), "{}", missing.message);
    let endless = load_layers::<Sample>(Some(Path::new("/dev/zero")), Vec::new(), valid).unwrap_err();
    assert!(endless.message.starts_with("/dev/zero: the file has more than"), "{}", endless.message);
}
