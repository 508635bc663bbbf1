//! A master on free ports, and an MQTT client that collects what it gets.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rpicluster_broker::{BrokerConfig, Listener};
use rpicluster_master::{Master, MasterConfig, RunError, Settings};
use rumqttc::{AsyncClient, Event, LastWill, MqttOptions, Packet, Publish, QoS};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

/// Whatever a test waits for comes within this time, or never.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct TestMaster {
    pub(crate) mqtt: SocketAddr,
    pub(crate) http: SocketAddr,
    token: String,
    lock: PathBuf,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<Result<(), RunError>>,
}

/// A folder such as a master wants.
pub(crate) fn private_folder() -> tempfile::TempDir {
    use std::os::unix::fs::PermissionsExt as _;
    tempfile::Builder::new().permissions(std::fs::Permissions::from_mode(0o700)).tempdir().unwrap()
}

pub(crate) fn settings(folder: &Path) -> Settings {
    let any: SocketAddr = ([127, 0, 0, 1], 0).into();
    Settings {
        master: MasterConfig { http: any, state_dir: folder.to_owned(), ..MasterConfig::default() },
        broker: BrokerConfig {
            listeners: BTreeMap::from([("local".to_owned(), Listener { address: any, tls: false, anonymous: true })]),
            ..BrokerConfig::default()
        },
        ..Settings::default()
    }
}

impl TestMaster {
    pub(crate) async fn start(folder: &Path) -> TestMaster {
        TestMaster::start_with(settings(folder)).await
    }

    pub(crate) async fn start_with(settings: Settings) -> TestMaster {
        let lock = settings.master.state_dir.join("master.lock");
        let token_file = rpicluster_master::local_token_file(&settings.master.state_dir);
        let master = Master::bind(settings).await.unwrap();
        let token = std::fs::read_to_string(token_file).unwrap().trim().to_owned();
        let (mqtt, http) =
            (master.mqtt_addresses()[0].1, master.http_url().rsplit('/').next().unwrap().parse().unwrap());
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(master.run(async { drop(stopped.await) }));
        TestMaster { mqtt, http, token, lock, stop: Some(stop), task }
    }

    /// A clean stop.
    pub(crate) async fn stop(mut self) {
        drop(self.stop.take());
        self.task.await.unwrap().unwrap();
    }

