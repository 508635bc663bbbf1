//! One connection of a client, and what the broker said on it.

use std::collections::HashMap;
use std::net::SocketAddr;

use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

/// The beginning of a payload: it names the run, the connection on which it was published, and its place there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tag {
    pub run: u32,
    pub line: u16,
    pub number: u16,
}

/// A message that was published at QoS 1 or 2.
#[derive(Debug, Clone)]
pub struct Published {
    pub tag: Tag,
    pub qos: u8,
    pub packet_id: u16,
    pub must_arrive: bool,
    pub bytes: Vec<u8>,
}

pub struct Line {
    /// `None` once it is closed.
    stream: Option<TcpStream>,
    input: Vec<u8>,
    pub number: u16,
    pub v5: bool,
    pub client_id: String,
    /// Asked for a new session.
    pub clean: bool,
    /// Answers messages as they come.
    pub answers: bool,
    /// Never reads.
    pub deaf: bool,
    /// Bytes were sent that may be part of a packet: what is sent later may be taken for something else.
    pub garbled: bool,
    pub welcomed: bool,
    pub pongs: usize,
    /// Tags of new messages, as they came.
    pub heard: Vec<Tag>,
    /// Published at QoS 1 and 2 and not acknowledged.
    pub pending: HashMap<u16, Published>,
    /// Acknowledged without an error.
    pub accepted: Vec<Published>,
    /// Published at QoS 2 and not released.
    pub unreleased: Vec<Published>,
    /// Acknowledgements that the broker waits for.
    owed: Vec<[u8; 4]>,
}

impl Tag {
    const MAGIC: [u8; 2] = [0xf5, 0xfa];

    pub fn bytes(self) -> Vec<u8> {
        let Tag { run, line, number } = self;
        [&Self::MAGIC[..], &run.to_be_bytes(), &line.to_be_bytes(), &number.to_be_bytes()].concat()
    }

    pub fn of(payload: &[u8]) -> Option<Tag> {
        let rest = payload.strip_prefix(&Self::MAGIC)?.first_chunk::<8>()?;
        let [a, b, c, d, line @ .., e, f] = *rest;
        let run = u32::from_be_bytes([a, b, c, d]);
        Some(Tag { run, line: u16::from_be_bytes(line), number: u16::from_be_bytes([e, f]) })
    }
}

