use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use rpicluster_protocol::limits::{BAD_MESSAGE_INTERVAL, MESSAGE_BYTES_MAX};
use serde_json::{Value, json};

use crate::harness::mqtt::{Client, Message};
use crate::harness::{Cluster, PATIENCE, Process, heavy, soak, wait_until};

/// A slave that has nothing to do with all this, and must not notice it.
struct Bystander {
    _process: Process,
    before: Value,
}

impl Bystander {
    fn start(cluster: &Cluster) -> Bystander {
        let process = cluster.online_slave("bystander");
        wait_until("it is answered", || cluster.counter("bystander", "answered") == 1);
        Bystander { _process: process, before: cluster.view("bystander") }
    }

    /// It is in the same session as before, was never offline, is heard, and is still answered.
    fn is_unharmed(&self, cluster: &Cluster) {
        let mut voice = Client::connect(cluster.mqtt, "voice-of-the-bystander", None).unwrap();
        voice.subscribe("rpicluster/to/bystander/#").unwrap();
        let request = br#"{"type":"info","payload":"time","id":"still-here"}"#;
        voice.publish("rpicluster/from/bystander/info", request, false).unwrap();
        answer_to("still-here", "master_time", &mut voice);
        let after = cluster.view("bystander");
        for field in ["state", "since", "session"] {
            assert_eq!(after[field], self.before[field], "{field}");
        }
        assert_eq!(after["counters"]["bad_messages"], 0);
        assert_eq!(after["counters"]["shed"], 0);
        wait_until("its vitals still come", || {
            cluster.counter("bystander", "received") > after["counters"]["received"].as_u64().unwrap()
        });
        let (status, health) = cluster.try_get("/healthz").unwrap();
        assert_eq!(status, 200, "{health}");
        assert_eq!(cluster.get("/api/v1/status")["broker"]["connection_panics"], 0);
    }
}

fn answer_to(re: &str, kind: &str, client: &mut Client) -> Value {
    let until = Instant::now() + PATIENCE;
    while let Some(Message { payload, .. }) = client.next(until.saturating_duration_since(Instant::now())).unwrap() {
        let message: Value = serde_json::from_slice(&payload).unwrap();
        if message["re"] == re && message["type"] == kind {
            return message["payload"].clone();
        }
    }
    panic!("no {kind} came that answers {re}");
}

