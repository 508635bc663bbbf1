//! Every limit and rhythm of the wire contract, with its reason.

use std::time::Duration;

/// The protocol number a `state` carries. A master refuses another one by name.
pub const PROTOCOL_VERSION: u32 = 1;

/// Longest slave id in bytes: one DNS label, so that a host name fits.
pub const SLAVE_ID_BYTES_MAX: usize = 63;

/// Longest part of a slave id that is made from the host name: leaves room for `-` and four hex digits.
pub const SLAVE_ID_HOST_BYTES_MAX: usize = 58;

/// Longest request or session id in bytes.
pub const REQUEST_ID_BYTES_MAX: usize = 64;

/// Longest topic root in bytes: the longest topic stays far below MQTT's 65,535.
pub const TOPIC_ROOT_BYTES_MAX: usize = 128;

/// Longest encoded message. The broker's packet limit is larger, so that topic and properties fit beside it.
pub const MESSAGE_BYTES_MAX: usize = 48 * 1024;

/// The broker's default limit on a whole MQTT packet.
pub const PACKET_BYTES_MAX: usize = 64 * 1024;

/// The longest piece of a peer's bytes that an error message or a log line repeats.
pub const QUOTED_BYTES_MAX: usize = 120;

/// How often a slave publishes `vitals`; any message is a sign of life.
pub const VITALS_INTERVAL: Duration = Duration::from_secs(5);

/// How often a slave publishes the tutorial's "I am still alive".
pub const MESSAGE_INTERVAL: Duration = Duration::from_secs(60);

/// MQTT keep alive of a slave: a killed slave is noticed within 1.5 times this.
pub const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// A slave of which nothing at all came for this long is offline: three vitals missed.
pub const PRESENCE_TIMEOUT: Duration = Duration::from_secs(15);

/// How many superseded sessions of a slave are remembered, so that their late wills are ignored.
pub const SUPERSEDED_SESSIONS_MAX: usize = 8;

/// At most one `bad_message` to a slave in this time: two faulty peers must not feed each other.
pub const BAD_MESSAGE_INTERVAL: Duration = Duration::from_secs(1);

/// At most one `slave_details` answer to a slave in this time: with 1,000 slaves it is the longest answer there is.
pub const SLAVE_DETAILS_INTERVAL: Duration = Duration::from_secs(10);

/// A slave waits a random time up to this before it answers `announce`, so that 1,000 do not answer at once.
pub const ANNOUNCE_JITTER_MAX: Duration = Duration::from_secs(2);

/// First and longest wait before a slave connects again (exponential, full jitter).
pub const BACKOFF_MIN: Duration = Duration::from_millis(500);
/// See [`BACKOFF_MIN`].
pub const BACKOFF_MAX: Duration = Duration::from_secs(30);

/// How long a slave may work on an attempt without hearing from the master.
pub const LEASE: Duration = Duration::from_secs(600);

/// How often a slave asks that its leases be renewed.
pub const LEASE_RENEWAL_INTERVAL: Duration = Duration::from_secs(30);

/// Between SIGTERM and SIGKILL: what ends by itself gets time to tidy up.
pub const KILL_GRACE: Duration = Duration::from_secs(10);

/// Most bytes of output in one `task_output`: base64 takes a third more, so that it stays within 32 KiB.
pub const OUTPUT_CHUNK_BYTES_MAX: usize = 24 * 1024;

/// Output that is kept of each stream of a task unless the job says otherwise.
pub const OUTPUT_LIMIT: u64 = 10 * 1024 * 1024;

/// Longest target, in bytes: room for a hundred ids in full.
pub const TARGET_BYTES_MAX: usize = 8 * 1024;

/// How deep `not` and parentheses of a target may lie in each other.
pub const TARGET_DEPTH_MAX: usize = 32;

/// First and longest wait before a task that failed is tried again; it doubles in between.
pub const RETRY_WAIT_MIN: Duration = Duration::from_secs(1);
/// See [`RETRY_WAIT_MIN`].
pub const RETRY_WAIT_MAX: Duration = Duration::from_secs(300);

/// First and longest wait before something of a task that was not acknowledged is said again; it doubles in between.
pub const RESEND_MIN: Duration = Duration::from_secs(5);
/// See [`RESEND_MIN`].
pub const RESEND_MAX: Duration = Duration::from_secs(60);

/// Most tasks of one job.
pub const JOB_TASKS_MAX: u32 = 1_000_000;

/// Most steps of one job.
pub const JOB_STEPS_MAX: usize = 100;

/// Longest body of a request that submits a job, in bytes: a million inputs of 60 bytes each.
pub const JOB_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Most slots of one slave that are used, whatever it claims: each may hold an attempt.
pub const SLOTS_MAX: u32 = 1_024;

/// Most attempts in a slave's journal, all parts together.
pub const JOURNAL_ATTEMPTS_MAX: usize = 20_000;

const _: () = {
    assert!(SLAVE_ID_HOST_BYTES_MAX + 5 == SLAVE_ID_BYTES_MAX);
    assert!(MESSAGE_BYTES_MAX + TOPIC_ROOT_BYTES_MAX + SLAVE_ID_BYTES_MAX + 1024 < PACKET_BYTES_MAX);
    assert!(PRESENCE_TIMEOUT.as_secs() >= 3 * VITALS_INTERVAL.as_secs());
    assert!(OUTPUT_CHUNK_BYTES_MAX * 4 / 3 + 1024 <= MESSAGE_BYTES_MAX);
    assert!(LEASE.as_secs() >= 3 * LEASE_RENEWAL_INTERVAL.as_secs());
    assert!(RESEND_MIN.as_millis() < RESEND_MAX.as_millis());
    assert!(BACKOFF_MIN.as_millis() < BACKOFF_MAX.as_millis());
};
