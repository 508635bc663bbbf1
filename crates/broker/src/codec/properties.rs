//! Properties of MQTT 5 packets (MQTT 5 2.2.2): checked against the table of what is allowed where.

use std::borrow::Cow;

use super::CodecError;
use super::reader::Reader;

/// Property identifiers (MQTT 5 table 2-4).
pub(super) mod id {
    pub(in crate::codec) const PAYLOAD_FORMAT: u8 = 0x01;
    pub(in crate::codec) const MESSAGE_EXPIRY: u8 = 0x02;
    pub(in crate::codec) const CONTENT_TYPE: u8 = 0x03;
    pub(in crate::codec) const RESPONSE_TOPIC: u8 = 0x08;
    pub(in crate::codec) const CORRELATION_DATA: u8 = 0x09;
    pub(in crate::codec) const SUBSCRIPTION_ID: u8 = 0x0B;
    pub(in crate::codec) const SESSION_EXPIRY: u8 = 0x11;
    pub(in crate::codec) const ASSIGNED_CLIENT_ID: u8 = 0x12;
    pub(in crate::codec) const AUTHENTICATION_METHOD: u8 = 0x15;
    pub(in crate::codec) const AUTHENTICATION_DATA: u8 = 0x16;
    pub(in crate::codec) const REQUEST_PROBLEM_INFORMATION: u8 = 0x17;
    pub(in crate::codec) const WILL_DELAY: u8 = 0x18;
    pub(in crate::codec) const REQUEST_RESPONSE_INFORMATION: u8 = 0x19;
    pub(in crate::codec) const REASON_STRING: u8 = 0x1F;
    pub(in crate::codec) const RECEIVE_MAXIMUM: u8 = 0x21;
    pub(in crate::codec) const TOPIC_ALIAS_MAXIMUM: u8 = 0x22;
    pub(in crate::codec) const TOPIC_ALIAS: u8 = 0x23;
    pub(in crate::codec) const USER_PROPERTY: u8 = 0x26;
    pub(in crate::codec) const MAXIMUM_PACKET_SIZE: u8 = 0x27;
    pub(in crate::codec) const SHARED_AVAILABLE: u8 = 0x2A;
}

/// One property as read.
pub(super) enum Value<'a> {
    Byte(u8),
    Two(u16),
    Four(u32),
    Text(&'a str),
    Binary(&'a [u8]),
    Pair,
}

/// The properties of a PUBLISH or will that travel with its message.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct PublishProperties<'a> {
    /// Seconds (MQTT 5 3.3.2.3.3).
    pub(crate) expiry: Option<u32>,
    /// All others as encoded, which the broker passes on unaltered (MQTT 5 3.3.2.3).
    pub(crate) passed: Cow<'a, [u8]>,
}

/// Reads the property block at the reader and hands every property to `each`. Refuses what is not among `allowed` and
/// what comes twice.
pub(super) fn read<'a>(
    reader: &mut Reader<'a>,
    allowed: &[u8],
    user_properties_max: usize,
    mut each: impl FnMut(u8, Value<'a>, &'a [u8]) -> Result<(), CodecError>,
) -> Result<(), CodecError> {
    let length = reader.variable()?;
    let mut block = Reader::new(reader.bytes(length as usize)?);
    let mut seen = 0u64;
    let mut user_properties = 0;
    while !block.is_empty() {
        let start = block;
        let id = block.u8()?;
        if !allowed.contains(&id) {
            return Err(CodecError::Malformed("property not allowed in this packet"));
        }
        // Identifiers of the table are below 64, and only those are in `allowed`.
        let bit = 1u64 << (id & 0x3f);
        if id == id::USER_PROPERTY {
            user_properties += 1;
            if user_properties > user_properties_max {
                return Err(CodecError::UserProperties);
            }
        } else if seen & bit != 0 {
            return Err(CodecError::Protocol("property given twice"));
        }
        seen |= bit;
        let value = read_value(id, &mut block)?;
        let raw = &start.rest()[..start.len() - block.len()];
        each(id, value, raw)?;
    }
    Ok(())
}

