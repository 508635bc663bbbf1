use std::time::{Duration, Instant};

use crate::common::wire::property::{self, four, two};
use crate::common::{Hello, Raw, framed, text};
use crate::target::{EVERYWHERE, OURS, Target, V3, V5, on};

/// A CONNECT of its parts: flags, CONNECT properties (MQTT 5), and what follows the properties.
fn connect_bytes(target: &Target, flags: u8, properties: &[u8], payload: &[Vec<u8>]) -> Vec<u8> {
    let mut body = text("MQTT");
    body.extend([target.by_version(4, 5), flags, 0, 60]);
    if target.v5 {
        body.push(properties.len() as u8);
        body.extend(properties);
    }
    body.extend(payload.concat());
    framed(0x10, &body)
}

/// A will of topic "w" and no payload, with its empty properties in MQTT 5.
fn will(target: &Target) -> Vec<u8> {
    [target.by_version(vec![], vec![0]), text("w"), text("")].concat()
}

/// Sends a CONNECT that must not be served: a refusal may be answered, then the connection ends.
async fn is_refused(target: &Target, bytes: &[u8]) {
    let mut client = target.send(bytes).await;
    let mut packets = vec![];
    while let Some(packet) = crate::common::patient(client.next()).await {
        packets.push(packet);
    }
    let served = packets.iter().any(|(first, body)| *first == 0x20 && body[1] == 0);
    assert!(!served, "{bytes:x?} answered with {packets:x?}");
}

async fn is_served(target: &Target, bytes: &[u8]) -> Raw {
    let mut client = target.send(bytes).await;
    let answer = client.connack().await;
    assert_eq!(answer.code, 0, "{bytes:x?}");
    client.nothing().await;
    client
}

#[tokio::test]
async fn mqtt_3_1_0_1_the_first_packet_must_be_connect() {
    on(&EVERYWHERE, async |target| {
        let publish = target.by_version(&b"\x30\x04\x00\x01tx"[..], b"\x30\x05\x00\x01t\x00x");
        let subscribe = target.by_version(&b"\x82\x06\x00\x01\x00\x01t\x00"[..], b"\x82\x07\x00\x01\x00\x00\x01t\x00");
        for bytes in [publish, subscribe, b"\xc0\x00", b"\xe0\x00", b"\x40\x02\x00\x01", b"\x62\x02\x00\x01"] {
            assert_eq!(target.send(bytes).await.ended().await, None, "{bytes:x?}");
        }
    })
    .await;
}

#[tokio::test]
async fn mqtt_3_1_0_2_a_second_connect_ends_the_connection() {
    on(&EVERYWHERE, async |target| {
        let mut client = target.connect("c").await;
        client.send(&Hello::default().bytes(target.v5)).await;
        target.cuts(client, &[0x82], &()).await;
    })
    .await;
}

#[tokio::test]
async fn mqtt_3_1_2_1_another_protocol_name_is_not_served() {
    on(&EVERYWHERE, async |target| {
        for name in ["", "mqtt", "MQTX", "MQTTT", "HTTP/1.1"] {
            let mut bytes = connect_bytes(target, 0x02, &[], &[text("c")]);
            bytes.splice(1..8, [vec![bytes[1] - 6 + text(name).len() as u8], text(name)].concat());
            is_refused(target, &bytes).await;
        }
    })
    .await;
}

#[tokio::test]
async fn mqtt_3_1_2_2_another_protocol_level_gets_return_code_1() {
    on(&EVERYWHERE, async |target| {
        for level in [0, 3, 6, 255] {
            let mut client =
                target.send(&[b"\x10\x0d\x00\x04MQTT", &[level][..], b"\x02\x00\x3c\x00\x01c"].concat()).await;
            assert_eq!(client.packet().await, (0x20, vec![0, 1]), "level {level}");
            client.closed().await;
        }
    })
    .await;
}

#[tokio::test]
async fn mqtt_3_1_2_3_the_reserved_flag_must_be_0() {
    on(&EVERYWHERE, async |target| is_refused(target, &connect_bytes(target, 0x03, &[], &[text("c")])).await).await;
}

#[tokio::test]
async fn mqtt_3_1_2_11_will_flags_without_a_will_are_refused() {
    on(&EVERYWHERE, async |target| {
        for flags in [0x0a, 0x12, 0x22] {
            is_refused(target, &connect_bytes(target, flags, &[], &[text("c")])).await;
        }
    })
    .await;
}

#[tokio::test]
async fn mqtt_3_1_2_14_a_will_qos_of_3_is_refused() {
    on(&EVERYWHERE, async |target| {
        is_refused(target, &connect_bytes(target, 0x1e, &[], &[text("c"), will(target)])).await;
    })
    .await;
}

