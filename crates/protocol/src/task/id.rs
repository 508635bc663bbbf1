//! By which jobs, tasks, and the lives of store and journal are told apart.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::id::quoted;

/// A job: what a user submits. Numbered by the master, `17` when printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct JobId(pub u64);

/// A task of a job, `17.3` when printed and on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TaskId {
    /// Its job.
    pub job: JobId,
    /// Its place within the job, from 0.
    pub index: u32,
}

/// Names one life of the master's store: random, made with it, another one after a restore from a backup. Attempts of
/// another epoch are killed and forgotten.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Epoch(pub u64);

/// Names one life of a slave's journal: random, made with it. Another one means that what was begun is not known any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct JournalId(pub u64);

/// Why a text is no number of a task, epoch or journal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TaskIdError {
    /// No job.
    #[error("{0:?} is no job: a job is a number, as in 17")]
    Job(String),
    /// No task.
    #[error("{0:?} is no task: a task is the number of its job and its own, as in 17.3")]
    Task(String),
    /// Neither an epoch nor a journal.
    #[error("{0:?} is not valid: use 16 hexadecimal digits")]
    Bits(String),
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl FromStr for JobId {
    type Err = TaskIdError;

    fn from_str(text: &str) -> Result<Self, TaskIdError> {
        // The store counts with signed numbers.
        match digits(text).and_then(|text| text.parse::<i64>().ok()) {
            Some(number) => Ok(JobId(number.unsigned_abs())),
            None => Err(TaskIdError::Job(quoted(text))),
        }
    }
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.job, self.index)
    }
}

impl FromStr for TaskId {
    type Err = TaskIdError;

    fn from_str(text: &str) -> Result<Self, TaskIdError> {
        let parsed = text
            .split_once('.')
            .and_then(|(job, index)| Some(TaskId { job: job.parse().ok()?, index: digits(index)?.parse().ok()? }));
        parsed.ok_or_else(|| TaskIdError::Task(quoted(text)))
    }
}

/// The text, if it is all digits: `parse` alone would take a sign too.
fn digits(text: &str) -> Option<&str> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then_some(text)
}

impl Serialize for TaskId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for TaskId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

macro_rules! bits {
    ($($name:ident),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:016x}", self.0)
            }
        }

        impl FromStr for $name {
            type Err = TaskIdError;

            fn from_str(text: &str) -> Result<Self, TaskIdError> {
                let is_hex = text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
                let bits = is_hex.then(|| u64::from_str_radix(text, 16).ok()).flatten();
                bits.map($name).ok_or_else(|| TaskIdError::Bits(quoted(text)))
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}

bits!(Epoch, JournalId);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers_follow_their_rules() {
        let task: TaskId = "17.3".parse().unwrap();
        assert_eq!((task.job, task.index, task.to_string().as_str()), (JobId(17), 3, "17.3"));
        for bad in
            ["", ".", "17", "17.", ".3", "17.3.1", "+1.2", "1.-2", "1.4294967296", "9223372036854775808.1", "a.b"]
        {
            assert!(bad.parse::<TaskId>().is_err(), "{bad:?}");
        }
        assert_eq!("00000000000000ff".parse(), Ok(Epoch(255)));
        for bad in ["", "ff", "+0000000000000ff", "00000000000000fg", "00000000000000ff0"] {
            assert!(bad.parse::<Epoch>().is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn tasks_are_printed_as_they_are_read(job in 0..=i64::MAX as u64, index: u32, bits: u64) {
            let task = TaskId { job: JobId(job), index };
            prop_assert_eq!(task.to_string().parse(), Ok(task));
            prop_assert_eq!(JournalId(bits).to_string().parse(), Ok(JournalId(bits)));
        }
    }
}
