//! Output as it comes: line by line, behind the name of its slave; or everything as lines of JSON.

use std::collections::HashMap;

use rpicluster_protocol::{JobEvent, SlaveId, Stream, TaskInfo, TaskOutput, TaskState};

use super::lines::Lines;
use super::outcome::{CUT, words};
use super::printer::Printer;
use super::view::{Change, View};
use super::watch::Presenter;
use crate::exit::Failure;

/// Whole lines as they come.
#[derive(Default)]
pub(super) struct Live {
    only_stderr: bool,
    pending: HashMap<(u32, Stream), Pending>,
    colours: HashMap<SlaveId, usize>,
    /// The attempt and state of each task that was last spoken of.
    told: HashMap<u32, (u32, TaskState)>,
}

#[derive(Default)]
struct Pending {
    attempt: u32,
    lines: Lines,
}

impl Presenter for Live {
    fn show(&mut self, out: &mut Printer, view: &View, change: &Change) -> Result<(), Failure> {
        let index = match change {
            Change::Job => return Ok(()),
            Change::Task(index) => *index,
            Change::Output(output) => {
                self.output(out, view, output)?;
                output.key.task.index
            }
        };
        match view.task(index) {
            Some(task) if view.is_complete(index) => self.conclude(out, view, task),
            _ => Ok(()),
        }
    }

    fn end(&mut self, out: &mut Printer, view: &View) -> Result<(), Failure> {
        view.tasks().filter(|task| task.state.has_ended()).try_for_each(|task| self.conclude(out, view, task))
    }
}

impl Live {
    /// All of it, each stream where it belongs; or only what was written to standard error, on standard output.
    pub(super) fn new(only_stderr: bool) -> Live {
        Live { only_stderr, ..Live::default() }
    }

    fn output(&mut self, out: &mut Printer, view: &View, output: &TaskOutput) -> Result<(), Failure> {
        if self.only_stderr && output.stream == Stream::Stdout {
            return Ok(());
        }
        let index = output.key.task.index;
        let place = (index, output.stream);
        if self.pending.get(&place).is_some_and(|pending| pending.attempt != output.key.attempt) || output.gap {
            self.finish(out, view, index, output.stream)?;
        }
        let (name, colour) = self.name(view, index);
        if output.gap {
            out.trouble(&name, "some of its output is missing here");
        }
        let shown_on = self.shown_on(output.stream);
        let pending = self.pending.entry(place).or_default();
        pending.attempt = output.key.attempt;
        let mut printed = Ok(());
        pending.lines.push(&output.data, |line| {
            if printed.is_ok() {
                printed = out.line(shown_on, &name, colour, line);
            }
        });
        printed
    }

    /// A task has ended and has said everything: what is left of it is shown, and how it ended.
    fn conclude(&mut self, out: &mut Printer, view: &View, task: &TaskInfo) -> Result<(), Failure> {
        let index = task.task.index;
        self.finish(out, view, index, Stream::Stdout)?;
        self.finish(out, view, index, Stream::Stderr)?;
        let now = (task.attempt, task.state);
        if self.told.insert(index, now) == Some(now) {
            return Ok(());
        }
        let (name, colour) = self.name(view, index);
        if let Some(result) = &task.result {
            out.line(self.shown_on(Stream::Stdout), &name, colour, result.to_string().as_bytes())?;
        }
        if task.state != TaskState::Succeeded {
            out.trouble(&name, &words(task));
        }
        if task.truncated {
            out.trouble(&name, CUT);
        }
        Ok(())
    }

    /// Prints the end of a stream that has no line end.
    fn finish(&mut self, out: &mut Printer, view: &View, index: u32, stream: Stream) -> Result<(), Failure> {
        let Some(rest) = self.pending.remove(&(index, stream)).and_then(|mut pending| pending.lines.finish()) else {
            return Ok(());
        };
        let (name, colour) = self.name(view, index);
        out.line(self.shown_on(stream), &name, colour, &rest)
    }

    fn shown_on(&self, stream: Stream) -> Stream {
        if self.only_stderr { Stream::Stdout } else { stream }
    }

    /// How a task is called: by its slave, and by its number too where a slave may have several.
    fn name(&mut self, view: &View, index: u32) -> (String, usize) {
        let Some(task) = view.task(index) else { return (index.to_string(), 0) };
        let Some(slave) = &task.slave else { return (task.task.to_string(), 0) };
        let next = self.colours.len();
        let colour = *self.colours.entry(slave.clone()).or_insert(next);
        let has_one = task.input.is_none() && view.job().is_none_or(|job| job.steps.len() <= 1);
        (if has_one { slave.to_string() } else { format!("{} {slave}", task.task) }, colour)
    }
}

/// Every change as a line of JSON: the events of the HTTP API, of the job only the last.
pub(super) struct Json;

impl Presenter for Json {
    fn show(&mut self, out: &mut Printer, view: &View, change: &Change) -> Result<(), Failure> {
        match change {
            Change::Job => Ok(()),
            Change::Task(index) => match view.task(*index) {
                Some(task) => print(out, &JobEvent::Task(task.clone())),
                None => Ok(()),
            },
            Change::Output(output) => print(out, &JobEvent::Output(output.clone())),
        }
    }

    fn end(&mut self, out: &mut Printer, view: &View) -> Result<(), Failure> {
        view.job().map_or(Ok(()), |job| print(out, &JobEvent::Job(job.clone())))
    }
}

fn print(out: &mut Printer, event: &JobEvent) -> Result<(), Failure> {
    let mut line = serde_json::to_vec(event).map_err(anyhow::Error::from)?;
    line.push(b'\n');
    out.bytes(Stream::Stdout, &line)
}

/// The bytes of one task as they come.
pub(super) struct Raw {
    /// Of which task.
    pub(super) index: u32,
    /// Show only what was written to standard error, and on standard output.
    pub(super) only_stderr: bool,
}

impl Presenter for Raw {
    fn show(&mut self, out: &mut Printer, _view: &View, change: &Change) -> Result<(), Failure> {
        match change {
            Change::Output(output) if output.key.task.index == self.index => match (self.only_stderr, output.stream) {
                (true, Stream::Stdout) => Ok(()),
                (true, Stream::Stderr) => out.bytes(Stream::Stdout, &output.data),
                (false, stream) => out.bytes(stream, &output.data),
            },
            _ => Ok(()),
        }
    }
}