#[tokio::test]
async fn mqtt_3_1_3_3_a_will_needs_a_topic_name() {
    on(&EVERYWHERE, async |target| {
        let properties = target.by_version(vec![], vec![0]);
        for topic in ["a/+", "#", "", "a\0b"] {
            let will = [properties.clone(), text(topic), text("x")].concat();
            is_refused(target, &connect_bytes(target, 0x06, &[], &[text("c"), will])).await;
        }
    })
    .await;
}

#[tokio::test]
async fn mqtt_3_1_3_fields_that_the_flags_announce_must_be_there_and_no_others() {
    on(&EVERYWHERE, async |target| {
        // A will, a user name, a password are announced and missing.
        is_refused(target, &connect_bytes(target, 0x06, &[], &[text("c")])).await;
        is_refused(target, &connect_bytes(target, 0x82, &[], &[text("c")])).await;
        is_refused(target, &connect_bytes(target, 0xc2, &[], &[text("c"), text("user")])).await;
        // No client id at all, and one that ends too early.
        is_refused(target, &connect_bytes(target, 0x02, &[], &[])).await;
        is_refused(target, &connect_bytes(target, 0x02, &[], &[vec![0, 5, b'c']])).await;
    })
    .await;
    // mosquitto takes a user name that no flag announces.
    on(&OURS, async |target| {
        is_refused(target, &connect_bytes(target, 0x02, &[], &[text("c"), text("user")])).await;
    })
    .await;
}

#[tokio::test]
async fn mqtt_3_1_3_1_every_field_together_is_served() {
    on(&EVERYWHERE, async |target| {
        let payload = [text("c"), will(target), text("user"), text("password")];
        is_served(target, &connect_bytes(target, 0xf6 & !0x10, &[], &payload)).await;
    })
    .await;
}

#[tokio::test]
async fn v3_3_1_2_22_a_password_needs_a_user_name() {
    on(&V3, async |target| {
        is_refused(target, &connect_bytes(target, 0x42, &[], &[text("c"), text("password")])).await;
    })
    .await;
}

#[tokio::test]
async fn v5_3_1_2_9_a_password_may_come_without_a_user_name() {
    on(&V5, async |target| {
        is_served(target, &connect_bytes(target, 0x42, &[], &[text("c"), text("password")])).await;
    })
    .await;
}

#[tokio::test]
async fn mqtt_3_1_3_5_long_and_unusual_client_ids_are_served() {
    on(&EVERYWHERE, async |target| {
        let long = "x".repeat(200);
        for client_id in ["0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ", "ä/日本", " ", &long] {
            is_served(target, &connect_bytes(target, 0x02, &[], &[text(client_id)])).await;
        }
    })
    .await;
    // mosquitto refuses ids with wildcards or `$` for its bridges' sake; the standard does not.
    on(&OURS, async |target| {
        for client_id in ["+", "#", "$SYS", "a/+/#"] {
            is_served(target, &connect_bytes(target, 0x02, &[], &[text(client_id)])).await;
        }
    })
    .await;
}

#[tokio::test]
async fn mqtt_3_1_3_6_an_empty_client_id_is_served_with_a_clean_session() {
    on(&EVERYWHERE, async |target| {
        let bytes = connect_bytes(target, 0x02, &[], &[text("")]);
        let (mut first, mut second) = (is_served(target, &bytes).await, is_served(target, &bytes).await);
        // They are two clients, each with an id of its own.
        first.nothing().await;
        second.nothing().await;
    })
    .await;
}

#[tokio::test]
async fn v3_3_1_3_8_an_empty_client_id_without_a_clean_session_gets_return_code_2() {
    on(&V3, async |target| {
        let mut client = target.send(&connect_bytes(target, 0x00, &[], &[text("")])).await;
        assert_eq!(client.packet().await, (0x20, vec![0, 2]));
        client.closed().await;
    })
    .await;
}

#[tokio::test]
async fn v5_3_1_3_1_an_empty_client_id_is_served_without_a_clean_start_too() {
    on(&V5, async |target| {
        let mut client = target.send(&connect_bytes(target, 0x00, &[], &[text("")])).await;
        let answer = client.connack().await;
        assert_eq!((answer.code, answer.session_present), (0, false));
        assert_eq!(property::all(&answer.properties, property::ASSIGNED_CLIENT_ID).len(), 1);
    })
    .await;
}

