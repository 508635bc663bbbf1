//! Readers that are behind: who is held back for them, what is dropped and counted, and what nobody else notices.

#![allow(clippy::unwrap_used, unreachable_pub, reason = "a test fails by panicking; its modules are its own")]

mod common;

use std::collections::BTreeSet;
use std::time::Duration;

use common::{BOTH, Hello, Raw, TestBroker, framed, lasting, patient, text, until};
use rpicluster_broker::{BrokerConfig, SlowSubscriber};

/// Room in the router for three messages of 600 bytes.
fn small_router(config: &mut BrokerConfig) {
    config.limits.packet_bytes = 1024;
    config.router.segment_bytes = 2048;
    config.router.segment_count = 2;
}

#[tokio::test]
async fn publishers_of_a_slow_subscriber_are_acknowledged_later_and_nothing_is_lost() {
    let broker = TestBroker::start(|config| {
        config.limits.queue_messages = 200;
        // What is on its way through the router still has to fit.
        small_router(config);
    })
    .await;
    let mut subscriber = Raw::connect(&broker, false, "s").await;
    subscriber.subscribe("t", 1).await;
    let mut publisher = Raw::connect(&broker, false, "p").await;
    let mut bystander = Raw::connect(&broker, false, "b").await;
    let count = 600;
    for number in 1..=count {
        publisher.publish("t", &number.to_string(), 1, false, number).await;
    }
    // More than the window and half the queue: the rest is not acknowledged yet, and nobody else waits for that.
    until(|| broker.stat("publishers_held") > 0).await;
    bystander.publish("other", "x", 1, false, 1).await;
    assert_eq!(bystander.packet().await.0, 0x40);
    for number in 1..=count {
        let message = subscriber.message().await;
        assert_eq!(message.payload, number.to_string());
        let id = message.packet_id.to_be_bytes();
        subscriber.send(&[0x40, 2, id[0], id[1]]).await;
    }
    for number in 1..=count {
        assert_eq!(publisher.packet().await, (0x40, number.to_be_bytes().to_vec()));
    }
    assert_eq!((broker.stat("queue_overflows"), broker.stat("dropped_slow_reader")), (0, 0));
}

#[tokio::test]
async fn who_says_little_is_not_held_for_a_subscriber_that_a_flooder_has_filled() {
    let broker = TestBroker::start(|config| {
        config.limits.queue_messages = 200;
        small_router(config);
        // Whoever is held is held for longer than this test lasts.
        config.limits.write_timeout = Duration::from_secs(3600);
    })
    .await;
    let mut idle = Raw::connect(&broker, false, "idle").await;
    idle.subscribe("#", 1).await;
    let mut flooder = Raw::connect(&broker, false, "flooder").await;
    for number in 1..=600 {
        flooder.publish("flood", "x", 1, false, number).await;
    }
    until(|| broker.stat("publishers_held") == 1).await;
    let mut modest = Raw::connect(&broker, false, "modest").await;
    for number in 1..=5 {
        modest.publish("little", "x", 1, false, number).await;
        assert_eq!(modest.packet().await, (0x40, number.to_be_bytes().to_vec()));
    }
    assert_eq!(broker.stat("publishers_held"), 1);
}

/// More than the router's log holds, read late: publishers wait, nothing is lost, the others' order stands.
#[tokio::test]
async fn credit_holds_publishers_back_and_loses_nothing() {
    let (broker, _sender, mut receiver) = TestBroker::start_with_link(
        |config| {
            config.limits.packet_bytes = 8 * 1024;
            config.router.segment_bytes = 16 * 1024;
            config.router.segment_count = 2;
        },
        vec!["up/+".into()],
    )
    .await;
    let count = 500;
    let publishers: Vec<_> = [("up/a", "a"), ("up/b", "b"), ("up/c", "c")]
        .into_iter()
        .map(|(topic, client_id)| {
            let address = broker.address;
            tokio::spawn(async move {
                let mut client = Raw::open_address(address, false).await;
                client.send(&Hello { client_id, ..Hello::default() }.bytes(false)).await;
                client.packet().await;
                for number in 0..count {
                    client.publish(topic, &format!("{number:01000}"), (number % 2) as u8, false, 1).await;
                }
                client
            })
        })
        .collect();
    until(|| broker.stat("credit_waits") > 0).await;
    let mut next = std::collections::HashMap::<String, usize>::new();
    for _ in 0..3 * count {
        let delivery = patient(receiver.recv()).await.unwrap();
        let next = next.entry(delivery.topic().to_owned()).or_default();
        assert_eq!(delivery.payload(), format!("{next:01000}"));
        *next += 1;
    }
    assert!(next.values().all(|next| *next == count));
    for publisher in publishers {
        publisher.await.unwrap();
    }
    assert_eq!(broker.stat("router_gaps"), 0);
}

