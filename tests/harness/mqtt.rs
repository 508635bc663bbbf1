//! A small MQTT 3.1.1 client that does exactly what it is told: the standard's good clients cannot misbehave on purpose.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use super::PATIENCE;

/// What acknowledges a PINGREQ, in the place of a packet id.
const PINGED: u16 = 0;

/// A connected client without keep alive. Dropped, its connection closes without DISCONNECT.
pub(crate) struct Client {
    stream: TcpStream,
    input: Vec<u8>,
    messages: VecDeque<Message>,
    acknowledged: VecDeque<u16>,
    next_id: u16,
}

/// Where a broker is and as whom one enters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Door {
    /// Where MQTT is spoken without TLS.
    pub(crate) address: SocketAddr,
    /// User name and password; nobody's without.
    pub(crate) login: Option<(&'static str, &'static str)>,
}

/// A message that came in.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Message {
    /// Its topic.
    pub(crate) topic: String,
    /// Its payload.
    pub(crate) payload: Vec<u8>,
    /// It is a kept copy.
    pub(crate) retain: bool,
}

impl Client {
    /// Connects with a clean session; the will, topic and payload, is retained.
    pub(crate) fn connect(broker: Door, id: &str, will: Option<(&str, &str)>) -> io::Result<Client> {
        Client::greet(broker.address, &broker.hello(id, true, will)).map(|(client, _)| client)
    }

    /// Connects to a session that outlives its connections; whether it was there before.
    pub(crate) fn resume(broker: Door, id: &str) -> io::Result<(Client, bool)> {
        Client::greet(broker.address, &broker.hello(id, false, None))
    }

    fn greet(broker: SocketAddr, hello: &[u8]) -> io::Result<(Client, bool)> {
        let stream = TcpStream::connect(broker)?;
        stream.set_nodelay(true)?;
        let mut client =
            Client { stream, input: Vec::new(), messages: VecDeque::new(), acknowledged: VecDeque::new(), next_id: 0 };
        client.write(hello)?;
        let (_, connack) = client.packet(Instant::now() + PATIENCE)?.ok_or(ErrorKind::TimedOut)?;
        match connack[..] {
            [present, 0] => Ok((client, present == 1)),
            _ => Err(io::Error::other(format!("CONNACK {connack:?}"))),
        }
    }

    /// Publishes at QoS 0.
    pub(crate) fn send(&mut self, topic: &str, payload: &[u8]) -> io::Result<()> {
        self.write(&publish(topic, payload, false, 0))
    }

    /// Sends bytes as they are.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Waits until the broker has read everything that was sent.
    pub(crate) fn ping(&mut self) -> io::Result<()> {
        self.write(&[0xc0, 0])?;
        self.wait_for_acknowledgement(PINGED)
    }

