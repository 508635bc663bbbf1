//! A master as a process of its own, and slaves of it.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;
use ureq::http::Request;
use ureq::tls::{Certificate, RootCerts, TlsConfig};

use super::faults::Place;
use super::mqtt::Door;
use super::process::Process;
use super::wait::{wait_until, within};

/// How long an HTTP request may take.
const HTTP_TIMEOUT: Duration = Duration::from_secs(10);

/// An account that may do everything an account can: the worst that comes in with a password.
pub(crate) const INSIDER: (&str, &str) = ("insider", "correct horse battery staple");

/// More slaves than any test starts.
const TOKEN_USES: u32 = 10_000;

/// A running master with its state in a temporary folder.
pub(crate) struct Cluster {
    /// The master.
    pub(crate) master: Process,
    /// Where MQTT is spoken without TLS, for [`INSIDER`].
    pub(crate) mqtt: Door,
    /// Where it is spoken with TLS.
    pub(crate) mqtts: SocketAddr,
    /// Where HTTP is served.
    pub(crate) http: SocketAddr,
    /// With what slaves join: as often as a test may want.
    token: String,
    /// The account that only reads at a broker that others run, which is the cluster's then.
    observer: Option<(&'static str, &'static str)>,
    place: Place,
    folder: TempDir,
}