impl Line {
    pub async fn open(address: SocketAddr, number: u16, v5: bool, client_id: String) -> std::io::Result<Line> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Line {
            stream: Some(stream),
            input: vec![],
            number,
            v5,
            client_id,
            clean: true,
            answers: true,
            deaf: false,
            garbled: false,
            welcomed: false,
            pongs: 0,
            heard: vec![],
            pending: HashMap::new(),
            accepted: vec![],
            unreleased: vec![],
            owed: vec![],
        })
    }

    pub fn is_open(&self) -> bool {
        self.stream.is_some()
    }

    pub fn close(&mut self, reset: bool) {
        if let Some(stream) = self.stream.take()
            && reset
        {
            // Fails only where the peer has closed already.
            let _ = stream.set_zero_linger();
        }
    }

    /// Sends bytes, the first `split` of them ahead of the rest.
    pub async fn send(&mut self, bytes: &[u8], split: usize) {
        let Some(stream) = &mut self.stream else { return };
        let (ahead, rest) = bytes.split_at(split.min(bytes.len()));
        let mut sent = stream.write_all(ahead).await;
        if !ahead.is_empty() && !rest.is_empty() {
            for _ in 0..4 {
                tokio::task::yield_now().await;
            }
        }
        if sent.is_ok() {
            sent = stream.write_all(rest).await;
        }
        // What the broker said before it closed is still to be read.
        drop(sent);
    }

    /// Publishes, and notes what is to be acknowledged.
    pub async fn publish(&mut self, published: Published, split: usize) {
        let bytes = published.bytes.clone();
        if published.qos == 2 {
            let dup = [&[bytes[0] | 0x08], &bytes[1..]].concat();
            self.unreleased.push(Published { bytes: dup, ..published.clone() });
        }
        if published.qos > 0 {
            self.pending.insert(published.packet_id, published);
        }
        self.send(&bytes, split).await;
    }

    /// Takes in what has arrived, without waiting.
    ///
    /// # Errors
    /// If the broker broke the standard.
    pub async fn receive(&mut self) -> Result<(), String> {
        let Some(stream) = self.stream.as_ref().filter(|_| !self.deaf) else { return Ok(()) };
        let mut chunk = [0; 16 * 1024];
        loop {
            match stream.try_read(&mut chunk) {
                Ok(count @ 1..) => self.input.extend_from_slice(&chunk[..count]),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                Ok(0) | Err(_) => {
                    self.stream = None;
                    break;
                }
            }
        }
        let input = std::mem::take(&mut self.input);
        let mut rest = &input[..];
        while let Some((first, body, after)) = cut_packet(rest) {
            self.on_packet(first, body).ok_or_else(|| format!("the broker sent {first:#x} {body:x?}"))?;
            rest = after;
        }
        self.input = rest.to_vec();
        if self.answers {
            self.answer().await;
        }
        Ok(())
    }

    /// Sends every acknowledgement that is due.
    pub async fn answer(&mut self) {
        let owed = std::mem::take(&mut self.owed).concat();
        if owed.is_empty() {
            return;
        }
        let released = |id: u16| owed.chunks(4).any(|ack| ack[0] == 0x62 && ack[2..] == id.to_be_bytes());
        self.unreleased.retain(|published| !released(published.packet_id));
        self.send(&owed, 0).await;
    }

    /// `None` if it is not what a broker sends.
    fn on_packet(&mut self, first: u8, body: &[u8]) -> Option<()> {
        let id = || body.first_chunk().map(|id| u16::from_be_bytes(*id));
        let reason = body.get(2).copied().unwrap_or(0);
        match first {
            0x20 => {
                let [present @ (0 | 1), code] = *body.first_chunk()? else { return None };
                self.welcomed = code == 0;
                if present == 0 {
                    self.unreleased.clear();
                } else if self.clean && !self.garbled {
                    return None;
                }
            }
            0x30..0x40 => self.on_publish(first, body)?,
            0x40 | 0x50 => {
                let id = id()?;
                if let Some(published) = self.pending.remove(&id)
                    && reason < 0x80
                    && !self.garbled
                {
                    self.accepted.push(published);
                }
                if first == 0x50 && reason < 0x80 {
                    self.owe(0x62, id);
                } else {
                    self.unreleased.retain(|published| published.packet_id != id);
                }
            }
            0x62 => self.owe(0x70, id()?),
            0x70 | 0x90 | 0xb0 => drop(id()?),
            0xd0 => self.pongs += 1,
            0xe0 if self.v5 => {}
            _ => return None,
        }
        Some(())
    }

    fn on_publish(&mut self, first: u8, body: &[u8]) -> Option<()> {
        let (qos, retain, dup) = (first >> 1 & 3, first & 1 == 1, first & 8 == 8);
        let topic_length = u16::from_be_bytes(*body.first_chunk()?);
        let mut rest = body.get(2 + usize::from(topic_length)..)?;
        if qos > 0 {
            let id = u16::from_be_bytes(*rest.first_chunk()?);
            rest = &rest[2..];
            self.owe(if qos == 1 { 0x40 } else { 0x50 }, id);
        }
        if self.v5 {
            let (length, header) = variable(rest)?;
            rest = rest.get(header + length..)?;
        }
        if !retain && !dup {
            self.heard.extend(Tag::of(rest));
        }
        (qos < 3 && topic_length > 0).then_some(())
    }

    fn owe(&mut self, first: u8, packet_id: u16) {
        let [high, low] = packet_id.to_be_bytes();
        self.owed.push([first, 2, high, low]);
    }
}

/// First byte, body, and what comes after the first packet, if that is whole.
fn cut_packet(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (length, header) = variable(bytes.get(1..)?)?;
    let (packet, after) = bytes.split_at_checked(1 + header + length)?;
    Some((packet[0], &packet[1 + header..], after))
}

/// A variable byte integer and its own length.
fn variable(bytes: &[u8]) -> Option<(usize, usize)> {
    let length = 1 + bytes.iter().take(3).take_while(|byte| **byte & 0x80 != 0).count();
    let value = bytes.get(..length)?.iter().rev().fold(0, |value, byte| value << 7 | usize::from(byte & 0x7f));
    Some((value, length))
}
