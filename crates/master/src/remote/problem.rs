//! Why there is no connection, for people.

use std::io::ErrorKind;

use rpicluster_client::{BrokerAddress, TrustError};
use rumqttc::v5::mqttbytes::Error as CodecError;
use rumqttc::v5::mqttbytes::v5::{ConnectReturnCode, DisconnectReasonCode};
use rumqttc::v5::{ConnectionError, StateError};

/// Longest text of a library's own that is told, in characters.
const CHARACTERS_MAX: usize = 512;

/// Two with one account never have peace.
const TAKEN_OVER: &str = "another client has connected with this account: does a second master run?";

/// What is wrong.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Problem {
    pub(crate) text: String,
    /// Only a person's deed ends it.
    pub(crate) is_refusal: bool,
}

impl Problem {
    /// The broker does not let us do what its rules should allow.
    pub(super) fn of_rules(what: &str) -> Problem {
        let text = format!(
            "the broker does not let this master {what}: give its account the rules that `rpicluster acl` prints"
        );
        Problem { text, is_refusal: true }
    }

    /// Why the connection to `broker` failed.
    pub(super) fn of(error: &ConnectionError, broker: &BrokerAddress) -> Problem {
        let passing = |text: String| Problem { text, is_refusal: false };
        let below: &(dyn std::error::Error + 'static) = match error {
            // The library does not name it as a cause.
            ConnectionError::MqttState(StateError::Deserialization(CodecError::Io(below))) => below,
            other => other,
        };
        if let Some(trust) = TrustError::of(below) {
            let advice = if trust == TrustError::UnknownIssuer { "; cluster.ca_file names the CA" } else { "" };
            return passing(format!("{trust}{advice}"));
        }
        match error {
            ConnectionError::ConnectionRefused(code) => refused(*code),
            ConnectionError::Timeout(_) => passing(format!("{broker} does not answer in time: is the broker running?")),
            ConnectionError::Io(error) => passing(unreachable(error, broker)),
            ConnectionError::MqttState(StateError::Deserialization(CodecError::Io(error)) | StateError::Io(error)) => {
                passing(unreachable(error, broker))
            }
            ConnectionError::MqttState(state) => passing(broken(state)),
            other => passing(bounded(&other.to_string())),
        }
    }
}

fn refused(code: ConnectReturnCode) -> Problem {
    let (text, is_refusal) = match code {
        ConnectReturnCode::BadUserNamePassword | ConnectReturnCode::NotAuthorized => {
            ("the broker refuses this login: check user and password of [cluster]".to_owned(), true)
        }
        ConnectReturnCode::RefusedProtocolVersion | ConnectReturnCode::UnsupportedProtocolVersion => {
            ("the broker does not speak MQTT 5, which this master needs".to_owned(), true)
        }
        ConnectReturnCode::Banned => ("the broker has banned this master".to_owned(), true),
        other => (format!("the broker refuses the connection ({other:?})"), false),
    };
    Problem { text, is_refusal }
}

fn unreachable(error: &std::io::Error, broker: &BrokerAddress) -> String {
    let words = bounded(&error.to_string());
    match error.kind() {
        ErrorKind::ConnectionRefused => {
            format!("nobody listens at {broker}: is the broker running, and the port right?")
        }
        // The resolver's errors have no kind of their own.
        _ if words.contains("lookup") || words.contains("resolve") => {
            format!("the name {} cannot be found ({words}): is cluster.broker right, and does DNS work?", broker.host())
        }
        _ => format!("the connection to {broker} failed: {words}"),
    }
}

fn broken(state: &StateError) -> String {
    match state {
        StateError::ServerDisconnect { reason_code: DisconnectReasonCode::SessionTakenOver, .. } => {
            TAKEN_OVER.to_owned()
        }
        StateError::ServerDisconnect { reason_code: DisconnectReasonCode::ServerShuttingDown, .. } => {
            "the broker has stopped".to_owned()
        }
        StateError::ServerDisconnect { reason_code, reason_string } => {
            let words = reason_string.as_ref().map(|words| format!(": {}", bounded(words))).unwrap_or_default();
            format!("the broker has ended the connection ({reason_code:?}){words}")
        }
        // Some brokers, mosquitto 2.0 among them, do not tell.
        StateError::ConnectionAborted => {
            format!("the broker has closed the connection: it has stopped, or {TAKEN_OVER}")
        }
        StateError::AwaitPingResp => "the broker does not answer any more".to_owned(),
        StateError::Deserialization(error) => {
            format!("what answers there does not speak MQTT 5 ({}): is the port right?", bounded(&error.to_string()))
        }
        other => bounded(&other.to_string()),
    }
}

fn bounded(text: &str) -> String {
    text.chars()
        .take(CHARACTERS_MAX)
        .flat_map(|c| {
            let escaped = c.is_control().then(|| c.escape_default().collect::<String>());
            escaped.unwrap_or_else(|| c.to_string()).chars().collect::<Vec<_>>()
        })
        .collect()
}
