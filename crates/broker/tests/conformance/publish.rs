use crate::common::wire::property::{self, byte, four, two};
use crate::common::{PUBACK, PUBCOMP, PUBREC, PUBREL, framed, text};
use crate::target::{EVERYWHERE, OURS, OURS_V5, V3, V5, on};

/// Every pair of a publication's and a subscription's QoS.
const PAIRS: [(u8, u8); 9] = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2)];

#[tokio::test]
async fn mqtt_3_3_1_2_delivered_at_the_lower_qos_of_publication_and_subscription() {
    on(&EVERYWHERE, async |target| {
        let mut publisher = target.connect("p").await;
        let mut subscriber = target.connect("s").await;
        for (published, subscribed) in PAIRS {
            assert_eq!(subscriber.subscribe("t", subscribed).await, subscribed);
            publisher.complete("t", "x", published, false).await;
            let message = subscriber.take().await;
            assert_eq!((message.topic.as_str(), message.payload.as_str()), ("t", "x"));
            assert_eq!((message.qos, message.dup, message.retain), (published.min(subscribed), false, false));
            assert_eq!(message.packet_id == 0, message.qos == 0, "2.3.1: a packet id above QoS 0, and never 0");
            subscriber.nothing().await;
        }
    })
    .await;
}

#[tokio::test]
async fn mqtt_3_3_1_1_dup_is_not_passed_on() {
    on(&EVERYWHERE, async |target| {
        let mut client = target.connect("c").await;
        let mut subscriber = target.connect("s").await;
        subscriber.subscribe("t", 2).await;
        for qos in [1, 2] {
            client.publish_flags("t", "x", 0x08 | qos << 1, 7).await;
            if qos == 2 {
                client.acked(PUBREC, 7).await;
                client.respond(PUBREL, 7).await;
            }
            client.acked(if qos == 2 { PUBCOMP } else { PUBACK }, 7).await;
            let message = subscriber.take().await;
            assert_eq!((message.qos, message.dup), (qos, false));
        }
    })
    .await;
}

#[tokio::test]
async fn mqtt_3_3_1_2_dup_at_qos_0_is_malformed() {
    // mosquitto does not mind.
    on(&OURS, async |target| {
        let mut client = target.connect("c").await;
        client.publish_flags("t", "x", 0x08, 0).await;
        target.cuts(client, &[0x81], &()).await;
    })
    .await;
}

#[tokio::test]
async fn mqtt_3_3_1_4_a_qos_of_3_is_malformed() {
    on(&EVERYWHERE, async |target| {
        for flags in [0x06, 0x07, 0x0e] {
            let mut client = target.connect("c").await;
            client.publish_flags("t", "x", flags, 1).await;
            target.cuts(client, &[0x81], &()).await;
        }
    })
    .await;
}

#[tokio::test]
async fn mqtt_2_3_1_1_a_packet_id_of_0_is_an_error() {
    on(&EVERYWHERE, async |target| {
        for qos in [1, 2] {
            let mut client = target.connect("c").await;
            client.publish("t", "x", qos, false, 0).await;
            target.cuts(client, &[0x81, 0x82], &()).await;
        }
    })
    .await;
}

#[tokio::test]
async fn mqtt_2_3_1_packet_ids_of_the_whole_range_are_echoed() {
    on(&EVERYWHERE, async |target| {
        let mut client = target.connect("c").await;
        for packet_id in [1, 0xff, 0x100, 0x7fff, 0xffff] {
            client.publish("t", "x", 1, false, packet_id).await;
            client.acked(PUBACK, packet_id).await;
            client.publish("t", "x", 2, false, packet_id).await;
            client.acked(PUBREC, packet_id).await;
            client.respond(PUBREL, packet_id).await;
            client.acked(PUBCOMP, packet_id).await;
        }
    })
    .await;
}

#[tokio::test]
async fn mqtt_2_3_1_4_both_sides_give_packet_ids_of_their_own() {
    on(&EVERYWHERE, async |target| {
        let mut client = target.connect("c").await;
        client.subscribe("t", 1).await;
        client.publish("t", "x", 1, false, 1).await;
        // The acknowledgement of its own 1 and a message of the broker's 1 cross each other.
        let mut packets = [client.packet().await, client.packet().await];
        packets.sort_by_key(|(first, _)| *first);
        let message = client.parse(packets[0].0, &packets[0].1);
        assert_eq!((message.payload.as_str(), message.packet_id), ("x", 1));
        assert_eq!((packets[1].0, &packets[1].1[..2]), (PUBACK, &[0, 1][..]));
    })
    .await;
}

