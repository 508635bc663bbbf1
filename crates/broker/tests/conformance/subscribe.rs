use crate::common::wire::property::{self, four};
use crate::common::{framed, text};
use crate::target::{EVERYWHERE, OURS, OURS_V5, V5, on};

#[tokio::test]
async fn mqtt_3_8_4_5_many_filters_in_one_packet_are_answered_in_their_order() {
    on(&EVERYWHERE, async |target| {
        let mut client = target.connect("c").await;
        let filters = [("a", 2), ("b", 0), ("c/#", 1), ("d/+/e", 2), ("a", 1)];
        assert_eq!(client.subscribe_all(&filters, &[]).await, [2, 0, 1, 2, 1]);
        for topic in ["a", "b", "c", "d/x/e"] {
            client.publish(topic, topic, 0, false, 0).await;
            assert_eq!(client.message().await.payload, topic);
        }
        // 3.8.4-4: as if each had come by itself, so the last QoS for "a" holds.
        target.connect("p").await.complete("a", "x", 2, false).await;
        assert_eq!(client.take().await.qos, 1);
        client.nothing().await;
    })
    .await;
}

#[tokio::test]
async fn mqtt_3_8_4_3_subscribing_again_replaces_the_qos_and_keeps_one_subscription() {
    on(&EVERYWHERE, async |target| {
        let mut client = target.connect("c").await;
        let mut publisher = target.connect("p").await;
        for qos in [0, 2, 1, 0] {
            assert_eq!(client.subscribe("t/+", qos).await, qos);
            publisher.complete("t/1", "x", 2, false).await;
            assert_eq!(client.take().await.qos, qos);
            client.nothing().await;
        }
    })
    .await;
}

#[tokio::test]
async fn mqtt_3_3_5_1_overlapping_subscriptions_give_one_copy_at_the_highest_qos() {
    // mosquitto sends a copy for each subscription in MQTT 5, which the standard allows.
    on(&OURS, async |target| {
        let mut client = target.connect("c").await;
        client.subscribe_all(&[("a/b", 0), ("a/+", 2), ("a/#", 1)], &[]).await;
        target.connect("p").await.complete("a/b", "x", 2, false).await;
        assert_eq!(client.take().await.qos, 2);
        client.quiet().await;
    })
    .await;
}

#[tokio::test]
async fn mqtt_3_8_3_an_empty_subscribe_is_an_error() {
    on(&EVERYWHERE, async |target| {
        let mut client = target.connect("c").await;
        client.send(target.by_version(&b"\x82\x02\x00\x01"[..], b"\x82\x03\x00\x01\x00")).await;
        target.cuts(client, &[0x81, 0x82], &()).await;
    })
    .await;
}

#[tokio::test]
async fn mqtt_3_8_3_4_reserved_bits_of_the_options_are_malformed() {
    on(&EVERYWHERE, async |target| {
        for options in target.by_version(&[0x03, 0x04, 0x10, 0x80][..], &[0x03, 0x40, 0x80, 0x30]) {
            let mut client = target.connect("c").await;
            client.send(&client.subscribe_bytes(&[("t", *options)], &[])).await;
            target.cuts(client, &[0x81, 0x82], &options).await;
        }
    })
    .await;
}

#[tokio::test]
async fn mqtt_3_8_1_1_malformed_subscribes_end_the_connection() {
    on(&EVERYWHERE, async |target| {
        let properties = target.by_version(&[][..], &[0]);
        let filter = [text("t"), vec![0]].concat();
        let malformed = [
            // Wrong flags in the fixed header.
            framed(0x80, &[&[0, 1], properties, &filter].concat()),
            framed(0x83, &[&[0, 1], properties, &filter].concat()),
            // Packet id 0; no options; a filter that ends too early; nothing at all.
            framed(0x82, &[&[0, 0], properties, &filter].concat()),
            framed(0x82, &[&[0, 1], properties, &text("t")].concat()),
            framed(0x82, &[&[0, 1], properties, &[0, 9, b't', 0]].concat()),
            framed(0x82, &[]),
        ];
        for bytes in malformed {
            let mut client = target.connect("c").await;
            client.send(&bytes).await;
            target.cuts(client, &[0x81, 0x82], &bytes).await;
        }
    })
    .await;
}

#[tokio::test]
async fn mqtt_3_9_3_an_invalid_filter_is_refused_by_its_reason_and_the_others_hold() {
    // mosquitto ends the connection at an invalid filter; 4.7.1 leaves either open.
    on(&OURS, async |target| {
        let mut client = target.connect("c").await;
        let invalid = target.by_version(0x80, 0x8f);
        for filter in ["", "a#", "#/a", "a/#/b", "a+", "+a/b", "a/b+", "##", "++"] {
            assert_eq!(client.subscribe_all(&[("x", 0), (filter, 1), ("y", 2)], &[]).await, [0, invalid, 2]);
        }
        client.publish("x", "1", 0, false, 0).await;
        client.publish("y", "2", 0, false, 0).await;
        client.takes(&["1", "2"]).await;
        client.quiet().await;
    })
    .await;
}

#[tokio::test]
async fn v5_3_2_2_3_13_shared_subscriptions_are_declined_with_0x9e() {
    // mosquitto offers them.
    on(&OURS_V5, async |target| {
        let mut client = target.connect("c").await;
        assert_eq!(client.subscribe_all(&[("$share/g/t", 1), ("t", 1), ("$share/g/#", 0)], &[]).await, [0x9e, 1, 0x9e]);
        client.publish("t", "x", 0, false, 0).await;
        client.takes(&["x"]).await;
        client.quiet().await;
    })
    .await;
}

