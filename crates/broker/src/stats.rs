//! Plain counters and gauges of the broker, read by metrics and tests.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

macro_rules! stats {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Counters (only grow) and gauges (`*_now`) of the broker. Relaxed: each is right, no two are of one moment.
        #[derive(Debug, Default)]
        pub struct Stats {
            $($(#[$doc])* pub $name: AtomicU64,)*
        }

        impl Stats {
            /// Every figure by its name.
            pub fn snapshot(&self) -> BTreeMap<&'static str, u64> {
                BTreeMap::from([$((stringify!($name), self.$name.load(Ordering::Relaxed)),)*])
            }
        }
    };
}

stats! {
    /// Connections accepted.
    connections,
    /// Connections open now.
    connections_now,
    /// Connections closed because there were too many.
    connections_refused,
    /// Connections that sent no CONNECT in time, the TLS handshake included.
    connect_timeouts,
    /// TLS handshakes that failed.
    tls_failures,
    /// CONNECTs refused by access rules or for their client id.
    connects_refused,
    /// Those among them that may have been guesses: a wrong user name, password or token.
    guesses,
    /// Connections cut for bytes that the standard forbids.
    protocol_errors,
    /// Connections taken over by a later one with the same client id.
    takeovers,
    /// Connections cut because nothing came within 1.5 times the keep alive.
    keep_alive_timeouts,
    /// Connections cut because the peer did not read.
    write_timeouts,
    /// Connections cut because more waited for them than the limits allow.
    queue_overflows,
    /// Connection tasks that ended in a panic: a bug each, at the cost of that connection.
    connection_panics,
    /// Wills published.
    wills,
    /// Messages received from clients.
    messages_received,
    /// Messages sent to clients.
    messages_sent,
    /// Bytes received from clients.
    bytes_received,
    /// Bytes sent to clients.
    bytes_sent,
    /// Messages at QoS 0 dropped because their reader was too slow.
    dropped_slow_reader,
    /// Messages dropped because they expired (MQTT 5).
    dropped_expired,
    /// Messages larger than their reader takes (MQTT 5).
    dropped_too_large,
    /// Retained messages not kept because of the limits.
    dropped_retained,
    /// Messages read and not acknowledged, whose publisher left before there was room for them.
    dropped_unaccepted,
    /// Messages that access rules kept from being published.
    publishes_refused,
    /// Subscriptions refused by access rules or limits.
    subscriptions_refused,
    /// Times a client was not read for a while because it sent faster than the limits allow.
    throttled,
    /// Times a publisher had to wait because a reader of the router was behind.
    credit_waits,
    /// Messages at QoS 1 and 2 acknowledged later because a subscriber to them was slow.
    publishers_held,
    /// Messages that the router lost. Never anything but 0: credit makes it impossible.
    router_gaps,
    /// Sessions that exist now, of connected and absent clients.
    sessions_now,
    /// Absent clients whose will or whose session's end is awaited now.
    deadlines_now,
    /// Sessions ended early because there were too many.
    sessions_evicted,
    /// Subscriptions that exist now.
    subscriptions_now,
    /// Retained messages now.
    retained_now,
}

impl Stats {
    pub(crate) fn add(counter: &AtomicU64, count: u64) {
        counter.fetch_add(count, Ordering::Relaxed);
    }

    pub(crate) fn sub(counter: &AtomicU64, count: u64) {
        counter.fetch_sub(count, Ordering::Relaxed);
    }

    pub(crate) fn set(counter: &AtomicU64, value: u64) {
        counter.store(value, Ordering::Relaxed);
    }
}

/// One client of the broker, connected or with a session that is kept, and what was counted of it since it is one.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct ClientReport {
    /// Its client id.
    pub client_id: String,
    /// Whose it is.
    pub account: String,
    /// Whether it is connected now.
    pub connected: bool,
    /// Messages that wait for it now.
    pub waiting: usize,
    /// Messages received from it.
    pub received: u64,
    /// Messages sent to it.
    pub sent: u64,
    /// Messages for it that were dropped.
    pub dropped: u64,
    /// Publications and subscriptions of it that were refused.
    pub refused: u64,
    /// Times it was not read for a while because it sent too fast.
    pub throttled: u64,
}

/// Lets one event in an interval through, so that a flood of them is one log line.
#[derive(Debug, Default)]
pub(crate) struct Throttle(Mutex<Option<Instant>>);

impl Throttle {
    const INTERVAL: Duration = Duration::from_secs(10);

    /// Whether this event may be logged.
    pub(crate) fn allows(&self) -> bool {
        let mut last = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let free = last.is_none_or(|last| last.elapsed() >= Self::INTERVAL);
        if free {
            *last = Some(Instant::now());
        }
        free
    }
}
