//! A master as a process of its own, and slaves of it.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use super::faults::Place;
use super::process::Process;
use super::wait::{wait_until, within};

/// How long an HTTP request may take.
const HTTP_TIMEOUT: Duration = Duration::from_secs(10);

/// A running master with its state in a temporary folder.
pub(crate) struct Cluster {
    /// The master.
    pub(crate) master: Process,
    /// Where MQTT is spoken.
    pub(crate) mqtt: SocketAddr,
    /// Where HTTP is served.
    pub(crate) http: SocketAddr,
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
        let (master, mqtt, http) = start_master(&place, folder.path(), any, any);
        Cluster { master, mqtt, http, place, folder }
    }

    /// Starts the master again with the same addresses and the same memory, after it has ended.
    pub(crate) fn restart(&mut self) {
        (self.master, self.mqtt, self.http) = start_master(&self.place, self.folder.path(), self.mqtt, self.http);
    }

    /// A slave process beside the master.
    pub(crate) fn slave(&self, id: &str) -> Process {
        self.slave_at(&self.place, id)
    }

    /// A slave process elsewhere.
    pub(crate) fn slave_at(&self, place: &Place, id: &str) -> Process {
        let mut command = rpicluster(place);
        command.args(["slave", "--stop-on-stdin-close", "--id", id]);
        command.args(["--master", &self.mqtt.to_string()]);
        command.arg("--config").arg(self.config());
        command.arg("--state-dir").arg(self.slave_folder(id));
        Process::start(id, command)
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

    /// The master's HTTP address as a URL.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.http)
    }

    /// `GET path`: status and JSON; `None` if the master does not answer.
    pub(crate) fn try_get(&self, path: &str) -> Option<(u16, Value)> {
        let url = format!("{}{path}", self.url());
        self.place.run(|| get(&url))
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

fn start_master(place: &Place, folder: &Path, mqtt: SocketAddr, http: SocketAddr) -> (Process, SocketAddr, SocketAddr) {
    let mut command = rpicluster(place);
    command.args(["master", "--stop-on-stdin-close", "--mqtt", &mqtt.to_string(), "--http", &http.to_string()]);
    command.arg("--config").arg(folder.join("rpicluster.toml"));
    command.arg("--state-dir").arg(folder.join("master"));
    let mut master = Process::start("master", command);
    master.wait_for_line("master: ready");
    let mqtt = master.wait_for_line("master: mqtt ");
    let http = master.wait_for_line("master: http http://");
    let mqtt = mqtt.strip_suffix(" (local)").unwrap().parse().unwrap();
    (master, mqtt, http.parse().unwrap())
}

/// A loopback address of this test alone: a port that a killed master leaves is still free when it starts again.
pub(super) fn own_address() -> IpAddr {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let [process, high, low] = [std::process::id() % 250 + 1, number / 250, number % 250 + 1];
    IpAddr::from([127, process as u8, high as u8, low as u8])
}

fn get(url: &str) -> Option<(u16, Value)> {
    let config = ureq::Agent::config_builder().http_status_as_error(false).timeout_global(Some(HTTP_TIMEOUT));
    let agent = ureq::Agent::new_with_config(config.build());
    let mut response = agent.get(url).call().ok()?;
    let status = response.status().as_u16();
    let text = response.body_mut().with_config().limit(u64::MAX).read_to_string().ok()?;
    Some((status, serde_json::from_str(&text).unwrap()))
}
