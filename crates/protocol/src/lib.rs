//! The wire contract of rpicluster: ids, topics, messages and limits.
//!
//! This crate does no I/O. Bytes from the network become typed values here, once; everything behind it works with
//! [`Topic`], [`FromSlave`] and [`ToSlave`]. The page for people is `docs/protocol.md`; its examples are this crate's tests.

mod acl;
mod id;
mod job;
pub mod limits;
mod message;
mod task;
mod token;
mod topic;

pub use acl::{Acl, AclError, OBSERVER};
pub use id::{IdError, RequestId, SessionId, SlaveId};
pub use job::{
    CancelRequest, DrainRequest, JobAccepted, JobEvent, JobInfo, JobRequest, JobState, RetryRequest, Share, ShareError,
    StepAccepted, StepInfo, StepRequest, TaskInfo, TaskPage, TaskState,
};
pub use message::{
    BadMessage, Details, Disk, Envelope, FromSlave, Info, Liveness, MessageError, Network, Part, SlaveDetails, State,
    Throttled, Timestamp, ToSlave, Vitals, encode_from_slave, encode_to_slave, parse_from_slave, parse_to_slave,
};
pub use task::{
    Action, AttemptKey, Epoch, JobId, JournalEntry, JournalId, LeasedAttempt, Outcome, RejectReason, Stream, TaskAck,
    TaskCancel, TaskFinished, TaskId, TaskIdError, TaskJournal, TaskLease, TaskOffer, TaskOutput, TaskRejected,
    TaskSpec, TaskStarted, Work,
};
pub use token::{ENROL_PREFIX, JoinToken, SecretError, SlaveSecret};
pub use topic::{Downward, HOME_ASSISTANT, HOME_ASSISTANT_STATUS, RootError, Topic, TopicError, TopicRoot, Upward};
