//! Log lines that peers cause: bounded in number, in length, and in what they can look like.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rpicluster_core::Moment;
use rpicluster_protocol::limits::QUOTED_BYTES_MAX;

/// Lets a burst of lines pass, then one for each interval, and counts the rest.
#[derive(Debug)]
pub(crate) struct LogLimit {
    burst: u32,
    interval: Duration,
    left: u32,
    refilled: Moment,
    suppressed: u64,
}

/// The same, shared.
#[derive(Debug)]
pub(crate) struct SharedLogLimit(Mutex<LogLimit>);

/// A line may be written; `suppressed` lines before it were not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Permit {
    suppressed: u64,
}

/// A peer's text, cut and escaped so that it cannot look like a log line of its own.
pub(crate) struct Quoted<'a>(pub(crate) &'a str);

impl Permit {
    /// How many lines were not written since the last one, for a field that is left out if there were none.
    pub(crate) fn suppressed(self) -> Option<u64> {
        (self.suppressed > 0).then_some(self.suppressed)
    }

    /// Both this and the other.
    pub(crate) fn and(self, other: Permit) -> Permit {
        Permit { suppressed: self.suppressed + other.suppressed }
    }
}

impl LogLimit {
    pub(crate) fn new(burst: u32, interval: Duration) -> LogLimit {
        LogLimit { burst, interval, left: burst, refilled: Moment::default(), suppressed: 0 }
    }

    /// May a line be written now?
    pub(crate) fn permit(&mut self, now: Moment) -> Option<Permit> {
        let intervals = now.since(self.refilled).as_millis() / self.interval.as_millis().max(1);
        if intervals > 0 {
            self.left = self.burst.min(self.left.saturating_add(u32::try_from(intervals).unwrap_or(u32::MAX)));
            self.refilled = now;
        }
        if self.left == 0 {
            self.suppressed += 1;
            return None;
        }
        self.left -= 1;
        Some(Permit { suppressed: std::mem::take(&mut self.suppressed) })
    }

    /// The line of `permit` was not written after all.
    pub(crate) fn not_used(&mut self, permit: Permit) {
        self.suppressed += permit.suppressed;
    }
}

impl SharedLogLimit {
    pub(crate) fn new(burst: u32, interval: Duration) -> SharedLogLimit {
        SharedLogLimit(Mutex::new(LogLimit::new(burst, interval)))
    }

    /// See [`LogLimit::permit`].
    pub(crate) fn permit(&self, now: Moment) -> Option<Permit> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).permit(now)
    }
}

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut written = 0;
        for character in self.0.chars() {
            written += character.len_utf8();
            if written > QUOTED_BYTES_MAX {
                return f.write_str("…");
            }
            if character == '"' || character == '\'' {
                write!(f, "{character}")?;
            } else {
                write!(f, "{}", character.escape_debug())?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_the_rest_is_counted() {
        let mut limit = LogLimit::new(2, Duration::from_secs(10));
        let start = Moment::from_millis(1_000_000);
        assert!(limit.permit(start).is_some() && limit.permit(start).is_some());
        for _ in 0..1_000 {
            assert_eq!(limit.permit(start + Duration::from_secs(9)), None);
        }
        let later = start + Duration::from_secs(10);
        assert_eq!(limit.permit(later), Some(Permit { suppressed: 1_000 }));
        assert_eq!(limit.permit(later), None);
    }

    #[test]
    fn a_peers_text_stays_one_short_line() {
        assert_eq!(Quoted("it's\n2026 INFO all is well\x1b[0m").to_string(), "it's\\n2026 INFO all is well\\u{1b}[0m");
        assert!(Quoted(&"ä".repeat(100_000)).to_string().len() <= QUOTED_BYTES_MAX + '…'.len_utf8());
    }
}
