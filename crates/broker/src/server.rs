//! Listening: accepting connections, and serving each of them in a task of its own.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tracing::{debug, error, info, warn};

use crate::codec::reason;
use crate::connection::{Connection, End};
use crate::greeting::{Greeting, Origin, Welcomed};
use crate::guesses::Guesses;
use crate::hub::Hub;
use crate::places::{Place, Places};
use crate::router::RouterStopped;
use crate::stats::{Stats, Throttle};

/// How long accepting pauses when the process has no more file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long clients may take to go when the broker stops.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(1);

/// A bound address.
pub(crate) struct Bound {
    pub(crate) listener: TcpListener,
    pub(crate) door: Arc<Door>,
}

/// What is the same for all connections to one address.
pub(crate) struct Door {
    pub(crate) name: String,
    pub(crate) address: SocketAddr,
    /// Whether clients that name no user are let in.
    pub(crate) anonymous: bool,
    /// There, if connections are encrypted.
    pub(crate) tls: Option<TlsAcceptor>,
}

/// A connection that was accepted.
struct Arrived {
    stream: TcpStream,
    address: IpAddr,
    door: Arc<Door>,
}

/// Accepts and serves clients until `shutdown`, then closes them.
pub(crate) async fn serve(
    hub: &Arc<Hub>,
    listeners: Vec<Bound>,
    shutdown: impl Future<Output = ()>,
) -> Result<(), RouterStopped> {
    let mut connections = JoinSet::new();
    let (accepted_tx, mut accepted) = tokio::sync::mpsc::channel(16);
    let mut accepting = JoinSet::new();
    for bound in listeners {
        accepting.spawn(accept(bound, accepted_tx.clone()));
    }
    let places = Arc::new(Places::default());
    let guesses = Arc::new(Guesses::default());
    let full = Throttle::default();
    tokio::pin!(shutdown);
    loop {
        tokio::select! {
            Some(arrived) = accepted.recv() => {
                let Some(place) = places.take(arrived.address, &hub.limits) else {
                    // Closed without an answer, as by a listener that is full: an answer would cost a task.
                    Stats::add(&hub.stats.connections_refused, 1);
                    if full.allows() {
                        warn!(address = %arrived.address, "too many connections: more are refused and counted");
                    }
                    continue;
                };
                connections.spawn(serve_connection(Arc::clone(hub), Arc::clone(&guesses), arrived, place));
            }
            Some(ended) = connections.join_next() => on_connection_end(hub, ended)?,
            () = &mut shutdown => break,
        }
    }
    drop(accepting);
    // What was accepted is delivered before anybody is closed: the program's own goodbye among it.
    let _ = tokio::time::timeout(SHUTDOWN_TIMEOUT, hub.router.settled()).await;
    hub.close_all();
    let gone = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(SHUTDOWN_TIMEOUT, gone).await.is_err() {
        connections.shutdown().await;
    }
    Ok(())
}

fn on_connection_end(
    hub: &Hub,
    ended: Result<Result<(), RouterStopped>, tokio::task::JoinError>,
) -> Result<(), RouterStopped> {
    match ended {
        Ok(result) => result,
        Err(error) => {
            // A parser's panic may cost one connection, never the broker.
            Stats::add(&hub.stats.connection_panics, 1);
            error!(%error, "a connection ended in a panic: this is a bug of the broker");
            Ok(())
        }
    }
}

/// Accepts connections for ever; running out of file descriptors pauses it.
async fn accept(bound: Bound, accepted: tokio::sync::mpsc::Sender<Arrived>) -> Infallible {
    let failing = Throttle::default();
    loop {
        match bound.listener.accept().await {
            Ok((stream, peer)) => {
                let arrived = Arrived { stream, address: peer.ip(), door: Arc::clone(&bound.door) };
                // The receiver ends only together with this task.
                drop(accepted.send(arrived).await);
            }
            Err(error) => {
                if failing.allows() {
                    let Door { name, address, .. } = &*bound.door;
                    warn!(listener = name, %address, %error, "cannot accept; trying again");
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn serve_connection(
    hub: Arc<Hub>,
    guesses: Arc<Guesses>,
    arrived: Arrived,
    place: Place,
) -> Result<(), RouterStopped> {
    Stats::add(&hub.stats.connections, 1);
    Stats::add(&hub.stats.connections_now, 1);
    let _open = Open(Arc::clone(&hub));
    let Arrived { stream, address, door } = arrived;
    // Without it a reply waits 40 ms for the acknowledgement of the packet before it.
    let _ = stream.set_nodelay(true);
    let deadline = Instant::now() + hub.limits.connect_timeout;
    let greeting = Greeting { hub: &hub, guesses: &guesses, origin: Origin { door: &door, address } };
    let Some(acceptor) = &door.tls else {
        let (read, write) = stream.into_split();
        return serve_client(greeting, read, write, deadline, place).await;
    };
    match tokio::time::timeout_at(deadline.into(), acceptor.accept(stream)).await {
        Ok(Ok(stream)) => {
            let (read, write) = tokio::io::split(stream);
            serve_client(greeting, read, write, deadline, place).await
        }
        Ok(Err(error)) => {
            Stats::add(&hub.stats.tls_failures, 1);
            if hub.refusals.allows() {
                info!(listener = door.name, %address, %error, "TLS handshake failed; more are counted");
            }
            Ok(())
        }
        Err(_) => {
            Stats::add(&hub.stats.connect_timeouts, 1);
            Ok(())
        }
    }
}

async fn serve_client(
    greeting: Greeting<'_>,
    mut read: impl AsyncRead + Unpin,
    mut write: impl AsyncWrite + Unpin,
    deadline: Instant,
    mut place: Place,
) -> Result<(), RouterStopped> {
    let hub = Arc::clone(greeting.hub);
    let mut input = Vec::new();
    let Some(welcomed) = greeting.greet(&mut read, &mut write, &mut input, deadline).await? else { return Ok(()) };
    place.settle();
    let Welcomed { attachment, settings, connack } = welcomed;
    let client_id = attachment.client.id.clone();
    debug!(client = ?client_id, version = ?settings.version, "client connected");
    // A future that waits for a client for days should not carry what only the greeting needed.
    let connection = Connection::new(Arc::clone(&hub), attachment, settings, (read, write), input, connack);
    match connection.run().await {
        End::Codec(error) => {
            Stats::add(&hub.stats.protocol_errors, 1);
            debug!(client = ?client_id, %error, "client broke the standard");
        }
        End::Closed(code @ (reason::RECEIVE_MAXIMUM_EXCEEDED | reason::PROTOCOL_ERROR)) => {
            Stats::add(&hub.stats.protocol_errors, 1);
            debug!(client = ?client_id, code, "client broke the standard");
        }
        End::Router(stopped) => return Err(stopped),
        end => debug!(client = ?client_id, reason = %end, "client disconnected"),
    }
    Ok(())
}

/// Counts a connection as open until it is dropped.
struct Open(Arc<Hub>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.stats.connections_now.fetch_sub(1, Ordering::Relaxed);
    }
}
