//! A job as it stands in a file: `examples/job.toml` shows every key.

use std::collections::BTreeMap;
use std::time::Duration;

use rpicluster_protocol::limits::OUTPUT_LIMIT;
use rpicluster_protocol::{Action, JobRequest, Share, StepRequest, TaskSpec, Work};
use serde::{Deserialize, Deserializer};

use crate::commands::slaves::milliseconds;

/// Runs a script that names no interpreter.
const SHELL: &str = "/bin/sh";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct JobFile {
    name: Option<String>,
    steps: Vec<Step>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Step {
    name: Option<String>,
    on: String,
    run: Option<Vec<String>>,
    script: Option<String>,
    interpreter: Option<Vec<String>>,
    arguments: Option<Vec<String>>,
    action: Option<Action>,
    function: Option<String>,
    input: Option<serde_json::Value>,
    inputs: Option<Vec<String>>,
    #[serde(default)]
    after: Vec<String>,
    #[serde(default, deserialize_with = "duration")]
    timeout: Option<Duration>,
    #[serde(default)]
    retries: u32,
    #[serde(default)]
    idempotent: bool,
    batch: Option<Share>,
    max_failures: Option<Share>,
    #[serde(default, deserialize_with = "duration")]
    wait: Option<Duration>,
    #[serde(default)]
    env: BTreeMap<String, String>,
    cwd: Option<String>,
    stdin: Option<String>,
    run_as: Option<String>,
    output_limit: Option<u64>,
}

/// The job in a text.
///
/// # Errors
/// Says what is wrong, and in which line or step.
pub(super) fn parse(text: &str) -> Result<JobRequest, String> {
    let file: JobFile = toml::from_str(text).map_err(|error| error.to_string())?;
    if file.steps.is_empty() {
        return Err("there is no [[steps]]".to_owned());
    }
    let step = |(number, step): (usize, Step)| {
        let name = step.name.as_ref().map(|name| format!(" ({name:?})")).unwrap_or_default();
        request(step).map_err(|problem| format!("step {}{name}: {problem}", number + 1))
    };
    let steps = file.steps.into_iter().enumerate().map(step).collect::<Result<_, String>>()?;
    Ok(JobRequest { name: file.name, steps, dry_run: false })
}

fn request(mut step: Step) -> Result<StepRequest, String> {
    let work = work(&mut step)?;
    let spec = TaskSpec {
        work,
        env: step.env,
        cwd: step.cwd,
        stdin: step.stdin,
        run_as: step.run_as,
        timeout_ms: step.timeout.map(milliseconds),
        output_limit: step.output_limit.unwrap_or(OUTPUT_LIMIT),
    };
    Ok(StepRequest {
        name: step.name,
        on: step.on,
        spec,
        inputs: step.inputs,
        retries: step.retries,
        idempotent: step.idempotent,
        wait_ms: step.wait.map(milliseconds),
        batch: step.batch,
        max_failures: step.max_failures,
        after: step.after,
    })
}

/// What a step does: it says so in one way, without what belongs to another.
fn work(step: &mut Step) -> Result<Work, String> {
    let work = match (step.run.take(), step.script.take(), step.action, step.function.take()) {
        (Some(argv), None, None, None) if argv.is_empty() => return Err("run names no command".to_owned()),
        (Some(argv), None, None, None) => Work::Exec { argv },
        (None, Some(script), None, None) => Work::Script {
            interpreter: step.interpreter.take().unwrap_or_else(|| vec![SHELL.to_owned()]),
            script,
            arguments: step.arguments.take().unwrap_or_default(),
        },
        (None, None, Some(action), None) => Work::Action { action },
        (None, None, None, Some(function)) => Work::Function { function, input: step.input.take().unwrap_or_default() },
        _ => return Err("use one of run, script, action and function".to_owned()),
    };
    if step.interpreter.is_some() || step.arguments.is_some() {
        return Err("interpreter and arguments belong to a script".to_owned());
    }
    if step.input.is_some() {
        return Err("input belongs to a function; a queue is called inputs".to_owned());
    }
    Ok(work)
}

fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    let text = String::deserialize(deserializer)?;
    humantime::parse_duration(&text).map(Some).map_err(|error| {
        serde::de::Error::custom(format_args!("{text:?} is no duration ({error}): write 30s, 5m or 1h"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const EXAMPLE: &str = include_str!("../../../../../examples/job.toml");

    #[test]
    fn the_example_is_a_job_and_shows_every_key() {
        let request = parse(EXAMPLE).unwrap();
        assert!(request.steps.len() > 2, "{request:?}");
        let fields = include_str!("file.rs").split_once("struct Step {").unwrap().1.split_once("\n}").unwrap().0;
        let keys = fields.lines().filter_map(|line| line.trim().split_once(": ")).map(|(key, _)| key);
        for key in keys.filter(|key| !key.starts_with('#')) {
            assert!(EXAMPLE.contains(&format!("{key} = ")), "examples/job.toml does not show {key}");
        }
    }

    #[test]
    fn a_file_says_what_http_says() {
        let text = r#"
            name = "weekly"
            [[steps]]
            name = "a"
            on = "role=worker"
            run = ["convert", "{}"]
            inputs = ["x", "y"]
            timeout = "5m"
            wait = "1h"
            retries = 2
            idempotent = true
            batch = "25%"
            max_failures = 3
            env = { A = "b" }
            [[steps]]
            on = "all"
            script = "echo done"
            after = ["a"]
            [[steps]]
            on = "all"
            function = "resize"
            input = { width = 3 }
            [[steps]]
            on = "all"
            action = "os-upgrade"
        "#;
        let expected = json!({
            "name": "weekly",
            "steps": [
                {"name": "a", "on": "role=worker", "kind": "exec", "argv": ["convert", "{}"], "inputs": ["x", "y"],
                 "timeout_ms": 300_000, "wait_ms": 3_600_000, "retries": 2, "idempotent": true, "batch": "25%",
                 "max_failures": 3, "env": {"A": "b"}},
                {"on": "all", "kind": "script", "interpreter": ["/bin/sh"], "script": "echo done", "after": ["a"]},
                {"on": "all", "kind": "function", "function": "resize", "input": {"width": 3}},
                {"on": "all", "kind": "action", "action": "os-upgrade"},
            ],
        });
        assert_eq!(parse(text).unwrap(), serde_json::from_value(expected).unwrap());
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line_or_step() {
        for (text, parts) in [
            ("", &["steps"][..]),
            ("steps = []", &["[[steps]]"]),
            ("[[steps]]\non = 'all'\nrun = ['x']\nretrys = 2", &["line 4", "retrys", "retries"]),
            ("nam = 'x'\n[[steps]]\non = 'all'", &["line 1", "nam"]),
            ("[[steps]]\nrun = ['x']", &["on"]),
            ("[[steps]]\non = 'all'\nrun = ['x']\ntimeout = 'soon'", &["line 4", "soon", "5m"]),
            ("[[steps]]\non = 'all'\nrun = ['x']\nbatch = '0%'", &["line 4", "0%"]),
            ("[[steps]]\non = 'all'\naction = 'dance'", &["line 3", "dance", "reboot"]),
            ("[[steps]]\non = 'all'", &["step 1", "run, script, action"]),
            ("[[steps]]\nname = 'b'\non = 'all'\nrun = ['x']\nscript = 'y'", &["step 1 (\"b\")", "one of"]),
            ("[[steps]]\non = 'all'\nrun = []", &["step 1", "no command"]),
            ("[[steps]]\non = 'all'\nrun = ['x']\ninterpreter = ['y']", &["interpreter"]),
            ("[[steps]]\non = 'all'\nrun = ['x']\ninput = 3", &["inputs"]),
            ("[[steps]", &["line 1"]),
        ] {
            let problem = parse(text).unwrap_err();
            assert!(parts.iter().all(|part| problem.contains(part)), "{text}: {problem}");
        }
    }
}
