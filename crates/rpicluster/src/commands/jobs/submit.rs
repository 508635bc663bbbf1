//! `rpicluster submit`: a job from a file.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use rpicluster_protocol::limits::JOB_BYTES_MAX;

use super::file::parse;
use super::run::live;
use super::submission::{Then, follow, plan, submit as hand_over};
use crate::cli::SubmitArgs;
use crate::exit::{Exit, Failure};
use crate::http::MasterClient;
use crate::output::print_line;
use crate::text::Escaped;

/// Submits a job and prints its number, or watches it.
///
/// # Errors
/// [`Exit::Usage`] if the file is no job; if no master answers or it refuses; with `--follow`, as the tasks end.
pub(in crate::commands) fn submit(args: SubmitArgs) -> Result<(), Failure> {
    let text = read(&args.file)?;
    let mut request = parse(&text).map_err(|problem| {
        let lines: Vec<String> = problem.trim_end().lines().map(|line| Escaped(line).to_string()).collect();
        Failure::new(Exit::Usage, format!("{}: {}", args.file.display(), lines.join("\n")))
    })?;
    request.dry_run = args.dry_run;
    let client = MasterClient::new(args.master)?;
    let (json, accepted) = hand_over(&client, &request)?;
    let then = match (args.follow, args.json) {
        (true, true) => Then::WatchJson,
        (true, false) => Then::Watch,
        (false, _) => Then::Detach,
    };
    match accepted.job {
        _ if args.json && !args.follow => print_line(json.trim_end()),
        None => print_line(&plan(&request, &accepted)),
        Some(job) => follow(&client, job, &accepted, then, vec![live(args.json)]),
    }
}

fn read(path: &Path) -> Result<String, Failure> {
    let failed = |problem: String| Failure::new(Exit::Failed, format!("{}: {problem}", path.display()));
    let mut text = String::new();
    let read = if path == Path::new("-") {
        io::stdin().take(JOB_BYTES_MAX as u64 + 1).read_to_string(&mut text)
    } else {
        File::open(path).and_then(|file| file.take(JOB_BYTES_MAX as u64 + 1).read_to_string(&mut text))
    };
    match read {
        Ok(size) if size > JOB_BYTES_MAX => Err(failed(format!("has more than {JOB_BYTES_MAX} bytes"))),
        Ok(_) => Ok(text),
        Err(error) => Err(failed(error.to_string())),
    }
}
