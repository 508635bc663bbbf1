use proptest::prelude::*;

use super::*;

fn id(text: &str) -> SlaveId {
    text.parse().unwrap()
}

fn pi(labels: &[(&str, &str)]) -> Details {
    Details {
        hostname: Some("Pi-7".to_owned()),
        ram: Some(4 * 1024 * 1024 * 1024),
        cpu_cores: Some(4),
        arch: Some("aarch64".to_owned()),
        kernel: Some("6.1.21-v8+".to_owned()),
        model: Some("Raspberry Pi 4 Model B Rev 1.4".to_owned()),
        addresses: vec!["10.0.0.7".to_owned(), "fd00::7".to_owned()],
        labels: labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        ..Details::default()
    }
}

fn matches(target: &str, slave: &str) -> bool {
    let target = Target::parse(target).unwrap_or_else(|error| panic!("{error}"));
    target.matches(&id(slave), &pi(&[("role", "worker"), ("rack", "3"), ("os", "mine")]))
}

#[test]
fn ids_globs_and_ranges_mean_what_they_say() {
    for (target, meant, others) in [
        ("all", &["pi", "a-1"][..], &[][..]),
        ("pi-1", &["pi-1"], &["pi-2", "pi-11"]),
        ("pi-*", &["pi-1", "pi-2-b"], &["pi", "xpi-1"]),
        ("pi-?", &["pi-1"], &["pi-12", "pi"]),
        ("*-b*", &["pi-b", "a-b-c"], &["pi", "b"]),
        ("pi[1-9,12]", &["pi1", "pi9", "pi12"], &["pi0", "pi10", "pi01", "pi"]),
        ("pi[08-10]", &["pi08", "pi09", "pi10"], &["pi8", "pi11", "pi010"]),
        ("r[1-2]-pi[1-2]*", &["r1-pi2", "r2-pi1x"], &["r3-pi1", "r1-pi3"]),
        ("pi1, pi2 or pi3", &["pi1", "pi2", "pi3"], &["pi4"]),
        ("pi* and not pi[1-3]", &["pi4", "pi"], &["pi1", "x"]),
        ("not pi1 and not pi2", &["pi3"], &["pi1", "pi2"]),
        ("(pi1 or pi2) and not (pi2 or pi3)", &["pi1"], &["pi2", "pi3"]),
        ("pi1 or pi2 and pi3", &["pi1"], &["pi2", "pi3"]),
        ("not not pi1", &["pi1"], &["pi2"]),
    ] {
        assert!(meant.iter().all(|slave| matches(target, slave)), "{target}");
        assert!(!others.iter().any(|slave| matches(target, slave)), "{target}");
    }
}

#[test]
fn labels_and_facts_are_compared() {
    for target in [
        "role=worker",
        "role==worker",
        "role=w*",
        "role='WORKER'",
        "role!=head",
        "floor!=1",
        "rack>=3",
        "rack<10",
        "arch=aarch64",
        "ram>=2G",
        "ram>3.5G",
        "ram=4096M",
        "ram<=4G and cores=4",
        "swap!=1G",
        "kernel>=6.1",
        "kernel<6.1.22",
        "kernel>5.15.99",
        "model=*pi?4*",
        "model='Raspberry Pi 4 Model B Rev 1.4'",
        "hostname = pi-7",
        "address=10.0.*",
        "address=fd00::7",
        "label.os=mine",
        "role = worker and not(rack = 4)",
    ] {
        assert!(matches(target, "pi-7"), "{target}");
    }
    for target in [
        "role=head",
        "role!=worker",
        "role='w*'",
        "floor=1",
        "floor<1",
        "role>1",
        "rack>3",
        "ram>4G",
        "ram<4G",
        "swap>0",
        "os=mine",
        "kernel>6.1.21",
        "address!=fd00::7",
        "worker=role",
    ] {
        assert!(!matches(target, "pi-7"), "{target}");
    }
}

#[test]
fn an_error_points_at_its_place_and_says_what_to_do() {
    for (target, at, words) in [
        ("", 0, "is missing"),
        ("   ", 3, "is missing"),
        ("pi1 and", 7, "is missing"),
        ("pi1 pi2", 4, "\"and\", \"or\""),
        ("and pi1", 0, "is expected before \"and\""),
        ("(pi1 or pi2", 0, "never closed"),
        ("pi1)", 3, "closes nothing"),
        ("(pi1 pi2)", 5, "')' is expected"),
        ("pi1 or Pi2", 7, "lower case"),
        ("pi_1", 2, "is in no id"),
        ("pi[1-", 2, "never closed"),
        ("pi[1-9", 2, "never closed"),
        ("pi[]", 3, "is no number"),
        ("pi[1,x]", 5, "is no number"),
        ("pi[1,9-3]", 5, "is empty"),
        ("pi[01-100]", 3, "as many digits"),
        ("role=", 5, "a value is missing"),
        ("role= and pi1", 10, "\"and\", \"or\""),
        ("ärger=1 and role>x", 17, "compares numbers"),
        ("ram>=2X", 5, "is no amount"),
        ("ram>=", 5, "a value is missing"),
        ("role!", 4, "means nothing"),
        ("role='a", 5, "never closed"),
        ("'pi1'", 0, "an id needs none"),
        ("label.=1", 0, "name is missing"),
        ("=1", 0, "is expected before"),
    ] {
        let error = Target::parse(target).expect_err(target);
        assert_eq!(error.at, at, "{error}");
        assert!(error.problem.contains(words), "{error}");
        assert!(error.to_string().contains(&format!("at character {}", at + 1)), "{error}");
    }
}

