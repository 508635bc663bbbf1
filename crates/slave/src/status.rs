//! How a slave fares as a slave, and the socket on which it tells.

use std::convert::Infallible;
use std::fs::{self, DirBuilder, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::UnixStream as BlockingStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rpicluster_protocol::{SessionId, SlaveId, Timestamp};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt;
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio::time;

/// Longer than any status: what else listens there is not read to its end.
const STATUS_BYTES_MAX: u64 = 64 * 1024;
/// A slave that does not answer within this is not well.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// Wait after a failed accept, which else could fail again at once for ever (no free descriptors).
const ACCEPT_RETRY: Duration = Duration::from_secs(1);

/// A slave's view of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The slave's id.
    pub id: SlaveId,
    /// Where its master's broker is.
    pub master: String,
    /// Whether it is connected to the broker.
    pub connected: bool,
    /// The current session, or the last one while it is not connected.
    pub session: Option<SessionId>,
    /// Since when it is connected, or not, by this machine's clock.
    pub since: Timestamp,
    /// The last run of the master that was seen online.
    pub master_session: Option<SessionId>,
    /// Whether the master has answered the hello of this session.
    pub master_info_received: bool,
    /// Messages handed to the broker.
    pub sent: u64,
    /// Messages that came from the broker.
    pub received: u64,
    /// Received messages that were not understood.
    pub not_understood: u64,
    /// Vitals and texts left out because the connection was behind, and messages too long to send.
    pub shed: u64,
    /// Connections after the first one.
    pub reconnects: u64,
    /// Why it is not connected, and what to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

impl Status {
    pub(crate) fn new(id: SlaveId, master: String) -> Status {
        Status {
            id,
            master,
            connected: false,
            session: None,
            since: now(),
            master_session: None,
            master_info_received: false,
            sent: 0,
            received: 0,
            not_understood: 0,
            shed: 0,
            reconnects: 0,
            problem: None,
        }
    }

    pub(crate) fn set_connected(&mut self, session: &SessionId) {
        self.reconnects += u64::from(self.session.is_some());
        self.session = Some(session.clone());
        self.connected = true;
        self.master_info_received = false;
        self.problem = None;
        self.since = now();
    }

    pub(crate) fn set_disconnected(&mut self) {
        self.connected = false;
        self.since = now();
    }
}

/// Asks the slave that listens on `path` about itself; blocks for at most a few seconds.
///
/// # Errors
/// If nothing listens there, it does not answer in time, or its answer is no status.
pub fn query_status(path: &Path) -> io::Result<Status> {
    let stream = BlockingStream::connect(path)?;
    stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    let mut answer = String::new();
    stream.take(STATUS_BYTES_MAX).read_to_string(&mut answer)?;
    serde_json::from_str(&answer).map_err(io::Error::from)
}

/// Answers every connection with one line of JSON, then closes it.
#[derive(Debug)]
pub(crate) struct StatusSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl StatusSocket {
    /// Listens on `path`, readable for its owner only. A socket that a killed slave left behind is replaced, that of a
    /// living one is not.
    pub(crate) fn bind(path: &Path) -> io::Result<StatusSocket> {
        if BlockingStream::connect(path).is_ok() {
            return Err(io::Error::new(io::ErrorKind::AddrInUse, "another slave is running there"));
        }
        if let Some(folder) = path.parent() {
            DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        }
        // Under another name first, so that nobody finds it before its mode is set.
        let unready = path.with_extension("new");
        match fs::remove_file(&unready) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&unready)?;
        fs::set_permissions(&unready, Permissions::from_mode(0o600))?;
        fs::rename(&unready, path)?;
        Ok(StatusSocket { listener, path: path.to_owned() })
    }

    /// Serves for ever, one connection after the other: an answer fits into the socket's buffer, so none can block.
    pub(crate) async fn serve(self, status: watch::Receiver<Status>) -> Infallible {
        loop {
            if let Err(error) = self.answer(&status).await {
                tracing::warn!(%error, path = %self.path.display(), "cannot answer on the status socket");
                time::sleep(ACCEPT_RETRY).await;
            }
        }
    }

    async fn answer(&self, status: &watch::Receiver<Status>) -> io::Result<()> {
        let (mut stream, _) = self.listener.accept().await?;
        let mut line = serde_json::to_vec(&*status.borrow())?;
        line.push(b'\n');
        match time::timeout(ANSWER_TIMEOUT, stream.write_all(&line)).await {
            Ok(Err(error)) => tracing::debug!(%error, "who asked for the status is gone"),
            Ok(Ok(())) => {}
            Err(_) => tracing::debug!("who asked for the status does not read"),
        }
        Ok(())
    }
}

impl Drop for StatusSocket {
    fn drop(&mut self) {
        // If it cannot be removed, the next slave replaces it.
        let _ = fs::remove_file(&self.path);
    }
}

fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_unix_ms(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn a_status() -> watch::Sender<Status> {
        watch::Sender::new(Status::new("pi-1".parse().unwrap(), "head:1883".to_owned()))
    }

    async fn query(path: &Path) -> io::Result<Status> {
        let path = path.to_owned();
        tokio::task::spawn_blocking(move || query_status(&path)).await.unwrap()
    }

    #[tokio::test]
    async fn the_socket_tells_the_status_of_now() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state/slave.sock");
        let status = a_status();
        let server = tokio::spawn(StatusSocket::bind(&path).unwrap().serve(status.subscribe()));
        assert_eq!(query(&path).await.unwrap(), *status.borrow());
        status.send_modify(|status| status.set_connected(&SessionId::from_random(7)));
        assert!(query(&path).await.unwrap().connected);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        server.abort();
        assert!(server.await.unwrap_err().is_cancelled());
        assert_eq!(query(&path).await.unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[tokio::test]
    async fn a_dead_slaves_socket_is_replaced_and_a_living_ones_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("slave.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert_eq!(query(&path).await.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        let living = StatusSocket::bind(&path).unwrap();
        assert_eq!(StatusSocket::bind(&path).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(living);
    }

    #[test]
    fn only_connections_after_the_first_are_reconnects() {
        let status = a_status();
        for session in 0..3 {
            status.send_modify(|status| status.set_connected(&SessionId::from_random(session)));
            status.send_modify(Status::set_disconnected);
        }
        assert_eq!(status.borrow().reconnects, 2);
    }
}
