//! A client that speaks bytes, so that tests see exactly what goes over the wire.

use std::collections::VecDeque;
use std::net::SocketAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::wire::{framed, property, text, variable};
use super::{TestBroker, patient};

/// Where clients connect.
pub trait Listens {
    fn address(&self) -> SocketAddr;
}

impl Listens for TestBroker {
    fn address(&self) -> SocketAddr {
        self.address
    }
}

/// A raw client of one protocol version.
pub struct Raw {
    pub stream: TcpStream,
    pub v5: bool,
    /// Packets that came before one that was awaited.
    early: VecDeque<(u8, Vec<u8>)>,
}

/// A CONNECT to be adjusted.
pub struct Hello {
    pub client_id: &'static str,
    pub clean: bool,
    pub keep_alive: u16,
    /// Topic, payload, QoS, retain.
    pub will: Option<(&'static str, &'static str, u8, bool)>,
    /// User name and password.
    pub login: Option<(&'static str, &'static str)>,
    /// Encoded CONNECT properties (MQTT 5).
    pub properties: Vec<u8>,
    /// Encoded will properties (MQTT 5).
    pub will_properties: Vec<u8>,
}

/// The answer to a CONNECT.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnAck {
    pub session_present: bool,
    pub code: u8,
    /// Encoded properties (MQTT 5).
    pub properties: Vec<u8>,
}

/// A PUBACK, PUBREC, PUBREL or PUBCOMP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ack {
    pub first: u8,
    pub packet_id: u16,
    pub reason: u8,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    pub topic: String,
    pub payload: String,
    pub qos: u8,
    pub retain: bool,
    pub dup: bool,
    pub packet_id: u16,
    pub properties: Vec<u8>,
}

pub const PUBACK: u8 = 0x40;
pub const PUBREC: u8 = 0x50;
pub const PUBREL: u8 = 0x62;
pub const PUBCOMP: u8 = 0x70;

impl Default for Hello {
    fn default() -> Self {
        Hello {
            client_id: "c",
            clean: true,
            keep_alive: 60,
            will: None,
            login: None,
            properties: vec![],
            will_properties: vec![],
        }
    }
}

/// Session expiry interval, as a CONNECT property.
pub fn session_expiry(seconds: u32) -> Vec<u8> {
    property::four(property::SESSION_EXPIRY, seconds)
}

/// A session that outlives its connection, on either version.
pub fn lasting(client_id: &'static str, v5: bool) -> Hello {
    let properties = if v5 { session_expiry(60) } else { vec![] };
    Hello { client_id, clean: false, properties, ..Hello::default() }
}

impl Hello {
    pub fn bytes(&self, v5: bool) -> Vec<u8> {
        let mut body = text("MQTT");
        let will_flags = self.will.map_or(0, |(_, _, qos, retain)| 0x04 | qos << 3 | u8::from(retain) << 5);
        let login_flags = if self.login.is_some() { 0xc0 } else { 0 };
        body.extend([if v5 { 5 } else { 4 }, u8::from(self.clean) << 1 | will_flags | login_flags]);
        body.extend(self.keep_alive.to_be_bytes());
        if v5 {
            body.extend(block(&self.properties));
        }
        body.extend(text(self.client_id));
        if let Some((topic, payload, ..)) = self.will {
            if v5 {
                body.extend(block(&self.will_properties));
            }
            body.extend([text(topic), text(payload)].concat());
        }
        if let Some((user, password)) = self.login {
            body.extend([text(user), text(password)].concat());
        }
        framed(0x10, &body)
    }
}

fn block(properties: &[u8]) -> Vec<u8> {
    [variable(properties.len()), properties.to_vec()].concat()
}

impl Raw {
    pub async fn open(broker: &impl Listens, v5: bool) -> Raw {
        Raw::open_address(broker.address(), v5).await
    }

    /// As [`Raw::open`], for a task that cannot borrow the broker.
    pub async fn open_address(address: SocketAddr, v5: bool) -> Raw {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Raw { stream, v5, early: VecDeque::new() }
    }

    /// Sends a CONNECT; the answer may be a refusal.
    pub async fn greet(broker: &impl Listens, v5: bool, hello: &Hello) -> (Raw, ConnAck) {
        let mut raw = Raw::open(broker, v5).await;
        raw.send(&hello.bytes(v5)).await;
        let answer = raw.connack().await;
        (raw, answer)
    }

    /// Connects; also says whether the session was present.
    pub async fn hello(broker: &impl Listens, v5: bool, hello: Hello) -> (Raw, bool) {
        let (raw, answer) = Raw::greet(broker, v5, &hello).await;
        assert_eq!(answer.code, 0, "{answer:x?}");
        (raw, answer.session_present)
    }

    pub async fn connect(broker: &impl Listens, v5: bool, client_id: &'static str) -> Raw {
        Raw::hello(broker, v5, Hello { client_id, ..Hello::default() }).await.0
    }

