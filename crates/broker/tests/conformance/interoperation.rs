use crate::common::wire::property::{self, byte, four, string, user};
use crate::common::{Hello, PUBACK, PUBREC, Raw, lasting};
use crate::target::{EVERYWHERE, on};

#[tokio::test]
async fn v5_to_v3_and_back_every_qos_arrives() {
    on(&EVERYWHERE, async |target| {
        let mut publisher = Raw::connect(target, target.v5, "p").await;
        let mut subscriber = Raw::connect(target, !target.v5, "s").await;
        subscriber.subscribe("t/+", 2).await;
        for qos in 0..3 {
            for retain in [false, true] {
                publisher.complete("t/ä", "x", qos, retain).await;
                let message = subscriber.take().await;
                assert_eq!((message.topic.as_str(), message.payload.as_str()), ("t/ä", "x"));
                assert_eq!((message.qos, message.retain, message.properties.len()), (qos, false, 0));
            }
            let mut late = Raw::connect(target, !target.v5, "late").await;
            late.subscribe("t/#", 2).await;
            let message = late.take().await;
            assert_eq!((message.qos, message.retain, message.properties.len()), (qos, true, 0));
        }
    })
    .await;
}

#[tokio::test]
async fn v5_to_v3_properties_are_taken_off() {
    on(&EVERYWHERE, async |target| {
        let mut publisher = Raw::connect(target, true, "p").await;
        let mut old = Raw::connect(target, false, "old").await;
        let mut new = Raw::connect(target, true, "new").await;
        old.subscribe("t", 1).await;
        new.subscribe_all(&[("t", 1)], &property::subscription_id(3)).await;
        let properties = [
            byte(property::PAYLOAD_FORMAT, 1),
            four(property::MESSAGE_EXPIRY, 100),
            string(property::CONTENT_TYPE, "text/plain"),
            string(property::RESPONSE_TOPIC, "answer"),
            string(property::CORRELATION_DATA, "id"),
            user("k", "v"),
        ];
        publisher.publish_properties("t", "x", 3, 1, &properties.concat()).await;
        publisher.acked(PUBACK, 1).await;
        assert_eq!(old.take().await.payload, "x");
        let seen: Vec<u8> = property::parse(&new.take().await.properties).into_iter().map(|(id, _)| id).collect();
        for id in [0x01, 0x02, 0x03, 0x08, 0x09, 0x0b, 0x26] {
            assert!(seen.contains(&id), "{id:#x} is missing in {seen:x?}");
        }
        // Kept, they are taken off and told in the same way.
        old.subscribe("t", 1).await;
        assert!(old.take().await.retain);
        new.subscribe("t", 0).await;
        assert_eq!(property::parse(&new.take().await.properties).len(), 6);
    })
    .await;
}

#[tokio::test]
async fn v5_to_v3_wills_arrive() {
    on(&EVERYWHERE, async |target| {
        let mut watcher = Raw::connect(target, !target.v5, "w").await;
        watcher.subscribe("will", 1).await;
        let hello =
            Hello { will: Some(("will", "gone", 1, false)), will_properties: user("k", "v"), ..Hello::default() };
        Raw::hello(target, target.v5, hello).await.0.lose().await;
        let message = watcher.take().await;
        let expected = if target.v5 { vec![] } else { message.properties.clone() };
        assert_eq!((message.payload.as_str(), message.properties), ("gone", expected));
    })
    .await;
}

#[tokio::test]
async fn a_session_goes_on_with_the_other_version() {
    on(&EVERYWHERE, async |target| {
        let (mut client, _) = target.connect_lasting("c").await;
        client.subscribe("t", 2).await;
        let mut publisher = target.connect("p").await;
        publisher.complete("t", "1", 1, false).await;
        publisher.complete("t", "2", 2, false).await;
        let (first, second) = (client.message().await, client.message().await);
        client.respond(PUBREC, second.packet_id).await;
        client.acked(crate::common::PUBREL, second.packet_id).await;
        client.lose().await;
        publisher.complete("t", "3", 1, false).await;

        let (mut client, present) = Raw::hello(target, !target.v5, lasting("c", !target.v5)).await;
        assert!(present);
        let again = client.take().await;
        assert_eq!((again.payload.as_str(), again.packet_id, again.dup), ("1", first.packet_id, true));
        client.acked(crate::common::PUBREL, second.packet_id).await;
        client.respond(crate::common::PUBCOMP, second.packet_id).await;
        client.takes(&["3"]).await;
        client.quiet().await;
    })
    .await;
}

#[tokio::test]
async fn a_take_over_by_the_other_version_is_told_in_the_old_ones_words() {
    on(&EVERYWHERE, async |target| {
        let old = Raw::connect(target, target.v5, "c").await;
        let mut new = Raw::connect(target, !target.v5, "c").await;
        target.cuts(old, &[0x8e], &()).await;
        new.nothing().await;
    })
    .await;
}
