//! The first packet of a connection: CONNECT, and what becomes of it.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tracing::{debug, info};

use crate::access::{Identity, Login, Refusal, RefusalKind, Verdict};
use crate::codec::{
    CodecError, ConnAck, Connect, SHORTEST_CONNACK, Version, Will, decode_connect, encode_connack, reason, split_frame,
};
use crate::connection::{Settings, read_some};
use crate::guesses::Guesses;
use crate::hub::{Arrival, Attachment, Hub};
use crate::message::{Message, Parts};
use crate::router::RouterStopped;
use crate::server::Door;
use crate::stats::Stats;

/// All that it takes to decide on a CONNECT.
pub(crate) struct Greeting<'a> {
    pub(crate) hub: &'a Arc<Hub>,
    pub(crate) guesses: &'a Guesses,
    pub(crate) origin: Origin<'a>,
}

/// Where a connection comes from.
#[derive(Clone, Copy)]
pub(crate) struct Origin<'a> {
    pub(crate) door: &'a Door,
    pub(crate) address: IpAddr,
}

/// A client that was let in.
pub(crate) struct Welcomed {
    pub(crate) attachment: Attachment,
    pub(crate) settings: Settings,
    pub(crate) connack: Vec<u8>,
}

/// What a CONNECT led to.
enum Answer {
    Welcome(Box<Welcomed>),
    /// The peer left or is not MQTT at all: no answer.
    Silence,
    /// CONNACK with a reason code, then the end.
    Farewell {
        version: Version,
        code: u8,
        explanation: Option<String>,
        delay: Duration,
    },
}

