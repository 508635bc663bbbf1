//! `rpicluster jobs`, `cancel`, `retry`: what there is, and what is to become of it.

use rpicluster_protocol::{
    CancelRequest, JobId, JobInfo, JobState, RetryRequest, TaskInfo, TaskPage, TaskState, Timestamp,
};
use serde_json::{Value, json};

use super::JOBS_PATH;
use super::outcome::{name, words};
use crate::cli::{CancelArgs, JobsArgs, RetryArgs};
use crate::commands::slaves::now;
use crate::exit::{Exit, Failure};
use crate::http::MasterClient;
use crate::output::print_line;
use crate::table::{elapsed, plain};
use crate::text::Escaped;
use crate::text::counted;

/// So many tasks are asked for at once.
const PAGE: u32 = 1000;
/// The states in which a task has ended without success.
const TROUBLE: [TaskState; 6] = [
    TaskState::Failed,
    TaskState::TimedOut,
    TaskState::Lost,
    TaskState::Rejected,
    TaskState::Expired,
    TaskState::Canceled,
];

/// Prints the newest jobs, or one of them.
///
/// # Errors
/// If no master answers, or it knows no such job.
pub(in crate::commands) fn jobs(args: JobsArgs) -> Result<(), Failure> {
    let client = MasterClient::new(args.master)?;
    match args.job {
        Some(job) if args.json => print_line(job_json(&client, job)?.trim_end()),
        Some(job) => {
            let info = job_info(&client, job)?;
            let trouble = trouble(&client, &info, args.limit)?;
            print_line(&details(&info, &trouble, now()))
        }
        None => {
            let json = client.change("GET", &format!("{JOBS_PATH}?limit={}", args.limit), None)?;
            if args.json {
                print_line(json.trim_end())
            } else {
                print_line(&table(&client.parse::<Vec<JobInfo>>(&json)?, now()))
            }
        }
    }
}

/// Cancels what has not begun, or all.
///
/// # Errors
/// If no master answers, or it refuses.
pub(in crate::commands) fn cancel(args: CancelArgs) -> Result<(), Failure> {
    let client = MasterClient::new(args.master)?;
    change(&client, args.job, "cancel", &json!(CancelRequest { running: args.running }))
}

/// Lets what did not succeed run again.
///
/// # Errors
/// If no master answers, or it refuses.
pub(in crate::commands) fn retry(args: RetryArgs) -> Result<(), Failure> {
    let client = MasterClient::new(args.master)?;
    change(&client, args.job, "retry", &json!(RetryRequest { failed: args.failed }))
}

fn change(client: &MasterClient, job: JobId, what: &str, request: &Value) -> Result<(), Failure> {
    let answer = client.change("POST", &format!("{JOBS_PATH}/{job}/{what}"), Some(request))?;
    let info: JobInfo = client.parse(&answer)?;
    print_line(&format!("job {job} is {}: {}", state(info.state), counts(&info)))
}

/// A job as the master tells it.
///
/// # Errors
/// If no master answers, or it knows no such job.
pub(super) fn job_info(client: &MasterClient, job: JobId) -> Result<JobInfo, Failure> {
    client.parse(&job_json(client, job)?)
}

fn job_json(client: &MasterClient, job: JobId) -> Result<String, Failure> {
    client.get_json(&format!("{JOBS_PATH}/{job}"))?.ok_or_else(|| unknown(&format!("job {job}")))
}

/// A task as the master tells it.
///
/// # Errors
/// If no master answers, or it knows no such task.
pub(super) fn task_info(client: &MasterClient, job: JobId, index: u32) -> Result<TaskInfo, Failure> {
    let json = client.get_json(&format!("{JOBS_PATH}/{job}/tasks/{index}"))?;
    client.parse(&json.ok_or_else(|| unknown(&format!("task {job}.{index}")))?)
}

fn unknown(what: &str) -> Failure {
    Failure::new(Exit::Failed, format!("the master knows no {what}: \"rpicluster jobs\" lists what there is"))
}

/// Gives every task of a job to `take`, page by page, until it says that it has enough.
///
/// # Errors
/// As `take`; if no master answers, or it knows no such job.
pub(super) fn each_task(
    client: &MasterClient,
    job: JobId,
    state: Option<TaskState>,
    mut take: impl FnMut(TaskInfo) -> Result<bool, Failure>,
) -> Result<(), Failure> {
    let filter = state.map(|state| format!("&state={state}")).unwrap_or_default();
    let mut from = 0;
    loop {
        let path = format!("{JOBS_PATH}/{job}/tasks?from={from}&limit={PAGE}{filter}");
        let json = client.get_json(&path)?.ok_or_else(|| unknown(&format!("job {job}")))?;
        let page: TaskPage = client.parse(&json)?;
        for task in page.tasks {
            if !take(task)? {
                return Ok(());
            }
        }
        match page.next {
            // A page that does not lead on would be asked for for ever.
            Some(next) if next > from => from = next,
            _ => return Ok(()),
        }
    }
}

/// The first tasks that have ended without success.
fn trouble(client: &MasterClient, info: &JobInfo, limit: u32) -> Result<Vec<TaskInfo>, Failure> {
    let mut found = Vec::new();
    for state in TROUBLE.into_iter().filter(|state| info.counts.get(state).is_some_and(|count| *count > 0)) {
        let mut left = limit;
        each_task(client, info.job, Some(state), |task| {
            if left > 0 {
                found.push(task);
                left -= 1;
            }
            Ok(left > 0)
        })?;
    }
    found.sort_by_key(|task| task.task);
    found.truncate(limit as usize);
    Ok(found)
}

