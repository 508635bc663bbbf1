use crate::common::wire::property::{self, four, two};
use crate::common::{Hello, PUBACK, PUBCOMP, PUBREC, PUBREL, Raw, framed, lasting, text};
use crate::target::{OURS, OURS_V5, V5, on, on_adjusted};

/// A lasting session with this receive maximum.
fn receiving(maximum: u16) -> Hello {
    let properties = [two(property::RECEIVE_MAXIMUM, maximum), lasting("c", true).properties].concat();
    Hello { properties, ..lasting("c", true) }
}

#[tokio::test]
async fn v5_3_3_4_9_no_more_is_in_flight_than_the_receive_maximum() {
    // mosquitto sends the next message at PUBREC already.
    on(&OURS_V5, async |target| {
        let (mut client, _) = target.hello(receiving(2)).await;
        client.subscribe("t", 2).await;
        let mut publisher = target.connect("p").await;
        for number in 0..5u8 {
            publisher.complete("t", &number.to_string(), 1 + number % 2, false).await;
        }
        let (first, second) = (client.message().await, client.message().await);
        client.nothing().await;
        client.respond(PUBACK, first.packet_id).await;
        let third = client.message().await;
        client.nothing().await;
        // PUBREC alone makes no room, PUBCOMP does.
        client.respond(PUBREC, second.packet_id).await;
        client.acked(PUBREL, second.packet_id).await;
        client.nothing().await;
        client.respond(PUBCOMP, second.packet_id).await;
        let fourth = client.message().await;
        client.nothing().await;
        client.respond(PUBACK, third.packet_id).await;
        let fifth = client.take().await;
        let payloads = [first, second, third, fourth, fifth].map(|message| message.payload);
        assert_eq!(payloads, ["0", "1", "2", "3", "4"]);
    })
    .await;
}

#[tokio::test]
async fn v5_3_1_2_11_3_a_receive_maximum_of_1_goes_through_one_by_one() {
    on(&V5, async |target| {
        let (mut client, _) = target.hello(receiving(1)).await;
        client.subscribe("t", 2).await;
        let mut publisher = target.connect("p").await;
        for number in 0..20u8 {
            publisher.complete("t", &number.to_string(), 1 + number % 2, false).await;
        }
        for number in 0..20 {
            let message = client.message().await;
            assert_eq!(message.payload, number.to_string());
            client.nothing().await;
            if message.qos == 2 {
                client.respond(PUBREC, message.packet_id).await;
                client.acked(PUBREL, message.packet_id).await;
                client.nothing().await;
            }
            client.respond(if message.qos == 2 { PUBCOMP } else { PUBACK }, message.packet_id).await;
        }
        client.quiet().await;
    })
    .await;
}

#[tokio::test]
async fn v5_4_9_the_receive_maximum_of_a_new_connection_holds_for_what_is_sent_again() {
    // mosquitto sends everything again at once.
    on(&OURS_V5, async |target| {
        let (mut client, _) = target.hello(receiving(10)).await;
        client.subscribe("t", 2).await;
        let mut publisher = target.connect("p").await;
        let mut sent = vec![];
        for number in 0..5u8 {
            publisher.complete("t", &number.to_string(), 1 + number % 2, false).await;
            sent.push(client.message().await);
        }
        client.lose().await;
        publisher.complete("t", "5", 1, false).await;
        let (mut client, present) = target.hello(receiving(2)).await;
        assert!(present);
        for number in 0..3 {
            let (first, second) = (client.message().await, client.message().await);
            client.nothing().await;
            for (message, index) in [(first, 2 * number), (second, 2 * number + 1)] {
                assert_eq!((message.payload, message.dup), (index.to_string(), index < 5));
                if let Some(earlier) = sent.get(index) {
                    assert_eq!(message.packet_id, earlier.packet_id);
                }
                match message.qos {
                    1 => client.respond(PUBACK, message.packet_id).await,
                    _ => {
                        client.send(&framed(PUBREC, &[&message.packet_id.to_be_bytes()[..], &[0x97]].concat())).await;
                    }
                }
            }
        }
        client.quiet().await;
    })
    .await;
}

#[tokio::test]
async fn v5_3_3_4_7_more_than_the_servers_receive_maximum_is_0x93() {
    // mosquitto refuses the message with a PUBREC of reason 0x97 instead.
    on(&OURS_V5, async |target| {
        let (mut client, answer) = Raw::greet(target, true, &Hello::default()).await;
        let maximum = property::number(&answer.properties, property::RECEIVE_MAXIMUM).unwrap() as u16;
        for packet_id in 1..=maximum {
            client.publish("t", "x", 2, false, packet_id).await;
            client.acked(PUBREC, packet_id).await;
        }
        // QoS 0 and 1 do not count: QoS 1 is acknowledged at once.
        client.complete("t", "x", 0, false).await;
        client.respond(PUBREL, 1).await;
        client.acked(PUBCOMP, 1).await;
        client.publish("t", "x", 2, false, 1).await;
        client.acked(PUBREC, 1).await;
        client.publish("t", "x", 2, false, maximum + 1).await;
        target.cuts(client, &[0x93], &()).await;
    })
    .await;
}

#[tokio::test]
async fn v5_3_1_2_25_a_message_beyond_the_clients_maximum_is_not_sent() {
    on(&V5, async |target| {
        let properties = four(property::MAXIMUM_PACKET_SIZE, 100);
        let (mut client, _) = target.hello(Hello { properties, ..Hello::default() }).await;
        client.subscribe("t", 2).await;
        let mut other = target.connect("o").await;
        other.subscribe("t", 2).await;
        let mut publisher = target.connect("p").await;
        for qos in 0..3 {
            // A PUBLISH of exactly 100 bytes is sent, one byte more is not; mosquitto reckons with a few bytes less.
            let head = 2 + 3 + 1 + if qos > 0 { 2 } else { 0 };
            for size in [100 - head, if target.is_ours() { 101 } else { 110 } - head] {
                publisher.complete("t", &"x".repeat(size), qos, false).await;
                assert_eq!(other.take().await.payload.len(), size);
            }
            assert_eq!(client.take().await.payload.len(), 100 - head);
            client.quiet().await;
        }
    })
    .await;
}

