//! How tasks ended, in words, as an exit code, and counted.

use std::collections::BTreeMap;
use std::num::NonZeroU8;

use rpicluster_protocol::{JobId, TaskInfo, TaskState};

use super::names::fold;
use crate::exit::Exit;
use crate::text::Escaped;

/// A group of the summary names at most so many tasks.
const NAMES_MAX: usize = 20;

/// What is said of a task with more output than is kept.
pub(super) const CUT: &str = "not all of its output was kept";

/// How one task contributes to the program's exit code.
pub(super) fn exit_of(task: &TaskInfo) -> Exit {
    match task.state {
        TaskState::Succeeded => Exit::Done,
        TaskState::Failed => own_code(task).map_or(Exit::Failed, Exit::Task),
        TaskState::TimedOut => Exit::TimedOut,
        TaskState::Unknown | TaskState::Lost => Exit::Lost,
        TaskState::Rejected => Exit::Rejected,
        TaskState::Expired => Exit::NotRun,
        TaskState::Canceled | TaskState::Queued | TaskState::Offered | TaskState::Running | TaskState::Backoff => {
            Exit::Failed
        }
    }
}

/// The exit code of a failed task as a shell would tell it: 128 + N after signal N.
fn own_code(task: &TaskInfo) -> Option<NonZeroU8> {
    let code = match (task.exit_code, task.signal) {
        (Some(code), _) => code,
        (None, Some(signal)) => 128 + signal,
        (None, None) => return None,
    };
    NonZeroU8::new(u8::try_from(code).unwrap_or(u8::MAX))
}

/// The program's exit code: the rule that the help text states.
pub(super) fn exit<'a>(tasks: impl Iterator<Item = &'a TaskInfo>) -> Exit {
    let rank = |exit: &Exit| match exit {
        Exit::Task(code) => (3, code.get()),
        Exit::Failed | Exit::Done => (1, exit.code()),
        other => (2, other.code()),
    };
    // A failure without a code of its own counts as 1.
    let counted = tasks.map(|task| match (task.state, exit_of(task)) {
        (TaskState::Failed, Exit::Failed) => Exit::Task(NonZeroU8::MIN),
        (_, exit) => exit,
    });
    counted.max_by_key(rank).unwrap_or(Exit::NotRun)
}

/// How a task ended, in a few words: `exit 3`, `offline`.
pub(super) fn words(task: &TaskInfo) -> String {
    let reason = task.reason.as_ref().map(|reason| Escaped(reason).to_string());
    match (task.state, &reason) {
        (TaskState::Failed, reason) => match (task.exit_code, task.signal, reason) {
            // It could not begin, or something of it is left.
            (Some(code), _, Some(reason)) => format!("exit {code}: {reason}"),
            (Some(code), _, None) => format!("exit {code}"),
            (None, Some(signal), Some(reason)) => format!("signal {signal}: {reason}"),
            (None, Some(signal), None) => format!("signal {signal}"),
            (None, None, Some(reason)) => reason.clone(),
            (None, None, None) => "failed".to_owned(),
        },
        (TaskState::Rejected | TaskState::Lost, Some(reason)) => reason.clone(),
        (state, _) => word(state).to_owned(),
    }
}

/// The word for a state in the summary.
fn word(state: TaskState) -> &'static str {
    match state {
        TaskState::Succeeded => "ok",
        TaskState::TimedOut => "timed out",
        // It waited for a slave that did not come.
        TaskState::Expired => "offline",
        state => state.as_str(),
    }
}

/// `job 17: 5 tasks: 3 ok, 1 failed, 1 offline`, and a line for each way in which tasks did not succeed.
pub(super) fn summary<'a>(job: JobId, tasks: impl Iterator<Item = &'a TaskInfo>) -> String {
    let mut counts: BTreeMap<TaskState, usize> = BTreeMap::new();
    let mut groups: BTreeMap<(TaskState, String), Vec<&TaskInfo>> = BTreeMap::new();
    for task in tasks {
        *counts.entry(task.state).or_default() += 1;
        if task.state != TaskState::Succeeded {
            groups.entry((task.state, words(task))).or_default().push(task);
        }
    }
    let total: usize = counts.values().sum();
    let counted: Vec<String> = counts.iter().map(|(state, count)| format!("{count} {}", word(*state))).collect();
    let mut lines = vec![match total {
        0 => format!("job {job}: no tasks"),
        1 => format!("job {job}: 1 task: {}", counted.join(", ")),
        _ => format!("job {job}: {total} tasks: {}", counted.join(", ")),
    }];
    let width = groups.keys().map(|(_, words)| words.chars().count()).max().unwrap_or_default();
    lines.extend(groups.iter().map(|((_, words), tasks)| format!("  {words:<width$}  {}", who(tasks))));
    lines.join("\n")
}

