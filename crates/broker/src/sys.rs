//! The broker about itself: a small `$SYS` tree, with the names that other brokers use.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::stats::Stats;

/// How often those who subscribed are told.
pub(crate) const INTERVAL: Duration = Duration::from_secs(10);

/// The first level of the tree.
pub(crate) const ROOT: &str = "$SYS";

/// Every topic of the tree and what it says now.
pub(crate) fn report(stats: &Stats, uptime: Duration) -> Vec<(&'static str, String)> {
    let figure = |counter: &AtomicU64| counter.load(Ordering::Relaxed).to_string();
    let dropped: u64 = [
        &stats.dropped_slow_reader,
        &stats.dropped_expired,
        &stats.dropped_too_large,
        &stats.dropped_retained,
        &stats.dropped_unaccepted,
        &stats.publishes_refused,
    ]
    .into_iter()
    .map(|counter| counter.load(Ordering::Relaxed))
    .sum();
    vec![
        ("$SYS/broker/version", concat!("rpicluster ", env!("CARGO_PKG_VERSION")).to_owned()),
        ("$SYS/broker/uptime", format!("{} seconds", uptime.as_secs())),
        ("$SYS/broker/clients/connected", figure(&stats.connections_now)),
        ("$SYS/broker/clients/total", figure(&stats.sessions_now)),
        ("$SYS/broker/subscriptions/count", figure(&stats.subscriptions_now)),
        ("$SYS/broker/messages/received", figure(&stats.messages_received)),
        ("$SYS/broker/messages/sent", figure(&stats.messages_sent)),
        ("$SYS/broker/bytes/received", figure(&stats.bytes_received)),
        ("$SYS/broker/bytes/sent", figure(&stats.bytes_sent)),
        ("$SYS/broker/retained messages/count", figure(&stats.retained_now)),
        ("$SYS/broker/publish/messages/dropped", dropped.to_string()),
    ]
}
