//! Debian's MQTT clients: what a stranger sees. And its broker, to compare with.

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use super::cluster::{Cluster, own_address};
use super::faults::Place;
use super::mqtt::Door;
use super::process::{Finished, Process, run};
use super::wait::{wait_for, wait_until};

/// A subscriber ends by itself after this, should its test be killed.
const LIFE_MAX: Duration = Duration::from_secs(600);

/// Debian's broker, with its own defaults.
pub(crate) struct Broker {
    /// Its process.
    pub(crate) process: Process,
    /// Where MQTT is spoken.
    pub(crate) mqtt: Door,
    _folder: TempDir,
}

impl Broker {
    /// Starts it and waits until it listens.
    pub(crate) fn start() -> Broker {
        let mqtt = address_for_mosquitto();
        let folder = tempfile::tempdir().unwrap();
        let process = start_mosquitto(folder.path(), mqtt, &["allow_anonymous true"]);
        Broker { process, mqtt: Door { address: mqtt, login: None }, _folder: folder }
    }
}

/// It cannot choose a port itself; on an address of its own nobody takes the free one meanwhile.
pub(super) fn address_for_mosquitto() -> SocketAddr {
    TcpListener::bind((own_address(), 0)).unwrap().local_addr().unwrap()
}

/// Starts it with these lines of configuration, and waits until it listens.
pub(super) fn start_mosquitto(folder: &Path, mqtt: SocketAddr, lines: &[&str]) -> Process {
    let program = "/usr/sbin/mosquitto";
    assert!(fs::exists(program).unwrap(), "{program} is missing: install the Debian package mosquitto");
    let config = folder.join("mosquitto.conf");
    let listener = format!("listener {} {}\nset_tcp_nodelay true\n", mqtt.port(), mqtt.ip());
    fs::write(&config, listener + &lines.join("\n")).unwrap();
    let mut command = Command::new(program);
    command.arg("-c").arg(&config);
    let process = Process::start("mosquitto", command);
    wait_until("mosquitto listens", || TcpStream::connect(mqtt).is_ok());
    process
}

/// A running `mosquitto_sub`.
pub(crate) struct Subscriber(Process);

/// One of the tools, addressed to the cluster's broker, as who only reads.
pub(crate) fn tool(cluster: &Cluster, name: &str) -> Command {
    tool_at(cluster.place(), cluster.onlooker(), name)
}

/// The same, as whoever has the key to this door.
pub(crate) fn tool_at(place: &Place, door: Door, name: &str) -> Command {
    let found = std::env::split_paths(&std::env::var_os("PATH").unwrap()).any(|folder| folder.join(name).is_file());
    assert!(found, "{name} is missing: install the Debian package mosquitto-clients (tests/run.sh does)");
    // Line by line, though it writes to a pipe.
    let mut command = place.command("stdbuf");
    command.args(["-oL", name]);
    command.args(["-h", &door.address.ip().to_string(), "-p", &door.address.port().to_string()]);
    if let Some((user, password)) = door.login {
        command.args(["-u", user, "-P", password]);
    }
    command
}

/// `mosquitto_pub` with these arguments, at QoS 1, as the cluster's insider.
pub(crate) fn publish(cluster: &Cluster, arguments: &[&str]) {
    let mut command = tool_at(cluster.place(), cluster.mqtt, "mosquitto_pub");
    command.args(["-q", "1"]).args(arguments);
    let Finished { code, err, .. } = run(command);
    assert_eq!(code, Some(0), "mosquitto_pub {arguments:?}: {err}");
}

/// The retained message of a topic as a new subscriber gets it.
pub(crate) fn retained(cluster: &Cluster, topic: &str) -> Option<Value> {
    let mut command = tool(cluster, "mosquitto_sub");
    command.args(["-t", topic, "--retained-only", "-C", "1", "-W", "2"]);
    let Finished { out, .. } = run(command);
    serde_json::from_str(out.trim()).ok()
}

impl Subscriber {
    /// `mosquitto_sub` with these arguments, once it is subscribed.
    pub(crate) fn start(cluster: &Cluster, arguments: &[&str]) -> Subscriber {
        let mut command = tool(cluster, "mosquitto_sub");
        command.args(["-d", "-W", &LIFE_MAX.as_secs().to_string()]).args(arguments);
        let process = Process::start("mosquitto_sub", command);
        wait_until("mosquitto_sub is subscribed", || process.out().iter().any(|line| line.starts_with("Subscribed")));
        Subscriber(process)
    }

    /// What it has printed of messages so far.
    pub(crate) fn messages(&self) -> Vec<String> {
        let about_itself = |line: &String| line.starts_with("Client ") || line.starts_with("Subscribed");
        self.0.out().into_iter().filter(|line| !about_itself(line)).collect()
    }

    /// Waits for a message with all these parts.
    pub(crate) fn wait_for(&self, parts: &[&str]) -> String {
        wait_for(&format!("a message with {parts:?}"), || {
            self.messages().into_iter().find(|line| parts.iter().all(|part| line.contains(part)))
        })
    }
}