    pub async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }

    /// The next packet: first byte and body.
    pub async fn packet(&mut self) -> (u8, Vec<u8>) {
        patient(self.next()).await.expect("the broker closed the connection")
    }

    /// The next packet, or `None` at the end of the connection.
    pub async fn next(&mut self) -> Option<(u8, Vec<u8>)> {
        match self.early.pop_front() {
            Some(packet) => Some(packet),
            None => self.read().await,
        }
    }

    async fn read(&mut self) -> Option<(u8, Vec<u8>)> {
        let first = self.stream.read_u8().await.ok()?;
        let mut length = 0usize;
        for shift in 0..4 {
            let byte = self.stream.read_u8().await.ok()?;
            length |= usize::from(byte & 0x7f) << (7 * shift);
            if byte & 0x80 == 0 {
                break;
            }
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).await.ok()?;
        Some((first, body))
    }

    pub async fn connack(&mut self) -> ConnAck {
        let (first, body) = self.packet().await;
        assert_eq!(first, 0x20, "CONNACK expected: {body:x?}");
        assert!(body[0] <= 1, "reserved bits of CONNACK are 0 (MQTT 3.2.2.1): {body:x?}");
        let properties = if body.len() > 2 { cut_block(&mut &body[2..]) } else { vec![] };
        ConnAck { session_present: body[0] == 1, code: body[1], properties }
    }

    pub async fn closed(&mut self) {
        patient(async { while self.next().await.is_some() {} }).await;
    }

    /// Awaits the end of the connection, before which nothing but a DISCONNECT of MQTT 5 may come; its reason code.
    pub async fn ended(&mut self) -> Option<u8> {
        let last = patient(self.next()).await?;
        assert!(self.v5 && last.0 == 0xe0, "nothing but DISCONNECT of MQTT 5 may come: {last:x?}");
        assert_eq!(patient(self.next()).await, None, "nothing comes after DISCONNECT");
        Some(last.1.first().copied().unwrap_or(0))
    }

    /// Says goodbye and waits until the broker has taken note.
    pub async fn leave(mut self) {
        self.send(&[0xe0, 0]).await;
        self.closed().await;
    }

    /// Ends the connection without a goodbye and waits until the broker has taken note.
    pub async fn lose(mut self) {
        self.stream.shutdown().await.unwrap();
        self.closed().await;
    }

    /// Breaks the connection off, as the end of a process does that had not read everything.
    pub fn reset(self) {
        self.stream.set_zero_linger().unwrap();
    }

    /// A PUBLISH without properties.
    pub async fn publish(&mut self, topic: &str, payload: &str, qos: u8, retain: bool, packet_id: u16) {
        self.publish_flags(topic, payload, qos << 1 | u8::from(retain), packet_id).await;
    }

    pub async fn publish_flags(&mut self, topic: &str, payload: &str, flags: u8, packet_id: u16) {
        self.publish_properties(topic, payload, flags, packet_id, &[]).await;
    }

    pub async fn publish_properties(&mut self, topic: &str, payload: &str, flags: u8, packet_id: u16, all: &[u8]) {
        let mut body = text(topic);
        if flags & 0x06 != 0 {
            body.extend(packet_id.to_be_bytes());
        }
        if self.v5 {
            body.extend(block(all));
        }
        body.extend(payload.as_bytes());
        self.send(&framed(0x30 | flags, &body)).await;
    }

    /// Publishes and completes the exchange: the broker has accepted the message.
    pub async fn complete(&mut self, topic: &str, payload: &str, qos: u8, retain: bool) {
        self.publish(topic, payload, qos, retain, 1000).await;
        match qos {
            0 => self.nothing().await,
            1 => self.acked(PUBACK, 1000).await,
            _ => {
                self.acked(PUBREC, 1000).await;
                self.respond(PUBREL, 1000).await;
                self.acked(PUBCOMP, 1000).await;
            }
        }
    }

    /// The next packet, which must be an acknowledgement.
    pub async fn ack(&mut self) -> Ack {
        let (first, body) = self.packet().await;
        assert!([PUBACK, PUBREC, PUBREL, PUBCOMP].contains(&first), "acknowledgement expected: {first:x} {body:x?}");
        assert!(self.v5 || body.len() == 2, "{body:x?}");
        let reason = body.get(2).copied().unwrap_or(0);
        Ack { first, packet_id: u16::from_be_bytes([body[0], body[1]]), reason }
    }

    /// The next packet must be this acknowledgement, and a good one.
    pub async fn acked(&mut self, first: u8, packet_id: u16) {
        let ack = self.ack().await;
        assert_eq!((ack.first, ack.packet_id), (first, packet_id), "{ack:x?}");
        // 0x10: nobody has subscribed (MQTT 5 3.4.2.1, 3.5.2.1).
        assert!(ack.reason == 0 || ack.reason == 0x10, "{ack:x?}");
    }

    /// Sends an acknowledgement.
    pub async fn respond(&mut self, first: u8, packet_id: u16) {
        let [high, low] = packet_id.to_be_bytes();
        self.send(&[first, 2, high, low]).await;
    }

    /// Subscribes and gives the reason code.
    pub async fn subscribe(&mut self, filter: &str, options: u8) -> u8 {
        self.subscribe_all(&[(filter, options)], &[]).await[0]
    }

    /// Subscribes to many filters in one packet and gives their reason codes. SUBACK must be the next packet.
    pub async fn subscribe_all(&mut self, filters: &[(&str, u8)], properties: &[u8]) -> Vec<u8> {
        self.send(&self.subscribe_bytes(filters, properties)).await;
        self.answer(0x90, 9).await
    }

    pub fn subscribe_bytes(&self, filters: &[(&str, u8)], properties: &[u8]) -> Vec<u8> {
        let mut body = vec![0, 9];
        if self.v5 {
            body.extend(block(properties));
        }
        for (filter, options) in filters {
            body.extend(text(filter));
            body.push(*options);
        }
        framed(0x82, &body)
    }

    pub async fn unsubscribe(&mut self, filter: &str) {
        self.unsubscribe_all(&[filter]).await;
    }

    /// Unsubscribes and gives the reason codes, which only MQTT 5 has. UNSUBACK must be the next packet.
    pub async fn unsubscribe_all(&mut self, filters: &[&str]) -> Vec<u8> {
        let mut body = vec![0, 8];
        if self.v5 {
            body.push(0);
        }
        filters.iter().for_each(|filter| body.extend(text(filter)));
        self.send(&framed(0xa2, &body)).await;
        self.answer(0xb0, 8).await
    }

    async fn answer(&mut self, first: u8, packet_id: u8) -> Vec<u8> {
        let (kind, body) = self.packet().await;
        assert_eq!((kind, &body[..2]), (first, &[0, packet_id][..]), "{body:x?}");
        let mut rest = &body[2..];
        if self.v5 {
            cut_block(&mut rest);
        }
        rest.to_vec()
    }

    /// Awaits a PUBLISH and acknowledges it not.
    pub async fn message(&mut self) -> Message {
        let (first, body) = self.packet().await;
        self.parse(first, &body)
    }

    /// Reads a PUBLISH.
    pub fn parse(&self, first: u8, body: &[u8]) -> Message {
        assert_eq!(first & 0xf0, 0x30, "PUBLISH expected, got {first:x} {body:x?}");
        let mut rest = body;
        let length = cut(&mut rest, 2);
        let topic = cut(&mut rest, u16::from_be_bytes([length[0], length[1]]).into());
        let topic = String::from_utf8(topic.to_vec()).unwrap();
        let qos = first >> 1 & 3;
        let packet_id = if qos > 0 { u16::from_be_bytes(cut(&mut rest, 2).try_into().unwrap()) } else { 0 };
        let properties = if self.v5 { cut_block(&mut rest) } else { vec![] };
        let payload = String::from_utf8(rest.to_vec()).unwrap();
        Message { topic, payload, qos, retain: first & 1 == 1, dup: first & 8 == 8, packet_id, properties }
    }

    /// Awaits a PUBLISH and completes its exchange; what comes in between waits.
    pub async fn take(&mut self) -> Message {
        let message = self.message().await;
        match message.qos {
            0 => {}
            1 => self.respond(PUBACK, message.packet_id).await,
            _ => {
                self.respond(PUBREC, message.packet_id).await;
                let [high, low] = message.packet_id.to_be_bytes();
                loop {
                    let packet = patient(self.read()).await.expect("the broker closed the connection");
                    if packet == (PUBREL, vec![high, low]) {
                        break;
                    }
                    self.early.push_back(packet);
                }
                self.respond(PUBCOMP, message.packet_id).await;
            }
        }
        message
    }

    /// Takes a message for each payload, in this order.
    pub async fn takes(&mut self, payloads: &[&str]) {
        for payload in payloads {
            assert_eq!(self.take().await.payload, *payload);
        }
    }

    /// Proves that nothing is on its way: the answer to a PING comes next.
    pub async fn nothing(&mut self) {
        self.send(&[0xc0, 0]).await;
        assert_eq!(self.packet().await, (0xd0, vec![]), "nothing but PINGRESP");
    }

    /// Proves that nothing that the broker had accepted is on its way: a message of its own, accepted later, comes next.
    pub async fn quiet(&mut self) {
        assert!(self.subscribe("quiet", 0).await < 0x80);
        self.publish("quiet", "quiet", 0, false, 0).await;
        assert_eq!(self.message().await.topic, "quiet", "nothing but its own message");
        self.unsubscribe("quiet").await;
    }
}

fn cut<'a>(rest: &mut &'a [u8], count: usize) -> &'a [u8] {
    let (head, tail) = rest.split_at(count);
    *rest = tail;
    head
}

fn cut_block(rest: &mut &[u8]) -> Vec<u8> {
    let mut length = 0;
    for shift in 0..4 {
        let byte = cut(rest, 1)[0];
        length |= usize::from(byte & 0x7f) << (7 * shift);
        if byte & 0x80 == 0 {
            break;
        }
    }
    cut(rest, length).to_vec()
}
