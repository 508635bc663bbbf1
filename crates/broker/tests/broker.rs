//! The broker over real sockets, byte by byte. Every test of standard behaviour runs on both versions of MQTT.

#![allow(clippy::unwrap_used, unreachable_pub, reason = "a test fails by panicking; its modules are its own")]

mod common;

use std::time::Duration;

use common::{BOTH, Hello, Raw, TestBroker, framed, lasting, patient, text, until};
use rpicluster_broker::{Broker, BrokerConfig, Outgoing, QoS, Security};

#[tokio::test]
async fn delivers_at_the_lower_qos_of_publish_and_subscription() {
    let broker = TestBroker::start(|_| {}).await;
    for (publisher_v5, subscriber_v5) in [(false, false), (true, false), (false, true), (true, true)] {
        for published in 0..3 {
            for subscribed in 0..3 {
                let mut subscriber = Raw::connect(&broker, subscriber_v5, "s").await;
                assert_eq!(subscriber.subscribe("t/+", subscribed).await, subscribed);
                let mut publisher = Raw::connect(&broker, publisher_v5, "p").await;
                publisher.publish("t/ä", "x", published, false, 7).await;
                let message = subscriber.message().await;
                assert_eq!((message.topic.as_str(), message.payload.as_str()), ("t/ä", "x"));
                assert_eq!((message.qos, message.retain, message.dup), (published.min(subscribed), false, false));
                match published {
                    1 => assert_eq!(publisher.packet().await, (0x40, vec![0, 7])),
                    2 => {
                        assert_eq!(publisher.packet().await, (0x50, vec![0, 7]));
                        publisher.send(&[0x62, 2, 0, 7]).await;
                        assert_eq!(publisher.packet().await, (0x70, vec![0, 7]));
                    }
                    _ => publisher.nothing().await,
                }
            }
        }
    }
}

#[tokio::test]
async fn qos_2_goes_through_exactly_once_in_both_directions() {
    for v5 in BOTH {
        let broker = TestBroker::start(|_| {}).await;
        let mut subscriber = Raw::connect(&broker, v5, "s").await;
        subscriber.subscribe("t", 2).await;
        let mut publisher = Raw::connect(&broker, v5, "p").await;
        publisher.publish("t", "1", 2, false, 5).await;
        assert_eq!(publisher.packet().await, (0x50, vec![0, 5]));
        // The PUBREC is taken as lost: the same message comes again and must not be delivered again.
        publisher.publish_flags("t", "1", 0x0c, 5).await;
        assert_eq!(publisher.packet().await, (0x50, vec![0, 5]));
        publisher.send(&[0x62, 2, 0, 5]).await;
        assert_eq!(publisher.packet().await, (0x70, vec![0, 5]));
        let message = subscriber.message().await;
        let id = message.packet_id.to_be_bytes();
        subscriber.send(&[0x50, 2, id[0], id[1]]).await;
        assert_eq!(subscriber.packet().await, (0x62, id.to_vec()));
        subscriber.send(&[0x70, 2, id[0], id[1]]).await;
        subscriber.nothing().await;
        // Released: the id may carry a new message.
        publisher.publish("t", "2", 2, false, 5).await;
        assert_eq!(subscriber.message().await.payload, "2");
    }
}

#[tokio::test]
async fn a_lasting_session_is_redelivered_with_dup_and_its_packet_ids() {
    for v5 in BOTH {
        let broker = TestBroker::start(|_| {}).await;
        let (mut subscriber, present) = Raw::hello(&broker, v5, lasting("s", v5)).await;
        assert!(!present);
        subscriber.subscribe("t", 2).await;
        let mut publisher = Raw::connect(&broker, v5, "p").await;
        publisher.publish("t", "1", 1, false, 1).await;
        publisher.publish("t", "2", 2, false, 2).await;
        let (first, second) = (subscriber.message().await, subscriber.message().await);
        let mut witness = Raw::connect(&broker, v5, "w").await;
        witness.subscribe("t", 0).await;
        // PUBREC for the second; then the connection breaks before anything else.
        let id = second.packet_id.to_be_bytes();
        subscriber.send(&[0x50, 2, id[0], id[1]]).await;
        assert_eq!(subscriber.packet().await.0, 0x62);
        drop(subscriber);
        until(|| broker.stat("connections_now") == 2).await;
        publisher.publish("t", "3", 1, false, 3).await;
        publisher.publish("t", "not kept", 0, false, 0).await;
        assert_eq!([witness.message().await.payload, witness.message().await.payload], ["3", "not kept"]);

        let (mut subscriber, present) = Raw::hello(&broker, v5, lasting("s", v5)).await;
        assert!(present);
        let again = subscriber.message().await;
        assert_eq!((again.dup, again.packet_id, again.payload.as_str()), (true, first.packet_id, "1"));
        assert_eq!(subscriber.packet().await, (0x62, id.to_vec()), "PUBREL again, not the message");
        let third = subscriber.message().await;
        assert_eq!((third.dup, third.payload.as_str()), (false, "3"));
        subscriber.nothing().await;
        // A clean start forgets all of it.
        let (mut subscriber, present) = Raw::hello(&broker, v5, Hello { client_id: "s", ..Hello::default() }).await;
        assert!(!present);
        publisher.publish("t", "4", 1, false, 4).await;
        subscriber.nothing().await;
    }
}

