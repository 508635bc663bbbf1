//! Where the cluster's messages pass: the master's own broker, or a connection to one that others run.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use rpicluster_broker::{Broker, LinkError, Stats};
use rpicluster_client::Connection;
use rpicluster_protocol::{SessionId, TopicRoot};

use crate::health::Hearing;
use crate::publish::Wire;
use crate::remote::{Remote, RemotePage, RemoteStatus};
use crate::source::Source;
use crate::tasks::RunError;

/// See the module.
pub(crate) struct Front {
    /// The way out.
    pub(crate) wire: Wire,
    /// The way in.
    pub(crate) source: Source,
    pub(crate) view: FrontView,
    pub(crate) serving: Serving,
}

/// What is served until the master stops.
pub(crate) enum Serving {
    /// The master's own broker.
    Own(Box<Broker>),
    /// The connection to one elsewhere.
    External(Box<Remote>),
}

/// How a front looks from outside.
pub(crate) enum FrontView {
    /// The master's own broker.
    Own {
        stats: Arc<Stats>,
        /// The master's, as long as it runs.
        session: SessionId,
        /// Names and addresses of listeners.
        addresses: Vec<(String, SocketAddr)>,
    },
    /// A broker elsewhere.
    External(Arc<RemoteStatus>),
}

impl Front {
    /// The master's own broker, which knows its session already.
    ///
    /// # Errors
    /// If the broker has stopped.
    pub(crate) fn own(broker: Broker, root: &TopicRoot, session: SessionId) -> Result<Front, LinkError> {
        let (sender, receiver) = broker.link(vec![root.every_slave()])?;
        let view = FrontView::Own { stats: broker.stats(), session, addresses: broker.addresses() };
        let serving = Serving::Own(Box::new(broker));
        Ok(Front { wire: Wire::Link(sender), source: Source::Link(receiver), view, serving })
    }

    /// A broker elsewhere, to which there is no connection yet. `seed` is random.
    pub(crate) fn external(connection: Connection, root: &TopicRoot, seed: u64) -> Front {
        let (remote, sender, arrived) = Remote::new(connection, root.clone(), seed);
        let view = FrontView::External(remote.status());
        let serving = Serving::External(Box::new(remote));
        Front { wire: Wire::Remote(sender), source: Source::Remote(arrived), view, serving }
    }
}

impl Serving {
    /// Serves until `stop` completes.
    ///
    /// # Errors
    /// If the own broker cannot go on. A broker elsewhere that is lost is looked for again.
    pub(crate) async fn run(self, stop: impl Future<Output = ()> + Send) -> Result<(), RunError> {
        match self {
            Serving::Own(broker) => Ok(broker.run(stop).await?),
            Serving::External(remote) => remote.run(stop).await,
        }
    }
}

impl FrontView {
    /// The master's newest session.
    pub(crate) fn session(&self) -> SessionId {
        match self {
            FrontView::Own { session, .. } => session.clone(),
            FrontView::External(status) => status.page().session.clone(),
        }
    }

    /// Names and addresses of our own listeners.
    pub(crate) fn addresses(&self) -> &[(String, SocketAddr)] {
        match self {
            FrontView::Own { addresses, .. } => addresses,
            FrontView::External(_) => &[],
        }
    }

    /// How the connection to a broker elsewhere fares.
    pub(crate) fn external(&self) -> Option<RemotePage> {
        match self {
            FrontView::Own { .. } => None,
            FrontView::External(status) => Some(status.page().clone()),
        }
    }

    /// Counters and gauges of our own broker, or of the connection to another.
    pub(crate) fn figures(&self) -> BTreeMap<&'static str, u64> {
        match self {
            FrontView::Own { stats, .. } => stats.snapshot(),
            FrontView::External(status) => BTreeMap::from([
                ("master_connections", status.hearing.connections()),
                ("master_dropped", status.dropped.get()),
            ]),
        }
    }

    /// Until when slaves are heard through it.
    pub(crate) fn hearing(&self) -> Arc<Hearing> {
        match self {
            FrontView::Own { .. } => Arc::new(Hearing::here()),
            FrontView::External(status) => status.hearing.clone(),
        }
    }
}
