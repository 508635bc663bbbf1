use bytes::BytesMut;
use proptest::prelude::*;
use rumqttc::mqttbytes::v4;
use rumqttc::v5::mqttbytes::v5;

use super::encode::put_variable;
use super::*;

fn connect(bytes: &[u8]) -> Result<Connect<'_>, CodecError> {
    let (frame, used) = split_frame(bytes, 65_536)?.expect("whole packet");
    assert_eq!(used, bytes.len());
    decode_connect(frame, 64)
}

fn packet(bytes: &[u8], version: Version) -> Result<Packet<'_>, CodecError> {
    let (frame, _) = split_frame(bytes, 65_536)?.expect("whole packet");
    decode(frame, Rules { version, user_properties_max: 64 })
}

/// A packet from its first byte and body.
fn framed(first: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first];
    put_variable(&mut bytes, body.len());
    bytes.extend(body);
    bytes
}

#[test]
fn mqtt_3_1_connect() {
    let whole = framed(0x10, b"\x00\x04MQTT\x04\xee\x00\x3c\x00\x01a\x00\x01w\x00\x02hi\x00\x01u\x00\x01p");
    let connect = connect(&whole).unwrap();
    assert_eq!((connect.version, connect.client_id, connect.keep_alive), (Version::V4, "a", 60));
    assert_eq!((connect.user_name, connect.password), (Some("u"), Some(&b"p"[..])));
    let will = connect.will.unwrap();
    assert_eq!((will.topic, will.payload, will.qos, will.retain), ("w", &b"hi"[..], QoS::AtLeastOnce, true));
    assert_eq!(connect.session_expiry, 0);
}

#[test]
fn mqtt_5_3_1_connect_with_properties() {
    let body = b"\x00\x04MQTT\x05\x02\x00\x00\x0d\x11\x00\x00\x00\x0a\x21\x00\x05\x27\x00\x00\x01\x00\x00\x00";
    let whole = framed(0x10, body);
    let connect = connect(&whole).unwrap();
    assert_eq!((connect.version, connect.client_id), (Version::V5, ""));
    assert_eq!((connect.session_expiry, connect.receive_maximum, connect.maximum_packet_size), (10, 5, 256));
}

#[test]
fn mqtt_3_1_malformed_connects_are_refused_by_rule() {
    let cases: [(&[u8], CodecError); 8] = [
        (b"\x00\x04MQTT\x03\x02\x00\x00\x00\x00", CodecError::Version),
        (b"\x00\x06MQIsdp\x03\x02\x00\x00\x00\x00", CodecError::Version),
        (b"\x00\x04MQTT\x04\x03\x00\x00\x00\x00", CodecError::Malformed("reserved connect flag is set")),
        (b"\x00\x04MQTT\x04\x22\x00\x00\x00\x00", CodecError::Malformed("will flags without a will")),
        (b"\x00\x04MQTT\x04\x1e\x00\x00\x00\x00", CodecError::Malformed("will QoS is 3")),
        (b"\x00\x04MQTT\x04\x42\x00\x00\x00\x00\x00\x00", CodecError::Malformed("password without user name")),
        (b"\x00\x04MQTT\x04\x02\x00\x00\x00\x01\x00", CodecError::Malformed("string contains U+0000")),
        (b"\x00\x04MQTT\x04\x02\x00\x00\x00\x00\x00", CodecError::Malformed("bytes after the end of the packet")),
    ];
    for (body, error) in cases {
        assert_eq!(connect(&framed(0x10, body)), Err(error), "{body:x?}");
    }
    assert_eq!(connect(&framed(0x11, b"")), Err(CodecError::Malformed("reserved bits of CONNECT")));
    assert_eq!(connect(&framed(0xc0, b"")), Err(CodecError::Protocol("first packet is not CONNECT")));
}