#[tokio::test]
async fn mqtt_3_3_2_2_a_topic_name_has_no_wildcards_and_is_not_empty() {
    on(&EVERYWHERE, async |target| {
        for topic in ["+", "#", "a/+", "a/#", "a+", "a#b", "/+/"] {
            let mut client = target.connect("c").await;
            client.publish(topic, "x", 0, false, 0).await;
            target.cuts(client, &[0x81], &topic).await;
        }
    })
    .await;
    on(&V3, async |target| {
        let mut client = target.connect("c").await;
        client.publish("", "x", 0, false, 0).await;
        assert_eq!(client.ended().await, None);
    })
    .await;
}

#[tokio::test]
async fn mqtt_3_3_3_payloads_of_every_size_arrive() {
    on(&EVERYWHERE, async |target| {
        let mut publisher = target.connect("p").await;
        let mut subscriber = target.connect("s").await;
        subscriber.subscribe("t", 2).await;
        for size in [0, 1, 100, 121, 122, 123, 124, 127, 128, 16_370, 16_383, 16_384, 60_000] {
            for qos in 0..3 {
                publisher.complete("t", &"x".repeat(size), qos, false).await;
                assert_eq!(subscriber.take().await.payload.len(), size);
            }
        }
    })
    .await;
}

#[tokio::test]
async fn mqtt_4_6_0_5_messages_keep_their_order_at_each_qos() {
    on(&EVERYWHERE, async |target| {
        let mut publisher = target.connect("p").await;
        let mut subscriber = target.connect("s").await;
        subscriber.subscribe("t/+", 2).await;
        for qos in 0..3u8 {
            for number in 0..50u16 {
                publisher.publish("t/x", &number.to_string(), qos, false, number + 1).await;
                if qos == 2 {
                    publisher.acked(PUBREC, number + 1).await;
                    publisher.respond(PUBREL, number + 1).await;
                    publisher.acked(PUBCOMP, number + 1).await;
                }
            }
            for number in 0..50u16 {
                assert_eq!(subscriber.take().await.payload, number.to_string());
                if qos == 1 {
                    // 4.6.0-2: acknowledged in the order of the messages.
                    publisher.acked(PUBACK, number + 1).await;
                }
            }
        }
    })
    .await;
}

#[tokio::test]
async fn mqtt_4_6_0_6_the_order_of_a_topic_stands_across_qos() {
    // mosquitto delivers QoS 2 only after PUBREL; the standard orders messages of the same QoS only.
    on(&OURS, async |target| {
        let mut publisher = target.connect("p").await;
        let mut subscriber = target.connect("s").await;
        subscriber.subscribe("t", 2).await;
        for number in 0..30u16 {
            publisher.publish("t", &number.to_string(), (number % 3) as u8, false, number + 1).await;
        }
        for number in 0..30u16 {
            assert_eq!(subscriber.take().await.payload, number.to_string());
        }
    })
    .await;
}

#[tokio::test]
async fn mqtt_3_3_5_every_matching_subscriber_gets_a_copy() {
    on(&EVERYWHERE, async |target| {
        let mut subscribers = vec![];
        for (client_id, filter) in [("1", "a/b"), ("2", "a/+"), ("3", "#"), ("4", "+/b"), ("5", "a/b/#")] {
            let mut subscriber = target.connect(client_id).await;
            subscriber.subscribe(filter, 1).await;
            subscribers.push(subscriber);
        }
        let mut publisher = target.connect("p").await;
        publisher.complete("a/b", "x", 1, false).await;
        publisher.complete("other", "y", 1, false).await;
        for subscriber in &mut subscribers {
            assert_eq!(subscriber.take().await.payload, "x");
        }
        assert_eq!(subscribers[2].take().await.payload, "y");
        for subscriber in &mut subscribers {
            subscriber.nothing().await;
        }
    })
    .await;
}

#[tokio::test]
async fn v3_3_3_5_2_what_may_not_be_published_is_acknowledged_and_goes_nowhere() {
    on(&V3, async |target| {
        let mut client = target.connect("c").await;
        client.subscribe("$SYS/forged", 1).await;
        for qos in 0..3 {
            client.complete("$SYS/forged", "x", qos, true).await;
        }
        client.quiet().await;
        client.subscribe("$SYS/forged", 1).await;
        client.quiet().await;
    })
    .await;
}

