//! The embedded MQTT broker: MQTT 3.1.1 and 5.0 on the same port, as a library.
//!
//! The front (listeners, connections, sessions, subscriptions, retained messages, wills) is this crate's; rumqttd's router
//! behind it is the one ordered path on which every message travels, see `router.rs`. The crate knows nothing of slaves
//! or tasks.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let broker = rpicluster_broker::Broker::bind(Default::default()).await?;
//! let (sender, mut receiver) = broker.link(vec!["rpicluster/from/+/+".into()])?;
//! broker.run(std::future::pending()).await?;
//! # Ok(()) }
//! ```

mod access;
mod allowance;
mod client;
mod codec;
mod config;
mod connection;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod hub;
mod link;
mod message;
mod retained;
mod router;
mod server;
mod stats;
mod subscriptions;
mod sys;
mod topic;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpListener;

pub use codec::QoS;
pub use config::{BrokerConfig, ConfigError, Limits, Listener, RouterConfig, SlowSubscriber};
pub use link::{Delivery, LinkReceiver, LinkSender, Outgoing};
pub use router::RouterStopped;
pub use stats::Stats;

use access::Access;
use hub::Hub;
use message::{Message, Parts};
use router::{Reader, Router};
use server::Bound;

/// The client id that in-process links have; no network client may use it.
const LINK_CLIENT_ID: &str = "master";

/// A broker that is bound but accepts nobody before [`Broker::run`].
pub struct Broker {
    hub: Arc<Hub>,
    reader: Reader,
    listeners: Vec<Bound>,
}

/// Why a broker could not be bound.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// A value of the configuration cannot work.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// An address cannot be listened on.
    #[error("listener {name}: cannot listen on {address}: {cause}")]
    Listen {
        /// The listener's name.
        name: String,
        /// Its address.
        address: SocketAddr,
        /// What the system said.
        cause: io::Error,
    },
    /// The router did not start.
    #[error(transparent)]
    Router(#[from] RouterStopped),
}

/// Why an in-process link could not be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// The broker has one link, and it is taken.
    #[error("the broker's in-process link is taken")]
    Taken,
    /// The router has stopped.
    #[error(transparent)]
    Router(#[from] RouterStopped),
}

impl Broker {
    /// Checks the configuration, binds every listener and starts the router.
    ///
    /// # Errors
    /// Names the key that cannot work, or the address that cannot be listened on and why.
    pub async fn bind(config: BrokerConfig) -> Result<Broker, BindError> {
        config.validate()?;
        let mut listeners = Vec::new();
        for (name, listener) in &config.listeners {
            listeners.push(bind(name, listener.address).await?);
        }
        let stats = Arc::new(Stats::default());
        let (router, reader) = Router::start(&config.router, Arc::clone(&stats))?;
        let access = Access::reserving(LINK_CLIENT_ID);
        let hub = Arc::new(Hub::new(router, access, config.limits, stats));
        Ok(Broker { hub, reader, listeners })
    }

    /// Each listener's name and the address it is bound to.
    pub fn addresses(&self) -> Vec<(String, SocketAddr)> {
        self.listeners.iter().map(|bound| (bound.name.clone(), bound.address)).collect()
    }

    /// The in-process client: what it publishes goes to network clients, and it receives what matches one of `filters`.
    ///
    /// # Errors
    /// If the link is taken already.
    pub fn link(&self, filters: Vec<String>) -> Result<(LinkSender, LinkReceiver), LinkError> {
        let reader = self.hub.router.link(filters)?.ok_or(LinkError::Taken)?;
        Ok((LinkSender::new(Arc::clone(&self.hub)), LinkReceiver::new(reader)))
    }

    /// Puts a retained message in place before anybody connects; an empty payload takes it away.
    pub fn seed_retained(&self, topic: &str, payload: &[u8]) {
        let parts =
            Parts { topic, payload, qos: QoS::AtLeastOnce, retain: true, publisher: 0, expiry: None, properties: &[] };
        self.hub.seed_retained(&Message::new(parts, self.hub.clock));
    }

    /// The broker's counters and gauges.
    pub fn stats(&self) -> Arc<Stats> {
        Arc::clone(&self.hub.stats)
    }

    /// Serves clients until `shutdown` completes, then tells them and closes.
    ///
    /// # Errors
    /// If the router has stopped: the process cannot go on.
    pub async fn run(self, shutdown: impl Future<Output = ()> + Send) -> Result<(), RouterStopped> {
        let Broker { hub, reader, listeners } = self;
        tokio::select! {
            result = hub.deliver(reader) => result.map(|never| match never {}),
            result = hub.watch_deadlines() => result.map(|never| match never {}),
            never = hub.report() => match never {},
            result = server::serve(&hub, listeners, shutdown) => result,
        }
    }
}

async fn bind(name: &str, address: SocketAddr) -> Result<Bound, BindError> {
    let failed = |cause| BindError::Listen { name: name.to_owned(), address, cause };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    Ok(Bound { name: name.to_owned(), address, listener })
}
