//! Limits of what one client, or all of them, may hold or send: each is crossed, counted, and felt by nobody else.

#![allow(clippy::unwrap_used, unreachable_pub, reason = "a test fails by panicking; its modules are its own")]

mod common;

use std::time::Duration;

use common::wire::property;
use common::{BOTH, Hello, PUBACK, PUBREC, Raw, TestBroker, framed, lasting, session_expiry, text, until};

/// Somebody who has nothing to do with it sends himself a message.
async fn is_served(bystander: &mut Raw) {
    bystander.quiet().await;
}

#[tokio::test]
async fn a_client_id_that_is_too_long_is_refused() {
    let broker = TestBroker::start(|config| config.limits.client_id_bytes = 23).await;
    let mut bystander = Raw::connect(&broker, false, "just-as-long-as-allowed").await;
    for (v5, refusal) in [(false, 2), (true, 0x85)] {
        let hello = Hello { client_id: "a-byte-longer-than-that.", ..Hello::default() };
        let (mut raw, answer) = Raw::greet(&broker, v5, &hello).await;
        assert_eq!(answer.code, refusal);
        raw.closed().await;
    }
    assert_eq!(broker.stat("connects_refused"), 2);
    is_served(&mut bystander).await;
}

#[tokio::test]
async fn a_filter_with_too_many_levels_is_refused() {
    let broker = TestBroker::start(|config| config.limits.filter_levels = 3).await;
    let mut bystander = Raw::connect(&broker, false, "bystander").await;
    for (v5, refusal) in [(false, 0x80), (true, 0x8f)] {
        let mut client = Raw::connect(&broker, v5, "c").await;
        assert_eq!(
            client.subscribe_all(&[("a/b/c", 0), ("a/b/c/d", 0), ("+/+/+/#", 0)], &[]).await,
            [0, refusal, refusal]
        );
        client.publish("a/b/c/d", "deep", 0, false, 0).await;
        client.publish("a/b/c", "served", 0, false, 0).await;
        assert_eq!(client.message().await.payload, "served");
    }
    assert_eq!(broker.stat("subscriptions_refused"), 4);
    is_served(&mut bystander).await;
}

#[tokio::test]
async fn a_packet_beyond_the_limit_ends_the_connection_before_it_has_come() {
    let broker = TestBroker::start(|config| config.limits.packet_bytes = 1024).await;
    let mut bystander = Raw::connect(&broker, false, "bystander").await;
    for v5 in BOTH {
        let before = broker.stat("protocol_errors");
        // 1,025 bytes with the header, which comes alone: as a CONNECT, then as a PUBLISH.
        let mut stranger = Raw::open(&broker, v5).await;
        stranger.send(&[0x10, 0xfe, 0x07]).await;
        stranger.closed().await;
        let mut client = Raw::connect(&broker, v5, "c").await;
        let head = 3 + 3 + usize::from(v5);
        client.complete("t", &"x".repeat(1024 - head), 0, false).await;
        client.send(&[0x30, 0xfe, 0x07]).await;
        assert_eq!(client.ended().await, v5.then_some(0x95));
        until(|| broker.stat("protocol_errors") == before + 2).await;
    }
    is_served(&mut bystander).await;
}

#[tokio::test]
async fn more_user_properties_than_the_limit_are_refused_in_every_packet() {
    let broker = TestBroker::start(|config| config.limits.user_properties = 2).await;
    let mut bystander = Raw::connect(&broker, false, "bystander").await;
    let [two, three] = [2, 3].map(|count| property::user("k", "v").repeat(count));
    for (properties, will_properties) in [(three.clone(), vec![]), (vec![], three.clone())] {
        let will = Some(("t", "x", 0, false));
        let hello = Hello { properties, will_properties, will, ..Hello::default() };
        let mut stranger = Raw::open(&broker, true).await;
        stranger.send(&hello.bytes(true)).await;
        stranger.closed().await;
    }
    let block = |properties: &[u8]| [vec![properties.len() as u8], properties.to_vec()].concat();
    let packets = |properties: &[u8]| {
        let block = block(properties);
        [
            framed(0x30, &[text("t"), block.clone()].concat()),
            framed(0x82, &[vec![0, 1], block.clone(), text("t"), vec![0]].concat()),
            framed(0xa2, &[vec![0, 1], block.clone(), text("t")].concat()),
            framed(PUBACK, &[vec![0, 1, 0], block.clone()].concat()),
            framed(0xe0, &[vec![0], block].concat()),
        ]
    };
    let (mut client, _) = Raw::hello(&broker, true, Hello { properties: two.clone(), ..Hello::default() }).await;
    client.send(&packets(&two)[..4].concat()).await;
    assert_eq!([client.packet().await.0, client.packet().await.0], [0x90, 0xb0]);
    client.nothing().await;
    for packet in packets(&three) {
        let mut client = Raw::connect(&broker, true, "c").await;
        client.send(&packet).await;
        assert_eq!(client.ended().await, Some(0x97), "{packet:x?}");
    }
    until(|| broker.stat("protocol_errors") == 7).await;
    is_served(&mut bystander).await;
}

