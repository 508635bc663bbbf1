//! A master and some slaves as processes of this program, with their state in a temporary folder.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;

use anyhow::Context;
use rpicluster_master::local_token_file;
use rpicluster_slave::{SlaveConfig, query_status};
use tempfile::TempDir;

use super::child::DemoChild;
use crate::http::MasterUrl;
use crate::text::Hidden;

const MQTT_PORT: u16 = 1883;
const MQTTS_PORT: u16 = 8883;
const HTTP_PORT: u16 = 8080;

/// The running demo. Dropping it stops the slaves, then the master, then removes the folder.
pub(super) struct Cluster {
    slaves: Vec<DemoSlave>,
    master: DemoChild,
    folder: TempDir,
}

struct DemoSlave {
    child: DemoChild,
    status_socket: PathBuf,
}

/// Where the master of the demo listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Addresses {
    /// The broker, for those who look at the messages.
    pub(super) mqtt: SocketAddr,
    /// The broker, for slaves.
    pub(super) mqtts: SocketAddr,
    /// The HTTP API.
    pub(super) url: MasterUrl,
}

impl Cluster {
    /// Starts the master, on the usual ports if they are free.
    pub(super) fn start() -> anyhow::Result<Cluster> {
        let folder =
            tempfile::Builder::new().prefix("rpicluster-demo-").tempdir().context("cannot make a temporary folder")?;
        // Empty files, named: else those of this machine would be found.
        for name in [crate::config::CLUSTER_FILE, crate::config::BROKER_FILE] {
            fs::write(folder.path().join(name), "").context("cannot write to the temporary folder")?;
        }
        let flags = [
            ("--mqtt", format!("127.0.0.1:{}", free_or_any(MQTT_PORT))),
            ("--mqtts", format!("127.0.0.1:{}", free_or_any(MQTTS_PORT))),
            ("--http", format!("127.0.0.1:{}", free_or_any(HTTP_PORT))),
            ("--state-dir", master_folder(&folder).display().to_string()),
        ];
        let master = start_child("master", "master", &folder, flags, &[]).context("cannot start the master")?;
        Ok(Cluster { slaves: Vec::new(), master, folder })
    }

    /// Where the master listens, once it says that it is ready.
    pub(super) fn addresses(&self) -> Option<Addresses> {
        parse_addresses(&self.master.printed())
    }

    /// The command that runs `work` on all slaves.
    pub(super) fn command(&self, url: &MasterUrl, work: &str) -> String {
        let program = std::env::current_exe().unwrap_or_else(|_| "rpicluster".into());
        let state_dir = master_folder(&self.folder);
        format!("{} run --url {url} --state-dir {} --on all -- {work}", program.display(), state_dir.display())
    }

    /// What opens the API of the master.
    pub(super) fn api_token(&self) -> anyhow::Result<Hidden> {
        let path = local_token_file(&master_folder(&self.folder));
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(Hidden(text.trim().to_owned()))
    }

    /// Starts slaves that join the master at `mqtts` with a token.
    pub(super) fn add_slaves(&mut self, count: u16, mqtts: SocketAddr, token: &str) -> anyhow::Result<()> {
        for id in (1..=count).map(|number| format!("slave-{number}")) {
            let state_dir = self.folder.path().join(&id);
            let flags = [
                ("--id", id.clone()),
                ("--master", mqtts.to_string()),
                ("--state-dir", state_dir.display().to_string()),
            ];
            let token = [("RPICLUSTER_TOKEN", token)];
            let child =
                start_child(&id, "slave", &self.folder, flags, &token).with_context(|| format!("cannot start {id}"))?;
            let status_socket = SlaveConfig { state_dir, ..SlaveConfig::default() }.status_socket();
            self.slaves.push(DemoSlave { child, status_socket });
        }
        Ok(())
    }

    /// How many slaves say that the master has answered them.
    pub(super) fn answered(&self) -> usize {
        let answered = |slave: &&DemoSlave| query_status(&slave.status_socket).is_ok_and(|s| s.master_info_received);
        self.slaves.iter().filter(answered).count()
    }

    /// A sentence for each process that has ended by itself since the last call, and whether the master is one of them.
    pub(super) fn obituaries(&mut self) -> (Vec<String>, bool) {
        let master = self.master.obituary();
        let master_ended = master.is_some();
        let slaves = self.slaves.iter_mut().filter_map(|slave| slave.child.obituary());
        (master.into_iter().chain(slaves).collect(), master_ended)
    }

    /// The last lines of the master's log.
    pub(super) fn master_tail(&self) -> String {
        self.master.tail()
    }

    /// Each slave's id and the last lines of its log.
    pub(super) fn slaves(&self) -> impl Iterator<Item = (&str, String)> {
        self.slaves.iter().map(|slave| (slave.child.name(), slave.child.tail()))
    }
}

impl Drop for Cluster {
    /// All slaves are told at once; the master is the last, so that it hears their goodbye.
    fn drop(&mut self) {
        for slave in &mut self.slaves {
            slave.child.tell_to_stop();
        }
        for slave in &mut self.slaves {
            slave.child.stopped();
        }
        self.master.stopped();
    }
}

fn start_child<const N: usize>(
    name: &str,
    command: &str,
    folder: &TempDir,
    flags: [(&str, String); N],
    variables: &[(&str, &str)],
) -> io::Result<DemoChild> {
    let config = folder.path().join(crate::config::CLUSTER_FILE).display().to_string();
    let mut arguments = vec![command.to_owned(), "--config".to_owned(), config];
    arguments.extend(flags.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]));
    DemoChild::start(name, &arguments, variables, folder.path())
}

fn master_folder(folder: &TempDir) -> PathBuf {
    folder.path().join("master")
}

/// `port` if nobody has it, else 0: any.
fn free_or_any(port: u16) -> u16 {
    match TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
        Ok(_) => port,
        Err(_) => 0,
    }
}

/// Reads the first lines that `rpicluster master` prints.
fn parse_addresses(printed: &str) -> Option<Addresses> {
    let value = |prefix: &str| printed.lines().find_map(|line| line.strip_prefix(prefix));
    value("master: ready")?;
    let listener = |name: &str| {
        let mut lines = printed.lines().filter_map(|line| line.strip_prefix("master: mqtt ")?.split_once(' '));
        lines.find(|(_, listener)| *listener == name)?.0.parse().ok()
    };
    let url = value("master: http ")?.parse().ok()?;
    Some(Addresses { mqtt: listener("(local)")?, mqtts: listener("(cluster)")?, url })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_masters_first_lines_are_understood_when_they_are_complete() {
        let lines = "master: mqtt 127.0.0.1:4710 (cluster)\nmaster: mqtt 127.0.0.1:4711 (local)\n\
                     master: http http://127.0.0.1:4712\n";
        assert_eq!(parse_addresses(lines), None);
        let addresses = parse_addresses(&format!("{lines}master: ready\n")).unwrap();
        assert_eq!((addresses.mqtt.port(), addresses.mqtts.port()), (4711, 4710));
        assert_eq!(addresses.url.to_string(), "http://127.0.0.1:4712");
    }

    #[test]
    fn a_taken_port_is_replaced_by_any() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        assert_eq!(free_or_any(port), 0);
    }
}