impl Greeting<'_> {
    /// Reads CONNECT until `deadline` and decides. A client that is not let in has been told so. What `input` holds in the
    /// end came after CONNECT.
    pub(crate) async fn greet(
        &self,
        read: &mut (impl AsyncRead + Unpin),
        write: &mut (impl AsyncWrite + Unpin),
        input: &mut Vec<u8>,
        deadline: Instant,
    ) -> Result<Option<Welcomed>, RouterStopped> {
        let received = tokio::time::timeout_at(deadline.into(), self.read_connect(read, input)).await;
        let used = match received {
            Ok(Some(used)) => used,
            Ok(None) => return Ok(None),
            Err(_) => {
                Stats::add(&self.hub.stats.connect_timeouts, 1);
                return Ok(None);
            }
        };
        let frame = split_frame(input, self.hub.limits.packet_bytes);
        let decoded = match frame {
            Ok(Some((frame, _))) => decode_connect(frame, self.hub.limits.user_properties),
            Ok(None) => return Ok(None),
            Err(error) => Err(error),
        };
        let answer = match decoded {
            Ok(connect) => self.decide(&connect).await?,
            Err(error) => self.not_understood(error),
        };
        input.drain(..used.min(input.len()));
        match answer {
            Answer::Welcome(welcomed) => Ok(Some(*welcomed)),
            Answer::Silence => Ok(None),
            Answer::Farewell { version, code, explanation, delay } => {
                tokio::time::sleep(delay).await;
                self.say_farewell(write, version, code, explanation.as_deref()).await;
                Ok(None)
            }
        }
    }

    /// Reads until the first packet is whole or cannot become one; its length, or `None` if there is nobody to answer.
    async fn read_connect(&self, read: &mut (impl AsyncRead + Unpin), input: &mut Vec<u8>) -> Option<usize> {
        loop {
            // Anything but CONNECT ends here, before more of it is awaited.
            if input.first().is_some_and(|first| *first != 0x10) {
                Stats::add(&self.hub.stats.protocol_errors, 1);
                return None;
            }
            match split_frame(input, self.hub.limits.packet_bytes) {
                Ok(Some((_, used))) => return Some(used),
                Ok(None) => {}
                Err(_) => return Some(input.len()),
            }
            if !matches!(read_some(read, input).await, Ok(1..)) {
                return None;
            }
        }
    }

    /// An answer to a CONNECT that is not understood: MQTT 3.1.1 has one for an unknown version only (3.1.2-2), MQTT 5 may
    /// have one for all, but whether the peer speaks MQTT 5 is not known.
    fn not_understood(&self, error: CodecError) -> Answer {
        Stats::add(&self.hub.stats.protocol_errors, 1);
        debug!(%error, "CONNECT refused");
        if error == CodecError::Version { farewell(Version::V4, reason::UNSUPPORTED_VERSION) } else { Answer::Silence }
    }

    async fn decide(&self, connect: &Connect<'_>) -> Result<Answer, RouterStopped> {
        let (hub, version) = (self.hub, connect.version);
        let packet_bytes_max = connect.maximum_packet_size as usize;
        if packet_bytes_max < SHORTEST_CONNACK {
            Stats::add(&hub.stats.connects_refused, 1);
            return Ok(Answer::Silence);
        }
        if connect.has_authentication_method {
            return Ok(self.refuse(version, reason::BAD_AUTHENTICATION_METHOD));
        }
        // MQTT 3.1.3-8: without a client id there is nothing to keep a session under.
        if connect.client_id.is_empty() && version == Version::V4 && !connect.clean_start {
            return Ok(self.refuse(version, reason::CLIENT_ID_NOT_VALID));
        }
        let assigned = connect.client_id.is_empty().then(|| format!("auto-{}", hub.next_number()));
        let client_id = assigned.as_deref().unwrap_or(connect.client_id);
        if client_id.len() > hub.limits.client_id_bytes {
            return Ok(self.refuse(version, reason::CLIENT_ID_NOT_VALID));
        }
        let door = self.origin.door;
        let login = Login {
            listener: &door.name,
            anonymous: door.anonymous,
            encrypted: door.tls.is_some(),
            address: self.origin.address,
            client_id,
            user_name: connect.user_name,
            password: connect.password,
            has_will: connect.will.is_some(),
        };
        let endings = hub.endings();
        let identity = match hub.authenticator.authenticate(login).await {
            Verdict::Admit(identity) => identity,
            Verdict::Done => return Ok(farewell(version, reason::SUCCESS)),
            Verdict::Refuse(refusal) => return Ok(self.turn_away(connect, refusal)),
        };
        if let Some(will) = &connect.will
            && !identity.permissions.may_publish(will.topic)
        {
            return Ok(self.refuse(version, reason::NOT_AUTHORIZED));
        }
        let longest = u32::try_from(hub.limits.session_expiry.as_secs()).unwrap_or(u32::MAX);
        let expiry = connect.session_expiry.min(longest);
        let answer = ConnAck {
            assigned_client_id: assigned.as_deref(),
            session_expiry: (expiry != connect.session_expiry).then_some(expiry),
            ..self.offer()
        };
        if !answer.fits(version, packet_bytes_max) {
            return Ok(self.refuse(version, reason::PACKET_TOO_LARGE));
        }
        let arrival = Arrival { client_id, identity: identity.clone(), clean_start: connect.clean_start, expiry };
        let mut attachment = match hub.attach(arrival).await? {
            Ok(attachment) => attachment,
            Err(code) => return Ok(self.refuse(version, code)),
        };
        // Sessions were ended between the verdict and this: it may have been about this very account.
        if hub.endings() != endings
            && let Some(refusal) = self.withdrawn(login, &identity).await
        {
            attachment.expiry = 0;
            drop(attachment);
            return Ok(self.turn_away(connect, refusal));
        }
        attachment.will = connect.will.as_ref().map(|will| will_of(&attachment, will));
        let mut connack = Vec::new();
        encode_connack(&mut connack, version, &ConnAck { session_present: attachment.present, ..answer });
        let silence = Duration::from_millis(1500 * u64::from(connect.keep_alive));
        let settings = Settings {
            version,
            encrypted: door.tls.is_some(),
            silence_max: (connect.keep_alive > 0).then_some(silence),
            window: connect.receive_maximum.min(hub.limits.inflight),
            packet_bytes_max,
        };
        Ok(Answer::Welcome(Box::new(Welcomed { attachment, settings, connack })))
    }

    /// Asks once more whether the client is let in; why not, if it is not as it was.
    async fn withdrawn(&self, login: Login<'_>, identity: &Identity) -> Option<Refusal> {
        match self.hub.authenticator.authenticate(login).await {
            Verdict::Admit(now) if now.account == identity.account && now.permissions == identity.permissions => None,
            Verdict::Refuse(refusal) => Some(refusal),
            // Another one than before, who may come in by the door.
            Verdict::Admit(_) | Verdict::Done => {
                Some(Refusal { kind: RefusalKind::Busy, explanation: None, guess: false })
            }
        }
    }

    fn refuse(&self, version: Version, code: u8) -> Answer {
        Stats::add(&self.hub.stats.connects_refused, 1);
        if self.hub.refusals.allows() {
            let Origin { door, address } = self.origin;
            info!(listener = door.name, %address, code, "CONNECT refused; more are counted");
        }
        farewell(version, code)
    }

    fn turn_away(&self, connect: &Connect<'_>, refusal: Refusal) -> Answer {
        let delay = if refusal.guess {
            Stats::add(&self.hub.stats.guesses, 1);
            self.guesses.wrong(self.origin.address, Instant::now())
        } else {
            Duration::ZERO
        };
        let answer = self.refuse(connect.version, refusal.kind.reason());
        let Answer::Farewell { version, code, .. } = answer else { return answer };
        let explanation = refusal.explanation.filter(|text| {
            let answer = ConnAck { reason: code, explanation: Some(text), ..self.offer() };
            answer.fits(version, connect.maximum_packet_size as usize)
        });
        Answer::Farewell { version, code, explanation, delay }
    }

    async fn say_farewell(
        &self,
        write: &mut (impl AsyncWrite + Unpin),
        version: Version,
        code: u8,
        explanation: Option<&str>,
    ) {
        let mut answer = Vec::new();
        encode_connack(&mut answer, version, &ConnAck { reason: code, explanation, ..self.offer() });
        let farewell = async {
            write.write_all(&answer).await?;
            write.shutdown().await
        };
        // Whether the peer reads it is its own matter.
        let _: Result<std::io::Result<()>, _> = tokio::time::timeout(self.hub.limits.write_timeout, farewell).await;
    }

    /// What the broker has to offer, and nothing about a client.
    fn offer(&self) -> ConnAck<'static> {
        ConnAck {
            receive_maximum: self.hub.limits.inflight,
            maximum_packet_size: u32::try_from(self.hub.limits.packet_bytes).unwrap_or(u32::MAX),
            ..ConnAck::default()
        }
    }
}

fn farewell(version: Version, code: u8) -> Answer {
    Answer::Farewell { version, code, explanation: None, delay: Duration::ZERO }
}

fn will_of(attachment: &Attachment, will: &Will<'_>) -> (Duration, Message) {
    let parts = Parts {
        topic: will.topic,
        payload: will.payload,
        qos: will.qos,
        retain: will.retain,
        publisher: attachment.client.number,
        expiry: will.properties.expiry,
        properties: &will.properties.passed,
    };
    (Duration::from_secs(u64::from(will.delay)), Message::unsent(parts))
}
