//! The master as a client of a broker that others run: connected for as long as that can be, for ever trying if not.
//!
//! Each connection has a session and a will of its own, as a slave's has. Losing the broker and finding it again is an
//! ordinary event: while it is away nobody is judged (see [`Hearing`]), what is said waits, bounded, and when it is back
//! everybody is asked anew.

use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rpicluster_broker::Outgoing;
use rpicluster_client::{Backoff, Connection};
use rpicluster_protocol::{SessionId, Timestamp, TopicRoot};
use serde::Serialize;
use tokio::sync::mpsc;
use tracing::warn;

use crate::clock;
use crate::counters::Counter;
use crate::health::Hearing;
use crate::source::Arrived;
use crate::tasks::RunError;

mod problem;
mod queue;
mod session;

pub(crate) use problem::Problem;
use queue::Queue;
use session::Ended;

/// The client id of a master that has no user name; nobody's, since no slave may be called so.
const CLIENT_ID: &str = "master";

/// How many messages from the broker wait for the bus, which never waits itself.
const ARRIVED_MAX: usize = 1_000;

/// See the module.
pub(crate) struct Remote {
    connection: Connection,
    client_id: String,
    root: TopicRoot,
    arrived: mpsc::Sender<Arrived>,
    queue: Arc<Queue>,
    status: Arc<RemoteStatus>,
    random: fastrand::Rng,
}

/// Publishes by that connection. Cheap to clone.
#[derive(Clone)]
pub(crate) struct RemoteSender {
    queue: Arc<Queue>,
    status: Arc<RemoteStatus>,
}

/// How the connection fares.
pub(crate) struct RemoteStatus {
    pub(crate) hearing: Arc<Hearing>,
    /// Messages to the broker that it did not take: too many waited, or the connection broke before it acknowledged them.
    pub(crate) dropped: Counter,
    page: Mutex<RemotePage>,
}

/// The same as HTTP shows it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct RemotePage {
    /// Where the broker is.
    pub(crate) address: String,
    pub(crate) connected: bool,
    /// Since when it is connected, or not.
    pub(crate) since: Timestamp,
    /// What went wrong last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) problem: Option<String>,
    /// The newest session, which slaves see.
    #[serde(skip)]
    pub(crate) session: SessionId,
}

impl Remote {
    /// A connection that is not tried yet, with what publishes by it and what comes from it. `seed` is random.
    pub(crate) fn new(
        connection: Connection,
        root: TopicRoot,
        seed: u64,
    ) -> (Remote, RemoteSender, mpsc::Receiver<Arrived>) {
        let mut random = fastrand::Rng::with_seed(seed);
        let (arrived, receiver) = mpsc::channel(ARRIVED_MAX);
        let queue = Arc::<Queue>::default();
        let page = RemotePage {
            address: connection.address().to_string(),
            connected: false,
            since: clock::wall(),
            problem: None,
            session: SessionId::from_random(random.u64(..)),
        };
        let hearing = Arc::new(Hearing::elsewhere());
        let status = Arc::new(RemoteStatus { hearing, dropped: Counter::default(), page: Mutex::new(page) });
        let connection = connection.with_default_user(CLIENT_ID);
        let client_id = connection.user().unwrap_or(CLIENT_ID).to_owned();
        let sender = RemoteSender { queue: queue.clone(), status: status.clone() };
        (Remote { connection, client_id, root, arrived, queue, status, random }, sender, receiver)
    }

    pub(crate) fn status(&self) -> Arc<RemoteStatus> {
        self.status.clone()
    }

    /// Connects again and again until `stop` completes; says goodbye then.
    ///
    /// # Errors
    /// None by the network: only a bug ends this.
    pub(crate) async fn run(mut self, stop: impl Future<Output = ()> + Send) -> Result<(), RunError> {
        let mut stop = pin!(stop);
        if self.connection.exposes_password() {
            let broker = self.connection.address();
            warn!(%broker, "the password crosses the network for everybody to read: use mqtts://");
        }
        let mut backoff = Backoff::default();
        loop {
            let session = SessionId::from_random(self.random.u64(..));
            self.status.page().session = session.clone();
            let (problem, held) = match session::run(&mut self, &session, stop.as_mut()).await {
                Ended::Stopped => return Ok(()),
                Ended::Lost { problem, held } => (problem, held),
            };
            let random = &mut self.random;
            let wait = if problem.is_refusal { backoff.after_refusal(random) } else { backoff.after(held, random) };
            warn!(broker = %self.connection.address(), problem = %problem.text, retry_in = ?wait, "no connection");
            self.status.lost(problem.text);
            tokio::select! {
                () = stop.as_mut() => return Ok(()),
                () = tokio::time::sleep(wait) => {}
            }
        }
    }
}

impl RemoteSender {
    /// Publishes, as soon as the broker takes it. While there is no connection this never waits: then the oldest of too many
    /// messages is dropped.
    pub(crate) async fn publish(&self, message: Outgoing) {
        self.queue.push(message, &self.status.dropped).await;
    }
}

impl RemoteStatus {
    pub(crate) fn page(&self) -> MutexGuard<'_, RemotePage> {
        self.page.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The broker has let us in and sends us what slaves say.
    fn found(&self) {
        let mut page = self.page();
        (page.connected, page.since, page.problem) = (true, clock::wall(), None);
        drop(page);
        self.hearing.found(clock::now());
    }

    fn lost(&self, problem: String) {
        self.hearing.lost();
        let mut page = self.page();
        if page.connected {
            (page.connected, page.since) = (false, clock::wall());
        }
        page.problem = Some(problem);
    }
}

#[cfg(test)]
mod tests;
