use std::time::Duration;

use crate::common::wire::property::{self, four};
use crate::common::{Ack, Hello, PUBACK, PUBCOMP, PUBREC, PUBREL, Raw, lasting, session_expiry};
use crate::target::{EVERYWHERE, V3, V5, on};

#[tokio::test]
async fn mqtt_3_1_2_4_a_kept_session_keeps_its_subscriptions() {
    on(&EVERYWHERE, async |target| {
        let (mut client, _) = target.connect_lasting("c").await;
        client.subscribe_all(&[("a/+", 1), ("b", 0), ("c", 2)], &[]).await;
        client.unsubscribe("c").await;
        client.leave().await;
        let (mut client, present) = target.connect_lasting("c").await;
        assert!(present);
        let mut publisher = target.connect("p").await;
        for topic in ["a/1", "c", "b"] {
            publisher.complete(topic, topic, 2, false).await;
        }
        let (first, second) = (client.take().await, client.take().await);
        assert_eq!((first.topic.as_str(), first.qos, second.topic.as_str(), second.qos), ("a/1", 1, "b", 0));
        client.nothing().await;
    })
    .await;
}

#[tokio::test]
async fn mqtt_3_1_2_6_a_clean_session_ends_with_its_connection_and_discards_what_was_kept() {
    on(&EVERYWHERE, async |target| {
        let (mut client, _) = target.connect_lasting("c").await;
        client.subscribe("t", 1).await;
        client.leave().await;
        let mut publisher = target.connect("p").await;
        publisher.complete("t", "kept", 1, false).await;
        let (mut client, present) = target.hello(Hello::default()).await;
        assert!(!present);
        publisher.complete("t", "live", 1, false).await;
        client.quiet().await;
        client.subscribe("t", 1).await;
        client.leave().await;
        let (mut client, present) = target.connect_lasting("c").await;
        assert!(!present);
        publisher.complete("t", "live", 1, false).await;
        client.quiet().await;
    })
    .await;
}

#[tokio::test]
async fn mqtt_3_1_2_5_messages_above_qos_0_wait_for_an_absent_client() {
    on(&EVERYWHERE, async |target| {
        for lost in [false, true] {
            let (mut client, _) = target.connect_lasting("c").await;
            client.subscribe("t/#", 2).await;
            if lost {
                client.lose().await
            } else {
                client.leave().await
            }
            let mut publisher = target.connect("p").await;
            // Who is connected gets all of it, which tells that the broker has dealt with it.
            let mut present_one = target.connect("w").await;
            present_one.subscribe("t/#", 0).await;
            for number in 0..6u8 {
                publisher.complete("t/x", &number.to_string(), number % 3, false).await;
            }
            present_one.takes(&["0", "1", "2", "3", "4", "5"]).await;
            let (mut client, present) = target.connect_lasting("c").await;
            assert!(present);
            for (payload, qos) in [("1", 1), ("2", 2), ("4", 1), ("5", 2)] {
                let message = client.take().await;
                assert_eq!((message.payload.as_str(), message.qos, message.dup), (payload, qos, false));
            }
            client.quiet().await;
        }
    })
    .await;
}

#[tokio::test]
async fn mqtt_3_1_2_5_the_subscriptions_qos_decides_what_waits() {
    on(&EVERYWHERE, async |target| {
        let (mut client, _) = target.connect_lasting("c").await;
        client.subscribe_all(&[("zero", 0), ("one", 1)], &[]).await;
        client.leave().await;
        let mut publisher = target.connect("p").await;
        let mut present_one = target.connect("w").await;
        present_one.subscribe("+", 0).await;
        for (topic, qos) in [("zero", 2), ("one", 0), ("one", 2)] {
            publisher.complete(topic, &format!("{topic} {qos}"), qos, false).await;
        }
        present_one.takes(&["zero 2", "one 0", "one 2"]).await;
        let (mut client, _) = target.connect_lasting("c").await;
        let message = client.take().await;
        assert_eq!((message.payload.as_str(), message.qos), ("one 2", 1));
        client.quiet().await;
    })
    .await;
}

