//! Functions served by processes that stay: one line of JSON in for each task, one line out.
//!
//! In: `{"id": …, "input": …}`. Out: `{"id": …, "result": …}` or `{"id": …, "error": "…"}` ends the task; before that,
//! `{"id": …, "event": …}` and lines that are none of these are its output. A worker has one task at a time. It is ended
//! with a task that is canceled or takes too long, and another is started when one is needed.

use std::collections::VecDeque;

use rpicluster_protocol::AttemptKey;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::wire::{Call, name};

/// The longest line of a worker; what goes on longer without an end is output.
const LINE_BYTES_MAX: usize = 128 * 1024;
/// The longest result, which has to fit into a message.
pub(crate) const RESULT_BYTES_MAX: usize = 32 * 1024;

/// What a process is that serves a function.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) function: String,
    pub(crate) is_busy: bool,
    /// The beginning of a line.
    partial: Vec<u8>,
}

/// A function and who waits for it.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    pub(crate) workers: u32,
    pub(crate) waiting: VecDeque<Call>,
}

/// What a line means.
#[derive(Debug, PartialEq)]
pub(crate) enum Said {
    Output(Vec<u8>),
    Answer(Result<Value, String>),
}

#[derive(Serialize)]
struct Question<'a> {
    id: &'a str,
    input: &'a Value,
}

#[derive(Deserialize)]
struct Line {
    id: String,
    #[serde(default, deserialize_with = "present")]
    result: Option<Value>,
    error: Option<String>,
    event: Option<Value>,
}

/// `null` is a result too.
fn present<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(deserializer).map(Some)
}

/// The line that hands over a task.
pub(crate) fn question(call: &Call) -> Vec<u8> {
    let question = Question { id: &name(&call.bounds.key), input: &call.input };
    // A value came as JSON, and can be written as JSON.
    let mut line = serde_json::to_vec(&question).unwrap_or_default();
    line.push(b'\n');
    line
}

impl Worker {
    pub(crate) fn new(function: String) -> Worker {
        Worker { function, is_busy: false, partial: Vec::new() }
    }

    /// Takes what the worker of the task `key` has written.
    pub(crate) fn hear(&mut self, key: &AttemptKey, bytes: &[u8]) -> Vec<Said> {
        let mut said = Vec::new();
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.partial.extend_from_slice(piece);
            if piece.ends_with(b"\n") {
                said.push(meaning(key, std::mem::take(&mut self.partial)));
            } else if self.partial.len() > LINE_BYTES_MAX {
                said.push(Said::Output(std::mem::take(&mut self.partial)));
            }
        }
        said
    }
}

fn meaning(key: &AttemptKey, line: Vec<u8>) -> Said {
    match serde_json::from_slice::<Line>(&line) {
        Ok(Line { id, .. }) if id != name(key) => Said::Output(line),
        Ok(Line { error: Some(error), .. }) => Said::Answer(Err(error)),
        Ok(Line { result: Some(result), .. }) if line.len() > RESULT_BYTES_MAX => {
            drop(result);
            Said::Answer(Err(format!("its result is longer than {} KiB", RESULT_BYTES_MAX / 1024)))
        }
        Ok(Line { result: Some(result), .. }) => Said::Answer(Ok(result)),
        Ok(Line { event: Some(event), .. }) => Said::Output(format!("{event}\n").into_bytes()),
        _ => Said::Output(line),
    }
}

#[cfg(test)]
mod tests {
    use rpicluster_protocol::{Epoch, JobId, TaskId};
    use serde_json::json;

    use super::*;

    #[test]
    fn lines_are_answers_to_their_own_task_or_output() {
        let key = AttemptKey { task: TaskId { job: JobId(1), index: 2 }, attempt: 3, epoch: Epoch(4) };
        let id = name(&key);
        let mut worker = Worker::new("f".to_owned());
        let text = format!(
            "hello\n{{\"id\":\"{id}\",\"event\":[1]}}\n{{\"id\":\"other\",\"result\":1}}\n{{\"id\":\"{id}\",\"result\":null}}\n{{\"id\":\"{id}\",\"error\":\"no\"}}\nrest"
        );
        let said: Vec<Said> = text.as_bytes().chunks(7).flat_map(|chunk| worker.hear(&key, chunk)).collect();
        assert_eq!(
            said,
            [
                Said::Output(b"hello\n".to_vec()),
                Said::Output(b"[1]\n".to_vec()),
                Said::Output(b"{\"id\":\"other\",\"result\":1}\n".to_vec()),
                Said::Answer(Ok(json!(null))),
                Said::Answer(Err("no".to_owned())),
            ]
        );
        let long = format!("{{\"id\":\"{id}\",\"result\":\"{}\"}}\n", "x".repeat(RESULT_BYTES_MAX));
        let mut worker = Worker::new("f".to_owned());
        assert!(matches!(worker.hear(&key, long.as_bytes())[..], [Said::Answer(Err(_))]));
    }
}