#[tokio::test]
async fn a_publisher_notices_that_subscribers_come_and_go() {
    let broker = TestBroker::start(|_| {}).await;
    let mut publisher = Raw::connect(&broker, false, "p").await;
    let mut subscriber = Raw::connect(&broker, true, "s").await;
    for round in 0..50 {
        publisher.publish("t", "unheard", 1, false, 1).await;
        publisher.packet().await;
        subscriber.subscribe(if round % 2 == 0 { "t" } else { "+" }, 0).await;
        publisher.publish("t", "heard", 0, false, 0).await;
        assert_eq!(subscriber.message().await.payload, "heard");
        subscriber.unsubscribe(if round % 2 == 0 { "t" } else { "+" }).await;
    }
    subscriber.nothing().await;
}

#[tokio::test]
async fn unsubscribing_is_answered_once_and_holds_after_the_session_is_resumed() {
    for v5 in BOTH {
        let broker = TestBroker::start(|_| {}).await;
        let (mut subscriber, _) = Raw::hello(&broker, v5, lasting("s", v5)).await;
        subscriber.subscribe("a", 0).await;
        subscriber.subscribe("b", 0).await;
        subscriber.unsubscribe("a").await;
        subscriber.unsubscribe("never there").await;
        drop(subscriber);
        until(|| broker.stat("connections_now") == 0).await;
        let (mut subscriber, _) = Raw::hello(&broker, v5, lasting("s", v5)).await;
        let mut publisher = Raw::connect(&broker, v5, "p").await;
        publisher.publish("a", "1", 0, false, 0).await;
        publisher.publish("b", "2", 0, false, 0).await;
        assert_eq!(subscriber.message().await.payload, "2");
        subscriber.nothing().await;
    }
}

#[tokio::test]
async fn retained_messages_come_to_new_subscribers_and_go_with_an_empty_one() {
    for v5 in BOTH {
        let broker = TestBroker::start(|_| {}).await;
        let mut publisher = Raw::connect(&broker, v5, "p").await;
        // QoS 0 and a disconnect at once: the subscriber after it must still find it retained.
        publisher.publish("r/1", "one", 0, true, 0).await;
        publisher.send(&[0xe0, 0]).await;
        publisher.closed().await;
        let mut subscriber = Raw::connect(&broker, v5, "s").await;
        subscriber.subscribe("r/#", 1).await;
        let message = subscriber.message().await;
        assert_eq!((message.payload.as_str(), message.retain, message.qos), ("one", true, 0));
        // A live copy is not marked as retained; subscribing again brings it again.
        let mut publisher = Raw::connect(&broker, v5, "p").await;
        publisher.publish("r/1", "two", 1, true, 1).await;
        assert!(!subscriber.message().await.retain);
        subscriber.subscribe("r/#", 1).await;
        let message = subscriber.message().await;
        assert_eq!((message.payload.as_str(), message.retain), ("two", true));
        publisher.publish("r/1", "", 0, true, 0).await;
        assert_eq!(subscriber.message().await.payload, "");
        subscriber.subscribe("r/#", 1).await;
        subscriber.nothing().await;
        assert_eq!(broker.stat("retained_now"), 0);
    }
}

