//! Topics as types. No other file of the project spells a topic.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::id::{IdError, SlaveId, quoted};
use crate::limits::TOPIC_ROOT_BYTES_MAX;

/// The levels before every topic of a cluster, `rpicluster` by default. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct TopicRoot(Arc<str>);

/// A topic of the cluster, below its root.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Topic {
    /// `R/master/state`: the master's own state, retained.
    MasterState,
    /// `R/from/<id>/…`: what a slave says.
    From(SlaveId, Upward),
    /// `R/to/<id>/…`: what a slave is told.
    To(SlaveId, Downward),
}

/// The last level of a slave's own topics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Upward {
    /// Retained `state`, also the will.
    State,
    /// Retained `computer_details`.
    Details,
    /// `vitals`.
    Vitals,
    /// Free text.
    Message,
    /// `info` requests.
    Info,
    /// Task events, the journal, lease renewals.
    Task,
    /// Output of tasks.
    Output,
}

/// The last level of the topics that a slave reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Downward {
    /// Answers to `info`, and `bad_message`.
    Reply,
    /// Orders: `announce` and tasks.
    Command,
}

/// Where Home Assistant says that it is there: its birth and last will message.
pub const HOME_ASSISTANT_STATUS: &str = "homeassistant/status";

/// The filter that matches what Home Assistant is told of devices (MQTT discovery).
pub const HOME_ASSISTANT: &str = "homeassistant/#";

/// Why a text cannot be a topic root.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "topic root {0:?} is not valid: use 1 to {TOPIC_ROOT_BYTES_MAX} bytes without '+', '#' or control characters, \
     not starting with '$' and without '/' at either end"
)]
pub struct RootError(String);

/// Why a topic is none of the cluster's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TopicError {
    /// The topic does not lie below the root or has other levels than the contract knows.
    #[error("topic {0:?} is not part of the protocol")]
    Unknown(String),
    /// The level that should be a slave's id is none.
    #[error(transparent)]
    Id(#[from] IdError),
}

impl TopicRoot {
    /// The root as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The full name of a topic.
    pub fn name(&self, topic: &Topic) -> String {
        let root = &self.0;
        match topic {
            Topic::MasterState => format!("{root}/master/state"),
            Topic::From(id, leaf) => format!("{root}/from/{id}/{}", leaf.as_str()),
            Topic::To(id, leaf) => format!("{root}/to/{id}/{}", leaf.as_str()),
        }
    }

    /// What a full name means.
    ///
    /// # Errors
    /// If the name does not lie below this root, is not part of the contract, or names an impossible slave.
    pub fn parse(&self, name: &str) -> Result<Topic, TopicError> {
        let unknown = || TopicError::Unknown(quoted(name));
        let rest = name.strip_prefix(self.as_str()).and_then(|rest| rest.strip_prefix('/')).ok_or_else(unknown)?;
        let (branch, rest) = rest.split_once('/').ok_or_else(unknown)?;
        if branch == "master" && rest == "state" {
            return Ok(Topic::MasterState);
        }
        let (id, leaf) = rest.split_once('/').ok_or_else(unknown)?;
        match branch {
            "from" => {
                let leaf = Upward::ALL.into_iter().find(|known| known.as_str() == leaf).ok_or_else(unknown)?;
                Ok(Topic::From(id.parse()?, leaf))
            }
            "to" => {
                let leaf = Downward::ALL.into_iter().find(|known| known.as_str() == leaf).ok_or_else(unknown)?;
                Ok(Topic::To(id.parse()?, leaf))
            }
            _ => Err(unknown()),
        }
    }

    /// The filter that matches everything slaves say: the master's subscription.
    pub fn every_slave(&self) -> String {
        format!("{}/from/+/+", self.0)
    }

    /// The filter that matches everything `slave` may say.
    pub fn from_slave(&self, slave: &SlaveId) -> String {
        self.said_by(slave.as_str())
    }

    /// The same for a placeholder that stands for a user name in a broker's rules.
    pub(crate) fn said_by(&self, placeholder: &str) -> String {
        format!("{}/from/{placeholder}/#", self.0)
    }

    /// The filter that matches one thing that every slave says.
    pub fn from_every_slave(&self, leaf: Upward) -> String {
        format!("{}/from/+/{}", self.0, leaf.as_str())
    }

    /// The filter that matches one thing that every slave is told.
    pub fn to_every_slave(&self, leaf: Downward) -> String {
        format!("{}/to/+/{}", self.0, leaf.as_str())
    }

    /// The filter that matches everything `slave` is told: that slave's subscription.
    pub fn to_slave(&self, slave: &SlaveId) -> String {
        self.told_to(slave.as_str())
    }

    /// The same for a placeholder that stands for a user name in a broker's rules.
    pub(crate) fn told_to(&self, placeholder: &str) -> String {
        format!("{}/to/{placeholder}/#", self.0)
    }

