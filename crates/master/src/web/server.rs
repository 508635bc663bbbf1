//! Serves HTTP with bounds that `axum::serve` does not have: on connections, on the time for a request's head, and on the
//! life of a connection, so that a client that says nothing or reads nothing uses up nobody's place for ever.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tracing::warn;

use crate::tasks::RunError;
use crate::web::body::Lifeline;
use crate::web::guard::Peer;

/// How many connections are served at once; further ones wait to be accepted.
const CONNECTIONS_MAX: usize = 256;

/// How long a client may take for the head of its request, or be idle between two.
const HEAD_TIME_MAX: Duration = Duration::from_secs(10);

/// How long a connection may live: 10,000 slaves are read in a second, a client that reads slower is cut.
const CONNECTION_TIME_MAX: Duration = Duration::from_secs(60);

/// The longest request head in bytes.
const HEAD_BYTES_MAX: usize = 16 * 1024;

/// How long to wait when the system has no file descriptors left: another client may give one back.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long a request under way may go on when the master stops.
const STOP_TIME_MAX: Duration = Duration::from_secs(1);

/// Serves until `stop` turns true. Requests under way are then answered, within their own limits.
///
/// # Errors
/// If a connection's task panicked.
pub(crate) async fn serve(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    router: Router,
    mut stop: watch::Receiver<bool>,
) -> Result<(), RunError> {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        let (place, stream, peer) = tokio::select! {
            next = next_connection(&listener, &places) => next,
            _ = stop.wait_for(|stop| *stop) => break,
        };
        let connection = encrypted(stream, peer, tls.clone(), router.clone(), stop.clone());
        connections.spawn(async move {
            connection.await;
            drop(place);
        });
        while let Some(ended) = connections.try_join_next() {
            check(ended)?;
        }
    }
    drop(listener);
    while let Some(ended) = connections.join_next().await {
        check(ended)?;
    }
    Ok(())
}

/// A connection and a place to serve it. Cancel safe.
async fn next_connection(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> (OwnedSemaphorePermit, TcpStream, SocketAddr) {
    loop {
        match (places.clone().acquire_owned().await, listener.accept().await) {
            (Ok(place), Ok((stream, peer))) => return (place, stream, peer),
            (_, Err(error)) => warn!(%error, "cannot accept an HTTP connection"),
            // Nobody closes the semaphore.
            (Err(_), _) => {}
        }
        tokio::time::sleep(ACCEPT_PAUSE).await;
    }
}

fn check(ended: Result<(), tokio::task::JoinError>) -> Result<(), RunError> {
    ended.map_err(|error| RunError::Failed { task: "HTTP connection", problem: error.to_string() })
}

/// Serves one connection, after the TLS handshake if there is to be one.
async fn encrypted(
    stream: TcpStream,
    peer: SocketAddr,
    tls: Option<TlsAcceptor>,
    router: Router,
    stop: watch::Receiver<bool>,
) {
    // Without it answers wait for the peer's delayed acknowledgement; a socket that refuses is closed already.
    let _ = stream.set_nodelay(true);
    match tls {
        None => connection(stream, peer, router, stop).await,
        Some(acceptor) => {
            // A failed handshake is the client's business.
            if let Ok(Ok(stream)) = tokio::time::timeout(HEAD_TIME_MAX, acceptor.accept(stream)).await {
                connection(stream, peer, router, stop).await;
            }
        }
    }
}

async fn connection(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    peer: SocketAddr,
    router: Router,
    mut stop: watch::Receiver<bool>,
) {
    let router = TowerToHyperService::new(router);
    let lifeline = Lifeline::default();
    let of_requests = lifeline.clone();
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(Peer(peer));
        request.extensions_mut().insert(of_requests.clone());
        router.call(request)
    });
    let mut serving = std::pin::pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIME_MAX)
            .max_buf_size(HEAD_BYTES_MAX)
            .serve_connection(TokioIo::new(stream), service)
    );
    let mut limit = CONNECTION_TIME_MAX;
    // How a connection ends is the client's business.
    loop {
        tokio::select! {
            _ = serving.as_mut() => return,
            // An answer that is streamed takes as long as it takes, if only it goes on.
            () = tokio::time::sleep(limit) => match lifeline.left(CONNECTION_TIME_MAX) {
                Some(left) => limit = left,
                None => return,
            },
            _ = stop.wait_for(|stop| *stop) => break,
        }
    }
    serving.as_mut().graceful_shutdown();
    let _ = tokio::time::timeout(STOP_TIME_MAX, serving).await;
}