#[tokio::test]
async fn mqtt_3_1_2_24_a_silent_client_is_cut_after_one_and_a_half_times_its_keep_alive() {
    on(&EVERYWHERE, async |target| {
        let hello = |client_id, keep_alive| Hello { client_id, keep_alive, ..Hello::default() };
        let (mut endless, _) = target.hello(hello("endless", 0)).await;
        let (mut lively, _) = target.hello(hello("lively", 2)).await;
        let (mut silent, _) = target.hello(hello("silent", 1)).await;
        let start = Instant::now();
        let talking = async {
            while start.elapsed() < Duration::from_millis(2500) {
                tokio::time::sleep(Duration::from_millis(500)).await;
                lively.nothing().await;
            }
        };
        let cut = async {
            let reason = silent.ended().await;
            (reason, start.elapsed())
        };
        let ((), (reason, after)) = tokio::join!(talking, cut);
        // mosquitto looks only every few seconds and closes without a word.
        assert_eq!(reason, (target.v5 && target.is_ours()).then_some(0x8d));
        assert!(after >= Duration::from_millis(1400), "{after:?}");
        assert!(after < Duration::from_secs(3) || !target.is_ours(), "{after:?}");
        // Keep alive 0 turns the check off, and whoever talks is left alone.
        endless.nothing().await;
    })
    .await;
}

#[tokio::test]
async fn mqtt_3_1_4_5_packets_may_follow_before_connack() {
    on(&EVERYWHERE, async |target| {
        let subscribe = Raw::open(target, target.v5).await.subscribe_bytes(&[("t", 0)], &[]);
        let publish = target.by_version(&b"\x30\x04\x00\x01tx"[..], b"\x30\x05\x00\x01t\x00x");
        let all = [&connect_bytes(target, 0x02, &[], &[text("c")])[..], &subscribe, publish, b"\xc0\x00"].concat();
        // In one piece, and byte by byte.
        for size in [all.len(), 1] {
            let mut client = Raw::open(target, target.v5).await;
            for piece in all.chunks(size) {
                client.send(piece).await;
            }
            assert_eq!(client.connack().await.code, 0);
            assert_eq!(client.packet().await.0, 0x90);
            let mut rest = [client.packet().await, client.packet().await];
            // A message travels through the broker; the answer to a PING may overtake it.
            rest.sort_by_key(|(first, _)| *first);
            assert_eq!(client.parse(rest[0].0, &rest[0].1).payload, "x");
            assert_eq!(rest[1], (0xd0, vec![]));
        }
    })
    .await;
}

#[tokio::test]
async fn v5_3_1_2_11_properties_of_connect_are_checked() {
    on(&V5, async |target| {
        let refused: &[Vec<u8>] = &[
            // Receive maximum and maximum packet size of 0.
            two(property::RECEIVE_MAXIMUM, 0),
            four(property::MAXIMUM_PACKET_SIZE, 0),
            // Given twice.
            [two(property::RECEIVE_MAXIMUM, 9), two(property::RECEIVE_MAXIMUM, 9)].concat(),
            [four(property::SESSION_EXPIRY, 9), four(property::SESSION_EXPIRY, 9)].concat(),
            // Neither 0 nor 1.
            property::byte(property::REQUEST_PROBLEM_INFORMATION, 2),
            property::byte(property::REQUEST_RESPONSE_INFORMATION, 2),
            // Of another packet, unknown, cut short.
            two(property::TOPIC_ALIAS, 1),
            four(property::WILL_DELAY, 1),
            vec![0x7f, 0],
            vec![property::SESSION_EXPIRY, 0, 0],
        ];
        for properties in refused {
            is_refused(target, &connect_bytes(target, 0x02, properties, &[text("c")])).await;
        }
        if target.is_ours() {
            // Data without a method: mosquitto does not look.
            let data = property::string(property::AUTHENTICATION_DATA, "x");
            is_refused(target, &connect_bytes(target, 0x02, &data, &[text("c")])).await;
        }
        let all = [
            four(property::SESSION_EXPIRY, 5),
            two(property::RECEIVE_MAXIMUM, 5),
            four(property::MAXIMUM_PACKET_SIZE, 500),
            two(property::TOPIC_ALIAS_MAXIMUM, 5),
            property::byte(property::REQUEST_PROBLEM_INFORMATION, 0),
            property::byte(property::REQUEST_RESPONSE_INFORMATION, 1),
            property::user("a", "1"),
            property::user("a", "1"),
        ];
        is_served(target, &connect_bytes(target, 0x02, &all.concat(), &[text("c")])).await;
    })
    .await;
}

#[tokio::test]
async fn v5_3_1_2_11_9_an_authentication_method_is_declined() {
    on(&V5, async |target| {
        let method = property::string(property::AUTHENTICATION_METHOD, "SCRAM-SHA-1");
        let mut client = target.send(&connect_bytes(target, 0x02, &method, &[text("c")])).await;
        let answer = client.connack().await;
        assert_eq!((answer.code, answer.session_present), (0x8c, false));
        client.closed().await;
    })
    .await;
}
