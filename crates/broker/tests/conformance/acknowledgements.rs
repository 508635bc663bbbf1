use crate::common::wire::property;
use crate::common::{Ack, PUBACK, PUBCOMP, PUBREC, PUBREL, framed};
use crate::target::{EVERYWHERE, OURS, OURS_V5, V3, V5, on};

#[tokio::test]
async fn mqtt_4_3_3_a_repeated_qos_2_publish_is_delivered_once() {
    on(&EVERYWHERE, async |target| {
        let mut subscriber = target.connect("s").await;
        subscriber.subscribe("t", 2).await;
        let mut publisher = target.connect("p").await;
        publisher.publish("t", "1", 2, false, 5).await;
        publisher.acked(PUBREC, 5).await;
        // mosquitto ends the connection at the second repetition.
        for _ in 0..if target.is_ours() { 3 } else { 1 } {
            publisher.publish_flags("t", "1", 0x0c, 5).await;
            publisher.acked(PUBREC, 5).await;
        }
        for _ in 0..3 {
            publisher.respond(PUBREL, 5).await;
            // Sent again it finds the id released; MQTT 5 says so.
            let ack = publisher.ack().await;
            assert_eq!((ack.first, ack.packet_id), (PUBCOMP, 5));
        }
        assert_eq!(subscriber.take().await.payload, "1");
        subscriber.quiet().await;
        // The released id carries the next message.
        publisher.publish("t", "2", 2, false, 5).await;
        publisher.acked(PUBREC, 5).await;
        publisher.respond(PUBREL, 5).await;
        publisher.acked(PUBCOMP, 5).await;
        assert_eq!(subscriber.take().await.payload, "2");
        subscriber.quiet().await;
    })
    .await;
}

#[tokio::test]
async fn mqtt_4_3_3_many_qos_2_messages_may_be_open_at_once() {
    on(&EVERYWHERE, async |target| {
        let mut subscriber = target.connect("s").await;
        subscriber.subscribe("t", 2).await;
        let mut publisher = target.connect("p").await;
        for packet_id in 1..=20 {
            publisher.publish("t", &packet_id.to_string(), 2, false, packet_id).await;
        }
        for packet_id in 1..=20 {
            publisher.acked(PUBREC, packet_id).await;
        }
        for packet_id in 1..=20 {
            publisher.respond(PUBREL, packet_id).await;
            publisher.acked(PUBCOMP, packet_id).await;
        }
        for packet_id in 1..=20 {
            assert_eq!(subscriber.take().await.payload, packet_id.to_string());
        }
        subscriber.quiet().await;
    })
    .await;
}

#[tokio::test]
async fn mqtt_4_3_3_the_receiver_of_qos_2_is_asked_step_by_step() {
    on(&EVERYWHERE, async |target| {
        let mut subscriber = target.connect("s").await;
        subscriber.subscribe("t", 2).await;
        target.connect("p").await.complete("t", "x", 2, false).await;
        let message = subscriber.message().await;
        subscriber.nothing().await;
        subscriber.respond(PUBREC, message.packet_id).await;
        subscriber.acked(PUBREL, message.packet_id).await;
        subscriber.nothing().await;
        subscriber.respond(PUBCOMP, message.packet_id).await;
        subscriber.quiet().await;
    })
    .await;
}

#[tokio::test]
async fn v3_3_6_4_pubrel_of_an_unknown_id_is_answered() {
    on(&V3, async |target| {
        let mut client = target.connect("c").await;
        client.respond(PUBREL, 77).await;
        assert_eq!(client.packet().await, (PUBCOMP, vec![0, 77]));
        client.nothing().await;
    })
    .await;
}

#[tokio::test]
async fn v5_3_7_2_1_pubrel_of_an_unknown_id_gets_0x92() {
    on(&V5, async |target| {
        let mut client = target.connect("c").await;
        client.respond(PUBREL, 77).await;
        let expected = Ack { first: PUBCOMP, packet_id: 77, reason: 0x92 };
        let ack = client.ack().await;
        // mosquitto answers with success, which the standard allows as well.
        assert!(ack == expected || !target.is_ours() && ack.packet_id == 77, "{ack:x?}");
        client.nothing().await;
    })
    .await;
}

