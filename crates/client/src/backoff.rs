use std::time::Duration;

use rpicluster_protocol::limits::{BACKOFF_MAX, BACKOFF_MIN};

/// A connection that held for this long was a good one: the next failure starts with short waits again. A shorter one
/// may be refused at once each time, or be taken over by another slave with the same id.
const GOOD_CONNECTION: Duration = Duration::from_secs(10);
/// Shortest and longest ceiling after a refusal: only a person's deed ends it, and each try costs the broker a slow hash.
const REFUSED_MIN: Duration = Duration::from_secs(4);
const REFUSED_MAX: Duration = Duration::from_secs(60);

/// How long to wait before the next connection: exponential with full jitter, so that those who lost their broker together
/// do not come back together.
#[derive(Debug)]
pub struct Backoff {
    ceiling: Duration,
}

impl Default for Backoff {
    fn default() -> Backoff {
        Backoff { ceiling: BACKOFF_MIN }
    }
}

impl Backoff {
    /// The wait after a connection that held for `held` (zero if there was none).
    pub fn after(&mut self, held: Duration, random: &mut fastrand::Rng) -> Duration {
        if held >= GOOD_CONNECTION {
            self.ceiling = BACKOFF_MIN;
        }
        self.ceiling = self.ceiling.min(BACKOFF_MAX);
        let wait = self.ceiling.mul_f64(random.f64());
        self.ceiling = (self.ceiling * 2).min(BACKOFF_MAX);
        wait
    }

    /// The wait after the broker said that it does not know who this is: never short.
    pub fn after_refusal(&mut self, random: &mut fastrand::Rng) -> Duration {
        self.ceiling = (self.ceiling * 2).clamp(REFUSED_MIN, REFUSED_MAX);
        self.ceiling.mul_f64(0.5 + random.f64() / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ceilings_double_up_to_the_longest_wait() {
        let mut backoff = Backoff::default();
        let mut random = fastrand::Rng::with_seed(7);
        let mut ceilings = Vec::new();
        for _ in 0..8 {
            let ceiling = backoff.ceiling;
            ceilings.push(ceiling.as_millis());
            assert!(backoff.after(Duration::ZERO, &mut random) <= ceiling);
        }
        assert_eq!(ceilings, [500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000]);
    }

    #[test]
    fn jitter_is_full() {
        let mut random = fastrand::Rng::with_seed(7);
        let first_waits: Vec<_> =
            (0..1000).map(|_| Backoff::default().after(Duration::ZERO, &mut random).as_millis()).collect();
        assert!(first_waits.iter().any(|wait| *wait < 25) && first_waits.iter().any(|wait| *wait > 475));
    }

    #[test]
    fn a_refused_slave_asks_once_a_minute_in_the_end_and_comes_back_from_that() {
        let mut backoff = Backoff::default();
        let mut random = fastrand::Rng::with_seed(7);
        let waits: Vec<_> = (0..20).map(|_| backoff.after_refusal(&mut random)).collect();
        assert!(waits[0] >= REFUSED_MIN / 2 && waits.iter().all(|wait| *wait <= REFUSED_MAX), "{waits:?}");
        assert!(waits[10..].iter().all(|wait| *wait >= REFUSED_MAX / 2), "{waits:?}");
        assert!(backoff.after(Duration::ZERO, &mut random) <= BACKOFF_MAX);
    }

    #[test]
    fn only_a_good_connection_starts_afresh() {
        let mut backoff = Backoff::default();
        let mut random = fastrand::Rng::with_seed(7);
        for _ in 0..5 {
            backoff.after(Duration::from_secs(9), &mut random);
        }
        assert_eq!(backoff.ceiling, Duration::from_secs(16));
        backoff.after(GOOD_CONNECTION, &mut random);
        assert_eq!(backoff.ceiling, BACKOFF_MIN * 2);
    }
}