#[tokio::test]
async fn publishers_of_a_subscriber_that_takes_nothing_are_held_only_for_the_time_it_has() {
    let broker = TestBroker::start(|config| {
        config.limits.write_timeout = Duration::from_secs(1);
        config.limits.inflight = 1;
        config.limits.queue_messages = 4;
        config.limits.packet_bytes = 128 * 1024;
    })
    .await;
    let mut deaf = Raw::connect(&broker, true, "d").await;
    deaf.subscribe("t", 1).await;
    let mut publisher = Raw::connect(&broker, false, "p").await;
    // So long that no publisher is modest.
    let payload = "x".repeat(70_000);
    // One is in flight and three wait, more than half of what may.
    for _ in 1..=4 {
        publisher.complete("t", &payload, 1, false).await;
    }
    publisher.quiet().await;
    assert_eq!(broker.stat("publishers_held"), 0);
    // The next is held and fills the queue, and the one after it ends the session.
    for held in 1..=2 {
        assert_eq!(broker.stat("queue_overflows"), 0);
        publisher.complete("t", &payload, 1, false).await;
        assert_eq!(broker.stat("publishers_held"), held);
    }
    assert_eq!(deaf.message().await.payload, payload);
    assert_eq!(deaf.ended().await, Some(0x97));
    assert_eq!(broker.stat("queue_overflows"), 1);
}

#[tokio::test]
async fn a_reader_that_stops_loses_qos_0_counted_and_delays_nobody() {
    let by_bytes: fn(&mut BrokerConfig) = |config| config.limits.queue_bytes = 256 * 1024;
    for limit in [by_bytes, |config| config.limits.queue_messages = 16] {
        let broker = TestBroker::start(limit).await;
        let mut stopped = Raw::connect(&broker, false, "stopped").await;
        stopped.subscribe("t", 0).await;
        let mut bystander = Raw::connect(&broker, true, "bystander").await;
        bystander.subscribe("t", 0).await;
        let mut publisher = Raw::connect(&broker, false, "p").await;
        let payload = "x".repeat(16 * 1024);
        let count = 1000;
        for _ in 0..count {
            publisher.publish("t", &payload, 0, false, 0).await;
            assert_eq!(bystander.message().await.payload.len(), payload.len());
        }
        let dropped = broker.stat("dropped_slow_reader");
        assert!(dropped > 0);
        for _ in 0..count - dropped {
            stopped.message().await;
        }
        stopped.nothing().await;
    }
}

#[tokio::test]
async fn a_session_that_cannot_hold_qos_1_ends_so_that_its_client_learns_of_the_gap() {
    let by_bytes: fn(&mut BrokerConfig) = |config| {
        config.limits.packet_bytes = 1024;
        config.limits.queue_bytes = 1024;
    };
    let by_count: fn(&mut BrokerConfig) = |config| config.limits.queue_messages = 10;
    for (connected, limit) in [(false, by_count), (true, by_count), (false, by_bytes), (true, by_bytes)] {
        let broker = TestBroker::start(|config| {
            config.limits.slow_subscriber = SlowSubscriber::Cut;
            limit(config);
        })
        .await;
        let (mut subscriber, _) = Raw::hello(&broker, true, lasting("s", true)).await;
        subscriber.subscribe("t", 1).await;
        let mut kept = Some(subscriber);
        if !connected {
            kept.take();
            until(|| broker.stat("connections_now") == 0).await;
        }
        let mut publisher = Raw::connect(&broker, true, "p").await;
        // More than the window and the queue hold together, none of it acknowledged by the subscriber.
        for number in 0..400 {
            publisher.publish("t", "x", 1, false, number + 1).await;
            assert_eq!(publisher.packet().await.0, 0x40);
        }
        if let Some(mut subscriber) = kept {
            let farewell = async {
                loop {
                    if let (0xe0, body) = subscriber.packet().await {
                        break body;
                    }
                }
            };
            assert_eq!(patient(farewell).await, [0x97]);
        }
        let (_, present) = Raw::hello(&broker, true, lasting("s", true)).await;
        assert!(!present);
        assert_eq!(broker.stat("queue_overflows"), 1);
    }
}

#[tokio::test]
async fn a_publisher_that_goes_while_it_waits_takes_no_room_along() {
    for v5 in BOTH {
        // What is for both readers, and of these the link does not read yet.
        let (broker, _sender, mut receiver) = TestBroker::start_with_link(small_router, vec!["up".into()]).await;
        let mut bystander = Raw::connect(&broker, v5, "b").await;
        bystander.subscribe("up", 0).await;
        bystander.subscribe("other", 0).await;
        let payload = "x".repeat(600);
        let mut publisher = Raw::connect(&broker, v5, "p").await;
        for id in 1..=3 {
            publisher.complete("up", &payload, 1, false).await;
            assert_eq!(bystander.message().await.topic, "up", "number {id}");
        }
        for round in 1..=5 {
            publisher.publish("up", &payload, 1, false, 1).await;
            until(|| broker.stat("credit_waits") == round).await;
            // It is taken over. Its message was never acknowledged, and is counted.
            publisher = Raw::connect(&broker, v5, "p").await;
            assert_eq!(broker.stat("dropped_unaccepted"), round);
        }
        publisher.complete("other", &payload, 1, false).await;
        assert_eq!(bystander.message().await.topic, "other", "its reader has room");
        for _ in 1..=3 {
            assert_eq!(patient(receiver.recv()).await.unwrap().topic(), "up");
        }
        publisher.complete("up", &payload, 1, false).await;
        assert_eq!(patient(receiver.recv()).await.unwrap().topic(), "up", "now the other reader has room too");
        bystander.takes(&[&payload]).await;
        bystander.nothing().await;
    }
}