/// The program, without any configuration of this machine.
pub(crate) fn rpicluster(place: &Place) -> Command {
    let mut command = place.command(env!("CARGO_BIN_EXE_rpicluster"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("RPICLUSTER") {
            command.env_remove(name);
        }
    }
    command
}

impl Cluster {
    /// A master with default settings.
    pub(crate) fn start() -> Cluster {
        Cluster::with("")
    }

    /// A master whose `rpicluster.toml`, which its slaves read too, is `config`.
    pub(crate) fn with(config: &str) -> Cluster {
        Cluster::at(Place::Here, own_address(), config)
    }

    /// A master whose `broker.toml` is `broker`.
    pub(crate) fn with_broker(broker: &str) -> Cluster {
        Cluster::configured(Place::Here, own_address(), "", broker)
    }

    /// The same at an address of a network namespace.
    pub(crate) fn at(place: Place, address: IpAddr, config: &str) -> Cluster {
        Cluster::configured(place, address, config, "")
    }

    fn configured(place: Place, address: IpAddr, config: &str, broker: &str) -> Cluster {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("rpicluster.toml"), config).unwrap();
        fs::write(folder.path().join("broker.toml"), broker).unwrap();
        let any = SocketAddr::new(address, 0);
        let (master, http) = start_master(&place, folder.path(), &[("--mqtt", any), ("--mqtts", any)], any);
        let mqtt = Door { address: listener(&master, "(local)"), login: Some(INSIDER) };
        let mqtts = listener(&master, "(cluster)");
        let mut cluster = Cluster { master, mqtt, mqtts, http, token: String::new(), observer: None, place, folder };
        let (name, password) = INSIDER;
        let everything = json!(["#", "$SYS/#"]);
        let insider = json!({
            "name": name, "role": "custom", "password": password, "publish": ["#"], "subscribe": everything,
        });
        cluster.change("POST", "/api/v1/accounts", Some(&insider));
        let token = cluster.change("POST", "/api/v1/tokens", Some(&json!({ "uses": TOKEN_USES })));
        cluster.token = token["token"].as_str().unwrap().to_owned();
        cluster
    }

    /// A master whose `rpicluster.toml` is `config`, at this broker and with this door to it; who only reads there is
    /// `observer`.
    pub(super) fn elsewhere(config: &str, mqtt: Door, observer: (&'static str, &'static str)) -> Cluster {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("rpicluster.toml"), config).unwrap();
        let place = Place::Here;
        let (master, http) = start_master(&place, folder.path(), &[], SocketAddr::new(own_address(), 0));
        let (mqtts, token) = (mqtt.address, String::new());
        Cluster { master, mqtt, mqtts, http, token, observer: Some(observer), place, folder }
    }

    /// Starts the master again with the same addresses and the same memory, after it has ended.
    pub(crate) fn restart(&mut self) {
        let own = [("--mqtt", self.mqtt.address), ("--mqtts", self.mqtts)];
        let listeners = if self.observer.is_none() { &own[..] } else { &[] };
        (self.master, _) = start_master(&self.place, self.folder.path(), listeners, self.http);
    }

    /// The door of who only reads: nobody's at the master's own broker.
    pub(crate) fn onlooker(&self) -> Door {
        Door { login: self.observer, ..self.mqtt }
    }

    /// Lets a client that is no agent be this slave, at the listener without TLS.
    pub(crate) fn door_of(&self, slave: &str) -> Door {
        let secret = self.change("POST", "/api/v1/slaves", Some(&json!({ "id": slave })))["secret"].clone();
        // Tests are short, and doors are handed around a lot.
        let leaked = |text: &str| -> &'static str { Box::leak(text.into()) };
        Door { login: Some((leaked(slave), leaked(secret.as_str().unwrap()))), ..self.mqtt }
    }

    /// A slave process beside the master.
    pub(crate) fn slave(&self, id: &str) -> Process {
        self.slave_at(&self.place, id)
    }

    /// A slave process elsewhere.
    pub(crate) fn slave_at(&self, place: &Place, id: &str) -> Process {
        let mut command = self.slave_command(place, id, id, &self.token);
        command.arg("--stop-on-stdin-close");
        Process::start(id, command)
    }

    /// The command that starts a slave with its state in `folder`, joining with `token` if it has not joined.
    pub(crate) fn slave_command(&self, place: &Place, folder: &str, id: &str, token: &str) -> Command {
        let mut command = rpicluster(place);
        command.args(["slave", "--id", id, "--master", &self.mqtts.to_string()]);
        command.env("RPICLUSTER_TOKEN", token);
        command.arg("--config").arg(self.config());
        command.arg("--state-dir").arg(self.slave_folder(folder));
        command
    }

    /// The same, once it is online.
    pub(crate) fn online_slave(&self, id: &str) -> Process {
        let process = self.slave(id);
        self.wait_until_online(id);
        process
    }

    /// The state folder of a slave that was started here.
    pub(crate) fn slave_folder(&self, id: &str) -> PathBuf {
        self.folder.path().join(id)
    }

    /// The configuration file.
    pub(crate) fn config(&self) -> PathBuf {
        self.folder.path().join("rpicluster.toml")
    }

    /// The master's HTTP address as a URL: encrypted, if it can be reached from elsewhere.
    pub(crate) fn url(&self) -> String {
        let scheme = if self.http.ip().is_loopback() { "http" } else { "https" };
        format!("{scheme}://{}", self.http)
    }

    /// `GET path`: status and JSON; `None` if the master does not answer.
    pub(crate) fn try_get(&self, path: &str) -> Option<(u16, Value)> {
        let (status, text) = self.ask("GET", path, None)?;
        Some((status, serde_json::from_str(&text).unwrap()))
    }

    /// Changes something through the API, which must succeed; the answer, if there is one.
    pub(crate) fn change(&self, method: &str, path: &str, body: Option<&Value>) -> Value {
        let (status, text) = self.ask(method, path, body).unwrap();
        assert!((200..300).contains(&status), "{method} {path}: {status} {text}");
        serde_json::from_str(&text).unwrap_or_default()
    }

    fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> Option<(u16, String)> {
        let request = Request::builder().method(method).uri(format!("{}{path}", self.url()));
        let request = request.header("authorization", format!("Bearer {}", self.api_token()));
        let request = request.header("content-type", "application/json");
        let request = request.body(body.map(Value::to_string).unwrap_or_default()).unwrap();
        let agent = self.agent();
        self.place.run(|| {
            let mut response = agent.run(request).ok()?;
            let status = response.status().as_u16();
            Some((status, response.body_mut().with_config().limit(u64::MAX).read_to_string().ok()?))
        })
    }

    /// An HTTP client that trusts this cluster's master and nobody else.
    fn agent(&self) -> ureq::Agent {
        let config = ureq::Agent::config_builder().http_status_as_error(false).timeout_global(Some(HTTP_TIMEOUT));
        let pem = fs::read(self.master_folder().join("ca.pem")).unwrap();
        let roots = RootCerts::new_with_certs(&[Certificate::from_pem(&pem).unwrap()]);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = TlsConfig::builder().root_certs(roots).unversioned_rustls_crypto_provider(provider).build();
        ureq::Agent::new_with_config(config.tls_config(tls).build())
    }

    /// What opens the API to commands on the master's machine.
    pub(crate) fn api_token(&self) -> String {
        fs::read_to_string(self.master_folder().join("api-token")).unwrap().trim().to_owned()
    }

    /// The master's state folder.
    pub(crate) fn master_folder(&self) -> PathBuf {
        self.folder.path().join("master")
    }

    /// The JSON of `GET path`, which must succeed.
    pub(crate) fn get(&self, path: &str) -> Value {
        match self.try_get(path) {
            Some((200, json)) => json,
            other => panic!("GET {path}: {other:?}"),
        }
    }

    /// What the master shows of a slave; `null` if it does not know it.
    pub(crate) fn view(&self, id: &str) -> Value {
        match self.try_get(&format!("/api/v1/slaves/{id}")) {
            Some((200, json)) => json,
            _ => Value::Null,
        }
    }

    /// Whether the master shows a slave as online.
    pub(crate) fn is_online(&self, id: &str) -> bool {
        self.view(id)["state"] == "online"
    }

    /// Waits, with patience, until a slave is online.
    pub(crate) fn wait_until_online(&self, id: &str) {
        wait_until(&format!("{id} is online"), || self.is_online(id));
    }

    /// Fails unless a slave is shown offline with `reason` within `bound` after `event`; tells how long it took.
    pub(crate) fn offline_within(&self, event: Instant, bound: Duration, id: &str, reason: &str) -> Duration {
        let took = within(event, bound, &format!("{id} is offline"), || self.view(id)["state"] == "offline");
        assert_eq!(self.view(id)["reason"], reason);
        took
    }

    /// A counter of one slave.
    pub(crate) fn counter(&self, id: &str, name: &str) -> u64 {
        self.view(id)["counters"][name].as_u64().unwrap_or_default()
    }

    /// A counter or gauge of the broker.
    pub(crate) fn broker(&self, name: &str) -> u64 {
        let status = self.get("/api/v1/status");
        status["broker"][name].as_u64().unwrap_or_else(|| panic!("the broker counts no {name}: {status}"))
    }

    /// Where the master runs.
    pub(crate) fn place(&self) -> &Place {
        &self.place
    }
}

