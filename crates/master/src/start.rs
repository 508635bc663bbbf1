//! Starting, running and stopping a master.
//!
//! The order matters. The store is opened first: it says who is known, and that no other master runs here. The broker gets
//! states and details back before it listens, so that no client ever reads an empty cluster.

use std::collections::BTreeSet;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rpicluster_broker::{BindError, Broker, BrokerConfig, LinkError, Security};
use rpicluster_client::Connection;
use rpicluster_core::tasks::Now;
use rpicluster_machine::{PrivateError, Sampler};
use rpicluster_protocol::{
    Envelope, FromSlave, MessageError, SessionId, State, Topic, TopicRoot, Upward, encode_from_slave,
};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio_rustls::TlsAcceptor;
use tracing::{info, warn};

use crate::access::{self, Access};
use crate::board::Board;
use crate::bus::Bus;
use crate::certificates::{CertificateError, Certificates, Wanted, machine_names};
use crate::commands::{self, COMMANDS_MAX};
use crate::config::MasterConfig;
use crate::counters::MasterCounters;
use crate::engine::tasks::{TaskDesk, TaskLimits};
use crate::engine::{Engine, INPUTS_MAX, Input, Surroundings};
use crate::front::{Front, FrontView};
use crate::handler::{OUTPUT_ROOM_BYTES, World};
use crate::health::{Health, Pulse};
use crate::letters::{self, LETTERS_MAX, Letter};
use crate::local_token::LocalToken;
use crate::loglimit::SharedLogLimit;
use crate::memory;
use crate::own_state::own_state;
use crate::publish::{Publish, Wire};
use crate::store::{Store, StoreError, StoredSlave};
use crate::tasks::{RunError, Tasks};
use crate::view::{Latest, View};
use crate::web::{self, Guard, LONG_REQUESTS_MAX, Site};
use crate::{clock, sampler};

/// The supervised task that must end last.
const BROKER_TASK: &str = "broker";

/// How long each stage of a clean stop may take: some commits of a slow SD card take seconds.
const STOP_TIME_MAX: Duration = Duration::from_secs(10);

/// How long the goodbye may take when the broker is busy.
const GOODBYE_TIME_MAX: Duration = Duration::from_secs(1);

/// Lines of all slaves together, apart from coming and going: a burst, then one for each interval.
const PEER_LOG: (u32, Duration) = (100, Duration::from_millis(200));

/// Lines about coming and going: 10,000 disconnects in a minute are a few dozen lines.
const PRESENCE_LOG: (u32, Duration) = (40, Duration::from_secs(2));

/// All that a master needs to know.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// The root of all topics.
    pub root: TopicRoot,
    /// Section `[master]` of `rpicluster.toml`.
    pub master: MasterConfig,
    /// `broker.toml`, for the master's own broker.
    pub broker: BrokerConfig,
    /// A broker that others run, in the place of the master's own.
    pub external: Option<Connection>,
}