#[tokio::test]
async fn mqtt_5_3_8_3_1_subscription_options() {
    let broker = TestBroker::start(|_| {}).await;
    let mut client = Raw::connect(&broker, true, "c").await;
    client.publish("t", "old", 0, true, 0).await;
    // Retain handling 2: none. 1: only for a new subscription. 0: always.
    client.subscribe("t", 0x20).await;
    client.subscribe("t", 0x10).await;
    client.nothing().await;
    client.subscribe("t", 0x00).await;
    assert_eq!(client.message().await.payload, "old");
    // No local, and retain as published.
    client.subscribe("t", 0x04 | 0x08 | 0x20).await;
    client.publish("t", "mine", 0, false, 0).await;
    client.nothing().await;
    let mut other = Raw::connect(&broker, true, "o").await;
    other.publish("t", "theirs", 0, true, 0).await;
    let message = client.message().await;
    assert_eq!((message.payload.as_str(), message.retain), ("theirs", true));
}

#[tokio::test]
async fn mqtt_5_properties_pass_to_v5_and_are_stripped_for_v3() {
    let broker = TestBroker::start(|_| {}).await;
    let mut new = Raw::connect(&broker, true, "new").await;
    let mut old = Raw::connect(&broker, false, "old").await;
    new.subscribe("t", 0).await;
    old.subscribe("t", 0).await;
    let mut publisher = Raw::connect(&broker, true, "p").await;
    let properties = [&[0x02, 0, 0, 0, 100, 0x03][..], &text("type"), &[0x26], &text("k"), &text("v")].concat();
    let body = [text("t"), vec![properties.len() as u8], properties.clone(), b"x".to_vec()].concat();
    publisher.send(&framed(0x30, &body)).await;
    assert_eq!(new.message().await.properties, properties);
    let message = old.message().await;
    assert_eq!((message.payload.as_str(), message.properties.len()), ("x", 0));
}

#[tokio::test]
async fn a_will_follows_a_lost_connection_and_never_a_goodbye() {
    for v5 in BOTH {
        let broker = TestBroker::start(|_| {}).await;
        let mut watcher = Raw::connect(&broker, v5, "w").await;
        watcher.subscribe("will/+", 1).await;
        let hello = |client_id| Hello { client_id, will: Some(("will/ä", "gone", 1, true)), ..Hello::default() };
        let (client, _) = Raw::hello(&broker, v5, hello("a")).await;
        drop(client);
        let message = watcher.message().await;
        assert_eq!((message.topic.as_str(), message.payload.as_str(), message.qos), ("will/ä", "gone", 1));
        watcher.send(&[0x40, 2, 0, message.packet_id as u8]).await;
        let (mut client, _) = Raw::hello(&broker, v5, hello("b")).await;
        client.send(&[0xe0, 0]).await;
        client.closed().await;
        watcher.nothing().await;
        // Broken bytes are a loss too.
        let (mut client, _) = Raw::hello(&broker, v5, hello("c")).await;
        client.send(&[0x00, 0x00]).await;
        client.closed().await;
        assert_eq!(watcher.message().await.payload, "gone");
        assert_eq!(broker.stat("wills"), 2);
        // And it was retained.
        let mut late = Raw::connect(&broker, v5, "l").await;
        late.subscribe("will/#", 0).await;
        assert!(late.message().await.retain);
    }
}

#[tokio::test]
async fn mqtt_5_3_1_3_2_a_delayed_will_is_not_sent_if_the_session_goes_on() {
    let broker = TestBroker::start(|_| {}).await;
    let mut watcher = Raw::connect(&broker, true, "w").await;
    watcher.subscribe("will", 0).await;
    let hello = |client_id, delay: u32| Hello {
        will: Some(("will", "gone", 0, false)),
        will_properties: [&[0x18][..], &delay.to_be_bytes()].concat(),
        ..lasting(client_id, true)
    };
    drop(Raw::hello(&broker, true, hello("a", 600)).await);
    until(|| broker.stat("connections_now") == 1).await;
    let (client, present) = Raw::hello(&broker, true, hello("a", 1)).await;
    assert!(present);
    watcher.nothing().await;
    drop(client);
    assert_eq!(watcher.message().await.payload, "gone");
}

