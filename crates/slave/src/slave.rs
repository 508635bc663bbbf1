use std::future::{self, Future};
use std::io;
use std::path::PathBuf;
use std::pin::{Pin, pin};

use rpicluster_client::{Backoff, BrokerAddress, Connection, TrustError};
use rpicluster_core::journal::AHEAD;
use rpicluster_protocol::JoinToken;
use rpicluster_protocol::limits::PROTOCOL_VERSION;
use rpicluster_protocol::{
    Details, Envelope, FromSlave, Liveness, SessionId, SlaveId, State, Topic, TopicRoot, Upward,
};
use rumqttc::{ConnectReturnCode, ConnectionError};
use tokio::select;
use tokio::sync::{mpsc, watch};
use tokio::time;

use crate::behaviour::Behaviour;
use crate::config::{ConfigError, SlaveConfig};
use crate::identity::{Identity, IdentityError};
use crate::join::{Joining, Refusal, way_out};
use crate::outbox::Outbox;
use crate::pulse::Pulse;
use crate::session::{self, Ended};
use crate::status::{Status, StatusSocket};
use crate::tasks::{SupervisorCommand, Tasks, TasksError};
use crate::text::{PROBLEM_CHARACTERS_MAX, bounded};

/// The version that `state` and details name.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// An agent that keeps itself connected to a master's broker.
pub struct Slave {
    pub(crate) id: SlaveId,
    pub(crate) address: BrokerAddress,
    pub(crate) root: TopicRoot,
    pub(crate) config: SlaveConfig,
    pub(crate) behaviour: Box<dyn Behaviour>,
    pub(crate) status: watch::Sender<Status>,
    pub(crate) pulse: Pulse,
    pub(crate) outbox: Outbox,
    pub(crate) outgoing: mpsc::Receiver<Envelope<FromSlave>>,
    /// Its tasks, once it runs.
    pub(crate) tasks: Option<Tasks>,
    supervisor: Option<SupervisorCommand>,
    boot_id: Option<String>,
    slots: u32,
    status_socket: Option<PathBuf>,
    entry: Option<Entry>,
    /// Where the identity is kept, for advice; `None` if it has an account instead.
    identity_path: Option<PathBuf>,
}

/// How a slave gets in.
#[derive(Debug, Clone)]
pub enum Access {
    /// With the identity in its state folder, at [`SlaveConfig::master`]. If there is none, the token lets it join.
    Identity {
        /// What `rpicluster token create` printed.
        token: Option<JoinToken>,
    },
    /// With an account at a broker that others run, which takes the place of [`SlaveConfig::master`]: it never joins. Its
    /// user name is the slave's id if it has a password and none is named.
    Account(Connection),
}

/// What is to be done before the first session.
enum Entry {
    Known(Connection),
    Joining(Box<Joining>),
}

