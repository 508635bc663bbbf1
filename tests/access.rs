use std::collections::BTreeSet;
use std::time::Instant;

use serde_json::{Value, json};

use crate::harness::mosquitto::tool_at;
use crate::harness::mqtt::{Client, Door};
use crate::harness::{Cluster, PATIENCE, run};

/// The topics on which everybody tries to publish, and whether retained; the slave that tries is `pi-a`.
pub(crate) const TOPICS: [(&str, bool); 7] = [
    ("rpicluster/from/pi-a/message", false),
    ("rpicluster/from/pi-b/message", false),
    ("rpicluster/from/pi-b/state", true),
    ("rpicluster/to/pi-a/command", false),
    ("rpicluster/to/pi-b/reply", true),
    ("rpicluster/master/state", true),
    ("lab/door", false),
];
const OWN: &[&str] = &["rpicluster/from/pi-a/message"];

/// The filters with which everybody tries to subscribe.
pub(crate) const FILTERS: [&str; 10] = [
    "rpicluster/to/pi-a/#",
    "rpicluster/master/state",
    "rpicluster/to/pi-b/#",
    "rpicluster/from/pi-a/#",
    "#",
    "+/to/pi-a/#",
    "rpicluster/+/pi-a/#",
    "$share/g/rpicluster/to/pi-a/#",
    "$SYS/#",
    "lab/#",
];
const OF_SLAVE: &[&str] = &["rpicluster/to/pi-a/#", "rpicluster/master/state"];

/// Somebody, and what documents say that he may do.
struct Row {
    name: &'static str,
    login: Option<(String, String)>,
    client_id: &'static str,
    /// The codes of CONNACK in MQTT 3.1.1 and 5, for those who are not let in at `local` and at `cluster`.
    refused: [Option<(u8, u8)>; 2],
    publishes: &'static [&'static str],
    /// `None` is everything but shared subscriptions.
    subscribes: Option<&'static [&'static str]>,
}

const WRONG: [Option<(u8, u8)>; 2] = [Some((4, 134)); 2];

fn rows(cluster: &Cluster) -> Vec<Row> {
    let secret = |id: &str| cluster.door_of(id).login.unwrap().1.to_owned();
    let account = |name: &str, role: &str, filters: &Value| {
        let body = json!({
            "name": name, "role": role, "password": "correct horse", "publish": filters, "subscribe": filters,
        });
        cluster.change("POST", "/api/v1/accounts", Some(&body));
        Some((name.to_owned(), "correct horse".to_owned()))
    };
    let (a, removed) = (secret("pi-a"), secret("pi-gone"));
    cluster.door_of("pi-b");
    cluster.change("DELETE", "/api/v1/slaves/pi-gone", None);
    let token = cluster.change("POST", "/api/v1/tokens", Some(&json!({})))["token"].as_str().unwrap().to_owned();
    let row = |name, login, client_id, refused, publishes, subscribes| Row {
        name,
        login,
        client_id,
        refused,
        publishes,
        subscribes,
    };
    let as_slave = |id: &str, password: &str| Some((id.to_owned(), password.to_owned()));
    vec![
        row("nobody", None, "nobody", [None, Some((5, 135))], &[], None),
        row("nobody with a slave's id", None, "pi-a", [Some((2, 133)), Some((5, 135))], &[], None),
        row("a wrong password", as_slave("pi-a", "wrong"), "pi-a", WRONG, &[], None),
        row("a token as password", as_slave("pi-a", &token), "pi-a", WRONG, &[], None),
        row("slave a", as_slave("pi-a", &a), "pi-a", [None; 2], OWN, Some(OF_SLAVE)),
        row("slave a as b", as_slave("pi-a", &a), "pi-b", [Some((2, 133)); 2], &[], None),
        row("b with a's secret", as_slave("pi-b", &a), "pi-b", WRONG, &[], None),
        // The master itself is in the same process: no door is open to its name.
        row("who claims to be the master", as_slave("master", "guessed"), "master", WRONG, &[], None),
        row("a removed slave", as_slave("pi-gone", &removed), "pi-gone", WRONG, &[], None),
        row("an observer", account("watcher", "observer", &json!([])), "w", [None; 2], &[], None),
        row(
            "a custom account",
            account("lab", "custom", &json!(["lab/#"])),
            "l",
            [None; 2],
            &["lab/door"],
            Some(&["lab/#"]),
        ),
        row(
            "an account with a slave's id",
            account("lab2", "custom", &json!(["#"])),
            "pi-a",
            [Some((2, 133)); 2],
            &[],
            None,
        ),
    ]
}

