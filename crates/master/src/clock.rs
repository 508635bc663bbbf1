//! The two clocks: one to decide by, one to show.

use std::time::{Duration, SystemTime};

use rpicluster_core::Moment;
use rpicluster_protocol::Timestamp;

/// Now, by the clock of every decision.
pub(crate) fn now() -> Moment {
    rpicluster_machine::boottime().into()
}

/// Now, for people.
pub(crate) fn wall() -> Timestamp {
    let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    Timestamp::from_unix_ms(u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX))
}
