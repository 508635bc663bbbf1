//! Heartbeats of the two parts without which the master is deaf: bus and engine.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rpicluster_core::Moment;

use crate::clock;

/// How often bus and engine beat when nothing else wakes them.
pub(crate) const BEAT_INTERVAL: Duration = Duration::from_millis(500);

/// Without a beat for this long a part is not healthy: some commits of a slow SD card take a second.
const BEAT_AGE_MAX: Duration = Duration::from_secs(3);

/// When each part last showed that it runs.
#[derive(Debug)]
pub(crate) struct Health {
    pub(crate) bus: Beat,
    pub(crate) engine: Beat,
}

/// Follows whether a running master's loops turn, for a watchdog.
#[derive(Debug, Clone)]
pub struct Pulse(pub(crate) Arc<Health>);

impl Pulse {
    /// Whether bus and engine both do.
    pub fn is_beating(&self) -> bool {
        self.0.is_alive(clock::now())
    }
}

/// When one part last showed that it runs.
#[derive(Debug)]
pub(crate) struct Beat(AtomicU64);

impl Health {
    pub(crate) fn new(now: Moment) -> Health {
        Health { bus: Beat(AtomicU64::new(now.as_millis())), engine: Beat(AtomicU64::new(now.as_millis())) }
    }

    fn is_alive(&self, now: Moment) -> bool {
        self.bus.is_alive(now) && self.engine.is_alive(now)
    }
}

impl Beat {
    pub(crate) fn beat(&self, now: Moment) {
        self.0.store(now.as_millis(), Ordering::Relaxed);
    }

    pub(crate) fn age(&self, now: Moment) -> Duration {
        now.since(Moment::from_millis(self.0.load(Ordering::Relaxed)))
    }

    pub(crate) fn is_alive(&self, now: Moment) -> bool {
        self.age(now) <= BEAT_AGE_MAX
    }
}
