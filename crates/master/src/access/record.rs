//! What access rests on: enrolments, tokens, accounts, API tokens, and every change of them. Nothing here is a secret
//! itself: of each only a hash is kept.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use rpicluster_protocol::SlaveId;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// Names and values by which jobs choose slaves.
pub(crate) type Labels = BTreeMap<String, String>;

/// SHA-256 of a secret that was drawn at random: nothing slower is needed where nothing can be guessed. Compared in
/// constant time; `Debug` hides it.
#[derive(Clone, Copy)]
pub(crate) struct Hash([u8; 32]);

/// What is public of a token: the first four bytes of its hash, as 8 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct TokenId(u32);

/// The name of an account or of an API token: 1–63 of `a-z 0-9 -`, like a slave's id.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Name(Arc<str>);

/// A PHC string (argon2id). `Debug` hides it.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct PasswordHash(Arc<str>);

/// A slave that may connect.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Enrolment {
    pub(crate) id: SlaveId,
    /// Of the text of the secret that the slave made.
    pub(crate) secret: Hash,
    pub(crate) labels: Labels,
    /// Seconds since 1970 UTC.
    pub(crate) created: u64,
}

/// Lets slaves enrol.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Token {
    pub(crate) id: TokenId,
    /// Of the token's random bits.
    pub(crate) secret: Hash,
    /// Seconds since 1970 UTC.
    pub(crate) created: u64,
    /// The first second, since 1970 UTC, in which it is of no use any more.
    pub(crate) expires: u64,
    pub(crate) uses_left: u32,
    /// Only this slave may use it.
    pub(crate) slave: Option<SlaveId>,
    /// What slaves that enrol with it get.
    pub(crate) labels: Labels,
    /// A slave that enrols with it may take the place of another machine.
    pub(crate) replace: bool,
}

/// Somebody who is no slave.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Account {
    pub(crate) name: Name,
    pub(crate) role: Role,
    pub(crate) password: PasswordHash,
    /// Topic filters of the role `custom`.
    pub(crate) publish: Vec<String>,
    /// Likewise.
    pub(crate) subscribe: Vec<String>,
}

/// What an account may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Role {
    /// Reads everything, says nothing.
    Observer,
    /// Reads what concerns Home Assistant, and says that it is there.
    HomeAssistant,
    /// What its lists say.
    Custom,
}

/// Lets a program change things over HTTP.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ApiToken {
    pub(crate) name: Name,
    /// Of the text of the token.
    pub(crate) secret: Hash,
    /// Seconds since 1970 UTC.
    pub(crate) created: u64,
}

/// One change: what the store writes, and what the registry is made of.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Change {
    /// A slave may connect from now on, with this secret alone.
    SlaveEnrolled(Enrolment),
    /// A slave is forgotten, with all that is known of it.
    SlaveRemoved(SlaveId),
    /// A token is new, or was used.
    TokenSet(Token),
    /// A token is gone.
    TokenRemoved(TokenId),
    /// An account is new.
    AccountAdded(Account),
    /// An account is gone.
    AccountRemoved(Name),
    /// An API token is new.
    ApiTokenAdded(ApiToken),
    /// An API token is gone.
    ApiTokenRemoved(Name),
}

/// Why a text is no name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the name must be 1 to 63 of a-z, 0-9 and '-', with a letter or digit at both ends, and not \"master\" or \"all\""
)]
pub(crate) struct NameError;

impl Hash {
    /// Of these bytes.
    pub(crate) fn of(secret: &[u8]) -> Hash {
        Hash(Sha256::digest(secret).into())
    }

    /// One that was computed before.
    pub(crate) fn from_bytes(bytes: [u8; 32]) -> Hash {
        Hash(bytes)
    }

    pub(crate) fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl PartialEq for Hash {
    fn eq(&self, other: &Hash) -> bool {
        self.0[..].ct_eq(&other.0[..]).into()
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hash(…)")
    }
}

impl TokenId {
    /// Of the token with this hash.
    pub(crate) fn of(secret: &Hash) -> TokenId {
        let [a, b, c, d, ..] = secret.0;
        TokenId(u32::from_be_bytes([a, b, c, d]))
    }
}

impl fmt::Display for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

impl FromStr for TokenId {
    type Err = ();

    fn from_str(text: &str) -> Result<TokenId, ()> {
        let is_printed_so = text.len() == 8 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if is_printed_so { u32::from_str_radix(text, 16).map(TokenId).map_err(drop) } else { Err(()) }
    }
}

impl Serialize for TokenId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Name {
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Name, NameError> {
        text.parse::<SlaveId>().map(|_| Name(text.into())).map_err(|_| NameError)
    }
}

impl std::borrow::Borrow<str> for Name {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl Serialize for Name {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Name, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl PasswordHash {
    /// Of a PHC string.
    pub(crate) fn new(phc: &str) -> PasswordHash {
        PasswordHash(phc.into())
    }

    /// The PHC string.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for PasswordHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PasswordHash(…)")
    }
}

impl Role {
    /// All roles, by the names that people write.
    const NAMES: [(&'static str, Role); 3] =
        [("observer", Role::Observer), ("home-assistant", Role::HomeAssistant), ("custom", Role::Custom)];

    pub(crate) fn as_str(self) -> &'static str {
        Role::NAMES.iter().find(|(_, role)| *role == self).map_or("custom", |(name, _)| name)
    }
}

impl FromStr for Role {
    type Err = ();

    fn from_str(text: &str) -> Result<Role, ()> {
        Role::NAMES.iter().find(|(name, _)| *name == text).map(|(_, role)| *role).ok_or(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_compared_and_never_shown() {
        assert_eq!(Hash::of(b"a"), Hash::of(b"a"));
        assert_ne!(Hash::of(b"a"), Hash::of(b"b"));
        assert_eq!(format!("{:?} {:?}", Hash::of(b"a"), PasswordHash::new("$argon2id$x")), "Hash(…) PasswordHash(…)");
    }

    #[test]
    fn token_ids_names_and_roles_survive_their_text_and_nothing_else_is_one() {
        let id = TokenId::of(&Hash::from_bytes([0x0a; 32]));
        assert_eq!(id.to_string(), "0a0a0a0a");
        assert_eq!("0a0a0a0a".parse(), Ok(id));
        for bad in ["", "0a0a0a0", "0A0A0A0A", "+a0a0a0a", "0a0a0a0a0"] {
            assert_eq!(bad.parse::<TokenId>(), Err(()), "{bad:?}");
        }
        assert_eq!("home-1".parse::<Name>().unwrap().to_string(), "home-1");
        for bad in ["", "-a", "A", "a:b", "master", "enrol:a"] {
            assert_eq!(bad.parse::<Name>(), Err(NameError), "{bad:?}");
        }
        for (name, role) in Role::NAMES {
            assert_eq!((name.parse(), role.as_str()), (Ok(role), name));
            assert_eq!(serde_json::to_value(role).unwrap(), name);
        }
    }
}
