//! A broker that is none: nothing it sends may end the slave.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time;

use crate::broker::PATIENCE;
use crate::{slave, start};

const CONNACK: &[u8] = &[0x20, 2, 0, 0];

/// Packets that no broker sends, after a CONNACK that lets them in.
const NONSENSE: [&[u8]; 12] = [
    &[0x00, 0],                   // reserved type
    &[0xf0, 0],                   // reserved type
    &[0x10, 0],                   // CONNECT
    &[0x20, 3, 0, 0, 0],          // CONNACK as of MQTT 5
    &[0x30, 0],                   // PUBLISH without a topic
    &[0x32, 3, 0, 1, b'a'],       // QoS 1 without a packet id
    &[0x36, 5, 0, 1, b'a', 0, 1], // QoS 3
    &[0x30, 3, 0, 1, 0xff],       // topic that is not UTF-8
    &[0x40, 2, 0xff, 0xff],       // PUBACK of an id never used
    &[0x50, 2, 0, 9],             // PUBREC of an id never used
    &[0x70, 2, 0, 9],             // PUBCOMP of an id never used
    &[0xff; 64],                  // length that never ends
];

#[tokio::test]
async fn nonsense_costs_the_connection_and_not_the_slave() {
    for nonsense in NONSENSE {
        survives(&[CONNACK, nonsense].concat()).await;
    }
}

#[tokio::test]
async fn what_comes_instead_of_a_connack_costs_only_the_attempt() {
    for answer in [&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], &[0x20, 2, 0, 5], &[0x20, 0], &[0xd0, 0], &[]] {
        survives(answer).await;
    }
}

#[tokio::test]
async fn a_silent_broker_does_not_hold_up_the_stop() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut running = start(slave(listener.local_addr().unwrap().port()));
    let (mut socket, _) = listener.accept().await.unwrap();
    socket.write_all(CONNACK).await.unwrap();
    running.wait_for("connected", |status| status.connected).await;
    running.stop.send(()).unwrap();
    time::timeout(PATIENCE, running.task).await.expect("the slave does not stop").unwrap().unwrap();
    assert!(!running.status.borrow().connected);
}

/// The slave comes back after it was sent `bytes`.
async fn survives(bytes: &[u8]) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let running = start(slave(listener.local_addr().unwrap().port()));
    for attempt in ["first", "second"] {
        let accepted = time::timeout(PATIENCE, listener.accept()).await;
        let (mut socket, _) = accepted.unwrap_or_else(|_| panic!("no {attempt} connection, sent {bytes:x?}")).unwrap();
        let mut connect = [0; 64];
        assert!(socket.read(&mut connect).await.unwrap() > 0);
        socket.write_all(bytes).await.unwrap();
    }
    assert!(!running.task.is_finished(), "ended by {bytes:x?}");
    running.task.abort();
}
