//! Encoding what a server sends, appended to a connection's output buffer.

use super::properties::id;
use super::{QoS, Version, reason};

/// The shortest CONNACK of MQTT 5, and the longest acknowledgement with a reason and no properties.
pub(crate) const SHORTEST_CONNACK: usize = 5;

/// PINGRESP (MQTT 3.13).
pub(crate) const PINGRESP: [u8; 2] = [0xd0, 0x00];

/// What CONNACK says.
#[derive(Debug, Clone, Default)]
pub(crate) struct ConnAck<'a> {
    pub(crate) session_present: bool,
    pub(crate) reason: u8,
    pub(crate) assigned_client_id: Option<&'a str>,
    pub(crate) session_expiry: Option<u32>,
    pub(crate) receive_maximum: u16,
    pub(crate) maximum_packet_size: u32,
    /// For people, why the answer is no (MQTT 5).
    pub(crate) explanation: Option<&'a str>,
}

/// A message on its way to one subscriber.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Delivered<'a> {
    pub(crate) topic: &'a str,
    pub(crate) payload: &'a [u8],
    pub(crate) qos: QoS,
    pub(crate) retain: bool,
    pub(crate) dup: bool,
    /// 0 at QoS 0.
    pub(crate) packet_id: u16,
    /// Seconds left (MQTT 5).
    pub(crate) expiry: Option<u32>,
    /// Encoded properties of the publisher, passed on as they are (MQTT 5).
    pub(crate) passed: &'a [u8],
    /// Subscription identifiers (MQTT 5).
    pub(crate) subscription_ids: &'a [u32],
}

/// CONNACK (MQTT 3.2). An MQTT 3.1.1 client gets the return code that comes nearest to the reason.
pub(crate) fn encode_connack(out: &mut Vec<u8>, version: Version, ack: &ConnAck<'_>) {
    if version == Version::V4 {
        let code = match ack.reason {
            reason::SUCCESS => 0,
            reason::UNSUPPORTED_VERSION => 1,
            reason::CLIENT_ID_NOT_VALID => 2,
            reason::BAD_CREDENTIALS => 4,
            reason::NOT_AUTHORIZED => 5,
            _ => 3,
        };
        out.extend([0x20, 2, u8::from(ack.session_present), code]);
        return;
    }
    let mut properties = Vec::new();
    if ack.reason == reason::SUCCESS {
        if let Some(seconds) = ack.session_expiry {
            properties.push(id::SESSION_EXPIRY);
            properties.extend(seconds.to_be_bytes());
        }
        properties.push(id::RECEIVE_MAXIMUM);
        properties.extend(ack.receive_maximum.to_be_bytes());
        properties.push(id::MAXIMUM_PACKET_SIZE);
        properties.extend(ack.maximum_packet_size.to_be_bytes());
        if let Some(client_id) = ack.assigned_client_id {
            properties.push(id::ASSIGNED_CLIENT_ID);
            put_binary(&mut properties, client_id.as_bytes());
        }
        properties.extend([id::SHARED_AVAILABLE, 0]);
    } else if let Some(explanation) = ack.explanation {
        properties.push(id::REASON_STRING);
        put_binary(&mut properties, explanation.as_bytes());
    }
    out.push(0x20);
    put_variable(out, 2 + variable_length(properties.len()) + properties.len());
    out.extend([u8::from(ack.session_present), ack.reason]);
    put_variable(out, properties.len());
    out.extend(properties);
}

impl ConnAck<'_> {
    /// Whether it is short enough. The standard lets nothing of it be left out: what is missing would be a promise.
    pub(crate) fn fits(&self, version: Version, packet_bytes_max: usize) -> bool {
        let mut encoded = Vec::new();
        encode_connack(&mut encoded, version, self);
        encoded.len() <= packet_bytes_max
    }
}

