//! What is fuzzed of the wire contract. Each target takes bytes and panics if something is wrong. `cargo test` runs
//! them (`corpus.rs`), and so does cargo-fuzz (`tests/fuzz.sh`).

#![allow(dead_code, reason = "each fuzzer uses one target")]

use std::fmt::{Debug, Display};
use std::str::FromStr;

use arbitrary::{Result, Unstructured};
use rpicluster_protocol::{
    Envelope, FromSlave, JoinToken, MessageError, RequestId, SessionId, SlaveId, SlaveSecret, ToSlave, Topic,
    TopicRoot, Upward, encode_from_slave, encode_to_slave, parse_from_slave, parse_to_slave,
};

const LEAVES: [Upward; 7] =
    [Upward::State, Upward::Details, Upward::Vitals, Upward::Message, Upward::Info, Upward::Task, Upward::Output];

/// Whatever is a message means the same when encoded and parsed again, from a slave and to one. The bytes are a
/// message, or say how to make one.
pub fn envelope(bytes: &[u8]) {
    either_way(bytes);
    if let Ok(made) = made_envelope(&mut Unstructured::new(bytes)) {
        either_way(made.as_bytes());
    }
}

fn either_way(bytes: &[u8]) {
    for leaf in LEAVES {
        let parse = |bytes: &[u8]| parse_from_slave(leaf, bytes);
        if let Some(envelope) = same::<FromSlave>(parse, encode_from_slave, bytes) {
            assert_eq!(envelope.message.leaf(), leaf);
        }
    }
    same::<ToSlave>(parse_to_slave, encode_to_slave, bytes);
}

fn same<M: Debug + PartialEq>(
    parse: impl Fn(&[u8]) -> std::result::Result<Envelope<M>, MessageError>,
    encode: impl Fn(&Envelope<M>) -> std::result::Result<Vec<u8>, MessageError>,
    bytes: &[u8],
) -> Option<Envelope<M>> {
    match parse(bytes) {
        Ok(envelope) => {
            let encoded = encode(&envelope).unwrap_or_else(|error| panic!("{envelope:?} cannot be encoded: {error}"));
            let again = parse(&encoded);
            assert_eq!(again.as_ref(), Ok(&envelope), "encoded as {}", String::from_utf8_lossy(&encoded));
            Some(envelope)
        }
        Err(error) => {
            assert!(!error.problem.is_empty());
            None
        }
    }
}

/// JSON of the shape of a message; its names and values are those that mean something, mostly.
fn made_envelope(bytes: &mut Unstructured<'_>) -> Result<String> {
    const KINDS: [&str; 11] = [
        "state",
        "computer_details",
        "vitals",
        "message",
        "info",
        "master_info",
        "slave_details",
        "master_time",
        "bad_message",
        "announce",
        "other",
    ];
    let kind = bytes.choose(&KINDS)?;
    let mut text = format!(r#"{{"type":"{kind}""#);
    for name in ["payload", "id", "re", "part", "last", "at"] {
        if bytes.ratio(3, 4)? {
            text.push_str(&format!(",\"{name}\":{}", value(bytes, if name == "payload" { 4 } else { 1 })?));
        }
    }
    text.push('}');
    Ok(text)
}

fn value(bytes: &mut Unstructured<'_>, depth: usize) -> Result<String> {
    const NAMES: [&str; 32] = [
        "state",
        "session",
        "protocol",
        "boot_id",
        "version",
        "slots",
        "reason",
        "hostname",
        "cpu_percent_used",
        "ram",
        "cpu_cores",
        "addresses",
        "boot_time",
        "labels",
        "cpu_percentage",
        "cpu_temperature",
        "load",
        "disks",
        "mount",
        "total",
        "free",
        "networks",
        "name",
        "received",
        "transmitted",
        "throttled",
        "now",
        "since_boot",
        "source",
        "since",
        "details",
        "vitals",
    ];
    const WORDS: [&str; 24] = [
        "null",
        "true",
        "false",
        "0",
        "1",
        "-1",
        "0.5",
        "1e39",
        "-0.0",
        "1e-46",
        "16777217",
        "4294967295",
        "18446744073709551615",
        "18446744073709551616",
        r#""online""#,
        r#""offline""#,
        r#""time""#,
        r#""unknown""#,
        r#""pi-1""#,
        r#""""#,
        r#""\ud83d\ude00\u0000""#,
        r#""2026-11-24T00:00:00.123456789Z""#,
        r#""1600-01-01T00:00:00Z""#,
        r#""9999-12-31T23:59:59.9999Z""#,
    ];
    Ok(match bytes.int_in_range(0..=if depth == 0 { 2 } else { 4 })? {
        0 => (*bytes.choose(&WORDS)?).to_owned(),
        1 => bytes.arbitrary::<f64>()?.to_string(),
        2 => serde_json::Value::from(bytes.arbitrary::<&str>()?.get(..40).unwrap_or("s9")).to_string(),
        3 => {
            let mut items = Vec::new();
            for _ in 0..bytes.int_in_range(0..=3)? {
                items.push(value(bytes, depth - 1)?);
            }
            format!("[{}]", items.join(","))
        }
        _ => {
            let mut fields = Vec::new();
            for _ in 0..bytes.int_in_range(0..=6)? {
                let name = if bytes.ratio(1, 12)? { "pi-2" } else { bytes.choose(&NAMES)? };
                fields.push(format!("\"{name}\":{}", value(bytes, depth - 1)?));
            }
            format!("{{{}}}", fields.join(","))
        }
    })
}

/// Whatever is a token, a secret, an id or a root is printed as it was written: of each there is one text. Topics too.
pub fn secret(bytes: &[u8]) {
    if let Some((token, rest)) = bytes.split_first_chunk::<48>() {
        let (fingerprint, bits) = token.split_at(32);
        let secret = SlaveSecret::from_random(fingerprint.try_into().expect("32 bytes"));
        assert_eq!(secret.to_string().parse().as_ref(), Ok(&secret));
        let ca_fingerprint = fingerprint.try_into().expect("32 bytes");
        let token = JoinToken { ca_fingerprint, secret: bits.try_into().expect("16 bytes") };
        let text = token.to_string();
        assert_eq!(text.parse().as_ref(), Ok(&token));
        // The text, damaged somewhere.
        if let [at, with, ..] = rest {
            let mut damaged = text.clone().into_bytes();
            let at = usize::from(*at) % damaged.len();
            damaged[at] = *with;
            let damaged = String::from_utf8_lossy(&damaged).into_owned();
            assert!(damaged == text || damaged.parse() != Ok(token), "{damaged} is taken for {text}");
            one_text::<JoinToken>(&damaged);
        }
    }
    let text = String::from_utf8_lossy(bytes);
    one_text::<JoinToken>(&text);
    one_text::<SlaveSecret>(&text);
    one_text::<SlaveId>(&text);
    one_text::<RequestId>(&text);
    one_text::<SessionId>(&text);
    one_text::<TopicRoot>(&text);
    let (root, name) = text.split_once('\n').unwrap_or(("rpicluster", &text));
    if let Ok(root) = root.parse::<TopicRoot>()
        && let Ok(topic) = root.parse(name)
    {
        assert_eq!(root.name(&topic), name);
        if let Topic::From(slave, _) | Topic::To(slave, _) = topic {
            assert!(!slave.as_str().contains(['/', '+', '#']));
        }
    }
}

fn one_text<T: FromStr + Display>(text: &str) {
    if let Ok(value) = text.parse::<T>() {
        assert_eq!(value.to_string(), text);
    }
}
