//! What clients are made to do, and the bytes of it. Values are mostly valid, so that a fuzzer gets beyond the decoder.

use arbitrary::{Arbitrary, Result, Unstructured};

use super::wire::{binary, framed, property, text, variable};

#[derive(Debug, Arbitrary)]
pub struct Script {
    pub steps: Vec<Step>,
}

#[derive(Debug, Arbitrary)]
pub struct Step {
    /// Which of two clients acts.
    pub second: bool,
    /// So many bytes of what is sent go ahead of the rest; 0 sends them together.
    pub split: u8,
    /// The broker may act before the next step.
    pub pause: bool,
    pub action: Action,
}

#[derive(Debug, Arbitrary)]
pub enum Action {
    /// On a new socket; the one before is left open.
    Connect(Hello),
    ConnectAgainOnSameSocket(Hello),
    Publish(Publication),
    /// Sends again, with DUP, what was published at QoS 2 and not released.
    Resend,
    Subscribe {
        filters: Vec<(Filter, u8)>,
        properties: Properties<2>,
    },
    Unsubscribe {
        filters: Vec<Filter>,
        properties: Properties<3>,
    },
    /// Answers every message received so far.
    Answer,
    /// PUBACK, PUBREC, PUBREL or PUBCOMP that nobody expects.
    WrongAnswer {
        kind: u8,
        packet_id: u8,
        reason: Option<u8>,
        properties: Properties<4>,
    },
    Ping,
    Disconnect {
        reason: Option<u8>,
        properties: Properties<5>,
    },
    Raw(Bytes),
    Close {
        reset: bool,
    },
}

#[derive(Debug, Arbitrary)]
pub struct Hello {
    pub v5: bool,
    pub id: ClientId,
    pub clean: bool,
    pub keep_alive: u8,
    pub will: Option<Will>,
    pub user: Option<Bytes>,
    pub properties: Properties<0>,
    /// Answers messages as they come.
    pub answers: bool,
    /// Never reads.
    pub deaf: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Arbitrary)]
pub enum ClientId {
    Own,
    Shared,
    Empty,
    TooLong,
    Reserved,
}

#[derive(Debug, Arbitrary)]
pub struct Will {
    pub topic: Topic,
    pub payload: Bytes,
    pub qos: u8,
    pub retain: bool,
    pub properties: Properties<6>,
}

#[derive(Debug, Arbitrary)]
pub struct Publication {
    pub topic: Topic,
    pub qos: u8,
    pub retain: bool,
    /// Bytes of payload.
    pub size: u16,
    pub properties: Properties<1>,
}