#[tokio::test]
async fn a_take_over_reads_the_old_socket_first_then_sends_its_will_then_lets_the_new_one_in() {
    for v5 in BOTH {
        let (broker, _sender, mut receiver) = TestBroker::start_with_link(|_| {}, vec!["t/#".into()]).await;
        let hello = |will| Hello { client_id: "x", will: Some(("t/will", will, 0, false)), ..Hello::default() };
        let (mut old, _) = Raw::hello(&broker, v5, hello("old")).await;
        for round in 0..20 {
            for number in 0..50 {
                old.publish("t/m", &format!("{round}/{number}"), 0, false, 0).await;
            }
            let (mut new, _) = Raw::hello(&broker, v5, hello("old")).await;
            new.publish("t/m", "new", 0, false, 0).await;
            for number in 0..50 {
                let delivery = patient(receiver.recv()).await.unwrap();
                assert_eq!(delivery.payload(), format!("{round}/{number}"));
            }
            assert_eq!(patient(receiver.recv()).await.unwrap().topic(), "t/will");
            assert_eq!(patient(receiver.recv()).await.unwrap().payload(), "new");
            if v5 {
                assert_eq!(old.packet().await, (0xe0, vec![0x8e]));
            }
            old.closed().await;
            old = new;
        }
        assert_eq!(broker.stat("takeovers"), 20);
    }
}

#[tokio::test]
async fn silence_beyond_the_keep_alive_ends_a_connection_and_0_turns_that_off() {
    for v5 in BOTH {
        let broker = TestBroker::start(|_| {}).await;
        let (mut patient_one, _) =
            Raw::hello(&broker, v5, Hello { client_id: "p", keep_alive: 0, ..Hello::default() }).await;
        let (mut silent, _) =
            Raw::hello(&broker, v5, Hello { client_id: "s", keep_alive: 1, ..Hello::default() }).await;
        if v5 {
            assert_eq!(silent.packet().await, (0xe0, vec![0x8d]));
        }
        silent.closed().await;
        assert_eq!(broker.stat("keep_alive_timeouts"), 1);
        patient_one.nothing().await;
    }
}

#[tokio::test]
async fn empty_client_ids_are_assigned() {
    let broker = TestBroker::start(|_| {}).await;
    let mut old = Raw::open(&broker, false).await;
    old.send(&Hello { client_id: "", clean: false, ..Hello::default() }.bytes(false)).await;
    assert_eq!(old.packet().await, (0x20, vec![0, 2]), "MQTT 3.1.3-8");
    old.closed().await;
    let mut new = Raw::open(&broker, true).await;
    new.send(&Hello { client_id: "", ..Hello::default() }.bytes(true)).await;
    let (_, body) = new.packet().await;
    assert!(body.windows(5).any(|window| window.starts_with(&[0x12, 0]) && window.ends_with(b"au")), "{body:x?}");
}

#[tokio::test]
async fn refusals_are_the_standards() {
    let broker = TestBroker::start(|_| {}).await;
    // An unknown protocol level gets return code 1 (MQTT 3.1.2-2).
    let mut client = Raw::open(&broker, false).await;
    client.send(b"\x10\x0c\x00\x04MQTT\x06\x02\x00\x00\x00\x00").await;
    assert_eq!(client.packet().await, (0x20, vec![0, 1]));
    client.closed().await;
    for v5 in BOTH {
        let mut client = Raw::connect(&broker, v5, "c").await;
        assert_eq!(client.subscribe("a/#/b", 0).await, if v5 { 0x8f } else { 0x80 });
        assert_eq!(client.subscribe("$share/g/t", 0).await, if v5 { 0x9e } else { 0x80 });
        client.publish("$SYS/forged", "x", 1, false, 4).await;
        let answer = client.packet().await;
        assert_eq!(answer, (0x40, if v5 { vec![0, 4, 0x87] } else { vec![0, 4] }));
        client.nothing().await;
        // A second CONNECT ends the connection (MQTT 3.1.0-2).
        client.send(&Hello::default().bytes(v5)).await;
        client.closed().await;
    }
    assert_eq!(broker.stat("publishes_refused"), 2);
}

#[tokio::test]
async fn the_sys_tree_tells_about_the_broker_and_stays_out_of_wildcards() {
    let broker = TestBroker::start(|_| {}).await;
    let mut everything = Raw::connect(&broker, false, "e").await;
    everything.subscribe("#", 0).await;
    let mut client = Raw::connect(&broker, true, "c").await;
    client.subscribe("$SYS/broker/clients/connected", 0).await;
    let message = client.message().await;
    assert_eq!((message.payload.as_str(), message.retain), ("2", true));
    client.subscribe("$SYS/#", 0).await;
    let mut topics = Vec::new();
    for _ in 0..11 {
        topics.push(client.message().await.topic);
    }
    assert!(topics.contains(&"$SYS/broker/version".to_owned()), "{topics:?}");
    everything.nothing().await;
}

