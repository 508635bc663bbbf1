//! How fast one client may send.

use std::time::{Duration, Instant};

/// What a client may still send now: it refills with time, up to a second's worth.
#[derive(Debug)]
pub(crate) struct Allowance {
    packets: Bucket,
    bytes: Bucket,
    refilled: Instant,
}

#[derive(Debug)]
struct Bucket {
    per_second: f64,
    left: f64,
}

impl Allowance {
    pub(crate) fn new(packets_per_second: u32, bytes_per_second: u32, now: Instant) -> Allowance {
        let bucket = |per_second: u32| Bucket { per_second: per_second.into(), left: per_second.into() };
        Allowance { packets: bucket(packets_per_second), bytes: bucket(bytes_per_second), refilled: now }
    }

    /// A packet of this many bytes came.
    pub(crate) fn spend(&mut self, bytes: usize) {
        self.packets.left -= 1.0;
        self.bytes.left -= bytes as f64;
    }

    /// How long to wait before the client is read again, if it sent too much.
    pub(crate) fn exhausted(&mut self, now: Instant) -> Option<Duration> {
        if self.packets.left > 0.0 && self.bytes.left > 0.0 {
            return None;
        }
        let elapsed = now.saturating_duration_since(self.refilled).as_secs_f64();
        self.refilled = now;
        let wait = self.packets.refill(elapsed).max(self.bytes.refill(elapsed));
        (wait > 0.0).then(|| Duration::from_secs_f64(wait))
    }
}

impl Bucket {
    /// Seconds until there is something left.
    fn refill(&mut self, elapsed: f64) -> f64 {
        self.left = (self.left + elapsed * self.per_second).min(self.per_second);
        // A tenth of a second's worth at once, so that a fast sender is not woken for every packet.
        if self.left > 0.0 { 0.0 } else { -self.left / self.per_second + 0.1 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_then_the_rate_holds() {
        let start = Instant::now();
        let mut allowance = Allowance::new(10, 1_000_000, start);
        let mut now = start;
        let mut sent = 0;
        while now < start + Duration::from_secs(10) {
            match allowance.exhausted(now) {
                Some(wait) => now += wait,
                None => {
                    allowance.spend(1);
                    sent += 1;
                }
            }
        }
        assert!((100..=120).contains(&sent), "{sent}");
    }

    #[test]
    fn bytes_count_too_and_an_idle_client_saves_no_more_than_a_second() {
        let start = Instant::now();
        let mut allowance = Allowance::new(1_000, 100, start);
        let now = start + Duration::from_secs(3600);
        allowance.spend(250);
        assert!(allowance.exhausted(now).is_none(), "refilled meanwhile");
        allowance.spend(100);
        allowance.spend(1);
        assert!(allowance.exhausted(now).is_some_and(|wait| wait > Duration::from_secs(1) / 100));
    }
}