#[tokio::test]
async fn v5_3_4_2_1_what_may_not_be_published_gets_0x87() {
    on(&V5, async |target| {
        let mut client = target.connect("c").await;
        client.subscribe("$SYS/forged", 1).await;
        client.complete("$SYS/forged", "x", 0, true).await;
        for (qos, first) in [(1, PUBACK), (2, PUBREC)] {
            client.publish("$SYS/forged", "x", qos, true, 7).await;
            let ack = client.ack().await;
            assert_eq!((ack.first, ack.packet_id, ack.reason), (first, 7, 0x87));
        }
        // 3.5.2.1: the packet id is free again after a PUBREC with an error.
        client.complete("other", "x", 2, false).await;
        client.quiet().await;
    })
    .await;
}

#[tokio::test]
async fn v5_3_3_2_3_4_a_topic_alias_that_was_not_offered_is_0x94() {
    on(&V5, async |target| {
        // With a topic and alias 1; alias 0; mosquitto offers 10 aliases, so 11 is beyond them for both.
        for alias in [0, 11, 65_535] {
            let mut client = target.connect("c").await;
            client.publish_properties("t", "x", 0, 0, &two(property::TOPIC_ALIAS, alias)).await;
            target.cuts(client, &[0x94], &alias).await;
        }
    })
    .await;
    on(&OURS_V5, async |target| {
        for topic in ["t", ""] {
            let mut client = target.connect("c").await;
            client.publish_properties(topic, "x", 2, 1, &two(property::TOPIC_ALIAS, 1)).await;
            target.cuts(client, &[0x94], &topic).await;
        }
    })
    .await;
}

#[tokio::test]
async fn v5_3_3_2_1_an_empty_topic_without_an_alias_is_0x82() {
    on(&V5, async |target| {
        for properties in [vec![], four(property::MESSAGE_EXPIRY, 10)] {
            let mut client = target.connect("c").await;
            client.publish_properties("", "x", 0, 0, &properties).await;
            target.cuts(client, &[0x82], &()).await;
        }
    })
    .await;
}

#[tokio::test]
async fn v5_3_3_4_6_a_client_must_not_send_a_subscription_identifier() {
    // mosquitto does not mind.
    on(&OURS_V5, async |target| {
        let mut client = target.connect("c").await;
        client.publish_properties("t", "x", 0, 0, &property::subscription_id(1)).await;
        target.cuts(client, &[0x81, 0x82], &()).await;
    })
    .await;
}

#[tokio::test]
async fn v5_3_3_2_3_properties_of_publish_are_checked() {
    on(&V5, async |target| {
        let refused: &[Vec<u8>] = &[
            [byte(property::PAYLOAD_FORMAT, 1), byte(property::PAYLOAD_FORMAT, 1)].concat(),
            [four(property::MESSAGE_EXPIRY, 1), four(property::MESSAGE_EXPIRY, 1)].concat(),
            [property::string(property::CONTENT_TYPE, "a"), property::string(property::CONTENT_TYPE, "a")].concat(),
            property::string(property::CONTENT_TYPE, "a\0b"),
            two(property::RECEIVE_MAXIMUM, 1),
            four(property::SESSION_EXPIRY, 1),
            vec![property::USER_PROPERTY, 0, 1, b'k', 0, 9, b'v'],
            vec![0x05],
        ];
        // mosquitto does not look at these.
        let refused_by_us = [
            byte(property::PAYLOAD_FORMAT, 2),
            property::string(property::RESPONSE_TOPIC, "a/+"),
            property::string(property::RESPONSE_TOPIC, "#"),
        ];
        for properties in refused.iter().chain(refused_by_us.iter().filter(|_| target.is_ours())) {
            let mut client = target.connect("c").await;
            client.publish_properties("t", "x", 0, 0, properties).await;
            target.cuts(client, &[0x81, 0x82], &properties).await;
        }
        // A length of the properties beyond the packet.
        let mut client = target.connect("c").await;
        client.send(&framed(0x30, &[&text("t")[..], &[5, 1, 1]].concat())).await;
        target.cuts(client, &[0x81], &()).await;
    })
    .await;
}
