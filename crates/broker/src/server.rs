//! Listening: binding, accepting, and the first packet of a connection.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tracing::{debug, error, info, warn};

use crate::codec::{
    CodecError, ConnAck, Connect, QoS, SHORTEST_CONNACK, Version, Will, decode_connect, encode_connack, reason,
    split_frame,
};
use crate::config::Limits;
use crate::connection::{Connection, End, Settings, read_some};
use crate::hub::{Arrival, Attachment, Hub};
use crate::message::{Message, Parts};
use crate::router::RouterStopped;
use crate::stats::{Stats, Throttle};

/// How long accepting pauses when the process has no more file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long clients may take to go when the broker stops.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(1);

/// A bound address.
pub(crate) struct Bound {
    pub(crate) name: String,
    pub(crate) address: SocketAddr,
    pub(crate) listener: TcpListener,
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
    let full = Throttle::default();
    tokio::pin!(shutdown);
    loop {
        tokio::select! {
            Some((stream, peer)) = accepted.recv() => {
                let Some(place) = places.take(peer, &hub.limits) else {
                    // Closed without an answer, as by a listener that is full: an answer would cost a task.
                    Stats::add(&hub.stats.connections_refused, 1);
                    if full.allows() {
                        warn!(address = %peer, "too many connections: more are refused and counted");
                    }
                    continue;
                };
                let hub = Arc::clone(hub);
                connections.spawn(async move {
                    let _place = place;
                    serve_client(hub, stream).await
                });
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
async fn accept(bound: Bound, accepted: tokio::sync::mpsc::Sender<(TcpStream, IpAddr)>) -> Infallible {
    let failing = Throttle::default();
    loop {
        match bound.listener.accept().await {
            // The receiver ends only together with this task.
            Ok((stream, peer)) => drop(accepted.send((stream, peer.ip())).await),
            Err(error) => {
                if failing.allows() {
                    warn!(listener = bound.name, address = %bound.address, %error, "cannot accept; trying again");
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn serve_client(hub: Arc<Hub>, stream: TcpStream) -> Result<(), RouterStopped> {
    Stats::add(&hub.stats.connections, 1);
    Stats::add(&hub.stats.connections_now, 1);
    let _open = Open(Arc::clone(&hub));
    // Without it a reply waits 40 ms for the acknowledgement of the packet before it.
    let _ = stream.set_nodelay(true);
    let (mut read, mut write) = stream.into_split();
    let mut input = Vec::new();
    let greeting = greet(&hub, &mut read, &mut input);
    let greeted = match tokio::time::timeout(hub.limits.connect_timeout, greeting).await {
        Ok(greeted) => greeted?,
        Err(_) => {
            Stats::add(&hub.stats.connect_timeouts, 1);
            return Ok(());
        }
    };
    let welcomed = match greeted {
        Ok(welcomed) => *welcomed,
        Err(refusal) => {
            refuse(&hub, refusal, &mut write).await;
            return Ok(());
        }
    };
    let Welcomed { attachment, settings, connack, used } = welcomed;
    input.drain(..used);
    let client_id = attachment.client.id.clone();
    debug!(client = ?client_id, version = ?settings.version, "client connected");
    let end = Connection::new(Arc::clone(&hub), attachment, settings, (read, write), input, connack).run().await;
    match end {
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

/// Who holds how many connections.
#[derive(Debug, Default)]
struct Places(Mutex<Taken>);

#[derive(Debug, Default)]
struct Taken {
    total: usize,
    by_address: HashMap<IpAddr, usize>,
}

/// A connection's place, given back when it is dropped.
struct Place {
    places: Arc<Places>,
    peer: IpAddr,
}

impl Places {
    /// A place for a connection from `peer`, if the limits leave one.
    fn take(self: &Arc<Self>, peer: IpAddr, limits: &Limits) -> Option<Place> {
        let mut taken = self.lock();
        if taken.total >= limits.connections
            || taken.by_address.get(&peer).is_some_and(|count| *count >= limits.connections_per_address)
        {
            return None;
        }
        taken.total += 1;
        *taken.by_address.entry(peer).or_default() += 1;
        Some(Place { places: Arc::clone(self), peer })
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.lock();
        taken.total -= 1;
        if let Some(count) = taken.by_address.get_mut(&self.peer) {
            *count -= 1;
            if *count == 0 {
                taken.by_address.remove(&self.peer);
            }
        }
    }
}

/// Counts a connection as open until it is dropped.
struct Open(Arc<Hub>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.stats.connections_now.fetch_sub(1, Ordering::Relaxed);
    }
}

struct Welcomed {
    attachment: Attachment,
    settings: Settings,
    connack: Vec<u8>,
    /// How much of the input was the CONNECT.
    used: usize,
}

enum Refusal {
    /// The peer left or is not MQTT at all: no answer.
    Silent,
    /// CONNACK with this reason code.
    Answer(Version, u8),
}

/// Reads CONNECT and decides.
async fn greet(
    hub: &Arc<Hub>,
    read: &mut (impl AsyncRead + Unpin),
    input: &mut Vec<u8>,
) -> Result<Result<Box<Welcomed>, Refusal>, RouterStopped> {
    let used = loop {
        // Anything but CONNECT ends here, before more of it is awaited.
        if input.first().is_some_and(|first| *first != 0x10) {
            Stats::add(&hub.stats.protocol_errors, 1);
            return Ok(Err(Refusal::Silent));
        }
        match split_frame(input, hub.limits.packet_bytes) {
            Ok(Some((_, used))) => break used,
            Ok(None) => {}
            Err(error) => return Ok(Err(broken(hub, error))),
        }
        if !matches!(read_some(read, input).await, Ok(1..)) {
            return Ok(Err(Refusal::Silent));
        }
    };
    let decoded = match split_frame(input, hub.limits.packet_bytes) {
        Ok(Some((frame, _))) => decode_connect(frame, hub.limits.user_properties),
        Ok(None) => return Ok(Err(Refusal::Silent)),
        Err(error) => Err(error),
    };
    match decoded {
        Ok(connect) => welcome(hub, &connect, used).await,
        Err(error) => Ok(Err(broken(hub, error))),
    }
}

/// An answer to a CONNECT that is not understood: MQTT 3.1.1 has one for an unknown version only (3.1.2-2), MQTT 5 may
/// have one for all, but whether the peer speaks MQTT 5 is not known.
fn broken(hub: &Hub, error: CodecError) -> Refusal {
    Stats::add(&hub.stats.protocol_errors, 1);
    debug!(%error, "CONNECT refused");
    if error == CodecError::Version {
        Refusal::Answer(Version::V4, reason::UNSUPPORTED_VERSION)
    } else {
        Refusal::Silent
    }
}

async fn welcome(
    hub: &Arc<Hub>,
    connect: &Connect<'_>,
    used: usize,
) -> Result<Result<Box<Welcomed>, Refusal>, RouterStopped> {
    let version = connect.version;
    let refuse = |code| {
        Stats::add(&hub.stats.connects_refused, 1);
        Ok(Err(Refusal::Answer(version, code)))
    };
    let packet_bytes_max = connect.maximum_packet_size as usize;
    if packet_bytes_max < SHORTEST_CONNACK {
        Stats::add(&hub.stats.connects_refused, 1);
        return Ok(Err(Refusal::Silent));
    }
    if connect.has_authentication_method {
        return refuse(reason::BAD_AUTHENTICATION_METHOD);
    }
    // MQTT 3.1.3-8: without a client id there is nothing to keep a session under.
    if connect.client_id.is_empty() && version == Version::V4 && !connect.clean_start {
        return refuse(reason::CLIENT_ID_NOT_VALID);
    }
    let assigned = connect.client_id.is_empty().then(|| format!("auto-{}", hub.next_number()));
    let client_id = assigned.as_deref().unwrap_or(connect.client_id);
    if client_id.len() > hub.limits.client_id_bytes {
        return refuse(reason::CLIENT_ID_NOT_VALID);
    }
    if let Err(code) = hub.access.connect(client_id) {
        return refuse(code);
    }
    if let Some(will) = &connect.will
        && !hub.access.publish(will.topic)
    {
        return refuse(reason::NOT_AUTHORIZED);
    }
    let longest = u32::try_from(hub.limits.session_expiry.as_secs()).unwrap_or(u32::MAX);
    let expiry = connect.session_expiry.min(longest);
    let answer = ConnAck {
        session_present: false,
        reason: reason::SUCCESS,
        assigned_client_id: assigned.as_deref(),
        session_expiry: (expiry != connect.session_expiry).then_some(expiry),
        receive_maximum: hub.limits.inflight,
        maximum_packet_size: u32::try_from(hub.limits.packet_bytes).unwrap_or(u32::MAX),
    };
    if !answer.fits(version, packet_bytes_max) {
        return refuse(reason::PACKET_TOO_LARGE);
    }
    let arrival = Arrival { client_id, clean_start: connect.clean_start, expiry };
    let mut attachment = match hub.attach(arrival).await? {
        Ok(attachment) => attachment,
        Err(code) => return refuse(code),
    };
    attachment.will = connect.will.as_ref().map(|will| will_of(&attachment, will));
    let mut connack = Vec::new();
    encode_connack(&mut connack, version, &ConnAck { session_present: attachment.present, ..answer });
    let silence = Duration::from_millis(1500 * u64::from(connect.keep_alive));
    let settings = Settings {
        version,
        silence_max: (connect.keep_alive > 0).then_some(silence),
        window: connect.receive_maximum.min(hub.limits.inflight),
        packet_bytes_max,
    };
    Ok(Ok(Box::new(Welcomed { attachment, settings, connack, used })))
}

fn will_of(attachment: &Attachment, will: &Will<'_>) -> (Duration, Message) {
    let parts = Parts {
        topic: will.topic,
        payload: will.payload,
        qos: will.qos,
        retain: will.retain,
        publisher: attachment.client.number,
        expiry: will.properties.expiry,
        properties: &will.properties.passed,
    };
    (Duration::from_secs(u64::from(will.delay)), Message::unsent(parts))
}

async fn refuse(hub: &Hub, refusal: Refusal, write: &mut (impl AsyncWrite + Unpin)) {
    let Refusal::Answer(version, code) = refusal else { return };
    if hub.refusals.allows() {
        info!(code, "CONNECT refused; more are counted");
    }
    let mut answer = Vec::new();
    encode_connack(&mut answer, version, &ConnAck { reason: code, ..ConnAck::default() });
    let farewell = async {
        write.write_all(&answer).await?;
        write.shutdown().await
    };
    // Whether the peer reads why is its own matter.
    let _: Result<io::Result<()>, _> = tokio::time::timeout(hub.limits.write_timeout, farewell).await;
}

const _: () = assert!(QoS::ExactlyOnce as u8 == 2);
