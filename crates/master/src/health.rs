//! Heartbeats of the two parts without which the master is deaf, bus and engine; and whether it hears a broker elsewhere.

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
    pub(crate) hearing: Arc<Hearing>,
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

/// Until when all that slaves said has been heard. A broker in this process hides nothing; of one elsewhere only what came
/// from it proves that nothing is missing.
#[derive(Debug)]
pub(crate) struct Hearing {
    /// How many connections there were to a broker elsewhere.
    connections: AtomicU64,
    /// When the broker was last heard; `DEAF` without a connection, never in the past for the broker in this process.
    proof: AtomicU64,
}

const DEAF: u64 = 0;

/// When one part last showed that it runs.
#[derive(Debug)]
pub(crate) struct Beat(AtomicU64);

impl Health {
    pub(crate) fn new(now: Moment, hearing: Arc<Hearing>) -> Health {
        let beat = || Beat(AtomicU64::new(now.as_millis()));
        Health { bus: beat(), engine: beat(), hearing }
    }

    fn is_alive(&self, now: Moment) -> bool {
        self.bus.is_alive(now) && self.engine.is_alive(now)
    }
}

impl Hearing {
    /// Of the broker in this process.
    pub(crate) fn here() -> Hearing {
        Hearing { connections: AtomicU64::new(0), proof: AtomicU64::new(Moment::NEVER.as_millis()) }
    }

    /// Of a broker elsewhere, to which there is no connection yet.
    pub(crate) fn elsewhere() -> Hearing {
        Hearing { connections: AtomicU64::new(0), proof: AtomicU64::new(DEAF) }
    }

    /// There is a connection, and all that is said from now on comes through it.
    pub(crate) fn found(&self, now: Moment) {
        self.connections.fetch_add(1, Ordering::SeqCst);
        self.proof.store(now.as_millis(), Ordering::SeqCst);
    }

    /// Something came through the connection.
    pub(crate) fn heard(&self, now: Moment) {
        self.proof.store(now.as_millis(), Ordering::SeqCst);
    }

    /// The connection is lost.
    pub(crate) fn lost(&self) {
        self.proof.store(DEAF, Ordering::SeqCst);
    }

    /// The number of the connection, and until when all was heard; nothing while there is none.
    pub(crate) fn until(&self, now: Moment) -> Option<(u64, Moment)> {
        let proof = self.proof.load(Ordering::SeqCst);
        (proof != DEAF).then(|| (self.connections.load(Ordering::SeqCst), now.min(Moment::from_millis(proof))))
    }

    /// How many connections there were.
    pub(crate) fn connections(&self) -> u64 {
        self.connections.load(Ordering::SeqCst)
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