#[test]
fn mqtt_2_2_malformed_packets_are_refused() {
    let both: [&[u8]; 16] = [
        b"\x36\x05\x00\x01a\x00\x01",     // PUBLISH with QoS 3
        b"\x38\x03\x00\x01a",             // DUP at QoS 0
        b"\x30\x02\x00\x00",              // empty topic
        b"\x30\x03\x00\x01+",             // wildcard in a topic name
        b"\x30\x03\x00\x01#",             // wildcard in a topic name
        b"\x30\x03\x00\x01\xff",          // not UTF-8
        b"\x30\x05\x00\x03\xed\xa0\x80",  // a surrogate
        b"\x32\x05\x00\x01a\x00\x00",     // packet id 0
        b"\x80\x06\x00\x01\x00\x01a\x00", // reserved bits of SUBSCRIBE
        b"\x82\x02\x00\x01",              // SUBSCRIBE without filters
        b"\x60\x02\x00\x01",              // reserved bits of PUBREL
        b"\xa2\x02\x00\x01",              // UNSUBSCRIBE without filters
        b"\xc0\x01\x00",                  // PINGREQ with a body
        b"\x20\x02\x00\x00",              // CONNACK from a client
        b"\xb0\x02\x00\x01",              // UNSUBACK from a client
        b"\x00\x00",                      // packet type 0
    ];
    for bytes in both {
        for version in [Version::V4, Version::V5] {
            assert!(packet(bytes, version).is_err(), "{bytes:x?} {version:?}");
        }
    }
    assert!(packet(b"\x82\x06\x00\x01\x00\x01a\x03", Version::V4).is_err(), "requested QoS 3");
    assert!(packet(b"\x82\x06\x00\x01\x00\x01a\x04", Version::V4).is_err(), "no local in 3.1.1");
    assert!(packet(b"\x82\x07\x00\x01\x00\x00\x01a\x30", Version::V5).is_err(), "retain handling 3");
    assert!(packet(b"\xe0\x01\x00", Version::V4).is_err(), "DISCONNECT with a body in 3.1.1");
    assert!(packet(b"\xf0\x00", Version::V4).is_err() && packet(b"\xf0\x00", Version::V5).is_err(), "AUTH");
}

#[test]
fn mqtt_5_2_2_2_properties_are_checked() {
    let publish = |properties: &[u8]| {
        let mut body = b"\x00\x01a".to_vec();
        put_variable(&mut body, properties.len());
        body.extend(properties);
        body.extend(b"x");
        let bytes = framed(0x30, &body);
        packet(&bytes, Version::V5).map(|packet| match packet {
            Packet::Publish(publish) => (publish.properties.expiry, publish.properties.passed.into_owned()),
            _ => unreachable!("a PUBLISH was encoded"),
        })
    };
    assert_eq!(publish(b"\x01\x01\x02\x00\x00\x00\x09\x03\x00\x01t"), Ok((Some(9), b"\x01\x01\x03\x00\x01t".to_vec())));
    assert_eq!(publish(b"\x26\x00\x01a\x00\x01b\x26\x00\x01a\x00\x01b").unwrap().1.len(), 14);
    assert_eq!(publish(&b"\x26\x00\x00\x00\x00".repeat(65)[..]), Err(CodecError::UserProperties));
    assert_eq!(publish(b"\x01\x01\x01\x01"), Err(CodecError::Protocol("property given twice")));
    assert_eq!(publish(b"\x01\x02"), Err(CodecError::Protocol("property must be 0 or 1")));
    assert_eq!(publish(b"\x23\x00\x01"), Err(CodecError::TopicAlias));
    assert_eq!(publish(b"\x0b\x01"), Err(CodecError::Malformed("property not allowed in this packet")));
    assert_eq!(publish(b"\x08\x00\x01#"), Err(CodecError::Protocol("response topic is not a topic name")));
    assert!(publish(b"\x03\x00\x09t").is_err(), "text longer than the block");
    let by_alias = b"\x30\x06\x00\x00\x03\x23\x00\x01";
    assert_eq!(packet(by_alias, Version::V5), Err(CodecError::TopicAlias));
    let without_alias = packet(b"\x30\x03\x00\x00\x00", Version::V5);
    assert!(matches!(without_alias, Err(CodecError::Protocol(_))), "{without_alias:?}");
}

#[test]
fn mqtt_2_2_3_remaining_length() {
    assert_eq!(split_frame(b"", 100), Ok(None));
    assert_eq!(split_frame(b"\x30", 100), Ok(None));
    assert_eq!(split_frame(b"\x30\x80", 100), Ok(None));
    assert_eq!(split_frame(b"\x30\x05abc", 100), Ok(None));
    assert_eq!(split_frame(b"\x30\xff\xff\xff\xff", 100), Err(CodecError::Malformed("remaining length")));
    assert_eq!(split_frame(b"\x30\x80\x00", 100), Err(CodecError::Malformed("remaining length")));
    assert_eq!(split_frame(b"\x30\x63", 100), Err(CodecError::TooLarge));
    assert_eq!(split_frame(b"\x30\x62", 100), Ok(None));
}

