use crate::common::wire::property::{self, four};
use crate::target::{EVERYWHERE, OURS, V5, on};

#[tokio::test]
async fn mqtt_3_12_4_1_every_ping_is_answered() {
    on(&EVERYWHERE, async |target| {
        let mut client = target.connect("c").await;
        client.send(&[0xc0, 0, 0xc0, 0, 0xc0, 0]).await;
        for _ in 0..3 {
            assert_eq!(client.packet().await, (0xd0, vec![]));
        }
        client.nothing().await;
    })
    .await;
}

#[tokio::test]
async fn mqtt_3_14_4_3_after_disconnect_nothing_is_handled() {
    on(&EVERYWHERE, async |target| {
        let mut watcher = target.connect("w").await;
        watcher.subscribe("t", 0).await;
        let mut client = target.connect("c").await;
        let publish = target.by_version(&b"\x30\x04\x00\x01tx"[..], b"\x30\x05\x00\x01t\x00x");
        client.send(&[&[0xe0, 0], publish, &[0xc0, 0]].concat()).await;
        assert_eq!(client.ended().await, None);
        watcher.quiet().await;
    })
    .await;
}

#[tokio::test]
async fn mqtt_3_14_1_1_reserved_flags_of_disconnect_are_malformed() {
    on(&EVERYWHERE, async |target| {
        for bytes in [&[0xe1, 0][..], &[0xe8, 0]] {
            let mut client = target.connect("c").await;
            client.send(bytes).await;
            target.cuts(client, &[0x81], &()).await;
        }
    })
    .await;
    // mosquitto does not mind a body.
    on(&OURS, async |target| {
        let mut client = target.connect("c").await;
        client.send(target.by_version(&[0xe0, 1, 0][..], &[0xe0, 3, 0, 0, 0])).await;
        target.cuts(client, &[0x81], &()).await;
    })
    .await;
}

#[tokio::test]
async fn v5_3_14_2_disconnect_may_carry_a_reason_and_properties() {
    on(&V5, async |target| {
        let all = [property::string(property::REASON_STRING, "why"), property::user("k", "v")].concat();
        for body in [vec![], vec![0], vec![0, 0], [vec![0x98, all.len() as u8], all].concat()] {
            let mut client = target.connect("c").await;
            client.send(&crate::common::framed(0xe0, &body)).await;
            assert_eq!(client.ended().await, None, "{body:x?}");
        }
    })
    .await;
}

#[tokio::test]
async fn v5_3_14_2_1_reason_codes_of_the_server_or_of_nobody_are_refused() {
    // mosquitto takes any.
    on(&crate::target::OURS_V5, async |target| {
        for reason in [0x01, 0x10, 0x8b, 0x8d, 0x8e, 0xff] {
            let mut client = target.connect("c").await;
            client.send(&[0xe0, 1, reason]).await;
            target.cuts(client, &[0x81], &reason).await;
        }
    })
    .await;
}

#[tokio::test]
async fn v5_3_14_2_2_properties_of_disconnect_are_checked() {
    on(&V5, async |target| {
        let expiry = four(property::SESSION_EXPIRY, 0);
        for properties in [[expiry.clone(), expiry].concat(), four(property::MESSAGE_EXPIRY, 1), vec![0x11, 0]] {
            let mut client = target.connect("c").await;
            client.send(&crate::common::framed(0xe0, &[&[0, properties.len() as u8], &properties[..]].concat())).await;
            target.cuts(client, &[0x81, 0x82], &properties).await;
        }
    })
    .await;
}

#[tokio::test]
async fn v5_4_12_auth_without_a_method_is_an_error() {
    on(&V5, async |target| {
        for bytes in [&[0xf0, 0][..], &[0xf0, 2, 0x18, 0], &[0xf1, 0]] {
            let mut client = target.connect("c").await;
            client.send(bytes).await;
            target.cuts(client, &[0x81, 0x82], &bytes).await;
        }
    })
    .await;
}
