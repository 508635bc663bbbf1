//! Message shapes. No other file of the project spells a message.
//!
//! A message is an [`Envelope`] around a [`FromSlave`] or a [`ToSlave`]. Unknown fields are ignored; an unknown type or a
//! wrong payload is a [`MessageError`] that keeps the request's id, so that the answer can name it.

mod finite;
mod wire;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::id::{RequestId, SessionId, SlaveId};
use crate::task::{
    TaskAck, TaskCancel, TaskFinished, TaskJournal, TaskLease, TaskOffer, TaskOutput, TaskRejected, TaskStarted,
};
use crate::topic::Upward;

pub use wire::{encode_from_slave, encode_to_slave, parse_from_slave, parse_to_slave};

/// What every message has around its payload.
#[derive(Debug, Clone, PartialEq)]
pub struct Envelope<M> {
    /// The type and payload.
    pub message: M,
    /// The request's own id.
    pub id: Option<RequestId>,
    /// The id of the request that this answers.
    pub re: Option<RequestId>,
    /// Which part of a longer answer this is.
    pub part: Option<Part>,
}

/// Position of a message in an answer that does not fit into one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// Counts from 0.
    pub number: u32,
    /// Nothing follows; only now the whole is acted upon.
    pub last: bool,
}

/// What a slave says.
#[derive(Debug, Clone, PartialEq)]
pub enum FromSlave {
    /// `state`
    State(State),
    /// `computer_details`
    ComputerDetails(Box<Details>),
    /// `vitals`
    Vitals(Box<Vitals>),
    /// `message`
    Message(String),
    /// `info`
    Info(Info),
    /// `task_started`
    TaskStarted(Vec<TaskStarted>),
    /// `task_finished`
    TaskFinished(Vec<TaskFinished>),
    /// `task_rejected`
    TaskRejected(Vec<TaskRejected>),
    /// `task_output`
    TaskOutput(Vec<TaskOutput>),
    /// `task_journal`
    TaskJournal(TaskJournal),
    /// `task_lease`
    TaskLease(TaskLease),
}

/// What a slave is told, and the master's own `state`.
#[derive(Debug, Clone, PartialEq)]
pub enum ToSlave {
    /// `state` of the master, on its own topic.
    State(State),
    /// `master_info`: the answer to `info` `computer_details`.
    MasterInfo(Box<Details>),
    /// `slave_details`: the answer to `info` `slave_details`.
    SlaveDetails(BTreeMap<SlaveId, SlaveDetails>),
    /// `master_time`: the answer to `info` `time`, milliseconds since 1970 UTC.
    MasterTime {
        /// Milliseconds since 1970 UTC by the master's clock.
        unix_ms: u64,
    },
    /// `bad_message`
    BadMessage(BadMessage),
    /// `announce`: publish `state`, `details` and journal again.
    Announce,
    /// `task_offer`
    TaskOffer(Vec<TaskOffer>),
    /// `task_cancel`
    TaskCancel(Vec<TaskCancel>),
    /// `task_ack`
    TaskAck(Vec<TaskAck>),
    /// `lease_ack`
    LeaseAck(TaskLease),
}

/// Presence as its owner claims it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Online or offline.
    pub state: Liveness,
    /// Which connection (of a slave) or run (of the master) speaks.
    pub session: SessionId,
    /// The number of the wire protocol, [`crate::limits::PROTOCOL_VERSION`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<u32>,
    /// Changes with every boot of the machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_id: Option<String>,
    /// The agent's version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// How many tasks may run at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slots: Option<u32>,
    /// How many short tasks it takes beyond these, to begin them as slots become free.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ahead: Option<u32>,
    /// Why it is offline: `connection_lost` (the will) or `stopped`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Online or offline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Liveness {
    /// Reachable.
    Online,
    /// Gone; the reason says how.
    Offline,
}

