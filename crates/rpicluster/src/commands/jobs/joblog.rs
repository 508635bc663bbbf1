//! A file with a line for each task, in the columns of GNU parallel's `--joblog`.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use rpicluster_protocol::TaskInfo;

use super::outcome::exit_of;
use super::printer::Printer;
use super::template::filled;
use super::view::{Change, View};
use super::watch::Presenter;
use crate::exit::{Exit, Failure};

const HEADER: &str = "Seq\tHost\tStarttime\tJobRuntime\tSend\tReceive\tExitval\tSignal\tCommand";

/// The file.
pub(super) struct JobLog {
    path: PathBuf,
    file: File,
    command: Vec<String>,
    written: HashSet<u32>,
}

impl JobLog {
    /// Makes the file anew.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(super) fn create(path: &Path, command: Vec<String>) -> Result<JobLog, Failure> {
        let mut file = File::create(path).map_err(|error| failure(path, &error))?;
        writeln!(file, "{HEADER}").map_err(|error| failure(path, &error))?;
        Ok(JobLog { path: path.to_owned(), file, command, written: HashSet::new() })
    }
}

impl Presenter for JobLog {
    fn show(&mut self, _out: &mut Printer, view: &View, change: &Change) -> Result<(), Failure> {
        let Change::Task(index) = change else { return Ok(()) };
        match view.task(*index) {
            Some(task) if task.state.has_ended() && self.written.insert(*index) => {
                writeln!(self.file, "{}", line(task, &self.command)).map_err(|error| failure(&self.path, &error))
            }
            _ => Ok(()),
        }
    }
}

/// Times in seconds, sizes in bytes; `Exitval` as this program's exit code for the task alone.
fn line(task: &TaskInfo, command: &[String]) -> String {
    let number = task.task.index + 1;
    let slave = task.slave.as_ref().map(ToString::to_string).unwrap_or_default();
    let seconds = |ms: u64| format!("{}.{:03}", ms / 1000, ms % 1000);
    let started = seconds(task.started.map_or(0, |started| started.unix_ms()));
    let runtime = seconds(task.duration_ms.unwrap_or_default());
    let (exit, signal) = (exit_of(task).code(), task.signal.unwrap_or_default());
    let command = filled(command, task.input.as_deref().unwrap_or_default(), number, &slave);
    // What an input holds makes no column and no line.
    let command = command.replace(['\t', '\n', '\r'], " ");
    format!("{number}\t{slave}\t{started}\t{runtime}\t0\t{}\t{exit}\t{signal}\t{command}", task.stdout)
}

fn failure(path: &Path, error: &io::Error) -> Failure {
    Failure::new(Exit::Failed, format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::super::view::tests::task;
    use super::*;
    use rpicluster_protocol::{TaskState, Timestamp};

    #[test]
    fn a_line_has_the_columns_of_gnu_parallel() {
        let task = TaskInfo {
            input: Some("a\tb".into()),
            exit_code: Some(3),
            started: Some(Timestamp::from_unix_ms(1_700_000_000_042)),
            duration_ms: Some(1500),
            stdout: 12,
            ..task(4, "pi-1", TaskState::Failed)
        };
        let command = ["echo".to_owned(), "{}".to_owned()];
        let line = line(&task, &command);
        assert_eq!(line, "5\tpi-1\t1700000000.042\t1.500\t0\t12\t3\t0\techo 'a b'");
        assert_eq!(line.split('\t').count(), HEADER.split('\t').count());
    }
}
