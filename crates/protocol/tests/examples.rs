//! Keeps `docs/protocol.md` true: every example on it is a message of the contract, on its topic.

use std::collections::BTreeSet;
use std::path::Path;

use rpicluster_protocol::{Topic, TopicRoot, parse_from_slave, parse_to_slave};

#[test]
fn every_example_of_the_page_is_valid_and_every_type_has_one() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/protocol.md");
    let page = std::fs::read_to_string(page).expect("docs/protocol.md");
    let root = TopicRoot::default();
    let mut types = BTreeSet::new();
    for line in page.lines().filter(|line| line.starts_with("rpicluster/")) {
        let (topic, json) = line.split_once(' ').expect("a topic and a message");
        let parsed = match root.parse(topic).expect(topic) {
            Topic::From(_, leaf) => parse_from_slave(leaf, json.as_bytes()).map(drop),
            Topic::To(..) | Topic::MasterState => parse_to_slave(json.as_bytes()).map(drop),
        };
        assert!(parsed.is_ok(), "{line}: {parsed:?}");
        let message: serde_json::Value = serde_json::from_str(json).expect(json);
        types.insert(message["type"].as_str().expect("a type").to_owned());
    }
    let known = ["announce", "bad_message", "computer_details", "info", "master_info", "master_time", "message"];
    let known = known.into_iter().chain(["slave_details", "state", "vitals"]);
    let tasks = ["lease_ack", "task_ack", "task_cancel", "task_finished", "task_journal", "task_lease", "task_offer"];
    let known = known.chain(tasks).chain(["task_output", "task_rejected", "task_started"]);
    assert_eq!(types, known.map(str::to_owned).collect());
}