#[derive(Debug, Clone, Copy)]
pub struct Topic(pub &'static str);

#[derive(Debug, Clone, Copy)]
pub struct Filter(pub &'static str);

/// Up to 255 bytes.
#[derive(Debug)]
pub struct Bytes(pub Vec<u8>);

/// Encoded properties of a kind of packet; one in 16 may be of any kind.
#[derive(Debug, Default)]
pub struct Properties<const KIND: usize> {
    block: Vec<u8>,
    /// The message expires.
    expire: bool,
}

const TOPICS: [&str; 8] = ["t", "t/a", "a/b/c", "/", "ä/€", "t/", "$SYS/x", "t/+"];

const FILTERS: [&str; 16] = [
    "t",
    "t/#",
    "#",
    "+",
    "+/+",
    "t/+",
    "t/a",
    "/",
    "ä/€",
    "a/+/c",
    "$SYS/#",
    "$SYS/broker/uptime",
    "$share/g/t",
    "t/#/x",
    "",
    "a/a/a/a/a/a/a/a/a/a/a/a/a/a/a/a/a/a/a/a/a/a/a/a/a/a/a/a/a/a/a/a/a/a",
];

/// By the `KIND` of [`Properties`]: CONNECT, PUBLISH, SUBSCRIBE, UNSUBSCRIBE, acknowledgements, DISCONNECT, will.
const PROPERTIES: [&[u8]; 7] = [
    &[0x11, 0x21, 0x27, 0x22, 0x19, 0x17, 0x26, 0x15, 0x16],
    &[0x01, 0x02, 0x03, 0x08, 0x09, 0x26, 0x23],
    &[0x0b, 0x26],
    &[0x26],
    &[0x1f, 0x26],
    &[0x11, 0x1f, 0x26],
    &[0x18, 0x01, 0x02, 0x03, 0x08, 0x09, 0x26],
];

impl<'a> Arbitrary<'a> for Topic {
    fn arbitrary(bytes: &mut Unstructured<'a>) -> Result<Self> {
        Ok(Topic(bytes.choose(&TOPICS)?))
    }
}

impl<'a> Arbitrary<'a> for Filter {
    fn arbitrary(bytes: &mut Unstructured<'a>) -> Result<Self> {
        Ok(Filter(bytes.choose(&FILTERS)?))
    }
}

impl<'a> Arbitrary<'a> for Bytes {
    fn arbitrary(bytes: &mut Unstructured<'a>) -> Result<Self> {
        let length = usize::from(u8::arbitrary(bytes)?).min(bytes.len());
        Ok(Bytes(bytes.bytes(length)?.to_vec()))
    }
}

impl<'a, const KIND: usize> Arbitrary<'a> for Properties<KIND> {
    fn arbitrary(bytes: &mut Unstructured<'a>) -> Result<Self> {
        let (mut block, mut expire) = (vec![], false);
        for _ in 0..bytes.int_in_range(0..=3)? {
            let any = bytes.ratio(1, 16)?;
            let id = if any { u8::arbitrary(bytes)? & 0x3f } else { *bytes.choose(PROPERTIES[KIND])? };
            // Mostly small: those are at the edge of something.
            let number = if bytes.ratio(1, 4)? { u32::arbitrary(bytes)? } else { u8::arbitrary(bytes)?.into() };
            expire |= id == property::MESSAGE_EXPIRY;
            block.extend(one_property(id, number, bytes.choose(&["", "p", "t/a", "ä/€", "+"])?));
        }
        Ok(Properties { block, expire })
    }
}

fn one_property(id: u8, number: u32, word: &str) -> Vec<u8> {
    match id {
        0x01 | 0x17 | 0x19 | 0x24 | 0x25 | 0x28..=0x2a => property::byte(id, number as u8),
        0x13 | 0x21..=0x23 => property::two(id, number as u16),
        0x02 | 0x11 | 0x18 | 0x27 => property::four(id, number),
        0x0b => property::subscription_id(number as usize & 0x0fff_ffff),
        0x26 => property::user(word, word),
        _ => property::string(id, word),
    }
}

/// A CONNECT as plain as can be.
pub fn greeting() -> Hello {
    Hello {
        v5: false,
        id: ClientId::Own,
        clean: true,
        keep_alive: 60,
        will: None,
        user: None,
        properties: Properties::default(),
        answers: true,
        deaf: false,
    }
}

/// A message as plain as can be.
pub fn publication() -> Publication {
    Publication { topic: Topic("bystander"), qos: 0, retain: false, size: 0, properties: Properties::default() }
}

impl Hello {
    /// CONNECT.
    pub fn bytes(&self, client_id: &str) -> Vec<u8> {
        let will = self.will.as_ref();
        let will_flags = will.map_or(0, |will| 0x04 | (will.qos % 3) << 3 | u8::from(will.retain) << 5);
        let user_flags = if self.user.is_some() { 0xc0 } else { 0 };
        let mut body = text("MQTT");
        body.extend([if self.v5 { 5 } else { 4 }, u8::from(self.clean) << 1 | will_flags | user_flags]);
        body.extend([0, self.keep_alive]);
        body.extend(block(self.v5, &self.properties.block));
        body.extend(text(client_id));
        if let Some(will) = will {
            body.extend(block(self.v5, &will.properties.block));
            body.extend([text(will.topic.0), binary(&will.payload.0)].concat());
        }
        if let Some(user) = &self.user {
            body.extend([text("user"), binary(&user.0)].concat());
        }
        framed(0x10, &body)
    }
}

impl Publication {
    /// Payload bytes beside the tag.
    const SIZE_MAX: u16 = 5000;

    /// Every topic name that a client may publish on.
    pub fn topics() -> impl Iterator<Item = &'static str> {
        TOPICS.into_iter().filter(|topic| !topic.starts_with('$') && !topic.contains('+'))
    }

    pub fn qos(&self) -> u8 {
        self.qos % 3
    }

    /// Whether it must reach everybody who subscribed: not if it may expire, or if its topic is the broker's own.
    pub fn must_arrive(&self, v5: bool) -> bool {
        let expires = v5 && self.properties.expire;
        !expires && !self.topic.0.starts_with('$')
    }

    /// PUBLISH; its payload begins with `tag`.
    pub fn bytes(&self, v5: bool, packet_id: u16, tag: &[u8]) -> Vec<u8> {
        let mut body = text(self.topic.0);
        if self.qos() > 0 {
            body.extend(packet_id.to_be_bytes());
        }
        body.extend(block(v5, &self.properties.block));
        body.extend(tag);
        body.resize(body.len() + usize::from(self.size % Self::SIZE_MAX), 0x55);
        framed(0x30 | self.qos() << 1 | u8::from(self.retain), &body)
    }
}

impl Action {
    /// The packet of an action that always has the same.
    pub fn bytes(&self, v5: bool) -> Vec<u8> {
        match self {
            Action::Subscribe { filters, properties } => {
                let filters =
                    filters.iter().flat_map(|(filter, options)| [text(filter.0), vec![options & 0x2f]].concat());
                framed(0x82, &[vec![0, 1], block(v5, &properties.block), filters.collect()].concat())
            }
            Action::Unsubscribe { filters, properties } => {
                let filters = filters.iter().flat_map(|filter| text(filter.0));
                framed(0xa2, &[vec![0, 2], block(v5, &properties.block), filters.collect()].concat())
            }
            Action::WrongAnswer { kind, packet_id, reason, properties } => {
                let first = [0x40, 0x50, 0x62, 0x70][usize::from(kind % 4)];
                framed(first, &[vec![0, *packet_id], reasoned(v5, *reason, &properties.block)].concat())
            }
            Action::Ping => vec![0xc0, 0],
            Action::Disconnect { reason, properties } => framed(0xe0, &reasoned(v5, *reason, &properties.block)),
            Action::Raw(bytes) => bytes.0.clone(),
            _ => vec![],
        }
    }
}

fn reasoned(v5: bool, reason: Option<u8>, properties: &[u8]) -> Vec<u8> {
    match reason {
        Some(reason) if v5 => [vec![reason], block(v5, properties)].concat(),
        _ => vec![],
    }
}

fn block(v5: bool, properties: &[u8]) -> Vec<u8> {
    if v5 { [variable(properties.len()), properties.to_vec()].concat() } else { vec![] }
}