/// What a machine is (`computer_details`, `master_info`). What it does not tell is left out.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Details {
    /// Host name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Used share of all cores, in percent.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "finite::optional")]
    pub cpu_percent_used: Option<f32>,
    /// Memory in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ram: Option<u64>,
    /// Name of the processor.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<String>,
    /// Number of logical cores.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_cores: Option<u32>,
    /// Swap space in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swap: Option<u64>,
    /// Architecture, as in `aarch64`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub arch: Option<String>,
    /// Operating system and its version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub os: Option<String>,
    /// Kernel version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
    /// Model of the board, as in `Raspberry Pi 4 Model B Rev 1.4`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Serial number of the board.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// Lowest clock of the processor in MHz.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_frequency_min: Option<u32>,
    /// Highest clock of the processor in MHz.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_frequency_max: Option<u32>,
    /// IP addresses, without loopback and link-local ones.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<String>,
    /// Boot time in seconds since 1970 UTC, by the machine's own clock.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub boot_time: Option<u64>,
    /// Labels from the slave's configuration.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Version of the agent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent_version: Option<String>,
}

/// How a machine fares (`vitals`). What is unknown is left out.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Vitals {
    /// Used share of all cores since the sample before, in percent.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "finite::optional")]
    pub cpu_percentage: Option<f32>,
    /// Clock of the processor in MHz.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_frequency: Option<u32>,
    /// Available memory in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ram_free: Option<u64>,
    /// Free swap space in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swap_free: Option<u64>,
    /// Temperature of the processor in °C.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "finite::optional")]
    pub cpu_temperature: Option<f32>,
    /// Load over 1, 5 and 15 minutes.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "finite::optional_three")]
    pub load: Option<[f32; 3]>,
    /// File systems on real disks.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<Disk>,
    /// Network interfaces without loopback.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub networks: Vec<Network>,
    /// Seconds since boot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uptime: Option<u64>,
    /// Under-voltage and throttling.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub throttled: Option<Throttled>,
}

/// One file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// Where it is mounted.
    pub mount: String,
    /// Size in bytes.
    pub total: u64,
    /// Free bytes for ordinary users.
    pub free: u64,
}

/// One network interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// Name of the interface.
    pub name: String,
    /// Bytes received since it came up.
    pub received: u64,
    /// Bytes transmitted since it came up.
    pub transmitted: u64,
}

/// What a Raspberry Pi says of its power supply and its heat.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Throttled {
    /// What holds now: `under_voltage`, `frequency_capped`, `throttled`, `soft_temperature_limit`.
    pub now: Vec<String>,
    /// What has happened since boot, in the same words.
    pub since_boot: Vec<String>,
    /// Where the machine says so, as in `firmware`.
    pub source: String,
}

/// One slave, as told to another and over HTTP.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SlaveDetails {
    /// Online or offline.
    pub state: Liveness,
    /// Since when, by the master's clock.
    pub since: Timestamp,
    /// Why it is offline.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Its last details.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub details: Option<Box<Details>>,
    /// Its last vitals.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vitals: Option<Box<Vitals>>,
}

/// What an `info` request asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Info {
    /// The master's machine, answered by `master_info`.
    ComputerDetails,
    /// All slaves, answered by `slave_details`.
    SlaveDetails,
    /// The master's clock, answered by `master_time`.
    Time,
    /// Something that does not exist, answered by `bad_message` `"unknown"`.
    Unknown(String),
}

/// Why a message was not understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BadMessage {
    /// An `info` that does not exist: the tutorial's `"unknown"`.
    Unknown,
    /// What is wrong and where.
    Error(String),
}

/// A moment by the master's clock, RFC 3339 in UTC when printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp(SystemTime);

/// Why bytes are no message, or a message cannot be sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{problem}")]
pub struct MessageError {
    /// The id of the faulty message, if it could be read: the answer's `re`.
    pub re: Option<RequestId>,
    /// What is wrong and where.
    pub problem: String,
}

