//! The `[slave]` section of the configuration.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use rpicluster_client::BrokerAddress;
use rpicluster_protocol::SlaveId;
use rpicluster_protocol::limits::{KEEP_ALIVE, MESSAGE_INTERVAL, VITALS_INTERVAL};
use serde::{Deserialize, Serialize};

use crate::tasks::TasksConfig;

/// More slots than any machine can use are a slip of the pen.
const SLOTS_MAX: u32 = 1024;
/// Labels are part of the details, whose encoded size is limited.
const LABELS_MAX: usize = 32;
const LABEL_NAME_BYTES_MAX: usize = 63;
const LABEL_VALUE_BYTES_MAX: usize = 255;

const KEEP_ALIVE_MIN: Duration = Duration::from_secs(1);
const INTERVAL_MIN: Duration = Duration::from_millis(100);
const HOUR: Duration = Duration::from_secs(60 * 60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// `[slave]` of `rpicluster.toml`. Every field has a default.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SlaveConfig {
    /// Where the master's broker listens: `127.0.0.1:8883`, with TLS.
    pub master: BrokerAddress,
    /// The slave's id; by default made from host name and hardware.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<SlaveId>,
    /// Where the slave keeps its status socket and its state: `/var/lib/rpicluster-slave`.
    pub state_dir: PathBuf,
    /// Name and value pairs by which jobs choose slaves; none by default.
    pub labels: BTreeMap<String, String>,
    /// How many tasks may run at once, 0 to 1024; by default as many as the machine has cores.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slots: Option<u32>,
    /// MQTT keep alive, whole seconds from 1s to 1h: `5s`. A dead slave is noticed within 1.5 times this.
    #[serde(with = "humantime_serde")]
    pub keep_alive: Duration,
    /// How often `vitals` are published, 100ms to 1h: `5s`.
    #[serde(with = "humantime_serde")]
    pub vitals_interval: Duration,
    /// How often "I am still alive" is published, 100ms to 1 day: `1m`.
    #[serde(with = "humantime_serde")]
    pub message_interval: Duration,
    /// What others may run here.
    pub tasks: TasksConfig,
}

/// A value that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("slave.{key}: {problem}")]
pub struct ConfigError {
    /// The key below `[slave]`.
    pub key: String,
    /// What is wrong and what to write instead.
    pub problem: String,
}

impl SlaveConfig {
    /// Checks what the types alone cannot.
    ///
    /// # Errors
    /// Names the first key whose value cannot be used.
    pub fn validate(&self) -> Result<(), ConfigError> {
        within("keep_alive", self.keep_alive, KEEP_ALIVE_MIN, HOUR)?;
        if self.keep_alive.subsec_nanos() != 0 {
            return Err(refused("keep_alive", "MQTT counts whole seconds: leave out the fraction"));
        }
        within("vitals_interval", self.vitals_interval, INTERVAL_MIN, HOUR)?;
        within("message_interval", self.message_interval, INTERVAL_MIN, DAY)?;
        if self.slots.is_some_and(|slots| slots > SLOTS_MAX) {
            return Err(refused("slots", &format!("use 0 to {SLOTS_MAX}")));
        }
        if self.state_dir.as_os_str().is_empty() {
            return Err(refused("state_dir", "is empty: name a folder"));
        }
        self.validate_labels()?;
        self.tasks.validate()
    }

    fn validate_labels(&self) -> Result<(), ConfigError> {
        if self.labels.len() > LABELS_MAX {
            return Err(refused("labels", &format!("has more than {LABELS_MAX} labels")));
        }
        for (name, value) in &self.labels {
            let printable = !name.chars().chain(value.chars()).any(char::is_control);
            let name_fits = (1..=LABEL_NAME_BYTES_MAX).contains(&name.len());
            if !printable || !name_fits || value.len() > LABEL_VALUE_BYTES_MAX {
                return Err(ConfigError {
                    key: format!("labels.{name:.LABEL_NAME_BYTES_MAX$?}"),
                    problem: format!(
                        "use printable text, a name of 1 to {LABEL_NAME_BYTES_MAX} bytes and a value of at most \
                         {LABEL_VALUE_BYTES_MAX}"
                    ),
                });
            }
        }
        Ok(())
    }

    /// The socket on which a running slave tells its status: `slave.sock` in the state folder.
    pub fn status_socket(&self) -> PathBuf {
        self.state_dir.join("slave.sock")
    }

    /// How many tasks may run at once.
    pub fn slots(&self) -> u32 {
        let cores = || std::thread::available_parallelism().map_or(1, |cores| cores.get());
        self.slots.unwrap_or_else(|| u32::try_from(cores()).unwrap_or(SLOTS_MAX).min(SLOTS_MAX))
    }
}

impl Default for SlaveConfig {
    fn default() -> Self {
        SlaveConfig {
            master: BrokerAddress::default(),
            id: None,
            state_dir: PathBuf::from("/var/lib/rpicluster-slave"),
            labels: BTreeMap::new(),
            slots: None,
            keep_alive: KEEP_ALIVE,
            vitals_interval: VITALS_INTERVAL,
            message_interval: MESSAGE_INTERVAL,
            tasks: TasksConfig::default(),
        }
    }
}

fn within(key: &str, value: Duration, min: Duration, max: Duration) -> Result<(), ConfigError> {
    if (min..=max).contains(&value) {
        return Ok(());
    }
    let [value, min, max] = [value, min, max].map(humantime::format_duration);
    Err(refused(key, &format!("{value} cannot be used: use {min} to {max}")))
}

fn refused(key: &str, problem: &str) -> ConfigError {
    ConfigError { key: key.to_owned(), problem: problem.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_valid_and_survives_its_own_text() {
        let default = SlaveConfig::default();
        default.validate().unwrap();
        let text = serde_json::to_string(&default).unwrap();
        assert_eq!(serde_json::from_str::<SlaveConfig>(&text).unwrap(), default);
        assert!(
            text.contains(r#""master":"mqtts://127.0.0.1:8883""#) && text.contains(r#""keep_alive":"5s""#),
            "{text}"
        );
        assert!(serde_json::from_str::<SlaveConfig>(r#"{"keepalive":"5s"}"#).is_err());
    }

    #[test]
    fn impossible_values_are_refused_by_key() {
        type Change = fn(&mut SlaveConfig);
        let refusals: [(&str, Change); 9] = [
            ("keep_alive", |config| config.keep_alive = Duration::ZERO),
            ("keep_alive", |config| config.keep_alive = Duration::from_millis(1500)),
            ("keep_alive", |config| config.keep_alive = Duration::from_secs(3601)),
            ("vitals_interval", |config| config.vitals_interval = Duration::from_millis(99)),
            ("message_interval", |config| config.message_interval = Duration::MAX),
            ("slots", |config| config.slots = Some(1025)),
            ("state_dir", |config| config.state_dir = PathBuf::new()),
            ("labels", |config| config.labels = (0..33).map(|n| (n.to_string(), String::new())).collect()),
            ("labels.\"room\\n\"", |config| config.labels = [("room\n".to_owned(), String::new())].into()),
        ];
        for (key, change) in refusals {
            let mut config = SlaveConfig::default();
            change(&mut config);
            let error = config.validate().unwrap_err();
            assert_eq!(error.key, key);
            assert!(error.to_string().starts_with(&format!("slave.{key}: ")));
        }
    }

    #[test]
    fn slots_follow_the_machine_unless_they_are_set() {
        assert!(SlaveConfig::default().slots() >= 1);
        assert_eq!(SlaveConfig { slots: Some(0), ..SlaveConfig::default() }.slots(), 0);
    }
}
