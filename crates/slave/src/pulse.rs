//! Whether the agent's loop still turns, for a watchdog.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How much later than announced a turn may come: a slow SD card or a busy machine is no reason for a restart.
const GRACE: Duration = Duration::from_secs(10);

/// Follows the loop of a running slave: before each wait it says how long that may take.
#[derive(Debug, Clone)]
pub struct Pulse(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    started: Instant,
    /// Milliseconds after `started` by which the loop has turned.
    due_ms: AtomicU64,
}

impl Pulse {
    pub(crate) fn new() -> Pulse {
        let pulse = Pulse(Arc::new(Inner { started: Instant::now(), due_ms: AtomicU64::new(0) }));
        pulse.expect_within(Duration::ZERO);
        pulse
    }

    /// Whether the loop has turned when it said that it would.
    pub fn is_beating(&self) -> bool {
        self.is_beating_at(self.0.started.elapsed())
    }

    /// Says that the loop turns again within `wait`.
    pub(crate) fn expect_within(&self, wait: Duration) {
        let due = self.0.started.elapsed() + wait + GRACE;
        self.0.due_ms.store(u64::try_from(due.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    fn is_beating_at(&self, elapsed: Duration) -> bool {
        elapsed <= Duration::from_millis(self.0.due_ms.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loop_that_does_not_turn_when_it_said_so_has_no_pulse() {
        let pulse = Pulse::new();
        assert!(pulse.is_beating());
        pulse.expect_within(Duration::from_secs(60));
        assert!(pulse.is_beating_at(Duration::from_secs(60) + GRACE));
        assert!(!pulse.is_beating_at(Duration::from_secs(120) + GRACE));
    }
}
