//! What is known of a job: the events of its stream, without what was known before.

use std::collections::{BTreeMap, HashMap};

use rpicluster_protocol::{JobEvent, JobInfo, Stream, TaskInfo, TaskOutput};

/// A job as far as its events tell.
#[derive(Default)]
pub(super) struct View {
    job: Option<JobInfo>,
    tasks: BTreeMap<u32, TaskInfo>,
    /// How far the output of each task's newest attempt has come.
    received: HashMap<(u32, Stream), Received>,
}

#[derive(Clone, Copy, Default)]
struct Received {
    attempt: u32,
    next: u64,
}

/// What an event told that was not known.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Change {
    /// The job stands otherwise.
    Job,
    /// This task stands otherwise.
    Task(u32),
    /// A task has written something. It follows what came before, unless it says that there is a gap.
    Output(TaskOutput),
}

impl View {
    /// Takes an event; `None` if it tells nothing new.
    pub(super) fn apply(&mut self, event: JobEvent) -> Option<Change> {
        match event {
            JobEvent::Job(job) => {
                let changed = self.job.as_ref() != Some(&job);
                self.job = Some(job);
                changed.then_some(Change::Job)
            }
            JobEvent::Task(task) => {
                let index = task.task.index;
                let known = self.tasks.get(&index);
                if known.is_some_and(|known| known.attempt > task.attempt || *known == task) {
                    return None;
                }
                self.tasks.insert(index, task);
                Some(Change::Task(index))
            }
            JobEvent::Output(output) => self.output(output).map(Change::Output),
        }
    }

    fn output(&mut self, mut output: TaskOutput) -> Option<TaskOutput> {
        let received = self.received.entry((output.key.task.index, output.stream)).or_default();
        if output.key.attempt < received.attempt {
            return None;
        }
        if output.key.attempt > received.attempt {
            *received = Received { attempt: output.key.attempt, next: 0 };
        }
        let end = output.offset.saturating_add(output.data.len() as u64);
        if end <= received.next {
            return None;
        }
        output.gap = output.offset > received.next;
        // Less than the piece's length, since its end lies beyond.
        let known = usize::try_from(received.next.saturating_sub(output.offset)).unwrap_or(usize::MAX);
        output.data.drain(..known.min(output.data.len()));
        output.offset = end - output.data.len() as u64;
        received.next = end;
        Some(output)
    }

    /// The job, once the stream has told of it.
    pub(super) fn job(&self) -> Option<&JobInfo> {
        self.job.as_ref()
    }

    /// A task, if it has left the queue.
    pub(super) fn task(&self, index: u32) -> Option<&TaskInfo> {
        self.tasks.get(&index)
    }

    /// All tasks that have left the queue, in order.
    pub(super) fn tasks(&self) -> impl Iterator<Item = &TaskInfo> {
        self.tasks.values()
    }

    /// Whether a task has ended and all that it wrote has come.
    pub(super) fn is_complete(&self, index: u32) -> bool {
        self.task(index).is_some_and(|task| {
            let has = |stream, total| {
                let received = self.received.get(&(index, stream)).copied().unwrap_or_default();
                total == 0 || (received.attempt >= task.attempt && received.next >= total)
            };
            task.state.has_ended() && has(Stream::Stdout, task.stdout) && has(Stream::Stderr, task.stderr)
        })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use rpicluster_protocol::{AttemptKey, Epoch, JobId, TaskId, TaskState};

    /// A task in some state.
    pub(in super::super) fn task(index: u32, slave: &str, state: TaskState) -> TaskInfo {
        serde_json::from_value(serde_json::json!({
            "task": TaskId { job: JobId(17), index }, "state": state, "slave": slave, "attempt": 1,
        }))
        .unwrap()
    }

    /// A piece of standard output.
    pub(in super::super) fn output(index: u32, attempt: u32, offset: u64, data: &str) -> TaskOutput {
        let key = AttemptKey { task: TaskId { job: JobId(17), index }, attempt, epoch: Epoch(1) };
        TaskOutput { key, stream: Stream::Stdout, offset, gap: false, data: data.into() }
    }

    fn text(change: Option<Change>) -> Option<(String, bool)> {
        match change {
            Some(Change::Output(output)) => Some((String::from_utf8(output.data).unwrap(), output.gap)),
            Some(other) => panic!("{other:?}"),
            None => None,
        }
    }

    #[test]
    fn what_comes_twice_is_told_once() {
        let mut view = View::default();
        let mut take = |attempt, offset, data| text(view.apply(JobEvent::Output(output(0, attempt, offset, data))));
        assert_eq!(take(1, 0, "abc"), Some(("abc".into(), false)));
        assert_eq!(take(1, 0, "abc"), None);
        assert_eq!(take(1, 0, "abcde"), Some(("de".into(), false)));
        assert_eq!(take(1, 4, "ef"), Some(("f".into(), false)));
        assert_eq!(take(1, 9, "j"), Some(("j".into(), true)), "what lies between is missing");
        assert_eq!(take(2, 0, "new"), Some(("new".into(), false)), "another attempt begins anew");
        assert_eq!(take(1, 10, "old"), None, "an attempt that is over is not shown any more");
    }

    #[test]
    fn a_task_does_not_go_back_to_an_earlier_attempt() {
        let mut view = View::default();
        let first = task(3, "pi-1", TaskState::Running);
        let second = TaskInfo { attempt: 2, ..first.clone() };
        assert_eq!(view.apply(JobEvent::Task(second.clone())), Some(Change::Task(3)));
        assert_eq!(view.apply(JobEvent::Task(second)), None);
        assert_eq!(view.apply(JobEvent::Task(first)), None);
        assert_eq!(view.task(3).unwrap().attempt, 2);
    }

    #[test]
    fn a_task_is_complete_when_all_of_its_output_has_come() {
        let mut view = View::default();
        view.apply(JobEvent::Task(TaskInfo { stdout: 3, ..task(0, "pi-1", TaskState::Succeeded) }));
        assert!(!view.is_complete(0));
        view.apply(JobEvent::Output(output(0, 1, 0, "abc")));
        assert!(view.is_complete(0) && !view.is_complete(1));
        view.apply(JobEvent::Task(task(1, "pi-1", TaskState::Running)));
        assert!(!view.is_complete(1));
    }
}
