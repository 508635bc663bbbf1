use std::time::Duration;

use rpicluster_broker::QoS;
use rpicluster_client::{BrokerAddress, Trust};
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use super::*;

fn message(number: usize) -> Outgoing {
    let payload = number.to_string().into();
    Outgoing { topic: "t".into(), payload, qos: QoS::AtLeastOnce, retain: false, correlation_data: None }
}

#[tokio::test]
async fn without_a_connection_nobody_waits_and_the_oldest_is_dropped_and_counted() {
    let (queue, dropped) = (Queue::default(), Counter::default());
    for number in 0..1_003 {
        queue.push(message(number), &dropped).await;
    }
    assert_eq!(dropped.get(), 3);
    assert_eq!(&queue.pop().await.payload[..], b"3");
}

#[tokio::test]
async fn with_a_connection_nothing_is_dropped_but_whoever_waits_is_freed_when_it_breaks() {
    let (queue, dropped) = (Arc::new(Queue::default()), Arc::new(Counter::default()));
    queue.set_connected(true);
    for number in 0..1_000 {
        queue.push(message(number), &dropped).await;
    }
    let push = |number| {
        let (queue, dropped) = (queue.clone(), dropped.clone());
        tokio::spawn(async move { queue.push(message(number), &dropped).await })
    };
    let first = push(1_000);
    tokio::task::yield_now().await;
    assert!(!first.is_finished());
    assert_eq!(&queue.pop().await.payload[..], b"0");
    first.await.unwrap();
    let second = push(1_001);
    tokio::task::yield_now().await;
    assert!(!second.is_finished());
    assert_eq!(dropped.get(), 0);
    queue.set_connected(false);
    second.await.unwrap();
    assert_eq!(dropped.get(), 1);
}

/// What is told of a connection to this address.
async fn problem(address: &str) -> String {
    let address: BrokerAddress = address.parse().unwrap();
    let connection = Connection::new(address, &Trust::Ca(certificate()), None).unwrap();
    let (remote, ..) = Remote::new(connection, TopicRoot::default(), 7);
    let status = remote.status();
    let (stop, stopped) = oneshot::channel::<()>();
    let task = tokio::spawn(remote.run(async { drop(stopped.await) }));
    let problem = loop {
        if let Some(problem) = status.page().problem.clone() {
            break problem;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    assert!(!status.page().connected && status.hearing.until(clock::now()).is_none());
    drop(stop);
    task.await.unwrap().unwrap();
    problem
}

fn certificate() -> Vec<u8> {
    let params = rcgen::CertificateParams::new(vec!["broker.lan".to_owned()]).unwrap();
    params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().pem().into_bytes()
}

#[tokio::test]
async fn what_is_wrong_is_told_in_words() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let free = listener.local_addr().unwrap();
    drop(listener);
    assert!(problem(&format!("mqtt://{free}")).await.contains("nobody listens at mqtt://127.0.0.1"));
    let unknown = problem("mqtt://no-such-broker.invalid").await;
    assert!(unknown.contains("no-such-broker.invalid cannot be found"), "{unknown}");

    let strange = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = strange.local_addr().unwrap();
    let server = tokio::spawn(async move {
        loop {
            let (mut stream, _) = strange.accept().await.unwrap();
            // As long as the packet that it could be the beginning of.
            let answer = format!("HTTP/1.1 400 Bad Request\r\n\r\n{}", " ".repeat(200));
            // Whoever has gone already has heard enough.
            let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, answer.as_bytes()).await;
            tokio::spawn(async move { tokio::io::copy(&mut stream, &mut tokio::io::sink()).await });
        }
    });
    let no_tls = problem(&format!("mqtts://{address}")).await;
    assert!(no_tls.contains("does not speak TLS"), "{no_tls}");
    let no_mqtt = problem(&format!("mqtt://{address}")).await;
    assert!(no_mqtt.contains("does not speak MQTT 5"), "{no_mqtt}");
    server.abort();
}