fn table(jobs: &[JobInfo], now: Timestamp) -> String {
    if jobs.is_empty() {
        return "There is no job yet: \"rpicluster run --on all -- uname -a\" makes one.".to_owned();
    }
    let row = |job: &JobInfo| {
        let succeeded = job.counts.get(&TaskState::Succeeded).copied().unwrap_or_default();
        let failed: u32 = TROUBLE.iter().filter_map(|state| job.counts.get(state)).sum();
        let state = state(job.state).to_owned();
        let since = elapsed(job.submitted, now);
        let numbers = [job.tasks, succeeded, failed].map(|number| number.to_string());
        let [tasks, succeeded, failed] = numbers;
        [job.job.to_string(), state, since, tasks, succeeded, failed, title(job)]
    };
    let rows: Vec<_> = jobs.iter().map(row).collect();
    plain(["JOB", "STATE", "SINCE", "TASKS", "OK", "NOT OK", "WHAT"], &rows)
}

/// What a job is called, or does.
fn title(job: &JobInfo) -> String {
    const CHARS_MAX: usize = 60;
    let title = match (&job.name, &job.steps[..]) {
        (Some(name), _) => name.clone(),
        (None, [step]) => format!("{} on {}", step.work, step.on),
        (None, [step, ..]) => format!("{} on {}, …", step.work, step.on),
        (None, []) => String::new(),
    };
    if title.chars().count() <= CHARS_MAX {
        return title;
    }
    title.chars().take(CHARS_MAX - 1).chain(['…']).collect()
}

/// All that is known of a job, a line each, and a table of tasks that did not succeed.
fn details(info: &JobInfo, trouble: &[TaskInfo], now: Timestamp) -> String {
    let since = |at: Timestamp| format!("{at} ({} ago)", elapsed(at, now));
    let mut lines = vec![
        ("job", info.job.to_string()),
        ("name", info.name.clone().unwrap_or_default()),
        ("state", state(info.state).to_owned()),
        ("submitted", format!("{} by {}", since(info.submitted), info.requester)),
        ("ended", info.ended.map(since).unwrap_or_default()),
        ("tasks", counts(info)),
    ];
    lines.extend(info.steps.iter().map(|step| {
        let name = step.name.as_ref().map(|name| format!("{name}: ")).unwrap_or_default();
        ("step", format!("{name}{} on {} ({})", step.work, step.on, counted(step.tasks as usize, "task")))
    }));
    let shown = lines.into_iter().filter(|(_, value)| !value.is_empty());
    let mut text = shown.map(|(name, value)| format!("{name:<9}  {}", Escaped(value))).collect::<Vec<_>>().join("\n");
    if !trouble.is_empty() {
        let row = |task: &TaskInfo| {
            let reason = task.reason.clone().unwrap_or_default();
            [task.task.to_string(), task.state.to_string(), words(task), name(task), reason]
        };
        let rows: Vec<_> = trouble.iter().map(row).collect();
        text.push_str("\n\n");
        text.push_str(&plain(["TASK", "STATE", "HOW", "WHO", "REASON"], &rows));
    }
    text
}

/// `3 succeeded, 1 failed of 5`
fn counts(info: &JobInfo) -> String {
    let counted = info.counts.iter().filter(|(_, count)| **count > 0);
    let counted: Vec<String> = counted.map(|(state, count)| format!("{count} {state}")).collect();
    format!("{} of {}", counted.join(", "), info.tasks)
}

fn state(state: JobState) -> &'static str {
    match state {
        JobState::Active => "active",
        JobState::Succeeded => "succeeded",
        JobState::Failed => "failed",
        JobState::Canceled => "canceled",
    }
}

#[cfg(test)]
mod tests {
    use super::super::view::tests::task;
    use super::*;

    fn job() -> JobInfo {
        serde_json::from_value(json!({
            "job": 17, "requester": "admin", "state": "failed", "submitted": Timestamp::from_unix_ms(1_700_000_000_000),
            "tasks": 5, "counts": {"succeeded": 3, "failed": 1, "expired": 1, "queued": 0},
            "steps": [{"on": "all", "work": "uname -a", "tasks": 5}],
        }))
        .unwrap()
    }

    #[test]
    fn jobs_are_listed_with_what_became_of_their_tasks() {
        let later = Timestamp::from_unix_ms(1_700_000_120_000);
        assert_eq!(
            table(&[job()], later),
            "JOB  STATE   SINCE  TASKS  OK  NOT OK  WHAT\n17   failed  2 min  5      3   2       uname -a on all"
        );
        assert!(table(&[], later).contains("rpicluster run"));
        let long = JobInfo { name: Some("x".repeat(100)), ..job() };
        assert_eq!(title(&long).chars().count(), 60);
    }

    #[test]
    fn one_job_is_shown_with_the_tasks_that_did_not_succeed() {
        let failed = TaskInfo { exit_code: Some(3), ..task(4, "pi-5", TaskState::Failed) };
        let text = details(&job(), &[failed], Timestamp::from_unix_ms(1_700_000_120_000));
        assert!(text.contains("tasks      3 succeeded, 1 failed, 1 expired of 5"), "{text}");
        assert!(text.contains("step       uname -a on all (5 tasks)"), "{text}");
        assert!(text.contains("17.4  failed  exit 3  pi-5"), "{text}");
        assert!(!text.contains("ended"), "{text}");
    }
}
