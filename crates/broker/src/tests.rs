//! What ends a whole broker.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::*;

/// How long "at once" may take where many tests share few cores; nothing in the broker waits for so long.
const AT_ONCE: Duration = Duration::from_secs(10);

/// CONNECT of MQTT 3.1.1 with the client id "x", and what lets it in.
const CONNECT: [u8; 15] = *b"\x10\x0d\x00\x04MQTT\x04\x02\x00\x00\x00\x01x";
const CONNACK: [u8; 4] = [0x20, 2, 0, 0];

#[tokio::test]
async fn the_routers_death_ends_the_broker_at_once_with_a_clear_error() {
    let mut config = BrokerConfig::default();
    config.listeners.retain(|name, _| name == "local");
    config.listeners.values_mut().for_each(|listener| listener.address.set_port(0));
    let broker = Broker::bind(config, Security::trusting()).await.unwrap();
    let address = broker.addresses()[0].1;
    let hub = Arc::clone(&broker.hub);
    let (_sender, mut receiver) = broker.link(vec!["#".to_owned()]).unwrap();
    // Nobody asks it to stop, and after this nobody sends anything that could notice.
    let running = tokio::spawn(broker.run(std::future::pending()));
    let mut client = TcpStream::connect(address).await.unwrap();
    client.write_all(&CONNECT).await.unwrap();
    let mut answer = [0; 4];
    client.read_exact(&mut answer).await.unwrap();
    assert_eq!(answer, CONNACK);
    assert!(!running.is_finished());

    hub.router.kill();
    let error = timeout(AT_ONCE, running).await.expect("the broker ends").unwrap().unwrap_err();
    assert_eq!(error, RouterStopped);
    assert!(error.to_string().contains("the broker's router has stopped"), "{error}");
    // Those who were connected are not left with a broker that is none, nor is the program around it.
    let read = timeout(AT_ONCE, client.read(&mut answer)).await.expect("the connection ends");
    assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
    assert_eq!(timeout(AT_ONCE, receiver.recv()).await.expect("the link ends").err(), Some(RouterStopped));
}

#[tokio::test]
async fn whoever_waits_for_a_dead_router_is_told() {
    let router = Router::start(&RouterConfig::default(), Arc::default());
    let (router, mut reader) = router.unwrap();
    router.kill();
    let mut messages = Vec::new();
    assert_eq!(timeout(AT_ONCE, reader.read(&mut messages)).await.expect("the reader ends"), Err(RouterStopped));
    let parts = Parts {
        topic: "x",
        payload: b"",
        qos: QoS::AtMostOnce,
        retain: false,
        publisher: 0,
        expiry: None,
        properties: &[],
    };
    let message = Message::new(parts, message::Clock::start());
    // Its ends are dropped one after another: the way in may be open for a moment after the way out has ended.
    let refused = async {
        while router.accept(message.clone(), true).await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    timeout(AT_ONCE, refused).await.expect("it refuses");
    assert_eq!(router.link(Vec::new()).err(), Some(RouterStopped));
}