/// Messages that nobody can understand, each on a leaf of a slave's topics.
fn garbage() -> Vec<(&'static str, Vec<u8>)> {
    let mut random = fastrand::Rng::with_seed(7);
    let noise: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(4_000).collect();
    let nested = format!(r#"{{"type":"vitals","payload":{}{}}}"#, "[".repeat(20_000), "]".repeat(20_000));
    let objects = format!(r#"{{"type":"vitals","payload":{}1{}}}"#, r#"{"load":"#.repeat(4_000), "}".repeat(4_000));
    let too_long = format!(r#"{{"type":"message","payload":"{}"}}"#, "x".repeat(MESSAGE_BYTES_MAX));
    let text = |leaf: &'static str, text: &str| (leaf, text.as_bytes().to_vec());
    let mut garbage = vec![
        ("vitals", noise.clone()),
        ("state", noise),
        ("message", b"\xff\xfe\x00".to_vec()),
        ("details", b"{\"type\":\"computer_details\",\"payload\":{\"hostname\":\"\xc3\x28\"}}".to_vec()),
        ("vitals", nested.into_bytes()),
        ("vitals", objects.into_bytes()),
        ("message", too_long.into_bytes()),
        ("info", vec![b'{'; 60_000]),
        ("info", vec![0; 60_000]),
    ];
    for leaf in ["state", "details", "vitals", "message", "info", "task", "output"] {
        garbage.extend([
            text(leaf, ""),
            text(leaf, "null"),
            text(leaf, "{}"),
            text(leaf, r#"{"type":null,"payload":1}"#),
        ]);
        garbage.push(text(leaf, r#"{"type":"sing","payload":"loud"}"#));
        garbage.push(text(leaf, r#"{"type":"master_info","payload":{}}"#));
    }
    garbage.extend([
        text("state", r#"{"type":"state","payload":"online"}"#),
        text("state", r#"{"type":"state","payload":{"state":"undead","session":"s"}}"#),
        text("state", r#"{"type":"state","payload":{"state":"online"}}"#),
        text("state", r#"{"type":"state","payload":{"state":"online","session":""}}"#),
        text("state", r#"{"type":"state","payload":{"state":"online","session":"s","protocol":2}}"#),
        text("state", r#"{"type":"state","payload":{"state":"online","session":"s","protocol":-1}}"#),
        text("vitals", r#"{"type":"state","payload":{"state":"online","session":"s","protocol":1}}"#),
        text("details", r#"{"type":"computer_details","payload":{"ram":-1}}"#),
        text("details", r#"{"type":"computer_details","payload":{"ram":1e999}}"#),
        text("vitals", r#"{"type":"vitals","payload":{"load":[1]}}"#),
        text("message", r#"{"type":"message","payload":{"not":"a text"}}"#),
        text("info", r#"{"type":"info","payload":["time"]}"#),
        text("info", r#"{"type":"info","payload":"\ud800"}"#),
        text("info", r#"{"type":"info","payload":"time","id":7}"#),
        text("info", &json!({"type": "info", "payload": "time", "id": "x".repeat(65)}).to_string()),
        text("info", r#"{"type":"info","payload":"time"} and more"#),
    ]);
    garbage
}

#[test]
fn garbage_is_answered_and_counted_and_harms_nobody() {
    let cluster = Cluster::start();
    let bystander = Bystander::start(&cluster);
    let mut villain = Client::connect(cluster.door_of("villain"), "villain", None).unwrap();
    villain.subscribe("rpicluster/to/villain/#").unwrap();
    let garbage = garbage();
    for (leaf, payload) in &garbage {
        villain.publish(&format!("rpicluster/from/villain/{leaf}"), payload, false).unwrap();
    }
    wait_until("all of it is counted", || cluster.counter("villain", "handled") == garbage.len() as u64);
    assert_eq!(cluster.counter("villain", "bad_messages"), garbage.len() as u64);
    assert_eq!(cluster.view("villain")["state"], "offline", "nothing of that was a claim to be online");

    let complained = Instant::now();
    wait_until("the next complaint is due", || complained.elapsed() > BAD_MESSAGE_INTERVAL);
    let request = br#"{"type":"info","payload":"weather","id":"readable"}"#;
    villain.publish("rpicluster/from/villain/info", request, false).unwrap();
    assert_eq!(answer_to("readable", "bad_message", &mut villain), "unknown");
    let request = br#"{"type":"info","payload":"time","id":"sane-again"}"#;
    villain.publish("rpicluster/from/villain/info", request, false).unwrap();
    answer_to("sane-again", "master_time", &mut villain);
    bystander.is_unharmed(&cluster);
}

#[test]
fn messages_on_topics_of_nobody_are_counted_and_nobody_is_invented() {
    let cluster = Cluster::start();
    let bystander = Bystander::start(&cluster);
    let mut villain = Client::connect(cluster.mqtt, "villain", None).unwrap();
    let state = br#"{"type":"state","payload":{"state":"online","session":"s","protocol":1}}"#;
    let long = "x".repeat(64);
    let ids = ["master", "all", "-a", "a-", "A", "ä", "a b", "$SYS", "", &long];
    for id in ids {
        villain.publish(&format!("rpicluster/from/{id}/state"), state, false).unwrap();
    }
    villain.publish("rpicluster/from/villain/nonsense", state, false).unwrap();
    let expected = ids.len() as u64 + 1;
    wait_until("they are counted", || cluster.get("/api/v1/status")["counters"]["unroutable"] == expected);
    // Neither these: the master does not even listen there.
    for topic in ["rpicluster/from/a/b/state", "rpicluster/from", "rpicluster", "x/from/a/state", "ä/ö"] {
        villain.publish(topic, state, true).unwrap();
    }
    bystander.is_unharmed(&cluster);
    let slaves = cluster.get("/api/v1/slaves");
    assert_eq!(slaves.as_array().unwrap().len(), 1, "{slaves}");
}

#[test]
fn noise_instead_of_mqtt_costs_that_connection_only() {
    let cluster = Cluster::start();
    let bystander = Bystander::start(&cluster);
    let mut random = fastrand::Rng::with_seed(7);
    for round in 0..200 {
        let mut stream = cluster.mqtt.open().unwrap();
        let length = random.usize(1..2_000);
        let mut noise: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(length).collect();
        if round % 2 == 0 {
            // Half of it looks like a CONNECT at first.
            noise.splice(..0, *b"\x10\x7f\x00\x04MQTT\x04");
        }
        // The broker may have closed it already.
        let _ = stream.write_all(&noise);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        match stream.read(&mut [0; 64]) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => panic!("round {round}: not closed"),
            _ => {}
        }
    }
    bystander.is_unharmed(&cluster);
}

#[test]
fn a_slave_cannot_forge_log_lines() {
    let cluster = Cluster::start();
    let mut villain = Client::connect(cluster.door_of("villain"), "villain", None).unwrap();
    let forged = "2026-01-01T00:00:00Z  INFO all is well";
    let evil = format!("x\n{forged}\r\n{forged}\u{2028}{forged}\u{1b}[2J");
    let messages = [
        ("message", json!({"type": "message", "payload": evil})),
        ("details", json!({"type": "computer_details", "payload": {"hostname": evil, "cpu": evil}})),
        ("info", json!({"type": "info", "payload": evil})),
        ("state", json!({"type": "state", "payload": {"state": "online", "session": "s"}})),
        ("state", json!({"type": "state", "payload": {"state": "offline", "session": "s", "reason": evil}})),
        (evil.as_str(), json!({})),
    ];
    for (leaf, message) in messages {
        villain.publish(&format!("rpicluster/from/villain/{leaf}"), message.to_string().as_bytes(), false).unwrap();
    }
    wait_until("everything is logged", || {
        let log = cluster.master.err().join("\n");
        ["Received message", "computer specifications", "wants to know", "slave is offline", "no slave"]
            .iter()
            .all(|part| log.contains(part))
    });
    for line in cluster.master.err() {
        assert!(!line.starts_with(forged), "{line}");
        assert!(!line.chars().any(|c| c.is_control() || c == '\u{2028}'), "{line:?}");
    }
}

/// How many lines the log may grow by, whatever the flood.
const FLOOD_LINES_MAX: usize = 100;

/// 10,000 in a full run, 2,000 at least.
fn flood() -> usize {
    (10_000.0 * soak().as_secs_f64() / 30.0).clamp(2_000.0, 10_000.0) as usize
}

fn adds_few_lines(cluster: &Cluster, flood: impl FnOnce()) {
    let before = cluster.master.err().len();
    flood();
    let added = cluster.master.err().split_off(before);
    assert!(added.len() < FLOOD_LINES_MAX, "{} lines, the last: {:#?}", added.len(), added.last());
}

#[test]
fn ten_thousand_disconnects_are_a_few_log_lines() {
    let _turn = heavy();
    let cluster = Cluster::start();
    let bystander = Bystander::start(&cluster);
    let door = cluster.door_of("restless");
    adds_few_lines(&cluster, || {
        for number in 0..flood() {
            let topic = "rpicluster/from/restless/state";
            let state = |word: &str| {
                let payload = json!({"state": word, "session": number.to_string(), "protocol": 1});
                json!({"type": "state", "payload": payload}).to_string()
            };
            let mut client = Client::connect(door, "restless", Some((topic, &state("offline")))).unwrap();
            client.publish(topic, state("online").as_bytes(), true).unwrap();
        }
        let last = (flood() - 1).to_string();
        wait_until("the last one is gone", || {
            let view = cluster.view("restless");
            view["state"] == "offline" && view["session"] == *last
        });
    });
    bystander.is_unharmed(&cluster);
}

#[test]
fn a_flood_of_refused_connections_is_a_few_log_lines() {
    let _turn = heavy();
    let cluster = Cluster::start();
    let bystander = Bystander::start(&cluster);
    adds_few_lines(&cluster, || {
        for _ in 0..flood() {
            assert!(Client::connect(cluster.mqtt, "bystander", None).is_err(), "a slave's id is nobody else's");
        }
    });
    assert_eq!(cluster.get("/api/v1/status")["broker"]["connects_refused"], flood());
    bystander.is_unharmed(&cluster);
}

#[test]
fn a_flood_of_texts_and_nonsense_is_a_few_log_lines() {
    let _turn = heavy();
    let cluster = Cluster::start();
    let bystander = Bystander::start(&cluster);
    adds_few_lines(&cluster, || {
        let mut villain = Client::connect(cluster.door_of("villain"), "villain", None).unwrap();
        for number in 0..flood() {
            let text = json!({"type": "message", "payload": number.to_string()}).to_string();
            villain.publish("rpicluster/from/villain/message", text.as_bytes(), false).unwrap();
            villain.send("rpicluster/from/villain/vitals", b"nonsense").unwrap();
            villain.send(&format!("rpicluster/from/villain/{number}"), b"nonsense").unwrap();
        }
        villain.disconnect().unwrap();
        wait_until("all of it is dealt with", || {
            let counters = cluster.view("villain")["counters"].clone();
            let handled =
                counters["handled"].as_u64().unwrap_or_default() + counters["shed"].as_u64().unwrap_or_default();
            handled == 2 * flood() as u64
        });
    });
    bystander.is_unharmed(&cluster);
}

#[test]
fn a_silent_connection_is_closed_and_those_beside_it_are_served() {
    let cluster = Cluster::start();
    let bystander = Bystander::start(&cluster);
    let mut silent: Vec<TcpStream> = (0..50).map(|_| cluster.mqtt.open().unwrap()).collect();
    bystander.is_unharmed(&cluster);
    for stream in &mut silent {
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        assert_eq!(stream.read(&mut [0; 1]).unwrap_or(0), 0, "closed, after limits.connect_timeout");
    }
    assert_eq!(cluster.get("/api/v1/status")["broker"]["connect_timeouts"], 50);
}
