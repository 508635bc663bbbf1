//! Who may connect, publish and subscribe: the one place that says so.
//!
//! For now the broker listens on loopback only and trusts everybody there; what is refused is what would confuse the
//! cluster itself.

use crate::codec::reason;

/// The rules in force.
#[derive(Debug, Clone)]
pub(crate) struct Access {
    /// The client id of the in-process link, which no network client may use.
    reserved: String,
}

impl Access {
    /// Rules that keep `client_id` for the in-process link.
    pub(crate) fn reserving(client_id: &str) -> Access {
        Access { reserved: client_id.to_owned() }
    }

    /// Whether a client with this id may connect; else the reason code of its CONNACK.
    pub(crate) fn connect(&self, client_id: &str) -> Result<(), u8> {
        if self.reserved == client_id { Err(reason::CLIENT_ID_NOT_VALID) } else { Ok(()) }
    }

    /// Whether a client may publish on this topic. `$`-topics are the server's own (MQTT 4.7.2).
    pub(crate) fn publish(&self, topic: &str) -> bool {
        !topic.starts_with('$')
    }

    /// Whether a client may subscribe with this filter; else the reason code of its SUBACK.
    pub(crate) fn subscribe(&self, filter: &str) -> Result<(), u8> {
        // MQTT 5 3.2.2.3.13: shared subscriptions are declined in CONNACK.
        if filter.starts_with("$share/") { Err(reason::SHARED_NOT_SUPPORTED) } else { Ok(()) }
    }
}
