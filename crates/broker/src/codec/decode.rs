//! Decoding what clients send.

use super::properties::{self, PublishProperties, Value, id};
use super::reader::{Reader, variable};
use super::{
    Ack, CodecError, Connect, Disconnect, Packet, Publish, QoS, RetainHandling, Rules, Subscribe, SubscriptionOptions,
    Unsubscribe, Version, Will, reason,
};

/// One packet's first byte and body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Frame<'a> {
    first: u8,
    body: &'a [u8],
}

/// Cuts the first packet off `bytes`: the packet and its whole length, or `None` if it is not complete yet.
///
/// # Errors
/// If the length is malformed or the packet would be longer than `bytes_max`, as soon as its header tells so.
pub(crate) fn split_frame(bytes: &[u8], bytes_max: usize) -> Result<Option<(Frame<'_>, usize)>, CodecError> {
    let Some((first, rest)) = bytes.split_first() else { return Ok(None) };
    let Some((length, header)) = variable(rest, CodecError::Malformed("remaining length"))? else { return Ok(None) };
    let total = 1 + header + length as usize;
    if total > bytes_max {
        return Err(CodecError::TooLarge);
    }
    Ok(bytes.get(1 + header..total).map(|body| (Frame { first: *first, body }, total)))
}

/// Decodes the first packet of a connection, which must be CONNECT (MQTT 3.1.0-1).
pub(crate) fn decode_connect(frame: Frame<'_>, user_properties_max: usize) -> Result<Connect<'_>, CodecError> {
    if frame.first >> 4 != 1 {
        return Err(CodecError::Protocol("first packet is not CONNECT"));
    }
    if frame.first & 0x0f != 0 {
        return Err(CodecError::Malformed("reserved bits of CONNECT"));
    }
    let mut body = Reader::new(frame.body);
    if body.text()? != "MQTT" {
        return Err(CodecError::Version);
    }
    let version = match body.u8()? {
        4 => Version::V4,
        5 => Version::V5,
        _ => return Err(CodecError::Version),
    };
    let flags = body.u8()?;
    let keep_alive = body.u16()?;
    let clean_start = flags & 0x02 != 0;
    let mut connect = Connect {
        version,
        client_id: "",
        clean_start,
        keep_alive,
        will: None,
        user_name: None,
        password: None,
        session_expiry: if version == Version::V4 && !clean_start { u32::MAX } else { 0 },
        receive_maximum: u16::MAX,
        maximum_packet_size: u32::MAX,
        request_problem_information: true,
        has_authentication_method: false,
    };
    let rules = Rules { version, user_properties_max };
    if version == Version::V5 {
        connect_properties(&mut body, &mut connect, rules)?;
    }
    connect.client_id = body.text()?;
    connect.will = will(&mut body, rules, flags)?;
    let (has_user, has_password) = (flags & 0x80 != 0, flags & 0x40 != 0);
    if flags & 0x01 != 0 {
        return Err(CodecError::Malformed("reserved connect flag is set"));
    }
    if has_password && !has_user && version == Version::V4 {
        return Err(CodecError::Malformed("password without user name"));
    }
    if has_user {
        connect.user_name = Some(body.text()?);
    }
    if has_password {
        connect.password = Some(body.binary()?);
    }
    finish(body)?;
    Ok(connect)
}

fn connect_properties<'a>(body: &mut Reader<'a>, connect: &mut Connect<'a>, rules: Rules) -> Result<(), CodecError> {
    const ALLOWED: [u8; 9] = [
        id::SESSION_EXPIRY,
        id::RECEIVE_MAXIMUM,
        id::MAXIMUM_PACKET_SIZE,
        id::TOPIC_ALIAS_MAXIMUM,
        id::REQUEST_RESPONSE_INFORMATION,
        id::REQUEST_PROBLEM_INFORMATION,
        id::USER_PROPERTY,
        id::AUTHENTICATION_METHOD,
        id::AUTHENTICATION_DATA,
    ];
    let mut has_data = false;
    properties::read(body, &ALLOWED, rules.user_properties_max, |id, value, _| {
        match (id, value) {
            (id::SESSION_EXPIRY, Value::Four(seconds)) => connect.session_expiry = seconds,
            (id::RECEIVE_MAXIMUM, Value::Two(maximum)) => connect.receive_maximum = maximum,
            (id::MAXIMUM_PACKET_SIZE, Value::Four(size)) => connect.maximum_packet_size = size,
            (id::REQUEST_PROBLEM_INFORMATION, Value::Byte(wanted)) => {
                connect.request_problem_information = wanted == 1;
            }
            (id::AUTHENTICATION_METHOD, _) => connect.has_authentication_method = true,
            (id::AUTHENTICATION_DATA, _) => has_data = true,
            _ => {}
        }
        Ok(())
    })?;
    if has_data && !connect.has_authentication_method {
        return Err(CodecError::Protocol("authentication data without a method"));
    }
    Ok(())
}

