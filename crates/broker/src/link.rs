//! The in-process client: how the program around the broker speaks and listens, without a socket.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;

use crate::codec::{QoS, find_correlation_data, find_response_topic, put_correlation_data};
use crate::hub::Hub;
use crate::message::{Message, Parts};
use crate::router::{Reader, RouterStopped};

/// Publishes in process. Cheap to clone; every clone speaks as the same client.
#[derive(Clone)]
pub struct LinkSender {
    hub: Arc<Hub>,
    number: u64,
}

/// Receives in process, in the order in which the broker accepted.
pub struct LinkReceiver {
    reader: Reader,
    batch: Vec<Message>,
    ready: VecDeque<Message>,
}

/// A message to publish.
#[derive(Debug, Clone)]
pub struct Outgoing {
    /// Topic name.
    pub topic: String,
    /// Payload.
    pub payload: Bytes,
    /// Highest quality of service of its delivery.
    pub qos: QoS,
    /// Whether it is kept for later subscribers.
    pub retain: bool,
    /// Correlation Data for the answer to a request that had some (MQTT 5 3.3.2.3.6).
    pub correlation_data: Option<Bytes>,
}

/// A message received.
#[derive(Debug, Clone)]
pub struct Delivery(Message);

impl LinkSender {
    pub(crate) fn new(hub: Arc<Hub>) -> LinkSender {
        let number = hub.next_number();
        LinkSender { hub, number }
    }

    /// Publishes a message; waits while the broker is behind.
    ///
    /// # Errors
    /// If the router has stopped.
    pub async fn publish(&self, outgoing: Outgoing) -> Result<(), RouterStopped> {
        let mut properties = Vec::new();
        if let Some(data) = &outgoing.correlation_data {
            put_correlation_data(&mut properties, data);
        }
        let parts = Parts {
            topic: &outgoing.topic,
            payload: &outgoing.payload,
            qos: outgoing.qos,
            retain: outgoing.retain,
            publisher: self.number,
            expiry: None,
            properties: &properties,
        };
        self.hub.router.accept(Message::new(parts, self.hub.clock), true).await
    }
}

impl LinkReceiver {
    pub(crate) fn new(reader: Reader) -> LinkReceiver {
        LinkReceiver { reader, batch: Vec::new(), ready: VecDeque::new() }
    }

    /// The next message. Cancel safe.
    ///
    /// # Errors
    /// If the router has stopped.
    pub async fn recv(&mut self) -> Result<Delivery, RouterStopped> {
        loop {
            if let Some(message) = self.ready.pop_front() {
                return Ok(Delivery(message));
            }
            self.reader.read(&mut self.batch).await?;
            self.ready.extend(self.batch.drain(..));
        }
    }
}

impl Delivery {
    /// Topic name.
    pub fn topic(&self) -> &str {
        self.0.topic()
    }

    /// Payload; shares the message's memory.
    pub fn payload(&self) -> Bytes {
        self.0.payload_bytes()
    }

    /// Response Topic (MQTT 5 3.3.2.3.5).
    pub fn response_topic(&self) -> Option<&str> {
        find_response_topic(self.0.properties())
    }

    /// Correlation Data (MQTT 5 3.3.2.3.6).
    pub fn correlation_data(&self) -> Option<Bytes> {
        find_correlation_data(self.0.properties()).map(Bytes::copy_from_slice)
    }
}