#[test]
fn everybody_may_do_what_the_documents_say_and_nothing_else() {
    let cluster = Cluster::start();
    let mut watcher = Client::connect(cluster.mqtt, "watcher", None).unwrap();
    watcher.subscribe("#").unwrap();
    let (mut cells, mut from_number) = (0, 0);
    for row in rows(&cluster) {
        for (listener, refused) in ["local", "cluster"].into_iter().zip(row.refused) {
            for version in ["311", "5"] {
                let v5 = version == "5";
                let who = format!("{} on {listener} with MQTT {version}", row.name);
                // An address of its own: refusals of guesses come later each time to one address.
                from_number += 1;
                let from = format!("127.99.0.{from_number}");
                let tool = |name: &str| {
                    let login = row.login.as_ref();
                    let login = login.map(|(user, password)| (leaked(user), leaked(password)));
                    let tls = listener == "cluster";
                    let address = if tls { cluster.mqtts } else { cluster.mqtt.address };
                    let mut command = tool_at(cluster.place(), Door { address, login }, name);
                    command.args(["-d", "-V", version, "-i", row.client_id, "-A", &from]);
                    if tls {
                        command.arg("--cafile").arg(cluster.master_folder().join("ca.pem"));
                    }
                    command
                };
                let code = |command| -> Option<u8> {
                    let answered = run(command);
                    let line = answered.out.lines().find_map(|line| line.split_once("received CONNACK ("));
                    let (code, _) = line.unwrap_or_else(|| panic!("{who}: {answered:?}")).1.split_once(')').unwrap();
                    (code != "0").then(|| code.parse().unwrap())
                };
                let connack = |will: Option<&str>| {
                    let mut command = tool("mosquitto_sub");
                    command.args(["-E", "-t", "rpicluster/master/state"]);
                    command.args(will.map(|topic| ["--will-topic", topic]).into_iter().flatten());
                    code(command)
                };
                cells += 1;
                let expected = refused.map(|(old, new)| if v5 { new } else { old });
                assert_eq!(connack(None), expected, "{who}: connect");
                if expected.is_some() {
                    continue;
                }
                for (topic, retain) in TOPICS {
                    let mut command = tool("mosquitto_pub");
                    command.args(["-q", "1", "-t", topic, "-m", &format!("by {who}")]);
                    if retain {
                        command.arg("-r");
                    }
                    run(command);
                    let denied = (!row.publishes.contains(&topic)).then_some(if v5 { 135 } else { 5 });
                    assert_eq!(connack(Some(topic)), denied, "{who}: a will on {topic}");
                    cells += 2;
                }
                let arrived = published(&cluster, &mut watcher, &who);
                assert_eq!(arrived, row.publishes.iter().map(|topic| (*topic).to_owned()).collect(), "{who}: publish");

                let mut command = tool("mosquitto_sub");
                command.args(["-E"]).args(FILTERS.iter().flat_map(|filter| ["-t", filter]));
                let answered = run(command);
                let line = answered.out.lines().find_map(|line| line.split_once("Subscribed (mid: 1): "));
                let granted =
                    line.unwrap_or_else(|| panic!("{who}: {answered:?}")).1.split(", ").map(|code| code == "0");
                for (filter, granted) in FILTERS.iter().zip(granted) {
                    let may = row.subscribes.map_or(!filter.starts_with("$share"), |may| may.contains(filter));
                    assert_eq!(granted, may, "{who}: subscribe {filter}: {answered:?}");
                    cells += 1;
                }
            }
        }
    }
    assert!(cells > 250, "{cells}");
    let clients = cluster.get("/api/v1/broker/clients");
    assert!(clients.as_array().unwrap().iter().any(|client| client["client_id"] == "watcher"), "{clients}");
    assert!(cluster.broker("publishes_refused") > 0 && cluster.broker("subscriptions_refused") > 0);
    assert_eq!(cluster.broker("connection_panics"), 0);
}

#[test]
fn observers_without_a_name_do_not_see_what_may_be_secret() {
    let cluster = Cluster::start();
    let mut nobody = Client::connect(cluster.mqtt.anonymous(), "nobody", None).unwrap();
    nobody.subscribe("#").unwrap();
    nobody.subscribe("rpicluster/to/pi/command").unwrap();
    let mut insider = Client::connect(cluster.mqtt, "insider", None).unwrap();
    for topic in ["to/pi/command", "from/pi/task", "from/pi/output", "to/pi/reply"] {
        insider.publish(&format!("rpicluster/{topic}"), b"secret?", true).unwrap();
    }
    let mut late = Client::connect(cluster.mqtt.anonymous(), "late", None).unwrap();
    late.subscribe("rpicluster/#").unwrap();
    for client in [&mut nobody, &mut late] {
        loop {
            let message = client.next(PATIENCE).unwrap().expect("the reply");
            if message.payload == b"secret?" {
                assert_eq!(message.topic, "rpicluster/to/pi/reply");
                break;
            }
        }
    }
}

/// The topics of what arrived from `who`, who has published all that he will.
fn published(cluster: &Cluster, watcher: &mut Client, who: &str) -> BTreeSet<String> {
    let mut insider = Client::connect(cluster.mqtt, "end", None).unwrap();
    insider.publish("the/end", who.as_bytes(), false).unwrap();
    let (mut topics, started) = (BTreeSet::new(), Instant::now());
    loop {
        let message = watcher.next(PATIENCE.saturating_sub(started.elapsed())).unwrap().expect("the end");
        if message.topic == "the/end" && message.payload == who.as_bytes() {
            return topics;
        }
        if message.payload == format!("by {who}").as_bytes() {
            topics.insert(message.topic);
        }
    }
}

fn leaked(text: &str) -> &'static str {
    Box::leak(text.into())
}
