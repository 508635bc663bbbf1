//! Time as an argument.

use std::ops::Add;
use std::time::Duration;

/// A moment in milliseconds of a clock that never goes back and counts suspend (CLOCK_BOOTTIME).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Moment(u64);

impl Moment {
    /// A moment that never comes.
    pub const NEVER: Moment = Moment(u64::MAX);

    /// From milliseconds since the clock's own beginning.
    pub const fn from_millis(millis: u64) -> Moment {
        Moment(millis)
    }

    /// Milliseconds since the clock's own beginning.
    pub fn as_millis(self) -> u64 {
        self.0
    }

    /// Time from `earlier` to this moment, nothing if `earlier` is later.
    pub fn since(self, earlier: Moment) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

impl From<Duration> for Moment {
    /// From the time since the clock's own beginning.
    fn from(since_beginning: Duration) -> Moment {
        Moment::default() + since_beginning
    }
}

impl Add<Duration> for Moment {
    type Output = Moment;

    /// The moment `later` after this one; beyond the end of time it is [`Moment::NEVER`].
    fn add(self, later: Duration) -> Moment {
        Moment(self.0.saturating_add(u64::try_from(later.as_millis()).unwrap_or(u64::MAX)))
    }
}
