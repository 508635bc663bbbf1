//! What a fuzzer may do with the codec, which is private otherwise. Only built with the feature `fuzzing`.

use crate::codec::{
    Delivered, Packet, Publish, QoS, Rules, Version, decode, decode_connect, encode_ack, encode_disconnect,
    encode_publish, find_correlation_data, find_response_topic, split_frame,
};
use crate::message::{Clock, Message, Parts};
use crate::topic::{is_valid_filter, matches};

const PACKET_BYTES_MAX: usize = 64 * 1024;
const RULES: [Rules; 2] =
    [Rules { version: Version::V4, user_properties_max: 8 }, Rules { version: Version::V5, user_properties_max: 8 }];

/// Takes bytes as a client's, of either version, and checks that whatever the broker can encode means the same again.
///
/// # Panics
/// Where the codec breaks one of its promises.
pub fn packet(bytes: &[u8]) {
    for rules in RULES {
        let mut rest = bytes;
        while let Ok(Some((frame, length))) = split_frame(rest, PACKET_BYTES_MAX) {
            assert_eq!(split_frame(&rest[..length], PACKET_BYTES_MAX), Ok(Some((frame, length))));
            assert_eq!(split_frame(&rest[..length - 1], PACKET_BYTES_MAX), Ok(None), "a packet is cut where it ends");
            if let Ok(connect) = decode_connect(frame, rules.user_properties_max)
                && let Some(will) = connect.will
            {
                let packet_id = u16::from(will.qos != QoS::AtMostOnce);
                let (qos, retain, topic) = (will.qos, will.retain, will.topic);
                let (properties, payload) = (will.properties, will.payload);
                let publish = Publish { dup: false, qos, retain, topic, packet_id, properties, payload };
                same_publish(&publish, Rules { version: connect.version, ..rules });
            }
            if let Ok(packet) = decode(frame, rules) {
                same_packet(rest[0], packet, rules);
            }
            rest = &rest[length..];
        }
    }
}

fn same_packet(first: u8, packet: Packet<'_>, rules: Rules) {
    let mut bytes = Vec::new();
    match &packet {
        Packet::Publish(publish) => return same_publish(publish, rules),
        Packet::PubAck(ack) | Packet::PubRec(ack) | Packet::PubRel(ack) | Packet::PubComp(ack) => {
            encode_ack(&mut bytes, rules.version, first, ack.packet_id, ack.reason);
        }
        Packet::Disconnect(disconnect) if rules.version == Version::V5 && disconnect.session_expiry.is_none() => {
            encode_disconnect(&mut bytes, rules.version, disconnect.reason);
        }
        Packet::Subscribe(subscribe) => {
            for (filter, _) in subscribe.filters.iter().filter(|(filter, _)| is_valid_filter(filter, usize::MAX)) {
                let is_topic = !filter.contains(['+', '#']);
                assert!(!is_topic || matches(filter, filter), "{filter:?} matches itself");
            }
            return;
        }
        Packet::Disconnect(_) | Packet::Unsubscribe(_) | Packet::PingReq => return,
    }
    assert_eq!(decoded(&bytes, rules), packet);
}

/// Through the router and out to a subscriber of the same version.
fn same_publish(publish: &Publish<'_>, rules: Rules) {
    let Publish { topic, payload, qos, retain, .. } = *publish;
    let (properties, expiry) = (&publish.properties.passed, publish.properties.expiry);
    let clock = Clock::start();
    let parts = Parts { topic, payload, qos, retain, publisher: 7, expiry, properties };
    let message = Message::from_wire(Message::new(parts, clock).into_wire()).expect("it was made by `into_wire`");
    assert_eq!((message.qos(), message.retain(), message.publisher()), (qos, retain, 7));
    assert!(expiry.is_none_or(|seconds| seconds == 0) || message.expiry(clock).is_ok());
    let delivered = Delivered {
        topic: message.topic(),
        payload: message.payload(),
        qos,
        retain,
        dup: publish.dup,
        packet_id: publish.packet_id,
        expiry,
        passed: message.properties(),
        subscription_ids: &[],
    };
    let mut bytes = Vec::new();
    encode_publish(&mut bytes, rules.version, &delivered);
    assert_eq!(bytes.len(), delivered.encoded_length(rules.version));
    assert_eq!(decoded(&bytes, rules), Packet::Publish(Publish { properties: publish.properties.clone(), ..*publish }));
    // What a reply is built from lies within the block.
    let found =
        find_response_topic(properties).map_or(0, str::len) + find_correlation_data(properties).map_or(0, <[u8]>::len);
    assert!(found <= properties.len());
}

fn decoded(bytes: &[u8], rules: Rules) -> Packet<'_> {
    let frame = split_frame(bytes, usize::MAX).expect("the broker's own packet is well formed");
    let (frame, length) = frame.expect("the broker's own packet is whole");
    assert_eq!(length, bytes.len());
    decode(frame, rules).expect("what a client may send it may be sent")
}
