//! What agent and supervisor say to each other: frames of JSON behind their length, over a pair of sockets.

use std::io;
use std::path::PathBuf;

use rpicluster_protocol::AttemptKey;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Longer than any order: an offer fits into a message, and its escapes and paths beside it.
const FRAME_BYTES_MAX: usize = 512 * 1024;
const LENGTH_BYTES: usize = 4;

/// What the supervisor is told.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Order {
    /// The first of all.
    Begin(Setup),
    /// Begin an attempt as a process of its own.
    Start(Box<Start>),
    /// Begin an attempt by a worker that stays.
    Call(Box<Call>),
    /// Its lease ends then, in milliseconds of CLOCK_BOOTTIME.
    Extend(AttemptKey, u64),
    /// It was canceled.
    Kill(AttemptKey),
    /// Its output is not needed any more.
    Forget(AttemptKey),
}

/// What holds for all attempts.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Setup {
    /// What the environment of every process says of its agent: [`AGENT_MARK`]'s value.
    pub(crate) agent: String,
    /// Where output waits.
    pub(crate) spool: PathBuf,
    /// Bytes of output that may wait in all.
    pub(crate) spool_max: u64,
    /// Bytes that wait there already.
    pub(crate) spool_used: u64,
    /// Between SIGTERM and SIGKILL, in milliseconds.
    pub(crate) grace_ms: u64,
    /// A cgroup of its own for the supervisor and all that it starts, where one could be made.
    pub(crate) cgroup: Option<PathBuf>,
}

/// An attempt and its bounds.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Bounds {
    pub(crate) key: AttemptKey,
    /// In milliseconds of CLOCK_BOOTTIME.
    pub(crate) lease_end_ms: u64,
    pub(crate) timeout_ms: Option<u64>,
    /// Bytes of each stream that are kept.
    pub(crate) output_limit: u64,
}

/// A process for one attempt.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Start {
    pub(crate) bounds: Bounds,
    pub(crate) program: Program,
    /// Its standard input.
    pub(crate) stdin: Option<String>,
    /// Written to a file whose name is appended to the arguments, before `after_script`.
    pub(crate) script: Option<String>,
    pub(crate) after_script: Vec<String>,
    /// Its standard output is one JSON value: the result.
    pub(crate) answers: bool,
}

/// What is executed, and as whom.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Program {
    /// The command first.
    pub(crate) argv: Vec<String>,
    /// The whole environment.
    pub(crate) env: Vec<(String, String)>,
    /// Where it runs; else in a folder of its own below `folder`.
    pub(crate) cwd: Option<PathBuf>,
    pub(crate) folder: PathBuf,
    /// If it is not the agent's own user.
    pub(crate) user: Option<User>,
}

/// As whom a process runs.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct User {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
}

/// A task for a worker.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Call {
    pub(crate) bounds: Bounds,
    /// Whose workers.
    pub(crate) function: String,
    /// How one is started.
    pub(crate) program: Program,
    /// How many there may be.
    pub(crate) workers: u32,
    pub(crate) input: Value,
}

/// What the supervisor tells.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Report {
    /// So much of its output waits in the spool.
    Output { key: AttemptKey, stdout: u64, stderr: u64 },
    /// Nothing of it runs any more.
    Ended(Box<Ended>),
}

/// How an attempt ended.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Ended {
    pub(crate) key: AttemptKey,
    /// Why it was killed, if it was.
    pub(crate) cause: Option<Cause>,
    pub(crate) exit_code: Option<i32>,
    pub(crate) signal: Option<i32>,
    /// What went wrong, in words.
    pub(crate) problem: Option<String>,
    pub(crate) duration_ms: u64,
    pub(crate) stdout: u64,
    pub(crate) stderr: u64,
    pub(crate) truncated: bool,
    pub(crate) cpu_ms: Option<u64>,
    pub(crate) memory_peak: Option<u64>,
    pub(crate) result: Option<Value>,
}

/// Why an attempt was killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Cause {
    Canceled,
    TimedOut,
    LeaseOver,
    AgentGone,
}

/// Names the agent, by the folder of its state, in the environment of all that it runs.
pub(crate) const AGENT_MARK: &str = "RPICLUSTER_AGENT";
/// Names the attempt in the environment of all that it runs.
pub(crate) const ATTEMPT_MARK: &str = "RPICLUSTER_ATTEMPT";

/// An attempt as a file's name and as a mark.
pub(crate) fn name(key: &AttemptKey) -> String {
    format!("{}-{}-{}", key.task, key.attempt, key.epoch)
}

/// Appends a frame.
pub(crate) fn push_frame(buffer: &mut Vec<u8>, frame: &impl Serialize) -> io::Result<()> {
    let start = buffer.len();
    buffer.extend([0; LENGTH_BYTES]);
    serde_json::to_writer(&mut *buffer, frame)?;
    let length = buffer.len() - start - LENGTH_BYTES;
    if length > FRAME_BYTES_MAX {
        buffer.truncate(start);
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("a frame of {length} bytes")));
    }
    // It fits: the limit is far below.
    buffer[start..start + LENGTH_BYTES].copy_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes());
    Ok(())
}

/// Takes whole frames from bytes as they come.
#[derive(Debug, Default)]
pub(crate) struct Frames {
    bytes: Vec<u8>,
    taken: usize,
}

impl Frames {
    pub(crate) fn extend(&mut self, bytes: &[u8]) {
        self.bytes.drain(..std::mem::take(&mut self.taken));
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole frame, if there is one.
    ///
    /// # Errors
    /// If what came is none.
    pub(crate) fn next<T: DeserializeOwned>(&mut self) -> io::Result<Option<T>> {
        let rest = &self.bytes[self.taken..];
        let Some((length, rest)) = rest.split_first_chunk::<LENGTH_BYTES>() else { return Ok(None) };
        let length = u32::from_le_bytes(*length) as usize;
        if length > FRAME_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a frame of {length} bytes")));
        }
        let Some(frame) = rest.get(..length) else { return Ok(None) };
        let frame = serde_json::from_slice(frame)?;
        self.taken += LENGTH_BYTES + length;
        Ok(Some(frame))
    }
}
