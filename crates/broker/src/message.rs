//! A message as it travels through the router: one allocation that holds everything the front needs to deliver it.

use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::codec::QoS;

/// flags, publisher, deadline, length of the topic, length of the properties.
const HEADER: usize = 1 + 8 + 8 + 2 + 4;
const RETAIN: u8 = 0x04;

/// A published message. Cloning shares the bytes.
#[derive(Debug, Clone)]
pub(crate) struct Message(Bytes);

/// What a message is made from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Parts<'a> {
    pub(crate) topic: &'a str,
    pub(crate) payload: &'a [u8],
    pub(crate) qos: QoS,
    pub(crate) retain: bool,
    /// The number of the client that published it.
    pub(crate) publisher: u64,
    /// Seconds until it expires (MQTT 5 3.3.2.3.3).
    pub(crate) expiry: Option<u32>,
    /// Encoded properties that are passed on.
    pub(crate) properties: &'a [u8],
}

/// Counts milliseconds since the broker started: the time base of expiry.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock(Instant);

impl Clock {
    pub(crate) fn start() -> Clock {
        Clock(Instant::now())
    }

    /// Time since the broker started.
    pub(crate) fn elapsed(self) -> Duration {
        self.0.elapsed()
    }

    fn millis(self) -> u64 {
        u64::try_from(self.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

impl Message {
    /// Packs a message. The topic has at most 65,535 bytes, as MQTT's length field ensures.
    pub(crate) fn new(parts: Parts<'_>, clock: Clock) -> Message {
        Message::pack(parts, clock.millis())
    }

    /// Packs a message whose time begins with [`Message::sent`]: a will (MQTT 5 3.1.3.2.4).
    pub(crate) fn unsent(parts: Parts<'_>) -> Message {
        Message::pack(parts, 0)
    }

    /// An unsent message as it is published now.
    pub(crate) fn sent(self, clock: Clock) -> Message {
        let mut wire = self.0.to_vec();
        wire[9..17].copy_from_slice(&(self.number(9) + clock.millis()).to_be_bytes());
        Message(wire.into())
    }

    fn pack(parts: Parts<'_>, now: u64) -> Message {
        let deadline = parts.expiry.map_or(0, |seconds| now + 1000 * u64::from(seconds));
        let mut wire = Vec::with_capacity(HEADER + parts.topic.len() + parts.properties.len() + parts.payload.len());
        wire.push(
            parts.qos as u8 | if parts.retain { RETAIN } else { 0 } | if parts.expiry.is_some() { 0x08 } else { 0 },
        );
        wire.extend(parts.publisher.to_be_bytes());
        wire.extend(deadline.to_be_bytes());
        wire.extend((parts.topic.len() as u16).to_be_bytes());
        wire.extend((parts.properties.len() as u32).to_be_bytes());
        wire.extend_from_slice(parts.topic.as_bytes());
        wire.extend_from_slice(parts.properties);
        wire.extend_from_slice(parts.payload);
        Message(wire.into())
    }

    /// From what [`Message::into_wire`] gave; only the front puts such bytes into the router.
    pub(crate) fn from_wire(wire: Bytes) -> Option<Message> {
        if wire.len() < HEADER {
            return None;
        }
        let message = Message(wire);
        (message.payload_start() <= message.0.len()).then_some(message)
    }

    pub(crate) fn into_wire(self) -> Bytes {
        self.0
    }

    /// Size in bytes, as the router's log counts it.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn qos(&self) -> QoS {
        QoS::from_bits(self.0[0] & 0x03).unwrap_or(QoS::AtMostOnce)
    }

    pub(crate) fn retain(&self) -> bool {
        self.0[0] & RETAIN != 0
    }

    pub(crate) fn publisher(&self) -> u64 {
        self.number(1)
    }

    pub(crate) fn topic(&self) -> &str {
        // It was a `&str` when it was packed.
        std::str::from_utf8(self.topic_bytes()).unwrap_or_default()
    }

    /// The topic without a look at its encoding, for comparisons: the order is the same.
    pub(crate) fn topic_bytes(&self) -> &[u8] {
        &self.0[HEADER..HEADER + self.topic_length()]
    }

    pub(crate) fn properties(&self) -> &[u8] {
        &self.0[HEADER + self.topic_length()..self.payload_start()]
    }

    pub(crate) fn payload(&self) -> &[u8] {
        &self.0[self.payload_start()..]
    }

    pub(crate) fn payload_bytes(&self) -> Bytes {
        self.0.slice(self.payload_start()..)
    }

    /// Seconds left before the message expires, rounded up: `Err` if it has expired, `Ok(None)` if it never does.
    pub(crate) fn expiry(&self, clock: Clock) -> Result<Option<u32>, Expired> {
        if self.0[0] & 0x08 == 0 {
            return Ok(None);
        }
        let left = self.number(9).saturating_sub(clock.millis());
        match u32::try_from(Duration::from_millis(left + 999).as_secs()) {
            Ok(0) => Err(Expired),
            left => Ok(Some(left.unwrap_or(u32::MAX))),
        }
    }

    fn topic_length(&self) -> usize {
        usize::from(u16::from_be_bytes([self.0[17], self.0[18]]))
    }

    fn payload_start(&self) -> usize {
        let properties = u32::from_be_bytes([self.0[19], self.0[20], self.0[21], self.0[22]]);
        HEADER + self.topic_length() + properties as usize
    }

    fn number(&self, at: usize) -> u64 {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&self.0[at..at + 8]);
        u64::from_be_bytes(bytes)
    }
}

/// The message's time has passed: it must not be delivered (MQTT 5 3.3.2-5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Expired;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_survives_the_router() {
        let parts = Parts {
            topic: "ä/b",
            payload: b"hello",
            qos: QoS::ExactlyOnce,
            retain: true,
            publisher: 7,
            expiry: Some(10),
            properties: &[0x01, 0x01],
        };
        let clock = Clock::start();
        let message = Message::from_wire(Message::new(parts, clock).into_wire()).unwrap();
        assert_eq!((message.topic(), message.payload(), message.properties()), ("ä/b", &b"hello"[..], &[1, 1][..]));
        assert_eq!((message.qos(), message.retain(), message.publisher()), (QoS::ExactlyOnce, true, 7));
        assert_eq!(message.expiry(clock), Ok(Some(10)));
        let expired = Message::new(Parts { expiry: Some(0), ..parts }, clock);
        assert_eq!(expired.expiry(clock), Err(Expired));
        let clock = Clock(Instant::now() - Duration::from_secs(5));
        assert_eq!(Message::unsent(parts).sent(clock).expiry(clock), Ok(Some(10)));
        assert!(Message::from_wire(Bytes::from_static(&[0xff; HEADER])).is_none());
        assert!(Message::from_wire(Bytes::new()).is_none());
    }
}