#[tokio::test]
async fn mqtt_4_3_unknown_puback_and_pubcomp_harm_nobody() {
    on(&EVERYWHERE, async |target| {
        let mut client = target.connect("c").await;
        for first in [PUBACK, PUBCOMP] {
            client.respond(first, 99).await;
        }
        client.subscribe("t", 1).await;
        client.publish("t", "x", 0, false, 0).await;
        assert_eq!(client.take().await.payload, "x");
        client.nothing().await;
    })
    .await;
}

#[tokio::test]
async fn mqtt_3_5_4_an_unknown_pubrec_is_answered_with_pubrel() {
    // mosquitto answers nothing to it in MQTT 3.1.1 and ends the connection in MQTT 5.
    on(&OURS, async |target| {
        let mut client = target.connect("c").await;
        client.respond(PUBREC, 99).await;
        // v5 3.6.2.1: packet identifier not found.
        let reason = target.by_version(0, 0x92);
        assert_eq!(client.ack().await, Ack { first: PUBREL, packet_id: 99, reason });
        client.nothing().await;
    })
    .await;
}

#[tokio::test]
async fn mqtt_4_3_an_acknowledgement_out_of_turn_ends_the_connection_and_settles_nothing() {
    on(&EVERYWHERE, async |target| {
        let mut publisher = target.connect("p").await;
        let (mut subscriber, _) = target.connect_lasting("s").await;
        subscriber.subscribe("t", 2).await;
        for (qos, wrong) in [(1, PUBREC), (1, PUBCOMP), (2, PUBACK), (2, PUBCOMP)] {
            publisher.complete("t", "x", qos, false).await;
            let message = subscriber.message().await;
            subscriber.respond(wrong, message.packet_id).await;
            target.cuts(subscriber, &[0x82], &(qos, wrong)).await;
            (subscriber, _) = target.connect_lasting("s").await;
            let again = subscriber.take().await;
            assert_eq!((again.packet_id, again.dup), (message.packet_id, true), "after {wrong:x} at QoS {qos}");
        }
        // Of a message that is released, only PUBCOMP is left.
        publisher.complete("t", "x", 2, false).await;
        let message = subscriber.message().await;
        subscriber.respond(PUBREC, message.packet_id).await;
        subscriber.acked(PUBREL, message.packet_id).await;
        subscriber.respond(PUBACK, message.packet_id).await;
        target.cuts(subscriber, &[0x82], &()).await;
        (subscriber, _) = target.connect_lasting("s").await;
        subscriber.acked(PUBREL, message.packet_id).await;
        subscriber.respond(PUBCOMP, message.packet_id).await;
        subscriber.quiet().await;
    })
    .await;
}

#[tokio::test]
async fn v5_4_3_3_a_pubrec_with_an_error_ends_the_exchange() {
    on(&V5, async |target| {
        let mut subscriber = target.connect("s").await;
        subscriber.subscribe("t", 2).await;
        let mut publisher = target.connect("p").await;
        publisher.complete("t", "1", 2, false).await;
        let message = subscriber.message().await;
        let [high, low] = message.packet_id.to_be_bytes();
        subscriber.send(&[PUBREC, 3, high, low, 0x97]).await;
        subscriber.nothing().await;
        // It counts against the receive maximum no more, and its id is free.
        publisher.complete("t", "2", 2, false).await;
        assert_eq!(subscriber.take().await.payload, "2");
        subscriber.quiet().await;
    })
    .await;
}

