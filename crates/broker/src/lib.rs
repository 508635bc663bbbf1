//! The embedded MQTT broker: MQTT 3.1.1 and 5.0 on the same port, as a library.
//!
//! The front (listeners, connections, sessions, subscriptions, retained messages, wills) is this crate's; rumqttd's router
//! behind it is the one ordered path on which every message travels, see `router.rs`. The crate knows nothing of slaves
//! or tasks.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let broker = rpicluster_broker::Broker::bind(Default::default(), rpicluster_broker::Security::trusting()).await?;
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
mod greeting;
mod guesses;
mod hub;
mod link;
mod message;
mod places;
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
use tokio_rustls::TlsAcceptor;

pub use access::{Authenticator, Identity, Login, Permissions, Refusal, RefusalKind, Trusting, Verdict, covers};
pub use codec::QoS;
pub use config::{BrokerConfig, ConfigError, Limits, Listener, RouterConfig, SlowSubscriber};
pub use link::{Delivery, LinkReceiver, LinkSender, Outgoing};
pub use router::RouterStopped;
pub use stats::{ClientReport, Stats};
pub use topic::is_valid_filter;

use hub::Hub;
use message::{Message, Parts};
use router::{Reader, Router};
use server::{Bound, Door};

/// A broker that is bound but accepts nobody before [`Broker::run`].
pub struct Broker {
    hub: Arc<Hub>,
    reader: Reader,
    listeners: Vec<Bound>,
}

/// Who is let in, and how the broker proves who it is.
#[derive(Clone)]
pub struct Security {
    /// Decides on every CONNECT.
    pub authenticator: Arc<dyn Authenticator>,
    /// Certificates and versions of TLS, for listeners that encrypt.
    pub tls: Option<Arc<rustls::ServerConfig>>,
}

/// Looks at a running broker from outside, and ends what must not go on. Cheap to clone.
#[derive(Clone)]
pub struct BrokerHandle(Arc<Hub>);

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
    /// A listener is to encrypt, and there is no certificate.
    #[error("listener {name}: tls = true, but there is no certificate")]
    NoCertificate {
        /// The listener's name.
        name: String,
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
    pub async fn bind(config: BrokerConfig, security: Security) -> Result<Broker, BindError> {
        config.validate()?;
        let Security { authenticator, tls } = security;
        let mut listeners = Vec::new();
        for (name, listener) in &config.listeners {
            listeners.push(bind(name, listener, tls.as_ref()).await?);
        }
        let stats = Arc::new(Stats::default());
        let (router, reader) = Router::start(&config.router, Arc::clone(&stats))?;
        let hub = Arc::new(Hub::new(router, authenticator, config.limits, stats));
        Ok(Broker { hub, reader, listeners })
    }

    /// Each listener's name and the address it is bound to.
    pub fn addresses(&self) -> Vec<(String, SocketAddr)> {
        self.listeners.iter().map(|bound| (bound.door.name.clone(), bound.door.address)).collect()
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

    /// A handle that works for as long as the broker runs.
    pub fn handle(&self) -> BrokerHandle {
        BrokerHandle(Arc::clone(&self.hub))
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

impl Security {
    /// Everybody is let in and may do everything, and nothing is encrypted.
    pub fn trusting() -> Security {
        Security { authenticator: Arc::new(Trusting::default()), tls: None }
    }
}

impl BrokerHandle {
    /// The broker's counters and gauges.
    pub fn stats(&self) -> &Stats {
        &self.0.stats
    }

    /// Who is connected or has a session, and what was counted of each.
    pub fn clients(&self) -> Vec<ClientReport> {
        self.0.client_reports()
    }

    /// Disconnects all clients of an account and ends their sessions, without their wills. Returns when they are gone.
    /// Whether they may come back is the [`Authenticator`]'s to say, who should know before this is called.
    pub async fn end_account(&self, account: &str) {
        self.0.end_account(account).await;
    }
}

async fn bind(name: &str, listener: &Listener, tls: Option<&Arc<rustls::ServerConfig>>) -> Result<Bound, BindError> {
    let tls = match (listener.tls, tls) {
        (false, _) => None,
        (true, Some(config)) => Some(TlsAcceptor::from(Arc::clone(config))),
        (true, None) => return Err(BindError::NoCertificate { name: name.to_owned() }),
    };
    let address = listener.address;
    let failed = |cause| BindError::Listen { name: name.to_owned(), address, cause };
    let socket = TcpListener::bind(address).await.map_err(failed)?;
    let address = socket.local_addr().map_err(failed)?;
    let door = Door { name: name.to_owned(), address, anonymous: listener.anonymous, tls };
    Ok(Bound { listener: socket, door: Arc::new(door) })
}

#[cfg(test)]
mod tests;
