use crate::target::{EVERYWHERE, OURS, on};

/// Filter, topics that it matches, topics that it does not match.
type Case = (&'static str, &'static [&'static str], &'static [&'static str]);

const CASES: [Case; 17] = [
    ("sport/tennis/player1/#", &["sport/tennis/player1", "sport/tennis/player1/ranking"], &["sport/tennis/player"]),
    ("sport/#", &["sport", "sport/", "sport/a/b/c"], &["sports", "Sport"]),
    ("#", &["a", "/", "a/b", "/a", "//"], &[]),
    ("sport/tennis/+", &["sport/tennis/player1", "sport/tennis/"], &["sport/tennis", "sport/tennis/player1/ranking"]),
    ("sport/+", &["sport/", "sport/x"], &["sport", "sport/x/y"]),
    ("+", &["finance", "x"], &["/finance", "a/b", "/"]),
    ("+/+", &["/finance", "a/b", "/"], &["finance", "a/b/c"]),
    ("/+", &["/finance", "/"], &["finance", "//", "/a/b"]),
    ("+/tennis/#", &["sport/tennis", "/tennis", "x/tennis/y/z"], &["tennis", "a/b/tennis"]),
    ("sport/+/player1", &["sport/tennis/player1", "sport//player1"], &["sport/a/b/player1", "sport/player1"]),
    ("/", &["/"], &["//", "a/"]),
    ("a//b", &["a//b"], &["a/b", "a/x/b"]),
    ("+/+/+", &["//", "a//b", "a/b/c"], &["/", "a/b/c/d"]),
    ("a/+/#", &["a/b", "a/", "a/b/c"], &["a"]),
    ("Accounts payable", &["Accounts payable"], &["ACCOUNTS PAYABLE", "Accounts  payable", "Accounts payable "]),
    ("ä/日本/+", &["ä/日本/ß", "ä/日本/"], &["a/日本/ß", "ä/日/本"]),
    ("a/b", &["a/b"], &["a/b/", "/a/b", "a", "a/B", "a/bb"]),
];

#[tokio::test]
async fn mqtt_4_7_1_filters_match_as_the_standard_says() {
    on(&EVERYWHERE, async |target| {
        let mut subscriber = target.connect("s").await;
        let mut publisher = target.connect("p").await;
        for (filter, matching, others) in CASES {
            subscriber.subscribe(filter, 0).await;
            for topic in others.iter().chain(matching) {
                publisher.publish(topic, filter, 0, false, 0).await;
            }
            for topic in matching {
                assert_eq!(subscriber.message().await.topic, *topic, "{filter}");
            }
            publisher.nothing().await;
            subscriber.unsubscribe(filter).await;
            subscriber.quiet().await;
        }
    })
    .await;
}

#[tokio::test]
async fn mqtt_4_7_1_retained_messages_match_in_the_same_way() {
    on(&EVERYWHERE, async |target| {
        let mut client = target.connect("c").await;
        for (filter, matching, others) in CASES {
            for topic in others.iter().chain(matching) {
                client.publish(topic, "x", 0, true, 0).await;
            }
            client.subscribe(filter, 0).await;
            let mut seen = vec![];
            for _ in matching {
                seen.push(client.message().await.topic);
            }
            let mut expected = matching.to_vec();
            seen.sort();
            expected.sort_unstable();
            assert_eq!(seen, expected, "{filter}");
            client.unsubscribe(filter).await;
            client.quiet().await;
            for topic in others.iter().chain(matching) {
                client.publish(topic, "", 0, true, 0).await;
            }
        }
    })
    .await;
}

#[tokio::test]
async fn mqtt_4_7_2_1_wildcards_at_the_first_level_do_not_match_dollar_topics() {
    on(&EVERYWHERE, async |target| {
        let mut client = target.connect("c").await;
        client.subscribe_all(&[("#", 0), ("+/broker/version", 0), ("+/#", 0)], &[]).await;
        client.publish("end", "x", 0, false, 0).await;
        // Retained `$SYS` messages would have come before this.
        assert_eq!(client.message().await.topic, "end");
    })
    .await;
}

#[tokio::test]
async fn mqtt_4_7_2_the_servers_own_topics_can_be_subscribed() {
    on(&EVERYWHERE, async |target| {
        for filter in ["$SYS/broker/version", "$SYS/broker/+", "$SYS/#"] {
            let mut client = target.connect("c").await;
            assert_eq!(client.subscribe(filter, 0).await, 0);
            let mut topics = vec![];
            while !topics.contains(&"$SYS/broker/version".to_owned()) {
                topics.push(client.message().await.topic);
            }
            assert!(topics.iter().all(|topic| topic.starts_with("$SYS/")), "{topics:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn mqtt_4_7_2_clients_cannot_talk_through_dollar_topics() {
    // mosquitto keeps `$SYS` alone to itself.
    on(&OURS, async |target| {
        let mut client = target.connect("c").await;
        for topic in ["$SYS/broker/version", "$other", "$share/g/t"] {
            client.publish(topic, "forged", 0, true, 0).await;
        }
        client.subscribe("$other", 0).await;
        client.quiet().await;
        client.subscribe("$SYS/broker/version", 0).await;
        assert_ne!(client.message().await.payload, "forged");
    })
    .await;
}

#[tokio::test]
async fn mqtt_4_7_3_1_the_longest_topic_is_carried() {
    on(&EVERYWHERE, async |target| {
        let mut client = target.connect("c").await;
        let long = "x".repeat(65_000);
        client.subscribe(&long, 0).await;
        client.publish(&long, "1", 0, false, 0).await;
        assert_eq!(client.message().await.topic, long);
    })
    .await;
    on(&OURS, async |target| {
        // mosquitto allows 200 levels.
        let mut client = target.connect("c").await;
        let deep = "/".repeat(30_000);
        client.subscribe("#", 0).await;
        client.publish(&deep, "2", 0, false, 0).await;
        assert_eq!(client.message().await.topic, deep);
    })
    .await;
}

#[tokio::test]
async fn mqtt_4_7_3_topics_with_odd_characters_arrive_unaltered() {
    on(&EVERYWHERE, async |target| {
        let mut client = target.connect("c").await;
        client.subscribe("#", 0).await;
        let topics =
            [" ", "  a  ", "ä", "\u{feff}bom", "日本/語", "😀/x", "a\\b", "\"'`;", "é", "e\u{301}", "a$b", "%2F"];
        for topic in topics {
            client.publish(topic, "x", 0, false, 0).await;
            assert_eq!(client.message().await.topic, topic);
        }
    })
    .await;
}
