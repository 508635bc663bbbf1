//! Why a broker is not trusted, in words for people.

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::time::{Duration, SystemTime};

use rustls::pki_types::CertificateDer;
use rustls::{AlertDescription, CertificateError};
use sha2::{Digest, Sha256};

/// How many names of a certificate an error repeats.
const NAMES_MAX: usize = 32;

/// SHA-256 of a certificate's DER form, printed as hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint(pub [u8; 32]);

/// Why TLS did not come about although somebody answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TrustError {
    /// The master's CA is not the one of the token.
    #[error(
        "this is not the master that the token is from: its CA has fingerprint {presented}, the token's {expected}; \
         somebody may be in between, or the master was set up anew: make a new token on the master"
    )]
    OtherCa {
        /// That of the last certificate in the broker's chain.
        presented: Fingerprint,
        /// That of the token.
        expected: Fingerprint,
    },
    /// No trusted CA has signed the certificate.
    #[error(
        "the broker's certificate is not from the CA that is trusted here: somebody may be in between, or it was set up anew"
    )]
    UnknownIssuer,
    /// The certificate is another name's.
    #[error(
        "the certificate of the master names {} but not {name}: connect by one of these, or add {name} to master.tls_names on \
         the master",
        listed(names)
    )]
    WrongName {
        /// By which name the broker was reached.
        name: String,
        /// The names in the certificate.
        names: Vec<String>,
    },
    /// The certificate begins later.
    #[error("the broker's certificate is not valid before {}; this machine's clock says {}: is it right?", date(*not_before), date(*clock))]
    NotYetValid {
        /// When it begins, in s since 1970.
        not_before: u64,
        /// The time here, in s since 1970.
        clock: u64,
    },
    /// The certificate is too old.
    #[error("the broker's certificate was valid until {}; this machine's clock says {}: is it right?", date(*not_after), date(*clock))]
    Expired {
        /// When it ended, in s since 1970.
        not_after: u64,
        /// The time here, in s since 1970.
        clock: u64,
    },
    /// What answered does not speak TLS.
    #[error("what answers there does not speak TLS: is the port right? (the master's is 8883)")]
    NotTls,
    /// The broker wants a certificate of its client, or does not accept the one that it was shown.
    #[error("the broker does not accept the certificate that it is shown here ({0}): see cluster.client_certificate")]
    NotAccepted(String),
    /// The TLS library's own words.
    #[error("TLS: {0}")]
    Other(String),
}

impl TrustError {
    /// What TLS said, if `error` or a cause of it is from TLS.
    pub fn of(error: &(dyn StdError + 'static)) -> Option<TrustError> {
        let mut next = Some(error);
        while let Some(error) = next {
            // An I/O error's `source` is that of what it wraps.
            let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
            let wrapped = wrapped.and_then(|inner| inner.downcast_ref::<rustls::Error>());
            if let Some(tls) = wrapped.or_else(|| error.downcast_ref()) {
                return Some(TrustError::from(tls));
            }
            next = error.source();
        }
        None
    }

    /// Whether trying again may help without anybody's doing: a clock may be set, a certificate renewed.
    pub fn may_pass(&self) -> bool {
        match self {
            TrustError::OtherCa { .. } | TrustError::UnknownIssuer | TrustError::WrongName { .. } => false,
            TrustError::NotYetValid { .. } | TrustError::Expired { .. } => true,
            TrustError::NotTls | TrustError::NotAccepted(_) | TrustError::Other(_) => true,
        }
    }
}

impl From<&rustls::Error> for TrustError {
    fn from(error: &rustls::Error) -> TrustError {
        let refused = match error {
            rustls::Error::InvalidCertificate(refused) => refused,
            rustls::Error::InvalidMessage(_) => return TrustError::NotTls,
            rustls::Error::AlertReceived(alert) if is_about_certificate(*alert) => {
                return TrustError::NotAccepted(format!("{alert:?}"));
            }
            other => return TrustError::Other(other.to_string()),
        };
        match refused {
            CertificateError::Other(other) => match other.0.downcast_ref::<TrustError>() {
                Some(error) => error.clone(),
                None => TrustError::Other(error.to_string()),
            },
            // With the name of the trusted CA but not its key, the signature is what fails.
            CertificateError::UnknownIssuer | CertificateError::BadSignature => TrustError::UnknownIssuer,
            CertificateError::NotValidForNameContext { expected, presented } => TrustError::WrongName {
                name: expected.to_str().into_owned(),
                names: presented.iter().take(NAMES_MAX).map(|name| bare_name(name)).collect(),
            },
            CertificateError::NotValidYetContext { time, not_before } => {
                TrustError::NotYetValid { not_before: not_before.as_secs(), clock: time.as_secs() }
            }
            CertificateError::ExpiredContext { time, not_after } => {
                TrustError::Expired { not_after: not_after.as_secs(), clock: time.as_secs() }
            }
            _ => TrustError::Other(error.to_string()),
        }
    }
}

impl Fingerprint {
    /// That of `certificate`.
    pub fn of(certificate: &CertificateDer<'_>) -> Fingerprint {
        Fingerprint(Sha256::digest(certificate).into())
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Whether the other side's complaint is about our certificate, its signature, or that there is none.
fn is_about_certificate(alert: AlertDescription) -> bool {
    matches!(
        alert,
        AlertDescription::AccessDenied
            | AlertDescription::BadCertificate
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateRequired
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateUnknown
            | AlertDescription::DecryptError
            | AlertDescription::UnknownCA
            | AlertDescription::UnsupportedCertificate
    )
}

/// rustls tells names as `DnsName("head.local")` and `IpAddress(10.0.0.1)`.
fn bare_name(presented: &str) -> String {
    let inner = presented.split_once('(').and_then(|(_, rest)| rest.strip_suffix(')')).unwrap_or(presented);
    inner.trim_matches('"').chars().flat_map(char::escape_default).collect()
}

fn listed(names: &[String]) -> String {
    if names.is_empty() { "nobody".to_owned() } else { names.join(", ") }
}

fn date(seconds: u64) -> String {
    // A date that a calendar of four-digit years cannot show.
    let beyond = || format!("{seconds} s after 1970");
    let Some(time) = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds)) else { return beyond() };
    let mut text = String::new();
    match fmt::write(&mut text, format_args!("{}", humantime::format_rfc3339_seconds(time))) {
        Ok(()) => text,
        Err(_) => beyond(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_bare_and_harmless() {
        assert_eq!(bare_name("DnsName(\"head.local\")"), "head.local");
        assert_eq!(bare_name("IpAddress(10.0.0.1)"), "10.0.0.1");
        assert_eq!(bare_name("DnsName(\"a\u{1b}[2J\")"), "a\\u{1b}[2J");
    }

    #[test]
    fn dates_are_readable_and_never_a_panic() {
        assert_eq!(date(0), "1970-01-01T00:00:00Z");
        assert_eq!(date(u64::MAX), format!("{} s after 1970", u64::MAX));
        assert_eq!(date(1 << 50), format!("{} s after 1970", 1_u64 << 50));
    }

    #[test]
    fn an_error_is_found_below_its_wrappings() {
        #[derive(Debug, thiserror::Error)]
        #[error("outer")]
        struct Outer(#[from] io::Error);
        let tls = rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer);
        let wrapped = Outer(io::Error::new(io::ErrorKind::InvalidData, tls));
        assert_eq!(TrustError::of(&wrapped), Some(TrustError::UnknownIssuer));
        assert_eq!(TrustError::of(&Outer(io::Error::other("no route"))), None);
    }
}
