//! Filling in what differs from task to task: `{}` the input, `{#}` the task's number from 1, `{slave}` its slave.

use rpicluster_protocol::{SlaveId, TaskSpec, Work};
use serde_json::Value;

/// What is filled in.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Circumstances<'a> {
    /// The task's input; without one `{}` stays as it is.
    pub(crate) input: Option<&'a str>,
    /// Counts from 1 within the step.
    pub(crate) number: u32,
    /// Who runs it.
    pub(crate) slave: &'a SlaveId,
}

/// The spec of one task. A script's body is not touched: what differs, it finds among its arguments.
pub(crate) fn render(spec: &TaskSpec, with: Circumstances<'_>) -> TaskSpec {
    let text = |text: &String| with.text(text);
    let work = match &spec.work {
        Work::Exec { argv } => Work::Exec { argv: argv.iter().map(text).collect() },
        Work::Script { interpreter, script, arguments } => Work::Script {
            interpreter: interpreter.clone(),
            script: script.clone(),
            arguments: arguments.iter().map(text).collect(),
        },
        Work::Action { action } => Work::Action { action: *action },
        Work::Function { function, input } => Work::Function { function: function.clone(), input: with.value(input) },
    };
    TaskSpec {
        work,
        env: spec.env.iter().map(|(name, value)| (name.clone(), with.text(value))).collect(),
        cwd: spec.cwd.as_ref().map(text),
        stdin: spec.stdin.as_ref().map(text),
        run_as: spec.run_as.clone(),
        timeout_ms: spec.timeout_ms,
        output_limit: spec.output_limit,
    }
}

impl Circumstances<'_> {
    /// What was filled in is not looked at again: an input may hold braces.
    fn text(self, template: &str) -> String {
        let mut text = String::with_capacity(template.len());
        let mut rest = template;
        while let Some(at) = rest.find('{') {
            text.push_str(&rest[..at]);
            rest = &rest[at..];
            if let (Some(after), Some(input)) = (rest.strip_prefix("{}"), self.input) {
                text.push_str(input);
                rest = after;
            } else if let Some(after) = rest.strip_prefix("{#}") {
                text.push_str(&self.number.to_string());
                rest = after;
            } else if let Some(after) = rest.strip_prefix("{slave}") {
                text.push_str(self.slave.as_str());
                rest = after;
            } else {
                text.push('{');
                rest = &rest[1..];
            }
        }
        text.push_str(rest);
        text
    }

    /// In all texts within it; no input at all (`null`) becomes the task's input.
    fn value(self, template: &Value) -> Value {
        match template {
            Value::Null => self.input.map_or(Value::Null, Value::from),
            Value::String(text) => self.text(text).into(),
            Value::Array(all) => all.iter().map(|value| self.value(value)).collect(),
            Value::Object(all) => all.iter().map(|(name, value)| (name.clone(), self.value(value))).collect(),
            Value::Bool(_) | Value::Number(_) => template.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_is_filled_in_once() {
        let slave = "pi-1".parse().unwrap();
        let with = Circumstances { input: Some("{#}ä{"), number: 7, slave: &slave };
        assert_eq!(with.text("a{}b{#}c{slave}d{e}{"), "a{#}ä{b7cpi-1d{e}{");
        let without = Circumstances { input: None, ..with };
        assert_eq!(without.text("awk '{}' {#}"), "awk '{}' 7");
        assert_eq!(with.value(&Value::Null), Value::from("{#}ä{"));
        let nested = serde_json::json!({"a": ["{#}", 1, null], "{}": true});
        assert_eq!(without.value(&nested), serde_json::json!({"a": ["7", 1, null], "{}": true}));
    }
}