#[tokio::test]
async fn mqtt_3_10_4_1_unsubscribing_takes_exactly_the_named_filter_away() {
    on(&EVERYWHERE, async |target| {
        let mut client = target.connect("c").await;
        client.subscribe_all(&[("a/+", 0), ("a/#", 0), ("b", 0)], &[]).await;
        // Compared character by character: none of these is "a/+" or "a/#".
        client.unsubscribe_all(&["a/b", "a", "A/+", "+/+"]).await;
        client.unsubscribe("a/+").await;
        client.publish("a/b", "1", 0, false, 0).await;
        client.takes(&["1"]).await;
        client.nothing().await;
        client.unsubscribe("a/#").await;
        client.publish("a/b", "2", 0, false, 0).await;
        client.publish("b", "3", 0, false, 0).await;
        client.takes(&["3"]).await;
    })
    .await;
}

#[tokio::test]
async fn mqtt_3_10_4_5_unsubscribe_is_answered_once_for_known_unknown_and_many() {
    on(&EVERYWHERE, async |target| {
        let mut client = target.connect("c").await;
        client.subscribe_all(&[("a", 1), ("b/#", 1)], &[]).await;
        let reasons = client.unsubscribe_all(&["a", "never", "b/#", "a"]).await;
        // v5 3.11.3: no subscription existed. MQTT 3.1.1 tells no reasons.
        assert_eq!(reasons, target.by_version(vec![], vec![0, 0x11, 0, 0x11]));
        client.nothing().await;
        assert_eq!(client.unsubscribe_all(&["a"]).await, target.by_version(vec![], vec![0x11]));
        client.nothing().await;
    })
    .await;
}

#[tokio::test]
async fn mqtt_3_10_4_2_what_is_in_flight_is_completed_after_unsubscribing() {
    on(&EVERYWHERE, async |target| {
        let mut client = target.connect("c").await;
        client.subscribe("t", 2).await;
        let mut publisher = target.connect("p").await;
        publisher.complete("t", "1", 2, false).await;
        let message = client.message().await;
        client.unsubscribe("t").await;
        client.respond(crate::common::PUBREC, message.packet_id).await;
        client.acked(crate::common::PUBREL, message.packet_id).await;
        client.respond(crate::common::PUBCOMP, message.packet_id).await;
        publisher.complete("t", "2", 2, false).await;
        client.quiet().await;
    })
    .await;
}

#[tokio::test]
async fn mqtt_3_10_3_2_malformed_unsubscribes_end_the_connection() {
    on(&EVERYWHERE, async |target| {
        let properties = target.by_version(&[][..], &[0]);
        let malformed = [
            framed(0xa2, &[&[0, 1], properties].concat()),
            framed(0xa0, &[&[0, 1], properties, &text("t")].concat()),
            framed(0xa2, &[&[0, 0], properties, &text("t")].concat()),
            framed(0xa2, &[&[0, 1], properties, &[0, 5, b't']].concat()),
            framed(0xa2, &[]),
        ];
        for bytes in malformed {
            let mut client = target.connect("c").await;
            client.send(&bytes).await;
            target.cuts(client, &[0x81, 0x82], &bytes).await;
        }
    })
    .await;
}

#[tokio::test]
async fn v5_3_8_2_1_properties_of_subscribe_are_checked() {
    on(&V5, async |target| {
        let refused: &[Vec<u8>] = &[
            // Subscription identifiers 0, twice, and beyond the largest variable byte integer.
            property::subscription_id(0),
            [property::subscription_id(1), property::subscription_id(2)].concat(),
            vec![property::SUBSCRIPTION_ID, 0xff, 0xff, 0xff, 0xff, 0x01],
            four(property::MESSAGE_EXPIRY, 1),
        ];
        for properties in refused {
            let mut client = target.connect("c").await;
            client.send(&client.subscribe_bytes(&[("t", 0)], properties)).await;
            target.cuts(client, &[0x81, 0x82], &properties).await;
        }
        let mut client = target.connect("c").await;
        let good = [property::user("k", "1"), property::subscription_id(268_435_455), property::user("k", "1")];
        assert_eq!(client.subscribe_all(&[("t", 0)], &good.concat()).await, [0]);
    })
    .await;
}

#[tokio::test]
async fn v5_3_8_3_1_2_no_local_keeps_a_clients_own_messages_away() {
    on(&V5, async |target| {
        let mut client = target.connect("c").await;
        client.subscribe("t/#", 0x04 | 1).await;
        for qos in 0..3 {
            client.complete("t/1", "mine", qos, false).await;
        }
        client.quiet().await;
        target.connect("p").await.complete("t/1", "theirs", 1, false).await;
        client.takes(&["theirs"]).await;
        // Without the option on a later subscription they come again; mosquitto keeps the first one's options.
        if target.is_ours() {
            client.subscribe("t/#", 1).await;
            client.publish("t/1", "mine", 0, false, 0).await;
            client.takes(&["mine"]).await;
        }
    })
    .await;
}

#[tokio::test]
async fn v5_3_8_3_1_2_no_local_holds_for_the_same_client_id_only() {
    on(&V5, async |target| {
        let (mut client, _) = target.connect_lasting("c").await;
        client.subscribe("t", 0x04 | 1).await;
        // Another connection of the same session is still the same client.
        client.leave().await;
        let (mut client, _) = target.connect_lasting("c").await;
        client.complete("t", "mine", 1, false).await;
        client.quiet().await;
        target.connect("other").await.complete("t", "theirs", 1, false).await;
        client.takes(&["theirs"]).await;
    })
    .await;
}