/// PUBLISH (MQTT 3.3).
pub(crate) fn encode_publish(out: &mut Vec<u8>, version: Version, message: &Delivered<'_>) {
    out.push(0x30 | u8::from(message.dup) << 3 | (message.qos as u8) << 1 | u8::from(message.retain));
    let (properties, length) = publish_lengths(version, message);
    put_variable(out, length);
    out.reserve(length);
    put_binary(out, message.topic.as_bytes());
    if message.qos != QoS::AtMostOnce {
        out.extend(message.packet_id.to_be_bytes());
    }
    if version == Version::V5 {
        put_variable(out, properties);
        if let Some(seconds) = message.expiry {
            out.push(id::MESSAGE_EXPIRY);
            out.extend(seconds.to_be_bytes());
        }
        out.extend(message.passed);
        for number in message.subscription_ids {
            out.push(id::SUBSCRIPTION_ID);
            put_variable(out, *number as usize);
        }
    }
    out.extend(message.payload);
}

/// The length of a PUBLISH's properties and its remaining length.
fn publish_lengths(version: Version, message: &Delivered<'_>) -> (usize, usize) {
    let packet_id = if message.qos == QoS::AtMostOnce { 0 } else { 2 };
    let mut length = 2 + message.topic.len() + packet_id + message.payload.len();
    let mut properties = 0;
    if version == Version::V5 {
        let ids: usize = message.subscription_ids.iter().map(|n| 1 + variable_length(*n as usize)).sum();
        properties = message.expiry.map_or(0, |_| 5) + message.passed.len() + ids;
        length += variable_length(properties) + properties;
    }
    (properties, length)
}

impl Delivered<'_> {
    /// The whole length of the PUBLISH in bytes.
    pub(crate) fn encoded_length(&self, version: Version) -> usize {
        let (_, length) = publish_lengths(version, self);
        1 + variable_length(length) + length
    }
}

/// PUBACK, PUBREC, PUBREL or PUBCOMP by its first byte.
pub(crate) fn encode_ack(out: &mut Vec<u8>, version: Version, first: u8, packet_id: u16, reason: u8) {
    let [high, low] = packet_id.to_be_bytes();
    if version == Version::V5 && reason != reason::SUCCESS {
        out.extend([first, 3, high, low, reason]);
    } else {
        out.extend([first, 2, high, low]);
    }
}

/// SUBACK with one reason code a filter; MQTT 3.1.1 knows only 0x80 for a refusal.
pub(crate) fn encode_suback(out: &mut Vec<u8>, version: Version, packet_id: u16, reasons: &[u8]) {
    out.push(0x90);
    put_variable(out, 2 + usize::from(version == Version::V5) + reasons.len());
    out.extend(packet_id.to_be_bytes());
    match version {
        Version::V4 => out.extend(reasons.iter().map(|reason| (*reason).min(0x80))),
        Version::V5 => {
            out.push(0);
            out.extend(reasons);
        }
    }
}

/// UNSUBACK; MQTT 3.1.1 has no reasons in it.
pub(crate) fn encode_unsuback(out: &mut Vec<u8>, version: Version, packet_id: u16, reasons: &[u8]) {
    let [high, low] = packet_id.to_be_bytes();
    match version {
        Version::V4 => out.extend([0xb0, 2, high, low]),
        Version::V5 => {
            out.push(0xb0);
            put_variable(out, 3 + reasons.len());
            out.extend([high, low, 0]);
            out.extend(reasons);
        }
    }
}

/// The length of a SUBACK or UNSUBACK of MQTT 5 with this many reason codes.
pub(crate) fn answer_length(reasons: usize) -> usize {
    let length = 3 + reasons;
    1 + variable_length(length) + length
}

/// DISCONNECT, which only an MQTT 5 server sends.
pub(crate) fn encode_disconnect(out: &mut Vec<u8>, version: Version, reason: u8) {
    if version == Version::V5 {
        out.extend([0xe0, 1, reason]);
    }
}

fn put_binary(out: &mut Vec<u8>, bytes: &[u8]) {
    // Topics and ids were read from a field with a length of 16 bits, or checked against limits below it.
    out.extend((bytes.len() as u16).to_be_bytes());
    out.extend_from_slice(bytes);
}

pub(super) fn put_variable(out: &mut Vec<u8>, mut value: usize) {
    loop {
        let byte = (value & 0x7f) as u8;
        value >>= 7;
        out.push(if value > 0 { byte | 0x80 } else { byte });
        if value == 0 {
            return;
        }
    }
}

fn variable_length(value: usize) -> usize {
    match value {
        0..0x80 => 1,
        0x80..0x4000 => 2,
        0x4000..0x20_0000 => 3,
        _ => 4,
    }
}
