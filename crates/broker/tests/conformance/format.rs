use crate::common::{Raw, framed, text};
use crate::target::{EVERYWHERE, OURS, OURS_V5, Target, on};

/// Sends bytes on a fresh connection, which must end for them, while a bystander is served.
async fn is_malformed(target: &Target, bystander: &mut Raw, bytes: &[u8]) {
    let mut client = target.connect("c").await;
    client.send(bytes).await;
    target.cuts(client, &[0x81, 0x82, 0x90, 0x99], &bytes).await;
    bystander.nothing().await;
}

#[tokio::test]
async fn mqtt_2_2_1_packet_types_that_no_client_sends_end_the_connection() {
    on(&EVERYWHERE, async |target| {
        let mut bystander = target.connect("b").await;
        let types: [&[u8]; 6] = [
            b"\x00\x00",
            b"\x20\x02\x00\x00",
            b"\x20\x03\x00\x00\x00",
            b"\x90\x03\x00\x01\x00",
            b"\xb0\x02\x00\x01",
            b"\xd0\x00",
        ];
        for bytes in types {
            // mosquitto takes a PINGRESP and an early SUBACK as a bridge would.
            if target.is_ours() || ![0x90, 0xb0, 0xd0].contains(&bytes[0]) {
                is_malformed(target, &mut bystander, bytes).await;
            }
        }
        if !target.v5 {
            is_malformed(target, &mut bystander, b"\xf0\x00").await;
        }
    })
    .await;
}

#[tokio::test]
async fn mqtt_2_2_2_2_reserved_flags_end_the_connection() {
    on(&EVERYWHERE, async |target| {
        let mut bystander = target.connect("b").await;
        let id = [0, 1];
        let subscription = [&id[..], target.by_version(&[], &[0]), &text("t"), &[0]].concat();
        let filter = [&id[..], target.by_version(&[], &[0]), &text("t")].concat();
        let packets: [(u8, u8, &[u8]); 8] = [
            (0x40, 0, &id),
            (0x50, 0, &id),
            (0x60, 2, &id),
            (0x70, 0, &id),
            (0x80, 2, &subscription),
            (0xa0, 2, &filter),
            (0xc0, 0, &[]),
            (0xe0, 0, &[]),
        ];
        for (kind, right, body) in packets {
            for flags in (0..16).filter(|flags| *flags != right) {
                // mosquitto does not look at the flags of these.
                if target.is_ours() || matches!(kind, 0x60 | 0x80 | 0xa0) {
                    is_malformed(target, &mut bystander, &framed(kind | flags, body)).await;
                }
            }
        }
    })
    .await;
}

#[tokio::test]
async fn mqtt_2_2_3_a_remaining_length_of_five_bytes_ends_the_connection() {
    on(&EVERYWHERE, async |target| {
        let mut bystander = target.connect("b").await;
        is_malformed(target, &mut bystander, b"\x30\x80\x80\x80\x80\x01").await;
        is_malformed(target, &mut bystander, b"\xc0\xff\xff\xff\xff\x01").await;
        // As the first packet as well.
        let mut first = target.send(b"\x10\xff\xff\xff\xff\x7f").await;
        assert_eq!(first.ended().await, None);
    })
    .await;
}

#[tokio::test]
async fn v5_1_5_5_the_fewest_bytes_must_be_used_for_a_length() {
    // mosquitto does not check it.
    on(&OURS_V5, async |target| {
        let mut bystander = target.connect("b").await;
        is_malformed(target, &mut bystander, b"\xc0\x80\x00").await;
        is_malformed(target, &mut bystander, b"\x30\x06\x00\x01t\x80\x00x").await;
    })
    .await;
}

#[tokio::test]
async fn mqtt_2_2_3_packets_come_in_any_pieces() {
    on(&EVERYWHERE, async |target| {
        let mut client = target.connect("c").await;
        client.subscribe("t", 0).await;
        let long = "x".repeat(20_000);
        let body = [text("t"), target.by_version(vec![], vec![0]), long.clone().into_bytes()].concat();
        let packet = framed(0x30, &body);
        // Several in one piece, and one in several pieces, cut within its header and its topic.
        client.send(&packet.repeat(3)).await;
        client.takes(&[&long, &long, &long]).await;
        for (start, end) in [(0, 1), (1, 3), (3, 6), (6, 100), (100, packet.len())] {
            client.send(&packet[start..end]).await;
            tokio::task::yield_now().await;
        }
        client.takes(&[&long]).await;
        client.nothing().await;
    })
    .await;
}

