use std::time::{Duration, Instant};

use crate::common::wire::property::{self, four};
use crate::common::{Hello, lasting, session_expiry};
use crate::target::{EVERYWHERE, OURS, OURS_V5, Target, V5, on};

fn with_will(client_id: &'static str, payload: &'static str) -> Hello {
    Hello { client_id, will: Some(("will", payload, 0, false)), ..Hello::default() }
}

/// A watcher of the topic "will", at the QoS given.
async fn watcher(target: &Target, qos: u8) -> crate::common::Raw {
    let mut watcher = target.connect("watcher").await;
    watcher.subscribe("will", qos).await;
    watcher
}

#[tokio::test]
async fn mqtt_3_1_2_8_a_will_is_published_when_the_connection_is_lost() {
    on(&EVERYWHERE, async |target| {
        let mut watcher = watcher(target, 2).await;
        for (qos, retain) in [(0, false), (1, false), (2, false), (0, true), (1, true), (2, true)] {
            let hello = Hello { client_id: "c", will: Some(("will", "gone", qos, retain)), ..Hello::default() };
            let (client, _) = target.hello(hello).await;
            client.lose().await;
            let message = watcher.take().await;
            assert_eq!((message.payload.as_str(), message.qos, message.retain), ("gone", qos, false));
            // 3.1.2-16, -17: kept only if it was to be retained.
            let mut late = target.connect("late").await;
            late.subscribe("will", 2).await;
            if retain {
                let message = late.take().await;
                assert_eq!((message.payload.as_str(), message.qos, message.retain), ("gone", qos, true));
            }
            late.quiet().await;
        }
    })
    .await;
}

#[tokio::test]
async fn mqtt_3_1_2_10_a_will_is_discarded_at_disconnect_and_published_once() {
    on(&EVERYWHERE, async |target| {
        let mut watcher = watcher(target, 0).await;
        let (client, _) = target.hello(with_will("c", "1")).await;
        client.leave().await;
        watcher.quiet().await;
        // Connected again without a will and lost: the old will is not remembered.
        target.connect("c").await.lose().await;
        watcher.quiet().await;
        let (client, _) = target.hello(with_will("c", "2")).await;
        client.lose().await;
        watcher.takes(&["2"]).await;
        target.connect("c").await.lose().await;
        watcher.quiet().await;
    })
    .await;
}

#[tokio::test]
async fn mqtt_3_1_2_8_a_will_follows_every_end_but_disconnect() {
    on(&EVERYWHERE, async |target| {
        let mut watcher = watcher(target, 0).await;
        let unsubscribe_nothing = target.by_version(&b"\xa2\x02\x00\x01"[..], b"\xa2\x03\x00\x01\x00");
        let errors: [&[u8]; 5] =
            [b"\x00\x00", b"\x36\x00", unsubscribe_nothing, b"\x20\x02\x00\x00", b"\x30\xff\xff\xff\xff\x01"];
        for bytes in errors {
            let (mut client, _) = target.hello(with_will("c", "error")).await;
            client.send(bytes).await;
            client.closed().await;
            watcher.takes(&["error"]).await;
        }
        // A DISCONNECT that is itself malformed is none.
        let (mut client, _) = target.hello(with_will("c", "malformed")).await;
        client.send(b"\xe1\x00").await;
        client.closed().await;
        watcher.takes(&["malformed"]).await;
        // A peer that resets the connection.
        let (client, _) = target.hello(with_will("c", "reset")).await;
        client.stream.set_zero_linger().unwrap();
        drop(client);
        watcher.takes(&["reset"]).await;
    })
    .await;
}

#[tokio::test]
async fn mqtt_3_1_2_8_a_will_follows_silence_beyond_the_keep_alive() {
    on(&OURS, async |target| {
        // mosquitto does the same; it takes 5 s to look.
        let mut watcher = watcher(target, 0).await;
        let (mut silent, _) = target.hello(Hello { keep_alive: 1, ..with_will("c", "silent") }).await;
        watcher.takes(&["silent"]).await;
        silent.closed().await;
    })
    .await;
}

#[tokio::test]
async fn mqtt_3_1_4_2_a_take_over_publishes_the_old_will() {
    on(&EVERYWHERE, async |target| {
        let mut watcher = watcher(target, 0).await;
        let (mut old, _) = target.hello(with_will("c", "old")).await;
        let (new, _) = target.hello(with_will("c", "new")).await;
        old.closed().await;
        watcher.takes(&["old"]).await;
        new.leave().await;
        watcher.quiet().await;
    })
    .await;
}

#[tokio::test]
async fn mqtt_3_1_2_5_a_will_takes_retained_messages_away_if_it_is_empty() {
    on(&EVERYWHERE, async |target| {
        target.connect("p").await.complete("will", "kept", 1, true).await;
        let mut watcher = watcher(target, 0).await;
        watcher.takes(&["kept"]).await;
        let hello = Hello { client_id: "c", will: Some(("will", "", 1, true)), ..Hello::default() };
        target.hello(hello).await.0.lose().await;
        watcher.takes(&[""]).await;
        watcher.subscribe("will", 0).await;
        watcher.quiet().await;
    })
    .await;
}