    /// The filter that matches all that anybody is told.
    pub(crate) fn to_all(&self) -> String {
        format!("{}/to/#", self.0)
    }

    /// The prefix, with its `/`, below which a Response Topic of this slave must lie (MQTT 5).
    pub fn reply_prefix(&self, slave: &SlaveId) -> String {
        format!("{}/to/{slave}/", self.0)
    }

    /// The filter for people: all traffic of the cluster.
    pub fn everything(&self) -> String {
        format!("{}/#", self.0)
    }
}

impl Default for TopicRoot {
    fn default() -> Self {
        TopicRoot("rpicluster".into())
    }
}

impl FromStr for TopicRoot {
    type Err = RootError;

    fn from_str(text: &str) -> Result<Self, RootError> {
        let good = (1..=TOPIC_ROOT_BYTES_MAX).contains(&text.len())
            && !text.contains(['+', '#'])
            && !text.chars().any(char::is_control)
            && !text.starts_with(['$', '/'])
            && !text.ends_with('/');
        if good { Ok(TopicRoot(text.into())) } else { Err(RootError(quoted(text))) }
    }
}

impl fmt::Display for TopicRoot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TopicRoot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

impl serde::Serialize for TopicRoot {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> serde::Deserialize<'de> for TopicRoot {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl Upward {
    const ALL: [Upward; 7] =
        [Upward::State, Upward::Details, Upward::Vitals, Upward::Message, Upward::Info, Upward::Task, Upward::Output];

    fn as_str(self) -> &'static str {
        match self {
            Upward::State => "state",
            Upward::Details => "details",
            Upward::Vitals => "vitals",
            Upward::Message => "message",
            Upward::Info => "info",
            Upward::Task => "task",
            Upward::Output => "output",
        }
    }
}

impl Downward {
    const ALL: [Downward; 2] = [Downward::Reply, Downward::Command];

    fn as_str(self) -> &'static str {
        match self {
            Downward::Reply => "reply",
            Downward::Command => "command",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_topic() -> impl Strategy<Value = Topic> {
        let id = "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?".prop_filter_map("reserved", |text| text.parse::<SlaveId>().ok());
        prop_oneof![
            Just(Topic::MasterState),
            (id.clone(), proptest::sample::select(&Upward::ALL[..])).prop_map(|(id, leaf)| Topic::From(id, leaf)),
            (id, proptest::sample::select(&Downward::ALL[..])).prop_map(|(id, leaf)| Topic::To(id, leaf)),
        ]
    }

    #[test]
    fn topics_read_as_the_contract_says() {
        let root = TopicRoot::default();
        let id: SlaveId = "pi-7".parse().unwrap();
        assert_eq!(root.name(&Topic::From(id.clone(), Upward::State)), "rpicluster/from/pi-7/state");
        assert_eq!(root.name(&Topic::To(id.clone(), Downward::Reply)), "rpicluster/to/pi-7/reply");
        assert_eq!(root.name(&Topic::MasterState), "rpicluster/master/state");
        assert_eq!(root.to_slave(&id), "rpicluster/to/pi-7/#");
        assert_eq!(root.from_slave(&id), "rpicluster/from/pi-7/#");
        assert_eq!(root.from_every_slave(Upward::Task), "rpicluster/from/+/task");
        assert_eq!(root.to_every_slave(Downward::Command), "rpicluster/to/+/command");
    }

    #[test]
    fn foreign_topics_are_named_in_the_error() {
        let root = TopicRoot::default();
        for foreign in [
            "",
            "rpicluster",
            "other/from/a/state",
            "rpicluster/from/a",
            "rpicluster/from/a/state/x",
            "rpiclusterx/from/a/state",
        ] {
            assert!(matches!(root.parse(foreign), Err(TopicError::Unknown(_))), "{foreign}");
        }
        assert!(matches!(root.parse("rpicluster/from/Ä/state"), Err(TopicError::Id(_))));
    }

    #[test]
    fn roots_follow_their_rule() {
        assert!("site/lab 1".parse::<TopicRoot>().is_ok());
        for bad in ["", "/a", "a/", "$SYS", "a/#", "+", "a\0"] {
            assert!(bad.parse::<TopicRoot>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn parse_of_name_is_the_topic(topic in any_topic(), root in "[a-zäß][a-z0-9/ä]{0,20}[a-z]") {
            let root: TopicRoot = root.parse().unwrap();
            prop_assert_eq!(root.parse(&root.name(&topic)).unwrap(), topic);
        }

        #[test]
        fn parsing_never_panics(name in ".*") {
            let _ = TopicRoot::default().parse(&name);
            let _ = TopicRoot::default().parse(&format!("rpicluster/{name}"));
        }
    }
}
