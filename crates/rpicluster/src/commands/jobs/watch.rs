//! Watching a job to its end: its events are shown, and Ctrl-C leaves it or cancels it.

use std::fs::File;
use std::io::{self, BufRead, BufReader, IsTerminal};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use anyhow::Context as _;
use rpicluster_protocol::{CancelRequest, JobEvent, JobId};
use serde_json::json;

use super::printer::Printer;
use super::view::{Change, View};
use super::{JOBS_PATH, outcome, stream};
use crate::exit::{Exit, Failure};
use crate::http::MasterClient;
use crate::signals::{Interruption, interruptions};

/// Events that are read ahead. A full queue slows the master's stream.
const INPUTS_MAX: usize = 256;
/// What may be seen meanwhile, as a progress bar, is looked at so often.
const PAUSE: Duration = Duration::from_millis(200);

/// What happens while a job is watched.
pub(super) enum Input {
    /// The job's stream tells something.
    Event(Box<JobEvent>),
    /// The master is away, and why.
    Waiting(String),
    /// The stream is over: the job has ended, or there is no hope.
    Ended(Result<(), Failure>),
    /// The user wants to go.
    Interrupted(Interruption),
    /// What the user answers.
    Answer(String),
}

/// Shows what happens, each in its way.
pub(super) trait Presenter {
    /// Something has changed, and `view` holds it.
    fn show(&mut self, out: &mut Printer, view: &View, change: &Change) -> Result<(), Failure>;

    /// There is time to show how far the job is.
    fn pause(&mut self, _out: &mut Printer, _view: &View) {}

    /// Nothing more will come.
    fn end(&mut self, _out: &mut Printer, _view: &View) -> Result<(), Failure> {
        Ok(())
    }
}

/// A job that was watched to its end.
pub(super) struct Watched {
    /// How it stands at the end.
    pub(super) view: View,
    job: JobId,
    canceled: bool,
}

/// Watches a job to its end. If the job is the user's own, Ctrl-C asks what is to become of it; else it ends the command
/// as any other.
///
/// # Errors
/// [`Exit::Interrupted`] if the user leaves it to itself, [`Exit::Unreachable`] if the master stays away.
pub(super) fn watch(
    client: &MasterClient,
    job: JobId,
    is_own: bool,
    presenters: &mut [Box<dyn Presenter>],
) -> Result<Watched, Failure> {
    let (sender, inputs) = sync_channel(INPUTS_MAX);
    if is_own {
        let interrupts = sender.clone();
        interruptions(move |interruption| interrupts.send(Input::Interrupted(interruption)).is_ok())
            .context("cannot watch for Ctrl-C")?;
    }
    stream::follow(client.clone(), job, sender.clone()).context("cannot start a thread")?;
    let mut watch = Watch { client, job, sender, presenters, out: Printer::new(), view: View::default() };
    let mut leaving = Leaving { can_ask: io::stderr().is_terminal() && terminal().is_ok(), ..Leaving::default() };
    match watch.run(&inputs, &mut leaving) {
        Ok(()) => Ok(Watched { view: watch.view, job, canceled: leaving.canceled }),
        // The reader of standard output has gone: so does the command.
        Err(failure) if failure.exit == Exit::Done && is_own => Err(left(job)),
        Err(failure) if failure.exit == Exit::Unreachable => Err(given_up(job, &failure)),
        Err(failure) => Err(failure),
    }
}

struct Watch<'a> {
    client: &'a MasterClient,
    job: JobId,
    sender: SyncSender<Input>,
    presenters: &'a mut [Box<dyn Presenter>],
    out: Printer,
    view: View,
}

