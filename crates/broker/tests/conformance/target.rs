//! The brokers that are asked, and how one body of a test is run on all of them.

use std::future::poll_fn;
use std::io::{BufRead as _, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::task::Poll;

use rpicluster_broker::BrokerConfig;

use crate::common::{Hello, Listens, Raw, TestBroker, lasting, patient};

/// A broker of its own for a run of a test, and the version to speak with it.
pub struct Target {
    pub v5: bool,
    ours: bool,
    address: SocketAddr,
    _server: Server,
}

/// Which broker and which version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Combination {
    ours: bool,
    v5: bool,
}

/// Serves until it is dropped.
enum Server {
    Ours { _broker: TestBroker },
    Mosquitto { _process: Mosquitto },
}

/// A process that is killed on drop.
struct Mosquitto(Child);

const fn of(ours: bool, v5: bool) -> Combination {
    Combination { ours, v5 }
}

/// Both brokers and both versions.
pub const EVERYWHERE: [Combination; 4] = [of(true, false), of(true, true), of(false, false), of(false, true)];
/// Both brokers with MQTT 3.1.1.
pub const V3: [Combination; 2] = [of(true, false), of(false, false)];
/// Both brokers with MQTT 5.
pub const V5: [Combination; 2] = [of(true, true), of(false, true)];
/// This broker alone, both versions: mosquitto knows no such thing or has chosen otherwise, as the test explains.
pub const OURS: [Combination; 2] = [of(true, false), of(true, true)];
/// This broker alone with MQTT 5.
pub const OURS_V5: [Combination; 1] = [of(true, true)];

/// Runs a test's body on several combinations at the same time.
pub async fn on(combinations: &[Combination], test: impl AsyncFn(&Target)) {
    on_adjusted(combinations, |_| {}, test).await;
}

/// As [`on`], with another configuration of our broker.
pub async fn on_adjusted(
    combinations: &[Combination],
    adjust: impl Fn(&mut BrokerConfig),
    test: impl AsyncFn(&Target),
) {
    let run = async |combination: Combination| test(&Target::start(combination, &adjust).await).await;
    let mut running: Vec<(Combination, Running<'_>)> = vec![];
    for combination in combinations {
        running.push((*combination, Box::pin(run(*combination))));
    }
    poll_fn(|context| {
        running.retain_mut(|(combination, future)| {
            let _named = Named(*combination);
            future.as_mut().poll(context).is_pending()
        });
        if running.is_empty() { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}

type Running<'a> = Pin<Box<dyn Future<Output = ()> + 'a>>;

/// Names the combination whose assertion fails.
struct Named(Combination);

impl Drop for Named {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let broker = if self.0.ours { "this broker" } else { "mosquitto" };
            eprintln!("failed on {broker} with MQTT {}", if self.0.v5 { "5.0" } else { "3.1.1" });
        }
    }
}

impl Target {
    async fn start(combination: Combination, adjust: impl Fn(&mut BrokerConfig)) -> Target {
        let Combination { ours, v5 } = combination;
        if ours {
            let broker = TestBroker::start(adjust).await;
            return Target { v5, ours, address: broker.address, _server: Server::Ours { _broker: broker } };
        }
        let (process, address) = Mosquitto::start().await;
        Target { v5, ours, address, _server: Server::Mosquitto { _process: process } }
    }

    /// Whether this is our broker; else it is mosquitto.
    pub fn is_ours(&self) -> bool {
        self.ours
    }

    /// One of two values, by the version.
    pub fn by_version<T>(&self, v3: T, v5: T) -> T {
        if self.v5 { v5 } else { v3 }
    }

    /// A connected client without a session before or after.
    pub async fn connect(&self, client_id: &'static str) -> Raw {
        Raw::connect(self, self.v5, client_id).await
    }

    /// A connected client whose session outlives the connection, and whether there was one.
    pub async fn connect_lasting(&self, client_id: &'static str) -> (Raw, bool) {
        Raw::hello(self, self.v5, lasting(client_id, self.v5)).await
    }

    /// A connected client, and whether its session was present.
    pub async fn hello(&self, hello: Hello) -> (Raw, bool) {
        Raw::hello(self, self.v5, hello).await
    }

    /// Opens a connection and sends these bytes.
    pub async fn send(&self, bytes: &[u8]) -> Raw {
        let mut raw = Raw::open(self, self.v5).await;
        raw.send(bytes).await;
        raw
    }
}

impl Target {
    /// The connection must end, in MQTT 5 with one of these reasons. mosquitto often closes without a word or with another
    /// code, which 4.13.1 leaves to it. `cause` is told if the assertion fails.
    pub async fn cuts(&self, mut client: Raw, reasons: &[u8], cause: &dyn std::fmt::Debug) {
        let reason = client.ended().await;
        let expected = match reason {
            None => !self.v5 || !self.ours,
            Some(reason) => reasons.contains(&reason) || !self.ours && reason >= 0x80,
        };
        assert!(expected, "after {cause:x?} the connection ended with {reason:x?}, not with one of {reasons:x?}");
    }
}

impl Listens for Target {
    fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Mosquitto {
    /// Without a configuration file it listens on loopback and asks for no name; sessions and messages are not written.
    async fn start() -> (Mosquitto, SocketAddr) {
        loop {
            let free = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            let address = free.local_addr().unwrap();
            drop(free);
            let mut child = Command::new("/usr/sbin/mosquitto")
                .args(["-p", &address.port().to_string()])
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()
                .expect("these tests need mosquitto: run tests/run.sh or apt-get install mosquitto");
            let log = child.stderr.take().unwrap();
            let process = Mosquitto(child);
            // It ends without that line if somebody else has taken the port meanwhile.
            if patient(tokio::task::spawn_blocking(|| is_running(log))).await.unwrap() {
                return (process, address);
            }
        }
    }
}

/// Waits for the line that says that it listens; the rest of its log is read away, for a full pipe would stop it.
fn is_running(log: ChildStderr) -> bool {
    let mut log = BufReader::new(log);
    let mut line = String::new();
    while log.read_line(&mut line).is_ok_and(|length| length > 0) {
        if line.ends_with(" running\n") {
            std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
            return true;
        }
        line.clear();
    }
    false
}

impl Drop for Mosquitto {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