/// Why a master could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A setting cannot work.
    #[error("{0}")]
    Setting(String),
    /// The store cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// An address for MQTT cannot be bound.
    #[error("MQTT {cause}; choose another address {remedy}")]
    Mqtt {
        /// The listener, its address, and what the system says.
        cause: BindError,
        /// Where.
        remedy: &'static str,
    },
    /// The broker cannot start for another reason.
    #[error(transparent)]
    Broker(BindError),
    /// The address for HTTP cannot be bound.
    #[error("HTTP: cannot bind {address}: {cause}; choose another address with --http")]
    Http {
        /// The address.
        address: SocketAddr,
        /// What the system says.
        cause: std::io::Error,
    },
    /// The broker stopped before it had started.
    #[error("the master's link to its broker failed: {0}")]
    Link(#[from] LinkError),
    /// The certificates cannot be used.
    #[error(transparent)]
    Certificates(#[from] CertificateError),
    /// The token for commands on this machine cannot be written.
    #[error(transparent)]
    LocalToken(#[from] PrivateError),
    /// The system gives no random numbers for the session.
    #[error("the system gives no random numbers: {0}")]
    Random(String),
    /// What the store remembers of a slave cannot be said on the wire.
    #[error("cannot give the broker back what is known: {0}")]
    Message(#[from] MessageError),
}

/// A master that has bound its addresses, and serves once it [runs](Master::run).
pub struct Master {
    settings: Settings,
    store: Store,
    desk: TaskDesk,
    board: Arc<Board>,
    letters: mpsc::Receiver<Letter>,
    slaves: Vec<StoredSlave>,
    view: Arc<View>,
    access: Access,
    inputs: (mpsc::Sender<Input>, mpsc::Receiver<Input>),
    front: Front,
    http: TcpListener,
    http_address: SocketAddr,
    certificates: Certificates,
    tls: TlsAcceptor,
    local_token: LocalToken,
    health: Arc<Health>,
    /// By which others know this machine.
    names: BTreeSet<String>,
}

impl Master {
    /// Opens the store, starts the broker (unless others run it) and binds all addresses.
    ///
    /// # Errors
    /// [`StartError`] names what is in the way and what to do.
    pub async fn bind(settings: Settings) -> Result<Master, StartError> {
        settings.master.check().map_err(StartError::Setting)?;
        let store = Store::open(&settings.master.state_dir)?;
        let slaves = store.slaves()?;
        let board = Arc::new(Board::default());
        let (letter_sender, letters) = mpsc::channel(LETTERS_MAX);
        let MasterConfig { jobs_max, output_bytes_max, .. } = settings.master;
        let limits = TaskLimits { jobs_max, output_bytes_max };
        let now = Now { moment: clock::now(), wall: clock::wall() };
        let desk = TaskDesk::open(&store, limits, board.clone(), letter_sender, now)?;
        let view = Arc::new(view_of(&slaves, settings.master.slaves_max));

        let names = server_names(&settings);
        let own = settings.master.tls_certificate.clone().zip(settings.master.tls_key.clone());
        let wanted = Wanted { names: names.clone(), own };
        let certificates = Certificates::open(&settings.master.state_dir, &wanted, SystemTime::now())?;
        let tls = certificates.server_config()?;
        let local_token = LocalToken::make(&settings.master.state_dir, random_bits()?)?;
        let inputs = mpsc::channel(INPUTS_MAX);
        let surroundings = access::Surroundings {
            root: settings.root.clone(),
            view: view.clone(),
            engine: inputs.0.downgrade(),
            ca_fingerprint: Some(certificates.fingerprint()),
            is_external: settings.external.is_some(),
            slaves_max: settings.master.slaves_max,
        };
        let access = Access::new(surroundings, store.access()?);
        let random = random_bits()?;
        let front = match settings.external.clone() {
            Some(connection) => Front::external(connection, &settings.root, u64::from_ne_bytes(random)),
            None => {
                let session = SessionId::from_random(u64::from_ne_bytes(random));
                let security = Security { authenticator: Arc::new(access.clone()), tls: Some(tls.clone()) };
                let broker = Broker::bind(settings.broker.clone(), security).await.map_err(unbound)?;
                access.attach(broker.handle());
                seed(&broker, &settings.root, &slaves, &session)?;
                Front::own(broker, &settings.root, session)?
            }
        };

        let address = settings.master.http;
        let refused = |cause| StartError::Http { address, cause };
        let http = TcpListener::bind(address).await.map_err(refused)?;
        let http_address = http.local_addr().map_err(refused)?;
        let health = Arc::new(Health::new(clock::now(), front.view.hearing()));
        Ok(Master {
            settings,
            store,
            desk,
            board,
            letters,
            slaves,
            view,
            access,
            inputs,
            front,
            http,
            http_address,
            certificates,
            tls: tls.into(),
            local_token,
            health,
            names: machine_names(&names),
        })
    }

    /// Names and addresses of the listeners of the master's own broker.
    pub fn mqtt_addresses(&self) -> Vec<(String, SocketAddr)> {
        self.front.view.addresses().to_vec()
    }

    /// Where the broker is that others run, if there is one.
    pub fn external_broker(&self) -> Option<String> {
        self.front.view.external().map(|page| page.address)
    }

    /// Where HTTP is served: `https://…` if others than this machine can reach it.
    pub fn http_url(&self) -> String {
        let scheme = if self.http_is_local() { "http" } else { "https" };
        format!("{scheme}://{}", self.http_address)
    }

    /// Follows whether its loops turn.
    pub fn pulse(&self) -> Pulse {
        Pulse(self.health.clone())
    }

    fn http_is_local(&self) -> bool {
        self.http_address.ip().is_loopback()
    }

    /// Serves until `shutdown` completes, then says goodbye and saves what it knows.
    ///
    /// # Errors
    /// The first part that fails ends the master.
    pub async fn run(self, shutdown: impl Future<Output = ()> + Send) -> Result<(), RunError> {
        let goodbye = match &self.front.view {
            FrontView::Own { session, .. } => Some((session.clone(), self.front.wire.clone())),
            // The connection to it says goodbye itself, when all has been said.
            FrontView::External(_) => None,
        };
        let root = self.settings.root.clone();
        let mut running = self.start();
        tokio::select! {
            () = shutdown => {}
            error = running.tasks.failure() => return Err(error),
        }
        info!("the master stops");
        if let Some((session, wire)) = goodbye {
            say_goodbye(&wire, &root, &session).await;
        }
        running.stop().await
    }

    fn start(self) -> Running {
        let now = clock::now();
        let http_tls = (!self.http_is_local()).then(|| self.tls.clone());
        let health = self.health;
        let Front { wire, source, view: front, serving } = self.front;
        let counters = Arc::new(MasterCounters::default());
        let (stop_front, stop) = watch::channel(false);
        let (stop_broker, broker_stop) = oneshot::channel::<()>();
        let (engine_sender, engine_inputs) = self.inputs;
        let (command_sender, commands) = mpsc::channel(COMMANDS_MAX);
        let mut sampler = Sampler::new();
        let (machine_sender, machine) = watch::channel(sampler::sample(&mut sampler));
        let root = self.settings.root;

        let site = Arc::new(Site {
            access: self.access.clone(),
            view: self.view.clone(),
            health: health.clone(),
            counters: counters.clone(),
            front,
            started: now,
            engine: engine_sender.downgrade(),
            board: self.board,
            reader: self.store.reader(),
            epoch: self.desk.epoch(),
            long_requests: Semaphore::new(LONG_REQUESTS_MAX),
        });
        let surroundings = Surroundings {
            view: self.view.clone(),
            health: health.clone(),
            counters: counters.clone(),
            log: Arc::new(SharedLogLimit::new(PRESENCE_LOG.0, PRESENCE_LOG.1)),
            commands: command_sender,
            desk: self.desk,
        };
        let timeout = self.settings.master.presence_timeout;
        let records = self.slaves.into_iter().map(|slave| slave.record).collect();
        let engine = Engine::new(timeout, self.store, records, surroundings, now);
        let world = Arc::new(World {
            root: root.clone(),
            view: self.view,
            engine: engine_sender,
            machine,
            publisher: wire.clone(),
            output_room: Arc::new(Semaphore::new(OUTPUT_ROOM_BYTES)),
            log: SharedLogLimit::new(PEER_LOG.0, PEER_LOG.1),
        });
        let bus = Bus::new(world, health, counters.clone());

        let mut tasks = Tasks::default();
        // Dropped with us or told: both mean that the broker stops.
        tasks.spawn(BROKER_TASK, serving.run(async { drop(broker_stop.await) }));
        tasks.spawn("bus", bus.run(source, stop.clone()));
        tasks.spawn_thread("engine", move || engine.run(engine_inputs));
        let (to_root, to_slaves) = (root.clone(), wire.clone());
        tasks.spawn("sender of tasks", letters::send(self.letters, to_root, to_slaves, counters.clone()));
        tasks.spawn("command sender", commands::send(commands, root, wire, counters));
        tasks.spawn("certificates", self.certificates.watch(stop.clone()));
        tasks.spawn("sampler", sampler::run(sampler, machine_sender, stop.clone()));
        tasks.spawn("memory", memory::run(stop.clone()));
        let http_open = self.settings.master.http_open;
        let (access, local_token) = (self.access, self.local_token);
        let guard = Guard::new(self.names, http_open, move |token| {
            let local = local_token.is(token).then(|| "local".to_owned());
            local.or_else(|| access.check_api_token(token).map(|name| name.to_string()))
        });
        tasks.spawn("HTTP server", web::serve(self.http, http_tls, web::router(site, Arc::new(guard)), stop));
        Running { tasks, stop_front, stop_broker }
    }
}

/// The tasks of a master, and how to stop them.
struct Running {
    tasks: Tasks,
    stop_front: watch::Sender<bool>,
    stop_broker: oneshot::Sender<()>,
}

impl Running {
    /// Bus and HTTP first; the engine then has no more inputs, saves and ends; the broker last.
    async fn stop(mut self) -> Result<(), RunError> {
        self.stop_front.send_replace(true);
        let front = self.tasks.finish(Some(BROKER_TASK), STOP_TIME_MAX).await;
        // A broker that has ended by itself does not listen to this any more: `finish` tells why.
        let _ = self.stop_broker.send(());
        let broker = self.tasks.finish(None, STOP_TIME_MAX).await;
        front.and(broker)
    }
}

/// What the certificate must name beside the machine's own names: what the configuration says, and where it listens.
fn server_names(settings: &Settings) -> Vec<String> {
    let listeners = settings.broker.listeners.values().map(|listener| listener.address);
    let addresses = listeners.chain([settings.master.http]).map(|address| address.ip());
    let addresses = addresses.filter(|address| !address.is_unspecified()).map(|address| address.to_string());
    settings.master.tls_names.iter().cloned().chain(addresses).collect()
}

fn view_of(slaves: &[StoredSlave], slaves_max: usize) -> View {
    let view = View::new(slaves_max);
    for StoredSlave { record, since, details } in slaves {
        let latest = Latest {
            state: record.liveness,
            since: *since,
            reason: record.reason.clone(),
            session: record.claim.as_ref().map(|claim| claim.session.clone()),
            details: details.clone().map(Arc::new),
            vitals: None,
        };
        view.restore(record.slave.clone(), latest);
    }
    view
}

fn unbound(error: BindError) -> StartError {
    let BindError::Listen { name, .. } = &error else { return StartError::Broker(error) };
    let remedy = match name.as_str() {
        "local" => "with --mqtt or in broker.toml",
        "cluster" => "with --mqtts or in broker.toml",
        _ => "in broker.toml",
    };
    StartError::Mqtt { cause: error, remedy }
}

fn random_bits<const N: usize>() -> Result<[u8; N], StartError> {
    let mut bits = [0; N];
    getrandom::fill(&mut bits).map_err(|error| StartError::Random(error.to_string()))?;
    Ok(bits)
}

/// Puts the retained messages in place that clients will ask for.
fn seed(broker: &Broker, root: &TopicRoot, slaves: &[StoredSlave], session: &SessionId) -> Result<(), StartError> {
    for StoredSlave { record, details, .. } in slaves {
        let put = |leaf, message| -> Result<(), StartError> {
            let payload = encode_from_slave(&Envelope::new(message))?;
            broker.seed_retained(&root.name(&Topic::From(record.slave.clone(), leaf)), &payload);
            Ok(())
        };
        if let Some(claim) = &record.claim {
            let state = State { state: record.liveness, reason: record.reason.clone(), ..claim.clone() };
            put(Upward::State, FromSlave::State(state))?;
        }
        if let Some(details) = details {
            put(Upward::Details, FromSlave::ComputerDetails(Box::new(details.clone())))?;
        }
    }
    let state = own_state(root, session, None)?;
    broker.seed_retained(&state.topic, &state.payload);
    Ok(())
}

async fn say_goodbye(wire: &Wire, root: &TopicRoot, session: &SessionId) {
    // A state is far below the limit of a message.
    let Ok(offline) = own_state(root, session, Some("stopped")) else { return };
    if !matches!(tokio::time::timeout(GOODBYE_TIME_MAX, wire.publish(offline)).await, Ok(Ok(()))) {
        warn!("the broker did not take the master's goodbye: slaves notice by the closed connection");
    }
}