/// Starts a master that listens for MQTT and for HTTP at these addresses; where it serves HTTP.
fn start_master(
    place: &Place,
    folder: &Path,
    listeners: &[(&str, SocketAddr)],
    http: SocketAddr,
) -> (Process, SocketAddr) {
    let mut command = rpicluster(place);
    command.args(["master", "--stop-on-stdin-close"]);
    for (flag, address) in listeners.iter().chain(&[("--http", http)]) {
        command.args([flag, address.to_string().as_str()]);
    }
    command.arg("--config").arg(folder.join("rpicluster.toml"));
    command.arg("--state-dir").arg(folder.join("master"));
    let mut master = Process::start("master", command);
    master.wait_for_line("master: ready");
    let http = master.wait_for_line("master: http http");
    let http = http.trim_start_matches("s").trim_start_matches("://").parse().unwrap();
    (master, http)
}

/// The address of one of a master's listeners.
fn listener(master: &Process, name: &str) -> SocketAddr {
    let lines = master.out();
    let mut listeners = lines.iter().filter_map(|line| line.strip_prefix("master: mqtt ")?.split_once(' '));
    listeners.find(|(_, listener)| *listener == name).unwrap().0.parse().unwrap()
}

/// Any port of a loopback address of this test alone.
pub(crate) fn free_address() -> String {
    SocketAddr::new(own_address(), 0).to_string()
}

/// A loopback address of this test alone: a port that a killed master leaves is still free when it starts again.
pub(super) fn own_address() -> IpAddr {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let [process, high, low] = [std::process::id() % 250 + 1, number / 250, number % 250 + 1];
    IpAddr::from([127, process as u8, high as u8, low as u8])
}
