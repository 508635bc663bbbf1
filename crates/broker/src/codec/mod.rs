//! MQTT 3.1.1 and 5.0 on the wire: strict decoding of what clients send, encoding of what a server sends.
//!
//! rumqttd's own codecs are not used here: they panic on packet types 2 and 11, hide a PUBLISH's QoS and packet id, and
//! accept what the standard forbids. Decoding borrows from the read buffer; a PUBLISH is copied once, into the router.

mod decode;
mod encode;
mod properties;
mod reader;
#[cfg(test)]
mod tests;

pub(crate) use decode::{decode, decode_connect, split_frame};
pub(crate) use encode::{ConnAck, Delivered, encode_ack, encode_connack, encode_disconnect, encode_publish};
pub(crate) use encode::{PINGRESP, SHORTEST_CONNACK, answer_length, encode_suback, encode_unsuback};
pub(crate) use properties::{PublishProperties, find_correlation_data, find_response_topic, put_correlation_data};

/// Quality of service of a message, its subscription or its delivery (MQTT 4.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum QoS {
    /// QoS 0: at most once.
    AtMostOnce,
    /// QoS 1: at least once.
    AtLeastOnce,
    /// QoS 2: exactly once.
    ExactlyOnce,
}

/// The protocol that a connection speaks, told by its CONNECT (MQTT 3.1.2.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Version {
    /// MQTT 3.1.1, protocol level 4.
    V4,
    /// MQTT 5.0, protocol level 5.
    V5,
}

/// What the decoder has to know.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rules {
    pub(crate) version: Version,
    /// How many user properties a packet may have.
    pub(crate) user_properties_max: usize,
}

