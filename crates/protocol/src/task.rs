//! Tasks as they travel: what is to be done, what happened, and what is acknowledged.
//!
//! A job becomes tasks; a task is tried in attempts; an attempt belongs to one slave for ever. Its [`AttemptKey`] is its
//! fencing key. The rules are on the page `docs/protocol.md`, Tasks.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::id::SessionId;

mod id;

pub use id::{Epoch, JobId, JournalId, TaskId, TaskIdError};

/// One try of a task on one slave: the fencing key of all that is said of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct AttemptKey {
    /// Of which task.
    pub task: TaskId,
    /// Counts from 1.
    pub attempt: u32,
    /// By which store.
    pub epoch: Epoch,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Work {
    /// A command and its arguments, without a shell.
    Exec {
        /// The command first.
        argv: Vec<String>,
    },
    /// The body of a script, handed to an interpreter as a file.
    Script {
        /// The interpreter and its arguments; the script's file name is appended.
        interpreter: Vec<String>,
        /// The body.
        script: String,
        /// What the script finds as its arguments.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        arguments: Vec<String>,
    },
    /// One of the things that every slave can do.
    Action {
        /// Which.
        action: Action,
    },
    /// A function that the slave's administrator has put into `functions.d`.
    Function {
        /// Its file name there.
        function: String,
        /// What it is given.
        #[serde(default)]
        input: serde_json::Value,
    },
}

/// What every slave can do; each has a switch in the slave's own policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// Answer.
    Ping,
    /// Tell the time by the slave's clock.
    Time,
    /// Tell the version of the agent.
    Revision,
    /// Tell what the machine is.
    Details,
    /// Boot anew; succeeds when the slave is back with another boot id.
    Reboot,
    /// Power off; succeeds when the slave has gone offline after it began.
    Shutdown,
    /// Update the package lists and upgrade all packages.
    OsUpgrade,
}

/// Work and the circumstances under which it is done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskSpec {
    /// What is to be done.
    #[serde(flatten)]
    pub work: Work,
    /// Variables added to the clean environment.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// The working folder, else an empty one of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// What it reads from its standard input, else nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdin: Option<String>,
    /// The user under whom it runs, if the slave's policy allows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_as: Option<String>,
    /// How long it may run, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// How many bytes of each output stream are kept.
    #[serde(default = "output_limit")]
    pub output_limit: u64,
}

/// `task_offer`: to be started, in this session and while the lease holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskOffer {
    /// Which attempt.
    #[serde(flatten)]
    pub key: AttemptKey,
    /// The slave's session for which this holds.
    pub session: SessionId,
    /// For how long the slave may work on it without hearing from the master, in milliseconds.
    pub lease_ms: u64,
    /// What and how.
    #[serde(flatten)]
    pub spec: TaskSpec,
}

/// `task_cancel`: a request; the first outcome in the journal wins.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskCancel {
    /// Which attempt.
    #[serde(flatten)]
    pub key: AttemptKey,
}

/// `task_ack`: recorded up to these; the slave may forget it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskAck {
    /// Which attempt.
    #[serde(flatten)]
    pub key: AttemptKey,
    /// All events up to this number; 0 if there is none yet.
    pub seq: u32,
    /// Bytes of standard output.
    pub stdout: u64,
    /// Bytes of standard error.
    pub stderr: u64,
}

/// `task_started`: the journal holds that it began.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskStarted {
    /// Which attempt.
    #[serde(flatten)]
    pub key: AttemptKey,
    /// Counts the attempt's events from 1.
    pub seq: u32,
    /// During which boot of the machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_id: Option<String>,
}

/// `task_finished`: the journal holds how it ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskFinished {
    /// Which attempt.
    #[serde(flatten)]
    pub key: AttemptKey,
    /// Counts the attempt's events from 1.
    pub seq: u32,
    /// How.
    pub outcome: Outcome,
    /// The exit code of what ran, if it exited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// The signal that ended it, if one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// In words, where the outcome alone does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// How long it ran, in milliseconds.
    #[serde(default)]
    pub duration_ms: u64,
    /// Bytes of standard output in all, as far as they are kept.
    #[serde(default)]
    pub stdout: u64,
    /// Bytes of standard error in all, as far as they are kept.
    #[serde(default)]
    pub stderr: u64,
    /// There was more output than is kept.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub truncated: bool,
    /// Time on processors, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_ms: Option<u64>,
    /// The most memory that it held, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_peak: Option<u64>,
    /// What an action or a function answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<serde_json::Value>,
}

