//! Ids as types: a value of one of these has been checked.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::limits::{QUOTED_BYTES_MAX, REQUEST_ID_BYTES_MAX, SLAVE_ID_BYTES_MAX, SLAVE_ID_HOST_BYTES_MAX};

/// A slave's id: its MQTT client id, its user name and a level of its topics.
///
/// 1–63 of `a-z 0-9 -`, starting and ending with a letter or digit; `master` and `all` are reserved. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SlaveId(Arc<str>);

/// The id of a request, chosen by who asks and repeated as `re` in the answer: 1–64 printable characters.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct RequestId(Box<str>);

/// Names one connection of a slave or one run of a master: 1–64 printable characters, random.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct SessionId(Arc<str>);

/// Why a text is not an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// The text breaks the rule for slave ids.
    #[error("slave id {0:?} is not valid: use 1 to 63 of a-z, 0-9 and '-', with a letter or digit at both ends")]
    Slave(String),
    /// The text is one of the words that may not be a slave's id.
    #[error("slave id {0:?} is reserved: choose another")]
    Reserved(String),
    /// The text is empty, too long or holds a character that does not print.
    #[error("id {0:?} is not valid: use 1 to 64 printable characters")]
    Printable(String),
}

impl SlaveId {
    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The default id of a machine: its host name (lower case, other characters become `-`, cut to 58 bytes) and four
    /// hex digits of something that cloned SD cards do not share (the board's serial number or a MAC address).
    pub fn from_host(host_name: &str, unique: [u8; 2]) -> SlaveId {
        let mut name: String = host_name
            .chars()
            .map(|c| c.to_ascii_lowercase())
            .map(|c| if c.is_ascii_lowercase() || c.is_ascii_digit() { c } else { '-' })
            .take(SLAVE_ID_HOST_BYTES_MAX)
            .collect();
        name = name.trim_matches('-').to_owned();
        if name.is_empty() {
            name.push_str("node");
        }
        // The rule holds by construction: the name is trimmed and within its length, the suffix is hexadecimal.
        SlaveId(format!("{name}-{:02x}{:02x}", unique[0], unique[1]).into())
    }
}

impl FromStr for SlaveId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let bytes = text.as_bytes();
        let edge = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        let inner = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-';
        if bytes.len() > SLAVE_ID_BYTES_MAX || !edge(bytes.first()) || !edge(bytes.last()) || !bytes.iter().all(inner) {
            return Err(IdError::Slave(quoted(text)));
        }
        if matches!(text, "master" | "all") {
            return Err(IdError::Reserved(text.to_owned()));
        }
        Ok(SlaveId(text.into()))
    }
}

impl RequestId {
    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl SessionId {
    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// A session id from 64 random bits, drawn by the caller.
    pub fn from_random(bits: u64) -> SessionId {
        SessionId(format!("{bits:016x}").into())
    }
}

impl FromStr for RequestId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        printable(text).map(|text| RequestId(text.into()))
    }
}

impl FromStr for SessionId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        printable(text).map(|text| SessionId(text.into()))
    }
}

fn printable(text: &str) -> Result<&str, IdError> {
    let fits = (1..=REQUEST_ID_BYTES_MAX).contains(&text.len());
    if fits && !text.chars().any(char::is_control) { Ok(text) } else { Err(IdError::Printable(quoted(text))) }
}

/// The beginning of a peer's text, short enough for an error message or a log line.
pub(crate) fn quoted(text: &str) -> String {
    let end = (0..=QUOTED_BYTES_MAX.min(text.len())).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0);
    if end < text.len() { format!("{}…", &text[..end]) } else { text.to_owned() }
}

macro_rules! text_impls {
    ($($name:ident),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, f)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
    )*};
}

text_impls!(SlaveId, RequestId, SessionId);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn slave_ids_follow_their_rule() {
        let longest = "a".repeat(63);
        for good in ["a", "7", "pi-1", "a--b", &longest] {
            assert_eq!(good.parse::<SlaveId>().unwrap().as_str(), good);
        }
        let too_long = "a".repeat(64);
        for bad in ["", "-a", "a-", "A", "a_b", "a/b", "a+", "ä", "a b", "a\0", &too_long] {
            assert!(matches!(bad.parse::<SlaveId>(), Err(IdError::Slave(_))), "{bad:?}");
        }
        for reserved in ["master", "all"] {
            assert!(matches!(reserved.parse::<SlaveId>(), Err(IdError::Reserved(_))));
        }
    }

    #[test]
    fn default_ids_are_made_from_host_name_and_hardware() {
        assert_eq!(SlaveId::from_host("Pi4.lan", [0xab, 0x01]).as_str(), "pi4-lan-ab01");
        assert_eq!(SlaveId::from_host("", [0, 0]).as_str(), "node-0000");
        assert_eq!(SlaveId::from_host("-ä-", [0, 1]).as_str(), "node-0001");
        assert_eq!(SlaveId::from_host(&"x".repeat(200), [0, 1]).as_str().len(), 63);
    }

    #[test]
    fn an_error_does_not_repeat_megabytes() {
        let error = "ä".repeat(1_000_000).parse::<SlaveId>().unwrap_err();
        assert!(error.to_string().len() < 400);
    }

    proptest! {
        #[test]
        fn every_default_id_is_valid(host in ".*", unique: [u8; 2]) {
            let id = SlaveId::from_host(&host, unique);
            prop_assert_eq!(id.as_str().parse::<SlaveId>().unwrap(), id);
        }

        #[test]
        fn parsing_never_panics(text in ".*") {
            let _ = text.parse::<SlaveId>();
            let _ = text.parse::<RequestId>();
        }
    }
}