#[tokio::test]
async fn more_qos_2_messages_than_announced_end_the_connection() {
    let broker = TestBroker::start(|config| config.limits.inflight = 2).await;
    let mut bystander = Raw::connect(&broker, false, "bystander").await;
    for v5 in BOTH {
        let mut client = Raw::connect(&broker, v5, "c").await;
        for id in [1, 2] {
            client.publish("t", "x", 2, false, id).await;
            client.acked(PUBREC, id).await;
        }
        client.publish("t", "x", 2, false, 3).await;
        if v5 {
            assert_eq!(client.packet().await, (0xe0, vec![0x93]), "receive maximum exceeded (MQTT 5 4.9)");
        }
        client.closed().await;
    }
    until(|| broker.stat("protocol_errors") == 2).await;
    is_served(&mut bystander).await;
}

#[tokio::test]
async fn a_client_gets_no_more_unacknowledged_messages_than_the_limit() {
    let broker = TestBroker::start(|config| config.limits.inflight = 2).await;
    for v5 in BOTH {
        let properties = if v5 { property::two(property::RECEIVE_MAXIMUM, 100) } else { vec![] };
        let hello = Hello { client_id: "s", properties, ..Hello::default() };
        let (mut subscriber, _) = Raw::hello(&broker, v5, hello).await;
        subscriber.subscribe("t", 1).await;
        let mut publisher = Raw::connect(&broker, v5, "p").await;
        for id in 1..=4 {
            publisher.publish("t", &id.to_string(), 1, false, id).await;
            publisher.acked(PUBACK, id).await;
        }
        let held = [subscriber.message().await, subscriber.message().await];
        assert_eq!(held.each_ref().map(|message| message.payload.as_str()), ["1", "2"]);
        subscriber.nothing().await;
        subscriber.respond(PUBACK, held[0].packet_id).await;
        assert_eq!(subscriber.message().await.payload, "3");
        subscriber.nothing().await;
    }
}

#[tokio::test]
async fn retained_messages_beyond_the_bytes_of_all_are_not_kept() {
    let broker = TestBroker::start(|config| config.limits.retained_bytes = 2_500).await;
    let mut client = Raw::connect(&broker, true, "c").await;
    client.subscribe("big/#", 0).await;
    for topic in ["big/1", "big/2", "big/3"] {
        client.publish(topic, &"x".repeat(1_000), 0, true, 0).await;
        assert_eq!(client.message().await.topic, topic, "who has subscribed gets it nevertheless");
    }
    assert_eq!((broker.stat("retained_now"), broker.stat("dropped_retained")), (2, 1));
    // What is taken away makes room.
    client.publish("big/1", "", 0, true, 0).await;
    client.publish("big/3", &"x".repeat(1_000), 0, true, 0).await;
    let mut late = Raw::connect(&broker, false, "late").await;
    late.subscribe("big/#", 0).await;
    assert_eq!([late.message().await.topic, late.message().await.topic], ["big/2", "big/3"]);
    late.nothing().await;
}

#[tokio::test]
async fn one_client_does_not_take_all_places_of_retained_messages() {
    let broker = TestBroker::start(|config| config.limits.retained_messages_per_client = 2).await;
    let mut greedy = Raw::connect(&broker, false, "greedy").await;
    for topic in ["r/1", "r/2", "r/3"] {
        greedy.complete(topic, "x", 1, true).await;
    }
    let mut other = Raw::connect(&broker, true, "other").await;
    other.complete("r/4", "x", 1, true).await;
    other.subscribe("r/#", 0).await;
    for topic in ["r/1", "r/2", "r/4"] {
        assert_eq!(other.message().await.topic, topic);
    }
    other.nothing().await;
    assert_eq!(broker.stat("dropped_retained"), 1);
}

#[tokio::test]
async fn sessions_beyond_the_limit_end_with_their_connection() {
    let broker = TestBroker::start(|config| config.limits.sessions = 1).await;
    for v5 in BOTH {
        let before = broker.stat("sessions_evicted");
        let (mut first, _) = Raw::hello(&broker, v5, lasting("first", v5)).await;
        let (mut second, _) = Raw::hello(&broker, v5, lasting("second", v5)).await;
        for client in [&mut first, &mut second] {
            client.subscribe("t", 1).await;
        }
        first.lose().await;
        until(|| broker.stat("connections_now") == 1).await;
        second.lose().await;
        until(|| broker.stat("connections_now") == 0).await;
        assert_eq!((broker.stat("sessions_evicted") - before, broker.stat("sessions_now")), (1, 1));
        let (mut publisher, _) = Raw::hello(&broker, v5, Hello { client_id: "p", ..Hello::default() }).await;
        publisher.complete("t", "kept", 1, false).await;
        let (mut first, present) = Raw::hello(&broker, v5, lasting("first", v5)).await;
        assert!(present);
        assert_eq!(first.take().await.payload, "kept");
        let (mut second, present) = Raw::hello(&broker, v5, lasting("second", v5)).await;
        assert!(!present, "its client learns of it");
        second.nothing().await;
        for (name, client) in [("first", first), ("second", second)] {
            client.lose().await;
            // A clean start ends the session for the next round.
            Raw::hello(&broker, v5, Hello { client_id: name, ..Hello::default() }).await.0.lose().await;
        }
        publisher.lose().await;
        until(|| broker.stat("sessions_now") == 0).await;
    }
}