/// How an attempt ended, as its slave says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Exit code 0, or the action or function answered.
    Succeeded,
    /// Another exit code, a signal, or it could not begin.
    Failed,
    /// It ran longer than it may, and was killed.
    TimedOut,
    /// It was told to end, and did, or never began.
    Canceled,
    /// The agent or the lease ended first: how far it came is not known.
    Lost,
}

/// `task_rejected`: it did not begin and will not.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskRejected {
    /// Which attempt.
    #[serde(flatten)]
    pub key: AttemptKey,
    /// Counts the attempt's events from 1.
    pub seq: u32,
    /// Why.
    pub reason: RejectReason,
    /// The rule that says so, and what to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// Why a slave does not begin a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RejectReason {
    /// The slave's own policy forbids it.
    Policy,
    /// The offer's session or lease was over: it costs no retry.
    Stale,
    /// All slots are taken: it costs no retry.
    Busy,
    /// No slot became free in time for what was offered ahead of one: it costs nothing.
    Waited,
    /// There is no such function here.
    UnknownFunction,
    /// This agent does not know what the offer asks for.
    Unsupported,
}

/// `task_output`: a piece of what a task wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskOutput {
    /// Which attempt.
    pub key: AttemptKey,
    /// Which stream.
    pub stream: Stream,
    /// Where in the stream the piece begins, in bytes.
    pub offset: u64,
    /// What lies between the piece before and this one is lost and will never come.
    pub gap: bool,
    /// The bytes.
    pub data: Vec<u8>,
}

/// A stream that a task writes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// `task_journal`: all attempts that the slave has not been allowed to forget. The first thing that a session says of
/// tasks; in parts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskJournal {
    /// Which journal.
    pub journal_id: JournalId,
    /// The session in which it is sent.
    pub session: SessionId,
    /// The newest event of each attempt.
    pub attempts: Vec<JournalEntry>,
}

/// The newest event of an attempt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum JournalEntry {
    /// It runs.
    Started(TaskStarted),
    /// It has ended, or was told to end before it was offered.
    Finished(Box<TaskFinished>),
    /// It did not begin.
    Rejected(TaskRejected),
}

/// `task_lease` asks that the leases of attempts be renewed, and `lease_ack` says which were.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskLease {
    /// By which store the attempts are.
    pub epoch: Epoch,
    /// Chosen by who asks and repeated in the answer: the lease then holds from when this number was sent.
    pub renewal: u64,
    /// Which attempts.
    pub attempts: Vec<LeasedAttempt>,
}

/// An attempt within a [`TaskLease`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct LeasedAttempt {
    /// Of which task.
    pub task: TaskId,
    /// Counts from 1.
    pub attempt: u32,
}

impl Action {
    /// All of them.
    pub const ALL: [Action; 7] = [
        Action::Ping,
        Action::Time,
        Action::Revision,
        Action::Details,
        Action::Reboot,
        Action::Shutdown,
        Action::OsUpgrade,
    ];

    /// Its word on the wire, in the policy and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Action::Ping => "ping",
            Action::Time => "time",
            Action::Revision => "revision",
            Action::Details => "details",
            Action::Reboot => "reboot",
            Action::Shutdown => "shutdown",
            Action::OsUpgrade => "os-upgrade",
        }
    }
}

impl TaskFinished {
    /// An end of which nothing more is known.
    pub fn new(key: AttemptKey, seq: u32, outcome: Outcome) -> TaskFinished {
        TaskFinished {
            key,
            seq,
            outcome,
            exit_code: None,
            signal: None,
            reason: None,
            duration_ms: 0,
            stdout: 0,
            stderr: 0,
            truncated: false,
            cpu_ms: None,
            memory_peak: None,
            result: None,
        }
    }
}

