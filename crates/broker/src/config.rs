//! `broker.toml`: where the broker listens, what it allows, how much its router holds.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The broker's configuration. Every field has a default.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BrokerConfig {
    /// Where clients connect, by a name for messages.
    pub listeners: BTreeMap<String, Listener>,
    /// What one client, and all of them, may use.
    pub limits: Limits,
    /// How much the router holds between clients.
    pub router: RouterConfig,
}

/// One listening address.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listener {
    /// Address and port; port 0 takes a free one.
    pub address: SocketAddr,
    /// Whether connections are encrypted (TLS 1.2 or 1.3).
    #[serde(default)]
    pub tls: bool,
    /// Whether clients that name no user are let in; what they may do is not the broker's to say.
    #[serde(default)]
    pub anonymous: bool,
}

/// What one client, and all of them, may use. Beyond a limit a client gets the standard's answer, and it is counted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Connections at once.
    pub connections: usize,
    /// Connections at once from one address.
    pub connections_per_address: usize,
    /// Connections at once from one address that have not been let in yet.
    pub pending_per_address: usize,
    /// Time for a new connection to send its CONNECT, the TLS handshake included.
    #[serde(with = "humantime_serde")]
    pub connect_timeout: Duration,
    /// Time for a client to take what was sent to it.
    #[serde(with = "humantime_serde")]
    pub write_timeout: Duration,
    /// Bytes of an MQTT packet.
    pub packet_bytes: usize,
    /// Packets a second from one client, on average; a burst of a second's worth is let through at once.
    pub packets_per_second: u32,
    /// Bytes a second from one client, likewise.
    pub bytes_per_second: u32,
    /// User properties of one packet (MQTT 5).
    pub user_properties: usize,
    /// Bytes of a client id.
    pub client_id_bytes: usize,
    /// Levels of a topic filter.
    pub filter_levels: usize,
    /// Subscriptions of one client.
    pub subscriptions: usize,
    /// Subscriptions of all clients together.
    pub subscriptions_total: usize,
    /// Messages at QoS 1 and 2 that may be unacknowledged, in either direction.
    pub inflight: u16,
    /// Messages that wait for one client.
    pub queue_messages: usize,
    /// Bytes that wait for one client.
    pub queue_bytes: usize,
    /// What happens to publishers at QoS 1 and 2 of a subscriber that is half way to these two limits.
    pub slow_subscriber: SlowSubscriber,
    /// Retained messages.
    pub retained_messages: usize,
    /// Retained messages that one client may add.
    pub retained_messages_per_client: usize,
    /// Bytes of all retained messages.
    pub retained_bytes: usize,
    /// Sessions kept for clients that are away.
    pub sessions: usize,
    /// How long a session is kept.
    #[serde(with = "humantime_serde")]
    pub session_expiry: Duration,
}

/// What a subscriber at QoS 1 and 2 that takes less than is published for it leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SlowSubscriber {
    /// Its publishers are acknowledged later, for as long as `write_timeout` at most; then as below. Not those who publish
    /// little: they are not what it is slow for.
    Hold,
    /// Its publishers go on; it is disconnected and its session ends when it is full.
    Cut,
}

/// How much the router holds between clients: a reader that is behind by more holds its publishers back.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RouterConfig {
    /// Bytes of one segment of a log.
    pub segment_bytes: usize,
    /// Segments of a log.
    pub segment_count: usize,
}

/// A value that the broker cannot work with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key} = {value}: must be {must_be}")]
pub struct ConfigError {
    /// The key with its section.
    pub key: String,
    /// What was given.
    pub value: String,
    /// What would be valid.
    pub must_be: &'static str,
}