#[tokio::test]
async fn mqtt_3_1_2_9_a_will_of_a_reserved_topic_is_refused_or_dropped() {
    on(&EVERYWHERE, async |target| {
        let hello = Hello { client_id: "c", will: Some(("$SYS/forged", "x", 0, true)), ..Hello::default() };
        let (client, answer) = crate::common::Raw::greet(target, target.v5, &hello).await;
        // Ours refuses it; mosquitto drops it when it is due.
        assert_eq!(answer.code, if target.is_ours() { target.by_version(5, 0x87) } else { 0 });
        client.lose().await;
        let mut watcher = target.connect("w").await;
        watcher.subscribe("$SYS/forged", 0).await;
        watcher.quiet().await;
    })
    .await;
}

#[tokio::test]
async fn v5_3_14_2_1_disconnect_with_0x04_publishes_the_will() {
    on(&V5, async |target| {
        let mut watcher = watcher(target, 0).await;
        let (mut client, _) = target.hello(with_will("c", "wanted")).await;
        client.send(&[0xe0, 1, 0x04]).await;
        client.closed().await;
        watcher.takes(&["wanted"]).await;
        // With reason 0x00 and an empty block of properties it is a goodbye as ever.
        let (mut client, _) = target.hello(with_will("c", "unwanted")).await;
        client.send(&[0xe0, 2, 0x00, 0]).await;
        client.closed().await;
        watcher.quiet().await;
    })
    .await;
}

#[tokio::test]
async fn v5_3_1_3_2_a_will_passes_its_properties_on() {
    on(&V5, async |target| {
        let mut watcher = watcher(target, 0).await;
        let passed = [
            property::byte(property::PAYLOAD_FORMAT, 1),
            property::string(property::CONTENT_TYPE, "text/plain"),
            property::string(property::RESPONSE_TOPIC, "answer"),
            property::string(property::CORRELATION_DATA, "id"),
            property::user("k", "1"),
            property::user("k", "2"),
        ];
        let will_properties = [&four(property::WILL_DELAY, 0)[..], &passed.concat()].concat();
        target.hello(Hello { will_properties, ..with_will("c", "gone") }).await.0.lose().await;
        let mut seen = property::parse(&watcher.message().await.properties);
        let mut expected = property::parse(&passed.concat());
        seen.sort_by_key(|(id, _)| *id);
        expected.sort_by_key(|(id, _)| *id);
        assert_eq!(seen, expected);
    })
    .await;
}

#[tokio::test]
async fn v5_3_1_3_2_2_a_delayed_will_waits_and_is_dropped_if_the_session_goes_on() {
    on(&V5, async |target| {
        let mut watcher = watcher(target, 0).await;
        let delayed = |seconds| Hello {
            will: Some(("will", "late", 0, false)),
            will_properties: four(property::WILL_DELAY, seconds),
            ..lasting("c", true)
        };
        let (client, _) = target.hello(delayed(60)).await;
        client.lose().await;
        watcher.quiet().await;
        // The session goes on in time: no will.
        let (client, present) = target.hello(delayed(1)).await;
        assert!(present);
        watcher.quiet().await;
        let lost = Instant::now();
        client.lose().await;
        watcher.takes(&["late"]).await;
        assert!(lost.elapsed() >= Duration::from_millis(900) || !target.is_ours(), "{:?}", lost.elapsed());
    })
    .await;
}

#[tokio::test]
async fn v5_3_1_3_2_2_a_delayed_will_comes_at_once_when_its_session_ends() {
    // mosquitto waits for the delay even after the session has ended.
    on(&OURS_V5, async |target| {
        let mut watcher = watcher(target, 0).await;
        let delayed = |payload, expiry| Hello {
            will: Some(("will", payload, 0, false)),
            will_properties: four(property::WILL_DELAY, 60),
            properties: session_expiry(expiry),
            clean: false,
            ..Hello::default()
        };
        // No session after the connection; a session of one second; a new one with a clean start.
        target.hello(delayed("no session", 0)).await.0.lose().await;
        watcher.takes(&["no session"]).await;
        target.hello(delayed("short session", 1)).await.0.lose().await;
        watcher.takes(&["short session"]).await;
        target.hello(delayed("cleaned session", 60)).await.0.lose().await;
        watcher.quiet().await;
        let _client = target.connect("c").await;
        watcher.takes(&["cleaned session"]).await;
    })
    .await;
}

#[tokio::test]
async fn v5_3_1_3_2_2_a_take_over_that_goes_on_with_the_session_drops_a_delayed_will() {
    on(&V5, async |target| {
        let mut watcher = watcher(target, 0).await;
        let delayed = Hello {
            will: Some(("will", "late", 0, false)),
            will_properties: four(property::WILL_DELAY, 60),
            ..lasting("c", true)
        };
        let (mut old, _) = target.hello(delayed).await;
        let (_new, present) = target.connect_lasting("c").await;
        assert!(present);
        old.closed().await;
        watcher.quiet().await;
    })
    .await;
}

#[tokio::test]
async fn v5_3_1_3_2_4_a_will_expires_from_its_publication_on() {
    on(&V5, async |target| {
        let mut watcher = watcher(target, 0).await;
        let will_properties = four(property::MESSAGE_EXPIRY, 2);
        let (client, _) = target.hello(Hello { will_properties, ..with_will("c", "fresh") }).await;
        // Its time counts once it is sent (3.1.3.2.4), however long the connection lasted.
        tokio::time::sleep(Duration::from_millis(2200)).await;
        client.lose().await;
        let message = watcher.message().await;
        assert_eq!(message.payload, "fresh");
        assert_eq!(property::number(&message.properties, property::MESSAGE_EXPIRY), Some(2));
    })
    .await;
}
