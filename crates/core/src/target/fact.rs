//! Conditions on what a slave tells of itself.

use std::cmp::Ordering;

use rpicluster_protocol::Details;

use super::Problem;
use super::pattern::Pattern;
use super::word::Operator;

/// A label or fact, an operator and a value.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Condition {
    key: Key,
    operator: Operator,
    value: Value,
}

#[derive(Debug, Clone, PartialEq)]
enum Key {
    Amount(Amount),
    Text(Text),
    /// Any of them.
    Address,
    Label(String),
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Amount {
    Ram,
    Swap,
    Cores,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Text {
    Hostname,
    Cpu,
    Arch,
    Os,
    Kernel,
    Model,
    Serial,
    Agent,
}

#[derive(Debug, Clone, PartialEq)]
enum Value {
    Amount(f64),
    Pattern(Pattern),
    /// Numbers with dots between them, as in a version.
    Version(Vec<u64>),
}

/// What every slave tells. A label of the same name is meant by `label.NAME`.
const FACTS: &[(&str, Key)] = &[
    ("ram", Key::Amount(Amount::Ram)),
    ("swap", Key::Amount(Amount::Swap)),
    ("cores", Key::Amount(Amount::Cores)),
    ("hostname", Key::Text(Text::Hostname)),
    ("cpu", Key::Text(Text::Cpu)),
    ("arch", Key::Text(Text::Arch)),
    ("os", Key::Text(Text::Os)),
    ("kernel", Key::Text(Text::Kernel)),
    ("model", Key::Text(Text::Model)),
    ("serial", Key::Text(Text::Serial)),
    ("agent", Key::Text(Text::Agent)),
    ("address", Key::Address),
];

impl Condition {
    /// From a key and a value with the bytes at which they begin.
    pub(super) fn new(
        (key_at, name): (usize, &str),
        operator: Operator,
        (value_at, value): (usize, Pattern),
    ) -> Result<Condition, Problem> {
        let key = match (FACTS.iter().find(|(fact, _)| *fact == name), name.strip_prefix("label.")) {
            (Some((_, key)), _) => key.clone(),
            (None, Some("")) => return Err((key_at, "the label's name is missing after \"label.\"".to_owned())),
            (None, label) => Key::Label(label.unwrap_or(name).to_owned()),
        };
        let text = value.text();
        let is_order = !matches!(operator, Operator::Is | Operator::IsNot);
        let value = if let Key::Amount(_) = key {
            let amount = amount(text);
            Value::Amount(amount.ok_or_else(|| (value_at, format!("{text:?} is no amount: use one as in 512M or 2G")))?)
        } else if is_order {
            let version = version(text).filter(|_| text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.'));
            let problem = || format!("\"{}\" compares numbers, as in 6.1, and {text:?} is none", operator.as_str());
            Value::Version(version.ok_or_else(|| (value_at, problem()))?)
        } else {
            Value::Pattern(value)
        };
        Ok(Condition { key, operator, value })
    }

    pub(super) fn holds(&self, details: &Details) -> bool {
        match &self.key {
            Key::Amount(amount) => match (&self.value, amount.of(details)) {
                // Far beyond what a machine has, a float still tells amounts apart well enough.
                (Value::Amount(wanted), Some(amount)) => self.compares((amount as f64).partial_cmp(wanted)),
                _ => self.operator == Operator::IsNot,
            },
            Key::Text(text) => self.holds_for_any(text.of(details)),
            Key::Address => self.holds_for_any(details.addresses.iter().map(String::as_str)),
            Key::Label(name) => self.holds_for_any(details.labels.get(name).map(String::as_str)),
        }
    }

    fn holds_for_any<'a>(&self, texts: impl IntoIterator<Item = &'a str>) -> bool {
        let holds = texts.into_iter().any(|text| match &self.value {
            Value::Pattern(pattern) => pattern.matches(text),
            Value::Version(wanted) => version(text).is_some_and(|version| self.compares(Some(version.cmp(wanted)))),
            Value::Amount(_) => false,
        });
        holds != (self.operator == Operator::IsNot)
    }

    fn compares(&self, order: Option<Ordering>) -> bool {
        let Some(order) = order else { return false };
        match self.operator {
            Operator::Is => order.is_eq(),
            Operator::IsNot => order.is_ne(),
            Operator::Below => order.is_lt(),
            Operator::AtMost => order.is_le(),
            Operator::Above => order.is_gt(),
            Operator::AtLeast => order.is_ge(),
        }
    }
}

impl Amount {
    fn of(self, details: &Details) -> Option<u64> {
        match self {
            Amount::Ram => details.ram,
            Amount::Swap => details.swap,
            Amount::Cores => details.cpu_cores.map(u64::from),
        }
    }
}

impl Text {
    fn of(self, details: &Details) -> Option<&str> {
        let text = match self {
            Text::Hostname => &details.hostname,
            Text::Cpu => &details.cpu,
            Text::Arch => &details.arch,
            Text::Os => &details.os,
            Text::Kernel => &details.kernel,
            Text::Model => &details.model,
            Text::Serial => &details.serial,
            Text::Agent => &details.agent_version,
        };
        text.as_deref()
    }
}

/// `2G`: K, M, G and T are powers of 1024, as `free -h` shows them.
fn amount(text: &str) -> Option<f64> {
    let number = text.trim_end_matches(['k', 'K', 'm', 'M', 'g', 'G', 't', 'T']);
    let exponent = match &text[number.len()..] {
        "" => 0,
        "k" | "K" => 1,
        "m" | "M" => 2,
        "g" | "G" => 3,
        "t" | "T" => 4,
        _ => return None,
    };
    let is_number = number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let number: f64 = number.parse().ok().filter(|_| is_number)?;
    Some(number * 1024_f64.powi(exponent))
}

/// The numbers at the beginning of a version: `6.1.21-v8+` has 6, 1 and 21. Zeros at the end say nothing.
fn version(text: &str) -> Option<Vec<u64>> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let numbers = text[..end].trim_end_matches('.').split('.').map(str::parse).collect::<Result<Vec<u64>, _>>();
    let mut numbers = numbers.ok()?;
    while numbers.len() > 1 && numbers.last() == Some(&0) {
        numbers.pop();
    }
    Some(numbers)
}
