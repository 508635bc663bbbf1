use crate::common::wire::property;
use crate::target::{EVERYWHERE, V5, on};

#[tokio::test]
async fn mqtt_3_3_1_6_a_new_subscription_gets_the_retained_message_marked_as_such() {
    on(&EVERYWHERE, async |target| {
        let mut publisher = target.connect("p").await;
        for qos in 0..3 {
            let payload = qos.to_string();
            publisher.complete("r", &payload, qos, true).await;
            for subscribed in 0..3 {
                let mut subscriber = target.connect("s").await;
                subscriber.subscribe("r", subscribed).await;
                let message = subscriber.take().await;
                assert_eq!((message.payload, message.retain, message.dup), (payload.clone(), true, false));
                assert_eq!(message.qos, qos.min(subscribed));
                subscriber.quiet().await;
            }
        }
    })
    .await;
}

#[tokio::test]
async fn mqtt_3_3_1_5_only_the_last_retained_message_is_kept() {
    on(&EVERYWHERE, async |target| {
        let mut publisher = target.connect("p").await;
        for payload in ["1", "2", "3"] {
            publisher.complete("r", payload, 1, true).await;
        }
        // 3.3.1-12: an ordinary message neither is kept nor takes its place.
        publisher.complete("r", "ordinary", 1, false).await;
        let mut subscriber = target.connect("s").await;
        subscriber.subscribe("r", 1).await;
        subscriber.takes(&["3"]).await;
        subscriber.quiet().await;
    })
    .await;
}

#[tokio::test]
async fn mqtt_3_3_1_9_a_live_copy_is_not_marked_as_retained() {
    on(&EVERYWHERE, async |target| {
        let mut subscriber = target.connect("s").await;
        subscriber.subscribe("r", 1).await;
        target.connect("p").await.complete("r", "x", 1, true).await;
        let message = subscriber.take().await;
        assert_eq!((message.payload.as_str(), message.retain), ("x", false));
    })
    .await;
}

#[tokio::test]
async fn mqtt_3_3_1_10_an_empty_retained_message_takes_the_kept_one_away() {
    on(&EVERYWHERE, async |target| {
        let mut publisher = target.connect("p").await;
        let mut live = target.connect("live").await;
        live.subscribe("r", 1).await;
        for qos in 0..3 {
            publisher.complete("r", "x", 1, true).await;
            publisher.complete("r", "", qos, true).await;
            // 3.3.1-11: the empty message itself is delivered as an ordinary one and is not kept.
            assert_eq!(live.take().await.payload, "x");
            let message = live.take().await;
            assert_eq!((message.payload.as_str(), message.retain), ("", false));
            let mut subscriber = target.connect("s").await;
            subscriber.subscribe("r", 1).await;
            subscriber.quiet().await;
        }
    })
    .await;
}

#[tokio::test]
async fn mqtt_3_3_1_10_an_empty_ordinary_message_takes_nothing_away() {
    on(&EVERYWHERE, async |target| {
        let mut publisher = target.connect("p").await;
        publisher.complete("r", "x", 1, true).await;
        publisher.complete("r", "", 1, false).await;
        let mut subscriber = target.connect("s").await;
        subscriber.subscribe("r", 1).await;
        subscriber.takes(&["x"]).await;
    })
    .await;
}

#[tokio::test]
async fn mqtt_3_8_4_3_subscribing_again_brings_retained_messages_again() {
    on(&EVERYWHERE, async |target| {
        let mut client = target.connect("c").await;
        client.complete("r/1", "x", 1, true).await;
        for qos in [1, 1, 0] {
            client.subscribe("r/+", qos).await;
            let message = client.take().await;
            assert_eq!((message.payload.as_str(), message.retain, message.qos), ("x", true, qos));
        }
        client.quiet().await;
    })
    .await;
}

