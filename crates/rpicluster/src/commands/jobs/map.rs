//! `rpicluster map`: a queue of inputs that slaves share.

use std::fs::File;
use std::io::{self, IsTerminal};

use rpicluster_protocol::{JobId, JobState, TaskState, Work};

use super::joblog::JobLog;
use super::list::{each_task, job_info};
use super::live::Json;
use super::printer::Printer;
use super::results::Results;
use super::submission::{perform, step};
use super::template::{lines, split, with_input};
use super::watch::Presenter;
use crate::cli::MapArgs;
use crate::exit::{Exit, Failure};
use crate::http::MasterClient;

/// Runs a command once for each input.
///
/// # Errors
/// As the tasks end; if the inputs cannot be had, no master answers or it refuses.
pub(in crate::commands) fn map(mut args: MapArgs) -> Result<(), Failure> {
    let client = MasterClient::new(args.work.master.clone())?;
    let words = std::mem::take(&mut args.command);
    let (command, given) = split(words).map_err(|problem| Failure::new(Exit::Usage, problem))?;
    let inputs = inputs(&client, &args, given)?;
    if inputs.is_empty() {
        Printer::new().note("there are no inputs: nothing to do");
        return Ok(());
    }
    let command = with_input(command);
    let mut presenters: Vec<Box<dyn Presenter>> =
        vec![if args.work.json { Box::new(Json) } else { Box::new(Results::new(client.clone(), args.keep_order)) }];
    if let Some(path) = args.joblog.as_deref().filter(|_| !args.work.dry_run) {
        presenters.push(Box::new(JobLog::create(path, command.clone())?));
    }
    let step = step(Work::Exec { argv: command }, &args.work, Some(args.process), Some(inputs));
    perform(&client, &args.work, step, presenters)
}

/// From the command line, an earlier job, a file or standard input.
fn inputs(client: &MasterClient, args: &MapArgs, given: Option<Vec<String>>) -> Result<Vec<String>, Failure> {
    match (given, args.continued, &args.arg_file) {
        (Some(given), None, None) => Ok(given),
        (None, Some(job), None) => left_over(client, job),
        (None, None, Some(path)) => File::open(path)
            .and_then(lines)
            .map_err(|error| Failure::new(Exit::Failed, format!("{}: {error}", path.display()))),
        (None, None, None) if io::stdin().is_terminal() => Err(Failure::new(
            Exit::Usage,
            "there are no inputs: write them behind :::, name a file with -a, or let another command write them into this",
        )),
        (None, None, None) => {
            lines(io::stdin().lock()).map_err(|error| Failure::new(Exit::Failed, format!("standard input: {error}")))
        }
        _ => Err(Failure::new(Exit::Usage, "the inputs come from :::, -a or --continue: name only one")),
    }
}

/// The inputs of a job that have not succeeded.
fn left_over(client: &MasterClient, job: JobId) -> Result<Vec<String>, Failure> {
    if job_info(client, job)?.state == JobState::Active {
        let advice = format!("follow it with \"rpicluster logs {job} -f\", or end it with \"rpicluster cancel {job}\"");
        return Err(Failure::new(Exit::Failed, format!("job {job} has not ended: {advice}")));
    }
    let mut inputs = Vec::new();
    each_task(client, job, None, |task| {
        inputs.extend(task.input.filter(|_| task.state != TaskState::Succeeded));
        Ok(true)
    })?;
    Ok(inputs)
}
