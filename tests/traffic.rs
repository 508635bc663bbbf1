use std::time::Instant;

use rpicluster_protocol::limits::BAD_MESSAGE_INTERVAL;
use serde_json::{Value, json};

use crate::harness::mosquitto::{Subscriber, publish, retained, tool, tool_at};
use crate::harness::mqtt::Client;
use crate::harness::{Cluster, PATIENCE, Process, run, wait_for, wait_until};

const QUICK_VITALS: &str = "[slave]\nvitals_interval = '1s'";

fn states_details_and_vitals_are_seen(version: &str) {
    let cluster = Cluster::with(QUICK_VITALS);
    let _slave = cluster.online_slave("pi-1");
    wait_until("details are known", || cluster.view("pi-1")["details"].is_object());

    let watcher = Subscriber::start(&cluster, &["-t", "rpicluster/#", "-v", "-V", version]);
    for (topic, part) in [
        ("rpicluster/master/state {", r#""state":"online""#),
        ("rpicluster/from/pi-1/state {", r#""state":"online""#),
        ("rpicluster/from/pi-1/details {", r#""type":"computer_details""#),
        ("rpicluster/from/pi-1/vitals {", r#""type":"vitals""#),
    ] {
        let line = watcher.wait_for(&[topic, part]);
        let (_, payload) = line.split_once(' ').unwrap();
        serde_json::from_str::<Value>(payload).unwrap();
    }
}

#[test]
fn a_subscriber_sees_states_details_and_vitals() {
    states_details_and_vitals_are_seen("mqttv311");
}

#[test]
fn a_subscriber_with_mqtt_5_sees_them_too() {
    states_details_and_vitals_are_seen("5");
}

#[test]
fn what_is_retained_comes_at_once() {
    let cluster = Cluster::start();
    let _slave = cluster.online_slave("pi-1");
    wait_until("details are retained", || retained(&cluster, "rpicluster/from/pi-1/details").is_some());
    assert_eq!(retained(&cluster, "rpicluster/from/pi-1/state").unwrap()["payload"]["state"], "online");
    assert_eq!(retained(&cluster, "rpicluster/master/state").unwrap()["payload"]["state"], "online");
    // Not vitals: they would be stale.
    assert_eq!(retained(&cluster, "rpicluster/from/pi-1/vitals"), None);
}

/// A slave of ten lines of shell, and the messages that the master has sent to it.
struct ShellSlave {
    process: Process,
}

impl ShellSlave {
    fn start(cluster: &Cluster, id: &str) -> ShellSlave {
        // Also proves the tools to be there, with a better message than the shell's.
        tool(cluster, "mosquitto_sub");
        let mut command =
            cluster.place().command(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/ten-line-slave.sh"));
        let door = cluster.door_of(id);
        command.args([door.address.ip().to_string(), door.address.port().to_string(), id.to_owned()]);
        command.env("SECRET", door.login.unwrap().1);
        ShellSlave { process: Process::start(id, command) }
    }

    fn wait_for(&self, kind: &str, re: &str) -> Value {
        wait_for(&format!("{kind} that answers {re}"), || {
            let lines = self.process.out();
            let mut messages = lines.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            messages.find(|message| message["type"] == kind && message["re"] == re)
        })
    }
}

#[test]
fn a_slave_of_ten_lines_of_shell_is_a_slave() {
    let cluster = Cluster::start();
    let slave = ShellSlave::start(&cluster, "shell-1");
    cluster.wait_until_online("shell-1");
    let info = slave.wait_for("master_info", "info-1");
    assert!(info["payload"]["cpu_cores"].is_u64() && info["payload"]["hostname"].is_string(), "{info}");
    wait_until("details and vitals are known", || {
        let view = cluster.view("shell-1");
        view["details"]["hostname"].is_string() && view["vitals"]["uptime"].is_u64()
    });

    let request = r#"{"type":"info","payload":"slave_details","id":"list"}"#;
    publish(&cluster, &["-t", "rpicluster/from/shell-1/info", "-m", request]);
    let list = slave.wait_for("slave_details", "list");
    assert_eq!(list["payload"]["shell-1"]["state"], "online");
    assert_eq!((&list["part"], &list["last"]), (&json!(0), &json!(true)));
}

#[test]
fn nonsense_is_answered_with_bad_message() {
    let cluster = Cluster::start();
    let slave = ShellSlave::start(&cluster, "shell-1");
    cluster.wait_until_online("shell-1");
    slave.wait_for("master_info", "info-1");
    for (id, leaf, payload) in [
        ("unknown-info", "info", r#"{"type":"info","payload":"weather","id":"unknown-info"}"#),
        ("unknown-type", "info", r#"{"type":"sing","payload":"loud","id":"unknown-type"}"#),
        ("wrong-payload", "vitals", r#"{"type":"vitals","payload":7,"id":"wrong-payload"}"#),
        ("wrong-place", "vitals", r#"{"type":"info","payload":"time","id":"wrong-place"}"#),
    ] {
        publish(&cluster, &["-t", &format!("rpicluster/from/shell-1/{leaf}"), "-m", payload]);
        let complaint = slave.wait_for("bad_message", id);
        let answered = Instant::now();
        if id == "unknown-info" {
            assert_eq!(complaint["payload"], "unknown");
        } else {
            assert!(complaint["payload"]["error"].is_string(), "{complaint}");
        }
        // There is one complaint a second: the next must not fall into the same one.
        wait_until("a second has passed", || answered.elapsed() > BAD_MESSAGE_INTERVAL);
    }
    assert_eq!(cluster.counter("shell-1", "bad_messages"), 4);
    assert!(cluster.is_online("shell-1"));
}

#[test]
fn a_request_with_mqtt_5_is_answered_where_and_as_it_wants() {
    let cluster = Cluster::start();
    let mut request = tool_at(cluster.place(), cluster.door_of("asker"), "mosquitto_rr");
    request.args(["-V", "5", "-i", "asker", "-q", "1", "-W", &PATIENCE.as_secs().to_string(), "-F", "%t %D %p"]);
    request.args(["-t", "rpicluster/from/asker/info", "-e", "rpicluster/to/asker/answers/7"]);
    request.args(["-D", "publish", "correlation-data", "order-66"]);
    request.args(["-m", r#"{"type":"info","payload":"time","id":"t1"}"#]);
    let answered = run(request);
    assert_eq!(answered.code, Some(0), "{answered:?}");
    let (topic, rest) = answered.out.trim().split_once(' ').unwrap();
    let (correlation, payload) = rest.split_once(' ').unwrap();
    assert_eq!((topic, correlation), ("rpicluster/to/asker/answers/7", "order-66"));
    let answer: Value = serde_json::from_str(payload).unwrap();
    assert_eq!((&answer["type"], &answer["re"]), (&json!("master_time"), &json!("t1")));
    assert!(answer["payload"]["unix_ms"].as_u64().unwrap() > 1_600_000_000_000, "{answer}");
}

#[test]
fn an_answer_never_goes_to_somebody_elses_topic() {
    let cluster = Cluster::start();
    let elsewhere = "rpicluster/to/victim/reply";
    let mut victim = Client::connect(cluster.mqtt, "victim", None).unwrap();
    victim.subscribe("rpicluster/to/victim/#").unwrap();
    let own = Subscriber::start(&cluster, &["-t", "rpicluster/to/asker/#", "-v"]);
    publish(
        &cluster,
        &[
            "-V",
            "5",
            "-t",
            "rpicluster/from/asker/info",
            "-D",
            "publish",
            "response-topic",
            elsewhere,
            "-m",
            r#"{"type":"info","payload":"time","id":"t1"}"#,
        ],
    );
    own.wait_for(&["rpicluster/to/asker/reply", "master_time", r#""re":"t1""#]);
    // The answer has gone; an announcement to the asker proves nothing about the victim, so ask in its name.
    publish(&cluster, &["-t", "rpicluster/from/victim/info", "-m", r#"{"type":"info","payload":"time","id":"mine"}"#]);
    loop {
        let message = victim.next(PATIENCE).unwrap().expect("the victim's own answer");
        let json: Value = serde_json::from_slice(&message.payload).unwrap();
        assert_ne!(json["re"], "t1");
        if json["re"] == "mine" {
            break;
        }
    }
}