#[tokio::test]
async fn v5_3_4_2_acknowledgements_may_carry_reasons_and_properties() {
    on(&V5, async |target| {
        let mut subscriber = target.connect("s").await;
        subscriber.subscribe("t", 2).await;
        let mut publisher = target.connect("p").await;
        let properties =
            [property::string(property::REASON_STRING, "why"), property::user("a", "1"), property::user("a", "2")]
                .concat();
        let long = |message: &crate::common::Message, reason: u8| {
            let head = [&message.packet_id.to_be_bytes()[..], &[reason, properties.len() as u8]].concat();
            [head, properties.clone()].concat()
        };
        publisher.complete("t", "1", 1, false).await;
        let message = subscriber.message().await;
        subscriber.send(&framed(PUBACK, &long(&message, 0x10))).await;
        publisher.complete("t", "2", 2, false).await;
        let message = subscriber.message().await;
        subscriber.send(&framed(PUBREC, &long(&message, 0))).await;
        subscriber.acked(PUBREL, message.packet_id).await;
        subscriber.send(&framed(PUBCOMP, &long(&message, 0))).await;
        subscriber.quiet().await;
    })
    .await;
}

#[tokio::test]
async fn v5_3_4_2_1_reason_codes_of_other_packets_are_refused() {
    // mosquitto takes any.
    on(&OURS_V5, async |target| {
        for (first, reason) in [(PUBACK, 0x01), (PUBREC, 0x92), (PUBREL, 0x10), (PUBCOMP, 0x87), (PUBACK, 0xff)] {
            let mut client = target.connect("c").await;
            client.send(&[first, 3, 0, 1, reason]).await;
            target.cuts(client, &[0x81], &(first, reason)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn mqtt_3_4_malformed_acknowledgements_end_the_connection() {
    on(&EVERYWHERE, async |target| {
        for first in [PUBACK, PUBREC, PUBREL, PUBCOMP] {
            // No id, half an id, id 0.
            for rest in [&[0][..], &[1, 0], &[2, 0, 0]] {
                let mut client = target.connect("c").await;
                client.send(&[&[first], rest].concat()).await;
                target.cuts(client, &[0x81, 0x82], &first).await;
            }
        }
        // Bytes after the id: none in MQTT 3.1.1; in MQTT 5 a reason and properties, and nothing else.
        for first in [PUBACK, PUBREC, PUBREL, PUBCOMP] {
            let mut client = target.connect("c").await;
            client.send(&framed(first, target.by_version(&[0, 1, 0], &[0, 1, 0, 0, 0]))).await;
            // mosquitto lets them pass.
            if target.is_ours() {
                target.cuts(client, &[0x81], &first).await;
            }
        }
    })
    .await;
}

#[tokio::test]
async fn mqtt_4_3_2_qos_1_is_held_until_acknowledged_and_its_id_is_not_reused() {
    on(&EVERYWHERE, async |target| {
        let mut subscriber = target.connect("s").await;
        subscriber.subscribe("t", 1).await;
        let mut publisher = target.connect("p").await;
        let mut ids = vec![];
        for number in 0..10 {
            publisher.complete("t", &number.to_string(), 1, false).await;
            ids.push(subscriber.message().await.packet_id);
        }
        let mut distinct = ids.clone();
        distinct.sort_unstable();
        distinct.dedup();
        assert_eq!(distinct.len(), 10, "{ids:?}");
        for packet_id in ids {
            subscriber.respond(PUBACK, packet_id).await;
        }
        subscriber.quiet().await;
    })
    .await;
}

#[tokio::test]
async fn mqtt_4_3_2_a_qos_1_message_sent_again_is_acknowledged_again() {
    on(&EVERYWHERE, async |target| {
        let mut subscriber = target.connect("s").await;
        subscriber.subscribe("t", 1).await;
        let mut publisher = target.connect("p").await;
        publisher.publish("t", "x", 1, false, 3).await;
        publisher.acked(PUBACK, 3).await;
        publisher.publish_flags("t", "x", 0x0a, 3).await;
        publisher.acked(PUBACK, 3).await;
        subscriber.takes(&["x", "x"]).await;
        subscriber.quiet().await;
    })
    .await;
}
