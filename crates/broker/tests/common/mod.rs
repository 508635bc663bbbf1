//! A broker on a free port and a client that speaks bytes, so that tests see exactly what goes over the wire.

#![allow(dead_code, unused_imports, reason = "each test binary uses its part")]

mod raw;
pub mod tls;
pub mod wire;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rpicluster_broker::{Broker, BrokerConfig, BrokerHandle, LinkReceiver, LinkSender, RouterStopped, Security, Stats};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

pub use raw::{Ack, ConnAck, Hello, Listens, Message, PUBACK, PUBCOMP, PUBREC, PUBREL, Raw, lasting, session_expiry};
pub use wire::{framed, text};

/// Everything awaited in a test comes within this, or the test fails.
const PATIENCE: Duration = Duration::from_secs(10);

/// Both versions of MQTT, as `v5`.
pub const BOTH: [bool; 2] = [false, true];

/// A broker that runs until it is stopped or dropped.
pub struct TestBroker {
    pub address: SocketAddr,
    pub stats: Arc<Stats>,
    pub handle: BrokerHandle,
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
        Self::start_with(adjust, filters, Security::trusting()).await
    }

    pub async fn start_with(
        adjust: impl FnOnce(&mut BrokerConfig),
        filters: Vec<String>,
        security: Security,
    ) -> (TestBroker, LinkSender, LinkReceiver) {
        let mut config = BrokerConfig::default();
        config.listeners.retain(|name, _| name == "local");
        config.listeners.values_mut().for_each(|listener| listener.address.set_port(0));
        adjust(&mut config);
        let broker = Broker::bind(config, security).await.unwrap();
        let address = broker.addresses()[0].1;
        let (stats, handle) = (broker.stats(), broker.handle());
        let (sender, receiver) = broker.link(filters).unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(broker.run(async move { drop(stopped.await) }));
        (TestBroker { address, stats, handle, stop: Some(stop), task }, sender, receiver)
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
