//! Handing a job to the master, and what is then to be done.

use rpicluster_protocol::{JobAccepted, JobId, JobRequest, StepRequest, TaskSpec, Work, limits::OUTPUT_LIMIT};

use super::JOBS_PATH;
use super::names::fold;
use super::printer::Printer;
use super::watch::{Presenter, watch};
use crate::cli::{ProcessArgs, Wait, WorkArgs};
use crate::commands::slaves::milliseconds;
use crate::exit::{Exit, Failure};
use crate::http::MasterClient;
use crate::output::print_line;

/// What to do with a job that was submitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Then {
    /// Print its number.
    Detach,
    /// Watch it for people, with a summary.
    Watch,
    /// Watch it for scripts.
    WatchJson,
}

/// What the command line says of the only step of a job.
pub(super) fn step(
    work: Work,
    args: &WorkArgs,
    process: Option<ProcessArgs>,
    inputs: Option<Vec<String>>,
) -> StepRequest {
    let ProcessArgs { env, cwd, run_as } =
        process.unwrap_or_else(|| ProcessArgs { env: Vec::new(), cwd: None, run_as: None });
    let spec = TaskSpec {
        work,
        env: env.into_iter().collect(),
        cwd,
        stdin: None,
        run_as,
        timeout_ms: args.timeout.map(milliseconds),
        output_limit: OUTPUT_LIMIT,
    };
    let wait_ms = match args.wait {
        Some(Wait::For(duration)) => Some(milliseconds(duration)),
        Some(Wait::Forever) => None,
        // Who asks every slave wants to know at once who is away; a queue is there for whoever comes.
        None => inputs.is_none().then_some(0),
    };
    StepRequest {
        name: None,
        on: args.on.clone(),
        spec,
        inputs,
        retries: args.retries,
        idempotent: args.idempotent,
        wait_ms,
        batch: args.batch,
        max_failures: args.max_failures,
        after: Vec::new(),
    }
}

/// Submits a job of one step as the command line says, and does what it says then.
///
/// # Errors
/// As [`submit`] and [`follow`].
pub(super) fn perform(
    client: &MasterClient,
    args: &WorkArgs,
    step: StepRequest,
    presenters: Vec<Box<dyn Presenter>>,
) -> Result<(), Failure> {
    let request = JobRequest { name: args.name.clone(), steps: vec![step], dry_run: args.dry_run };
    let (json, accepted) = submit(client, &request)?;
    let then = match (args.detach, args.json) {
        (true, _) => Then::Detach,
        (false, true) => Then::WatchJson,
        (false, false) => Then::Watch,
    };
    match accepted.job {
        None if args.json => print_line(json.trim_end()),
        None => print_line(&plan(&request, &accepted)),
        Some(job) => follow(client, job, &accepted, then, presenters),
    }
}

/// Submits a job: the master's answer, as it came and as it is meant.
///
/// # Errors
/// If no master answers or it refuses; [`Exit::NotRun`] if no slave matches.
pub(super) fn submit(client: &MasterClient, request: &JobRequest) -> Result<(String, JobAccepted), Failure> {
    let body = serde_json::to_string(request).map_err(anyhow::Error::from)?;
    let again = |why: &str| Printer::new().note(&format!("{why}; sending it again"));
    let json = client.submit(JOBS_PATH, &body, again)?;
    let accepted: JobAccepted = client.parse(&json)?;
    if accepted.steps.iter().all(|step| step.slaves.is_empty()) {
        let targets = request.steps.iter().map(|step| format!("{:?}", step.on)).collect::<Vec<_>>().join(", ");
        let advice = "\"rpicluster slaves\" lists all";
        return Err(Failure::new(Exit::NotRun, format!("no slave matches {targets}: {advice}")));
    }
    Ok((json, accepted))
}

/// Prints the job's number, or watches it to its end.
///
/// # Errors
/// The exit code of its tasks unless all have succeeded; if the master stays away, or the user leaves.
pub(super) fn follow(
    client: &MasterClient,
    job: JobId,
    accepted: &JobAccepted,
    then: Then,
    mut presenters: Vec<Box<dyn Presenter>>,
) -> Result<(), Failure> {
    if then == Then::Detach {
        return print_line(&job.to_string());
    }
    let nobody_there = accepted.steps.iter().all(|step| step.offline.len() == step.slaves.len());
    if then == Then::Watch && nobody_there {
        Printer::new().note("every slave that matches is offline");
    }
    // What is for them alone waits, however long.
    let draining = fold(accepted.steps.iter().flat_map(|step| &step.draining)).join(", ");
    if then == Then::Watch && !draining.is_empty() {
        Printer::new().note(&format!("drained until \"rpicluster slaves undrain ID\": {draining}"));
    }
    watch(client, job, true, &mut presenters)?.conclude(then == Then::Watch)
}

