use rpicluster_protocol::{Envelope, FromSlave, Upward};
use rumqttc::QoS;
use tokio::sync::mpsc;

/// How many messages may wait for the connection. What does not fit is refused, so that memory stays bounded while a
/// slave is offline.
const OUTBOX_MAX: usize = 64;

/// Sends messages in a slave's name. Cheap to clone; usable from any task.
///
/// Messages wait here while the slave is offline. What was handed to a connection that broke may be lost.
#[derive(Debug, Clone)]
pub struct Outbox {
    sender: mpsc::Sender<Envelope<FromSlave>>,
}

/// Why a message was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OutboxError {
    /// As many messages as may wait are waiting.
    #[error("the slave's outbox is full ({OUTBOX_MAX} messages wait): send more slowly or wait until it is online")]
    Full,
    /// The slave has stopped.
    #[error("the slave has stopped")]
    Stopped,
}

impl Outbox {
    pub(crate) fn new() -> (Outbox, mpsc::Receiver<Envelope<FromSlave>>) {
        let (sender, receiver) = mpsc::channel(OUTBOX_MAX);
        (Outbox { sender }, receiver)
    }

    /// Sends a message, with QoS and retain as the protocol says for its type, without waiting.
    ///
    /// # Errors
    /// If the outbox is full or the slave has stopped.
    pub fn try_send(&self, message: impl Into<Envelope<FromSlave>>) -> Result<(), OutboxError> {
        self.sender.try_send(message.into()).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => OutboxError::Full,
            mpsc::error::TrySendError::Closed(_) => OutboxError::Stopped,
        })
    }

    /// Like [`Outbox::try_send`], but waits until there is room.
    ///
    /// # Errors
    /// If the slave has stopped.
    pub async fn send(&self, message: impl Into<Envelope<FromSlave>>) -> Result<(), OutboxError> {
        self.sender.send(message.into()).await.map_err(|_| OutboxError::Stopped)
    }
}

/// QoS and retain of what is published on `leaf`: the table of the protocol.
pub(crate) fn delivery(leaf: Upward) -> (QoS, bool) {
    match leaf {
        Upward::State | Upward::Details => (QoS::AtLeastOnce, true),
        Upward::Vitals | Upward::Message => (QoS::AtMostOnce, false),
        Upward::Info | Upward::Output => (QoS::AtLeastOnce, false),
        // Acknowledged by `task_ack` and told again without it.
        Upward::Task => (QoS::AtMostOnce, false),
    }
}

#[cfg(test)]
mod tests {
    use rpicluster_protocol::Info;

    use super::*;

    #[test]
    fn a_full_outbox_refuses_and_one_without_a_slave_says_so() {
        let (outbox, receiver) = Outbox::new();
        for _ in 0..OUTBOX_MAX {
            outbox.try_send(FromSlave::Info(Info::Time)).unwrap();
        }
        assert_eq!(outbox.try_send(FromSlave::Info(Info::Time)), Err(OutboxError::Full));
        drop(receiver);
        assert_eq!(outbox.try_send(FromSlave::Info(Info::Time)), Err(OutboxError::Stopped));
    }
}
