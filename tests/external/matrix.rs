//! The matrix of `access.rs` on Debian's mosquitto with the rules that `rpicluster acl` prints.
//!
//! What holds is the same, what mosquitto answers is not: it lets anybody subscribe to anything and a will name any topic,
//! and looks at the rules when it delivers; a publication that is refused is acknowledged as if it was not in MQTT 3.1.1. So
//! this looks at effects: what arrives, and where. A removed slave is one whose account is removed. A client id that is not the user name is replaced by it.

use std::collections::BTreeSet;
use std::process::Command;

use rpicluster_broker::covers;

use crate::access::{FILTERS, TOPICS};
use crate::harness::external::ForeignBroker;
use crate::harness::mosquitto::tool_at;
use crate::harness::mqtt::{Client, Door};
use crate::harness::{PATIENCE, Place, Process, run, wait_until};

/// What is published to see who reads it.
const PROBES: [&str; 8] = [
    "rpicluster/to/pi-a/command",
    "rpicluster/to/pi-b/reply",
    "rpicluster/to/pi-b/command",
    "rpicluster/master/state",
    "rpicluster/from/pi-a/message",
    "rpicluster/from/pi-b/task",
    "rpicluster/from/pi-b/output",
    "lab/door",
];

/// Somebody, and what the rules say that he may do.
struct Row {
    name: &'static str,
    publishes: &'static [&'static str],
    reads: &'static [&'static str],
    /// A topic that he reads, for the end of a look.
    last: &'static str,
}

const ROWS: [Row; 3] = [
    Row {
        name: "pi-a",
        publishes: &["rpicluster/from/pi-a/message"],
        reads: &["rpicluster/to/pi-a/command", "rpicluster/master/state"],
        last: "rpicluster/to/pi-a/end",
    },
    Row {
        name: "observer",
        publishes: &[],
        reads: &["rpicluster/to/pi-b/reply", "rpicluster/master/state", "rpicluster/from/pi-a/message"],
        last: "rpicluster/to/pi-b/end",
    },
    Row {
        name: "master",
        publishes: &[
            "rpicluster/from/pi-b/state",
            "rpicluster/to/pi-a/command",
            "rpicluster/to/pi-b/reply",
            "rpicluster/master/state",
        ],
        reads: &[
            "rpicluster/master/state",
            "rpicluster/from/pi-a/message",
            "rpicluster/from/pi-b/task",
            "rpicluster/from/pi-b/output",
        ],
        last: "rpicluster/from/pi-a/end",
    },
];

fn tool(door: Door, name: &str, version: &str) -> Command {
    let mut command = tool_at(&Place::Here, door, name);
    command.args(["-d", "-V", version]);
    command
}

/// The code of the answer to CONNECT.
fn connack(door: Door, version: &str) -> String {
    let mut command = tool(door, "mosquitto_sub", version);
    command.args(["-E", "-t", "rpicluster/master/state"]);
    let answered = run(command);
    let line = answered.out.lines().find_map(|line| line.split_once("received CONNACK ("));
    line.unwrap_or_else(|| panic!("{answered:?}")).1.split_once(')').unwrap().0.to_owned()
}

#[test]
fn on_mosquitto_everybody_may_do_what_the_rules_say_and_nothing_else() {
    let broker = ForeignBroker::start(&["pi-a", "pi-b", "pi-gone"]);
    assert_eq!(connack(broker.door("pi-gone"), "5"), "0");
    broker.remove_account("pi-gone");
    wait_until("the account is gone", || connack(broker.door("pi-gone"), "5") != "0");
    let mut witness = Client::connect(broker.witness(), "witness", None).unwrap();
    witness.subscribe("#").unwrap();
    let mut other = Client::connect(broker.door("pi-b"), "pi-b", None).unwrap();
    for version in ["311", "5"] {
        let not_authorized = if version == "5" { "135" } else { "5" };
        let wrong = Door { login: Some(("pi-a", "a guess")), ..broker.witness() };
        for door in [wrong, broker.door("pi-gone"), broker.witness().anonymous()] {
            assert_eq!(connack(door, version), not_authorized, "{door:?} with MQTT {version}");
        }
        for row in &ROWS {
            let who = format!("{} with MQTT {version}", row.name);
            let door = broker.door(row.name);
            assert_eq!(connack(door, version), "0", "{who}");
            publishes(row, &who, door, version, &mut witness);
            leaves_wills(row, &who, door, version, &mut witness);
            reads(row, &who, door, version, &mut witness);
        }
    }
    // With the client id of another he is still himself, and the other's session goes on.
    let mut command = tool(broker.door("pi-a"), "mosquitto_sub", "311");
    command.args(["-i", "pi-b", "-E", "-t", "rpicluster/master/state"]);
    assert_eq!(run(command).code, Some(0));
    other.ping().unwrap();
}