#[tokio::test]
async fn what_a_killed_publisher_said_is_accepted_or_counted() {
    let (broker, _sender, mut receiver) = TestBroker::start_with_link(small_router, vec!["up".into()]).await;
    let mut heard = 0;
    for round in 0..20 {
        let v5 = round % 2 == 0;
        let waits = broker.stat("credit_waits");
        let mut publisher = Raw::connect(&broker, v5, "p").await;
        let body = [text("up"), vec![0, 1], if v5 { vec![0] } else { vec![] }, vec![b'x'; 600]].concat();
        publisher.send(&framed(0x32, &body).repeat(10)).await;
        publisher.reset();
        // The first are acknowledged to nobody while the next waits for room.
        until(|| broker.stat("credit_waits") > waits).await;
        patient(async {
            let read = || broker.stat("messages_received") - broker.stat("dropped_unaccepted");
            while broker.stat("connections_now") > 0 || heard < read() {
                if tokio::time::timeout(Duration::from_millis(2), receiver.recv()).await.is_ok() {
                    heard += 1;
                }
            }
            assert_eq!(heard, read());
        })
        .await;
    }
}

/// Six times what may wait for the subscriber is retained: it gets all of it at its own pace, also when it breaks off and
/// comes back, and nothing of what is published meanwhile twice.
#[tokio::test]
async fn retained_messages_come_as_fast_as_they_are_read_and_none_is_dropped() {
    const COUNT: u16 = 600;
    let topics = |count: u16| (1..=count).map(|number| format!("t/{number:03}"));
    for v5 in BOTH {
        let broker = TestBroker::start(|config| config.limits.queue_messages = 100).await;
        let mut publisher = Raw::connect(&broker, v5, "p").await;
        for topic in topics(COUNT) {
            publisher.complete(&topic, "old", 1, true).await;
        }
        let (mut subscriber, _) = Raw::hello(&broker, v5, lasting("s", v5)).await;
        subscriber.subscribe("#", 1).await;
        let mut retained = BTreeSet::new();
        while retained.len() < usize::from(COUNT) / 2 {
            retained.insert(subscriber.take().await.topic);
        }
        subscriber.lose().await;
        until(|| broker.stat("connections_now") == 1).await;
        // Of the last two one is replaced, by what comes as it is published, and one goes for good.
        publisher.complete(&format!("t/{COUNT}"), "new", 1, true).await;
        publisher.complete(&format!("t/{}", COUNT - 1), "", 1, true).await;
        let (mut subscriber, present) = Raw::hello(&broker, v5, lasting("s", v5)).await;
        assert!(present);
        let mut live = Vec::new();
        while retained.len() < usize::from(COUNT) - 2 || live.len() < 2 {
            let message = subscriber.take().await;
            if message.retain {
                assert_eq!(message.payload, "old");
                retained.insert(message.topic);
            } else {
                live.push(message.payload);
            }
        }
        assert!(retained.iter().cloned().eq(topics(COUNT - 2)), "{retained:?}");
        assert_eq!(live, ["new", ""]);
        subscriber.nothing().await;
        assert_eq!((broker.stat("queue_overflows"), broker.stat("dropped_slow_reader")), (0, 0));
    }
}

/// Hardly more than one packet may wait for a client, and nothing gives way for what is retained.
#[tokio::test]
async fn long_retained_messages_come_one_after_the_other_where_little_may_wait() {
    for v5 in BOTH {
        let broker = TestBroker::start(|config| {
            config.limits.packet_bytes = 1024;
            config.limits.queue_bytes = 1500;
        })
        .await;
        let mut publisher = Raw::connect(&broker, v5, "p").await;
        for number in 0..20 {
            publisher.complete(&format!("t/{number:02}"), &"x".repeat(900), 1, true).await;
        }
        for qos in 0..=2 {
            let mut subscriber = Raw::connect(&broker, v5, "s").await;
            subscriber.subscribe("#", qos).await;
            for number in 0..20 {
                assert_eq!(subscriber.take().await.topic, format!("t/{number:02}"));
            }
            subscriber.leave().await;
        }
        assert_eq!((broker.stat("queue_overflows"), broker.stat("dropped_slow_reader")), (0, 0));
    }
}