#[tokio::test]
async fn mqtt_4_4_0_1_what_was_not_acknowledged_is_sent_again_with_dup_and_its_id() {
    on(&EVERYWHERE, async |target| {
        let (mut client, _) = target.connect_lasting("c").await;
        client.subscribe("t", 2).await;
        let mut publisher = target.connect("p").await;
        for number in 0..6u8 {
            publisher.complete("t", &number.to_string(), 1 + number % 2, false).await;
        }
        let mut sent = vec![];
        for _ in 0..6 {
            sent.push(client.message().await);
        }
        // One of each is acknowledged; the rest comes again, twice.
        client.respond(PUBACK, sent[2].packet_id).await;
        client.respond(PUBREC, sent[3].packet_id).await;
        client.acked(PUBREL, sent[3].packet_id).await;
        client.respond(PUBCOMP, sent[3].packet_id).await;
        client.nothing().await;
        client.lose().await;
        for _ in 0..2 {
            let (mut client, present) = target.connect_lasting("c").await;
            assert!(present);
            for index in [0, 1, 4, 5] {
                let again = client.message().await;
                assert_eq!((&again.payload, again.packet_id), (&sent[index].payload, sent[index].packet_id));
                assert_eq!((again.qos, again.dup), (sent[index].qos, true));
            }
            client.nothing().await;
            client.lose().await;
        }
    })
    .await;
}

#[tokio::test]
async fn mqtt_4_4_0_1_after_pubrec_only_pubrel_is_sent_again() {
    on(&EVERYWHERE, async |target| {
        let (mut client, _) = target.connect_lasting("c").await;
        client.subscribe("t", 2).await;
        target.connect("p").await.complete("t", "x", 2, false).await;
        let message = client.message().await;
        client.respond(PUBREC, message.packet_id).await;
        client.acked(PUBREL, message.packet_id).await;
        client.lose().await;
        let (mut client, _) = target.connect_lasting("c").await;
        client.acked(PUBREL, message.packet_id).await;
        client.respond(PUBCOMP, message.packet_id).await;
        client.quiet().await;
        client.lose().await;
        let (mut client, _) = target.connect_lasting("c").await;
        client.quiet().await;
    })
    .await;
}

#[tokio::test]
async fn mqtt_4_3_3_a_receiver_that_lost_its_pubrec_gets_the_message_once_more_and_no_third_time() {
    on(&EVERYWHERE, async |target| {
        let (mut client, _) = target.connect_lasting("c").await;
        client.subscribe("t", 2).await;
        target.connect("p").await.complete("t", "x", 2, false).await;
        let first = client.message().await;
        client.lose().await;
        let (mut client, _) = target.connect_lasting("c").await;
        let again = client.take().await;
        // The receiver recognises it by its id.
        assert_eq!((again.packet_id, again.dup), (first.packet_id, true));
        client.quiet().await;
    })
    .await;
}

#[tokio::test]
async fn mqtt_4_3_3_a_publisher_that_reconnects_delivers_qos_2_exactly_once() {
    on(&EVERYWHERE, async |target| {
        let mut subscriber = target.connect("s").await;
        subscriber.subscribe("t", 2).await;
        let (mut publisher, _) = target.connect_lasting("p").await;
        // Cut after PUBLISH, so that the PUBREC may be lost.
        publisher.publish("t", "1", 2, false, 5).await;
        publisher.acked(PUBREC, 5).await;
        publisher.lose().await;
        let (mut publisher, present) = target.connect_lasting("p").await;
        assert!(present);
        publisher.publish_flags("t", "1", 0x0c, 5).await;
        publisher.acked(PUBREC, 5).await;
        // Cut after PUBREC, and again before PUBCOMP is seen.
        publisher.lose().await;
        for _ in 0..2 {
            let (mut publisher, _) = target.connect_lasting("p").await;
            publisher.respond(PUBREL, 5).await;
            let Ack { first, packet_id, .. } = publisher.ack().await;
            assert_eq!((first, packet_id), (PUBCOMP, 5));
            publisher.lose().await;
        }
        subscriber.takes(&["1"]).await;
        subscriber.quiet().await;
    })
    .await;
}