impl Default for BrokerConfig {
    fn default() -> Self {
        let local = Listener { address: (Ipv4Addr::LOCALHOST, 1883).into(), tls: false, anonymous: true };
        let cluster = Listener { address: (Ipv4Addr::UNSPECIFIED, 8883).into(), tls: true, anonymous: false };
        BrokerConfig {
            listeners: BTreeMap::from([("local".to_owned(), local), ("cluster".to_owned(), cluster)]),
            limits: Limits::default(),
            router: RouterConfig::default(),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            connections: 10_000,
            connections_per_address: 5_000,
            pending_per_address: 1_500,
            connect_timeout: Duration::from_secs(10),
            write_timeout: Duration::from_secs(10),
            packet_bytes: 64 * 1024,
            packets_per_second: 1_000_000,
            bytes_per_second: 100 * 1024 * 1024,
            user_properties: 64,
            client_id_bytes: 256,
            filter_levels: 32,
            subscriptions: 100,
            subscriptions_total: 200_000,
            inflight: 256,
            queue_messages: 100_000,
            queue_bytes: 16 * 1024 * 1024,
            slow_subscriber: SlowSubscriber::Hold,
            retained_messages: 100_000,
            retained_messages_per_client: 20_000,
            retained_bytes: 64 * 1024 * 1024,
            sessions: 1_000,
            session_expiry: Duration::from_secs(7 * 24 * 3600),
        }
    }
}

impl Default for RouterConfig {
    fn default() -> Self {
        RouterConfig { segment_bytes: 512 * 1024, segment_count: 4 }
    }
}

impl BrokerConfig {
    /// Checks what types cannot.
    ///
    /// # Errors
    /// Names the first key whose value cannot work.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let Limits { connections, packet_bytes, client_id_bytes, filter_levels, subscriptions, inflight, .. } =
            self.limits;
        let limits = &self.limits;
        let second = Duration::from_secs(1);
        let hour = Duration::from_secs(3600);
        let timeout = |key, value: Duration| {
            let good = (second..=hour).contains(&value);
            check(good, key, format!("{value:?}"), "from 1s to 1h")
        };
        check(!self.listeners.is_empty(), "listeners", "{}", "at least one listener")?;
        check((1..=1_000_000).contains(&connections), "limits.connections", connections, "from 1 to 1000000")?;
        let each = limits.connections_per_address;
        check(each > 0, "limits.connections_per_address", each, "at least 1")?;
        let pending = limits.pending_per_address;
        check(pending > 0, "limits.pending_per_address", pending, "at least 1")?;
        timeout("limits.connect_timeout", limits.connect_timeout)?;
        timeout("limits.write_timeout", limits.write_timeout)?;
        let packet = (1024..=1024 * 1024).contains(&packet_bytes);
        check(packet, "limits.packet_bytes", packet_bytes, "from 1024 to 1048576")?;
        let packets = limits.packets_per_second;
        check(packets > 0, "limits.packets_per_second", packets, "at least 1")?;
        let bytes = limits.bytes_per_second;
        check(bytes as usize >= packet_bytes, "limits.bytes_per_second", bytes, "at least limits.packet_bytes")?;
        let id = (23..=65_535).contains(&client_id_bytes);
        check(id, "limits.client_id_bytes", client_id_bytes, "from 23 to 65535")?;
        check((1..=1000).contains(&filter_levels), "limits.filter_levels", filter_levels, "from 1 to 1000")?;
        check(subscriptions > 0, "limits.subscriptions", subscriptions, "at least 1")?;
        let total = limits.subscriptions_total;
        check(total >= subscriptions, "limits.subscriptions_total", total, "at least limits.subscriptions")?;
        check(inflight > 0, "limits.inflight", inflight, "from 1 to 65535")?;
        check(limits.queue_messages > 0, "limits.queue_messages", limits.queue_messages, "at least 1")?;
        let queue = limits.queue_bytes >= packet_bytes;
        check(queue, "limits.queue_bytes", limits.queue_bytes, "at least limits.packet_bytes")?;
        let count = self.router.segment_count;
        check((2..=64).contains(&count), "router.segment_count", count, "from 2 to 64")?;
        let bytes = self.router.segment_bytes;
        // One segment must hold the longest packet and its header, or that packet could never be accepted.
        check(bytes >= 2 * packet_bytes, "router.segment_bytes", bytes, "at least twice limits.packet_bytes")?;
        check(bytes <= 64 * 1024 * 1024, "router.segment_bytes", bytes, "at most 67108864")
    }
}

fn check(good: bool, key: &str, value: impl ToString, must_be: &'static str) -> Result<(), ConfigError> {
    if good { Ok(()) } else { Err(ConfigError { key: key.to_owned(), value: value.to_string(), must_be }) }
}
