use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::limits::MESSAGE_BYTES_MAX;

fn from_slave(leaf: Upward, json: &str) -> Envelope<FromSlave> {
    parse_from_slave(leaf, json.as_bytes()).unwrap()
}

/// Every message's form on the wire, byte for byte: a change here is a change of the contract.
#[test]
fn golden_messages_of_slaves() {
    let state = State {
        state: Liveness::Online,
        session: "00000000000000ab".parse().unwrap(),
        protocol: Some(1),
        boot_id: Some("b".into()),
        version: Some("0.1.0".into()),
        slots: Some(4),
        ahead: Some(2),
        reason: None,
    };
    let will = State {
        state: Liveness::Offline,
        reason: Some("connection_lost".into()),
        slots: None,
        ahead: None,
        version: None,
        boot_id: None,
        ..state.clone()
    };
    let details = Details {
        hostname: Some("pi".into()),
        cpu_percent_used: Some(12.5),
        ram: Some(1024),
        cpu: Some("Cortex-A72".into()),
        cpu_cores: Some(4),
        labels: BTreeMap::from([("role".into(), "worker".into())]),
        ..Details::default()
    };
    let vitals = Vitals {
        cpu_percentage: Some(3.5),
        load: Some([0.5, 0.25, 0.0]),
        disks: vec![Disk { mount: "/".into(), total: 10, free: 5 }],
        networks: vec![Network { name: "eth0".into(), received: 1, transmitted: 2 }],
        throttled: Some(Throttled { now: vec![], since_boot: vec!["under_voltage".into()], source: "firmware".into() }),
        ..Vitals::default()
    };
    let golden = [
        (
            Envelope::new(FromSlave::State(state)),
            r#"{"type":"state","payload":{"state":"online","session":"00000000000000ab","protocol":1,"boot_id":"b","version":"0.1.0","slots":4,"ahead":2}}"#,
        ),
        (
            Envelope::new(FromSlave::State(will)),
            r#"{"type":"state","payload":{"state":"offline","session":"00000000000000ab","protocol":1,"reason":"connection_lost"}}"#,
        ),
        (
            Envelope::new(FromSlave::ComputerDetails(Box::new(details))),
            r#"{"type":"computer_details","payload":{"hostname":"pi","cpu_percent_used":12.5,"ram":1024,"cpu":"Cortex-A72","cpu_cores":4,"labels":{"role":"worker"}}}"#,
        ),
        (
            Envelope::new(FromSlave::Vitals(Box::new(vitals))),
            r#"{"type":"vitals","payload":{"cpu_percentage":3.5,"load":[0.5,0.25,0.0],"disks":[{"mount":"/","total":10,"free":5}],"networks":[{"name":"eth0","received":1,"transmitted":2}],"throttled":{"now":[],"since_boot":["under_voltage"],"source":"firmware"}}}"#,
        ),
        (
            Envelope::new(FromSlave::Message("I am still alive, client: pi-7".into())),
            r#"{"type":"message","payload":"I am still alive, client: pi-7"}"#,
        ),
        (
            Envelope::new(FromSlave::Info(Info::ComputerDetails)).with_id("7".parse().unwrap()),
            r#"{"type":"info","payload":"computer_details","id":"7"}"#,
        ),
    ];
    for (envelope, json) in golden {
        assert_eq!(String::from_utf8(encode_from_slave(&envelope).unwrap()).unwrap(), json);
        assert_eq!(from_slave(envelope.message.leaf(), json), envelope);
    }
}