#[tokio::test]
async fn mqtt_4_3_3_a_clean_session_forgets_the_ids_of_qos_2() {
    on(&EVERYWHERE, async |target| {
        let mut subscriber = target.connect("s").await;
        subscriber.subscribe("t", 2).await;
        let (mut publisher, _) = target.connect_lasting("p").await;
        publisher.publish("t", "old", 2, false, 5).await;
        publisher.acked(PUBREC, 5).await;
        publisher.lose().await;
        let mut publisher = target.connect("p").await;
        publisher.publish("t", "new", 2, false, 5).await;
        publisher.acked(PUBREC, 5).await;
        publisher.respond(PUBREL, 5).await;
        publisher.acked(PUBCOMP, 5).await;
        // mosquitto delivers at PUBREL, and the first message never had one.
        subscriber.takes(if target.is_ours() { &["old", "new"] } else { &["new"] }).await;
        subscriber.quiet().await;
    })
    .await;
}

#[tokio::test]
async fn mqtt_3_1_4_2_a_second_connection_with_the_same_id_takes_over() {
    on(&EVERYWHERE, async |target| {
        let (mut old, _) = target.connect_lasting("c").await;
        old.subscribe("t", 1).await;
        let mut publisher = target.connect("p").await;
        publisher.complete("t", "1", 1, false).await;
        let first = old.message().await;
        let (mut new, present) = target.connect_lasting("c").await;
        assert!(present);
        target.cuts(old, &[0x8e], &()).await;
        let again = new.take().await;
        assert_eq!((again.packet_id, again.dup), (first.packet_id, true));
        publisher.complete("t", "2", 1, false).await;
        new.takes(&["2"]).await;
        // A take-over with a clean session leaves nothing.
        let mut clean = target.connect("c").await;
        target.cuts(new, &[0x8e], &()).await;
        publisher.complete("t", "3", 1, false).await;
        clean.quiet().await;
    })
    .await;
}

#[tokio::test]
async fn mqtt_3_1_4_2_each_connection_takes_over_the_one_before() {
    on(&EVERYWHERE, async |target| {
        let mut before = target.connect("c").await;
        // Sessions that end at once, and some that do not.
        for lasts in [false, false, true, true, false, true, false, false] {
            let mut now = if lasts { target.connect_lasting("c").await.0 } else { target.connect("c").await };
            target.cuts(before, &[0x8e], &lasts).await;
            now.nothing().await;
            before = now;
        }
    })
    .await;
}

#[tokio::test]
async fn mqtt_3_1_4_2_client_ids_that_differ_are_different_clients() {
    on(&EVERYWHERE, async |target| {
        let mut clients = vec![];
        for client_id in ["c", "C", "c ", "ç", "c/"] {
            clients.push(target.connect(client_id).await);
        }
        for client in &mut clients {
            client.nothing().await;
        }
    })
    .await;
}

#[tokio::test]
async fn mqtt_4_4_a_long_queue_waits_and_comes_in_its_order() {
    on(&EVERYWHERE, async |target| {
        let (mut client, _) = target.connect_lasting("c").await;
        client.subscribe("t", 1).await;
        client.lose().await;
        let mut publisher = target.connect("p").await;
        for number in 0..900u32 {
            publisher.complete("t", &number.to_string(), 1, false).await;
        }
        let (mut client, _) = target.connect_lasting("c").await;
        for number in 0..900u32 {
            assert_eq!(client.take().await.payload, number.to_string());
        }
        client.quiet().await;
    })
    .await;
}

#[tokio::test]
async fn v3_3_1_2_4_every_session_without_clean_session_is_kept() {
    on(&V3, async |target| {
        for _ in 0..2 {
            // Only the last CONNECT counts: what was clean becomes lasting and the other way round.
            drop(target.connect("c").await);
            let (client, _) = target.connect_lasting("c").await;
            client.leave().await;
            let (_, present) = target.connect_lasting("c").await;
            assert!(present);
        }
    })
    .await;
}

