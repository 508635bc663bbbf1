//! The standard's encodings, written once more and plainly, so that the tests do not lean on the broker's own codec.

/// A variable byte integer (MQTT 5 1.5.5).
pub fn variable(mut value: usize) -> Vec<u8> {
    let mut bytes = vec![];
    loop {
        let byte = (value & 0x7f) as u8;
        value >>= 7;
        bytes.push(if value > 0 { byte | 0x80 } else { byte });
        if value == 0 {
            return bytes;
        }
    }
}

/// A string with its length (MQTT 1.5.3).
pub fn text(text: &str) -> Vec<u8> {
    binary(text.as_bytes())
}

/// Bytes with their length (MQTT 5 1.5.6).
pub fn binary(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u16).to_be_bytes()[..], bytes].concat()
}

/// A packet of its first byte and its body.
pub fn framed(first: u8, body: &[u8]) -> Vec<u8> {
    [vec![first], variable(body.len()), body.to_vec()].concat()
}

/// Property blocks of MQTT 5 (2.2.2): builders for one property each, and the reader of a whole block.
pub mod property {
    use super::{text, variable};

    pub const PAYLOAD_FORMAT: u8 = 0x01;
    pub const MESSAGE_EXPIRY: u8 = 0x02;
    pub const CONTENT_TYPE: u8 = 0x03;
    pub const RESPONSE_TOPIC: u8 = 0x08;
    pub const CORRELATION_DATA: u8 = 0x09;
    pub const SUBSCRIPTION_ID: u8 = 0x0b;
    pub const SESSION_EXPIRY: u8 = 0x11;
    pub const ASSIGNED_CLIENT_ID: u8 = 0x12;
    pub const AUTHENTICATION_METHOD: u8 = 0x15;
    pub const AUTHENTICATION_DATA: u8 = 0x16;
    pub const REQUEST_PROBLEM_INFORMATION: u8 = 0x17;
    pub const WILL_DELAY: u8 = 0x18;
    pub const REQUEST_RESPONSE_INFORMATION: u8 = 0x19;
    pub const RESPONSE_INFORMATION: u8 = 0x1a;
    pub const REASON_STRING: u8 = 0x1f;
    pub const RECEIVE_MAXIMUM: u8 = 0x21;
    pub const TOPIC_ALIAS_MAXIMUM: u8 = 0x22;
    pub const TOPIC_ALIAS: u8 = 0x23;
    pub const USER_PROPERTY: u8 = 0x26;
    pub const MAXIMUM_PACKET_SIZE: u8 = 0x27;
    pub const SHARED_AVAILABLE: u8 = 0x2a;

    pub fn byte(id: u8, value: u8) -> Vec<u8> {
        vec![id, value]
    }

    pub fn two(id: u8, value: u16) -> Vec<u8> {
        [&[id][..], &value.to_be_bytes()].concat()
    }

    pub fn four(id: u8, value: u32) -> Vec<u8> {
        [&[id][..], &value.to_be_bytes()].concat()
    }

    /// A string or binary data.
    pub fn string(id: u8, value: &str) -> Vec<u8> {
        [vec![id], text(value)].concat()
    }

    pub fn user(key: &str, value: &str) -> Vec<u8> {
        [vec![USER_PROPERTY], text(key), text(value)].concat()
    }

    pub fn subscription_id(number: usize) -> Vec<u8> {
        [vec![SUBSCRIPTION_ID], variable(number)].concat()
    }

    /// Every property of a block: its identifier and its value as encoded.
    pub fn parse(mut block: &[u8]) -> Vec<(u8, Vec<u8>)> {
        let mut all = vec![];
        while let Some((id, rest)) = block.split_first() {
            let string = |at: usize| 2 + usize::from(u16::from_be_bytes([rest[at], rest[at + 1]]));
            let length = match id {
                0x01 | 0x17 | 0x19 | 0x24 | 0x25 | 0x28..=0x2a => 1,
                0x13 | 0x21..=0x23 => 2,
                0x02 | 0x11 | 0x18 | 0x27 => 4,
                0x0b => 1 + rest.iter().take_while(|byte| *byte & 0x80 != 0).count(),
                0x26 => string(0) + string(string(0)),
                0x03 | 0x08 | 0x09 | 0x12 | 0x15 | 0x16 | 0x1a | 0x1c | 0x1f => string(0),
                _ => panic!("unknown property {id:#x}"),
            };
            let (value, rest) = rest.split_at(length);
            all.push((*id, value.to_vec()));
            block = rest;
        }
        all
    }

    /// The values of one property, in their order.
    pub fn all(block: &[u8], wanted: u8) -> Vec<Vec<u8>> {
        parse(block).into_iter().filter(|(id, _)| *id == wanted).map(|(_, value)| value).collect()
    }

    /// The number in a property that comes at most once.
    pub fn number(block: &[u8], wanted: u8) -> Option<u32> {
        let values = all(block, wanted);
        assert!(values.len() <= 1, "{wanted:#x} twice: {block:x?}");
        let value = values.first()?;
        if wanted == SUBSCRIPTION_ID {
            return Some(value.iter().rev().fold(0, |sum, byte| sum << 7 | u32::from(byte & 0x7f)));
        }
        Some(value.iter().fold(0, |sum, byte| sum << 8 | u32::from(*byte)))
    }
}
