//! A master on free ports, and an MQTT client that collects what it gets.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
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
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<Result<(), RunError>>,
}

pub(crate) fn settings(folder: &Path) -> Settings {
    let any: SocketAddr = ([127, 0, 0, 1], 0).into();
    Settings {
        master: MasterConfig { http: any, state_dir: folder.to_owned(), ..MasterConfig::default() },
        broker: BrokerConfig {
            listeners: BTreeMap::from([("test".to_owned(), Listener { address: any })]),
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
        let master = Master::bind(settings).await.unwrap();
        let (mqtt, http) = (master.mqtt_addresses()[0].1, master.http_address());
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(master.run(async { drop(stopped.await) }));
        TestMaster { mqtt, http, stop: Some(stop), task }
    }

    /// A clean stop.
    pub(crate) async fn stop(mut self) {
        drop(self.stop.take());
        self.task.await.unwrap().unwrap();
    }

    pub(crate) async fn get(&self, path: &str) -> Value {
        let mut stream = TcpStream::connect(self.http).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap()
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
    /// A client that listens to `filter`.
    pub(crate) async fn listen(master: &TestMaster, id: &str, filter: &str) -> Client {
        let client = Client::connect(master, id, None).await;
        client.client.subscribe(filter, QoS::AtLeastOnce).await.unwrap();
        client
    }

    /// A slave as the protocol wants it: a will, its own subscription, `state` first.
    pub(crate) async fn slave(master: &TestMaster, id: &str, session: &str) -> Client {
        let mut will = state("offline", session);
        will["payload"]["reason"] = "connection_lost".into();
        let topic = format!("rpicluster/from/{id}/state");
        let will = LastWill::new(&topic, will.to_string(), QoS::AtLeastOnce, true);
        let client = Client::connect(master, id, Some(will)).await;
        client.client.subscribe(format!("rpicluster/to/{id}/#"), QoS::AtLeastOnce).await.unwrap();
        client.publish("state", true, &state("online", session)).await;
        client
    }

    async fn connect(master: &TestMaster, id: &str, will: Option<LastWill>) -> Client {
        let mut options = MqttOptions::new(id, master.mqtt.ip().to_string(), master.mqtt.port());
        options.set_max_packet_size(64 * 1024, 64 * 1024);
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

    pub(crate) async fn disconnect(mut self) {
        self.client.disconnect().await.unwrap();
        while self.received.recv().await.is_some() {}
    }
}