    /// Reads until something is acknowledged that was published at QoS 1; its packet id.
    pub(crate) fn next_acknowledgement(&mut self) -> io::Result<u16> {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(id) = self.acknowledged.pop_front() {
                return Ok(id);
            }
            let packet = self.packet(until)?.ok_or(ErrorKind::TimedOut)?;
            self.take(packet)?;
        }
    }

    /// Publishes at QoS 1 and waits for the acknowledgement.
    pub(crate) fn publish(&mut self, topic: &str, payload: &[u8], retain: bool) -> io::Result<()> {
        let id = self.new_id();
        self.write(&publish(topic, payload, retain, id))?;
        self.wait_for_acknowledgement(id)
    }

    /// Subscribes at QoS 1 and waits for the acknowledgement.
    pub(crate) fn subscribe(&mut self, filter: &str) -> io::Result<()> {
        let id = self.new_id();
        self.write(&subscribe(&[filter], 1, id))?;
        self.wait_for_acknowledgement(id)
    }

    /// The next message, if one comes within `limit`.
    pub(crate) fn next(&mut self, limit: Duration) -> io::Result<Option<Message>> {
        let until = Instant::now() + limit;
        while self.messages.is_empty() {
            let Some(packet) = self.packet(until)? else { return Ok(None) };
            self.take(packet)?;
        }
        Ok(self.messages.pop_front())
    }

    /// Says goodbye: the will is discarded.
    pub(crate) fn disconnect(mut self) -> io::Result<()> {
        self.write(&[0xe0, 0])?;
        self.stream.shutdown(Shutdown::Write)
    }

    fn new_id(&mut self) -> u16 {
        self.next_id = self.next_id.checked_add(1).unwrap_or(1);
        self.next_id
    }

    fn wait_for_acknowledgement(&mut self, id: u16) -> io::Result<()> {
        let until = Instant::now() + PATIENCE;
        while !self.acknowledged.contains(&id) {
            let packet = self.packet(until)?.ok_or(ErrorKind::TimedOut)?;
            self.take(packet)?;
        }
        self.acknowledged.retain(|known| *known != id);
        Ok(())
    }

    /// Takes in what comes within `limit`, each message handed to `record` before it is acknowledged.
    pub(crate) fn record(&mut self, limit: Duration, mut record: impl FnMut(&Message)) -> io::Result<()> {
        let until = Instant::now() + limit;
        while let Some((header, body)) = self.packet(until)? {
            if header >> 4 != 3 {
                self.take((header, body))?;
                continue;
            }
            let (message, id) = split_publish(header, &body).ok_or(ErrorKind::InvalidData)?;
            record(&message);
            if let Some(id) = id {
                self.write(&framed(0x40, &id))?;
            }
        }
        Ok(())
    }

    fn take(&mut self, (header, body): (u8, Vec<u8>)) -> io::Result<()> {
        match header >> 4 {
            3 => {
                let (message, id) = split_publish(header, &body).ok_or(ErrorKind::InvalidData)?;
                if let Some(id) = id {
                    self.write(&framed(0x40, &id))?;
                }
                self.messages.push_back(message);
            }
            // PUBACK and SUBACK.
            4 | 9 if body.len() >= 2 => self.acknowledged.push_back(u16::from_be_bytes([body[0], body[1]])),
            13 => self.acknowledged.push_back(PINGED),
            _ => {}
        }
        Ok(())
    }

    /// The next packet, or nothing if `until` comes first.
    fn packet(&mut self, until: Instant) -> io::Result<Option<(u8, Vec<u8>)>> {
        loop {
            if let Some((header, body, used)) = split_packet(&self.input) {
                self.input.drain(..used);
                return Ok(Some((header, body)));
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.stream.set_read_timeout(Some(left))?;
            let mut bytes = [0; 16 * 1024];
            match self.stream.read(&mut bytes) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(count) => self.input.extend(&bytes[..count]),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }
}

impl Door {
    /// The same for nobody.
    pub(crate) fn anonymous(self) -> Door {
        Door { login: None, ..self }
    }

    /// A connection, and nothing sent yet.
    pub(crate) fn open(&self) -> io::Result<TcpStream> {
        TcpStream::connect(self.address)
    }

    /// A CONNECT without keep alive; the will, topic and payload, is retained.
    pub(crate) fn hello(&self, id: &str, clean: bool, will: Option<(&str, &str)>) -> Vec<u8> {
        let will_flags = if will.is_some() { 0x04 | 0x08 | 0x20 } else { 0 };
        let login_flags = if self.login.is_some() { 0xc0 } else { 0 };
        let mut body =
            [text("MQTT"), vec![4, u8::from(clean) << 1 | will_flags | login_flags, 0, 0], text(id)].concat();
        for (first, second) in will.into_iter().chain(self.login) {
            body.extend([text(first), text(second)].concat());
        }
        framed(0x10, &body)
    }
}

/// A PUBLISH at QoS 1, or at QoS 0 if its id is 0.
pub(crate) fn publish(topic: &str, payload: &[u8], retain: bool, id: u16) -> Vec<u8> {
    let mut body = text(topic);
    if id != 0 {
        body.extend(id.to_be_bytes());
    }
    body.extend(payload);
    framed(0x30 | u8::from(id != 0) << 1 | u8::from(retain), &body)
}

/// A SUBSCRIBE to all these filters.
pub(crate) fn subscribe(filters: &[&str], qos: u8, id: u16) -> Vec<u8> {
    let filters = filters.iter().flat_map(|filter| [text(filter), vec![qos]].concat());
    framed(0x82, &id.to_be_bytes().into_iter().chain(filters).collect::<Vec<u8>>())
}

fn framed(header: u8, body: &[u8]) -> Vec<u8> {
    let mut packet = vec![header];
    let mut length = body.len();
    loop {
        let more = length > 127;
        packet.push((length % 128) as u8 | if more { 0x80 } else { 0 });
        length /= 128;
        if !more {
            break;
        }
    }
    packet.extend(body);
    packet
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u16).to_be_bytes(), text.as_bytes()].concat()
}

fn split_text(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk()?;
    rest.split_at_checked(usize::from(u16::from_be_bytes(*length)))
}

/// A PUBLISH, and its packet id if it is at QoS 1.
fn split_publish(header: u8, body: &[u8]) -> Option<(Message, Option<[u8; 2]>)> {
    let (topic, mut payload) = split_text(body)?;
    let mut id = None;
    if header & 0x06 != 0 {
        let (first, rest) = payload.split_first_chunk()?;
        (id, payload) = (Some(*first), rest);
    }
    let topic = String::from_utf8_lossy(topic).into_owned();
    Some((Message { topic, payload: payload.to_vec(), retain: header & 1 == 1 }, id))
}

/// Header, body and length of the first packet, if it is complete.
fn split_packet(input: &[u8]) -> Option<(u8, Vec<u8>, usize)> {
    let mut length = 0;
    for (index, byte) in input.iter().skip(1).take(4).enumerate() {
        length |= usize::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            let start = index + 2;
            let body = input.get(start..start + length)?;
            return Some((input[0], body.to_vec(), start + length));
        }
    }
    None
}