    /// An end without any goodbye. Returns when another master can have the folder.
    pub(crate) async fn kill(self) {
        self.task.abort();
        assert!(self.task.await.unwrap_err().is_cancelled());
        let end = tokio::time::Instant::now() + PATIENCE;
        while File::open(&self.lock).unwrap().try_lock().is_err() {
            assert!(tokio::time::Instant::now() < end, "the store is not given up");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// The token of this machine.
    pub(crate) fn token(&self) -> &str {
        &self.token
    }

    pub(crate) async fn get(&self, path: &str) -> Value {
        self.request("GET", path, &Value::Null).await.1
    }

    /// A request with a body of JSON: the answer's code and body.
    pub(crate) async fn request(&self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        let mut stream = TcpStream::connect(self.http).await.unwrap();
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let length = body.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {}\r\nconnection: close\r\ncontent-type: application/json\r\n\
             content-length: {length}\r\n\r\n{body}",
            self.token
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let code = head.split(' ').nth(1).unwrap().parse().unwrap();
        (code, serde_json::from_str(body).unwrap_or_default())
    }

    /// A new secret for the slave, which makes any earlier one worthless.
    pub(crate) async fn secret(&self, slave: &str) -> String {
        let body = json!({"id": slave, "replace": true});
        let (code, made) = self.request("POST", "/api/v1/slaves", &body).await;
        assert_eq!(code, 201, "{made}");
        made["secret"].as_str().unwrap().to_owned()
    }

    /// Reads a page again and again until it is as it should be.
    pub(crate) async fn wait_for(&self, path: &str, condition: impl Fn(&Value) -> bool) -> Value {
        let end = tokio::time::Instant::now() + PATIENCE;
        loop {
            let page = self.get(path).await;
            if condition(&page) {
                return page;
            }
            assert!(tokio::time::Instant::now() < end, "{path} stays {page}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub(crate) async fn wait_state(&self, slave: &str, state: &str) -> Value {
        self.wait_for(&format!("/api/v1/slaves/{slave}"), |page| page["state"] == state).await
    }
}

/// A client. Dropping it cuts its connection as `kill -9` would.
pub(crate) struct Client {
    pub(crate) id: String,
    client: AsyncClient,
    received: mpsc::Receiver<Publish>,
    task: JoinHandle<()>,
}

impl Drop for Client {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub(crate) fn state(state: &str, session: &str) -> Value {
    json!({"type": "state", "payload": {"state": state, "session": session, "protocol": 1}})
}

impl Client {
    /// A client without a name that listens to `filter`.
    pub(crate) async fn listen(master: &TestMaster, id: &str, filter: &str) -> Client {
        let client = Client::connect(master, id, None, None).await;
        client.client.subscribe(filter, QoS::AtLeastOnce).await.unwrap();
        client
    }

    /// A slave that only just may connect, as the protocol wants it: a will, its own subscription, `state` first.
    pub(crate) async fn slave(master: &TestMaster, id: &str, session: &str) -> Client {
        let secret = master.secret(id).await;
        Client::slave_with(master, id, session, &secret).await
    }

    /// The same with the secret that it has.
    pub(crate) async fn slave_with(master: &TestMaster, id: &str, session: &str, secret: &str) -> Client {
        let mut will = state("offline", session);
        will["payload"]["reason"] = "connection_lost".into();
        let topic = format!("rpicluster/from/{id}/state");
        let will = LastWill::new(&topic, will.to_string(), QoS::AtLeastOnce, true);
        let client = Client::connect(master, id, Some(will), Some(secret)).await;
        client.client.subscribe(format!("rpicluster/to/{id}/#"), QoS::AtLeastOnce).await.unwrap();
        client.publish("state", true, &state("online", session)).await;
        client
    }

    /// A slave that says nothing of itself.
    pub(crate) async fn shy(master: &TestMaster, id: &str) -> Client {
        let secret = master.secret(id).await;
        let client = Client::connect(master, id, None, Some(&secret)).await;
        client.client.subscribe(format!("rpicluster/to/{id}/#"), QoS::AtLeastOnce).await.unwrap();
        client
    }

    async fn connect(master: &TestMaster, id: &str, will: Option<LastWill>, secret: Option<&str>) -> Client {
        let mut options = MqttOptions::new(id, master.mqtt.ip().to_string(), master.mqtt.port());
        options.set_max_packet_size(64 * 1024, 64 * 1024);
        if let Some(secret) = secret {
            options.set_credentials(id, secret);
        }
        if let Some(will) = will {
            options.set_last_will(will);
        }
        let (client, mut events) = AsyncClient::new(options, 100);
        let (sender, received) = mpsc::channel(10_000);
        let task = tokio::spawn(async move {
            // An error means that the broker has closed the connection: this client is of no more use.
            while let Ok(event) = events.poll().await {
                if let Event::Incoming(Packet::Publish(publish)) = event {
                    sender.send(publish).await.unwrap();
                }
            }
        });
        Client { id: id.to_owned(), client, received, task }
    }

    pub(crate) async fn publish(&self, leaf: &str, retain: bool, message: &Value) {
        self.publish_text(leaf, retain, message.to_string()).await;
    }

    pub(crate) async fn publish_text(&self, leaf: &str, retain: bool, message: String) {
        let topic = format!("rpicluster/from/{}/{leaf}", self.id);
        self.client.publish(topic, QoS::AtLeastOnce, retain, message).await.unwrap();
    }

    /// The next message whose topic ends with `leaf`.
    pub(crate) async fn next(&mut self, leaf: &str) -> (Publish, Value) {
        loop {
            let publish = tokio::time::timeout(PATIENCE, self.received.recv()).await.expect("a message comes");
            let publish = publish.expect("the connection holds");
            if publish.topic.ends_with(leaf) {
                let message = serde_json::from_slice(&publish.payload).unwrap();
                return (publish, message);
            }
        }
    }

    /// Waits until the broker has closed the connection.
    pub(crate) async fn closed(&mut self) {
        let end = async { while self.received.recv().await.is_some() {} };
        tokio::time::timeout(PATIENCE, end).await.expect("the connection ends");
    }

    pub(crate) async fn disconnect(mut self) {
        self.client.disconnect().await.unwrap();
        while self.received.recv().await.is_some() {}
    }
}
