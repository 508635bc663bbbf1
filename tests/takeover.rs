use serde_json::{Value, json};

use crate::harness::mqtt::{Client, Door};
use crate::harness::{Cluster, PATIENCE, figure, heavy, wait_until};

const TAKEOVERS: usize = 1_000;
const TOPIC: &str = "rpicluster/from/pi/state";

fn state(state: &str, session: &str) -> String {
    let reason = (state == "offline").then_some("connection_lost");
    json!({"type": "state", "payload": {"state": state, "session": session, "protocol": 1, "reason": reason}})
        .to_string()
}

/// A new connection of the slave, which has said that it is online.
fn connect(broker: Door, session: &str) -> Client {
    let mut client = Client::connect(broker, "pi", Some((TOPIC, &state("offline", session)))).unwrap();
    client.publish(TOPIC, state("online", session).as_bytes(), true).unwrap();
    client
}

fn retained(broker: Door) -> Value {
    let mut reader = Client::connect(broker, "reader", None).unwrap();
    reader.subscribe(TOPIC).unwrap();
    let message = reader.next(PATIENCE).unwrap().expect("a retained state");
    assert!(message.retain);
    serde_json::from_slice(&message.payload).unwrap()
}

#[test]
fn a_thousand_takeovers_never_leave_a_live_slave_offline() {
    let _turn = heavy();
    let cluster = Cluster::start();
    let door = cluster.door_of("pi");
    let mut watcher = Client::connect(cluster.mqtt, "watcher", None).unwrap();
    watcher.subscribe(TOPIC).unwrap();
    let mut current: Option<Client> = None;
    for number in 0..TAKEOVERS {
        let session = format!("session-{number}");
        let older = current.take();
        let older = match number % 3 {
            // The old connection is open and idle.
            0 => older,
            // It has just spoken: its unread words come before its will.
            1 => older.map(|mut client| {
                for _ in 0..20 {
                    client.send("rpicluster/from/pi/vitals", br#"{"type":"vitals","payload":{}}"#).unwrap();
                }
                client
            }),
            // It breaks at the very moment.
            _ => None,
        };
        current = Some(connect(door, &session));
        wait_until(&format!("take-over {number} is seen"), || {
            let view = cluster.view("pi");
            view["session"] == *session && view["state"] == "online"
        });
        let retained = retained(cluster.mqtt);
        assert_eq!(retained["payload"]["session"], *session);
        assert_eq!(retained["payload"]["state"], "online", "take-over {number}: {retained}");
        drop(older);
    }
    let last = format!("session-{}", TAKEOVERS - 1);
    no_session_speaks_after_a_newer_one(&mut watcher, &last);
    let view = cluster.view("pi");
    assert_eq!((&view["state"], &view["session"]), (&"online".into(), &Value::from(last)));
    let broker = &cluster.get("/api/v1/status")["broker"];
    figure("take-overs of a live connection", broker["takeovers"].as_u64().unwrap(), "connections");
}

/// What a watcher of the topic saw: an older session's will never comes after a newer session's `online`.
fn no_session_speaks_after_a_newer_one(watcher: &mut Client, last: &str) {
    let mut newest = 0;
    loop {
        let message = watcher.next(PATIENCE).unwrap().expect("the last session's state");
        let message: Value = serde_json::from_slice(&message.payload).unwrap();
        let session = message["payload"]["session"].as_str().unwrap();
        let number: usize = session.strip_prefix("session-").unwrap().parse().unwrap();
        if message["payload"]["state"] == "online" {
            newest = newest.max(number);
        }
        assert!(number >= newest, "session {number} spoke after {newest}: {message}");
        if session == last {
            return;
        }
    }
}
