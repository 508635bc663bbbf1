//! What one client cannot do to the others: limits, floods, and the bytes that kill other brokers.

#![allow(clippy::unwrap_used, unreachable_pub, reason = "a test fails by panicking; its modules are its own")]

mod common;

use std::time::Duration;

use common::{BOTH, Hello, Raw, TestBroker, patient, until};

#[tokio::test]
async fn limits_cut_only_whom_they_concern() {
    let broker = TestBroker::start(|config| {
        config.limits.connections = 3;
        config.limits.connect_timeout = Duration::from_secs(1);
    })
    .await;
    let mut bystander = Raw::connect(&broker, false, "b").await;
    // Too large, known from the header alone.
    let mut large = Raw::connect(&broker, true, "l").await;
    large.send(&[0x30, 0x81, 0x80, 0x04]).await;
    assert_eq!(large.packet().await, (0xe0, vec![0x95]));
    large.closed().await;
    // Silent before CONNECT.
    let mut silent = Raw::open(&broker, false).await;
    silent.closed().await;
    until(|| broker.stat("connections_now") == 1).await;
    // One connection too many.
    let _second = Raw::connect(&broker, false, "2").await;
    let _third = Raw::connect(&broker, false, "3").await;
    let mut fourth = Raw::open(&broker, false).await;
    fourth.closed().await;
    assert_eq!((broker.stat("connections_refused"), broker.stat("connect_timeouts")), (1, 1));
    bystander.nothing().await;
}

#[tokio::test]
async fn one_address_does_not_take_all_places() {
    let broker = TestBroker::start(|config| config.limits.connections_per_address = 2).await;
    let first = Raw::connect(&broker, false, "1").await;
    let mut second = Raw::connect(&broker, false, "2").await;
    Raw::open(&broker, false).await.closed().await;
    second.nothing().await;
    drop(first);
    until(|| broker.stat("connections_now") == 1).await;
    // Its place is free again. The task that gives it back may be a moment behind the counter.
    let mut third = Raw::open(&broker, false).await;
    third.send(&Hello { client_id: "3", ..Hello::default() }.bytes(false)).await;
    third.packet().await;
    assert_eq!(broker.stat("connections_refused"), 1);
}

#[tokio::test]
async fn a_client_that_sends_too_fast_is_read_more_slowly_and_loses_nothing() {
    let broker = TestBroker::start(|config| config.limits.packets_per_second = 100).await;
    let mut subscriber = Raw::connect(&broker, false, "s").await;
    subscriber.subscribe("t", 0).await;
    let mut fast = Raw::connect(&broker, false, "f").await;
    for number in 0..150 {
        fast.publish("t", &number.to_string(), 0, false, 0).await;
    }
    for number in 0..150 {
        assert_eq!(subscriber.message().await.payload, number.to_string());
    }
    until(|| broker.stat("throttled") > 0).await;
}

#[tokio::test]
async fn too_many_subscriptions_or_retained_messages_are_refused() {
    let broker = TestBroker::start(|config| {
        config.limits.subscriptions = 2;
        config.limits.subscriptions_total = 3;
        config.limits.retained_messages = 2;
    })
    .await;
    for v5 in BOTH {
        let refused = if v5 { 0x97 } else { 0x80 };
        let mut first = Raw::connect(&broker, v5, "first").await;
        assert_eq!([first.subscribe("a", 0).await, first.subscribe("b", 0).await], [0, 0]);
        assert_eq!(first.subscribe("c", 0).await, refused);
        // One that exists may be changed.
        assert_eq!(first.subscribe("a", 1).await, 1);
        let mut second = Raw::connect(&broker, v5, "second").await;
        assert_eq!([second.subscribe("a", 0).await, second.subscribe("b", 0).await], [0, refused]);
        first.unsubscribe("b").await;
        assert_eq!(second.subscribe("b", 0).await, 0);
        first.send(&[0xe0, 0]).await;
        second.send(&[0xe0, 0]).await;
        until(|| broker.stat("subscriptions_now") == 0).await;
    }
    let mut publisher = Raw::connect(&broker, true, "p").await;
    for topic in ["r/1", "r/2", "r/3"] {
        publisher.publish(topic, "x", 1, true, 1).await;
        publisher.packet().await;
    }
    until(|| broker.stat("dropped_retained") == 1).await;
    assert_eq!(broker.stat("retained_now"), 2);
}

/// The raw bytes that end rumqttd's own server or router.
#[tokio::test]
async fn what_kills_stock_rumqttd_is_harmless() {
    let (broker, _sender, mut receiver) = TestBroker::start_with_link(|_| {}, vec!["t/#".into()]).await;
    let mut watchers = [Raw::connect(&broker, false, "w4").await, Raw::connect(&broker, true, "w5").await];
    for watcher in &mut watchers {
        watcher.subscribe("t/#", 1).await;
        watcher.subscribe("\u{e9}x", 0).await;
    }
    // A topic that starts with a non-ASCII character, as a message and as a will.
    let mut client = Raw::connect(&broker, false, "k").await;
    client.send(&[0x30, 0x05, 0x00, 0x02, 0xc3, 0xa9, 0x78]).await;
    client.send(&[0x30, 0x05, 0x00, 0x03, 0xc3, 0xa9, 0x78]).await;
    drop(Raw::hello(&broker, false, Hello { will: Some(("\u{e9}", "", 0, true)), ..Hello::default() }).await);
    // Client ids that poison its mutex, twice each; CONNECT then RST; a client that sends CONNACK.
    for client_id in ["+", "#", "$", "a/b"] {
        drop(Raw::connect(&broker, false, client_id).await);
        drop(Raw::connect(&broker, true, client_id).await);
    }
    for v5 in BOTH {
        let mut reset = Raw::open(&broker, v5).await;
        reset.send(&Hello { client_id: "reset", ..Hello::default() }.bytes(v5)).await;
        // Closing with unread data resets the connection.
        drop(reset);
        for bytes in [&b"\x20\x03\x00\x00\x00"[..], b"\xb0\x02\x00\x01", b"\x40\x02\x00\x63", b"\x70\x02\x00\x63"] {
            let mut client = Raw::connect(&broker, v5, "odd").await;
            client.send(bytes).await;
            let mut first = Raw::open(&broker, v5).await;
            first.send(bytes).await;
        }
    }
    // Subscribers that leave or are taken over while they have not read.
    for v5 in BOTH {
        for _ in 0..20 {
            let mut reader = Raw::connect(&broker, v5, "reader").await;
            reader.subscribe("t/#", 1).await;
            for number in 0..20 {
                client = Raw::connect(&broker, v5, "k").await;
                client.publish("t/n", &number.to_string(), 1, false, 1).await;
                client.packet().await;
            }
        }
    }
    for watcher in &mut watchers {
        // The topic of the first killer arrives as it should.
        assert_eq!(watcher.message().await.topic, "\u{e9}x");
        for _ in 0..2 * 20 {
            for number in 0..20 {
                let message = watcher.message().await;
                assert_eq!(message.payload, number.to_string());
                let id = message.packet_id.to_be_bytes();
                watcher.send(&[0x40, 2, id[0], id[1]]).await;
            }
        }
        watcher.nothing().await;
    }
    for count in 0..2 * 20 * 20 {
        assert_eq!(patient(receiver.recv()).await.unwrap().payload(), (count % 20).to_string());
    }
    assert_eq!((broker.stat("connection_panics"), broker.stat("router_gaps")), (0, 0));
}