/// A packet from a client after its CONNECT.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Packet<'a> {
    Publish(Publish<'a>),
    PubAck(Ack),
    PubRec(Ack),
    PubRel(Ack),
    PubComp(Ack),
    Subscribe(Subscribe<'a>),
    Unsubscribe(Unsubscribe<'a>),
    PingReq,
    Disconnect(Disconnect),
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Connect<'a> {
    pub(crate) version: Version,
    pub(crate) client_id: &'a str,
    pub(crate) clean_start: bool,
    /// Seconds; 0 turns the check off.
    pub(crate) keep_alive: u16,
    pub(crate) will: Option<Will<'a>>,
    pub(crate) user_name: Option<&'a str>,
    pub(crate) password: Option<&'a [u8]>,
    /// Seconds; `u32::MAX` never expires. A 3.1.1 client has 0 with Clean Session, else `u32::MAX`.
    pub(crate) session_expiry: u32,
    pub(crate) receive_maximum: u16,
    pub(crate) maximum_packet_size: u32,
    pub(crate) request_problem_information: bool,
    pub(crate) has_authentication_method: bool,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Will<'a> {
    pub(crate) topic: &'a str,
    pub(crate) payload: &'a [u8],
    pub(crate) qos: QoS,
    pub(crate) retain: bool,
    /// Seconds (MQTT 5 3.1.3.2.2).
    pub(crate) delay: u32,
    pub(crate) properties: PublishProperties<'a>,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Publish<'a> {
    pub(crate) dup: bool,
    pub(crate) qos: QoS,
    pub(crate) retain: bool,
    pub(crate) topic: &'a str,
    /// 0 at QoS 0.
    pub(crate) packet_id: u16,
    pub(crate) properties: PublishProperties<'a>,
    pub(crate) payload: &'a [u8],
}

/// PUBACK, PUBREC, PUBREL or PUBCOMP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ack {
    pub(crate) packet_id: u16,
    pub(crate) reason: u8,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Subscribe<'a> {
    pub(crate) packet_id: u16,
    pub(crate) subscription_id: Option<u32>,
    pub(crate) filters: Vec<(&'a str, SubscriptionOptions)>,
}

/// What a client asked of one subscription (MQTT 5 3.8.3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SubscriptionOptions {
    pub(crate) qos: QoS,
    pub(crate) no_local: bool,
    pub(crate) retain_as_published: bool,
    pub(crate) retain_handling: RetainHandling,
}

/// When a subscription is answered with retained messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RetainHandling {
    EverySubscribe,
    NewSubscription,
    Never,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Unsubscribe<'a> {
    pub(crate) packet_id: u16,
    pub(crate) filters: Vec<&'a str>,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Disconnect {
    pub(crate) reason: u8,
    pub(crate) session_expiry: Option<u32>,
}

/// Why bytes are not what the standard allows. The text names the rule broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CodecError {
    /// The bytes do not form a packet (reason code 0x81).
    #[error("malformed packet: {0}")]
    Malformed(&'static str),
    /// The packet is well formed but must not come here (0x82).
    #[error("protocol error: {0}")]
    Protocol(&'static str),
    /// The packet exceeds the broker's limit (0x95).
    #[error("packet too large")]
    TooLarge,
    /// The protocol level is neither 4 nor 5 (0x84).
    #[error("unsupported protocol version")]
    Version,
    /// The packet has more user properties than the broker takes (0x97).
    #[error("too many user properties")]
    UserProperties,
    /// A topic alias was used although none is offered (0x94).
    #[error("topic alias invalid")]
    TopicAlias,
}

/// Reason codes of MQTT 5 that this broker sends (MQTT 5 2.4).
pub(crate) mod reason {
    pub(crate) const SUCCESS: u8 = 0x00;
    pub(crate) const DISCONNECT_WITH_WILL: u8 = 0x04;
    pub(crate) const NO_SUBSCRIPTION_EXISTED: u8 = 0x11;
    pub(crate) const MALFORMED: u8 = 0x81;
    pub(crate) const PROTOCOL_ERROR: u8 = 0x82;
    pub(crate) const UNSUPPORTED_VERSION: u8 = 0x84;
    pub(crate) const CLIENT_ID_NOT_VALID: u8 = 0x85;
    pub(crate) const BAD_CREDENTIALS: u8 = 0x86;
    pub(crate) const NOT_AUTHORIZED: u8 = 0x87;
    pub(crate) const SERVER_BUSY: u8 = 0x89;
    pub(crate) const SERVER_SHUTTING_DOWN: u8 = 0x8B;
    pub(crate) const BAD_AUTHENTICATION_METHOD: u8 = 0x8C;
    pub(crate) const KEEP_ALIVE_TIMEOUT: u8 = 0x8D;
    pub(crate) const SESSION_TAKEN_OVER: u8 = 0x8E;
    pub(crate) const TOPIC_FILTER_INVALID: u8 = 0x8F;
    pub(crate) const PACKET_ID_NOT_FOUND: u8 = 0x92;
    pub(crate) const RECEIVE_MAXIMUM_EXCEEDED: u8 = 0x93;
    pub(crate) const TOPIC_ALIAS_INVALID: u8 = 0x94;
    pub(crate) const PACKET_TOO_LARGE: u8 = 0x95;
    pub(crate) const QUOTA_EXCEEDED: u8 = 0x97;
    pub(crate) const ADMINISTRATIVE_ACTION: u8 = 0x98;
    pub(crate) const SHARED_NOT_SUPPORTED: u8 = 0x9E;
}

impl CodecError {
    /// The reason code for CONNACK or DISCONNECT.
    pub(crate) fn reason(self) -> u8 {
        match self {
            CodecError::Malformed(_) => reason::MALFORMED,
            CodecError::Protocol(_) => reason::PROTOCOL_ERROR,
            CodecError::TooLarge => reason::PACKET_TOO_LARGE,
            CodecError::Version => reason::UNSUPPORTED_VERSION,
            CodecError::UserProperties => reason::QUOTA_EXCEEDED,
            CodecError::TopicAlias => reason::TOPIC_ALIAS_INVALID,
        }
    }
}

impl QoS {
    /// From its number on the wire.
    pub(crate) fn from_bits(bits: u8) -> Option<QoS> {
        match bits {
            0 => Some(QoS::AtMostOnce),
            1 => Some(QoS::AtLeastOnce),
            2 => Some(QoS::ExactlyOnce),
            _ => None,
        }
    }
}