/// What is encoded here is read alike by another codec.
#[test]
fn another_codec_reads_what_is_encoded() {
    let message = Delivered {
        topic: "a/ä",
        payload: b"hello",
        qos: QoS::AtLeastOnce,
        retain: true,
        dup: true,
        packet_id: 300,
        expiry: Some(7),
        passed: b"\x03\x00\x01t",
        subscription_ids: &[5, 200],
    };
    let mut out = Vec::new();
    encode_publish(&mut out, Version::V4, &message);
    assert_eq!(out.len(), message.encoded_length(Version::V4));
    let v4::Packet::Publish(publish) = v4::Packet::read(&mut BytesMut::from(&out[..]), 1000).unwrap() else { panic!() };
    assert_eq!((publish.topic.as_str(), &publish.payload[..], publish.pkid), ("a/ä", &b"hello"[..], 300));
    assert!(publish.dup && publish.retain);

    out.clear();
    encode_publish(&mut out, Version::V5, &message);
    assert_eq!(out.len(), message.encoded_length(Version::V5));
    let v5::Packet::Publish(publish) = v5::Packet::read(&mut BytesMut::from(&out[..]), None).unwrap() else { panic!() };
    let properties = publish.properties.unwrap();
    assert_eq!((properties.message_expiry_interval, properties.content_type.as_deref()), (Some(7), Some("t")));
    assert_eq!(properties.subscription_identifiers, [5, 200]);

    out.clear();
    let ack =
        ConnAck { assigned_client_id: Some("x"), receive_maximum: 9, maximum_packet_size: 99, ..ConnAck::default() };
    encode_connack(&mut out, Version::V5, &ack);
    let v5::Packet::ConnAck(read) = v5::Packet::read(&mut BytesMut::from(&out[..]), None).unwrap() else { panic!() };
    let properties = read.properties.unwrap();
    assert_eq!((properties.receive_max, properties.max_packet_size), (Some(9), Some(99)));
    assert_eq!(properties.assigned_client_identifier.as_deref(), Some("x"));
    assert_eq!(properties.shared_subscription_available, Some(0));

    out.clear();
    encode_suback(&mut out, Version::V5, 7, &[1, reason::NOT_AUTHORIZED]);
    let v5::Packet::SubAck(read) = v5::Packet::read(&mut BytesMut::from(&out[..]), None).unwrap() else { panic!() };
    assert_eq!((read.pkid, read.return_codes.len()), (7, 2));
    out.clear();
    encode_suback(&mut out, Version::V4, 7, &[1, reason::NOT_AUTHORIZED]);
    assert_eq!(out, b"\x90\x04\x00\x07\x01\x80");
}

proptest! {
    #[test]
    fn no_bytes_make_the_decoder_panic(first: u8, body in proptest::collection::vec(any::<u8>(), 0..120)) {
        let bytes = framed(first, &body);
        let _ = connect(&bytes);
        for version in [Version::V4, Version::V5] {
            let _ = packet(&bytes, version);
        }
    }

    /// Bytes that are nearly right reach deeper than random ones.
    #[test]
    fn no_flipped_byte_makes_the_decoder_panic(which in 0usize..6, at in 0usize..60, to: u8) {
        let valid: [&[u8]; 6] = [
            b"\x10\x27\x00\x04MQTT\x05\xee\x00\x3c\x05\x11\x00\x00\x00\x0a\x00\x01a\x05\x18\x00\x00\x00\x01\x00\x01w\x00\x02hi\x00\x01u\x00\x01p",
            b"\x32\x12\x00\x01a\x00\x01\x0b\x26\x00\x01a\x00\x01b\x09\x00\x01cx",
            b"\x82\x0b\x00\x01\x02\x0b\x05\x00\x03a/#\x01",
            b"\xa2\x06\x00\x01\x00\x00\x01a",
            b"\xe0\x07\x00\x05\x11\x00\x00\x00\x01",
            b"\x40\x09\x00\x01\x10\x05\x1f\x00\x02ok",
        ];
        let mut bytes = valid[which].to_vec();
        if at < bytes.len() {
            bytes[at] = to;
        }
        if let Ok(Some((frame, _))) = split_frame(&bytes, 65_536) {
            let _ = decode_connect(frame, 64);
            for version in [Version::V4, Version::V5] {
                let _ = decode(frame, Rules { version, user_properties_max: 64 });
            }
        }
    }

    #[test]
    fn a_publish_survives_encoding(topic in "[a-zä/]{1,20}", payload: Vec<u8>, qos in 0u8..3, retain: bool, packet_id in 1u16.., expiry: Option<u32>) {
        let qos = QoS::from_bits(qos).unwrap();
        let packet_id = if qos == QoS::AtMostOnce { 0 } else { packet_id };
        let message = Delivered { topic: &topic, payload: &payload, qos, retain, dup: false, packet_id, expiry, passed: b"\x01\x01", subscription_ids: &[] };
        for version in [Version::V4, Version::V5] {
            let mut out = Vec::new();
            encode_publish(&mut out, version, &message);
            prop_assert_eq!(out.len(), message.encoded_length(version));
            let Ok(Packet::Publish(read)) = packet(&out, version) else { panic!("not a PUBLISH") };
            prop_assert_eq!((read.topic, read.payload, read.qos, read.retain, read.packet_id), (&topic[..], &payload[..], qos, retain, packet_id));
            if version == Version::V5 {
                prop_assert_eq!((read.properties.expiry, &read.properties.passed[..]), (expiry, &b"\x01\x01"[..]));
            }
        }
    }
}
