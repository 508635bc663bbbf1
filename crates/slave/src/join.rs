//! Joining a master: a CONNECT with a token and a secret of the slave's own making. CONNACK is the answer.

use std::future::Future;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::time::Duration;

use bytes::BytesMut;
use rpicluster_client::{Backoff, BrokerAddress, BrokerStream, Connection, PinnedCa, Trust, TrustError};
use rpicluster_protocol::SlaveId;
use rpicluster_protocol::{ENROL_PREFIX, JoinToken};
use rumqttc::v5::mqttbytes::Error as CodecError;
use rumqttc::v5::mqttbytes::v5::{
    ConnAck, Connect, ConnectReturnCode, Disconnect, DisconnectReasonCode, Login, Packet,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::select;
use tokio::sync::watch;
use tokio::time;

use crate::identity::Identity;
use crate::pulse::Pulse;
use crate::slave::SlaveError;
use crate::status::Status;
use crate::text::{PROBLEM_CHARACTERS_MAX, bounded};

/// For connection, TLS and answer together: the master stores before it answers, and answers failed tries late.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(15);
/// Longest answer: a reason may be long, nothing else is.
const CONNACK_BYTES_MAX: u32 = 64 * 1024;

/// A slave that has a token but is not yet known to its master.
pub(crate) struct Joining {
    pub(crate) address: BrokerAddress,
    pub(crate) identity: Identity,
    pub(crate) token: JoinToken,
}

/// Why the master did not let a slave join.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The answer's reason code by name.
    pub code: String,
    /// The master's own words, if it gave any.
    pub reason: Option<String>,
}

/// Why an attempt failed.
enum Failure {
    /// A later one may succeed.
    Passing(String),
    /// None will, unless somebody changes something.
    Final(SlaveError),
}

impl Joining {
    /// Tries until the master has answered, and keeps the identity then. `None` if `shutdown` completes before.
    pub(crate) async fn run(
        &mut self,
        status: &watch::Sender<Status>,
        pulse: &Pulse,
        random: &mut fastrand::Rng,
        mut shutdown: Pin<&mut impl Future<Output = ()>>,
    ) -> Result<Option<Connection>, SlaveError> {
        // Before it is sent: were it lost after the master has stored it, the id would be taken by nobody.
        self.identity.store()?;
        let mut backoff = Backoff::default();
        loop {
            pulse.expect_within(ATTEMPT_TIMEOUT);
            let attempt = select! {
                () = shutdown.as_mut() => return Ok(None),
                attempt = self.attempt() => attempt,
            };
            let problem = match attempt {
                Ok(()) => break,
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Passing(problem)) => problem,
            };
            let wait = backoff.after(Duration::ZERO, random);
            tracing::warn!(id = %self.identity.id, master = %self.address, %problem, retry_in = ?wait, "cannot join yet");
            status.send_modify(|status| status.problem = Some(format!("cannot join yet: {problem}")));
            pulse.expect_within(wait);
            select! {
                () = shutdown.as_mut() => return Ok(None),
                () = time::sleep(wait) => {}
            }
        }
        self.identity.store()?;
        tracing::info!(id = %self.identity.id, master = %self.address, kept_in = %self.identity.path().display(), "joined");
        Ok(Some(self.identity.connection(&self.address)?))
    }

    async fn attempt(&mut self) -> Result<(), Failure> {
        let pin = PinnedCa::new(self.token.ca_fingerprint);
        let connection = Connection::new(self.address.clone(), &Trust::Pinned(pin.clone()), None)
            .map_err(|error| Failure::Passing(error.to_string()))?;
        let answer = time::timeout(ATTEMPT_TIMEOUT, self.exchange(&connection)).await;
        let connack = match answer {
            Ok(Ok(connack)) => connack,
            Ok(Err(error)) => return Err(failure(&error)),
            Err(_) => return Err(Failure::Passing(format!("no answer within {ATTEMPT_TIMEOUT:?}"))),
        };
        if connack.code != ConnectReturnCode::Success {
            return Err(refused(&self.identity.id, connack));
        }
        self.identity.set_joined(pin.pem());
        Ok(())
    }

    /// Sends the CONNECT, once TLS has shown that it is the master of the token, and waits for the answer.
    async fn exchange(&self, connection: &Connection) -> io::Result<ConnAck> {
        let mut stream = connection.open().await?;
        let user = format!("{ENROL_PREFIX}{}", self.identity.id);
        // No slave has a client id with a colon, so this takes nobody's place.
        let connect = Connect { keep_alive: 60, client_id: user.clone(), clean_start: true, properties: None };
        let login = Login { username: user, password: self.identity.enrolment_password(&self.token) };
        send(&mut stream, &Packet::Connect(connect, None, Some(login))).await?;
        let connack = receive_connack(&mut stream).await?;
        // Politeness: the answer has come.
        let goodbye = Packet::Disconnect(Disconnect::new(DisconnectReasonCode::NormalDisconnection));
        let _ = send(&mut stream, &goodbye).await;
        let _ = stream.shutdown().await;
        Ok(connack)
    }
}

async fn send(stream: &mut Box<dyn BrokerStream>, packet: &Packet) -> io::Result<()> {
    let mut bytes = BytesMut::new();
    packet.write(&mut bytes, None).map_err(io::Error::other)?;
    stream.write_all(&bytes).await?;
    stream.flush().await
}

async fn receive_connack(stream: &mut Box<dyn BrokerStream>) -> io::Result<ConnAck> {
    let mut bytes = BytesMut::new();
    loop {
        match Packet::read(&mut bytes, Some(CONNACK_BYTES_MAX)) {
            Ok(Packet::ConnAck(connack)) => return Ok(connack),
            Err(CodecError::InsufficientBytes(_)) => {}
            _ => return Err(io::Error::new(io::ErrorKind::InvalidData, "the answer is not from a broker of MQTT 5")),
        }
        if stream.read_buf(&mut bytes).await? == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the connection was closed without an answer"));
        }
    }
}

fn failure(error: &io::Error) -> Failure {
    match TrustError::of(error) {
        Some(untrusted) if !untrusted.may_pass() => Failure::Final(SlaveError::Untrusted(untrusted)),
        Some(passing) => Failure::Passing(passing.to_string()),
        None => Failure::Passing(bounded(&error.to_string(), PROBLEM_CHARACTERS_MAX)),
    }
}

fn refused(id: &SlaveId, connack: ConnAck) -> Failure {
    let reason = connack.properties.and_then(|properties| properties.reason_string);
    let reason = reason.filter(|reason| !reason.is_empty()).map(|reason| bounded(&reason, PROBLEM_CHARACTERS_MAX));
    let code = format!("{:?}", connack.code);
    match connack.code {
        ConnectReturnCode::ServerBusy
        | ConnectReturnCode::ServerUnavailable
        | ConnectReturnCode::ConnectionRateExceeded => Failure::Passing(reason.unwrap_or(code)),
        _ => Failure::Final(SlaveError::Refused { id: id.clone(), refusal: Refusal { code, reason } }),
    }
}

/// What to do when a master does not know a slave that has joined.
pub(crate) fn way_out(identity: &Path) -> String {
    format!("to join anew, remove {} and start with a token", identity.display())
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.reason {
            Some(reason) => write!(f, "{reason} ({})", self.code),
            None => f.write_str(&self.code),
        }
    }
}