fn read_value<'a>(id: u8, block: &mut Reader<'a>) -> Result<Value<'a>, CodecError> {
    Ok(match id {
        id::PAYLOAD_FORMAT | id::REQUEST_PROBLEM_INFORMATION | id::REQUEST_RESPONSE_INFORMATION => match block.u8()? {
            bit @ (0 | 1) => Value::Byte(bit),
            _ => return Err(CodecError::Protocol("property must be 0 or 1")),
        },
        id::MESSAGE_EXPIRY | id::SESSION_EXPIRY | id::WILL_DELAY => Value::Four(block.u32()?),
        id::MAXIMUM_PACKET_SIZE => match block.u32()? {
            0 => return Err(CodecError::Protocol("maximum packet size is 0")),
            size => Value::Four(size),
        },
        id::RECEIVE_MAXIMUM => match block.u16()? {
            0 => return Err(CodecError::Protocol("receive maximum is 0")),
            maximum => Value::Two(maximum),
        },
        id::TOPIC_ALIAS_MAXIMUM | id::TOPIC_ALIAS => Value::Two(block.u16()?),
        id::SUBSCRIPTION_ID => match block.variable()? {
            0 => return Err(CodecError::Protocol("subscription identifier is 0")),
            number => Value::Four(number),
        },
        id::CONTENT_TYPE | id::RESPONSE_TOPIC | id::AUTHENTICATION_METHOD | id::REASON_STRING => {
            Value::Text(block.text()?)
        }
        id::CORRELATION_DATA | id::AUTHENTICATION_DATA => Value::Binary(block.binary()?),
        id::USER_PROPERTY => {
            block.text()?;
            block.text()?;
            Value::Pair
        }
        _ => return Err(CodecError::Malformed("unknown property")),
    })
}

/// Reads the properties of a PUBLISH (MQTT 5 3.3.2.3), or of a will together with its delay (3.1.3.2).
pub(super) fn read_publish<'a>(
    reader: &mut Reader<'a>,
    will: bool,
    user_properties_max: usize,
) -> Result<(PublishProperties<'a>, u32), CodecError> {
    const PASSED: [u8; 5] =
        [id::PAYLOAD_FORMAT, id::CONTENT_TYPE, id::RESPONSE_TOPIC, id::CORRELATION_DATA, id::USER_PROPERTY];
    let own: [u8; 2] = if will { [id::MESSAGE_EXPIRY, id::WILL_DELAY] } else { [id::MESSAGE_EXPIRY, id::TOPIC_ALIAS] };
    let allowed: [u8; 7] = std::array::from_fn(|i| if i < 5 { PASSED[i] } else { own[i - 5] });
    let mut delay = 0;
    let mut expiry = None;
    let mut passed = Vec::new();
    let mut block = *reader;
    read(reader, &allowed, user_properties_max, |id, value, raw| {
        match (id, value) {
            (id::MESSAGE_EXPIRY, Value::Four(seconds)) => expiry = Some(seconds),
            (id::WILL_DELAY, Value::Four(seconds)) => delay = seconds,
            (id::TOPIC_ALIAS, _) => return Err(CodecError::TopicAlias),
            (id::RESPONSE_TOPIC, Value::Text(topic)) if topic.contains(['+', '#']) || topic.is_empty() => {
                return Err(CodecError::Protocol("response topic is not a topic name"));
            }
            _ => passed.push(raw),
        }
        Ok(())
    })?;
    let length = block.variable()? as usize;
    let whole = block.bytes(length)?;
    // Without a property of the broker's own the block is passed on as it stands; that is the usual case.
    let passed = if passed.iter().map(|raw| raw.len()).sum::<usize>() == whole.len() {
        Cow::Borrowed(whole)
    } else {
        Cow::Owned(passed.concat())
    };
    Ok((PublishProperties { expiry, passed }, delay))
}

/// The Response Topic in a block that was checked before.
pub(crate) fn find_response_topic(block: &[u8]) -> Option<&str> {
    find(block, id::RESPONSE_TOPIC).and_then(|bytes| std::str::from_utf8(bytes).ok())
}

/// The Correlation Data in a block that was checked before.
pub(crate) fn find_correlation_data(block: &[u8]) -> Option<&[u8]> {
    find(block, id::CORRELATION_DATA)
}

/// Adds Correlation Data to a block; what does not fit its length field is cut.
pub(crate) fn put_correlation_data(block: &mut Vec<u8>, data: &[u8]) {
    let data = &data[..data.len().min(usize::from(u16::MAX))];
    block.push(id::CORRELATION_DATA);
    block.extend((data.len() as u16).to_be_bytes());
    block.extend(data);
}

fn find(block: &[u8], wanted: u8) -> Option<&[u8]> {
    let mut reader = Reader::new(block);
    while !reader.is_empty() {
        let id = reader.u8().ok()?;
        match read_value(id, &mut reader).ok()? {
            Value::Text(text) if id == wanted => return Some(text.as_bytes()),
            Value::Binary(binary) if id == wanted => return Some(binary),
            _ => {}
        }
    }
    None
}