/// A PUBLISH to a topic of these bytes.
fn publish_to(target: &Target, topic: &[u8]) -> Vec<u8> {
    let length = (topic.len() as u16).to_be_bytes();
    framed(0x30, &[&length[..], topic, target.by_version(&b"x"[..], b"\0x")].concat())
}

#[tokio::test]
async fn mqtt_1_5_3_1_strings_must_be_well_formed_utf_8() {
    on(&EVERYWHERE, async |target| {
        let mut bystander = target.connect("b").await;
        let wrong: [&[u8]; 9] = [
            b"\xff",
            b"a\xc3",
            b"\x80a",
            // Overlong forms of '/' and of U+0000.
            b"\xc0\xaf",
            b"\xe0\x80\xaf",
            b"\xc0\x80",
            // Surrogates, and beyond U+10FFFF.
            b"\xed\xa0\x80",
            b"\xed\xbf\xbf",
            b"\xf4\x90\x80\x80",
        ];
        for topic in wrong {
            is_malformed(target, &mut bystander, &publish_to(target, topic)).await;
            let length = [0, topic.len() as u8];
            let filter = [&[0, 1][..], target.by_version(&[], &[0]), &length, topic, &[0]].concat();
            is_malformed(target, &mut bystander, &framed(0x82, &filter)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn mqtt_1_5_3_2_a_string_with_u_0000_ends_the_connection() {
    on(&EVERYWHERE, async |target| {
        let mut bystander = target.connect("b").await;
        is_malformed(target, &mut bystander, &publish_to(target, b"a\0b")).await;
        let bytes = bystander.subscribe_bytes(&[("a\0b", 0)], &[]);
        is_malformed(target, &mut bystander, &bytes).await;
    })
    .await;
}

#[tokio::test]
async fn mqtt_1_5_3_3_a_byte_order_mark_is_not_taken_off() {
    on(&EVERYWHERE, async |target| {
        let mut client = target.connect("c").await;
        client.subscribe("\u{feff}a", 0).await;
        client.publish("a", "without", 0, false, 0).await;
        client.publish("\u{feff}a", "with", 0, false, 0).await;
        assert_eq!(client.message().await.payload, "with");
    })
    .await;
}

#[tokio::test]
async fn mqtt_4_8_truncated_publishes_end_the_connection() {
    on(&EVERYWHERE, async |target| {
        let mut bystander = target.connect("b").await;
        let truncated: [&[u8]; 5] =
            [b"\x30\x00", b"\x30\x01\x00", b"\x30\x02\x00\x05", b"\x32\x03\x00\x01t", b"\x32\x04\x00\x01t\x00"];
        for bytes in truncated {
            is_malformed(target, &mut bystander, bytes).await;
        }
        if target.v5 {
            // No length of the properties.
            is_malformed(target, &mut bystander, b"\x30\x03\x00\x01t").await;
            is_malformed(target, &mut bystander, b"\x32\x05\x00\x01t\x00\x01").await;
        }
    })
    .await;
}

#[tokio::test]
async fn mqtt_4_8_a_malformed_packet_undoes_nothing_before_it() {
    on(&EVERYWHERE, async |target| {
        let mut watcher = target.connect("w").await;
        watcher.subscribe("t", 0).await;
        let mut client = target.connect("c").await;
        let publish = publish_to(target, b"t");
        client.send(&[&publish[..], &publish, b"\x00\x00", &publish].concat()).await;
        client.closed().await;
        watcher.takes(&["x", "x"]).await;
        watcher.quiet().await;
    })
    .await;
}

#[tokio::test]
async fn mqtt_4_8_garbage_instead_of_connect_ends_the_connection() {
    on(&OURS, async |target| {
        let mut bystander = target.connect("b").await;
        let garbage: [&[u8]; 6] = [
            b"GET / HTTP/1.1\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00",
            b"\x00",
            b"\xff\xff\xff\xff",
            b"\x11\x00",
            b"\x10\x00",
        ];
        for bytes in garbage {
            assert_eq!(target.send(bytes).await.ended().await, None, "{bytes:x?}");
        }
        bystander.nothing().await;
    })
    .await;
}