#[tokio::test]
async fn a_session_is_kept_no_longer_than_the_limit() {
    let broker = TestBroker::start(|config| config.limits.session_expiry = Duration::from_secs(1)).await;
    let hello = |properties| Hello { client_id: "s", clean: false, properties, ..Hello::default() };
    let (client, answer) = Raw::greet(&broker, true, &hello(session_expiry(3_600))).await;
    let announced = property::number(&answer.properties, property::SESSION_EXPIRY);
    assert_eq!(announced, Some(1), "the client is told (MQTT 5 3.2.2.3.2)");
    client.lose().await;
    assert_eq!(broker.stat("sessions_now"), 1);
    until(|| broker.stat("sessions_now") == 0).await;
    let (client, present) = Raw::hello(&broker, false, hello(vec![])).await;
    assert!(!present);
    client.lose().await;
    until(|| broker.stat("sessions_now") == 0).await;
}

#[tokio::test]
async fn a_peer_that_does_not_read_is_cut_and_its_will_is_published() {
    let broker = TestBroker::start(|config| config.limits.write_timeout = Duration::from_secs(1)).await;
    for v5 in BOTH {
        let before = broker.stat("write_timeouts");
        let mut bystander = Raw::connect(&broker, v5, "bystander").await;
        bystander.subscribe("gone", 0).await;
        let will = Some(("gone", "deaf", 0, false));
        let (mut deaf, _) = Raw::hello(&broker, v5, Hello { client_id: "deaf", will, ..Hello::default() }).await;
        deaf.subscribe("flood", 0).await;
        let mut publisher = Raw::connect(&broker, v5, "p").await;
        let payload = "x".repeat(16 * 1024);
        // More than socket buffers hold.
        for _ in 0..2_000 {
            publisher.publish("flood", &payload, 0, false, 0).await;
        }
        assert_eq!(bystander.message().await.payload, "deaf");
        assert_eq!(broker.stat("write_timeouts") - before, 1);
        publisher.nothing().await;
        is_served(&mut bystander).await;
    }
}

#[tokio::test]
async fn a_client_that_sends_too_many_bytes_is_read_more_slowly_and_loses_nothing() {
    let broker = TestBroker::start(|config| {
        config.limits.packet_bytes = 2_048;
        config.limits.bytes_per_second = 20_000;
    })
    .await;
    let mut bystander = Raw::connect(&broker, true, "bystander").await;
    let mut subscriber = Raw::connect(&broker, false, "s").await;
    subscriber.subscribe("t", 0).await;
    let mut fast = Raw::connect(&broker, true, "f").await;
    for number in 0..60 {
        fast.publish("t", &format!("{number:01000}"), 0, false, 0).await;
    }
    for number in 0..60 {
        assert_eq!(subscriber.message().await.payload, format!("{number:01000}"));
        is_served(&mut bystander).await;
    }
    assert!(broker.stat("throttled") > 0);
}

#[tokio::test]
async fn what_is_awaited_of_absent_clients_does_not_grow_with_their_comings_and_goings() {
    let broker = TestBroker::start(|_| {}).await;
    for v5 in BOTH {
        for number in 0..50 {
            // One name that comes back and comes back, and ever new names that come once more to leave nothing.
            let name: &'static str = Box::leak(format!("passer-{number}").into());
            for client_id in ["regular", name] {
                let (client, _) = Raw::hello(&broker, v5, lasting(client_id, v5)).await;
                client.lose().await;
                until(|| broker.stat("connections_now") == 0).await;
            }
            let (client, present) = Raw::hello(&broker, v5, Hello { client_id: name, ..Hello::default() }).await;
            assert!(!present, "its session ends with a clean start");
            client.leave().await;
            until(|| broker.stat("connections_now") == 0).await;
        }
        assert_eq!(broker.stat("deadlines_now"), 1, "the regular's session");
    }
}

#[tokio::test]
async fn those_who_have_not_been_let_in_yet_are_limited_by_their_address() {
    let broker = TestBroker::start(|config| config.limits.pending_per_address = 2).await;
    // Who has been let in does not count.
    let mut inside = [Raw::connect(&broker, false, "a").await, Raw::connect(&broker, true, "b").await];
    let silent = [Raw::open(&broker, false).await, Raw::open(&broker, true).await];
    until(|| broker.stat("connections_now") == 4).await;
    let mut refused = Raw::open(&broker, true).await;
    refused.closed().await;
    assert_eq!(broker.stat("connections_refused"), 1);
    for client in &mut inside {
        client.quiet().await;
    }
    drop(silent);
    until(|| broker.stat("connections_now") == 2).await;
    Raw::connect(&broker, true, "c").await.quiet().await;
}