#[tokio::test]
async fn the_link_speaks_and_hears_with_mqtt_5_request_and_response() {
    let (broker, sender, mut receiver) = TestBroker::start_with_link(|_| {}, vec!["ask/+".into()]).await;
    let mut client = Raw::connect(&broker, true, "c").await;
    client.subscribe("answer/c", 1).await;
    let properties = [&[0x08][..], &text("answer/c"), &[0x09], &text("id")].concat();
    let body = [text("ask/c"), vec![properties.len() as u8], properties, b"?".to_vec()].concat();
    client.send(&framed(0x30, &body)).await;
    let request = patient(receiver.recv()).await.unwrap();
    assert_eq!((request.topic(), &request.payload()[..]), ("ask/c", &b"?"[..]));
    assert_eq!(request.response_topic(), Some("answer/c"));
    let outgoing = Outgoing {
        topic: request.response_topic().unwrap().to_owned(),
        payload: "!".into(),
        qos: QoS::AtLeastOnce,
        retain: false,
        correlation_data: request.correlation_data(),
    };
    sender.publish(outgoing).await.unwrap();
    let answer = client.message().await;
    assert_eq!((answer.payload.as_str(), answer.qos), ("!", 1));
    assert_eq!(answer.properties, [&[0x09][..], &text("id")].concat());
}

#[tokio::test]
async fn seeded_messages_are_retained_and_the_link_is_given_once() {
    let mut config = BrokerConfig::default();
    config.listeners.retain(|name, _| name == "local");
    config.listeners.values_mut().for_each(|listener| listener.address.set_port(0));
    let broker = Broker::bind(config, Security::trusting()).await.unwrap();
    broker.seed_retained("a/b", b"seed");
    assert!(broker.link(vec![]).is_ok() && broker.link(vec![]).is_err());
    assert_eq!(broker.stats().snapshot()["retained_now"], 1);
}

#[tokio::test]
async fn a_taken_port_is_named_with_its_cause() {
    let broker = TestBroker::start(|_| {}).await;
    let mut config = BrokerConfig::default();
    config.listeners.retain(|name, _| name == "local");
    config.listeners.values_mut().for_each(|listener| listener.address = broker.address);
    let error = Broker::bind(config, Security::trusting()).await.err().unwrap().to_string();
    let expected = format!("listener local: cannot listen on {}: Address already in use", broker.address);
    assert!(error.starts_with(&expected), "{error}");
}

#[tokio::test]
async fn stopping_tells_every_client_and_publishes_no_will() {
    let (broker, sender, mut receiver) = TestBroker::start_with_link(|_| {}, vec!["will".into()]).await;
    let hello = |client_id| Hello { client_id, will: Some(("will", "gone", 0, false)), ..Hello::default() };
    let (mut old, _) = Raw::hello(&broker, false, hello("old")).await;
    let (mut new, _) = Raw::hello(&broker, true, hello("new")).await;
    old.subscribe("t", 1).await;
    new.subscribe("t", 1).await;
    let stats = broker.stats.clone();
    // What was accepted before the stop still arrives.
    let goodbye = Outgoing {
        topic: "t".into(),
        payload: "goodbye".into(),
        qos: QoS::AtLeastOnce,
        retain: false,
        correlation_data: None,
    };
    sender.publish(goodbye).await.unwrap();
    broker.stop().await;
    assert_eq!([old.message().await.payload, new.message().await.payload], ["goodbye", "goodbye"]);
    old.closed().await;
    assert_eq!(new.packet().await, (0xe0, vec![0x8b]));
    assert_eq!(stats.snapshot()["wills"], 0);
    let heard = tokio::time::timeout(Duration::from_millis(50), receiver.recv()).await;
    assert!(heard.is_err(), "{heard:?}");
}

#[tokio::test]
async fn a_client_that_says_everything_at_once_and_leaves_gets_its_answers() {
    let broker = TestBroker::start(|_| {}).await;
    for v5 in BOTH {
        let mut raw = Raw::open(&broker, v5).await;
        let publish = [&text("t")[..], &[0, 7], if v5 { &[0] } else { &[] }].concat();
        let all = [Hello::default().bytes(v5), framed(0x32, &publish), vec![0xe0, 0]].concat();
        raw.send(&all).await;
        // MQTT 3.1.4-4: a CONNECT is acknowledged.
        assert_eq!(raw.connack().await.code, 0);
        assert_eq!(raw.packet().await, (0x40, vec![0, 7]));
        assert_eq!(raw.ended().await, None, "a goodbye is not answered");
    }
}