impl JournalEntry {
    /// Whose event it is.
    pub fn key(&self) -> AttemptKey {
        match self {
            JournalEntry::Started(started) => started.key,
            JournalEntry::Finished(finished) => finished.key,
            JournalEntry::Rejected(rejected) => rejected.key,
        }
    }

    /// Its number among the attempt's events.
    pub fn seq(&self) -> u32 {
        match self {
            JournalEntry::Started(started) => started.seq,
            JournalEntry::Finished(finished) => finished.seq,
            JournalEntry::Rejected(rejected) => rejected.seq,
        }
    }
}

fn output_limit() -> u64 {
    crate::limits::OUTPUT_LIMIT
}

/// A piece of output as it is written: text where the bytes are UTF-8 and JSON does not make them longer than base64 would.
#[derive(Serialize, Deserialize)]
struct OutputBody<'a> {
    #[serde(flatten)]
    key: AttemptKey,
    stream: Stream,
    offset: u64,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    gap: bool,
    data: std::borrow::Cow<'a, str>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    base64: bool,
}

impl Serialize for TaskOutput {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let TaskOutput { key, stream, offset, gap, data } = self;
        let text = std::str::from_utf8(data).ok().filter(|_| data.len() + escapes(data) <= data.len().div_ceil(3) * 4);
        OutputBody {
            key: *key,
            stream: *stream,
            offset: *offset,
            gap: *gap,
            base64: text.is_none(),
            data: text.map_or_else(|| BASE64_STANDARD.encode(data).into(), Into::into),
        }
        .serialize(serializer)
    }
}

/// How many bytes JSON adds to these.
fn escapes(data: &[u8]) -> usize {
    let added = |byte: &u8| match byte {
        b'"' | b'\\' | b'\n' | b'\r' | b'\t' => 1,
        0..0x20 => 5,
        _ => 0,
    };
    data.iter().map(added).sum()
}

impl<'de> Deserialize<'de> for TaskOutput {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let OutputBody { key, stream, offset, gap, data, base64 } = OutputBody::deserialize(deserializer)?;
        let data = if base64 {
            BASE64_STANDARD.decode(data.as_bytes()).map_err(serde::de::Error::custom)?
        } else {
            data.into_owned().into_bytes()
        };
        Ok(TaskOutput { key, stream, offset, gap, data })
    }
}

/// Several in one message: one alone stands for itself, more are an array.
pub(crate) struct Compact<'a, T>(pub(crate) &'a [T]);

impl<T: Serialize> Serialize for Compact<'_, T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            [one] => one.serialize(serializer),
            all => all.serialize(serializer),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_longest_piece_of_output_fits_into_a_message_whatever_it_holds() {
        use crate::limits::{MESSAGE_BYTES_MAX, OUTPUT_CHUNK_BYTES_MAX};
        let key = AttemptKey {
            task: TaskId { job: JobId(i64::MAX as u64), index: u32::MAX },
            attempt: u32::MAX,
            epoch: Epoch(u64::MAX),
        };
        for byte in [b'a', b'"', b'\n', 0, 0x7f, 0xff] {
            let data = vec![byte; OUTPUT_CHUNK_BYTES_MAX];
            let output = TaskOutput { key, stream: Stream::Stdout, offset: u64::MAX, gap: true, data };
            let json = serde_json::to_string(&output).unwrap();
            assert!(json.len() < MESSAGE_BYTES_MAX * 3 / 4, "{byte}: {}", json.len());
        }
    }

    proptest! {
        #[test]
        fn output_of_any_bytes_survives_the_wire(data: Vec<u8>, offset: u64, gap: bool) {
            let key = AttemptKey { task: TaskId { job: JobId(1), index: 2 }, attempt: 3, epoch: Epoch(4) };
            let output = TaskOutput { key, stream: Stream::Stderr, offset, gap, data };
            let json = serde_json::to_string(&output).unwrap();
            prop_assert_eq!(serde_json::from_str::<TaskOutput>(&json).unwrap(), output);
        }
    }
}
