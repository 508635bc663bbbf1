//! What a fuzzer may do with codec and filters, which are private otherwise. Only built with the feature `fuzzing`.

use crate::access::{Permissions, covers};
use crate::codec::{
    Delivered, Packet, Publish, QoS, Rules, Version, decode, decode_connect, encode_ack, encode_disconnect,
    encode_publish, find_correlation_data, find_response_topic, split_frame,
};
use crate::message::{Clock, Message, Parts};
use crate::topic::{Standing, is_valid_filter, matches, standing};

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

/// Levels by the low bits of a byte; the rest end a text.
const LEVELS: [&str; 7] = ["a", "b", "+", "#", "$s", "", "\u{e9}"];
/// Levels of a filter; `limits.filter_levels` is of this order.
const FILTER_LEVELS_MAX: usize = 32;

/// Takes bytes as a topic, a filter that somebody subscribes to and what he may do, and checks that nothing is matched
/// beyond what is allowed, and nothing refused that lies within it.
///
/// # Panics
/// Where matching breaks one of its promises.
pub fn filters(bytes: &[u8]) {
    // Any text is a filter or none.
    let _ = std::str::from_utf8(bytes).map(|text| is_valid_filter(text, FILTER_LEVELS_MAX));
    let mut texts = bytes.split(|byte| usize::from(byte & 7) >= LEVELS.len()).map(|text| {
        let levels: Vec<&str> = text.iter().map(|byte| LEVELS[usize::from(byte & 7)]).collect();
        levels.join("/")
    });
    let (Some(topic), Some(filter)) = (texts.next(), texts.next()) else { return };
    let allowed: Vec<String> = texts.filter(|text| is_valid_filter(text, FILTER_LEVELS_MAX)).collect();
    if !is_valid_filter(&filter, FILTER_LEVELS_MAX) {
        return;
    }
    let may = Permissions { publish: allowed.clone(), subscribe: allowed.clone(), hidden: allowed.clone() };
    let is_topic = !topic.is_empty() && !topic.contains(['+', '#']);
    let is_allowed = |topic: &str| allowed.iter().any(|allowed| matches(allowed, topic));
    if is_topic {
        check_topic(&filter, &topic);
        assert_eq!(may.hides(&topic), is_allowed(&topic), "{topic:?} of {allowed:?}");
        assert_eq!(may.may_publish(&topic), !topic.starts_with('$') && is_allowed(&topic), "{topic:?} of {allowed:?}");
        assert_eq!(may.may_subscribe(&topic), is_allowed(&topic), "{topic:?}, as a filter, of {allowed:?}");
    }
    let mut matched = witnesses(&filter);
    matched.extend(Some(topic).filter(|topic| is_topic && matches(&filter, topic)));
    if may.may_subscribe(&filter) {
        let beyond = matched.iter().find(|topic| !is_allowed(topic));
        assert_eq!(beyond, None, "{filter:?} was allowed by {allowed:?}");
    }
    for one in &allowed {
        let all_within = matched.iter().all(|topic| matches(one, topic));
        // What `#` stands for is a level less only where the rest is a topic, and none is empty: `+/#` means `#`. That it
        // is taken for less refuses what nobody asks for.
        let is_taken_for_less = all_within && ["#", "/#"].contains(&filter.as_str());
        let agrees = covers(one, &filter) == all_within;
        assert!(agrees || is_taken_for_less, "{one:?} and {filter:?}, which matches {matched:?}");
    }
}

/// The two ways to compare a topic with a filter agree.
fn check_topic(filter: &str, topic: &str) {
    let standing = standing(filter, topic);
    assert_eq!(standing == Standing::Matches, matches(filter, topic), "{filter:?} and {topic:?}: {standing:?}");
    if let Standing::NothingBefore(next) = standing {
        assert!(next.as_str() > topic, "a search for {filter:?} gets beyond {topic:?}");
    }
}

/// Topics that a filter matches, among them one that no other filter matches unless it matches all of them.
fn witnesses(filter: &str) -> Vec<String> {
    const STRANGE: &str = "?";
    let plain = filter.replace('+', STRANGE);
    match plain.strip_suffix('#') {
        None => vec![plain],
        Some(below) => {
            let deep = [STRANGE, STRANGE].join("/");
            let above = below.strip_suffix('/').unwrap_or(below).to_owned();
            vec![above, [below, STRANGE].concat(), [below, &deep].concat()]
        }
    }
    .into_iter()
    .filter(|topic| !topic.is_empty())
    .collect()
}
