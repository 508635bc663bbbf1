//! A small MQTT 3.1.1 client that does exactly what it is told: the standard's good clients cannot misbehave on purpose.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use super::PATIENCE;

/// A connected client without keep alive. Dropped, its connection closes without DISCONNECT.
pub(crate) struct Client {
    stream: TcpStream,
    input: Vec<u8>,
    messages: VecDeque<Message>,
    acknowledged: VecDeque<u16>,
    next_id: u16,
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
    pub(crate) fn connect(broker: SocketAddr, id: &str, will: Option<(&str, &str)>) -> io::Result<Client> {
        let stream = TcpStream::connect(broker)?;
        stream.set_nodelay(true)?;
        let mut client =
            Client { stream, input: Vec::new(), messages: VecDeque::new(), acknowledged: VecDeque::new(), next_id: 0 };
        let clean = 0x02;
        let flags = if will.is_some() { clean | 0x04 | 0x08 | 0x20 } else { clean };
        let mut body = [text("MQTT"), vec![4, flags, 0, 0], text(id)].concat();
        if let Some((topic, payload)) = will {
            body.extend([text(topic), text(payload)].concat());
        }
        client.write(0x10, &body)?;
        let (_, connack) = client.packet(Instant::now() + PATIENCE)?.ok_or(ErrorKind::TimedOut)?;
        if connack.get(1) != Some(&0) {
            return Err(io::Error::other(format!("CONNACK {connack:?}")));
        }
        Ok(client)
    }

    /// Publishes at QoS 0.
    pub(crate) fn send(&mut self, topic: &str, payload: &[u8]) -> io::Result<()> {
        self.write(0x30, &[text(topic), payload.to_vec()].concat())
    }

    /// Publishes at QoS 1 and waits for the acknowledgement.
    pub(crate) fn publish(&mut self, topic: &str, payload: &[u8], retain: bool) -> io::Result<()> {
        let id = self.new_id();
        let header = if retain { 0x33 } else { 0x32 };
        self.write(header, &[text(topic), id.to_be_bytes().to_vec(), payload.to_vec()].concat())?;
        self.wait_for_acknowledgement(id)
    }

    /// Subscribes at QoS 1 and waits for the acknowledgement.
    pub(crate) fn subscribe(&mut self, filter: &str) -> io::Result<()> {
        let id = self.new_id();
        self.write(0x82, &[id.to_be_bytes().to_vec(), text(filter), vec![1]].concat())?;
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
        self.write(0xe0, &[])?;
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

    fn take(&mut self, (header, body): (u8, Vec<u8>)) -> io::Result<()> {
        match header >> 4 {
            3 => {
                let (topic, mut rest) = split_text(&body).ok_or(ErrorKind::InvalidData)?;
                if header & 0x06 != 0 {
                    let (id, payload) = rest.split_at_checked(2).ok_or(ErrorKind::InvalidData)?;
                    self.write(0x40, id)?;
                    rest = payload;
                }
                let topic = String::from_utf8_lossy(topic).into_owned();
                self.messages.push_back(Message { topic, payload: rest.to_vec(), retain: header & 1 == 1 });
            }
            // PUBACK and SUBACK.
            4 | 9 if body.len() >= 2 => self.acknowledged.push_back(u16::from_be_bytes([body[0], body[1]])),
            _ => {}
        }
        Ok(())
    }

    fn write(&mut self, header: u8, body: &[u8]) -> io::Result<()> {
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
        self.stream.write_all(&packet)
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

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u16).to_be_bytes(), text.as_bytes()].concat()
}

fn split_text(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk()?;
    rest.split_at_checked(usize::from(u16::from_be_bytes(*length)))
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