#[tokio::test]
async fn v5_3_1_2_11_2_without_an_expiry_a_session_ends_with_its_connection() {
    on(&V5, async |target| {
        for properties in [vec![], session_expiry(0)] {
            let hello = || Hello { clean: false, properties: properties.clone(), ..Hello::default() };
            let (client, _) = target.hello(hello()).await;
            client.lose().await;
            let (_, present) = target.hello(hello()).await;
            assert!(!present);
        }
    })
    .await;
}

#[tokio::test]
async fn v5_3_1_2_4_clean_start_and_expiry_are_independent() {
    on(&V5, async |target| {
        let (client, present) = target.hello(Hello { clean: true, ..lasting("c", true) }).await;
        assert!(!present);
        client.lose().await;
        // Clean Start 0 without an expiry: the session goes on now and ends with this connection.
        let (client, present) = target.hello(Hello { clean: false, ..Hello::default() }).await;
        assert!(present);
        client.lose().await;
        let (_, present) = target.connect_lasting("c").await;
        assert!(!present);
    })
    .await;
}

#[tokio::test]
async fn v5_3_1_2_23_a_session_ends_when_its_expiry_has_passed() {
    on(&V5, async |target| {
        let (mut client, _) = target.hello(Hello { properties: session_expiry(1), ..lasting("c", true) }).await;
        client.subscribe("t", 1).await;
        client.lose().await;
        let (client, present) = target.hello(Hello { properties: session_expiry(1), ..lasting("c", true) }).await;
        assert!(present, "at once it is still there");
        client.lose().await;
        // mosquitto looks about once a second.
        tokio::time::sleep(Duration::from_millis(if target.is_ours() { 1300 } else { 3000 })).await;
        let (mut client, present) = target.connect_lasting("c").await;
        assert!(!present);
        client.publish("t", "x", 0, false, 0).await;
        client.quiet().await;
    })
    .await;
}

#[tokio::test]
async fn v5_3_1_2_11_2_the_largest_expiry_never_ends() {
    on(&V5, async |target| {
        let hello = || Hello { properties: session_expiry(u32::MAX), ..lasting("c", true) };
        let (client, answer) = Raw::greet(target, true, &hello()).await;
        // v5 3.2.2.3.2: ours keeps sessions a week at most by default, and says so.
        let granted = property::number(&answer.properties, property::SESSION_EXPIRY);
        assert_eq!(granted, target.is_ours().then_some(7 * 24 * 3600));
        client.lose().await;
        assert!(target.hello(hello()).await.1);
    })
    .await;
}

#[tokio::test]
async fn v5_3_14_2_2_2_the_expiry_can_be_changed_at_disconnect() {
    on(&V5, async |target| {
        let goodbye = |seconds| [&[0xe0, 7, 0x00, 5][..], &four(property::SESSION_EXPIRY, seconds)].concat();
        let (mut client, _) = target.connect_lasting("c").await;
        client.send(&goodbye(0)).await;
        client.closed().await;
        let (mut client, present) = target.hello(Hello { properties: session_expiry(1), ..lasting("c", true) }).await;
        assert!(!present, "the session ended with the connection");
        client.send(&goodbye(60)).await;
        client.closed().await;
        tokio::time::sleep(Duration::from_millis(1300)).await;
        assert!(target.connect_lasting("c").await.1, "60 s held, not 1 s");
    })
    .await;
}

#[tokio::test]
async fn v5_3_14_2_2_2_an_expiry_of_0_cannot_be_raised_at_disconnect() {
    on(&V5, async |target| {
        let mut client = target.connect("c").await;
        client.send(&[&[0xe0, 7, 0x00, 5][..], &four(property::SESSION_EXPIRY, 60)].concat()).await;
        target.cuts(client, &[0x82], &()).await;
        let (_, present) = target.connect_lasting("c").await;
        assert!(!present);
    })
    .await;
}
