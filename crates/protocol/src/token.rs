//! The two secrets of joining: a token, which a person carries to a new slave, and the secret that the slave makes.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

/// What the user name of a CONNECT that joins begins with; the slave's id follows.
pub const ENROL_PREFIX: &str = "enrol:";

/// What a token's text begins with: the version of its form.
const TOKEN_PREFIX: &str = "rpi1.";

/// What `rpicluster token create` prints: it lets a slave join, and tells it which master to trust. `Debug` hides it.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// SHA-256 of the DER form of the certificate of the master's CA.
    pub ca_fingerprint: [u8; 32],
    /// 128 random bits.
    pub secret: [u8; 16],
}

/// What a slave authenticates with, of its own making: 256 random bits. `Debug` hides it.
#[derive(Clone, PartialEq, Eq)]
pub struct SlaveSecret([u8; 32]);

/// Why a text is no token or secret. It does not repeat the text, which may be nearly one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SecretError {
    /// The form is wrong.
    #[error("this is no token: it must be the whole text that `rpicluster token create` printed, from \"rpi1.\" on")]
    Token,
    /// A form that this program does not know.
    #[error("this token is of a newer form: update rpicluster on this machine")]
    Newer,
    /// The form is wrong.
    #[error("this is no slave's secret: it must be 43 characters, as `rpicluster slaves add` prints them")]
    Secret,
}

impl SlaveSecret {
    /// A secret made of random bits.
    pub fn from_random(bits: [u8; 32]) -> SlaveSecret {
        SlaveSecret(bits)
    }
}

impl FromStr for JoinToken {
    type Err = SecretError;

    fn from_str(text: &str) -> Result<JoinToken, SecretError> {
        let Some(rest) = text.strip_prefix(TOKEN_PREFIX) else {
            let newer = text.strip_prefix("rpi").and_then(|rest| rest.split_once('.'));
            let newer =
                newer.is_some_and(|(version, _)| !version.is_empty() && version.bytes().all(|b| b.is_ascii_digit()));
            return Err(if newer { SecretError::Newer } else { SecretError::Token });
        };
        let (fingerprint, secret) = rest.split_once('.').ok_or(SecretError::Token)?;
        let ca_fingerprint = decoded(fingerprint).ok_or(SecretError::Token)?;
        Ok(JoinToken { ca_fingerprint, secret: decoded(secret).ok_or(SecretError::Token)? })
    }
}

impl FromStr for SlaveSecret {
    type Err = SecretError;

    fn from_str(text: &str) -> Result<SlaveSecret, SecretError> {
        decoded(text).map(SlaveSecret).ok_or(SecretError::Secret)
    }
}

fn decoded<const N: usize>(text: &str) -> Option<[u8; N]> {
    URL_SAFE_NO_PAD.decode(text).ok()?.try_into().ok()
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        write!(f, "{TOKEN_PREFIX}{}.{}", encode(&self.ca_fingerprint), encode(&self.secret))
    }
}

impl fmt::Display for SlaveSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&URL_SAFE_NO_PAD.encode(self.0))
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JoinToken(…)")
    }
}

impl fmt::Debug for SlaveSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SlaveSecret(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_and_secrets_survive_their_text_and_nothing_else_is_one() {
        let token = JoinToken { ca_fingerprint: [7; 32], secret: [9; 16] };
        let text = token.to_string();
        assert_eq!(text.parse(), Ok(token.clone()));
        assert_eq!(text.len(), 71);
        for bad in ["", "rpi1.", "rpi1.abc.def", &text[1..], &text[..70], &format!("{text}A"), &format!("{text}\n")] {
            assert_eq!(bad.parse::<JoinToken>(), Err(SecretError::Token), "{bad:?}");
        }
        assert_eq!(text.replace("rpi1.", "rpi2.").parse::<JoinToken>(), Err(SecretError::Newer));
        let secret = SlaveSecret::from_random([3; 32]);
        assert_eq!(secret.to_string().parse(), Ok(secret.clone()));
        assert_eq!("short".parse::<SlaveSecret>(), Err(SecretError::Secret));
        assert_eq!(format!("{token:?} {secret:?}"), "JoinToken(…) SlaveSecret(…)");
    }
}