#[tokio::test]
async fn v5_3_1_2_24_no_answer_beyond_the_clients_maximum_is_sent() {
    // mosquitto closes without a word, and sends a byte too many here and there.
    on(&OURS_V5, async |target| {
        let hello = |client_id, maximum| Hello {
            properties: [four(property::MAXIMUM_PACKET_SIZE, maximum), lasting("", true).properties].concat(),
            ..lasting(client_id, true)
        };
        // CONNACK says all that it must, or is a refusal; who cannot take even that gets nothing.
        let whole = 15;
        for maximum in 1..20 {
            let mut client = target.send(&hello("c", maximum).bytes(true)).await;
            if maximum >= 5 {
                let (_, body) = client.packet().await;
                assert!(2 + body.len() <= maximum as usize, "{body:x?} to a client that takes {maximum}");
                assert_eq!(body[1], if maximum < whole { 0x95 } else { 0 }, "to a client that takes {maximum}");
            }
            if maximum < whole {
                assert_eq!(client.ended().await, None);
            }
        }
        // A client that the broker has to name gets a longer one.
        for (maximum, code) in [(whole, 0x95), (40, 0)] {
            assert_eq!(Raw::greet(target, true, &hello("", maximum)).await.1.code, code);
        }
        // SUBACK and UNSUBACK.
        let filters: Vec<String> = (0..11).map(|number| format!("t/{number}")).collect();
        let all: Vec<(&str, u8)> = filters.iter().map(|filter| (filter.as_str(), 1)).collect();
        let (mut client, _) = target.hello(hello("s", 15)).await;
        assert_eq!(client.subscribe_all(&all[..10], &[]).await.len(), 10);
        client.send(&client.subscribe_bytes(&all, &[])).await;
        target.cuts(client, &[0x95], &"SUBSCRIBE").await;
        target.connect("p").await.complete("t/10", "x", 1, false).await;
        let (mut client, present) = target.hello(hello("s", 15)).await;
        assert!(present);
        client.nothing().await;
        let names: Vec<&str> = filters.iter().map(String::as_str).collect();
        assert_eq!(client.unsubscribe_all(&names[..10]).await, [0; 10]);
        let body: Vec<u8> = [vec![0, 8, 0], names.iter().flat_map(|name| text(name)).collect()].concat();
        client.send(&framed(0xa2, &body)).await;
        target.cuts(client, &[0x95], &"UNSUBSCRIBE").await;
        // What acknowledges messages always fits.
        let (mut client, _) = target.hello(hello("s", 15)).await;
        for qos in 1..=2 {
            client.complete("t", "x", qos, false).await;
        }
        client.respond(PUBREL, 77).await;
        assert_eq!(client.ack().await.reason, 0x92);
    })
    .await;
}

#[tokio::test]
async fn v5_3_2_2_15_a_packet_beyond_the_servers_maximum_is_0x95() {
    // mosquitto sets no maximum by default.
    on(&OURS, async |target| {
        let maximum = 64 * 1024;
        if target.v5 {
            let (_client, answer) = Raw::greet(target, true, &Hello::default()).await;
            assert_eq!(property::number(&answer.properties, property::MAXIMUM_PACKET_SIZE), Some(maximum));
        }
        let mut client = target.connect("c").await;
        client.subscribe("t", 0).await;
        let head = 1 + 3 + 3 + target.by_version(0, 1);
        let longest = "x".repeat(maximum as usize - head);
        client.publish("t", &longest, 0, false, 0).await;
        assert_eq!(client.message().await.payload.len(), longest.len());
        // The header alone tells; nothing of the body is awaited.
        client.send(&[0x30, 0x81, 0x80, 0x04]).await;
        target.cuts(client, &[0x95], &()).await;
    })
    .await;
}

#[tokio::test]
async fn v5_4_9_a_full_window_holds_back_no_other_packets() {
    on(&V5, async |target| {
        let (mut client, _) = target.hello(receiving(1)).await;
        client.subscribe("t", 1).await;
        let mut publisher = target.connect("p").await;
        publisher.complete("t", "1", 1, false).await;
        publisher.complete("t", "2", 1, false).await;
        let first = client.message().await;
        assert_eq!(client.subscribe("u", 0).await, 0);
        client.complete("v", "x", 2, false).await;
        client.unsubscribe("u").await;
        client.nothing().await;
        client.respond(PUBACK, first.packet_id).await;
        client.takes(&["2"]).await;
    })
    .await;
}

#[tokio::test]
async fn v3_4_4_more_unreleased_qos_2_messages_than_the_limit_end_the_connection() {
    // MQTT 3.1.1 has no receive maximum; what the broker remembers of a client is bounded all the same.
    let adjust = |config: &mut rpicluster_broker::BrokerConfig| config.limits.inflight = 10;
    on_adjusted(&OURS, adjust, async |target| {
        let mut client = target.connect("c").await;
        for packet_id in 1..=10 {
            client.publish("t", "x", 2, false, packet_id).await;
            client.acked(PUBREC, packet_id).await;
        }
        let body = [text("t"), vec![0, 11], target.by_version(vec![], vec![0])].concat();
        client.send(&framed(0x34, &body)).await;
        target.cuts(client, &[0x93], &()).await;
    })
    .await;
}
