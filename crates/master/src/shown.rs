//! Jobs and tasks as HTTP shows them.

use rpicluster_core::tasks::{JobSpec, Task};
use rpicluster_protocol::{JobInfo, StepInfo, TaskFinished, TaskId, TaskInfo, Work};

use crate::store::{About, JobRow, StoredJob};

/// The longest line that tells what a step runs, in characters.
const WORK_CHARS_MAX: usize = 200;

/// What of a job's spec is shown in lists.
pub(crate) fn about(spec: &JobSpec) -> About {
    let step = |step: &rpicluster_core::tasks::Step| StepInfo {
        name: step.name.clone(),
        on: step.on.clone(),
        work: work_line(&step.spec.work),
        tasks: step.tasks(),
    };
    About {
        name: spec.name.clone(),
        requester: spec.requester.clone(),
        tasks: spec.tasks(),
        steps: spec.steps.iter().map(step).collect(),
    }
}

/// A job.
pub(crate) fn job_info(job: StoredJob) -> JobInfo {
    let StoredJob { row: JobRow { job, ended, state, counts, .. }, submitted, about, .. } = job;
    let About { name, requester, tasks, steps } = about;
    JobInfo { job, name, requester, state, submitted, ended, tasks, counts, steps }
}

/// A task. `output_dropped` says that not all output of its job is kept.
pub(crate) fn task_info(spec: &JobSpec, id: TaskId, task: &Task, output_dropped: bool) -> TaskInfo {
    let step = spec.locate(id.index).map(|(step, _)| step).unwrap_or_default();
    let limit = spec.steps.get(step as usize).map_or(u64::MAX, |step| step.spec.output_limit);
    let result = task.result.as_deref();
    let told = |tell: fn(&TaskFinished) -> Option<u64>| result.and_then(tell);
    let is_cut = task.stdout > limit || task.stderr > limit || output_dropped && task.stdout + task.stderr > 0;
    TaskInfo {
        task: id,
        step,
        state: task.state,
        slave: task.slave.clone().or_else(|| spec.pinned(id.index).cloned()),
        input: spec.input(id.index).map(str::to_owned),
        attempt: task.attempt,
        started: task.started_at,
        ended: task.ended_at,
        exit_code: result.and_then(|result| result.exit_code),
        signal: result.and_then(|result| result.signal),
        reason: task.reason.clone(),
        duration_ms: told(|result| Some(result.duration_ms)),
        cpu_ms: told(|result| result.cpu_ms),
        memory_peak: told(|result| result.memory_peak),
        stdout: task.stdout,
        stderr: task.stderr,
        truncated: task.gap || is_cut,
        result: result.and_then(|result| result.result.clone()),
    }
}

/// What a step runs, in one line.
fn work_line(work: &Work) -> String {
    let line = match work {
        Work::Exec { argv } => argv.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" "),
        Work::Script { interpreter, .. } => format!("a script for {}", interpreter.join(" ")),
        Work::Action { action } => action.as_str().to_owned(),
        Work::Function { function, .. } => format!("function {function}"),
    };
    match line.char_indices().nth(WORK_CHARS_MAX) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

/// As a shell would want it.
fn quoted(word: &str) -> String {
    let is_plain = |character: char| character.is_ascii_alphanumeric() || "_-./=:,@%+{}#".contains(character);
    if !word.is_empty() && word.chars().all(is_plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}