/// Which tasks: slaves by their name, pieces of work by their number, input and slave.
fn who(tasks: &[&TaskInfo]) -> String {
    let (with_input, without): (Vec<&TaskInfo>, Vec<&TaskInfo>) =
        tasks.iter().copied().partition(|task| task.input.is_some() || task.slave.is_none());
    let mut names: Vec<String> = fold(without.iter().filter_map(|task| task.slave.as_ref()));
    let all = names.len() + with_input.len();
    names.extend(with_input.iter().take(NAMES_MAX).map(|task| name(task)));
    names.truncate(NAMES_MAX);
    if all > names.len() {
        names.push(format!("and {} more", all - names.len()));
    }
    names.join(", ")
}

/// A task as people know it: its slave, or its number with its input.
pub(super) fn name(task: &TaskInfo) -> String {
    match (&task.input, &task.slave) {
        (Some(input), Some(slave)) => format!("{} {} on {slave}", task.task, quoted(input)),
        (Some(input), None) => format!("{} {}", task.task, quoted(input)),
        (None, Some(slave)) => slave.to_string(),
        (None, None) => task.task.to_string(),
    }
}

fn quoted(input: &str) -> String {
    const SHOWN_CHARS_MAX: usize = 40;
    let shown: String = input.chars().take(SHOWN_CHARS_MAX).collect();
    let more = if shown.len() < input.len() { "…" } else { "" };
    format!("\"{}{more}\"", Escaped(shown))
}

#[cfg(test)]
mod tests {
    use super::super::view::tests::task;
    use super::*;

    fn failed(index: u32, code: i32) -> TaskInfo {
        TaskInfo { exit_code: Some(code), ..task(index, "pi-1", TaskState::Failed) }
    }

    fn code(tasks: &[TaskInfo]) -> u8 {
        exit(tasks.iter()).code()
    }

    #[test]
    fn the_exit_code_follows_the_rule_in_the_help() {
        let is = |state| task(0, "pi-1", state);
        let ok = is(TaskState::Succeeded);
        assert_eq!(code(&[]), 127);
        assert_eq!(code(&[ok.clone(), ok.clone()]), 0);
        assert_eq!(code(&[ok.clone(), failed(1, 3), failed(2, 7), failed(3, 5)]), 7);
        for (state, expected) in [
            (TaskState::TimedOut, 124),
            (TaskState::Lost, 125),
            (TaskState::Unknown, 125),
            (TaskState::Rejected, 126),
            (TaskState::Expired, 127),
            (TaskState::Canceled, 1),
        ] {
            assert_eq!(code(&[ok.clone(), is(state)]), expected, "{state}");
            assert_eq!(code(&[is(state), failed(1, 3)]), 3, "a task's own code counts before {state}");
        }
        assert_eq!(code(&[is(TaskState::TimedOut), is(TaskState::Expired), is(TaskState::Canceled)]), 127);
        let killed = TaskInfo { signal: Some(9), ..is(TaskState::Failed) };
        assert_eq!(code(&[killed]), 137);
        assert_eq!(code(&[is(TaskState::Failed), is(TaskState::Expired)]), 1, "a failure without a code counts as 1");
        assert_eq!(code(&[failed(0, 256)]), 255);
        assert_eq!(code(&[failed(0, 0), is(TaskState::TimedOut)]), 1);
    }

    #[test]
    fn the_summary_counts_and_names() {
        let tasks = [
            task(0, "pi-1", TaskState::Succeeded),
            task(1, "pi-2", TaskState::Succeeded),
            TaskInfo { exit_code: Some(3), ..task(2, "pi-3", TaskState::Failed) },
            TaskInfo { exit_code: Some(3), ..task(3, "pi-4", TaskState::Failed) },
            TaskInfo { reason: Some("no\nsuch command".into()), ..task(4, "pi-5", TaskState::Failed) },
            task(5, "pi-6", TaskState::Expired),
        ];
        assert_eq!(
            summary(JobId(17), tasks.iter()),
            "job 17: 6 tasks: 2 ok, 3 failed, 1 offline\n  exit 3            pi-[3-4]\n  \
             no\\nsuch command  pi-5\n  offline           pi-6"
        );
    }

    #[test]
    fn the_summary_of_many_inputs_is_short() {
        let tasks: Vec<TaskInfo> =
            (0..1000).map(|index| TaskInfo { input: Some(format!("in {index}")), ..failed(index, 1) }).collect();
        let text = summary(JobId(17), tasks.iter());
        assert!(text.contains("17.0 \"in 0\" on pi-1, 17.1") && text.ends_with("and 980 more"), "{text}");
        assert_eq!(text.lines().count(), 2);
    }
}
