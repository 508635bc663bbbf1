use std::future::{self, Future};
use std::io;
use std::path::PathBuf;
use std::pin::{Pin, pin};

use rpicluster_protocol::limits::PROTOCOL_VERSION;
use rpicluster_protocol::{
    Details, Envelope, FromSlave, Liveness, SessionId, SlaveId, State, Topic, TopicRoot, Upward,
};
use tokio::select;
use tokio::sync::{mpsc, watch};
use tokio::time;

use crate::backoff::Backoff;
use crate::behaviour::Behaviour;
use crate::config::{ConfigError, SlaveConfig};
use crate::outbox::Outbox;
use crate::session::{self, Ended};
use crate::status::{Status, StatusSocket};

/// The version that `state` and details name.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// An agent that keeps itself connected to a master's broker.
pub struct Slave {
    pub(crate) id: SlaveId,
    pub(crate) root: TopicRoot,
    pub(crate) config: SlaveConfig,
    pub(crate) behaviour: Box<dyn Behaviour>,
    pub(crate) status: watch::Sender<Status>,
    pub(crate) outbox: Outbox,
    pub(crate) outgoing: mpsc::Receiver<Envelope<FromSlave>>,
    boot_id: Option<String>,
    slots: u32,
    status_socket: Option<PathBuf>,
}

/// Why a slave stopped that was not asked to.
#[derive(Debug, thiserror::Error)]
pub enum SlaveError {
    /// The status socket cannot be opened.
    #[error("status socket {}: {cause}", path.display())]
    StatusSocket {
        /// Where it should be.
        path: PathBuf,
        /// What the system says.
        cause: io::Error,
    },
    /// The system gives no random bits for a session id.
    #[error("no random bits for a session id: {0}")]
    Random(getrandom::Error),
}

impl Slave {
    /// A slave of the cluster below `root`, not yet connected. Without an id in its configuration it gets this machine's.
    ///
    /// # Errors
    /// If a value of the configuration cannot be used.
    pub fn new(
        config: SlaveConfig,
        root: TopicRoot,
        behaviour: impl Behaviour + 'static,
    ) -> Result<Slave, ConfigError> {
        config.validate()?;
        let id = config.id.clone().unwrap_or_else(rpicluster_machine::default_slave_id);
        let (outbox, outgoing) = Outbox::new();
        Ok(Slave {
            root,
            behaviour: Box::new(behaviour),
            status: watch::Sender::new(Status::new(id.clone(), config.master.to_string())),
            outbox,
            outgoing,
            boot_id: rpicluster_machine::boot_id(),
            slots: config.slots(),
            status_socket: None,
            id,
            config,
        })
    }

    /// The same, telling its status on a Unix socket for as long as it runs (see [`crate::query_status`]).
    pub fn with_status_socket(self, path: impl Into<PathBuf>) -> Slave {
        Slave { status_socket: Some(path.into()), ..self }
    }

    /// The slave's id.
    pub fn id(&self) -> &SlaveId {
        &self.id
    }

    /// Follows how the slave fares.
    pub fn status(&self) -> watch::Receiver<Status> {
        self.status.subscribe()
    }

    /// Sends messages in this slave's name.
    pub fn outbox(&self) -> Outbox {
        self.outbox.clone()
    }

    /// Connects, and again whenever the connection is lost, until `shutdown` completes; then says goodbye.
    ///
    /// # Errors
    /// If the status socket cannot be opened or the system gives no random bits. Never because of the network.
    pub async fn run(mut self, shutdown: impl Future<Output = ()>) -> Result<(), SlaveError> {
        let socket = self
            .status_socket
            .take()
            .map(|path| StatusSocket::bind(&path).map_err(|cause| SlaveError::StatusSocket { path, cause }));
        let socket = socket.transpose()?;
        let status = self.status();
        let tell_status = async {
            match socket {
                Some(socket) => socket.serve(status).await,
                None => future::pending().await,
            }
        };
        let shutdown = pin!(shutdown);
        select! {
            result = self.connect_for_ever(shutdown) => result,
            never = tell_status => match never {},
        }
    }

    async fn connect_for_ever(&mut self, mut shutdown: Pin<&mut impl Future<Output = ()>>) -> Result<(), SlaveError> {
        let mut random = fastrand::Rng::with_seed(random_bits()?);
        let mut backoff = Backoff::new();
        loop {
            let session = SessionId::from_random(random_bits()?);
            let (error, held) = match session::run(self, &session, &mut random, shutdown.as_mut()).await {
                Ended::Stopped => return Ok(()),
                Ended::Lost { error, held } => (error, held),
            };
            let wait = backoff.after(held, &mut random);
            tracing::warn!(id = %self.id, master = %self.config.master, %error, retry_in = ?wait, "no connection");
            select! {
                () = shutdown.as_mut() => return Ok(()),
                () = time::sleep(wait) => {}
            }
        }
    }

    /// The `state` of `session`: online without a reason, offline with one.
    pub(crate) fn state(&self, session: &SessionId, offline: Option<&str>) -> FromSlave {
        FromSlave::State(State {
            state: if offline.is_some() { Liveness::Offline } else { Liveness::Online },
            session: session.clone(),
            protocol: Some(PROTOCOL_VERSION),
            boot_id: self.boot_id.clone(),
            version: Some(VERSION.to_owned()),
            slots: Some(self.slots),
            reason: offline.map(str::to_owned),
        })
    }

    /// The behaviour's details, completed by what the agent knows of itself.
    pub(crate) fn details(&mut self) -> FromSlave {
        let mut details: Details = self.behaviour.details();
        if details.labels.is_empty() {
            details.labels.clone_from(&self.config.labels);
        }
        details.agent_version.get_or_insert_with(|| VERSION.to_owned());
        FromSlave::ComputerDetails(Box::new(details))
    }

    /// The name of one of this slave's own topics.
    pub(crate) fn topic(&self, leaf: Upward) -> String {
        self.root.name(&Topic::From(self.id.clone(), leaf))
    }
}

fn random_bits() -> Result<u64, SlaveError> {
    getrandom::u64().map_err(SlaveError::Random)
}
