//! The plainest MQTT 3.1.1 client: blocking, one socket, no threads, so that what is measured is the other side.

use std::io::{BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use anyhow::{Context as _, Result, bail};

/// A connected client.
pub(crate) struct Client {
    write: TcpStream,
    read: BufReader<TcpStream>,
}

/// A message received.
pub(crate) struct Message {
    pub(crate) payload: Vec<u8>,
}

impl Client {
    /// Connects with a clean session and no keep alive.
    pub(crate) fn connect(address: SocketAddr, client_id: &str) -> Result<Client> {
        let stream = TcpStream::connect(address).with_context(|| format!("connect to {address}"))?;
        stream.set_nodelay(true)?;
        let mut client = Client { read: BufReader::with_capacity(256 * 1024, stream.try_clone()?), write: stream };
        let body = [&b"\x00\x04MQTT\x04\x02\x00\x00"[..], &text(client_id)].concat();
        client.write.write_all(&framed(0x10, &body))?;
        match client.packet()? {
            (0x20, body) if body == [0, 0] => Ok(client),
            other => bail!("CONNACK expected, got {other:x?}"),
        }
    }

    /// Subscribes and waits for the answer.
    pub(crate) fn subscribe(&mut self, filter: &str, qos: u8) -> Result<()> {
        let body = [&[0, 1][..], &text(filter), &[qos]].concat();
        self.write.write_all(&framed(0x82, &body))?;
        match self.packet()? {
            (0x90, body) if body == [0, 1, qos] => Ok(()),
            other => bail!("SUBACK expected, got {other:x?}"),
        }
    }

    /// Writes encoded packets.
    pub(crate) fn write(&mut self, packets: &[u8]) -> Result<()> {
        Ok(self.write.write_all(packets)?)
    }

    /// The next message; acknowledges it at QoS 1 and passes over PUBACKs.
    pub(crate) fn message(&mut self) -> Result<Message> {
        loop {
            let (first, body) = self.packet()?;
            if first & 0xf0 != 0x30 {
                continue;
            }
            let topic = 2 + usize::from(u16::from_be_bytes([body[0], body[1]]));
            let qos = first >> 1 & 3;
            let start = if qos > 0 { topic + 2 } else { topic };
            if qos == 1 {
                self.write.write_all(&[0x40, 2, body[topic], body[topic + 1]])?;
            }
            return Ok(Message { payload: body[start..].to_vec() });
        }
    }

    fn packet(&mut self) -> Result<(u8, Vec<u8>)> {
        let first = self.byte()?;
        let mut length = 0usize;
        for shift in 0..4 {
            let byte = self.byte()?;
            length |= usize::from(byte & 0x7f) << (7 * shift);
            if byte & 0x80 == 0 {
                break;
            }
        }
        let mut body = vec![0; length];
        self.read.read_exact(&mut body)?;
        Ok((first, body))
    }

    fn byte(&mut self) -> Result<u8> {
        let mut byte = [0];
        self.read.read_exact(&mut byte)?;
        Ok(byte[0])
    }
}

/// An encoded PUBLISH; at QoS 1 always with the same packet id, which is right as long as one is in flight.
pub(crate) fn publish(topic: &str, payload: &[u8], qos: u8) -> Vec<u8> {
    let mut body = text(topic);
    if qos > 0 {
        body.extend([0, 7]);
    }
    body.extend(payload);
    framed(0x30 | qos << 1, &body)
}

fn text(text: &str) -> Vec<u8> {
    // Topics and ids here are short.
    [&(text.len() as u16).to_be_bytes()[..], text.as_bytes()].concat()
}

fn framed(first: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first];
    let mut length = body.len();
    loop {
        let byte = (length & 0x7f) as u8;
        length >>= 7;
        bytes.push(if length > 0 { byte | 0x80 } else { byte });
        if length == 0 {
            break;
        }
    }
    bytes.extend(body);
    bytes
}