#[test]
fn what_is_too_long_or_too_deep_is_refused() {
    let deep = |depth: usize| Target::parse(&format!("{}pi{}", "(".repeat(depth), ")".repeat(depth)));
    assert!(deep(TARGET_DEPTH_MAX).is_ok());
    assert_eq!(deep(TARGET_DEPTH_MAX + 1).unwrap_err().at, TARGET_DEPTH_MAX);
    assert!(Target::parse(&"not ".repeat(2000)).is_err());
    assert!(Target::parse(&"a,".repeat(TARGET_BYTES_MAX)).unwrap_err().problem.contains("longer than"));
    assert!(Target::parse(&"a".repeat(64)).unwrap_err().problem.contains("at most 63"));
}

#[test]
fn ids_in_full_are_told() {
    let target = Target::parse("pi-1 or (pi-2 and role=x), pi* or not pi-3 or pi[1]").unwrap();
    assert_eq!(target.names(), ["pi-1", "pi-2"]);
}

/// A target as a tree, with what it means by a second way.
#[derive(Debug, Clone)]
enum Model {
    All,
    Number(u8),
    Rack(u8),
    Not(Box<Model>),
    And(Box<Model>, Box<Model>),
    Or(Box<Model>, Box<Model>),
}

impl Model {
    fn text(&self) -> String {
        match self {
            Model::All => "all".to_owned(),
            Model::Number(number) => format!("pi{number}"),
            Model::Rack(rack) => format!("rack >={rack}"),
            Model::Not(one) => format!("not({})", one.text()),
            Model::And(one, other) => format!("({})and({})", one.text(), other.text()),
            Model::Or(one, other) => format!("(( {}) , {})", one.text(), other.text()),
        }
    }

    fn means(&self, number: u8, rack: u8) -> bool {
        match self {
            Model::All => true,
            Model::Number(wanted) => *wanted == number,
            Model::Rack(least) => rack >= *least,
            Model::Not(one) => !one.means(number, rack),
            Model::And(one, other) => one.means(number, rack) && other.means(number, rack),
            Model::Or(one, other) => one.means(number, rack) || other.means(number, rack),
        }
    }
}

fn model() -> impl Strategy<Value = Model> {
    let leaf = prop_oneof![Just(Model::All), (0..4_u8).prop_map(Model::Number), (0..4_u8).prop_map(Model::Rack)];
    leaf.prop_recursive(5, 32, 2, |inner| {
        prop_oneof![
            inner.clone().prop_map(|one| Model::Not(Box::new(one))),
            (inner.clone(), inner.clone()).prop_map(|(one, other)| Model::And(Box::new(one), Box::new(other))),
            (inner.clone(), inner).prop_map(|(one, other)| Model::Or(Box::new(one), Box::new(other))),
        ]
    })
}

/// The textbook's way to match, which takes for ever on hostile patterns.
fn naive(pattern: &[u8], text: &[u8]) -> bool {
    match (pattern, text) {
        ([], _) => text.is_empty(),
        ([b'*', rest @ ..], _) => naive(rest, text) || (!text.is_empty() && naive(pattern, &text[1..])),
        ([b'?', rest @ ..], [_, after @ ..]) => naive(rest, after),
        ([one, rest @ ..], [other, after @ ..]) => one == other && naive(rest, after),
        _ => false,
    }
}

proptest! {
    #[test]
    fn any_tree_means_the_same_once_it_was_written_and_read(model in model(), number in 0..4_u8, rack in 0..4_u8) {
        let target = Target::parse(&model.text()).map_err(|error| TestCaseError::fail(error.to_string()))?;
        let details = pi(&[("rack", &rack.to_string())]);
        prop_assert_eq!(target.matches(&id(&format!("pi{number}")), &details), model.means(number, rack));
    }

    #[test]
    fn nothing_that_is_typed_panics(text in r#"[a-c0-2 =<>!()\[\],*?"'äA-]{0,24}|(and|or|not|all|ram|role|=|>|pi[1-2]| |\(|\)|2G){0,12}|\PC{0,24}"#) {
        match Target::parse(&text) {
            Ok(target) => drop(target.matches(&id("pi-1"), &pi(&[]))),
            Err(error) => prop_assert!(error.at <= text.chars().count(), "{}", error),
        }
    }

    #[test]
    fn globs_match_as_the_textbook_says(pattern in "[ab*?]{1,8}", text in "[ab]{1,8}") {
        let target = Target::parse(&pattern).map_err(|error| TestCaseError::fail(error.to_string()))?;
        prop_assert_eq!(target.matches(&id(&text), &pi(&[])), naive(pattern.as_bytes(), text.as_bytes()));
    }

    #[test]
    fn ranges_hold_what_lies_in_them(from in 0..200_u32, length in 0..200_u32, number in 0..400_u32) {
        let target = Target::parse(&format!("pi[{from}-{}]", from + length)).unwrap();
        let is_within = (from..=from + length).contains(&number);
        prop_assert_eq!(target.matches(&id(&format!("pi{number}")), &pi(&[])), is_within);
    }
}
