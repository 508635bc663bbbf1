//! A broker on a free port and a client that speaks bytes, so that tests see exactly what goes over the wire.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rpicluster_broker::{Broker, BrokerConfig, LinkReceiver, LinkSender, RouterStopped, Stats};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// Everything awaited in a test comes within this, or the test fails.
const PATIENCE: Duration = Duration::from_secs(10);

/// A broker that runs until it is stopped or dropped.
pub struct TestBroker {
    pub address: SocketAddr,
    pub stats: Arc<Stats>,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<Result<(), RouterStopped>>,
}

impl TestBroker {
    pub async fn start(adjust: impl FnOnce(&mut BrokerConfig)) -> TestBroker {
        Self::start_with_link(adjust, Vec::new()).await.0
    }

    pub async fn start_with_link(
        adjust: impl FnOnce(&mut BrokerConfig),
        filters: Vec<String>,
    ) -> (TestBroker, LinkSender, LinkReceiver) {
        let mut config = BrokerConfig::default();
        config.listeners.values_mut().for_each(|listener| listener.address.set_port(0));
        adjust(&mut config);
        let broker = Broker::bind(config).await.unwrap();
        let address = broker.addresses()[0].1;
        let stats = broker.stats();
        let (sender, receiver) = broker.link(filters).unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(broker.run(async move { drop(stopped.await) }));
        (TestBroker { address, stats, stop: Some(stop), task }, sender, receiver)
    }

    pub async fn stop(mut self) {
        self.stop.take();
        patient(self.task).await.unwrap().unwrap();
    }

    pub fn stat(&self, name: &str) -> u64 {
        self.stats.snapshot()[name]
    }
}

pub async fn patient<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("nothing came in time")
}

/// Waits until a condition holds.
pub async fn until(mut condition: impl FnMut() -> bool) {
    patient(async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
}

/// A raw client of one protocol version.
pub struct Raw {
    pub stream: TcpStream,
    pub v5: bool,
}

/// A CONNECT to be adjusted.
pub struct Hello {
    pub client_id: &'static str,
    pub clean: bool,
    pub keep_alive: u16,
    /// Topic, payload, QoS, retain.
    pub will: Option<(&'static str, &'static str, u8, bool)>,
    /// Encoded CONNECT properties (MQTT 5).
    pub properties: Vec<u8>,
    /// Encoded will properties (MQTT 5).
    pub will_properties: Vec<u8>,
}

impl Default for Hello {
    fn default() -> Self {
        Hello { client_id: "c", clean: true, keep_alive: 60, will: None, properties: vec![], will_properties: vec![] }
    }
}

/// Session expiry interval, as a CONNECT property.
pub fn session_expiry(seconds: u32) -> Vec<u8> {
    [&[0x11][..], &seconds.to_be_bytes()].concat()
}

pub fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u16).to_be_bytes()[..], text.as_bytes()].concat()
}

pub fn framed(first: u8, body: &[u8]) -> Vec<u8> {
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

impl Hello {
    pub fn bytes(&self, v5: bool) -> Vec<u8> {
        let mut body = text("MQTT");
        let will_flags = self.will.map_or(0, |(_, _, qos, retain)| 0x04 | qos << 3 | u8::from(retain) << 5);
        body.extend([if v5 { 5 } else { 4 }, u8::from(self.clean) << 1 | will_flags]);
        body.extend(self.keep_alive.to_be_bytes());
        if v5 {
            body.push(self.properties.len() as u8);
            body.extend(&self.properties);
        }
        body.extend(text(self.client_id));
        if let Some((topic, payload, ..)) = self.will {
            if v5 {
                body.push(self.will_properties.len() as u8);
                body.extend(&self.will_properties);
            }
            body.extend([text(topic), text(payload)].concat());
        }
        framed(0x10, &body)
    }
}

impl Raw {
    pub async fn open(broker: &TestBroker, v5: bool) -> Raw {
        let stream = TcpStream::connect(broker.address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Raw { stream, v5 }
    }

    /// Connects; also says whether the session was present.
    pub async fn hello(broker: &TestBroker, v5: bool, hello: Hello) -> (Raw, bool) {
        let mut raw = Raw::open(broker, v5).await;
        raw.send(&hello.bytes(v5)).await;
        let (first, body) = raw.packet().await;
        assert_eq!((first, body[1]), (0x20, 0), "CONNACK: {body:x?}");
        (raw, body[0] == 1)
    }

    pub async fn connect(broker: &TestBroker, v5: bool, client_id: &'static str) -> Raw {
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

    pub async fn closed(&mut self) {
        patient(async { while self.next().await.is_some() {} }).await;
    }

    /// A PUBLISH without properties.
    pub async fn publish(&mut self, topic: &str, payload: &str, qos: u8, retain: bool, packet_id: u16) {
        self.publish_flags(topic, payload, qos << 1 | u8::from(retain), packet_id).await;
    }

    pub async fn publish_flags(&mut self, topic: &str, payload: &str, flags: u8, packet_id: u16) {
        let mut body = text(topic);
        if flags & 0x06 != 0 {
            body.extend(packet_id.to_be_bytes());
        }
        if self.v5 {
            body.push(0);
        }
        body.extend(payload.as_bytes());
        self.send(&framed(0x30 | flags, &body)).await;
    }

    /// Subscribes and gives the reason code.
    pub async fn subscribe(&mut self, filter: &str, options: u8) -> u8 {
        let mut body = vec![0, 9];
        if self.v5 {
            body.push(0);
        }
        body.extend(text(filter));
        body.push(options);
        self.send(&framed(0x82, &body)).await;
        let (first, body) = self.packet().await;
        assert_eq!((first, &body[..2]), (0x90, &[0, 9][..]), "SUBACK");
        *body.last().unwrap()
    }

    pub async fn unsubscribe(&mut self, filter: &str) {
        let mut body = vec![0, 8];
        if self.v5 {
            body.push(0);
        }
        body.extend(text(filter));
        self.send(&framed(0xa2, &body)).await;
        let (first, body) = self.packet().await;
        assert_eq!((first, &body[..2]), (0xb0, &[0, 8][..]), "UNSUBACK");
    }

    /// Awaits a PUBLISH and acknowledges it not.
    pub async fn message(&mut self) -> Message {
        let (first, body) = self.packet().await;
        assert_eq!(first & 0xf0, 0x30, "PUBLISH expected, got {first:x} {body:x?}");
        let mut rest = &body[..];
        let mut cut = |count: usize| {
            let (head, tail) = rest.split_at(count);
            rest = tail;
            head.to_vec()
        };
        let length = cut(2);
        let topic = String::from_utf8(cut(u16::from_be_bytes([length[0], length[1]]).into())).unwrap();
        let qos = first >> 1 & 3;
        let packet_id = if qos > 0 { u16::from_be_bytes(cut(2).try_into().unwrap()) } else { 0 };
        let properties = if self.v5 {
            let length = cut(1)[0];
            cut(length.into())
        } else {
            vec![]
        };
        let payload = String::from_utf8(rest.to_vec()).unwrap();
        Message { topic, payload, qos, retain: first & 1 == 1, dup: first & 8 == 8, packet_id, properties }
    }

    /// Proves that nothing is on its way: the answer to a PING comes next.
    pub async fn nothing(&mut self) {
        self.send(&[0xc0, 0]).await;
        assert_eq!(self.packet().await, (0xd0, vec![]), "nothing but PINGRESP");
    }
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
