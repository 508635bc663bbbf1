//! Jobs as they are submitted and shown over HTTP (`/api/v1/jobs`): what the command line sends and reads.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::id::{SlaveId, quoted};
use crate::message::Timestamp;
use crate::task::{JobId, TaskId, TaskOutput, TaskSpec};

/// `POST /api/v1/jobs`: what a user wants done. Answered by [`JobAccepted`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobRequest {
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// At least one.
    pub steps: Vec<StepRequest>,
    /// Nothing is submitted: the answer tells who would run what.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dry_run: bool,
}

/// One step of a job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepRequest {
    /// By which `after` of later steps names it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Target: which slaves, as in `role=worker and not pi-3`.
    pub on: String,
    /// What every task does; `{}`, `{#}` and `{slave}` stand for its input, its number from 1 and its slave.
    #[serde(flatten)]
    pub spec: TaskSpec,
    /// A queue that the slaves share, a task for each; without it every slave has one task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inputs: Option<Vec<String>>,
    /// How often a task that failed, timed out or (if idempotent) was lost is tried again.
    #[serde(default)]
    pub retries: u32,
    /// It may run again though nobody knows how far it came.
    #[serde(default)]
    pub idempotent: bool,
    /// How long tasks wait for slaves that are offline, in milliseconds; for ever if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait_ms: Option<u64>,
    /// How many run at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch: Option<Share>,
    /// After so many failures nothing more is started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_failures: Option<Share>,
    /// Names of steps that must have succeeded before.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub after: Vec<String>,
}

/// A number, or a part of a step's tasks: `3` or `25%`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Share {
    /// So many.
    Number(u32),
    /// So many of a hundred.
    Percent(u8),
}

/// Why a text is no [`Share`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not valid: use a number from 1, or a percentage from 1% to 100%")]
pub struct ShareError(String);

/// The answer to a [`JobRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobAccepted {
    /// Its number; none for a dry run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<JobId>,
    /// Its steps, in order.
    pub steps: Vec<StepAccepted>,
}

/// Who runs a step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepAccepted {
    /// The slaves that match, in order.
    pub slaves: Vec<SlaveId>,
    /// Those of them that are offline.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub offline: Vec<SlaveId>,
    /// Those that begin nothing until they are undrained; what is for them alone waits.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub draining: Vec<SlaveId>,
    /// How many tasks it has.
    pub tasks: u32,
}

/// Where a task stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskState {
    /// It waits for a slave, or for the steps before.
    Queued,
    /// A slave was told; it may have begun.
    Offered,
    /// It runs.
    Running,
    /// Its slave is gone; it may run.
    Unknown,
    /// It waits for its next attempt.
    Backoff,
    /// Ended well.
    Succeeded,
    /// Ended otherwise.
    Failed,
    /// Ended because it ran too long.
    TimedOut,
    /// Ended, or not begun, because somebody or a limit said so.
    Canceled,
    /// A slave's policy said no.
    Rejected,
    /// Nobody knows how far it came.
    Lost,
    /// It waited too long.
    Expired,
}

/// Where a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// Some task has not ended.
    Active,
    /// Every task has succeeded.
    Succeeded,
    /// All have ended, and one has not succeeded.
    Failed,
    /// All have ended, after somebody canceled it.
    Canceled,
}

/// `GET /api/v1/jobs/N`: a job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobInfo {
    /// Its number.
    pub job: JobId,
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Who asked for it.
    pub requester: String,
    /// Where it stands.
    pub state: JobState,
    /// When it was submitted, by the master's clock.
    pub submitted: Timestamp,
    /// When its last task ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<Timestamp>,
    /// How many tasks it has.
    pub tasks: u32,
    /// How many of them stand where; none is left out.
    pub counts: BTreeMap<TaskState, u32>,
    /// What it does, a line for each step.
    pub steps: Vec<StepInfo>,
}

/// A step of a [`JobInfo`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepInfo {
    /// Its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Its target, as submitted.
    pub on: String,
    /// What it runs, in one line.
    pub work: String,
    /// How many tasks it has.
    pub tasks: u32,
}

/// `GET /api/v1/jobs/N/tasks`: a page of tasks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskPage {
    /// In order.
    pub tasks: Vec<TaskInfo>,
    /// `?from=` of the next page, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<u32>,
}

/// A task and its latest attempt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskInfo {
    /// Which.
    pub task: TaskId,
    /// Which step of its job, from 0.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub step: u32,
    /// Where it stands.
    pub state: TaskState,
    /// The slave of its latest attempt, or the one that it waits for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slave: Option<SlaveId>,
    /// Its input.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input: Option<String>,
    /// The number of its latest attempt; 0 before the first.
    #[serde(default)]
    pub attempt: u32,
    /// When its latest attempt was said to have begun, by the master's clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started: Option<Timestamp>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<Timestamp>,
    /// The exit code of what ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// The signal that ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// In words, where the state alone does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// How long it ran, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration_ms: Option<u64>,
    /// Time on processors, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_ms: Option<u64>,
    /// The most memory that it held, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_peak: Option<u64>,
    /// Bytes of standard output recorded so far.
    #[serde(default)]
    pub stdout: u64,
    /// Bytes of standard error recorded so far.
    #[serde(default)]
    pub stderr: u64,
    /// There was more output than is kept, or some of it is lost.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub truncated: bool,
    /// What an action or a function answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<serde_json::Value>,
}