fn will<'a>(body: &mut Reader<'a>, rules: Rules, flags: u8) -> Result<Option<Will<'a>>, CodecError> {
    let (present, retain) = (flags & 0x04 != 0, flags & 0x20 != 0);
    let qos = QoS::from_bits(flags >> 3 & 0x03).ok_or(CodecError::Malformed("will QoS is 3"))?;
    if !present {
        // MQTT 3.1.2-11, -13, -15: without the will flag its other flags are 0.
        return if retain || qos != QoS::AtMostOnce {
            Err(CodecError::Malformed("will flags without a will"))
        } else {
            Ok(None)
        };
    }
    let (properties, delay) = match rules.version {
        Version::V4 => (PublishProperties::default(), 0),
        Version::V5 => properties::read_publish(body, true, rules.user_properties_max)?,
    };
    let topic = topic_name(body.text()?)?;
    let payload = body.binary()?;
    Ok(Some(Will { topic, payload, qos, retain, delay, properties }))
}

/// Decodes a packet after CONNECT.
pub(crate) fn decode(frame: Frame<'_>, rules: Rules) -> Result<Packet<'_>, CodecError> {
    let flags = frame.first & 0x0f;
    let kind = frame.first >> 4;
    // MQTT 2.2.2: reserved flag bits must have the value of the table.
    let reserved = if matches!(kind, 6 | 8 | 10) { 0x02 } else { 0x00 };
    if kind != 3 && flags != reserved {
        return Err(CodecError::Malformed("reserved bits of the fixed header"));
    }
    let body = Reader::new(frame.body);
    match kind {
        1 => Err(CodecError::Protocol("second CONNECT")),
        3 => publish(body, flags, rules).map(Packet::Publish),
        4 => ack(body, rules, &[0x00, 0x10, 0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99]).map(Packet::PubAck),
        5 => ack(body, rules, &[0x00, 0x10, 0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99]).map(Packet::PubRec),
        6 => ack(body, rules, &[0x00, 0x92]).map(Packet::PubRel),
        7 => ack(body, rules, &[0x00, 0x92]).map(Packet::PubComp),
        8 => subscribe(body, rules).map(Packet::Subscribe),
        10 => unsubscribe(body, rules).map(Packet::Unsubscribe),
        12 => finish(body).map(|()| Packet::PingReq),
        14 => disconnect(body, rules).map(Packet::Disconnect),
        15 if rules.version == Version::V5 => Err(CodecError::Protocol("AUTH without an authentication method")),
        _ => Err(CodecError::Protocol("packet type that no client sends")),
    }
}

fn publish(mut body: Reader<'_>, flags: u8, rules: Rules) -> Result<Publish<'_>, CodecError> {
    let qos = QoS::from_bits(flags >> 1 & 0x03).ok_or(CodecError::Malformed("QoS is 3"))?;
    let dup = flags & 0x08 != 0;
    if dup && qos == QoS::AtMostOnce {
        return Err(CodecError::Malformed("DUP at QoS 0"));
    }
    let topic = match body.text()? {
        // It stands for a topic alias (MQTT 5 3.3.2.3.4); none is offered, and the properties are refused below.
        "" if rules.version == Version::V5 => "",
        topic => topic_name(topic)?,
    };
    let packet_id = if qos == QoS::AtMostOnce { 0 } else { body.packet_id()? };
    let properties = match rules.version {
        Version::V4 => PublishProperties::default(),
        Version::V5 => properties::read_publish(&mut body, false, rules.user_properties_max)?.0,
    };
    if topic.is_empty() {
        return Err(CodecError::Protocol("topic name is empty and there is no topic alias"));
    }
    Ok(Publish { dup, qos, retain: flags & 0x01 != 0, topic, packet_id, properties, payload: body.rest() })
}

/// A topic name: not empty and without wildcards (MQTT 4.7.1.1, 4.7.3-1).
fn topic_name(text: &str) -> Result<&str, CodecError> {
    match text {
        "" => Err(CodecError::Malformed("topic name is empty")),
        topic if topic.contains(['+', '#']) => Err(CodecError::Malformed("topic name contains a wildcard")),
        topic => Ok(topic),
    }
}

fn ack(mut body: Reader<'_>, rules: Rules, reasons: &[u8]) -> Result<Ack, CodecError> {
    let packet_id = body.packet_id()?;
    let mut ack = Ack { packet_id, reason: reason::SUCCESS };
    if rules.version == Version::V5 && !body.is_empty() {
        ack.reason = body.u8()?;
        if !reasons.contains(&ack.reason) {
            return Err(CodecError::Malformed("reason code not allowed here"));
        }
        if !body.is_empty() {
            properties::read(
                &mut body,
                &[id::REASON_STRING, id::USER_PROPERTY],
                rules.user_properties_max,
                |_, _, _| Ok(()),
            )?;
        }
    }
    finish(body)?;
    Ok(ack)
}

fn subscribe(mut body: Reader<'_>, rules: Rules) -> Result<Subscribe<'_>, CodecError> {
    let packet_id = body.packet_id()?;
    let mut subscription_id = None;
    if rules.version == Version::V5 {
        properties::read(
            &mut body,
            &[id::SUBSCRIPTION_ID, id::USER_PROPERTY],
            rules.user_properties_max,
            |id, value, _| {
                if let (id::SUBSCRIPTION_ID, Value::Four(number)) = (id, value) {
                    subscription_id = Some(number);
                }
                Ok(())
            },
        )?;
    }
    let mut filters = Vec::new();
    while !body.is_empty() {
        let filter = body.text()?;
        filters.push((filter, subscription_options(body.u8()?, rules.version)?));
    }
    if filters.is_empty() {
        return Err(CodecError::Protocol("SUBSCRIBE without a topic filter"));
    }
    Ok(Subscribe { packet_id, subscription_id, filters })
}

fn subscription_options(bits: u8, version: Version) -> Result<SubscriptionOptions, CodecError> {
    let reserved = if version == Version::V4 { 0xfc } else { 0xc0 };
    if bits & reserved != 0 {
        return Err(CodecError::Malformed("reserved bits of the subscription options"));
    }
    let qos = QoS::from_bits(bits & 0x03).ok_or(CodecError::Malformed("requested QoS is 3"))?;
    let retain_handling = match bits >> 4 & 0x03 {
        0 => RetainHandling::EverySubscribe,
        1 => RetainHandling::NewSubscription,
        2 => RetainHandling::Never,
        _ => return Err(CodecError::Protocol("retain handling is 3")),
    };
    Ok(SubscriptionOptions { qos, no_local: bits & 0x04 != 0, retain_as_published: bits & 0x08 != 0, retain_handling })
}

fn unsubscribe(mut body: Reader<'_>, rules: Rules) -> Result<Unsubscribe<'_>, CodecError> {
    let packet_id = body.packet_id()?;
    if rules.version == Version::V5 {
        properties::read(&mut body, &[id::USER_PROPERTY], rules.user_properties_max, |_, _, _| Ok(()))?;
    }
    let mut filters = Vec::new();
    while !body.is_empty() {
        filters.push(body.text()?);
    }
    if filters.is_empty() {
        return Err(CodecError::Protocol("UNSUBSCRIBE without a topic filter"));
    }
    Ok(Unsubscribe { packet_id, filters })
}

fn disconnect(mut body: Reader<'_>, rules: Rules) -> Result<Disconnect, CodecError> {
    const REASONS: [u8; 13] = [0x00, 0x04, 0x80, 0x81, 0x82, 0x83, 0x90, 0x93, 0x94, 0x95, 0x96, 0x97, 0x98];
    let mut disconnect = Disconnect { reason: reason::SUCCESS, session_expiry: None };
    if rules.version == Version::V5 && !body.is_empty() {
        disconnect.reason = body.u8()?;
        if disconnect.reason != 0x99 && !REASONS.contains(&disconnect.reason) {
            return Err(CodecError::Malformed("reason code not allowed here"));
        }
        if !body.is_empty() {
            let allowed = [id::SESSION_EXPIRY, id::REASON_STRING, id::USER_PROPERTY];
            properties::read(&mut body, &allowed, rules.user_properties_max, |id, value, _| {
                if let (id::SESSION_EXPIRY, Value::Four(seconds)) = (id, value) {
                    disconnect.session_expiry = Some(seconds);
                }
                Ok(())
            })?;
        }
    }
    finish(body)?;
    Ok(disconnect)
}

fn finish(body: Reader<'_>) -> Result<(), CodecError> {
    if body.is_empty() { Ok(()) } else { Err(CodecError::Malformed("bytes after the end of the packet")) }
}
