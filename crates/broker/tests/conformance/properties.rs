use std::time::Duration;

use crate::common::wire::property::{self, byte, four, string, user};
use crate::target::{OURS_V5, V5, on};

/// Everything a message may carry to its receivers, user properties twice and out of alphabetical order.
fn passed() -> Vec<u8> {
    [
        byte(property::PAYLOAD_FORMAT, 1),
        user("z", "1"),
        string(property::CONTENT_TYPE, "text/plain; charset=utf-8"),
        string(property::RESPONSE_TOPIC, "answer/ä"),
        user("a", "2"),
        string(property::CORRELATION_DATA, "\0\x01id"),
        user("z", "1"),
        user("", ""),
    ]
    .concat()
}

/// Properties sorted by their kind: the order among kinds means nothing, that among user properties does.
fn sorted(block: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let mut all = property::parse(block);
    all.sort_by_key(|(id, _)| *id);
    all
}

#[tokio::test]
async fn v5_3_3_2_17_all_properties_are_passed_on_unaltered() {
    on(&V5, async |target| {
        let mut subscriber = target.connect("s").await;
        subscriber.subscribe("t", 2).await;
        let mut publisher = target.connect("p").await;
        for qos in 0..3u8 {
            publisher.publish_properties("t", "x", qos << 1, 1 + u16::from(qos), &passed()).await;
            if qos == 2 {
                publisher.acked(crate::common::PUBACK, 2).await;
                publisher.acked(crate::common::PUBREC, 3).await;
                publisher.respond(crate::common::PUBREL, 3).await;
            }
            assert_eq!(sorted(&subscriber.take().await.properties), sorted(&passed()));
        }
    })
    .await;
}

#[tokio::test]
async fn v5_3_3_2_3_a_large_block_of_properties_is_passed_on() {
    on(&V5, async |target| {
        let mut client = target.connect("c").await;
        client.subscribe("t", 0).await;
        let long = "v".repeat(300);
        let properties: Vec<u8> = (0..50).flat_map(|number| user(&number.to_string(), &long)).collect();
        client.publish_properties("t", "x", 0, 0, &properties).await;
        let message = client.message().await;
        assert_eq!((message.properties, message.payload.as_str()), (properties, "x"));
    })
    .await;
}

#[tokio::test]
async fn v5_4_10_request_and_response() {
    on(&V5, async |target| {
        let mut responder = target.connect("responder").await;
        responder.subscribe("ask", 1).await;
        let mut requester = target.connect("requester").await;
        requester.subscribe("answer/me", 1).await;
        let asked = [string(property::RESPONSE_TOPIC, "answer/me"), string(property::CORRELATION_DATA, "7")].concat();
        requester.publish_properties("ask", "?", 0, 0, &asked).await;
        let request = responder.take().await;
        let topic = property::all(&request.properties, property::RESPONSE_TOPIC).remove(0).split_off(2);
        let correlation = property::all(&request.properties, property::CORRELATION_DATA).remove(0).split_off(2);
        let (topic, correlation) = (String::from_utf8(topic).unwrap(), String::from_utf8(correlation).unwrap());
        let answered = string(property::CORRELATION_DATA, &correlation);
        responder.publish_properties(&topic, "!", 0, 0, &answered).await;
        let answer = requester.take().await;
        assert_eq!((answer.payload.as_str(), answer.properties), ("!", answered));
    })
    .await;
}