#[tokio::test]
async fn mqtt_3_3_1_6_wildcards_bring_every_matching_retained_message() {
    on(&EVERYWHERE, async |target| {
        let mut publisher = target.connect("p").await;
        let topics = ["r", "r/a", "r/a/b", "r/", "r//b", "rr", "r/ä"];
        for topic in topics {
            publisher.complete(topic, topic, 1, true).await;
        }
        let cases: [(&str, &[&str]); 5] = [
            ("r/#", &["r", "r/", "r//b", "r/a", "r/a/b", "r/ä"]),
            ("r/+", &["r/", "r/a", "r/ä"]),
            ("r/+/b", &["r//b", "r/a/b"]),
            ("+", &["r", "rr"]),
            ("#", &["r", "r/", "r//b", "r/a", "r/a/b", "r/ä", "rr"]),
        ];
        for (filter, expected) in cases {
            let mut subscriber = target.connect("s").await;
            subscriber.subscribe(filter, 0).await;
            let mut seen = vec![];
            for _ in expected {
                let message = subscriber.message().await;
                assert!(message.retain && message.topic == message.payload);
                seen.push(message.topic);
            }
            seen.sort();
            assert_eq!(seen, expected);
            subscriber.nothing().await;
        }
    })
    .await;
}

#[tokio::test]
async fn mqtt_4_1_retained_messages_outlive_the_session_of_their_publisher() {
    on(&EVERYWHERE, async |target| {
        let mut publisher = target.connect("p").await;
        publisher.complete("r", "x", 0, true).await;
        publisher.lose().await;
        let mut subscriber = target.connect("p").await;
        subscriber.subscribe("r", 0).await;
        subscriber.takes(&["x"]).await;
    })
    .await;
}

#[tokio::test]
async fn v5_3_8_3_1_retain_as_published_keeps_the_flag_on_live_copies() {
    on(&V5, async |target| {
        let mut with = target.connect("with").await;
        with.subscribe("r/#", 0x08).await;
        let mut without = target.connect("without").await;
        without.subscribe("r/#", 0x00).await;
        let mut publisher = target.connect("p").await;
        for retain in [true, false] {
            publisher.complete("r/1", "x", 0, retain).await;
            assert_eq!(with.take().await.retain, retain);
            assert!(!without.take().await.retain);
        }
    })
    .await;
}

#[tokio::test]
async fn v5_3_3_1_3_retain_handling_decides_when_retained_messages_come() {
    on(&V5, async |target| {
        let mut client = target.connect("c").await;
        client.complete("r", "x", 0, true).await;
        // 2: never.
        client.subscribe("r", 0x20).await;
        client.quiet().await;
        // 1: for a new subscription only, and this one exists.
        client.subscribe("r", 0x10).await;
        client.quiet().await;
        client.unsubscribe("r").await;
        client.subscribe("r", 0x10).await;
        client.takes(&["x"]).await;
        client.subscribe("r", 0x10).await;
        client.quiet().await;
        // 0: always.
        for _ in 0..2 {
            client.subscribe("r", 0x00).await;
            client.takes(&["x"]).await;
        }
    })
    .await;
}

#[tokio::test]
async fn v5_3_3_1_3_retain_handling_1_knows_a_resumed_session() {
    on(&V5, async |target| {
        let (mut client, _) = target.connect_lasting("c").await;
        client.complete("r", "x", 0, true).await;
        client.subscribe("r", 0x10).await;
        client.takes(&["x"]).await;
        client.leave().await;
        let (mut client, _) = target.connect_lasting("c").await;
        client.subscribe("r", 0x10).await;
        client.quiet().await;
    })
    .await;
}

#[tokio::test]
async fn v5_3_3_2_3_retained_messages_keep_their_properties() {
    on(&V5, async |target| {
        let mut client = target.connect("c").await;
        let properties = [
            property::byte(property::PAYLOAD_FORMAT, 1),
            property::string(property::CONTENT_TYPE, "text/plain"),
            property::user("a", "1"),
            property::user("a", "2"),
        ]
        .concat();
        client.publish_properties("r", "x", 1, 0, &properties).await;
        client.subscribe_all(&[("r", 0)], &property::subscription_id(200)).await;
        let message = client.take().await;
        let mut expected = property::parse(&[properties, property::subscription_id(200)].concat());
        let mut seen = property::parse(&message.properties);
        // The order among different properties means nothing; the sort keeps that of user properties.
        expected.sort_by_key(|(id, _)| *id);
        seen.sort_by_key(|(id, _)| *id);
        assert_eq!((seen, message.retain), (expected, true));
    })
    .await;
}