/// Why a slave cannot start, or stopped without being asked to.
#[derive(Debug, thiserror::Error)]
pub enum SlaveError {
    /// A value of the configuration cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The identity cannot be read, kept or used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// There is neither an identity nor a token.
    #[error(
        "this slave has not joined a master yet: run `rpicluster token create` on the master, and start this with the token \
         (--token, --token-file, or RPICLUSTER_TOKEN)"
    )]
    NotJoined,
    /// A secret would cross the network for everybody to read.
    #[error(
        "{0} is without TLS: this slave would show its secret to the whole network; write mqtts:// and the port of TLS (8883)"
    )]
    Plain(BrokerAddress),
    /// The master said no.
    #[error(
        "the master does not let this slave join as {id}: {refusal}. A token is good for its time and its uses only: make a new \
         one with `rpicluster token create`. If another machine has this id, choose another with --id, or make a token that \
         replaces it (`rpicluster token create --help`)"
    )]
    Refused {
        /// As whom it asked.
        id: SlaveId,
        /// What the master answered.
        refusal: Refusal,
    },
    /// Who answered is not the master of the token. It was told no secret.
    #[error("{0}. Nothing secret was sent")]
    Untrusted(TrustError),
    /// The status socket cannot be opened.
    #[error("status socket {}: {cause}", path.display())]
    StatusSocket {
        /// Where it should be.
        path: PathBuf,
        /// What the system says.
        cause: io::Error,
    },
    /// Tasks cannot be run here.
    #[error(transparent)]
    Tasks(#[from] TasksError),
    /// The system gives no random bits for a session id or a secret.
    #[error("no random bits: {0}")]
    Random(#[from] getrandom::Error),
}

impl Slave {
    /// A slave of the cluster below `root`, not yet connected. Without an id in its configuration it has that of its
    /// identity, else this machine's.
    ///
    /// # Errors
    /// If a value of the configuration or the identity cannot be used, or it has no way in.
    pub fn new(
        config: SlaveConfig,
        root: TopicRoot,
        access: Access,
        behaviour: impl Behaviour + 'static,
    ) -> Result<Slave, SlaveError> {
        config.validate()?;
        let (id, address, entry, identity_path) = match access {
            Access::Account(connection) => {
                let id = config.id.clone().unwrap_or_else(rpicluster_machine::default_slave_id);
                let connection = connection.with_default_user(id.as_str());
                (id, connection.address().clone(), Entry::Known(connection), None)
            }
            Access::Identity { token } => {
                let (identity, token) = identity(&config, token)?;
                let (id, path) = (identity.id.clone(), identity.path().to_owned());
                let address = config.master.clone();
                let entry = match token {
                    None => Entry::Known(identity.connection(&address)?),
                    Some(token) => Entry::Joining(Box::new(Joining { address: address.clone(), identity, token })),
                };
                (id, address, entry, Some(path))
            }
        };
        let (outbox, outgoing) = Outbox::new();
        Ok(Slave {
            root,
            behaviour: Box::new(behaviour),
            status: watch::Sender::new(Status::new(id.clone(), address.to_string())),
            pulse: Pulse::new(),
            outbox,
            outgoing,
            tasks: None,
            supervisor: None,
            boot_id: rpicluster_machine::boot_id(),
            slots: config.slots(),
            status_socket: None,
            entry: Some(entry),
            identity_path,
            id,
            address,
            config,
        })
    }

    /// The same, telling its status on a Unix socket for as long as it runs (see [`crate::query_status`]).
    pub fn with_status_socket(self, path: impl Into<PathBuf>) -> Slave {
        Slave { status_socket: Some(path.into()), ..self }
    }

    /// The same, running tasks as `[slave.tasks]` allows, by a supervisor that is started so (see [`crate::supervise`]).
    /// Without this, offers are only shown to its [`Behaviour`].
    pub fn with_tasks(self, supervisor: SupervisorCommand) -> Slave {
        Slave { supervisor: Some(supervisor), ..self }
    }

    /// The slave's id.
    pub fn id(&self) -> &SlaveId {
        &self.id
    }

    /// Follows how the slave fares.
    pub fn status(&self) -> watch::Receiver<Status> {
        self.status.subscribe()
    }

    /// Follows whether its loop turns.
    pub fn pulse(&self) -> Pulse {
        self.pulse.clone()
    }

    /// Sends messages in this slave's name.
    pub fn outbox(&self) -> Outbox {
        self.outbox.clone()
    }

    /// Joins if it has to, connects, and again whenever the connection is lost, until `shutdown` completes; then says
    /// goodbye.
    ///
    /// # Errors
    /// If the status socket cannot be opened, tasks cannot be run here, the master does not let it join or is not the token's, or the system fails.
    /// Never because the network does.
    pub async fn run(mut self, shutdown: impl Future<Output = ()>) -> Result<(), SlaveError> {
        let socket = self
            .status_socket
            .take()
            .map(|path| StatusSocket::bind(&path).map_err(|cause| SlaveError::StatusSocket { path, cause }));
        let socket = socket.transpose()?;
        if let Some(supervisor) = self.supervisor.take() {
            self.tasks = Some(Tasks::start(&self.config, self.id.clone(), self.boot_id.clone(), supervisor)?);
        }
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
        let mut random = fastrand::Rng::with_seed(getrandom::u64()?);
        let connection = match self.entry.take() {
            Some(Entry::Known(connection)) => Some(connection),
            Some(Entry::Joining(mut joining)) => {
                joining.run(&self.status, &self.pulse, &mut random, shutdown.as_mut()).await?
            }
            None => None,
        };
        let Some(connection) = connection else { return Ok(()) };
        if connection.exposes_password() {
            tracing::warn!(broker = %self.address, "the password crosses the network for everybody to read: use mqtts://");
        }
        let mut backoff = Backoff::default();
        loop {
            let session = SessionId::from_random(getrandom::u64()?);
            let (error, held) = match session::run(self, &connection, &session, &mut random, shutdown.as_mut()).await {
                Ended::Stopped => return Ok(()),
                Ended::Lost { error, held } => (error, held),
            };
            let wait =
                if is_refusal(&error) { backoff.after_refusal(&mut random) } else { backoff.after(held, &mut random) };
            let problem = self.explain(&error);
            tracing::warn!(id = %self.id, master = %self.address, %problem, retry_in = ?wait, "no connection");
            self.status.send_modify(|status| status.problem = Some(problem));
            self.pulse.expect_within(wait);
            select! {
                () = shutdown.as_mut() => return Ok(()),
                () = time::sleep(wait) => {}
            }
        }
    }

    /// Why there is no connection, for people.
    fn explain(&self, error: &ConnectionError) -> String {
        let way_out = self.identity_path.as_deref().map(way_out);
        match (is_refusal(error), TrustError::of(error), way_out) {
            (true, _, Some(way_out)) => format!(
                "the master does not know this slave by its secret: it was removed there, or another machine has taken its \
                 id; {way_out}"
            ),
            (true, _, None) => "the broker refuses this login: check user and password of [cluster]".to_owned(),
            (_, Some(trust @ TrustError::UnknownIssuer), Some(way_out)) => format!("{trust}; {way_out}"),
            (_, Some(trust @ TrustError::UnknownIssuer), None) => format!("{trust}; cluster.ca_file names the CA"),
            (_, Some(trust), _) => trust.to_string(),
            (_, None, _) => bounded(&error.to_string(), PROBLEM_CHARACTERS_MAX),
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
            ahead: Some(AHEAD),
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

/// Whether the broker said that it does not know who this is.
fn is_refusal(error: &ConnectionError) -> bool {
    use ConnectReturnCode::{BadUserNamePassword, NotAuthorized};
    matches!(error, ConnectionError::ConnectionRefused(BadUserNamePassword | NotAuthorized))
}

/// The identity of this slave, and the token if it has yet to join with it.
fn identity(config: &SlaveConfig, token: Option<JoinToken>) -> Result<(Identity, Option<JoinToken>), SlaveError> {
    if !config.master.is_tls() && !config.master.is_loopback() {
        return Err(SlaveError::Plain(config.master.clone()));
    }
    let (joined, tried) = match Identity::load(&config.state_dir)? {
        Some(identity) if identity.joined => (Some(identity), None),
        other => (None, other),
    };
    if let Some(joined) = joined {
        if let Some(wanted) = config.id.as_ref().filter(|wanted| **wanted != joined.id) {
            let (stored, wanted) = (joined.id.clone(), wanted.clone());
            return Err(IdentityError::OtherId { path: joined.path().to_owned(), stored, wanted }.into());
        }
        if let Some(token) = token {
            note_needless(&token, &joined);
        }
        return Ok((joined, None));
    }
    let token = token.ok_or(SlaveError::NotJoined)?;
    let id = config.id.clone().unwrap_or_else(rpicluster_machine::default_slave_id);
    // An earlier try may have reached the master: only the same secret is welcome then.
    let identity = match tried.filter(|tried| tried.id == id) {
        Some(tried) => tried,
        None => Identity::new(id, &config.state_dir)?,
    };
    Ok((identity, Some(token)))
}

fn note_needless(token: &JoinToken, joined: &Identity) {
    if joined.is_of_master(token) {
        tracing::info!(id = %joined.id, "this slave has joined already: the token is not needed");
    } else {
        let advice = way_out(joined.path());
        tracing::warn!(id = %joined.id, "this slave has joined another master than the token's, and stays with it; {advice}");
    }
}
