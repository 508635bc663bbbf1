use crate::common::wire::property::{self, byte};
use crate::common::{Hello, Raw, lasting};
use crate::target::{EVERYWHERE, OURS, OURS_V5, V5, on};

#[tokio::test]
async fn mqtt_3_2_2_1_session_present_is_0_after_a_clean_session() {
    on(&EVERYWHERE, async |target| {
        let (client, present) = target.connect_lasting("c").await;
        assert!(!present, "there was none yet");
        client.leave().await;
        let (_client, present) = target.hello(Hello::default()).await;
        assert!(!present);
    })
    .await;
}

#[tokio::test]
async fn mqtt_3_2_2_2_session_present_tells_whether_a_session_goes_on() {
    on(&EVERYWHERE, async |target| {
        for round in 0..3 {
            let (client, present) = target.connect_lasting("c").await;
            assert_eq!(present, round > 0);
            if round == 1 { client.lose().await } else { client.leave().await }
        }
    })
    .await;
}

#[tokio::test]
async fn mqtt_3_2_2_4_session_present_is_0_with_a_refusal() {
    // A client id beyond `limits.client_id_bytes`; mosquitto has no such rule to refuse by.
    on(&OURS, async |target| {
        let name: &'static str = "c".repeat(257).leak();
        let (mut client, answer) = Raw::greet(target, target.v5, &lasting(name, target.v5)).await;
        assert_eq!((answer.session_present, answer.code), (false, target.by_version(2, 0x85)));
        client.closed().await;
    })
    .await;
}

#[tokio::test]
async fn v5_3_2_2_3_what_is_not_offered_is_announced() {
    on(&OURS_V5, async |target| {
        let (_client, answer) = Raw::greet(target, true, &Hello::default()).await;
        let number = |id| property::number(&answer.properties, id);
        // 3.2.2.3.8: absent means 0.
        assert_eq!(number(property::TOPIC_ALIAS_MAXIMUM).unwrap_or(0), 0);
        assert_eq!(number(property::SHARED_AVAILABLE), Some(0));
        // Maximum QoS, Retain, Wildcards and Subscription Identifiers are available, which is what absence says.
        for id in [0x24, 0x25, 0x28, 0x29] {
            assert!(property::all(&answer.properties, id).iter().all(|value| value[0] > 0), "{id:#x}");
        }
        assert!(number(property::RECEIVE_MAXIMUM).is_some_and(|maximum| maximum > 0));
        assert!(number(property::MAXIMUM_PACKET_SIZE).is_some_and(|size| size > 0));
    })
    .await;
}

#[tokio::test]
async fn v5_3_2_2_3_7_a_client_id_is_assigned_and_can_be_used() {
    on(&V5, async |target| {
        let hello = Hello { client_id: "", ..lasting("", true) };
        let (client, answer) = Raw::greet(target, true, &hello).await;
        let assigned = property::all(&answer.properties, property::ASSIGNED_CLIENT_ID);
        let assigned = std::str::from_utf8(&assigned[0][2..]).unwrap().to_owned();
        assert!(!assigned.is_empty());
        client.lose().await;
        let (_client, present) = target.hello(lasting(assigned.leak(), true)).await;
        assert!(present);
    })
    .await;
}

#[tokio::test]
async fn v5_3_2_2_3_7_no_client_id_is_assigned_to_who_has_one() {
    on(&V5, async |target| {
        let (_client, answer) = Raw::greet(target, true, &Hello::default()).await;
        assert_eq!(property::all(&answer.properties, property::ASSIGNED_CLIENT_ID), Vec::<Vec<u8>>::new());
    })
    .await;
}

#[tokio::test]
async fn v5_3_1_2_28_response_information_is_not_given_unasked() {
    on(&V5, async |target| {
        for wanted in [0, 1] {
            let properties = byte(property::REQUEST_RESPONSE_INFORMATION, wanted);
            let (_client, answer) = Raw::greet(target, true, &Hello { properties, ..Hello::default() }).await;
            // If it is asked for, the broker may still have none.
            assert_eq!(property::all(&answer.properties, property::RESPONSE_INFORMATION).len(), 0);
        }
    })
    .await;
}

#[tokio::test]
async fn v5_3_1_2_29_without_problem_information_no_packet_but_publish_carries_it() {
    on(&V5, async |target| {
        let properties = byte(property::REQUEST_PROBLEM_INFORMATION, 0);
        let (mut client, _) = target.hello(Hello { properties, ..Hello::default() }).await;
        client.send(&client.subscribe_bytes(&[("t", 1)], &[])).await;
        // SUBACK: packet id, an empty block of properties, a reason code.
        assert_eq!(client.packet().await, (0x90, vec![0, 9, 0, 1]));
        client.publish_properties("t", "x", 0x02, 1, &property::user("k", "v")).await;
        let packets = [client.packet().await, client.packet().await];
        let ack = packets.iter().find(|(first, _)| *first == 0x40).unwrap();
        assert!(ack.1.len() <= 4 && ack.1.get(3).is_none_or(|length| *length == 0), "{ack:x?}");
        let message = packets.iter().find(|(first, _)| first & 0xf0 == 0x30).unwrap();
        assert_eq!(client.parse(message.0, &message.1).properties, property::user("k", "v"));
        client.unsubscribe("t").await;
        client.send(&[0xe0, 2, 0x00, 0]).await;
        client.closed().await;
    })
    .await;
}
