//! Debian's mosquitto on a free port, and a client that sees everything.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rpicluster_protocol::{
    Envelope, FromSlave, SlaveId, ToSlave, Topic, TopicRoot, Upward, encode_to_slave, parse_from_slave,
};
use rumqttc::{AsyncClient, Event, EventLoop, MqttOptions, Packet, Publish, QoS};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time;

/// A condition that is not met within this fails its test; it is no measurement.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A running mosquitto, killed on drop.
pub(crate) struct Broker {
    process: Child,
    folder: TempDir,
    pub(crate) port: u16,
}

impl Broker {
    pub(crate) async fn start() -> Broker {
        Broker::start_with(|_| "allow_anonymous true".to_owned()).await
    }

    /// One that lets in nobody but `user`.
    pub(crate) async fn start_with_account(user: &str, password: &str) -> Broker {
        Broker::start_with(|folder| {
            let file = folder.join("passwords");
            let made = Command::new("mosquitto_passwd").args(["-b", "-c"]).arg(&file).args([user, password]).status();
            assert!(made.expect("these tests need mosquitto: apt-get install mosquitto").success());
            format!("allow_anonymous false\npassword_file {}", file.display())
        })
        .await
    }

    /// One with TLS that lets in who shows a certificate of its CA.
    pub(crate) async fn start_with_certificates() -> Broker {
        Broker::start_with(|folder| {
            make_certificates(folder);
            let file = |name: &str| folder.join(name).display().to_string();
            let [ca, certificate, key] = ["ca.pem", "broker.pem", "broker.key"].map(file);
            format!(
                "cafile {ca}\ncertfile {certificate}\nkeyfile {key}\nallow_anonymous false\nrequire_certificate true\n\
                 use_identity_as_username true"
            )
        })
        .await
    }

    /// Path of a file that its start has made.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// `access` makes lines of mosquitto's configuration, with the help of files in a folder.
    async fn start_with(access: impl Fn(&Path) -> String) -> Broker {
        loop {
            let folder = tempfile::tempdir().unwrap();
            let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let config = format!("listener {port} 127.0.0.1\n{}\nlog_type error\n", access(folder.path()));
            fs::write(folder.path().join("mosquitto.conf"), config).unwrap();
            let mut broker = Broker { process: spawn(&folder), folder, port };
            // It ends at once if somebody else has taken the port meanwhile.
            if broker.is_ready().await {
                return broker;
            }
        }
    }

    pub(crate) fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    pub(crate) async fn restart(&mut self) {
        self.process = spawn(&self.folder);
        assert!(self.is_ready().await, "mosquitto does not start again");
    }

    async fn is_ready(&mut self) -> bool {
        let address = SocketAddr::from(([127, 0, 0, 1], self.port));
        loop {
            if self.process.try_wait().unwrap().is_some() {
                return false;
            }
            if TcpStream::connect(address).await.is_ok() {
                return true;
            }
            // Nothing tells when a foreign process listens: ask again.
            time::sleep(Duration::from_millis(5)).await;
        }
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// `ca.pem`, and certificate and key of `broker` and `client`.
fn make_certificates(folder: &Path) {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    fs::write(folder.join("ca.pem"), ca.pem()).unwrap();
    for name in ["broker", "client"] {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        fs::write(folder.join(format!("{name}.pem")), params.signed_by(&key, &ca).unwrap().pem()).unwrap();
        let path = folder.join(format!("{name}.key"));
        fs::write(&path, key.serialize_pem()).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    }
    // mosquitto may leave the rights of root, and must still read its own.
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(folder.join("broker.key"), fs::Permissions::from_mode(0o644)).unwrap();
}

fn spawn(folder: &TempDir) -> Child {
    Command::new("/usr/sbin/mosquitto")
        .arg("-c")
        .arg(folder.path().join("mosquitto.conf"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("these tests need mosquitto: apt-get install mosquitto")
}

/// Subscribed to everything below the root; speaks as the master would. Gone when dropped.
pub(crate) struct Observer {
    client: AsyncClient,
    packets: mpsc::Receiver<Packet>,
    root: TopicRoot,
    _poller: JoinSet<()>,
}

/// A message of a slave with what MQTT says beside it.
#[derive(Debug)]
pub(crate) struct Heard {
    pub(crate) envelope: Envelope<FromSlave>,
    pub(crate) leaf: Upward,
    pub(crate) qos: QoS,
    pub(crate) retained: bool,
}

impl Observer {
    /// Returns when the subscription is in place.
    pub(crate) async fn connect(broker: &Broker) -> Observer {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let root = TopicRoot::default();
        let name = format!("observer-{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let mut options = MqttOptions::new(name, "127.0.0.1", broker.port);
        options.set_max_packet_size(1 << 16, 1 << 16);
        let (client, eventloop) = AsyncClient::new(options, 64);
        client.try_subscribe(root.everything(), QoS::ExactlyOnce).unwrap();
        let (sender, packets) = mpsc::channel(1024);
        let mut poller = JoinSet::new();
        poller.spawn(forward(eventloop, sender));
        let mut observer = Observer { client, packets, root, _poller: poller };
        while !matches!(observer.next_packet().await, Packet::SubAck(_)) {}
        observer
    }

    /// The next message of `slave`.
    pub(crate) async fn hear(&mut self, slave: &SlaveId) -> Heard {
        loop {
            let Packet::Publish(Publish { topic, payload, qos, retain, .. }) = self.next_packet().await else {
                continue;
            };
            if let Topic::From(id, leaf) = self.root.parse(&topic).unwrap()
                && id == *slave
            {
                let envelope = parse_from_slave(leaf, &payload).unwrap();
                return Heard { envelope, leaf, qos, retained: retain };
            }
        }
    }

    /// The next message of `slave` on `leaf`.
    pub(crate) async fn hear_on(&mut self, slave: &SlaveId, leaf: Upward) -> Heard {
        loop {
            let heard = self.hear(slave).await;
            if heard.leaf == leaf {
                return heard;
            }
        }
    }

    /// Publishes in the master's name.
    pub(crate) fn tell(&self, topic: Topic, envelope: &Envelope<ToSlave>) {
        self.tell_raw(topic, encode_to_slave(envelope).unwrap());
    }

    /// Publishes any bytes.
    pub(crate) fn tell_raw(&self, topic: Topic, payload: impl Into<Vec<u8>>) {
        self.client.try_publish(self.root.name(&topic), QoS::AtLeastOnce, false, payload).unwrap();
    }

    async fn next_packet(&mut self) -> Packet {
        let packet = time::timeout(PATIENCE, self.packets.recv()).await.expect("nothing more was heard");
        packet.expect("the broker has closed the observer's connection")
    }
}

async fn forward(mut eventloop: EventLoop, packets: mpsc::Sender<Packet>) {
    while let Ok(event) = eventloop.poll().await {
        if let Event::Incoming(packet) = event
            && packets.send(packet).await.is_err()
        {
            return;
        }
    }
}