impl Watch<'_> {
    fn run(&mut self, inputs: &Receiver<Input>, leaving: &mut Leaving) -> Result<(), Failure> {
        loop {
            let input = match inputs.try_recv() {
                Ok(input) => input,
                Err(_) => {
                    self.out.flush()?;
                    if !leaving.asked {
                        self.presenters.iter_mut().for_each(|presenter| presenter.pause(&mut self.out, &self.view));
                    }
                    match inputs.recv_timeout(PAUSE) {
                        Ok(input) => input,
                        Err(RecvTimeoutError::Timeout) => continue,
                        // `self.sender` lives: it cannot be.
                        Err(RecvTimeoutError::Disconnected) => return Ok(()),
                    }
                }
            };
            match input {
                Input::Event(event) => self.event(*event)?,
                Input::Waiting(why) => self.out.note_once(&format!("waiting for the master: {why}")),
                Input::Ended(ended) => {
                    ended?;
                    let mut presenters = self.presenters.iter_mut();
                    presenters.try_for_each(|presenter| presenter.end(&mut self.out, &self.view))?;
                    self.out.clear_status();
                    return self.out.flush();
                }
                Input::Interrupted(interruption) => self.leave(leaving.interrupted(interruption))?,
                Input::Answer(answer) => self.leave(leaving.answered(&answer))?,
            }
        }
    }

    fn event(&mut self, event: JobEvent) -> Result<(), Failure> {
        let Some(change) = self.view.apply(event) else { return Ok(()) };
        self.presenters.iter_mut().try_for_each(|presenter| presenter.show(&mut self.out, &self.view, &change))
    }

    fn leave(&mut self, decision: Decision) -> Result<(), Failure> {
        match decision {
            Decision::GoOn => {}
            Decision::Detach => {
                self.out.clear_status();
                return Err(left(self.job));
            }
            Decision::Ask => {
                self.out.clear_status();
                self.out.flush()?;
                self.out.ask(&format!("job {} runs: d leaves it to itself, c cancels it, Enter goes on: ", self.job));
                let sender = self.sender.clone();
                let asking = thread::Builder::new().name("answer".to_owned()).spawn(move || {
                    let mut answer = String::new();
                    let read = terminal().and_then(|terminal| BufReader::new(terminal).read_line(&mut answer));
                    // Without a terminal there is no answer; whoever asked may have gone.
                    let _ = sender.send(Input::Answer(read.map_or_else(|_| String::new(), |_| answer)));
                });
                asking.context("cannot start a thread")?;
            }
            Decision::Cancel => {
                let request = json!(CancelRequest { running: true });
                self.client.change("POST", &format!("{JOBS_PATH}/{}/cancel", self.job), Some(&request))?;
                self.out.note("canceled; waiting until what runs has ended (Ctrl-C leaves it)");
            }
        }
        Ok(())
    }
}

impl Watched {
    /// Prints the summary, unless scripts read what is printed, and ends as the tasks did.
    ///
    /// # Errors
    /// The exit code of the tasks, unless all have succeeded.
    pub(super) fn conclude(self, summary: bool) -> Result<(), Failure> {
        if summary {
            Printer::new().plain(&outcome::summary(self.job, self.view.tasks()));
        }
        match if self.canceled { Exit::Interrupted } else { outcome::exit(self.view.tasks()) } {
            Exit::Done => Ok(()),
            exit => Err(Failure::new(exit, "")),
        }
    }
}

fn left(job: JobId) -> Failure {
    let advice = format!("\"rpicluster logs {job} -f\" follows it, \"rpicluster cancel {job} --running\" ends it");
    Failure::new(Exit::Interrupted, format!("job {job} goes on: {advice}"))
}

fn given_up(job: JobId, failure: &Failure) -> Failure {
    let advice = format!("job {job} may go on unseen: \"rpicluster logs {job} -f\" shows it again");
    Failure::new(failure.exit, format!("{failure}\n{advice}"))
}

/// Standard input may hold the inputs of a map.
fn terminal() -> io::Result<File> {
    File::open("/dev/tty")
}

/// What an interruption means: on a terminal the first asks, and another one leaves.
#[derive(Debug, Default)]
struct Leaving {
    can_ask: bool,
    asked: bool,
    canceled: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum Decision {
    GoOn,
    Ask,
    Detach,
    Cancel,
}

impl Leaving {
    fn interrupted(&mut self, interruption: Interruption) -> Decision {
        let ask = interruption == Interruption::Interrupt && self.can_ask && !self.asked && !self.canceled;
        self.asked |= ask;
        if ask { Decision::Ask } else { Decision::Detach }
    }

    fn answered(&mut self, answer: &str) -> Decision {
        self.asked = false;
        match answer.trim() {
            "d" | "D" => Decision::Detach,
            "c" | "C" => {
                self.canceled = true;
                Decision::Cancel
            }
            _ => Decision::GoOn,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn on_a_terminal_the_first_interruption_asks_and_another_leaves() {
        let mut leaving = Leaving { can_ask: true, ..Leaving::default() };
        assert_eq!(leaving.interrupted(Interruption::Interrupt), Decision::Ask);
        assert_eq!(leaving.answered("\n"), Decision::GoOn);
        assert_eq!(leaving.interrupted(Interruption::Interrupt), Decision::Ask);
        assert_eq!(leaving.interrupted(Interruption::Interrupt), Decision::Detach);
        assert_eq!(leaving.answered("c\n"), Decision::Cancel);
        assert_eq!(leaving.interrupted(Interruption::Interrupt), Decision::Detach, "once it is canceled");
    }

    #[test]
    fn without_a_terminal_and_when_told_to_end_nobody_is_asked() {
        assert_eq!(Leaving::default().interrupted(Interruption::Interrupt), Decision::Detach);
        let mut leaving = Leaving { can_ask: true, ..Leaving::default() };
        assert_eq!(leaving.interrupted(Interruption::Terminate), Decision::Detach);
        assert_eq!(leaving.answered("d"), Decision::Detach);
    }
}