/// Who would do what.
pub(super) fn plan(request: &JobRequest, accepted: &JobAccepted) -> String {
    let mut lines = Vec::new();
    for (number, (step, found)) in request.steps.iter().zip(&accepted.steps).enumerate() {
        let name = step.name.clone().unwrap_or_else(|| format!("step {}", number + 1));
        let slaves = fold(found.slaves.iter()).join(", ");
        let share = match (&step.inputs, found.tasks) {
            (Some(_), 1) => "1 task for one of ".to_owned(),
            (Some(_), tasks) => format!("{tasks} tasks shared by "),
            (None, _) => String::new(),
        };
        lines.push(format!("{name}: {}: {share}{slaves}", work(&step.spec.work)));
        if !found.offline.is_empty() {
            lines.push(format!("  offline: {}", fold(found.offline.iter()).join(", ")));
        }
        if !found.draining.is_empty() {
            lines.push(format!("  draining: {}", fold(found.draining.iter()).join(", ")));
        }
        if !step.after.is_empty() {
            lines.push(format!("  after: {}", step.after.join(", ")));
        }
    }
    lines.join("\n")
}

/// What is done, in a few words.
fn work(work: &Work) -> String {
    match work {
        Work::Exec { argv } => argv.join(" "),
        Work::Script { interpreter, .. } => format!("a script for {}", interpreter.join(" ")),
        Work::Action { action } => action.as_str().to_owned(),
        Work::Function { function, .. } => format!("function {function}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command};
    use clap::Parser;

    fn submitted(line: &str, inputs: Option<Vec<String>>) -> String {
        let Command::Run(args) = Cli::try_parse_from(line.split(' ')).unwrap().command else { panic!("{line}") };
        let step = step(Work::Exec { argv: args.command.clone() }, &args.work, Some(args.process), inputs);
        serde_json::to_string(&step).unwrap()
    }

    #[test]
    fn a_step_says_what_the_command_line_says() {
        let json = submitted(
            "rpicluster run --on all --timeout 5m --retries 2 --idempotent --batch 25% --max-failures 1 --wait 1h \
             --env A=b --cwd /x --run-as nobody -- uname -a",
            None,
        );
        for part in [
            r#""on":"all""#,
            r#""argv":["uname","-a"]"#,
            r#""timeout_ms":300000"#,
            r#""retries":2"#,
            r#""idempotent":true"#,
            r#""batch":"25%""#,
            r#""max_failures":1"#,
            r#""wait_ms":3600000"#,
            r#""env":{"A":"b"}"#,
            r#""cwd":"/x""#,
            r#""run_as":"nobody""#,
        ] {
            assert!(json.contains(part), "{part}: {json}");
        }
    }

    #[test]
    fn who_is_offline_is_waited_for_only_in_a_queue_or_when_told() {
        let inputs = || Some(vec!["a".to_owned()]);
        assert!(submitted("rpicluster run --on all -- true", None).contains(r#""wait_ms":0"#));
        assert!(!submitted("rpicluster run --on all --wait forever -- true", None).contains("wait_ms"));
        assert!(!submitted("rpicluster run --on all -- true", inputs()).contains("wait_ms"));
        assert!(submitted("rpicluster run --on all --wait 1s -- true", inputs()).contains(r#""wait_ms":1000"#));
    }

    #[test]
    fn a_plan_tells_who_would_do_what() {
        let request: JobRequest = serde_json::from_str(
            r#"{"steps":[{"name":"build","on":"all","kind":"exec","argv":["make","{}"],"inputs":["a","b"]},
                {"on":"pi-1","kind":"action","action":"reboot","after":["build"]}]}"#,
        )
        .unwrap();
        let accepted: JobAccepted = serde_json::from_str(
            r#"{"steps":[{"slaves":["pi-1","pi-2"],"offline":["pi-2"],"draining":["pi-1"],"tasks":2},{"slaves":["pi-1"],"tasks":1}]}"#,
        )
        .unwrap();
        assert_eq!(
            plan(&request, &accepted),
            "build: make {}: 2 tasks shared by pi-[1-2]\n  offline: pi-2\n  draining: pi-1\nstep 2: reboot: pi-1\n  after: build"
        );
    }
}