/// A line of `GET /api/v1/jobs/N/events`: first how it stands, then what changes, until the job has ended. Each says what
/// holds, so that one that comes twice does no harm.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum JobEvent {
    /// The job. The stream ends with one that is not active.
    Job(JobInfo),
    /// A task.
    Task(TaskInfo),
    /// A piece of output, as far as it was asked for (`?output=true`).
    Output(TaskOutput),
}

/// `POST /api/v1/jobs/N/cancel`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CancelRequest {
    /// What runs is ended too, else only what has not begun.
    pub running: bool,
}

/// `POST /api/v1/jobs/N/retry`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RetryRequest {
    /// Only what failed or timed out, else everything that ended without success.
    pub failed: bool,
}

/// `POST /api/v1/slaves/ID/drain`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DrainRequest {
    /// For people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What still runs after so many milliseconds is canceled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deadline_ms: Option<u64>,
}

impl TaskState {
    /// All of them, in the order in which a task can pass them.
    pub const ALL: [TaskState; 12] = [
        TaskState::Queued,
        TaskState::Offered,
        TaskState::Running,
        TaskState::Unknown,
        TaskState::Backoff,
        TaskState::Succeeded,
        TaskState::Failed,
        TaskState::TimedOut,
        TaskState::Canceled,
        TaskState::Rejected,
        TaskState::Lost,
        TaskState::Expired,
    ];

    /// Nothing more happens to the task by itself.
    pub fn has_ended(self) -> bool {
        self >= TaskState::Succeeded
    }

    /// Its word in JSON, in the store and on screen.
    pub fn as_str(self) -> &'static str {
        match self {
            TaskState::Queued => "queued",
            TaskState::Offered => "offered",
            TaskState::Running => "running",
            TaskState::Unknown => "unknown",
            TaskState::Backoff => "backoff",
            TaskState::Succeeded => "succeeded",
            TaskState::Failed => "failed",
            TaskState::TimedOut => "timed_out",
            TaskState::Canceled => "canceled",
            TaskState::Rejected => "rejected",
            TaskState::Lost => "lost",
            TaskState::Expired => "expired",
        }
    }
}

impl fmt::Display for TaskState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl Share {
    /// How many of `all` it is, at least 1.
    pub fn of(self, all: u32) -> u32 {
        match self {
            Share::Number(number) => number.max(1),
            // At most `all`, which fits.
            Share::Percent(percent) => (u64::from(all) * u64::from(percent) / 100).max(1) as u32,
        }
    }
}

impl FromStr for Share {
    type Err = ShareError;

    fn from_str(text: &str) -> Result<Self, ShareError> {
        let share = match text.strip_suffix('%') {
            Some(percent) => percent.parse().ok().filter(|percent| (1..=100).contains(percent)).map(Share::Percent),
            None => text.parse().ok().filter(|number| *number > 0).map(Share::Number),
        };
        share.ok_or_else(|| ShareError(quoted(text)))
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Share::Number(number) => write!(f, "{number}"),
            Share::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

impl Serialize for Share {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Share::Number(number) => serializer.serialize_u32(*number),
            Share::Percent(_) => serializer.collect_str(self),
        }
    }
}

impl<'de> Deserialize<'de> for Share {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Either {
            Number(u32),
            Text(String),
        }
        let text = match Either::deserialize(deserializer)? {
            Either::Number(number) => number.to_string(),
            Either::Text(text) => text,
        };
        text.parse().map_err(serde::de::Error::custom)
    }
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_numbers_or_percentages() {
        assert_eq!(["3", "25%"].map(|text| text.parse::<Share>().unwrap().of(8)), [3, 2]);
        assert_eq!("1%".parse::<Share>().unwrap().of(3), 1);
        assert_eq!("100%".parse::<Share>().unwrap().of(u32::MAX), u32::MAX);
        for bad in ["", "0", "0%", "101%", "-1", "%", "x"] {
            assert!(bad.parse::<Share>().is_err(), "{bad:?}");
        }
        let share = |json| serde_json::from_str::<Share>(json).map_err(|error| error.to_string());
        assert_eq!(
            (share("3"), share("\"3\""), share("\"5%\"")),
            (Ok(Share::Number(3)), Ok(Share::Number(3)), Ok(Share::Percent(5)))
        );
        assert!(share("0").is_err());
    }

    #[test]
    fn a_request_is_written_as_it_is_documented() {
        let json = r#"{"steps":[{"on":"all","kind":"exec","argv":["uname","-a"]}]}"#;
        let request: JobRequest = serde_json::from_str(json).unwrap();
        let [step] = &request.steps[..] else { panic!("{request:?}") };
        assert_eq!((step.on.as_str(), step.retries, step.spec.output_limit), ("all", 0, crate::limits::OUTPUT_LIMIT));
        let again: JobRequest = serde_json::from_str(&serde_json::to_string(&request).unwrap()).unwrap();
        assert_eq!(again, request);
    }

    #[test]
    fn what_has_ended_is_told_from_what_has_not() {
        let ended = TaskState::ALL.map(TaskState::has_ended);
        assert_eq!(ended.iter().filter(|ended| **ended).count(), 7);
        assert!(!TaskState::Backoff.has_ended() && TaskState::Succeeded.has_ended());
        for state in TaskState::ALL {
            assert_eq!(serde_json::to_string(&state).unwrap(), format!("{:?}", state.as_str()));
        }
    }
}
