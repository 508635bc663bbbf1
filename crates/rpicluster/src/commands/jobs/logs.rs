//! `rpicluster logs`: what the tasks of a job have written.

use std::io::{self, Read};

use rpicluster_protocol::{AttemptKey, Epoch, JobEvent, JobId, Stream, TaskInfo, TaskOutput};

use super::JOBS_PATH;
use super::list::{each_task, job_info, task_info};
use super::live::{Live, Raw};
use super::printer::Printer;
use super::view::View;
use super::watch::{Presenter, watch};
use crate::cli::LogsArgs;
use crate::exit::{Exit, Failure};
use crate::http::MasterClient;

/// So much is asked for and printed at once.
const PIECE_BYTES: usize = 64 * 1024;

/// Prints what there is, or goes on until the job has ended.
///
/// # Errors
/// If no master answers, or it knows no such job or task.
pub(in crate::commands) fn logs(args: LogsArgs) -> Result<(), Failure> {
    let client = MasterClient::new(args.master)?;
    let (job, task) = args.job;
    let task = task.or(args.task);
    let presenter: Box<dyn Presenter> = match task {
        Some(index) => Box::new(Raw { index, only_stderr: args.stderr }),
        None => Box::new(Live::new(args.stderr)),
    };
    if args.follow {
        return watch(&client, job, false, &mut [presenter]).map(|_| ());
    }
    let mut stored = Stored { client: &client, presenter, out: Printer::new(), view: View::default() };
    match task {
        Some(index) => stored.print(task_info(&client, job, index)?)?,
        None => {
            stored.event(JobEvent::Job(job_info(&client, job)?))?;
            each_task(&client, job, None, |task| stored.print(task).map(|()| true))?;
        }
    }
    stored.presenter.end(&mut stored.out, &stored.view)?;
    stored.out.flush()
}

/// Prints what the master has stored as if it came just now.
struct Stored<'a> {
    client: &'a MasterClient,
    presenter: Box<dyn Presenter>,
    out: Printer,
    view: View,
}

impl Stored<'_> {
    fn print(&mut self, task: TaskInfo) -> Result<(), Failure> {
        self.event(JobEvent::Task(task.clone()))?;
        for (stream, total) in [(Stream::Stdout, task.stdout), (Stream::Stderr, task.stderr)] {
            if total == 0 {
                continue;
            }
            let path = output_path(task.task.job, task.task.index, stream, task.attempt);
            let mut stored = self.client.open(&path)?;
            let mut offset = 0;
            loop {
                let data = piece(&mut stored).map_err(|error| {
                    Failure::new(Exit::Unreachable, format!("the output of task {} breaks off: {error}", task.task))
                })?;
                if data.is_empty() {
                    break;
                }
                let length = data.len() as u64;
                self.output(&task, stream, offset, data)?;
                offset += length;
            }
        }
        Ok(())
    }

    fn output(&mut self, task: &TaskInfo, stream: Stream, offset: u64, data: Vec<u8>) -> Result<(), Failure> {
        // Nobody looks at the epoch here.
        let key = AttemptKey { task: task.task, attempt: task.attempt, epoch: Epoch(0) };
        self.event(JobEvent::Output(TaskOutput { key, stream, offset, gap: false, data }))
    }

    fn event(&mut self, event: JobEvent) -> Result<(), Failure> {
        match self.view.apply(event) {
            Some(change) => self.presenter.show(&mut self.out, &self.view, &change),
            None => Ok(()),
        }
    }
}

fn piece(stored: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut piece = Vec::new();
    stored.take(PIECE_BYTES as u64).read_to_end(&mut piece)?;
    Ok(piece)
}

/// Where the master hands out what an attempt has written.
pub(super) fn output_path(job: JobId, index: u32, stream: Stream, attempt: u32) -> String {
    let stream = match stream {
        Stream::Stdout => "stdout",
        Stream::Stderr => "stderr",
    };
    format!("{JOBS_PATH}/{job}/output?task={index}&stream={stream}&attempt={attempt}")
}
