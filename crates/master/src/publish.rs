//! The way out: the embedded broker's link, the connection to a broker elsewhere, or a stand-in in tests.

use std::future::Future;

use rpicluster_broker::{LinkSender, Outgoing, RouterStopped};

use crate::remote::RemoteSender;

/// Whoever can publish in the master's name. Cheap to clone.
pub(crate) trait Publish: Clone + Send + Sync + 'static {
    /// Publishes; waits while the broker is behind.
    fn publish(&self, message: Outgoing) -> impl Future<Output = Result<(), RouterStopped>> + Send;
}

/// The way out of a running master.
#[derive(Clone)]
pub(crate) enum Wire {
    /// To the embedded broker.
    Link(LinkSender),
    /// To a broker elsewhere.
    Remote(RemoteSender),
}

impl Publish for Wire {
    async fn publish(&self, message: Outgoing) -> Result<(), RouterStopped> {
        match self {
            Wire::Link(link) => link.publish(message).await,
            Wire::Remote(remote) => {
                remote.publish(message).await;
                Ok(())
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod fake {
    use std::collections::HashSet;
    use std::sync::{Arc, Mutex};

    use tokio::sync::mpsc;

    use super::*;

    /// Passes on what is published, except on topics whose readers have stalled.
    #[derive(Clone)]
    pub(crate) struct FakePublisher {
        published: mpsc::Sender<Outgoing>,
        stalled: Arc<Mutex<HashSet<String>>>,
    }

    impl FakePublisher {
        pub(crate) fn new() -> (FakePublisher, mpsc::Receiver<Outgoing>) {
            let (published, receiver) = mpsc::channel(10_000);
            (FakePublisher { published, stalled: Arc::default() }, receiver)
        }

        pub(crate) fn stall(&self, topic: &str) {
            self.stalled.lock().unwrap().insert(topic.to_owned());
        }
    }

    impl Publish for FakePublisher {
        async fn publish(&self, message: Outgoing) -> Result<(), RouterStopped> {
            if self.stalled.lock().unwrap().contains(&message.topic) {
                std::future::pending::<()>().await;
            }
            // A test that does not look at what is published has dropped the receiver.
            let _ = self.published.send(message).await;
            Ok(())
        }
    }
}
