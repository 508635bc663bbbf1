//! The plainest MQTT 3.1.1 client: blocking, one socket, no threads, so that what is measured is the other side.

use std::io::{self, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustls::{ClientConfig, ClientConnection, StreamOwned};

/// Who everybody is here: the product asks for it, and its peers let anybody in.
pub(crate) const LOGIN: (&str, &str) = ("bench", "what is measured is no secret");

/// Where a broker is, and how it is spoken to there.
#[derive(Clone)]
pub(crate) struct Entrance {
    pub(crate) address: SocketAddr,
    /// Whom to trust, if TLS is spoken.
    pub(crate) tls: Option<Arc<ClientConfig>>,
}

impl From<SocketAddr> for Entrance {
    fn from(address: SocketAddr) -> Entrance {
        Entrance { address, tls: None }
    }
}

/// A connected client.
pub(crate) struct Client(BufReader<Stream>);

enum Stream {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

/// A message received.
pub(crate) struct Message {
    pub(crate) payload: Vec<u8>,
}

impl Client {
    /// Connects with a clean session and a keep alive of an hour: the stock server of rumqttd refuses 0.
    pub(crate) fn connect(address: SocketAddr, client_id: &str) -> Result<Client> {
        Client::enter(&address.into(), client_id)
    }

    /// The same, perhaps with TLS.
    pub(crate) fn enter(Entrance { address, tls }: &Entrance, client_id: &str) -> Result<Client> {
        let stream = TcpStream::connect(address).with_context(|| format!("connect to {address}"))?;
        stream.set_nodelay(true)?;
        let stream = match tls {
            None => Stream::Plain(stream),
            Some(config) => {
                let session = ClientConnection::new(Arc::clone(config), address.ip().into())?;
                Stream::Tls(Box::new(StreamOwned::new(session, stream)))
            }
        };
        let mut client = Client(BufReader::new(stream));
        let (user, password) = LOGIN;
        let body = [&b"\x00\x04MQTT\x04\xc2\x0e\x10"[..], &text(client_id), &text(user), &text(password)].concat();
        client.0.get_mut().write_all(&framed(0x10, &body))?;
        match client.packet()? {
            (0x20, body) if body == [0, 0] => Ok(client),
            other => bail!("CONNACK expected, got {other:x?}"),
        }
    }

    /// Subscribes and waits for the answer.
    pub(crate) fn subscribe(&mut self, filter: &str, qos: u8) -> Result<()> {
        let body = [&[0, 1][..], &text(filter), &[qos]].concat();
        self.0.get_mut().write_all(&framed(0x82, &body))?;
        match self.packet()? {
            (0x90, body) if body == [0, 1, qos] => Ok(()),
            other => bail!("SUBACK expected, got {other:x?}"),
        }
    }

    /// Writes encoded packets.
    pub(crate) fn write(&mut self, packets: &[u8]) -> Result<()> {
        Ok(self.0.get_mut().write_all(packets)?)
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
                self.0.get_mut().write_all(&[0x40, 2, body[topic], body[topic + 1]])?;
            }
            return Ok(Message { payload: body[start..].to_vec() });
        }
    }

    /// Reads `count` messages and acknowledges those at QoS 1, many at once.
    pub(crate) fn drain(&mut self, count: usize) -> Result<()> {
        let mut acks = Vec::new();
        let mut received = 0;
        while received < count {
            let (first, body) = self.packet()?;
            if first & 0xf0 == 0x30 {
                received += 1;
                if first >> 1 & 3 == 1 {
                    let topic = 2 + usize::from(u16::from_be_bytes([body[0], body[1]]));
                    acks.extend([0x40, 2, body[topic], body[topic + 1]]);
                }
            }
            if !acks.is_empty() && (self.0.buffer().is_empty() || acks.len() >= 400) {
                self.0.get_mut().write_all(&acks)?;
                acks.clear();
            }
        }
        self.0.get_mut().write_all(&acks)?;
        Ok(())
    }

    /// Reads the answers to `count` packets.
    pub(crate) fn answers(&mut self, count: usize) -> Result<()> {
        (0..count).try_for_each(|_| self.packet().map(drop))
    }

    /// Gives up when nothing comes for this long.
    pub(crate) fn give_up_after(&self, time: Duration) -> Result<()> {
        Ok(self.0.get_ref().tcp().set_read_timeout(Some(time))?)
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
        self.0.read_exact(&mut body)?;
        Ok((first, body))
    }

    fn byte(&mut self) -> Result<u8> {
        let mut byte = [0];
        self.0.read_exact(&mut byte)?;
        Ok(byte[0])
    }
}

impl Stream {
    fn tcp(&self) -> &TcpStream {
        match self {
            Stream::Plain(stream) => stream,
            Stream::Tls(stream) => &stream.sock,
        }
    }
}

impl Read for Stream {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Plain(stream) => stream.read(bytes),
            Stream::Tls(stream) => stream.read(bytes),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Plain(stream) => stream.write(bytes),
            Stream::Tls(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Stream::Plain(stream) => stream.flush(),
            Stream::Tls(stream) => stream.flush(),
        }
    }
}

/// An encoded PUBLISH, at QoS 1 with the packet id 1.
pub(crate) fn publish(topic: &str, payload: &[u8], qos: u8) -> Vec<u8> {
    publish_with_id(topic, payload, qos, 1)
}

/// An encoded PUBLISH.
pub(crate) fn publish_with_id(topic: &str, payload: &[u8], qos: u8, packet_id: u16) -> Vec<u8> {
    let mut body = text(topic);
    if qos > 0 {
        body.extend(packet_id.to_be_bytes());
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
