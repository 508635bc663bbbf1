//! The way in: what slaves say, from the embedded broker's link or from a broker elsewhere.

use bytes::Bytes;
use rpicluster_broker::{Delivery, LinkReceiver, RouterStopped};
use tokio::sync::mpsc;

use crate::mailbox::Wishes;

/// Where the bus reads.
pub(crate) enum Source {
    /// The embedded broker.
    Link(LinkReceiver),
    /// The connection to a broker elsewhere.
    Remote(mpsc::Receiver<Arrived>),
}

/// A message that came in.
pub(crate) enum Arrival {
    /// By the link.
    Link(Delivery),
    /// From elsewhere.
    Remote(Arrived),
}

/// A message from a broker elsewhere.
#[derive(Debug, Clone)]
pub(crate) struct Arrived {
    pub(crate) topic: String,
    pub(crate) payload: Bytes,
    pub(crate) wishes: Wishes,
    /// It is a copy that the broker kept.
    pub(crate) retained: bool,
}

impl Source {
    /// The next message. Cancel safe.
    ///
    /// # Errors
    /// If the embedded broker has stopped.
    pub(crate) async fn recv(&mut self) -> Result<Arrival, RouterStopped> {
        match self {
            Source::Link(link) => Ok(Arrival::Link(link.recv().await?)),
            Source::Remote(arrived) => match arrived.recv().await {
                Some(arrived) => Ok(Arrival::Remote(arrived)),
                // Whoever watches over the connection's task says why it has ended.
                None => std::future::pending().await,
            },
        }
    }
}

impl Arrival {
    pub(crate) fn topic(&self) -> &str {
        match self {
            Arrival::Link(delivery) => delivery.topic(),
            Arrival::Remote(arrived) => &arrived.topic,
        }
    }

    pub(crate) fn payload(&self) -> Bytes {
        match self {
            Arrival::Link(delivery) => delivery.payload(),
            Arrival::Remote(arrived) => arrived.payload.clone(),
        }
    }

    pub(crate) fn wishes(&self) -> Wishes {
        match self {
            Arrival::Link(delivery) => {
                let topic = delivery.response_topic().map(str::to_owned);
                Wishes { topic, correlation_data: delivery.correlation_data() }
            }
            Arrival::Remote(arrived) => arrived.wishes.clone(),
        }
    }

    /// The embedded broker sends its master no kept copies: everything is said now.
    pub(crate) fn is_retained(&self) -> bool {
        matches!(self, Arrival::Remote(Arrived { retained: true, .. }))
    }
}