fn publishes(row: &Row, who: &str, door: Door, version: &str, witness: &mut Client) {
    for (topic, retain) in TOPICS {
        let mut command = tool(door, "mosquitto_pub", version);
        command.args(["-q", "1", "-t", topic, "-m", &format!("by {who}")]).args(retain.then_some("-r"));
        run(command);
    }
    assert_eq!(heard(witness, &format!("by {who}")), set(row.publishes), "{who}: publish");
}

fn leaves_wills(row: &Row, who: &str, door: Door, version: &str, witness: &mut Client) {
    for (topic, _) in TOPICS {
        let mut command = tool(door, "mosquitto_sub", version);
        command.args(["-t", "rpicluster/master/state", "--will-topic", topic, "--will-retain"]);
        command.args(["--will-qos", "1", "--will-payload", &format!("will of {who}")]);
        let mut process = Process::start(who, command);
        wait_until("it is connected", || process.out().iter().any(|line| line.starts_with("Subscribed")));
        process.kill();
    }
    // A connection's end is noticed before a later connection is let in, under the same name too.
    assert_eq!(connack(door, version), "0");
    assert_eq!(heard(witness, &format!("will of {who}")), set(row.publishes), "{who}: will");
}

fn reads(row: &Row, who: &str, door: Door, version: &str, witness: &mut Client) {
    for filter in FILTERS {
        let mut command = tool(door, "mosquitto_sub", version);
        command.args(["-F", "got %t %p", "-t", filter, "-t", row.last]);
        let process = Process::start(who, command);
        wait_until("it is subscribed", || process.out().iter().any(|line| line.starts_with("Subscribed")));
        let payload = format!("{filter} for {who}");
        for topic in PROBES.iter().chain(&[row.last]) {
            witness.publish(topic, payload.as_bytes(), false).unwrap();
        }
        let got = || process.out().into_iter().filter_map(|line| Some(line.strip_prefix("got ")?.to_owned()));
        wait_until("it has read the last", || got().any(|line| line == format!("{} {payload}", row.last)));
        // Kept messages of others come too, of those that he may read.
        assert!(!got().any(|line| line.starts_with("$SYS")), "{who}: subscribe {filter}");
        let topics = got().filter_map(|line| Some(line.strip_suffix(&payload)?.trim_end().to_owned()));
        let read: BTreeSet<String> = topics.filter(|topic| topic != row.last).collect();
        // mosquitto shares subscriptions out, within what each may read.
        let plain = filter.strip_prefix("$share/g/").unwrap_or(filter);
        let may = row.reads.iter().copied().filter(|topic| covers(plain, topic));
        assert_eq!(read, set(&may.collect::<Vec<_>>()), "{who}: subscribe {filter}");
    }
}

/// The topics on which this was said.
fn heard(witness: &mut Client, payload: &str) -> BTreeSet<String> {
    let end = format!("the end of {payload}");
    witness.publish("the/end", end.as_bytes(), false).unwrap();
    let mut topics = BTreeSet::new();
    loop {
        let message = witness.next(PATIENCE).unwrap().expect("the end");
        if message.payload == end.as_bytes() {
            return topics;
        }
        if message.payload == payload.as_bytes() {
            topics.insert(message.topic);
        }
    }
}

fn set(topics: &[&str]) -> BTreeSet<String> {
    topics.iter().map(|topic| (*topic).to_owned()).collect()
}