impl<M> Envelope<M> {
    /// A message without id, answering nothing.
    pub fn new(message: M) -> Self {
        Envelope { message, id: None, re: None, part: None }
    }

    /// The same with a request's id.
    pub fn with_id(self, id: RequestId) -> Self {
        Envelope { id: Some(id), ..self }
    }

    /// The same as an answer to `re`.
    pub fn answering(self, re: Option<RequestId>) -> Self {
        Envelope { re, ..self }
    }
}

impl<M> From<M> for Envelope<M> {
    fn from(message: M) -> Self {
        Envelope::new(message)
    }
}

impl FromSlave {
    /// The leaf of the slave's topics where this type belongs.
    pub fn leaf(&self) -> Upward {
        match self {
            FromSlave::State(_) => Upward::State,
            FromSlave::ComputerDetails(_) => Upward::Details,
            FromSlave::Vitals(_) => Upward::Vitals,
            FromSlave::Message(_) => Upward::Message,
            FromSlave::Info(_) => Upward::Info,
            FromSlave::TaskOutput(_) => Upward::Output,
            FromSlave::TaskStarted(_)
            | FromSlave::TaskFinished(_)
            | FromSlave::TaskRejected(_)
            | FromSlave::TaskJournal(_)
            | FromSlave::TaskLease(_) => Upward::Task,
        }
    }
}

impl Info {
    /// The request as its word on the wire.
    pub fn as_str(&self) -> &str {
        match self {
            Info::ComputerDetails => "computer_details",
            Info::SlaveDetails => "slave_details",
            Info::Time => "time",
            Info::Unknown(word) => word,
        }
    }
}

impl From<String> for Info {
    fn from(word: String) -> Self {
        match word.as_str() {
            "computer_details" => Info::ComputerDetails,
            "slave_details" => Info::SlaveDetails,
            "time" => Info::Time,
            _ => Info::Unknown(word),
        }
    }
}

impl Liveness {
    /// `online` or `offline`.
    pub fn as_str(self) -> &'static str {
        match self {
            Liveness::Online => "online",
            Liveness::Offline => "offline",
        }
    }
}

impl fmt::Display for Liveness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl Timestamp {
    /// From milliseconds since 1970 UTC; a value no calendar can show becomes the last one it can.
    pub fn from_unix_ms(unix_ms: u64) -> Timestamp {
        const YEAR_9999_MS: u64 = 253_402_300_799_999;
        Timestamp(SystemTime::UNIX_EPOCH + Duration::from_millis(unix_ms.min(YEAR_9999_MS)))
    }

    /// Milliseconds since 1970 UTC.
    pub fn unix_ms(self) -> u64 {
        let since = self.0.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", humantime::format_rfc3339_millis(self.0))
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<'de, str>::deserialize(deserializer)?;
        let time = humantime::parse_rfc3339_weak(&text).map_err(serde::de::Error::custom)?;
        // Whatever finer fraction somebody wrote: it is printed in milliseconds, and must be the same when read again.
        Ok(Timestamp::from_unix_ms(Timestamp(time).unix_ms()))
    }
}

impl Serialize for BadMessage {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            BadMessage::Unknown => serializer.serialize_str("unknown"),
            BadMessage::Error(error) => BadMessageBody { error: Cow::Borrowed(error) }.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for BadMessage {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Either<'a> {
            Word(Cow<'a, str>),
            Body(BadMessageBody<'a>),
        }
        Ok(match Either::deserialize(deserializer)? {
            Either::Word(word) if word == "unknown" => BadMessage::Unknown,
            Either::Word(word) => BadMessage::Error(word.into_owned()),
            Either::Body(body) => BadMessage::Error(body.error.into_owned()),
        })
    }
}

#[derive(Serialize, Deserialize)]
struct BadMessageBody<'a> {
    error: Cow<'a, str>,
}

#[cfg(test)]
mod tests;