#[tokio::test]
async fn v5_3_3_2_5_a_message_that_waited_beyond_its_expiry_is_not_delivered() {
    on(&V5, async |target| {
        let (mut client, _) = target.connect_lasting("c").await;
        client.subscribe("t", 1).await;
        client.leave().await;
        let mut publisher = target.connect("p").await;
        publisher.publish_properties("t", "short", 2, 1, &four(property::MESSAGE_EXPIRY, 1)).await;
        publisher.acked(crate::common::PUBACK, 1).await;
        publisher.publish_properties("t", "long", 2, 1, &four(property::MESSAGE_EXPIRY, 100)).await;
        publisher.acked(crate::common::PUBACK, 1).await;
        publisher.publish_properties("r", "short", 1, 0, &four(property::MESSAGE_EXPIRY, 1)).await;
        publisher.publish_properties("r/long", "long", 1, 0, &four(property::MESSAGE_EXPIRY, 100)).await;
        tokio::time::sleep(Duration::from_millis(2200)).await;
        let (mut client, _) = target.connect_lasting("c").await;
        // 3.3.2-6: what is left of the time is told.
        let left =
            |message: &crate::common::Message| property::number(&message.properties, property::MESSAGE_EXPIRY).unwrap();
        let message = client.take().await;
        assert_eq!(message.payload, "long");
        assert!((90..=98).contains(&left(&message)), "{message:?}");
        client.quiet().await;
        // The same for retained messages.
        client.subscribe("r/#", 0).await;
        let message = client.take().await;
        assert_eq!(message.payload, "long");
        assert!((90..=98).contains(&left(&message)), "{message:?}");
        client.quiet().await;
    })
    .await;
}

#[tokio::test]
async fn v5_3_3_2_6_a_message_delivered_at_once_keeps_its_expiry() {
    on(&V5, async |target| {
        let mut client = target.connect("c").await;
        client.subscribe("t", 0).await;
        for seconds in [1, 100, u32::MAX] {
            client.publish_properties("t", "x", 0, 0, &four(property::MESSAGE_EXPIRY, seconds)).await;
            let left = property::number(&client.message().await.properties, property::MESSAGE_EXPIRY);
            // mosquitto reckons the largest value against its clock.
            let exact = left == Some(seconds) || left == Some(seconds - 1);
            assert!(exact || !target.is_ours(), "{left:?} of {seconds}");
        }
    })
    .await;
}

#[tokio::test]
async fn v5_3_3_2_3_8_a_subscription_identifier_comes_with_its_messages() {
    on(&V5, async |target| {
        let mut client = target.connect("c").await;
        for number in [1, 127, 128, 16_384, 268_435_455] {
            client.subscribe_all(&[("t", 0), ("u/#", 1)], &property::subscription_id(number)).await;
            for topic in ["t", "u", "u/v"] {
                client.publish(topic, "x", 0, false, 0).await;
                let message = client.message().await;
                assert_eq!(property::number(&message.properties, property::SUBSCRIPTION_ID), Some(number as u32));
            }
        }
        // 3.8.4: subscribing again without one takes it away.
        client.subscribe("t", 0).await;
        client.publish("t", "x", 0, false, 0).await;
        assert_eq!(client.message().await.properties, Vec::<u8>::new());
    })
    .await;
}

#[tokio::test]
async fn v5_3_3_4_3_overlapping_subscriptions_give_all_their_identifiers() {
    // mosquitto sends a copy for each subscription, with one identifier each.
    on(&OURS_V5, async |target| {
        let mut client = target.connect("c").await;
        client.subscribe_all(&[("a/+", 1)], &property::subscription_id(5)).await;
        client.subscribe_all(&[("a/#", 2)], &property::subscription_id(300)).await;
        client.subscribe("a/b", 0).await;
        target.connect("p").await.complete("a/b", "x", 2, false).await;
        let message = client.take().await;
        let mut ids = property::all(&message.properties, property::SUBSCRIPTION_ID);
        ids.sort();
        assert_eq!((ids, message.qos), (vec![vec![5], vec![0xac, 0x02]], 2));
        client.quiet().await;
    })
    .await;
}

#[tokio::test]
async fn v5_3_8_4_identifiers_are_part_of_the_session() {
    on(&V5, async |target| {
        let (mut client, _) = target.connect_lasting("c").await;
        client.subscribe_all(&[("t", 1)], &property::subscription_id(9)).await;
        client.leave().await;
        target.connect("p").await.complete("t", "x", 1, false).await;
        let (mut client, _) = target.connect_lasting("c").await;
        let message = client.take().await;
        assert_eq!(property::number(&message.properties, property::SUBSCRIPTION_ID), Some(9));
    })
    .await;
}
