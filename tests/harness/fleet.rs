//! Many slaves in the test's own process: the agent itself, behind a machine that is always the same.

use std::fs;

use rpicluster_client::{Connection, Login, Trust};
use rpicluster_protocol::{Details, Envelope, SlaveId, ToSlave, TopicRoot, Vitals};
use rpicluster_slave::{Access, Behaviour, Outbox, Slave, SlaveConfig, Status};
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::cluster::Cluster;
use super::process::raise_open_files;
use super::wait::wait_until;

/// A slave whose machine is called as itself, so that a mix-up shows.
struct Canned {
    id: SlaveId,
    replies: mpsc::Sender<Envelope<ToSlave>>,
}

impl Behaviour for Canned {
    fn details(&mut self) -> Details {
        Details { hostname: Some(self.id.to_string()), ..Details::default() }
    }

    fn vitals(&mut self) -> Option<Vitals> {
        Some(Vitals { cpu_percentage: Some(1.5), ..Vitals::default() })
    }

    fn message(&mut self, _: &SlaveId) -> Option<String> {
        None
    }

    fn on_reply(&mut self, reply: &Envelope<ToSlave>, _: &Outbox) {
        // Most tests do not read them.
        let _ = self.replies.try_send(reply.clone());
    }
}

/// One slave of the fleet, as the test sees it.
pub(crate) struct Member {
    /// Its id.
    pub(crate) id: SlaveId,
    /// How it fares.
    pub(crate) status: watch::Receiver<Status>,
    /// What it says.
    pub(crate) outbox: Outbox,
    /// What the master says to it.
    pub(crate) replies: mpsc::Receiver<Envelope<ToSlave>>,
}

/// Many slaves in this process.
pub(crate) struct Fleet {
    /// All of them.
    pub(crate) members: Vec<Member>,
    /// Where they run.
    pub(crate) runtime: Runtime,
    _tasks: JoinSet<()>,
}

/// By which listener a fleet comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Listener {
    Local,
    Cluster,
}

impl Fleet {
    /// So many slaves at the listener without TLS, once all are online and answered.
    pub(crate) fn start(cluster: &Cluster, size: usize) -> Fleet {
        Fleet::start_at(cluster, size, Listener::Local)
    }

    /// The same with TLS, as slaves on other machines come.
    pub(crate) fn start_encrypted(cluster: &Cluster, size: usize) -> Fleet {
        Fleet::start_at(cluster, size, Listener::Cluster)
    }

    fn start_at(cluster: &Cluster, size: usize, listener: Listener) -> Fleet {
        raise_open_files();
        let (address, trust) = match listener {
            Listener::Local => (format!("mqtt://{}", cluster.mqtt.address), Trust::System),
            Listener::Cluster => {
                (format!("mqtts://{}", cluster.mqtts), Trust::Ca(fs::read(cluster.ca_file()).unwrap()))
            }
        };
        let connection = Connection::new(address.parse().unwrap(), &trust, None).unwrap();
        let runtime = Runtime::new().unwrap();
        let mut tasks = JoinSet::new();
        let mut members = Vec::new();
        for number in 0..size {
            let id: SlaveId = format!("node-{number:04}").parse().unwrap();
            let (user, password) = cluster.door_of(id.as_str()).login.unwrap();
            let login = Login { user: user.to_owned(), password: password.to_owned() };
            let access = Access::Account(connection.clone().with_login(login));
            let config = SlaveConfig { id: Some(id.clone()), ..SlaveConfig::default() };
            let (sender, replies) = mpsc::channel(100);
            let slave =
                Slave::new(config, TopicRoot::default(), access, Canned { id: id.clone(), replies: sender }).unwrap();
            members.push(Member { id, status: slave.status(), outbox: slave.outbox(), replies });
            tasks.spawn_on(async move { slave.run(std::future::pending()).await.unwrap() }, runtime.handle());
        }
        let fleet = Fleet { members, runtime, _tasks: tasks };
        wait_until("all slaves are online", || cluster.get("/api/v1/status")["online"] == size);
        wait_until("all slaves are answered", || {
            fleet.members.iter().all(|member| member.status.borrow().master_info_received)
        });
        fleet
    }
}
