//! What each task has written, whole, when it has ended: as they end, or in the order of the inputs.

use std::collections::BTreeSet;
use std::time::Instant;

use rpicluster_protocol::{Stream, TaskInfo};

use super::held::Held;
use super::outcome::{CUT, name};
use super::printer::Printer;
use super::progress::Progress;
use super::view::{Change, View};
use super::watch::Presenter;
use crate::exit::Failure;
use crate::http::MasterClient;

/// Shows results, and how far the job is.
pub(super) struct Results {
    client: MasterClient,
    held: Held,
    turns: Turns,
    started: Instant,
}

/// Whose result is shown when.
struct Turns {
    keep_order: bool,
    /// All before it have been shown.
    next: u32,
    /// Beyond `next`: those whose turn has not come, or that were shown before it.
    beyond: BTreeSet<u32>,
}

impl Results {
    /// In the order of the inputs, or as they come.
    pub(super) fn new(client: MasterClient, keep_order: bool) -> Results {
        Results { client, held: Held::default(), turns: Turns::new(keep_order), started: Instant::now() }
    }

    fn print(&mut self, out: &mut Printer, task: &TaskInfo) -> Result<(), Failure> {
        let written = self.held.take(&self.client, task.task.job, task)?;
        out.bytes(Stream::Stdout, &written.stdout)?;
        if let Some(result) = &task.result {
            out.bytes(Stream::Stdout, format!("{result}\n").as_bytes())?;
        }
        out.bytes(Stream::Stderr, &written.stderr)?;
        if task.truncated {
            out.trouble(&name(task), CUT);
        }
        Ok(())
    }
}

impl Presenter for Results {
    fn show(&mut self, out: &mut Printer, view: &View, change: &Change) -> Result<(), Failure> {
        let index = match change {
            Change::Job => return Ok(()),
            Change::Task(index) => *index,
            Change::Output(output) => {
                let index = output.key.task.index;
                if self.turns.was_shown(index) {
                    return out.bytes(output.stream, &output.data);
                }
                self.held.push(output);
                index
            }
        };
        if view.is_complete(index) {
            for index in self.turns.ended(index) {
                if let Some(task) = view.task(index) {
                    self.print(out, task)?;
                }
            }
        }
        Ok(())
    }

    fn pause(&mut self, out: &mut Printer, view: &View) {
        out.status(|| Progress::of(view).line(self.started.elapsed()));
    }

    /// Also those of which less came than was announced.
    fn end(&mut self, out: &mut Printer, view: &View) -> Result<(), Failure> {
        for task in view.tasks() {
            if !self.turns.was_shown(task.task.index) {
                self.print(out, task)?;
            }
        }
        Ok(())
    }
}

impl Turns {
    fn new(keep_order: bool) -> Turns {
        Turns { keep_order, next: 0, beyond: BTreeSet::new() }
    }

    /// A task has ended: whose results are shown now. One that ends twice is shown once.
    fn ended(&mut self, index: u32) -> Vec<u32> {
        if index < self.next || !self.beyond.insert(index) {
            return Vec::new();
        }
        let first = self.next;
        while self.beyond.remove(&self.next) {
            self.next += 1;
        }
        if self.keep_order { (first..self.next).collect() } else { vec![index] }
    }

    fn was_shown(&self, index: u32) -> bool {
        index < self.next || (!self.keep_order && self.beyond.contains(&index))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_as_tasks_end() {
        let mut turns = Turns::new(false);
        assert_eq!(
            [3, 0, 3, 1, 0, 2].map(|index| turns.ended(index)),
            [vec![3], vec![0], vec![], vec![1], vec![], vec![2]]
        );
        assert!(turns.was_shown(3) && !turns.was_shown(4));
        assert!(turns.beyond.is_empty(), "nothing is remembered of what is behind");
    }

    #[test]
    fn or_in_the_order_of_the_inputs() {
        let mut turns = Turns::new(true);
        assert!(turns.ended(2).is_empty());
        assert_eq!(turns.ended(0), [0]);
        assert!(!turns.was_shown(2));
        assert_eq!(turns.ended(1), [1, 2]);
        assert!(turns.ended(1).is_empty());
    }
}
