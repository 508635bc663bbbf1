use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use rustls::pki_types::ServerName;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The port of MQTT without.
const PLAIN_PORT: u16 = 1883;
const TLS_SCHEME: &str = "mqtts";
const PLAIN_SCHEME: &str = "mqtt";
/// How much of a text that is no address an error repeats.
const QUOTED_CHARACTERS_MAX: usize = 255;

/// Where a broker listens. Written as `HOST`, `HOST:PORT`, `mqtts://HOST[:PORT]`, which all mean TLS and port 8883, or
/// `mqtt://HOST[:PORT]`, plain and port 1883; an IPv6 address in brackets. Printed as the whole URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrokerAddress {
    /// Host name or IP address, without brackets; always a valid name for TLS.
    host: String,
    port: u16,
    tls: bool,
}

/// Why a text is no address of a broker.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// The form is wrong.
    #[error(
        "{0:?} is not an address: write HOST or HOST:PORT (with TLS), or mqtt://HOST:PORT (without); an IPv6 address as \
         [ADDRESS]:PORT"
    )]
    Form(String),
    /// It starts like a URL, of another kind.
    #[error("{0:?} is not known: write mqtts:// (MQTT with TLS) or mqtt:// (without)")]
    Scheme(String),
    /// It holds a user or a password. They are not repeated.
    #[error("leave user and password out of the address: they have settings of their own")]
    Login,
}

impl BrokerAddress {
    /// The port of MQTT over TLS, unless another is named.
    pub const TLS_PORT: u16 = 8883;

    /// Host name or IP address; an IPv6 address has no brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// TCP port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Whether TLS is spoken there.
    pub fn is_tls(&self) -> bool {
        self.tls
    }

    /// Whether it is this machine, as far as that shows without asking DNS: `localhost` or a loopback address.
    pub fn is_loopback(&self) -> bool {
        match self.host.parse::<IpAddr>() {
            Ok(address) => address.to_canonical().is_loopback(),
            Err(_) => self.host.eq_ignore_ascii_case("localhost"),
        }
    }

    /// The name that the broker's certificate must bear.
    pub(crate) fn server_name(&self) -> Result<ServerName<'static>, AddressError> {
        ServerName::try_from(self.host.clone()).map_err(|_| AddressError::Form(self.host.clone()))
    }
}

impl Default for BrokerAddress {
    /// A master on this machine: `127.0.0.1`, with TLS.
    fn default() -> BrokerAddress {
        BrokerAddress { host: Ipv4Addr::LOCALHOST.to_string(), port: BrokerAddress::TLS_PORT, tls: true }
    }
}

impl FromStr for BrokerAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<BrokerAddress, AddressError> {
        if text.contains('@') {
            return Err(AddressError::Login);
        }
        let error = || AddressError::Form(text.chars().take(QUOTED_CHARACTERS_MAX).collect());
        let (tls, authority) = match text.split_once("://") {
            None => (true, text),
            Some((TLS_SCHEME, rest)) => (true, rest),
            Some((PLAIN_SCHEME, rest)) => (false, rest),
            Some((other, _)) => {
                return Err(AddressError::Scheme(
                    other.chars().take(QUOTED_CHARACTERS_MAX).collect::<String>() + "://",
                ));
            }
        };
        let (host, port) = match authority.rsplit_once(':') {
            // The colons of an IPv6 address are inside its brackets.
            Some((host, port)) if !port.ends_with(']') => (host, port.parse().map_err(|_| error())?),
            _ => (authority, if tls { BrokerAddress::TLS_PORT } else { PLAIN_PORT }),
        };
        let host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
            Some(address) => address.parse::<Ipv6Addr>().map_err(|_| error())?.to_string(),
            None if host.contains(':') => return Err(error()),
            None => host.to_owned(),
        };
        let address = BrokerAddress { host, port, tls };
        if port == 0 || address.server_name().is_err() { Err(error()) } else { Ok(address) }
    }
}

impl fmt::Display for BrokerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let BrokerAddress { host, port, tls } = self;
        let scheme = if *tls { TLS_SCHEME } else { PLAIN_SCHEME };
        // Only an IPv6 address has colons.
        if host.contains(':') { write!(f, "{scheme}://[{host}]:{port}") } else { write!(f, "{scheme}://{host}:{port}") }
    }
}

impl Serialize for BrokerAddress {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for BrokerAddress {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> BrokerAddress {
        text.parse().unwrap()
    }

    #[test]
    fn an_address_is_printed_whole_and_read_again() {
        for (text, whole) in [
            ("head-pi", "mqtts://head-pi:8883"),
            ("10.0.0.1:1884", "mqtts://10.0.0.1:1884"),
            ("[fd00::1]", "mqtts://[fd00::1]:8883"),
            ("[FD00:0::1]:99", "mqtts://[fd00::1]:99"),
            ("mqtts://head_pi.local", "mqtts://head_pi.local:8883"),
            ("mqtt://head-pi", "mqtt://head-pi:1883"),
            ("mqtt://[::1]:1884", "mqtt://[::1]:1884"),
        ] {
            assert_eq!(address(text).to_string(), whole);
            assert_eq!(address(whole), address(text));
            let json = serde_json::to_string(&address(text)).unwrap();
            assert_eq!(serde_json::from_str::<BrokerAddress>(&json).unwrap(), address(text));
        }
        assert_eq!(BrokerAddress::default().to_string(), "mqtts://127.0.0.1:8883");
        assert_eq!((address("[::1]").host(), address("[::1]").port()), ("::1", 8883));
    }

    #[test]
    fn what_is_no_address_is_refused_with_the_right_form() {
        let bad =
            ["", ":1883", "a:", "a:0", "a:65536", "fd00::1", "[fd00::1", "[]:1", "mqtt://", "mqtt://a/b", "a b", "ä"];
        for text in bad {
            let error = text.parse::<BrokerAddress>().unwrap_err();
            assert!(matches!(error, AddressError::Form(_)), "{text:?}: {error}");
            assert!(error.to_string().contains("write HOST or HOST:PORT"));
        }
        let scheme = "http://a".parse::<BrokerAddress>().unwrap_err();
        assert_eq!(scheme, AddressError::Scheme("http://".to_owned()));
        let login = "mqtts://user:hunter2@a".parse::<BrokerAddress>().unwrap_err();
        assert!(!login.to_string().contains("hunter2"));
    }

    #[test]
    fn loopback_is_known_where_no_name_must_be_resolved() {
        for here in ["localhost", "LocalHost:1", "127.0.0.1", "127.9.9.9", "[::1]", "[::ffff:127.0.0.1]"] {
            assert!(address(here).is_loopback(), "{here}");
        }
        for elsewhere in ["head", "10.0.0.1", "[fd00::1]", "localhost.example.org", "128.0.0.1"] {
            assert!(!address(elsewhere).is_loopback(), "{elsewhere}");
        }
    }
}