#[test]
fn golden_messages_of_the_master() {
    let re = Some("7".parse().unwrap());
    let slave = SlaveDetails {
        state: Liveness::Offline,
        since: Timestamp::from_unix_ms(1_500),
        reason: Some("stopped".into()),
        details: None,
        vitals: None,
    };
    let golden = [
        (
            Envelope::new(ToSlave::MasterInfo(Box::new(Details { ram: Some(1), ..Details::default() })))
                .answering(re.clone()),
            r#"{"type":"master_info","payload":{"ram":1},"re":"7"}"#,
        ),
        (
            Envelope {
                part: Some(Part { number: 1, last: true }),
                ..Envelope::new(ToSlave::SlaveDetails(BTreeMap::from([("a".parse().unwrap(), slave)]))).answering(re)
            },
            r#"{"type":"slave_details","payload":{"a":{"state":"offline","since":"1970-01-01T00:00:01.500Z","reason":"stopped"}},"re":"7","part":1,"last":true}"#,
        ),
        (Envelope::new(ToSlave::MasterTime { unix_ms: 5 }), r#"{"type":"master_time","payload":{"unix_ms":5}}"#),
        (Envelope::new(ToSlave::BadMessage(BadMessage::Unknown)), r#"{"type":"bad_message","payload":"unknown"}"#),
        (
            Envelope::new(ToSlave::BadMessage(BadMessage::Error("no".into()))),
            r#"{"type":"bad_message","payload":{"error":"no"}}"#,
        ),
        (Envelope::new(ToSlave::Announce), r#"{"type":"announce","payload":null}"#),
    ];
    for (envelope, json) in golden {
        assert_eq!(String::from_utf8(encode_to_slave(&envelope).unwrap()).unwrap(), json);
        assert_eq!(parse_to_slave(json.as_bytes()).unwrap(), envelope);
    }
}

#[test]
fn unknown_fields_are_ignored_and_payload_may_be_missing_where_it_says_nothing() {
    let envelope = from_slave(
        Upward::Vitals,
        r#"{"type":"vitals","payload":{"gpu":1,"uptime":9},"at":"2026-01-01T00:00:00Z","x":[]}"#,
    );
    assert_eq!(envelope.message, FromSlave::Vitals(Box::new(Vitals { uptime: Some(9), ..Vitals::default() })));
    assert_eq!(parse_to_slave(br#"{"type":"announce"}"#).unwrap().message, ToSlave::Announce);
}

#[test]
fn errors_say_what_and_where_and_keep_the_id() {
    let error = |leaf, json: &str| parse_from_slave(leaf, json.as_bytes()).unwrap_err();
    let nonsense = error(Upward::Info, "hello");
    assert!(nonsense.problem.contains("not an envelope"), "{nonsense}");
    let unknown = error(Upward::Info, r#"{"type":"dance","payload":1,"id":"q1"}"#);
    assert_eq!(unknown.re.unwrap().as_str(), "q1");
    assert_eq!(unknown.problem, r#"type "dance" is unknown"#);
    let wrong = error(Upward::Vitals, r#"{"type":"vitals","payload":{"uptime":"long"},"id":"q2"}"#);
    assert!(wrong.problem.starts_with("payload of vitals: "), "{wrong}");
    let misplaced = error(Upward::State, r#"{"type":"message","payload":"x"}"#);
    assert_eq!(misplaced.problem, r#"type "message" does not belong on this topic"#);
    let bad_id = error(Upward::Info, &format!(r#"{{"type":"info","payload":"time","id":"{}"}}"#, "x".repeat(65)));
    assert!(bad_id.re.is_none() && bad_id.problem.starts_with("field id"), "{bad_id}");
    let huge =
        error(Upward::Message, &format!(r#"{{"type":"message","payload":"{}"}}"#, "x".repeat(MESSAGE_BYTES_MAX)));
    assert!(huge.problem.contains("more than"), "{huge}");
    let deep = error(Upward::Info, &"[".repeat(40_000));
    assert!(deep.problem.len() < 400, "{deep}");
}

#[test]
fn a_message_that_is_too_long_is_not_encoded() {
    let envelope = Envelope::new(FromSlave::Message("x".repeat(MESSAGE_BYTES_MAX)));
    assert!(encode_from_slave(&envelope).unwrap_err().problem.contains("more than"));
}

proptest! {
    #[test]
    fn text_survives_the_wire(text in ".{0,200}", id in proptest::option::of("[!-~äß]{1,30}")) {
        let mut envelope = Envelope::new(FromSlave::Message(text));
        envelope.id = id.map(|id| id.parse().unwrap());
        let bytes = encode_from_slave(&envelope).unwrap();
        prop_assert_eq!(parse_from_slave(Upward::Message, &bytes).unwrap(), envelope);
    }

    #[test]
    fn no_bytes_make_the_parser_panic(bytes: Vec<u8>) {
        let _ = parse_from_slave(Upward::Info, &bytes);
        let _ = parse_to_slave(&bytes);
    }

    #[test]
    fn no_json_makes_the_parser_panic(kind in "state|computer_details|vitals|message|info|master_info|slave_details|master_time|bad_message|.*", payload in r#"\{?("[a-z_]{0,9}":)?(-?[0-9eE.]{0,30}|"[^"]{0,9}"|\[.{0,9}\]|null)\}?"#) {
        let json = format!(r#"{{"type":{},"payload":{payload}}}"#, serde_json::to_string(&kind).unwrap());
        for leaf in [Upward::State, Upward::Details, Upward::Vitals, Upward::Message, Upward::Info] {
            let _ = parse_from_slave(leaf, json.as_bytes());
        }
        let _ = parse_to_slave(json.as_bytes());
    }
}

#[test]
fn a_number_that_could_not_be_written_again_is_refused_by_name() {
    for field in [r#""cpu_temperature":1e39"#, r#""cpu_percentage":-1e39"#, r#""load":[0,1e39,0]"#] {
        let text = format!(r#"{{"type":"vitals","payload":{{{field}}}}}"#);
        let error = parse_from_slave(Upward::Vitals, text.as_bytes()).unwrap_err();
        assert!(error.problem.contains("vitals") && error.problem.contains("beyond all bounds"), "{error}");
    }
    let details = br#"{"type":"computer_details","payload":{"cpu_percent_used":1e39}}"#;
    assert!(parse_from_slave(Upward::Details, details).is_err());
    let least = br#"{"type":"vitals","payload":{"cpu_temperature":null,"load":[1e-46,-0.0,3e38]}}"#;
    assert!(parse_from_slave(Upward::Vitals, least).is_ok());
}

#[test]
fn a_moment_is_the_same_when_it_is_printed_and_read_again() {
    let fine: Timestamp = serde_json::from_str(r#""2026-11-24T00:00:00.123456789Z""#).unwrap();
    let again: Timestamp = serde_json::from_str(&serde_json::to_string(&fine).unwrap()).unwrap();
    assert_eq!((fine, fine.to_string().as_str()), (again, "2026-11-24T00:00:00.123Z"));
}
