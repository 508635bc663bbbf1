//! Output that is shown only when its task has ended: kept here while there is room, else asked for again when its turn
//! comes.

use std::collections::HashMap;

use rpicluster_protocol::{JobId, Stream, TaskInfo, TaskOutput};

use super::logs::output_path;
use crate::exit::Failure;
use crate::http::MasterClient;

/// No more than this is kept.
const HELD_BYTES_MAX: usize = 64 * 1024 * 1024;

/// What tasks have written so far.
#[derive(Default)]
pub(super) struct Held {
    tasks: HashMap<u32, Parts>,
    bytes: usize,
}

/// What one task has written.
#[derive(Debug, Default, Clone, PartialEq, Eq, Hash)]
pub(super) struct Written {
    /// To standard output.
    pub(super) stdout: Vec<u8>,
    /// To standard error.
    pub(super) stderr: Vec<u8>,
}

#[derive(Default)]
struct Parts {
    attempt: u32,
    written: Written,
    /// There was no room: the master has all of it.
    incomplete: bool,
}

impl Held {
    /// Keeps a piece, as long as there is room.
    pub(super) fn push(&mut self, output: &TaskOutput) {
        self.push_within(output, HELD_BYTES_MAX);
    }

    fn push_within(&mut self, output: &TaskOutput, bytes_max: usize) {
        let parts = self.tasks.entry(output.key.task.index).or_default();
        if output.key.attempt > parts.attempt {
            self.bytes -= parts.written.size();
            *parts = Parts { attempt: output.key.attempt, ..Parts::default() };
        }
        if parts.incomplete {
            return;
        }
        if self.bytes + output.data.len() > bytes_max {
            self.bytes -= parts.written.size();
            parts.written = Written::default();
            parts.incomplete = true;
            return;
        }
        self.bytes += output.data.len();
        match output.stream {
            Stream::Stdout => parts.written.stdout.extend_from_slice(&output.data),
            Stream::Stderr => parts.written.stderr.extend_from_slice(&output.data),
        }
    }

    /// Hands out what a task has written in its last attempt, and forgets it.
    ///
    /// # Errors
    /// If it was not kept, and the master does not hand it out.
    pub(super) fn take(&mut self, client: &MasterClient, job: JobId, task: &TaskInfo) -> Result<Written, Failure> {
        let parts = self.tasks.remove(&task.task.index).unwrap_or_default();
        self.bytes -= parts.written.size();
        if !parts.incomplete {
            return Ok(if parts.attempt == task.attempt { parts.written } else { Written::default() });
        }
        let fetch = |stream| client.bytes(&output_path(job, task.task.index, stream, task.attempt));
        Ok(Written { stdout: fetch(Stream::Stdout)?, stderr: fetch(Stream::Stderr)? })
    }
}

impl Written {
    fn size(&self) -> usize {
        self.stdout.len() + self.stderr.len()
    }
}

#[cfg(test)]
mod tests {
    use super::super::view::tests::{output, task};
    use super::*;
    use crate::http::MasterUrl;
    use rpicluster_protocol::TaskState;

    #[test]
    fn the_last_attempt_is_handed_out_once() {
        let client = MasterClient::with(MasterUrl::default(), None, None);
        let mut held = Held::default();
        held.push(&output(0, 1, 0, "first"));
        held.push(&output(0, 2, 0, "sec"));
        held.push(&output(0, 2, 3, "ond"));
        let task = TaskInfo { attempt: 2, ..task(0, "pi-1", TaskState::Succeeded) };
        assert_eq!(held.take(&client, JobId(17), &task).unwrap().stdout, b"second");
        assert_eq!(held.take(&client, JobId(17), &task).unwrap(), Written::default());
        assert_eq!(held.bytes, 0);
    }

    #[test]
    fn what_does_not_fit_is_not_kept_and_the_others_are() {
        let mut held = Held::default();
        held.push_within(&output(0, 1, 0, "12345"), 10);
        held.push_within(&output(1, 1, 0, "123"), 10);
        held.push_within(&output(0, 1, 5, "67890"), 10);
        held.push_within(&output(0, 1, 10, "more"), 10);
        assert_eq!(held.bytes, 3);
        assert!(held.tasks[&0].incomplete && !held.tasks[&1].incomplete);
    }
}
